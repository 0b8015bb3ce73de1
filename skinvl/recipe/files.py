"""Files that are whole or not there, and what tells one from another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "complete.json"  # of a checkpoint: the bytes and the digest of each of its files


def write_text(path: Path, text: str) -> None:
    """Nothing; the file holds the text, or what it held before."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def appear(partial: Path, path: Path) -> None:
    """Nothing; `path` is the finished folder `partial`, all of it on the disk, with its manifest."""
    for name in ("training_args.bin", "README.md"):  # a pickle, and a card that says nothing
        (partial / name).unlink(missing_ok=True)
    files_written = sorted(file for file in partial.rglob("*") if file.is_file())
    files = {str(file.relative_to(partial)): file_facts(file) for file in files_written}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    for file in (*files_written, manifest, partial):
        _sync(file)
    clear(path)
    partial.rename(path)
    _sync(path.parent)


def clear(path: Path) -> None:
    """Nothing; the folder is gone, and was invisible before the first of its files went."""
    if path.exists():
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.gone")))


def digest(file: Path) -> str:
    """32 hexadecimal digits of the file's bytes, xxh3."""
    found = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def existing(path: Path) -> Path:
    """The nearest folder above a path that is there, or the path itself."""
    while not path.exists():
        path = path.parent
    return Path(os.path.realpath(path))


def file_facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "xxh3_128": digest(file)}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
