"""Prepared sources by hand: fingerprints of what lies in images/, a card, and drawn pictures that differ."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from skinvl.data.fingerprints import archive_id, looks
from skinvl.data.source import IMAGES_SCHEMA


def fingerprint(folder: Path, split: str = "group", alike: bool = True, archive: str = "") -> Path:
    """The source, with images.parquet over its images and a card.json as `skinvl prep` writes them."""
    rows = []
    for path in sorted(path for path in (folder / "images").rglob("*") if path.is_file()):
        picture = Image.open(path).convert("RGB")
        name = path.relative_to(folder).as_posix()
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        width, height = picture.size
        known = {"path": name, "sha256": sha256, "archive": archive_id(name), "width": width, "height": height}
        rows.append({**known, **looks(picture)})
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA), folder / "images.parquet")
    (folder / "card.json").write_text(json.dumps({"split": split, "alike": alike, "archive": archive}))
    return folder


def phash(picture: Image.Image) -> int | None:
    """The 64-bit perceptual hash of a picture as it stands."""
    return looks(picture)["phash"]


def photo(seed: int, side: int = 320) -> Image.Image:
    """A soft random picture; those of different seeds are far apart."""
    cells = Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192))
    return cells.resize((side, side), Image.Resampling.BICUBIC)
