"""`skinvl leaks`: which images two sets share, by which evidence, and a sheet to judge the threshold by eye."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.table import Table

from skinvl import overlap, sheet
from skinvl.clusters import THRESHOLD
from skinvl.overlap import Mask, Match, Set, Shared
from skinvl.sheet import Pair

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
    given = parser.parse_args(arguments)
    if not 0 <= given.threshold <= 16:
        parser.error(f"--threshold {given.threshold}: expected 0 to 16 bits; beyond that strangers look alike")
    sets, images = overlap.read(given.sets)
    kinds, close = overlap.evidence(images, given.threshold)
    shared = overlap.nearest(sets, kinds)
    found = overlap.matches(images, overlap.once(shared), given.threshold)
    alike = overlap.matches(images, overlap.once(overlap.nearest(sets, [close])), given.threshold)
    alike = [match for match in alike if "sha256" not in match.kinds]  # of equal bytes there is nothing to judge
    given.out.mkdir(parents=True, exist_ok=True)
    ends = [
        (one.name, one.root, path) for one in sets for path in images["path"].slice(one.first, one.images).to_pylist()
    ]
    console = Console(highlight=False, markup=False)
    console.print(_table(sets, shared))
    _write(given.out / "pairs.csv", ends, found)
    console.print(f"{given.out / 'pairs.csv'}: {len(found):,} pairs, nearest first", soft_wrap=True)
    path = given.out / "sheet.png"
    path.unlink(missing_ok=True)  # of an earlier call
    if alike:
        pairs = sheet.choose([_pair(ends[match.one], ends[match.other], match.far) for match in alike])
        sheet.draw(path, pairs, given.threshold)
        console.print(f"{path}: {len(pairs)} of {len(alike):,} pairs that look alike, nearest first", soft_wrap=True)
    else:
        console.print("no sheet: no two images look alike, except where their bytes are equal", soft_wrap=True)
    return 0


def _table(sets: Sequence[Set], shared: Shared) -> Table:
    """How much of each set another one has too, by each kind of evidence and by any."""
    table = Table("A", "B", "evidence", "images of A", "of B", "conversations of A", "of B")
    for one, other in combinations(range(len(sets)), 2):
        sides = [
            overlap.shared(sets[own], sets[theirs], shared[theirs, own]) for own, theirs in ((one, other), (other, one))
        ]
        names = [kind for kind in sides[0] if any(side[kind][1].any() for side in sides)]
        for kind in names if len(names) > 2 else names[:1] or ["any"]:
            cells = [_cell(side[kind][place]) for place in (0, 1) for side in sides]
            table.add_row(sets[one].name, sets[other].name, kind if names else "none", *cells)
        table.add_section()
    return table


def _cell(mask: Mask) -> str:
    return f"{int(mask.sum()):,} of {len(mask):,}"


def _write(path: Path, ends: Sequence[End], found: Iterable[Match]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set a", "image a", "set b", "image b", "kind", "distance"])
        for match in found:
            (one, _, left), (other, _, right) = ends[match.one], ends[match.other]
            writer.writerow([one, left, other, right, "+".join(match.kinds), "" if match.far > 64 else match.far])


def _pair(one: End, other: End, far: int) -> Pair:
    return Pair(far, (f"{one[0]} {one[2]}", f"{other[0]} {other[2]}"), (one[1] / one[2], other[1] / other[2]))
