"""The rows of a raw download as blocks on disk: each is made by one process alone, and appears whole or not at all.

A block is two files: `<part>-<number>.jsonl`, the rows that a rule drops, and `<part>-<number>.arrow`, the Examples
with the columns of KEYS; the second appears last. `<part>.end` says how many records the part has.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import xxhash

import data_prep
from data_prep import BLOCK, Card, PrepError, Shard, split_of
from skinvl.data.example import Dropped, Example, ExampleError, inside, table, validate
from skinvl.data.profiles import Profiles
from skinvl.data.workers import advance
from skinvl.recipe.files import whole_file, write_text
from skinvl.sources import rules
from skinvl.sources.prepare import overlay
from skinvl.sources.prepare.overlay import Below

KEYS = pa.schema(
    [
        ("record", pa.int64()),
        ("key", pa.uint64()),  # of the id
        ("cluster", pa.uint64()),  # of the group
        ("same", pa.uint64()),  # of what the row asks and says about which images: see rules.judge
        ("names", pa.list_(pa.uint64())),  # of its identities
    ]
)
RowKeys = tuple[int, int, int, tuple[int, ...]]  # all but the first of them


@dataclass(frozen=True, slots=True)
class PrepJob:
    """What is made of which raw files; two jobs that are equal give the same prepared source, byte for byte."""

    name: str
    raw: Path
    parts: tuple[str, ...]
    official: bool  # keep the split of the authors though it leaks
    drops: Mapping[str, bool]  # rule → whether a row that breaks it is dropped, or kept with a tag
    images: str = ""  # the folder of RAW, relative to it, in which images are found by name; empty is all of RAW
    over: Path | None = None  # the prepared source that has the images, where RAW does not
    profiles: Profiles = "srgb"  # how images tagged with a colour profile are read


@dataclass(frozen=True, slots=True)
class Block:
    """A block on disk."""

    part: str
    number: int
    path: Path  # of the Arrow file

    @property
    def ledger(self) -> Path:
        """The rows that were dropped."""
        return self.path.with_suffix(".jsonl")

    def read(self) -> pa.Table:
        """The Examples with the columns of KEYS, mapped into memory: what is not looked at is not read."""
        with pa.memory_map(str(self.path)) as file:
            return pa.ipc.open_file(file).read_all()


def complete(folder: Path, part: str) -> list[Block]:
    """The blocks of a part that are complete, in order."""
    blocks = []
    for path in sorted(folder.glob("*.arrow")):
        name = re.fullmatch(r"(.+)-(\d{6,})", path.stem)
        if name and name[1] == part:
            blocks.append(Block(part, int(name[2]), path))
    return blocks


def missing(folder: Path, part: str) -> int:
    """How many blocks of a part that some process has read to its end are not complete."""
    total = int((folder / f"{part}.end").read_text(encoding="utf-8"))
    return -(-total // BLOCK) - len(complete(folder, part))


def make(job: PrepJob, part: str, folder: Path, index: int, count: int) -> None:
    """Writes the blocks of a shard that the folder does not hold yet. See `convert`."""
    gc.disable()  # rows hold no cycles, and to look for some takes a third of the time
    try:
        for rows in convert(job, part, folder, index, count):
            advance(rows)
    finally:
        gc.enable()


def convert(job: PrepJob, part: str, folder: Path, index: int, count: int) -> Iterator[int]:
    """The rows of each block that is made here, one number a block: those of a shard that the folder does not hold yet.

    Raises:
        PrepError: raw files or converter do not allow it.
    """
    converter = data_prep.load(job.name)
    below = overlay.below(job.over, overlay.stamp(job.over)) if job.over is not None else None
    judge = Judge(job, part, converter.CARD, below)
    done = {block.number for block in complete(folder, part)}
    shard = Shard(index, count, done=done, images=job.images)
    outcomes = converter.convert(job.raw, part, shard)
    numbered = ((shard.record, outcome) for outcome in outcomes)
    for number, rows in groupby(numbered, key=lambda row: row[0] // shard.block):
        yield _write(judge, folder / f"{part}-{number:06d}.arrow", rows)
    total = shard.record + 1

    # Blocks whose records gave no row, which a converter may have, are complete too.
    made = {block.number for block in complete(folder, part)}
    for number in range(-(-total // shard.block)):
        if number % count == index and number not in made:
            _write(judge, folder / f"{part}-{number:06d}.arrow", ())
    write_text(folder / f"{part}.end", str(total))


@dataclass(frozen=True, slots=True)
class Judge:
    """What becomes of the Examples of a part before their images are looked at."""

    job: PrepJob
    part: str
    card: Card
    below: Below | None = None  # the source that has the images

    def __call__(self, record: int, example: Example) -> tuple[Example, RowKeys] | Dropped:
        """The Example with its split and tags, and the last four of KEYS; or the rule that drops it.

        Raises:
            PrepError: a split that the card does not name.
        """
        if self.below is not None:
            laid = self.below.laid(self._row(record, example), example)
            if isinstance(laid, Dropped):
                return laid
            example = laid
        if example.split not in self.card.splits:
            raise PrepError(
                f"data_prep/{self.job.name}.py, a fault of the converter: {self._row(record, example)} has the split "
                f"{example.split!r}; its card names {', '.join(self.card.splits)}"
            )
        for path in example.images:
            if not inside(path):
                return Dropped(self._row(record, example), "unsafe-path", f"{path:.200} leaves the raw folder")
        try:
            validate(example)
            broken, same = rules.judge(example)
            names = tuple(map(_key, example.identities)) if example.identities else ()
            key = _key(example.id)
            keys = key, key if example.group == example.id else _key(example.group), same, names
        except (ExampleError, UnicodeEncodeError) as error:  # half of a surrogate pair, which no file can hold
            return Dropped(self._row(record, example), "malformed", str(error))
        if example.tags:  # by the converter, of what is shown
            broken = [*((rule, f"it shows {', '.join(example.images):.100}") for rule in example.tags), *broken]
        tags = []
        for rule, detail in broken:
            if self.job.drops[rule]:
                return Dropped(self._row(record, example), rule, detail)
            tags.append(rule)
        again = self.card.released == "leaky" and not self.job.official
        split = split_of(example.group) if again else example.split
        changed = tags or example.tags or split != example.split
        return (replace(example, split=split, tags=tuple(tags)) if changed else example), keys

    def _row(self, record: int, example: Example) -> str:
        return f"{self.part} record {record + 1}: {example.id}"


def _key(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _write(judge: Judge, path: Path, rows: Iterable[tuple[int, Example | Dropped]]) -> int:
    kept: list[Example] = []
    keys: list[tuple[int, int, int, int, tuple[int, ...]]] = []
    ledger: list[str] = []
    for record, outcome in rows:
        result = judge(record, outcome) if isinstance(outcome, Example) else outcome
        if isinstance(result, Dropped):
            ledger.append(json.dumps({"record": record, **asdict(result)}, ensure_ascii=False) + "\n")
        else:
            kept.append(result[0])
            keys.append((record, *result[1]))

    full = table(kept)
    for field, values in zip(KEYS, zip(*keys, strict=True) if keys else [()] * len(KEYS), strict=True):
        full = full.append_column(field, pa.array(values, field.type))
    write_text(path.with_suffix(".jsonl"), "".join(ledger), "backslashreplace")
    with whole_file(path) as partial, pa.ipc.new_file(partial, full.schema) as writer:
        writer.write_table(full)
    return len(kept) + len(ledger)
