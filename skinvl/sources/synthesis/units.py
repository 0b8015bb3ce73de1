"""What a source gives a programme to ask about: its images, each with what is known of it, or numbered tasks.

A source is read twice, and what is held grows with the images whose conversations lie apart, not with the source.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from skinvl.data.example import SCALARS, ExampleError, Facts, have, split_place, splits, words
from skinvl.data.source import read_card
from skinvl.sources.synthesis.programme import Programme, Unit

POOL = 1_000  # tasks of the source that examples are drawn from
LONGEST = 1_500  # characters of such a task
FACTS = tuple(fact for fact in SCALARS if fact != "kind")
BATCH = 4_096  # rows


class UnitsError(ValueError):
    """A source that has nothing a programme could ask about."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which units of a source are asked about."""

    splits: tuple[str, ...] = ()  # empty is all of them
    limit: int | None = None  # images, a fixed sample; a larger one holds the smaller ones
    count: int = 0  # tasks
    index: int = 0  # of the shard
    of: int = 1  # shards


@dataclass(slots=True)
class _Open:
    """An image of whose conversations `left` are still to come."""

    left: int
    path: str
    source: str
    group: str
    split: str
    licences: dict[str, None]
    facts: list[str | float | None]
    captions: dict[str, None] = field(default_factory=dict)
    identities: dict[str, None] = field(default_factory=dict)
    torn: set[int] = field(default_factory=set)  # indices of facts about which conversations disagree


def units(programme: Programme, source: Path, share: Share) -> Iterator[Unit]:
    """The units of a share, in the order of the source; the shards of a share have them all, and each once.

    Raises:
        FileNotFoundError: no such source or split.
        ExampleError: a file that is not one of Examples.
        UnitsError: no image in the splits, or no number of tasks.
    """
    names = _splits(source, share.splits)
    if programme.unit == "task":
        # A benchmark's tasks may not become examples unless that is asked for.
        return _tasks(programme, source, names if share.splits else [name for name in names if name == "train"], share)
    return _images(programme, source, names, share)


def total(programme: Programme, source: Path, share: Share) -> int:
    """How many units all shards of the share have together.

    Raises:
        FileNotFoundError, ExampleError, UnitsError: see `units`.
    """
    if programme.unit == "task":
        return share.count
    hashes, _ = _counted(source, _splits(source, share.splits))
    return len(hashes) if share.limit is None else min(share.limit, len(hashes))


def _splits(source: Path, asked: Sequence[str]) -> list[str]:
    there = splits(source)
    for name in asked or ("train",) * (not there):
        if name not in there:
            raise FileNotFoundError(f"{source / name}.parquet: no such split; {have(source)}")
    return sorted(asked or there, key=split_place)  # an image of several belongs to the first of these


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))


def _images(programme: Programme, source: Path, names: Sequence[str], share: Share) -> Iterator[Unit]:
    hashes, counts = _counted(source, names)
    if not len(hashes):
        raise UnitsError(
            f"{source}: no conversation of {', '.join(names)} is about exactly one image, and {programme.name} asks "
            "about images; name another --split or source, or a programme of tasks such as self_instruct"
        )
    if share.limit is not None:
        hashes, counts = hashes[: share.limit], counts[: share.limit]
    mine = hashes % np.uint64(share.of) == share.index
    left = dict(zip(hashes[mine].tolist(), counts[mine].tolist(), strict=True))
    return _merged(programme, source, names, left)


def _merged(programme: Programme, source: Path, names: Sequence[str], left: dict[int, int]) -> Iterator[Unit]:
    columns = ["id", "source", "images", "group", "split", "licence", "facts", "identities"]
    columns += ["messages"] * (programme.captions is not None)
    open_images: dict[int, _Open] = {}
    for name in names:
        for batch in _batches(source, name, columns):
            for row in batch.to_pylist():
                if len(row["images"]) != 1:
                    continue
                path = row["images"][0]["path"]
                if (key := _hash(path)) not in left:
                    continue

                # The first conversation opens an image, the others add to it, and the last one closes it.
                known = [row["facts"][fact] for fact in FACTS]
                image = open_images.get(key)
                if image is None:
                    image = _Open(left[key], path, row["source"], row["group"], row["split"], {}, known)
                    open_images[key] = image
                _merge(image, row["licence"], known)
                image.identities |= dict.fromkeys(row["identities"])
                if programme.captions is not None and row["id"].startswith(programme.captions):
                    image.captions[" ".join(words(row["messages"][-1]).split())] = None
                image.left -= 1
                if not image.left:
                    yield _closed(open_images.pop(key))


def _merge(image: _Open, licence: str, known: list[str | float | None]) -> None:
    image.licences[licence] = None
    if known == image.facts:
        return
    for index, value in enumerate(known):
        if image.facts[index] is None:
            image.facts[index] = value
        elif value is not None and value != image.facts[index]:
            image.torn.add(index)


def _closed(image: _Open) -> Unit:
    """The unit; what its conversations disagree about is not known."""
    known = {name: None if index in image.torn else image.facts[index] for index, name in enumerate(FACTS)}
    licence = ", ".join(sorted(image.licences))
    caption = "\n".join(filter(None, image.captions)) or None
    return Unit(
        *(image.path, image.path, image.source, Facts(**known), image.group, image.split, licence, caption),  # type: ignore[arg-type]
        identities=tuple(image.identities),
    )


def _tasks(programme: Programme, source: Path, names: Sequence[str], share: Share) -> Iterator[Unit]:
    if share.count < 1:
        raise UnitsError(f"{programme.name} asks for tasks of text; say how many times, with --count N")
    tasks = _pool(source, names) if programme.draw_tasks else ()
    # What is made of others' tasks stands under their terms.
    licence = str(read_card(source).get("licence", "")) if tasks else ""
    for number in range(1, share.count + 1):
        name = f"task-{number}"
        if _hash(name) % share.of == share.index:
            yield Unit(name, None, source.resolve().name, Facts(), name, "train", licence, tasks=tasks)


def _pool(source: Path, names: Sequence[str]) -> tuple[str, ...]:
    """A fixed sample of what the text conversations of these splits ask first."""
    tasks = (
        (_hash(row["id"]), asked)
        for name in names
        for batch in _batches(source, name, ["id", "images", "messages"])
        for row in batch.to_pylist()
        if not row["images"]
        for asked in [next(words(turn) for turn in row["messages"] if turn["role"] == "user")]
        if len(asked) <= LONGEST
    )
    return tuple(dict.fromkeys(asked for _, asked in heapq.nsmallest(POOL, tasks)))


def _counted(source: Path, names: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hash of every image about which alone there is a conversation, in order, and how many there are."""
    hashes = [
        np.fromiter((_hash(row[0]["path"]) for row in column.to_pylist() if len(row) == 1), np.uint64)
        for name in names
        for column in (batch["images"] for batch in _batches(source, name, ["images"]))
    ]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_counts=True)


def _batches(source: Path, split: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    path = source / f"{split}.parquet"
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise ExampleError(
                    f"{path}: no column {missing[0]}, so not a file of Examples; prepare the source with skinvl prep"
                )
            yield from file.iter_batches(BATCH, columns=columns)
    except pa.ArrowInvalid as error:
        raise ExampleError(f"{path}: not Parquet ({error}); prepare the source again with skinvl prep") from error
