"""What repeats among the rows of a source, which share an image or an identity, and the split that this leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skinvl.data import fingerprints
from skinvl.data.example import SPLITS
from skinvl.data.source import IMAGES_SCHEMA
from skinvl.sources.prepare.blocks import Block

# One row per image: `name` as the Examples of the blocks have it, `path` as those of the source will; either a rule
# that it breaks, or its fingerprints.
_SAID = ("rule", "detail", "profile", "fault")  # as images.Looked has it
IMAGES = pa.schema([("name", pa.string()), *IMAGES_SCHEMA, *((column, pa.string()) for column in _SAID)])

Ints = NDArray[np.signedinteger[Any]]  # as narrow as their values allow: there is one for every row
Keys = NDArray[np.uint64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BlockRows:
    """The N rows of blocks: their splits, and the images that they show."""

    blocks: Sequence[Block]
    starts: Ints  # [blocks + 1], the first row of each block
    rank: Ints  # [N], index of the split in SPLITS; a joined group goes to the first that one of its rows has
    row: Ints  # [M], the row that shows an image
    image: Ints  # [M], the image's row in the table of IMAGES

    def keys(self, name: str) -> Keys:
        """uint64[N]: a column of blocks.KEYS, read from disk each time."""
        keys = np.empty(self.starts[-1], np.uint64)
        for block, (start, end) in zip(self.blocks, pairwise(self.starts), strict=True):
            keys[start:end] = block.read()[name].to_numpy()
        return keys

    def names(self) -> Keys:
        """uint64[P, 2]: the keys of a group and of an identity that a row of it has, each pair once."""
        pairs = [np.empty((0, 2), np.uint64)]
        for block in self.blocks:
            rows = block.read()
            names = rows["names"].combine_chunks()
            if len(names.flatten()):
                group = rows["cluster"].to_numpy()[pc.list_parent_indices(names).to_numpy()]
                pairs.append(np.unique(np.stack([group, names.flatten().to_numpy()], axis=1), axis=0))
        return np.unique(np.concatenate(pairs), axis=0)

    def any(self, images: Mask) -> Mask:
        """bool[N]: whether a row shows one of the images."""
        shows = np.zeros(len(self.rank), bool)
        shows[self.row[images[self.image]]] = True
        return shows


@dataclass(frozen=True, slots=True)
class Fates:
    """What becomes of N rows."""

    duplicate: Mask  # an earlier row has the same id
    broken: Mask  # an image of it cannot be used
    fewer: Mask  # of its images some cannot be used, and it stays with the others
    alone: Mask  # its images are missing, and it stays without them
    near: Mask  # an earlier row asks and says nearly the same about the same images
    rank: Ints  # index of the split in SPLITS
    leader: Ints  # the row whose group it joins; itself where its group is joined with none
    joined: int  # groups that share an image or an identity with another
    largest: int  # groups that became one

    @property
    def kept(self) -> Mask:
        """Rows that become Examples, unless near ones are dropped."""
        return ~(self.duplicate | self.broken)


def read(blocks: Sequence[Block], images: pa.Table) -> BlockRows:
    """The rows of the blocks, in order.

    Raises:
        KeyError: an image of a row is not among the images.
    """
    names = images["name"].combine_chunks()
    starts = np.cumsum([0, *(len(block.read()) for block in blocks)])
    rank = np.empty(starts[-1], np.int8)
    row, image = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for block, (start, end) in zip(blocks, pairwise(starts), strict=True):
        rows = block.read()
        rank[start:end] = pc.index_in(rows["split"], value_set=pa.array(SPLITS)).to_numpy()
        shown = rows["images"].combine_chunks()
        indices = pc.index_in(pc.struct_field(shown.flatten(), "path"), value_set=names)
        if indices.null_count:
            raise KeyError(f"{block.path}: shows an image that was not looked at")
        row.append(pc.list_parent_indices(shown).to_numpy().astype(np.int32) + np.int32(start))
        image.append(indices.to_numpy())
    return BlockRows(blocks, starts, rank, np.concatenate(row), np.concatenate(image))


def decide(rows: BlockRows, images: pa.Table, *, fewer: bool, alone: bool, alike: bool, official: bool) -> Fates:
    """What becomes of each row.

    Args:
        images: table of IMAGES.
        fewer: rows of several images that stand together stay with those that can be used.
        alone: rows whose images are missing stay without them.
        alike: images that look the same are the same.
        official: every row keeps its split.
    """
    # A row that repeats an id is a duplicate, whatever its images are.
    rules = images["rule"].combine_chunks()
    absent = pc.fill_null(pc.equal(rules, "missing-image"), False).to_numpy(zero_copy_only=False)
    faulty = rules.is_valid().to_numpy(zero_copy_only=False)
    duplicate = _repeats(rows.keys("key"), np.ones(len(rows.rank), bool))
    stays = _fewer(rows, faulty) & ~duplicate if fewer else np.zeros(len(duplicate), bool)
    broken = rows.any(faulty & ~absent if alone else faulty) & ~duplicate & ~stays
    kept = ~(duplicate | broken)

    # Among the others, some say again what an earlier one said.
    same = rows.keys("same")
    if official:  # where splits stay as they are, a row on the other side of one is a leak and not a repetition
        same += rows.rank.astype(np.uint64)
    near = _repeats(same, kept)

    # Groups that share an image or an identity are joined under the first of them, and go to the lowest split that one
    # of them has.
    rank, leader = rows.rank, np.arange(len(kept), dtype=np.int32)
    joined = largest = 0
    names = rows.names()
    if len(names) or kept[rows.row].any() or len(np.unique(rank[kept])) > 1:
        cluster = rows.keys("cluster")
        label, joined, largest = _joined(rows, cluster, names, images, kept, alike)
        if joined:
            _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
            leader = np.where(cluster == cluster[first[inverse]], leader, first[inverse].astype(np.int32))
        if not official:
            lowest = np.full(int(label.max(initial=-1)) + 1, len(SPLITS), np.int8)
            np.minimum.at(lowest, label[kept], rank[kept])
            rank = np.where(kept, lowest[label], rank)
    lone = rows.any(absent) & kept & ~stays
    return Fates(duplicate, broken, stays, lone, near, rank, leader, joined, largest)


def _fewer(rows: BlockRows, faulty: Mask) -> Mask:
    """bool[N]: whether a row shows faulty images and others, together before the words of one turn.

    A row that names each of them in its place, as "compare <image> with <image>", means nothing without one of them.
    """
    fewer = np.zeros(len(rows.rank), bool)
    if not faulty.any():
        return fewer
    count, bad = (np.bincount(shown, minlength=len(fewer)) for shown in (rows.row, rows.row[faulty[rows.image]]))
    mixed = np.flatnonzero((bad > 0) & (bad < count))
    for block, (start, end) in zip(rows.blocks, pairwise(rows.starts.tolist()), strict=True):
        inside = mixed[(mixed >= start) & (mixed < end)]
        messages = block.read()["messages"].take(inside - start).to_pylist() if len(inside) else []
        for index, turns in zip(inside.tolist(), messages, strict=True):
            kinds = [[part["type"] for part in turn["content"]] for turn in turns]
            fewer[index] = any(turn[: count[index]] == ["image"] * int(count[index]) for turn in kinds)
    return fewer


def _repeats(keys: Keys, among: Mask) -> Mask:
    """bool[N]: whether an earlier key is the same, where both are `among` those that count.

    Few keys repeat: one sorted copy finds which, and nothing of N more numbers is made for the others.
    """
    ordered = np.sort(keys)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    repeats = np.zeros(len(keys), bool)
    if len(twice):
        repeated = np.flatnonzero(among & (twice[np.searchsorted(twice[:-1], keys)] == keys))
        repeats[repeated] = True
        repeats[repeated[np.unique(keys[repeated], return_index=True)[1]]] = False
    return repeats


def _joined(
    rows: BlockRows, cluster: Keys, names: Keys, images: pa.Table, kept: Mask, alike: bool
) -> tuple[Ints, int, int]:
    """The joined group of every row, how many groups share something with another, and the most that became one."""
    groups, group = np.unique(cluster, return_inverse=True)
    shown = kept[rows.row]
    if not shown.any() and not len(names):
        return group, 0, 0

    # A graph of names and images. What a row says of itself holds whether it is kept or not.
    known = np.union1d(groups, names[:, 1])
    place = np.searchsorted(known, groups)
    named = np.searchsorted(known, names)
    shows = np.stack([place[group[rows.row[shown]]], rows.image[shown] + len(known)], axis=1)
    links = fingerprints.links(images, alike=alike) + len(known)
    label = fingerprints.clusters(len(known) + len(images), np.concatenate([named, shows, links]))[place]

    sizes = np.bincount(label)
    joined = sizes[sizes > 1]
    return label[group], int(joined.sum()), int(joined.max(initial=0))
