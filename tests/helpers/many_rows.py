"""A prepared source of any number of rows, written by columns in seconds: drawn facts, groups, images and words."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skinvl.data.example import LISTS, SCALARS, SCHEMA

BATCH = 20_000  # rows of a row group
WORDS = "A brown macule with an even border on the back, which has not changed in years, as the patient says. " * 2
VALUES = {
    "modality": ["clinical", "dermoscopy"],
    "diagnosis": [f"disease {number}" for number in range(200)],
    "malignancy": ["benign", "malignant"],
    "skin_type": ["I", "II", "III", "IV", "V", "VI"],
    "sex": ["female", "male"],
    "site": ["arm", "back", "face", "leg"],
    "kind": ["colour", "diagnosis", "site"],
    "institution": ["Barcelona", "Vienna"],
}


def write(folder: Path, rows: int, split: str = "train", left_out: int = 0, images: int = 200) -> Path:
    """The source: each group has 8 rows about 2 images, of which the first `images` are named again and again."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(rows)
    with pq.ParquetWriter(folder / f"{split}.parquet", SCHEMA) as writer:
        for start, end in pairwise([*range(0, rows, BATCH), rows]):
            writer.write_table(_batch(split, start, end, images, generator))
    with (folder / "ledger.jsonl").open("w", encoding="utf-8") as file:
        for number in range(left_out):
            row = {"row": f"t.csv:{number}", "rule": f"rule-{number % 7}", "detail": "left out"}
            file.write(json.dumps(row) + "\n")
    (folder / "card.json").write_text(json.dumps({"title": "many rows", "licence": "CC0-1.0"}))
    return folder


def _batch(split: str, start: int, end: int, images: int, generator: np.random.Generator) -> pa.Table:
    count = end - start
    numbers = np.arange(start, end)

    def named(form: str, values: np.ndarray) -> pa.Array:
        return pa.array([form.format(value) for value in values.tolist()])

    def lists(per: int, values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, per), pa.int32()), values)

    def drawn(name: str) -> pa.Array:
        codes = generator.integers(0, len(VALUES[name]), count)
        return pa.array(VALUES[name]).take(pa.array(codes, mask=generator.random(count) < 0.2))

    def nothing(name: str) -> pa.Array:
        empty = pa.array([], SCHEMA.field(name).type.value_type)
        return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1), pa.int32()), empty)

    parts = pa.StructArray.from_arrays(
        [pa.array(["image", "text", "text"] * count), pa.array([None, "What is seen?", WORDS] * count)],
        ["type", "text"],
    )
    contents = pa.ListArray.from_arrays(
        pa.array(np.r_[0, (np.arange(count)[:, None] * 3 + [2, 3]).ravel()], pa.int32()), parts
    )
    turns = pa.StructArray.from_arrays([pa.array(["user", "assistant"] * count), contents], ["role", "content"])
    paths = named("images/{}.png", numbers // 4 % images if images else numbers // 4)
    none = pa.array([()] * count, pa.list_(pa.string()))
    facts = {name: drawn(name) if name in VALUES else pa.nulls(count, pa.string()) for name in SCALARS}
    facts["age"] = pa.array(generator.normal(50, 15, count).round())
    facts |= dict.fromkeys(LISTS, none)
    columns = {
        "id": named("row-{}", numbers),
        "source": pa.repeat("many", count),
        "images": lists(1, pa.StructArray.from_arrays([pa.nulls(count, pa.binary()), paths], ["bytes", "path"])),
        "messages": lists(2, turns),
        "group": named("patient-{}", numbers // 8),
        "split": pa.repeat(split, count),
        "licence": pa.repeat("CC0-1.0", count),
        "facts": pa.StructArray.from_arrays([facts[f.name] for f in SCHEMA.field("facts").type],
                                            [f.name for f in SCHEMA.field("facts").type]),
        "schema": pa.nulls(count, pa.string()),
    }  # fmt: skip
    others = {name: nothing(name) for name in SCHEMA.names if name not in columns}
    return pa.Table.from_arrays([{**columns, **others}[name] for name in SCHEMA.names], schema=SCHEMA)
