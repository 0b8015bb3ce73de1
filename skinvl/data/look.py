"""`skinvl look SOURCE`: what a prepared source holds, as one HTML file that needs nothing else, with CSV files beside.

What is counted is all of it, read by columns; conversations and groups are shown as a sample.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from skinvl.data import columns, flow, gallery, pages, table1
from skinvl.data.columns import SourceSplit
from skinvl.data.example import ExampleError
from skinvl.data.flow import Flow, SplitCounts
from skinvl.data.gallery import Album
from skinvl.data.source import read_card, source_name
from skinvl.data.table1 import Columns
from skinvl.recipe.files import read_json_lines, write_bytes

ROWS = 3  # of the ledger that are shown of each rule


@dataclass(frozen=True, slots=True)
class RuleRows:
    """Rows that a rule left out of a source."""

    source: str
    rule: str
    count: int
    rows: list[Mapping[str, Any]]  # some of them


def main(arguments: list[str]) -> int:
    """0, once the page and its tables are written.

    Raises:
        FileNotFoundError, ValueError: a source or split is not there, or cannot be read.
    """
    parser = argparse.ArgumentParser(prog="skinvl look", description="Write a page about prepared sources.")
    parser.add_argument("sources", nargs="+", metavar="SOURCE[:SPLIT]",
                        help="a prepared source, or one split of it; a name without a slash lies in data/")  # fmt: skip
    parser.add_argument("--split", nargs="+", action="extend", default=[], metavar="NAME",
                        help="splits to look at, where not all; the flow diagram has all")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("look"), metavar="DIR",
                        help="folder for look.html, table1.csv and flow.csv (default look/)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of what is drawn, where not all is shown (default 0)")  # fmt: skip
    options = parser.parse_args(arguments)

    # All rows as columns, what they count, and the ledgers.
    parts = columns.parts(options.sources, options.split)
    rows, paths = columns.read(parts)
    chosen = [number for number, part in enumerate(parts) if part.chosen]
    tables = [table1.table(rows, unit, chosen) for unit in table1.UNITS]
    roots = list(dict.fromkeys(part.root for part in parts))
    ledgers = {root: ledger(root, options.seed) for root in roots}
    flows = [_flow(root, parts, rows, ledgers[root]) for root in roots]

    options.out.mkdir(parents=True, exist_ok=True)
    table1.write_csv(options.out / "table1.csv", tables)
    flow.write_csv(options.out / "flow.csv", flows)
    path = options.out / "look.html"
    data = page(parts, rows, paths, tables, ledgers, flows, options.seed).encode("utf-8", "replace")
    write_bytes(path, data)
    console = Console(highlight=False, markup=False)
    console.print(f"{path}: {len(data) / 2**20:,.1f} MiB, one file; beside it table1.csv and flow.csv", soft_wrap=True)
    return 0


def page(
    parts: Sequence[SourceSplit],
    rows: Columns,
    paths: Sequence[tuple[Path, str]],
    tables: Sequence[table1.Table1],
    ledgers: Mapping[Path, Sequence[RuleRows]],
    flows: Sequence[Flow],
    seed: int,
) -> str:
    """The page as HTML; the same for the same sources and seed."""
    chosen = [part for part in parts if part.chosen]
    album = Album()
    counts, groups = gallery.groups(parts, rows, paths, album, seed)
    template = pages.template(Path(__file__).with_name("look.html.j2"))
    return template.render(
        parts=chosen,
        sources=[(source_name(root), read_card(root)) for root in ledgers],
        tables=tables,
        flows=[(each, flow.svg(each)) for each in flows],
        ledger=[rule for rules in ledgers.values() for rule in rules],
        tags=columns.tags(chosen).most_common(),
        counts=counts,
        crossing=_crossing(parts, rows),
        groups=groups,
        conversations=gallery.conversations(parts, rows, album, seed),
        seed=seed,
    )


def ledger(root: Path, seed: int) -> list[RuleRows]:
    """What each rule left out of a source, the most first, with rows drawn by the seed.

    Raises:
        ExampleError: the ledger cannot be read.
    """
    path, generator = root / "ledger.jsonl", random.Random(seed)
    again = "prepare the source again with skinvl prep"
    counts: dict[str, int] = {}
    kept: dict[str, list[Mapping[str, Any]]] = {}
    if not path.is_file():
        return []
    for row in read_json_lines(path, again, ExampleError, ("row", "rule", "detail")):
        rule = str(row["rule"])
        counts[rule] = number = counts.get(rule, 0) + 1
        if number <= ROWS:
            kept.setdefault(rule, []).append(row)
        elif (place := generator.randrange(number)) < ROWS:  # each row is as likely as any other to be kept
            kept[rule][place] = row
    ranked = sorted(counts, key=lambda rule: (-counts[rule], rule))
    return [RuleRows(source_name(root), rule, counts[rule], kept[rule]) for rule in ranked]


def _crossing(parts: Sequence[SourceSplit], rows: Columns) -> int:
    """How many groups stand in several of the sets that are looked at."""
    inside = np.array([part.chosen for part in parts])[rows.set]
    pairs = np.unique(rows.group[inside] * len(parts) + rows.set[inside])
    return int((np.unique(pairs // len(parts), return_counts=True)[1] > 1).sum())


def _flow(root: Path, parts: Sequence[SourceSplit], rows: Columns, rules: Sequence[RuleRows]) -> Flow:
    """What became of the rows of a source, all of its splits."""
    own = [number for number, part in enumerate(parts) if part.root == root]
    card = read_card(root)
    return Flow(
        source_name(root),
        tuple((rule.rule, rule.count) for rule in rules),
        tuple(SplitCounts(parts[number].split, parts[number].rows, *_counts(rows, [number])) for number in own),
        *_counts(rows, own),
        **{name: int(card.get(name) or 0) for name in ("joined", "largest", "moved")},
    )


def _counts(rows: Columns, sets: Sequence[int]) -> tuple[int, int]:
    """How many images and groups the sets have."""
    inside = np.isin(rows.set, sets)
    return len(np.unique(rows.image[inside[rows.row]])), len(np.unique(rows.group[inside]))
