"""Raw folders for the tests of converters: drawn images, CSV files, and what prep makes of them."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from skinvl.data.example import Dropped, Example, read, words
from skinvl.sources.prepare.steps import prepare


def image(path: Path) -> None:
    """A drawn image at the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (180, 120, 100)).save(path)


def photo(path: Path) -> None:
    """A drawn image at the path that looks like no other: patches of colours that its path draws."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(patches).resize((48, 48), Image.Resampling.NEAREST).save(path)


def table(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """A CSV file of the rows, with the columns of the first."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def prepared(name: str, raw: Path, part: str | None = None) -> tuple[int, dict[str, Example], list[Dropped]]:
    """(rows in, the Examples read back by id, the ledger); no group lies in two splits."""
    out = raw.parent / f"{raw.name}-out"
    account = prepare(name, raw, out, [part] if part else None)
    assert account is not None
    examples = {row.id: row for split in account.examples for row in read(out, split)}
    ledger = [Dropped(**json.loads(line)) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert account.rows == len(examples) + len(ledger)
    homes: dict[str, set[str]] = {}
    for row in examples.values():
        homes.setdefault(row.group, set()).add(row.split)
    assert all(len(splits) == 1 for splits in homes.values())
    return account.rows, examples, ledger


def said(example: Example) -> tuple[str, str]:
    """The question and the answer of an Example."""
    question, answer = (words(message) for message in example.messages)
    return question, answer
