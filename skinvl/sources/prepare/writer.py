"""A prepared source from its blocks: Parquet files of Examples by split, the table of images, and the ledger."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import compress, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinvl.data.example import LISTS, SCALARS, SCHEMA, SPLITS, Dropped, Message, examples, table, write_jsonl
from skinvl.data.source import IMAGES_SCHEMA
from skinvl.sources.prepare.blocks import Block
from skinvl.sources.prepare.join import BlockRows, Fates, Mask

T = TypeVar("T")
UNUSABLE = "unusable-profile"  # the rule of rows with an image whose profile cannot be used
IDENTITIES = SCHEMA.field("identities").type
# Columns of few different values; a dictionary of the others would cost time and save nothing.
WORDS = [
    *("source", "split", "licence", "messages.list.element.role", "messages.list.element.content.list.element.type"),
    *(f"facts.{name}" for name in SCALARS),
    *(f"facts.{name}.list.element" for name in LISTS),
]


@dataclass(slots=True)
class Account:
    """What became of the rows of a source."""

    examples: Counter[str] = field(default_factory=Counter)  # by split
    ledger: Counter[str] = field(default_factory=Counter)  # by rule
    tags: Counter[str] = field(default_factory=Counter)  # rule → Examples that break it and were kept
    lacking: Counter[str] = field(default_factory=Counter)  # rule → images that kept rows go without, once a row
    images: int = 0
    profiled: Counter[str] = field(default_factory=Counter)  # profile other than sRGB → images that are tagged with it
    unusable: Counter[str] = field(default_factory=Counter)  # why a profile cannot be used → images
    joined: int = 0  # groups that share an image or an identity with another
    largest: int = 0  # groups that became one
    moved: int = 0  # conversations that this took to a split nearer to training

    @property
    def rows(self) -> int:
        """Examples and ledger rows."""
        return self.examples.total() + self.ledger.total()

    def record(self) -> dict[str, Any]:
        """The account as `of` reads it."""
        values = {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value for name, value in values.items()
        }

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Self:
        """The account that `record` gave."""
        empty = cls()
        names = [attribute.name for attribute in fields(cls)]
        return cls(**{name: type(getattr(empty, name))(card[name]) for name in names})


def write(rows: BlockRows, fates: Fates, images: pa.Table, drops: Mapping[str, bool], out: Path) -> Account:
    """What became of the rows; OUT then holds `<split>.parquet`, `images.parquet` and `ledger.jsonl`.

    Where rows stay without some of their images, `lacking.jsonl` names each of these.
    """
    unusable = rows.any(images["fault"].combine_chunks().is_valid().to_numpy(zero_copy_only=False))
    kept = fates.kept
    for rule, mask in (("near-duplicate", fates.near), (UNUSABLE, unusable)):
        if drops[rule]:
            kept = kept & ~mask
    moved = kept & (fates.rank != rows.rank)
    account = Account(joined=fates.joined, largest=fates.largest, moved=int(moved.sum()))
    names = _group_names(rows, fates, kept) if fates.joined else {}

    # Block by block: the rows that are dropped into the ledger, the others into the file of their split.
    with ExitStack() as stack:
        ledger = stack.enter_context((out / "ledger.jsonl").open("w", encoding="utf-8", errors="backslashreplace"))
        writers: dict[str, pq.ParquetWriter] = {}
        paths = images["path"].combine_chunks()
        views = [
            _View(block, rows, fates, images, paths, kept, unusable, starts)
            for block, starts in zip(rows.blocks, pairwise(rows.starts.tolist()), strict=True)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(1))  # Arrow works on a block while another is written
        for dropped, kept_rows in _ahead(pool, lambda view: (view.dropped(), view.made(names)), views):
            for row in dropped:
                ledger.write(json.dumps(row, ensure_ascii=False) + "\n")
                account.ledger[row["rule"]] += 1
            splits = pc.unique(kept_rows["split"]).to_pylist()
            for split in splits:
                if split not in writers:
                    path = out / f"{split}.parquet"
                    writers[split] = stack.enter_context(pq.ParquetWriter(path, SCHEMA, use_dictionary=WORDS))
                in_split = kept_rows if len(splits) == 1 else kept_rows.filter(pc.equal(kept_rows["split"], split))
                writers[split].write_table(in_split)
                account.examples[split] += len(in_split)
            account.tags.update(pc.list_flatten(kept_rows["tags"]).to_pylist())
    if lacking := [row for view in views for row in view.lacking()]:
        write_jsonl(out / "lacking.jsonl", lacking)
        account.lacking.update(row["rule"] for row in lacking)

    # Only images that a kept row shows belong to the source.
    shown = np.zeros(len(images), bool)
    shown[rows.image[(kept & ~fates.alone)[rows.row]]] = True
    shown &= images["rule"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
    used = images.filter(pa.array(shown)).select(IMAGES_SCHEMA.names)
    pq.write_table(used, out / "images.parquet")
    account.images = len(used)
    faults, profiles = (images[name].filter(pa.array(shown)) for name in ("fault", "profile"))
    account.unusable.update(faults.drop_null().to_pylist())
    account.profiled.update(profiles.filter(faults.is_null()).drop_null().to_pylist())
    return account


@dataclass(frozen=True, slots=True)
class _View:
    """The rows of one block."""

    block: Block
    rows: BlockRows
    fates: Fates
    images: pa.Table
    paths: pa.Array  # of the images
    kept: Mask
    unusable: Mask  # a profile of its images cannot be used
    range: tuple[int, int]

    def dropped(self) -> list[dict[str, str]]:
        """The ledger rows of the block: those that were dropped when it was made, and those that are not kept now."""
        with self.block.ledger.open(encoding="utf-8") as file:
            # Not by `read_json_lines`: a block's own process wrote them, and there are as many as rows.
            numbered = [(row.pop("record"), row) for row in map(json.loads, file)]
        gone = np.flatnonzero(~self.kept[slice(*self.range)])
        rows = self.block.read().select(["record", "id"]).take(gone) if len(gone) else None
        for index, row in zip(gone.tolist(), rows.to_pylist() if rows else (), strict=True):
            rule, detail = self._fault(self.range[0] + index)
            name = f"{self.block.part} record {row['record'] + 1}: {row['id']}"
            numbered.append((row["record"], asdict(Dropped(name, rule, detail))))
        return [row for _, row in sorted(numbered, key=itemgetter(0))]

    def lacking(self) -> list[dict[str, str]]:
        """The images that kept rows of the block go without, in the form of the ledger."""
        here = np.flatnonzero(self.kept[slice(*self.range)] & self.fates.fewer[slice(*self.range)])
        rows = self.block.read().select(["record", "id"]).take(here).to_pylist() if len(here) else []
        return [
            asdict(Dropped(f"{self.block.part} record {row['record'] + 1}: {row['id']}", rule, detail))
            for index, row in zip(here.tolist(), rows, strict=True)
            for rule, detail in self._faults(self.range[0] + index)
        ]

    def made(self, names: Mapping[int, str]) -> pa.Table:
        """The Examples of the block that are kept, with their images, groups and splits."""
        here = slice(*self.range)
        kept = self.kept[here]
        rows = self.block.read().select(SCHEMA.names)
        if not kept.all():
            rows = rows.filter(pa.array(kept))
        columns = {"split": pa.array(SPLITS).take(pa.array(self.fates.rank[here][kept]))}

        # Images by their paths in the source, not in RAW.
        first, last = np.searchsorted(self.rows.row, self.range)
        if last > first:
            shown = self.paths.take(pa.array(self.rows.image[first:last][self.kept[self.rows.row[first:last]]]))
            pictures = pa.StructArray.from_arrays([pa.nulls(len(shown), pa.binary()), shown], ["bytes", "path"])
            ends = np.cumsum(pc.list_value_length(rows["images"]).to_numpy())
            columns["images"] = pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), pictures)

        # Rows of a joined group bear the name of the one that leads it; their own stays among their identities.
        leader = self.fates.leader[here][kept]
        if (joins := leader != np.arange(*self.range)[kept]).any():
            groups, identities = rows["group"].to_pylist(), rows["identities"].to_pylist()
            for index in np.flatnonzero(joins):
                identities[index] = identities[index] or [groups[index]]
                groups[index] = names[int(leader[index])]
            columns |= {"group": pa.array(groups, pa.string()), "identities": pa.array(identities, IDENTITIES)}

        for name, column in columns.items():
            rows = rows.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
        tags = {"missing-image": self.fates.alone[here][kept], "fewer-images": self.fates.fewer[here][kept]}
        tags |= {"near-duplicate": self.fates.near[here][kept], UNUSABLE: self.unusable[here][kept]}
        return _tagged(rows.cast(SCHEMA), tags)

    def _fault(self, index: int) -> tuple[str, str]:
        if self.fates.duplicate[index]:
            return "duplicate", "an earlier row has this id: it says the same"
        if not self.fates.broken[index] and not self.fates.near[index]:
            first, last = np.searchsorted(self.rows.row, [index, index + 1])
            faults = self.images["fault"].take(pa.array(self.rows.image[first:last])).drop_null()
            return UNUSABLE, f"an image has a colour profile that cannot be used: {faults[0].as_py()}"
        if not self.fates.broken[index]:
            return "near-duplicate", "an earlier row asks and says the same of the same images, but for form"
        return max(self._faults(index), key=lambda fault: fault[0] != "missing-image")  # which alone may be allowed

    def _faults(self, index: int) -> list[tuple[str, str]]:
        """(rule, detail) of the images of a row that cannot be used."""
        first, last = np.searchsorted(self.rows.row, [index, index + 1])
        faults = self.images.select(["rule", "detail"]).take(pa.array(self.rows.image[first:last])).to_pylist()
        return [(fault["rule"], fault["detail"]) for fault in faults if fault["rule"]]


def _ahead(pool: ThreadPoolExecutor, function: Callable[[_View], T], views: Iterable[_View]) -> Iterator[T]:
    """The result for each view, in order, the next one under way already."""
    waiting: deque[Future[T]] = deque()
    for view in views:
        waiting.append(pool.submit(function, view))
        if len(waiting) > 1:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _tagged(rows: pa.Table, tags: Mapping[str, Mask]) -> pa.Table:
    """The rows with more tags; those without some or all of their images lose the image parts as well."""
    touched = np.logical_or.reduce(list(tags.values()))
    if not touched.any():
        return rows
    indices = np.flatnonzero(touched)
    changed = []
    for index, example in zip(indices, examples(rows.take(indices)), strict=True):
        more = tuple(name for name, mask in tags.items() if mask[index])
        facts = example.facts
        if "missing-image" in more:
            facts = replace(facts, views=())
            example = replace(example, images=(), messages=tuple(map(_text_alone, example.messages)), facts=facts)
        elif "fewer-images" in more:
            shown = [bool(image) for image in example.images]  # an image that cannot be used was placed nowhere
            images = tuple(compress(example.images, shown))
            turns = tuple(_without(len(shown) - len(images), turn) for turn in example.messages)
            facts = replace(facts, views=tuple(compress(facts.views, shown)))
            example = replace(example, images=images, messages=turns, facts=facts)
        changed.append(replace(example, tags=(*example.tags, *more)))
    whole = pa.concat_tables([rows.filter(pa.array(~touched)), table(changed)])
    return whole.take(np.argsort(np.concatenate([np.flatnonzero(~touched), indices])))


def _text_alone(message: Message) -> Message:
    return {"role": message["role"], "content": [part for part in message["content"] if part["type"] == "text"]}


def _without(images: int, message: Message) -> Message:
    """The message with so many image parts less; they stand together before its words, or it has none."""
    shows = message["content"][0]["type"] == "image"
    return {"role": message["role"], "content": message["content"][images:]} if shows else message


def _group_names(rows: BlockRows, fates: Fates, kept: Mask) -> dict[int, str]:
    """The names of the groups that others join, by their leading rows."""
    leaders = np.unique(fates.leader[kept & (fates.leader != np.arange(len(kept)))])
    names: dict[int, str] = {}
    for number, block in enumerate(rows.blocks):
        start = rows.starts[number]
        inside = leaders[(leaders >= start) & (leaders < rows.starts[number + 1])]
        if len(inside):
            groups = block.read()["group"].take(inside - start).to_pylist()
            names |= zip(inside.tolist(), groups, strict=True)
    return names
