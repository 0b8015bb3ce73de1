"""A contact sheet of pairs of images that look alike, on either side of a threshold, for a person to judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from skinvl.pixels import ImageError, upright

SIDE = 176  # pixels of an image's longer side
GAP = 8
LINE = 17  # pixels of a line of text
COLUMNS = 3
MOST = 40  # pairs on a sheet
LINKED, APART, INK, PAPER, NOTHING = (0, 110, 60), (180, 40, 40), (30, 30, 30), (255, 255, 255), (225, 225, 225)
CELL = (2 * SIDE + GAP, SIDE + 3 * LINE)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images: what they are called, where they lie, and how many bits their hashes differ by."""

    distance: int
    names: tuple[str, str]
    files: tuple[Path, Path]


def choose(pairs: Sequence[Pair], most: int = MOST) -> list[Pair]:
    """At most so many pairs, of every distance as many as of any other where there are enough, nearest first."""
    seen: Counter[int] = Counter()
    ranks = []
    for pair in pairs:
        ranks.append(seen[pair.distance])
        seen[pair.distance] += 1
    order = sorted(range(len(pairs)), key=lambda place: (ranks[place], pairs[place].distance))
    return sorted((pairs[place] for place in order[:most]), key=lambda pair: pair.distance)


def draw(path: Path, pairs: Sequence[Pair], threshold: int) -> None:
    """Nothing; the PNG holds the pairs side by side, each with its distance and names above.

    Pairs up to the threshold are labelled in green as one image, the others in red as two.
    """
    rows = -(-len(pairs) // COLUMNS)
    size = (GAP + COLUMNS * (CELL[0] + 3 * GAP), GAP + rows * (CELL[1] + 2 * GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, pair in enumerate(pairs):
        left, top = place(number)
        linked = pair.distance <= threshold
        said = f"{pair.distance} bits: {'one image' if linked else 'two images'} at threshold {threshold}"
        pen.text((left, top), said, LINKED if linked else APART, font)
        for line, name in enumerate(pair.names, start=1):
            pen.text((left, top + line * LINE), _short(name, font), INK, font)
        for side, file in enumerate(pair.files):
            sheet.paste(_thumbnail(file), (left + side * (SIDE + GAP), top + 3 * LINE))
    sheet.save(path)


def place(number: int) -> tuple[int, int]:
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
