"""Files and folders that are whole or not there, what tells one from another, and JSON that is read strictly.

What is written lies beside its place under a hidden name that ends in `.partial`, and is renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "complete.json"  # of a folder that `appear` made: the bytes and the digest of each of its files


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that becomes `path` when the block ends; of a block that fails nothing is left.

    The name is no other process's, on this machine or another, since several may write the same file at once; and
    short, since that of `path` may be as long as a name can be.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, which holds the data, or what it held before."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes a file in UTF-8, which holds the text, or what it held before; `errors` as `str.encode` has it."""
    write_bytes(path, text.encode("utf-8", errors))


def write_json(path: Path, value: Any, indent: int = 2, *, allow_nan: bool = True) -> None:
    """Writes a value as JSON into a file, which holds it, or what it held before.

    Raises:
        ValueError: a number is not finite, and `allow_nan` is false.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    write_text(path, f"{text}\n", "backslashreplace")  # half of a surrogate pair becomes its escape, which is JSON


def partial_folder(path: Path) -> Path:
    """Where the processes of one run write a folder together, and a later run finds what a killed one has left."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole_folder(path: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """An empty folder that becomes `path` when the block ends, in place of what was there; nothing if the block fails.

    Args:
        durable: all of it is on the disk then, with its manifest: see `appear`.
        shared: several processes may make it at once, each under a name of its own. Such a folder stays behind where
            one is killed; any other goes when `path` is made again.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial") if shared else partial_folder(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if durable:
            appear(partial, path)
        else:
            replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def appear(partial: Path, path: Path) -> None:
    """Makes the finished folder `partial` that of `path`, once all of it is on the disk, with its manifest."""
    for name in ("training_args.bin", "README.md"):  # a pickle, and a card that says nothing
        (partial / name).unlink(missing_ok=True)
    written = sorted(file for file in partial.rglob("*") if file.is_file())
    manifest = partial / MANIFEST
    write_json(manifest, {"files": {str(file.relative_to(partial)): file_facts(file) for file in written}})

    # The manifest says that all is there, so that nobody may see it before it is.
    for file in (*written, manifest, partial):
        sync(file)
    replace_folder(partial, path)
    sync(path.parent)


def replace_folder(partial: Path, path: Path) -> None:
    """Renames the finished folder `partial` to `path`; an older one gives way only now, and is then removed."""
    older = _gone(path)
    shutil.rmtree(older, ignore_errors=True)  # of a process that was killed
    if path.exists():
        path.rename(older)
    partial.rename(path)
    shutil.rmtree(older, ignore_errors=True)


def clear(path: Path) -> None:
    """Removes a folder, which is invisible before the first of its files goes."""
    older = _gone(path)
    shutil.rmtree(older, ignore_errors=True)
    if path.exists():
        shutil.rmtree(path.rename(older))


def sync(path: Path) -> None:
    """Takes a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    """32 hexadecimal digits of a file's bytes, xxh3."""
    state = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def file_facts(file: Path) -> dict[str, Any]:
    """The size and the digest of a file, as a manifest has them."""
    return {"bytes": file.stat().st_size, "xxh3_128": digest(file)}


def existing(path: Path) -> Path:
    """The nearest folder above a path that is there, or the path itself."""
    while not path.exists():
        path = path.parent
    return Path(os.path.realpath(path))


def read_json(path: Path, hint: str, error: type[ValueError] = ValueError, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        hint: what to do where it cannot be read; it ends the message.
        error: what is raised then.
        keys: those that the object must have.

    Raises:
        ValueError: no such file, not JSON, no object, or one without a key; of the kind of `error`.
    """
    expected = _with(keys)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file; expected {expected}; {hint}") from None
    return _object(data, str(path), "damaged, not JSON", expected, hint, error, keys)


def read_json_lines(
    path: Path,
    hint: str,
    error: type[ValueError] = ValueError,
    keys: Sequence[str] = (),
    *,
    expected: str = "",
    unfinished: bool = False,
) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one at a time.

    Args:
        hint, error, keys: as for `read_json`.
        expected: what the message says was expected of a line, where that is more than an object with the keys.
        unfinished: whether a killed process may have left half a last line, which then is none.

    Raises:
        ValueError: a line is not JSON, no object, or one without a key; of the kind of `error`.
    """
    expected = expected or _with(keys)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if unfinished and not line.endswith(b"\n"):
                return
            yield _object(line, f"{path}:{number}", "not JSON lines", expected, hint, error, keys)


def _with(keys: Sequence[str]) -> str:
    return f"an object with {', '.join(keys)}" if keys else "an object"


def _object(
    data: bytes, where: str, broken: str, expected: str, hint: str, error: type[ValueError], keys: Sequence[str]
) -> dict[str, Any]:
    """The object that the data spell; the one message says where, what was there, what was expected and what to do."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as fault:
        raise error(f"{where}: {broken} ({fault}); expected {expected}; {hint}") from fault
    is_object = isinstance(value, dict)
    if missing := [key for key in keys if not is_object or key not in value]:
        raise error(f"{where}: no {', '.join(missing)}; expected {expected}; {hint}")
    if not isinstance(value, dict):
        raise error(f"{where}: holds a {type(value).__name__}; expected {expected}; {hint}")
    return value


def _gone(path: Path) -> Path:
    """Where an older folder lies while it is removed."""
    return path.with_name(f".{path.name}.gone")
