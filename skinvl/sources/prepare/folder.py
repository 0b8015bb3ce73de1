"""The folders of a source: whether OUT can hold it, who makes it beside OUT, and whether it is made already."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import data_prep
from data_prep import PrepError
from skinvl.recipe.files import read_json, write_text
from skinvl.sources.prepare import overlay
from skinvl.sources.prepare.blocks import PrepJob
from skinvl.sources.prepare.writer import Account

# What a prepared source depends on, beside the raw files and the converters.
MODULES = (
    *("data/dicom_pixels", "data/example", "data/fingerprints", "data/hamming", "data/labels", "data/metadata"),
    *("data/pixels", "data/profiles", "data/questions", "data/source", "sources/prepare/*", "sources/rules/*"),
)


def refuse_out(raw: Path, below: Path | None, out: Path) -> None:
    """Refuses an OUT that cannot hold a prepared source.

    Raises:
        PrepError: it lies in RAW or in the source below, or around them, or holds something else.
    """
    target = out.resolve()
    for name, folder in (("RAW", raw), ("the source below", below)):
        source = folder.resolve() if folder else None
        if source and (source == target or source in target.parents or target in source.parents):
            raise PrepError(f"{out}: {name} ({folder}) and OUT lie in one another; choose an OUT beside {name}")
    if out.is_file():
        raise PrepError(f"{out}: a file; expected a folder that is new, empty or a prepared source")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names and not {"card.json", "ledger.jsonl"} <= names:
        raise PrepError(
            f"{out}: not empty and not a prepared source (it holds {', '.join(sorted(names)[:3])}, …); "
            "choose another OUT, or empty it yourself"
        )


@contextmanager
def claimed(work: Path, stamp: str, shared: bool) -> Iterator[IO[str]]:
    """The lock of the folder in which the source is made, emptied of what another job left there.

    Raises:
        PrepError: another process is at work there.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrepError(
                f"{work}: another skinvl prep is at work there; wait for it, or choose another OUT"
            ) from error

        # What was made of other settings or raw files is of no use; another shard of the same may be at work.
        job = work / "job"
        if job.exists() and job.read_text(encoding="utf-8") != stamp:
            if shared:
                raise PrepError(
                    f"{work}: holds the work of other settings, raw files or another version of skinvl; give every "
                    "shard the same, or remove the folder to begin anew"
                )
            for path in work.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        write_text(job, stamp)
        (work / "source").mkdir(exist_ok=True)

        try:
            yield lock
        except PrepError:
            if not shared:
                shutil.rmtree(work)
            raise


def recorded(out: Path, stamp: str) -> Account | None:
    """The account of the source in OUT, if it is of this job."""
    card = out / "card.json"
    record = read_json(card, "remove it to prepare the source anew", PrepError) if card.is_file() else {}
    return Account.of(record) if record.get("stamp") == stamp else None


def stamp_of(job: PrepJob) -> str:
    """16 hexadecimal digits of all that the source depends on: settings, raw files by size and time, and our code."""
    digest = hashlib.blake2b(digest_size=8)
    settings = (job.name, job.parts, job.official, sorted(job.drops.items()), job.images, job.profiles)
    digest.update(repr(settings).encode())
    if job.over is not None:
        digest.update(overlay.stamp(job.over).encode())

    package = Path(__file__).parents[2]
    code = [path for name in MODULES for path in package.glob(f"{name}.py")]
    for path in sorted([*code, *Path(data_prep.__file__).parent.glob("*.py")]):
        digest.update(path.read_bytes())

    # The content of a large download is not read again: size and time tell whether it has changed.
    root = job.raw.parent if job.raw.is_file() else job.raw
    for folder, below, names in os.walk(root):
        if job.raw.is_file():  # beside it may lie what was prepared from it
            below[:] = [name for name in below if name[0] != "." and not Path(folder, name, "card.json").exists()]
        below.sort()
        for name in sorted(names):
            path = Path(folder, name)
            status = path.stat() if path.exists() else path.lstat()
            digest.update(
                f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
    return digest.hexdigest()
