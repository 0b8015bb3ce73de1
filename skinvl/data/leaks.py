"""`skinvl leaks`: which images two sets share, by which evidence, and a contact sheet to judge the threshold by eye."""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from skinvl.data import overlap
from skinvl.data.fingerprints import THRESHOLD
from skinvl.data.overlap import ImageMatch, Set, Shared
from skinvl.data.pixels import ImageError, upright
from skinvl.recipe.printing import narrow, right

SHOWN = 10  # most pairs of sets that share nothing and have a line of the table
End = tuple[str, Path, str]  # the name of a set, its source, and an image's path there


def main(arguments: list[str]) -> int:
    """0, once the table is printed and the pairs and their sheet are written.

    Raises:
        FileNotFoundError, ValueError: see `overlap.read`.
    """
    parser = argparse.ArgumentParser(prog="skinvl leaks", description="Show which images two sets share.")
    parser.add_argument("sets", nargs="+", metavar="SOURCE[:SPLIT]",
                        help="a prepared source, or one split of it; a name without a slash lies in data/")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("leaks"), metavar="DIR",
                        help="folder for pairs.csv and sheet.png (default leaks/)")  # fmt: skip
    parser.add_argument("--threshold", type=int, default=THRESHOLD, metavar="BITS",
                        help=f"most bits in which hashes of one image may differ (default {THRESHOLD})")  # fmt: skip
    options = parser.parse_args(arguments)
    if not 0 <= options.threshold <= 16:
        parser.error(f"--threshold {options.threshold}: expected 0 to 16 bits; beyond that strangers look alike")

    # What the sets share, and what looks alike, up to some bits above the threshold.
    sets, images = overlap.read(options.sets)
    kinds, close = overlap.evidence(images, options.threshold)
    shared = overlap.nearest(sets, kinds)
    matches = overlap.matches(images, overlap.once(shared), options.threshold)
    alike = overlap.matches(images, overlap.once(overlap.nearest(sets, [close, kinds[-1]])), options.threshold)
    alike = [match for match in alike if "sha256" not in match.kinds]  # of equal bytes there is nothing to judge

    # The table, on the screen.
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, markup=False)
    for number, split in enumerate(sets, start=1):
        console.print(
            f"{number}: {split.name}, {split.images:,} images, {len(split.group):,} conversations", soft_wrap=True
        )
    table, left_out = _table(sets, shared)
    console.print(table)
    if left_out:
        console.print(f"{left_out:,} other pairs of sets share nothing", soft_wrap=True)

    # Every pair, as a CSV.
    ends = [
        (split.name, split.root, path)
        for split in sets
        for path in images["path"].slice(split.first, split.images).to_pylist()
    ]
    _write_pairs(options.out / "pairs.csv", ends, matches)
    console.print(f"{options.out / 'pairs.csv'}: {len(matches):,} pairs, nearest first", soft_wrap=True)

    # The contact sheet.
    path = options.out / "sheet.png"
    path.unlink(missing_ok=True)  # of an earlier call
    if alike:
        pairs = choose([_pair(ends[match.first], ends[match.second], match.distance) for match in alike])
        draw_sheet(path, pairs, options.threshold)
        console.print(f"{path}: {len(pairs)} of {len(alike):,} pairs that look alike, nearest first", soft_wrap=True)
    else:
        console.print("no sheet: no two images look alike, except where their bytes are equal", soft_wrap=True)
    return 0


def _table(sets: Sequence[Set], shared: Shared) -> tuple[Table, int]:
    """How much of each set another one has too, by each kind of evidence and by any; sets are named by their number.

    Beside it how many pairs of sets are left out, since they share nothing and are more than `SHOWN`.
    """
    table = narrow(
        "sets", "evidence", right("images: of 1st"), right("2nd"), right("conversations: of 1st"), right("2nd")
    )
    rows = []
    for a, b in combinations(range(len(sets)), 2):
        sides = [overlap.shared(sets[own], sets[theirs], shared[theirs, own]) for own, theirs in ((a, b), (b, a))]
        names = [kind for kind in sides[0] if any(side[kind][1].any() for side in sides)]
        for kind in names if len(names) > 2 else names[:1] or ["any"]:
            counts = [int(side[kind][unit].sum()) for unit in (0, 1) for side in sides]  # images, then conversations
            rows.append([f"{a + 1}, {b + 1}", kind if names else "none", *(f"{count:,}" for count in counts)])
    nothing = sum(row[1] == "none" for row in rows)
    left_out = nothing if nothing > SHOWN else 0
    for row in rows:
        if not (left_out and row[1] == "none"):
            table.add_row(*row)
    return table, left_out


def _write_pairs(path: Path, ends: Sequence[End], matches: Iterable[ImageMatch]) -> None:
    """Writes a row for each pair of images; the distance is empty where one of the two has no hash."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set a", "image a", "set b", "image b", "kind", "distance"])
        for match in matches:
            (set_a, _, image_a), (set_b, _, image_b) = ends[match.first], ends[match.second]
            distance = "" if match.distance > 64 else match.distance
            writer.writerow([set_a, image_a, set_b, image_b, "+".join(match.kinds), distance])


# The contact sheet: pairs that look alike, side by side, to judge the threshold by eye.

SIDE = 176  # pixels of an image's longer side
GAP = 8
LINE = 17  # pixels of a line of text
COLUMNS = 3
MOST = 40  # pairs on a sheet
LINKED, APART, INK, PAPER, NOTHING = (0, 110, 60), (180, 40, 40), (30, 30, 30), (255, 255, 255), (225, 225, 225)
CELL = (2 * SIDE + GAP, SIDE + 3 * LINE)


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two images: what they are called, where they lie, and how many bits their hashes differ by."""

    distance: int
    names: tuple[str, str]
    files: tuple[Path, Path]


def _pair(a: End, b: End, distance: int) -> ImagePair:
    return ImagePair(distance, (f"{a[0]} {a[2]}", f"{b[0]} {b[2]}"), (a[1] / a[2], b[1] / b[2]))


def choose(pairs: Sequence[ImagePair], most: int = MOST) -> list[ImagePair]:
    """At most so many pairs, of every distance as many as of any other where there are enough, nearest first."""
    seen: Counter[int] = Counter()
    ranks = []
    for pair in pairs:
        ranks.append(seen[pair.distance])
        seen[pair.distance] += 1
    order = sorted(range(len(pairs)), key=lambda number: (ranks[number], pairs[number].distance))
    return sorted((pairs[number] for number in order[:most]), key=lambda pair: pair.distance)


def draw_sheet(path: Path, pairs: Sequence[ImagePair], threshold: int) -> None:
    """Writes a PNG of the pairs side by side, each with its distance and names above.

    Pairs up to the threshold are labelled in green as one image, the others in red as two.
    """
    rows = -(-len(pairs) // COLUMNS)
    size = (GAP + COLUMNS * (CELL[0] + 3 * GAP), GAP + rows * (CELL[1] + 2 * GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, pair in enumerate(pairs):
        left, top = cell_corner(number)
        linked = pair.distance <= threshold
        verdict = f"{pair.distance} bits: {'one image' if linked else 'two images'} at threshold {threshold}"
        pen.text((left, top), verdict, LINKED if linked else APART, font)
        for line, name in enumerate(pair.names, start=1):
            pen.text((left, top + line * LINE), _short(name, font), INK, font)
        for side, file in enumerate(pair.files):
            sheet.paste(_thumbnail(file), (left + side * (SIDE + GAP), top + 3 * LINE))
    sheet.save(path)


def cell_corner(number: int) -> tuple[int, int]:
    """The upper left corner, (x, y) in pixels, of a pair's cell; its images lie below three lines of text."""
    row, column = divmod(number, COLUMNS)
    return GAP + column * (CELL[0] + 3 * GAP), GAP + row * (CELL[1] + 2 * GAP)


def _thumbnail(file: Path) -> Image.Image:
    """The image on a square of paper, a grey square where it cannot be read."""
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    try:
        small = upright(file)
    except ImageError:
        ImageDraw.Draw(square).rectangle((0, 0, SIDE, SIDE), NOTHING)
        return square
    small.thumbnail((SIDE, SIDE))
    square.paste(small)
    return square


def _short(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The name with its middle left out, if it is wider than the cell."""
    kept = name
    while font.getlength(kept) > CELL[0] and len(name) > 2:
        name = name[: len(name) // 2 - 1] + name[len(name) // 2 + 1 :]
        kept = f"{name[: len(name) // 2]}…{name[len(name) // 2 :]}"
    return kept
