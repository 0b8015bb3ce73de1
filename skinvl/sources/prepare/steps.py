"""RAW → OUT in three steps, each of which goes on where an interrupted run, or another shard, stopped.

Rows become blocks, every image is looked at once, and blocks and images are joined into the source. All of it lies in
a folder beside OUT, which takes OUT's place when it is whole.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import data_prep
from data_prep import BLOCK, Card, PrepError
from skinvl.data.example import inside
from skinvl.data.profiles import Profiles
from skinvl.data.workers import Workers
from skinvl.recipe.files import partial_folder, replace_folder, whole_file, write_json
from skinvl.sources.prepare import blocks, join, overlay, writer
from skinvl.sources.prepare.blocks import Block, PrepJob
from skinvl.sources.prepare.folder import claimed, recorded, refuse_out, stamp_of
from skinvl.sources.prepare.images import Looked, look_at
from skinvl.sources.prepare.writer import Account
from skinvl.sources.rules import RULES

SMALL_ROWS, SMALL_IMAGES = 20_000, 500  # up to so many, starting processes takes longer than the work
BATCH = 32  # images that a process is given at once
PRELOADED = ("skinvl.sources.prepare.blocks", "skinvl.sources.prepare.images")


def prepare(
    name: str,
    raw: Path,
    out: Path,
    parts: Sequence[str] | None = None,
    *,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    official: bool = False,
    images: str = "",
    profiles: Profiles | None = None,
    over: Path | None = None,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
) -> Account | None:
    """What became of each row of RAW; OUT then holds the prepared source. None where other shards are not done yet.

    Args:
        parts: names of the card's parts; None is the first.
        keep, drop: rules whose default is changed.
        official: keep the authors' split though it leaks.
        images: the folder of RAW, relative to it, in which images are found by name; empty is all of RAW.
        profiles: how images tagged with a colour profile are read for their hashes; None is srgb.
        over: the prepared source that has the images of a dataset without any; None is `data/` and the part's name.
        shard: (index, count) of the share of the work that is done here.
        workers: processes.

    Raises:
        PrepError: raw files, output folder or converter do not allow it; an older OUT is as it was before.
    """
    card = data_prep.load(name).CARD
    if unknown := [part for part in dict.fromkeys(parts or ()) if part not in card.parts]:
        raise PrepError(f"{name} has no part {', '.join(unknown)}; its parts are {', '.join(card.parts)}")
    if official and card.released == "none":
        raise PrepError(f"{name}: its authors give no split to keep; leave out --split official")
    if not raw.exists() and not card.drawn:
        raise PrepError(f"{raw}: no such file or folder. How to get {card.title} ({card.address}): {card.obtain}")
    chosen, below = overlay.choose(name, card, parts or (), over)
    official = official or overlay.keeps_split(below)
    job = PrepJob(name, raw, chosen, official, _drops(keep, drop), images, below, profiles or "srgb")
    if images:
        _refuse_images(name, card, raw, images)
    if below is not None and profiles is not None:
        raise PrepError(f"--profiles {profiles}: {name} takes the images of {below} as they were read; leave it out")
    refuse_out(raw, below, out)
    out = out.absolute()
    work = partial_folder(out)
    try:
        totals = {part: data_prep.load(name).rows(raw, part) for part in job.parts}
        stamp = stamp_of(job)
        if account := recorded(out, stamp):
            shutil.rmtree(work, ignore_errors=True)  # of a run that was stopped in its last moment
            return account
        with claimed(work, stamp, shard is not None) as lock:
            index, count = shard or (0, 1)
            _convert(job, totals, work, index, count, workers)
            _look(job, work, index, count, workers)
            made, images = _complete(job, work), _looked(work)
            if shard is not None and _unfinished(job, work, made, images):
                return None
            fcntl.flock(lock, fcntl.LOCK_EX)  # shards that end together join one after another: the first for all
            return recorded(out, stamp) or _join(job, card, totals, made, images, work, out, stamp)
    except OSError as error:
        raise PrepError(
            f"{error.filename or out}: {error.strerror or error} while preparing {name} into {out}; "
            "free or permit the path, or choose another OUT. The same command goes on where this one stopped"
        ) from error


def _drops(keep: Sequence[str], drop: Sequence[str]) -> dict[str, bool]:
    if unknown := [name for name in (*keep, *drop) if name not in RULES]:
        raise PrepError(
            f"rule {unknown[0]!r}: not one that can be switched; those are {', '.join(RULES)}. Rows that break "
            "another rule hold no conversation or image that could be kept"
        )
    return {name: name in drop or (rule.drops and name not in keep) for name, rule in RULES.items()}


def _refuse_images(name: str, card: Card, raw: Path, images: str) -> None:
    """Refuses a folder of images that means nothing.

    Raises:
        PrepError: the dataset gives its images by their paths, or RAW has no such folder.
    """
    if not card.by_name:
        raise PrepError(f"--images {images}: {name} says where its images lie, and none is looked for; leave it out")
    root = raw.parent if raw.is_file() else raw
    if not inside(images) or not (root / images).is_dir():
        raise PrepError(f"--images {images}: no such folder in {root}; expected one as {root} has it, such as photos")


def _convert(job: PrepJob, totals: Mapping[str, int], work: Path, index: int, count: int, workers: int) -> None:
    """Writes the blocks of a shard that are not on disk yet."""
    folder = work / "text"
    folder.mkdir(exist_ok=True)
    with Workers(workers if sum(totals.values()) > SMALL_ROWS else 1, PRELOADED) as pool:
        for part, total in totals.items():
            tasks = [
                (job, part, folder, index + count * process, count * pool.workers) for process in range(pool.workers)
            ]
            for _ in pool.each(f"{job.name} {part}: rows", total // count, blocks.make, tasks):
                pass


def _look(job: PrepJob, work: Path, index: int, count: int, workers: int) -> None:
    """Looks at the images of a shard's blocks: each is put into the source, or noted with the rule that it breaks."""
    folder = work / "looked"
    folder.mkdir(exist_ok=True)

    # An image that an interrupted run, or another shard, has looked at is not looked at again.
    mine = [block for block in _complete(job, work) if block.number % count == index]
    rest = sorted(_shown(mine) - set(_looked(work)["name"].to_pylist()), key=_position)
    root: Path = job.raw.parent if job.raw.is_file() else job.raw
    look: Callable[[Path, Sequence[str], Path], list[Looked]] = partial(look_at, profiles=job.profiles)
    if job.over is not None:
        root, look = job.over, overlay.link_images
    tasks = [(root, rest[start : start + BATCH], work / "source") for start in range(0, len(rest), BATCH)]

    # What is known so far is written now and then, so that an interruption costs little.
    looked: list[Looked] = []
    with Workers(workers if len(rest) > SMALL_IMAGES else 1, PRELOADED) as pool:
        for batch in pool.each(f"{job.name}: images", len(rest), look, tasks):
            looked += batch
            if len(looked) >= BLOCK:
                _write_looked(folder, index, looked)
                looked = []
    _write_looked(folder, index, looked)


def _position(name: str) -> tuple[str, int]:
    """Where an image lies: those within one Parquet file in the order of its rows."""
    file, _, row = name.partition(".parquet#")
    return file, int(row) if row.isdecimal() else 0


def _unfinished(job: PrepJob, work: Path, made: Sequence[Block], images: pa.Table) -> bool:
    """Whether other shards still have blocks to make or images to look at."""
    if any(blocks.missing(work / "text", part) for part in job.parts):
        return True
    return not _shown(made) <= set(images["name"].to_pylist())


def _write_looked(folder: Path, index: int, looked: Sequence[Looked]) -> None:
    if not looked:
        return
    # What is not known of a broken image is null: an empty hash would make all of them one.
    rows = [
        {"name": image.path, **asdict(image), "path": image.placed, "sha256": image.sha256 or None} for image in looked
    ]
    name = f"{index}-{data_prep.digest(*(image.path for image in looked))}.parquet"
    with whole_file(folder / name) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=join.IMAGES), partial)


def _complete(job: PrepJob, work: Path) -> list[Block]:
    return [block for part in job.parts for block in blocks.complete(work / "text", part)]


def _shown(made: Sequence[Block]) -> set[str]:
    """The images that the blocks name."""
    names: set[str] = set()
    for block in made:
        shown = block.read()["images"].combine_chunks().flatten()
        names.update(pc.unique(pc.struct_field(shown, "path")).to_pylist())
    return names


def _looked(work: Path) -> pa.Table:
    """The images that were looked at, each once, by name."""
    tables = [pq.read_table(path, schema=join.IMAGES) for path in sorted((work / "looked").glob("*.parquet"))]
    whole = pa.concat_tables([join.IMAGES.empty_table(), *tables]).sort_by("name")
    names = whole["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    return whole.take(np.unique(names, return_index=True)[1])


def _join(
    job: PrepJob,
    card: Card,
    totals: Mapping[str, int],
    made: Sequence[Block],
    images: pa.Table,
    work: Path,
    out: Path,
    stamp: str,
) -> Account:
    # What becomes of each row is known once all blocks and images are there.
    record = asdict(card) | (overlay.inherited(card, job.over) if job.over is not None else {})
    rows = join.read(made, images)
    keeps = {name: not drops for name, drops in job.drops.items()}
    fates = join.decide(
        *(rows, images),
        fewer=keeps["fewer-images"],
        alone=keeps["missing-image"],
        alike=record["alike"],
        official=job.official,
    )
    account = writer.write(rows, fates, images, job.drops, work / "source")
    if account.rows != sum(totals.values()):
        raise PrepError(
            f"data_prep/{job.name}.py, a fault of the converter: {sum(totals.values()):,} rows in, but "
            f"{account.examples.total():,} Examples and {account.ledger.total():,} ledger rows out; "
            "expected exactly one for every row"
        )

    # The card comes last: a folder that has one is whole.
    record = {
        "source": job.name,
        **record,
        "parts": job.parts,
        "split": "official" if job.official else "group",
        "profiles": record.get("profiles", job.profiles),
        "rules": {name: "drop" if drops else "keep" for name, drops in job.drops.items()},
        "rows": account.rows,
        **account.record(),
        "stamp": stamp,
    }
    write_json(work / "source" / "card.json", record)
    for left in (work / "source").rglob(".*.partial"):  # of a process that was killed
        left.unlink()

    # An older source gives way only now; what is killed between the two renames leaves it as OUT's `.gone`.
    replace_folder(work / "source", out)
    shutil.rmtree(work)
    return account
