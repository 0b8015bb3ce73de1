"""What a converter makes of raw files, checked against its contract: rows counted apart, shards that add up."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from data_prep import Converter, Shard
from skinvl.data.example import Dropped, Example, validate


def outcomes(converter: Converter, raw: Path, part: str = "vqa") -> list[Example | Dropped]:
    """All rows, in order; two shards give the same records as one reader, and each of them whole."""
    whole = list(converter.convert(raw, part))
    assert converter.rows(raw, part) == len(whole)
    pieces: dict[int, list[Example | Dropped]] = defaultdict(list)
    for index in range(2):
        shard = Shard(index, 2, block=1)
        for row in converter.convert(raw, part, shard):
            assert shard.record % 2 == index
            pieces[shard.record].append(row)
    assert [row for record in sorted(pieces) for row in pieces[record]] == whole
    homes: dict[str, set[str]] = defaultdict(set)
    for row in whole:
        if isinstance(row, Example):
            validate(row)
            assert row.split in converter.CARD.splits
            homes[row.group].add(row.split)
    if converter.CARD.released == "none":
        assert all(len(splits) == 1 for splits in homes.values())
    return whole


def converted(converter: Converter, raw: Path, part: str = "vqa") -> tuple[dict[str, Example], list[Dropped]]:
    """(the Examples by id, of which the first stays; the rows that were dropped)."""
    rows = outcomes(converter, raw, part)
    examples: dict[str, Example] = {}
    for row in rows:
        if isinstance(row, Example):
            examples.setdefault(row.id, row)
    return examples, [row for row in rows if isinstance(row, Dropped)]
