"""What repeats among the rows of a source, which of them share an image, and the split that a shared image leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skinvl import fingerprints
from skinvl.blocks import Block

SPLITS = ("train", "validation", "test")  # a joined group goes to the first of these that one of its rows has
# One row per image: `name` as the Examples of the blocks have it, `path` as those of the source will; either a rule
# that it breaks, or its fingerprints.
IMAGES = pa.schema([("name", pa.string()), *fingerprints.SCHEMA, ("rule", pa.string()), ("detail", pa.string())])

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rows:
    """The columns of N rows that decide what becomes of them, and the images that they show."""

    key: NDArray[np.uint64]  # [N], of the id
    cluster: NDArray[np.uint64]  # [N], of the group
    same: NDArray[np.uint64]  # [N], of what is asked and said
    rank: Ints  # [N], place of the split in SPLITS
    row: Ints  # [M], the row that shows an image
    image: Ints  # [M], the image's place in the table of IMAGES
    starts: Ints  # [blocks + 1], the first row of each block

    def any(self, images: Mask) -> Mask:
        """bool[N]: whether a row shows one of the images."""
        shows = np.zeros(len(self.key), bool)
        shows[self.row[images[self.image]]] = True
        return shows


@dataclass(frozen=True, slots=True)
class Fates:
    """What becomes of N rows."""

    duplicate: Mask  # an earlier row has the same id
    broken: Mask  # an image of it cannot be used
    alone: Mask  # its images are missing, and it stays without them
    near: Mask  # an earlier row asks and says nearly the same about the same images
    rank: Ints  # place of the split in SPLITS
    leader: Ints  # the row whose group it joins; itself where its group is joined with none
    joined: int  # groups that share an image with another
    largest: int  # groups that became one

    @property
    def kept(self) -> Mask:
        """Rows that become Examples, unless near ones are dropped."""
        return ~(self.duplicate | self.broken)


def read(blocks: Sequence[Block], images: pa.Table) -> Rows:
    """The rows of the blocks, in order.

    Raises:
        KeyError: an image of a row is not among the images.
    """
    names = images["name"].combine_chunks()
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("key", "cluster", "same", "rank", "row", "image")}
    starts = [0]
    for block in blocks:
        rows = block.read()
        for name in ("key", "cluster", "same"):
            columns[name].append(rows[name].to_numpy())
        columns["rank"].append(pc.index_in(rows["split"], value_set=pa.array(SPLITS)).to_numpy().astype(np.int8))
        shown = rows["images"].combine_chunks()
        columns["row"].append(pc.list_parent_indices(shown).to_numpy() + starts[-1])
        found = pc.index_in(pc.struct_field(shown.flatten(), "path"), value_set=names)
        if found.null_count:
            raise KeyError(f"{block.path}: shows an image that was not looked at")
        columns["image"].append(found.to_numpy().astype(np.int64))
        starts.append(starts[-1] + len(rows))
    kinds = {"key": np.uint64, "cluster": np.uint64, "same": np.uint64, "rank": np.int8}
    whole = {name: np.concatenate([*parts, np.empty(0, kinds.get(name, np.int64))]) for name, parts in columns.items()}
    return Rows(**whole, starts=np.array(starts))


def decide(rows: Rows, images: pa.Table, *, alone: bool, alike: bool, official: bool) -> Fates:
    """What becomes of each row.

    Args:
        images: table of IMAGES.
        alone: rows whose images are missing stay without them.
        alike: images that look the same are the same.
        official: every row keeps its split.
    """
    rules = images["rule"].combine_chunks()
    absent = pc.fill_null(pc.equal(rules, "missing-image"), False).to_numpy(zero_copy_only=False)
    faulty = rules.is_valid().to_numpy(zero_copy_only=False)
    duplicate = _repeats(rows.key)
    broken = rows.any(faulty & ~absent if alone else faulty) & ~duplicate
    kept = ~(duplicate | broken)
    # Where splits stay as they are, a row on the other side of one is a leak and not a repetition.
    same = rows.same + rows.rank.astype(np.uint64) if official else rows.same
    near = np.zeros(len(kept), bool)
    near[np.flatnonzero(kept)[_repeats(same[kept])]] = True
    label, joined, largest = _joined(rows, images, kept, alike)
    rank, leader = rows.rank, np.arange(len(kept))
    if joined:
        _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
        leader = np.where(rows.cluster == rows.cluster[first[inverse]], leader, first[inverse])
    if not official:
        lowest = np.full(int(label.max(initial=-1)) + 1, len(SPLITS), np.int8)
        np.minimum.at(lowest, label[kept], rows.rank[kept])
        rank = np.where(kept, lowest[label], rows.rank)
    return Fates(duplicate, broken, rows.any(absent) & kept, near, rank, leader, joined, largest)


def _repeats(keys: NDArray[np.uint64]) -> Mask:
    """Whether an earlier key is the same."""
    repeats = np.ones(len(keys), bool)
    repeats[np.unique(keys, return_index=True)[1]] = False
    return repeats


def _joined(rows: Rows, images: pa.Table, kept: Mask, alike: bool) -> tuple[Ints, int, int]:
    """The joined group of every row, how many groups share an image with another, and the most that became one."""
    groups, group = np.unique(rows.cluster, return_inverse=True)
    shown = kept[rows.row]
    if not shown.any():
        return group, 0, 0
    links = fingerprints.links(images, alike=alike)
    shows = np.stack([group[rows.row[shown]], rows.image[shown] + len(groups)], axis=1)
    label = fingerprints.clusters(len(groups) + len(images), np.concatenate([shows, links + len(groups)]))
    sizes = np.bincount(label[: len(groups)])
    joined = sizes[sizes > 1]
    return label[group], int(joined.sum()), int(joined.max(initial=0))
