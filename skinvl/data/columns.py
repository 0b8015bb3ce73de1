"""The conversations of prepared sources as columns, read without making a Python object of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinvl.data import example
from skinvl.data.example import LISTS, Example, split_file, split_place, splits
from skinvl.data.source import namespace, read_images, source_name, source_splits
from skinvl.data.table1 import FACTS, Columns, together


@dataclass(frozen=True, slots=True)
class SourceSplit:
    """One split of a source, whose rows stand in the columns from `first` on."""

    name: str  # of the split, with that of the source where there are several
    root: Path
    split: str
    first: int
    rows: int
    chosen: bool  # whether it was named, and not only another split of its source

    @property
    def source(self) -> str:
        """The name of its source."""
        return source_name(self.root)


def parts(names: Sequence[str], only: Sequence[str] = ()) -> list[SourceSplit]:
    """Every split of the sources that words of the command line name, SOURCE or SOURCE:SPLIT; chosen are those named.

    Args:
        only: splits that are chosen, where not all that were named are.

    Raises:
        FileNotFoundError: a source or split is not there.
        ExampleError: a file is not one of Examples.
    """
    chosen = {pair for name in names for pair in source_splits(name) if not only or pair[1] in only}
    roots = list(dict.fromkeys(root for name in names for root, _ in source_splits(name)))
    every = [(root, split) for root in roots for split in sorted(splits(root), key=split_place)]
    if missing := [split for split in only if split not in {split for _, split in chosen}]:
        have = ", ".join(dict.fromkeys(split for _, split in every))
        raise FileNotFoundError(f"--split {missing[0]}: no such split in {', '.join(names)}; found {have}")
    made: list[SourceSplit] = []
    for root, split in every:
        with split_file(root, split) as path:
            rows = pq.read_metadata(path).num_rows
        first = made[-1].first + made[-1].rows if made else 0
        name = f"{source_name(root)}:{split}" if len(roots) > 1 else split
        made.append(SourceSplit(name, root, split, first, rows, (root, split) in chosen))
    return made


def read(every: Sequence[SourceSplit]) -> tuple[Columns, list[tuple[Path, str]]]:
    """The columns of the parts, of whose facts `kind` is one too; and of each image its source, and its path there.

    Raises:
        ExampleError: a file is not one of Examples.
    """
    roots = list(dict.fromkeys(part.root for part in every))
    names = (*FACTS, "kind")
    groups: list[pa.Array] = []
    images: list[pa.Array] = []
    rows: list[np.ndarray] = []
    facts: dict[str, list[pa.Array]] = {name: [] for name in names}
    for part in every:
        with split_file(part.root, part.split) as path, pq.ParquetFile(path) as file:
            keyed = file.read(columns=["group", "images"])
            shown = keyed["images"].combine_chunks()
            rows.append(pc.list_parent_indices(shown).to_numpy().astype(np.int64) + part.first)
            images.append(_joined(str(roots.index(part.root)), pc.struct_field(shown.flatten(), "path")))
            groups.append(_joined(namespace(part.root), keyed["group"].combine_chunks()))
            known = {field.name for field in file.schema_arrow.field("facts").type}
            for name in names:
                if name in known:  # which a source that was prepared earlier may not have
                    leaf = f"facts.{name}.list.element" if name in LISTS else f"facts.{name}"
                    column = pc.struct_field(file.read(columns=[leaf])["facts"].combine_chunks(), name)
                    facts[name].append((_together(column) if name in LISTS else column).dictionary_encode())
                else:
                    kind = pa.float64() if name == "age" else pa.string()
                    facts[name].append(pa.nulls(part.rows, kind).dictionary_encode())
    encoded = pa.concat_arrays(images).dictionary_encode()
    shown_in = [(roots[int(root)], path) for root, _, path in map(_parted, encoded.dictionary.to_pylist())]
    numbers = encoded.indices.to_numpy().astype(np.int64)
    if len(roots) > 1:
        numbers = _same_bytes(shown_in)[numbers]
    return (
        Columns(
            tuple(part.name for part in every),
            np.repeat(np.arange(len(every)), [part.rows for part in every]),
            pa.concat_arrays(groups).dictionary_encode().indices.to_numpy().astype(np.int64),
            np.concatenate(rows),
            numbers,
            {name: pa.chunked_array(column).unify_dictionaries().combine_chunks() for name, column in facts.items()},
        ),
        shown_in,
    )


def _together(lists: pa.Array) -> pa.Array:
    """The values of each list, sorted and joined; null for an empty one."""
    joined = pc.binary_join(lists, "\0").dictionary_encode()
    named = [together(words.split("\0")) for words in joined.dictionary.to_pylist()]
    return pa.array(named, pa.string()).take(joined.indices)


def _same_bytes(images: Sequence[tuple[Path, str]]) -> np.ndarray:
    """int64[N]: of each image, the first of these that has its bytes; sources can show one image under two names.

    Raises:
        ValueError: see `source.read_images`.
    """
    digests: dict[tuple[Path, str], str] = {}
    for root in {root for root, _ in images if (root / "images.parquet").is_file()}:
        table = read_images(root)
        pairs = zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True)
        digests |= {(root, path): digest for path, digest in pairs}
    first: dict[str, int] = {}
    keys = (digests.get(image, str(image)) for image in images)
    return np.array([first.setdefault(key, number) for number, key in enumerate(keys)], np.int64)


def _joined(space: str, names: pa.Array) -> pa.Array:
    """The names, each after the space in which it holds."""
    return pc.binary_join_element_wise(space, names, "\0")


def _parted(key: str) -> tuple[str, str, str]:
    return key.partition("\0")


def tags(every: Sequence[SourceSplit]) -> Counter[str]:
    """How many conversations have each tag.

    Raises:
        ExampleError: a file is not one of Examples.
    """
    counts: Counter[str] = Counter()
    for part in every:
        with split_file(part.root, part.split) as path, pq.ParquetFile(path) as file:
            named = pc.value_counts(file.read(columns=["tags"])["tags"].combine_chunks().flatten())
            counts.update({pair["values"]: pair["counts"] for pair in named.to_pylist()})
    return counts


def examples(every: Sequence[SourceSplit], rows: Sequence[int]) -> dict[int, Example]:
    """The Examples of these rows of the columns.

    Raises:
        ExampleError: a file is not one of Examples.
    """
    taken: dict[int, Example] = {}
    for part in every:
        inside = sorted({row for row in rows if part.first <= row < part.first + part.rows})
        numbers = [row - part.first for row in inside]
        taken |= zip(inside, example.take(part.root, part.split, numbers) if numbers else (), strict=True)
    return taken
