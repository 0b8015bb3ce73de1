"""Images that several sets have in common, by each kind of evidence: what `skinvl leaks` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skinvl.data import fingerprints
from skinvl.data.example import have, splits
from skinvl.data.fingerprints import KINDS, Pairs
from skinvl.data.source import source_folder, used_images

BEYOND = 4  # bits above the threshold that are looked at, so that what was missed can be seen too

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Shared = dict[tuple[int, int], dict[str, Pairs]]


@dataclass(frozen=True, slots=True)
class Set:
    """One split of a prepared source: N conversations that show M images at P places."""

    name: str
    root: Path
    first: int  # its images are the rows first … first + M - 1 of the table of all images
    images: int  # M
    row: Ints  # [P], the conversation
    image: Ints  # [P], from 0 to M - 1
    group: Ints  # [N], a number that means the same in all sets


@dataclass(frozen=True, slots=True)
class Evidence:
    """One kind of evidence: a number for what each image has, and which numbers are as good as equal."""

    kind: str
    code: Ints  # [images of all sets], -1 where there is none
    near: Pairs  # [K, 2], pairs of codes
    distance: Ints  # [K], bits

    def nearest(self, one: Set, other: Set) -> Pairs:
        """int64[P, 2], for each image of `other` that `one` has too: the nearest of `one`, and it."""
        codes, theirs = (self.code[each.first : each.first + each.images] for each in (one, other))
        count = int(self.code.max(initial=-1)) + 1
        has = np.full(count, -1)
        places = np.flatnonzero(codes >= 0)[::-1]
        has[codes[places]] = places  # the first image of each code
        all_codes = np.arange(count)
        edges = np.concatenate([np.stack([all_codes, all_codes], axis=1), self.near, self.near[:, ::-1]])
        apart = np.concatenate([np.zeros(count, np.int64), self.distance, self.distance])
        useful = has[edges[:, 0]] >= 0
        edges, apart = edges[useful], apart[useful]
        far_first = np.argsort(-apart, kind="stable")
        best = np.full(count + 1, -1)  # the last entry is for images without a code
        best[edges[far_first, 1]] = has[edges[far_first, 0]]
        found = best[theirs]
        reached = np.flatnonzero(found >= 0)
        return np.stack([found[reached] + one.first, reached + other.first], axis=1)


@dataclass(frozen=True, slots=True, order=True)
class ImageMatch:
    """Two images, as rows of the table of all images, and what says that they are one."""

    far: int  # bits, 0 of equal bytes and 65 where one of the two is too flat to have a hash
    one: int
    other: int
    kinds: tuple[str, ...]


def read(names: Sequence[str]) -> tuple[list[Set], pa.Table]:
    """The sets that are named, and the fingerprints of their images, set after set.

    Raises:
        FileNotFoundError, ValueError: a set is not there, or there are not two.
    """
    places = list(dict.fromkeys(place for name in names for place in _splits(name)))
    if len(places) < 2:
        raise ValueError(f"{', '.join(names)}: one set, with nothing to compare it to; name another source or split")
    parts, keys, tables = [], [], []
    for root, split in places:
        rows = pq.read_table(root / f"{split}.parquet", columns=["source", "group", "images"], partitioning=None)
        shown = rows["images"].combine_chunks()
        images, image = used_images(root, pc.struct_field(shown.flatten(), "path"))
        parts.append((f"{root.name}:{split}", root, pc.list_parent_indices(shown).to_numpy(), image))
        keys.append(pc.binary_join_element_wise(rows["source"], rows["group"], "\0").combine_chunks())
        tables.append(images)
    group = pc.dictionary_encode(pa.concat_arrays(keys)).indices.to_numpy().astype(np.int64)
    groups = np.split(group, np.cumsum([len(key) for key in keys])[:-1])
    firsts = np.cumsum([0, *map(len, tables)]).tolist()
    sets = [
        Set(name, root, first, len(images), row, image, own)
        for (name, root, row, image), first, images, own in zip(parts, firsts[:-1], tables, groups, strict=True)
    ]
    return sets, pa.concat_tables(tables)


def _splits(name: str) -> list[tuple[Path, str]]:
    """The (source, split) pairs that a word of the command line names."""
    root, split = source_folder(name), ""
    if not root.is_dir() and ":" in name:
        source, _, split = name.rpartition(":")
        root = source_folder(source)
    found = splits(root)
    if not found or (split and split not in found):
        raise FileNotFoundError(f"{name}: no such set in {root}; {have(root)}")
    return [(root, each) for each in ([split] if split else found)]


def evidence(images: pa.Table, threshold: int) -> tuple[list[Evidence], Evidence]:
    """What counts as one image by each kind, and all that looks alike up to BEYOND bits above the threshold."""
    kinds = []
    for kind in KINDS:
        encoded = pc.dictionary_encode(images[kind].combine_chunks())
        code = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
        hashes = encoded.dictionary.to_numpy() if kind == "phash" else np.empty(0, np.uint64)
        near = fingerprints.near(hashes, threshold + BEYOND)
        distance = np.bitwise_count(hashes[near[:, 0]] ^ hashes[near[:, 1]]).astype(np.int64)
        kinds.append(Evidence(kind, code, near, distance))
    close = kinds.pop()
    one = close.distance <= threshold
    return [*kinds, Evidence(close.kind, close.code, close.near[one], close.distance[one])], close


def matches(images: pa.Table, pairs: Pairs, threshold: int) -> list[ImageMatch]:
    """What says that the images of each pair are one, nearest first."""
    one, other = pairs.T
    hashes = images["phash"].combine_chunks()
    known = hashes.is_valid().to_numpy(zero_copy_only=False)[pairs].all(axis=1)
    hashed = pc.fill_null(hashes, 0).to_numpy()
    apart = np.where(known, np.bitwise_count(hashed[one] ^ hashed[other]), 65)
    columns = [images[kind].combine_chunks() for kind in ("sha256", "archive")]
    same = [pc.fill_null(pc.equal(each.take(one), each.take(other)), False).to_pylist() for each in columns]
    found = []
    for first, second, equal, named, far in zip(one.tolist(), other.tolist(), *same, apart.tolist(), strict=True):
        holds = (equal, named, far <= threshold)
        kinds = tuple(kind for kind, yes in zip(KINDS, holds, strict=True) if yes)
        found.append(ImageMatch(0 if equal else far, first, second, kinds))
    return sorted(found)


def nearest(sets: Sequence[Set], kinds: Sequence[Evidence]) -> Shared:
    """By the places of two sets: for each kind, what `Evidence.nearest` finds of the second in the first."""
    return {
        (one, other): {kind.kind: kind.nearest(sets[one], sets[other]) for kind in kinds}
        for one, other in permutations(range(len(sets)), 2)
    }


def once(shared: Shared) -> Pairs:
    """int64[P, 2], each pair of images once, that of the set named first in front."""
    some = [
        found if one < other else found[:, ::-1] for (one, other), each in shared.items() for found in each.values()
    ]
    return np.unique(np.concatenate(some), axis=0)


def shared(own: Set, theirs: Set, kinds: Mapping[str, Pairs]) -> dict[str, tuple[Mask, Mask]]:
    """(bool[M] images, bool[N] conversations) of a set that another has too, by kind."""
    found: dict[str, tuple[Mask, Mask]] = {}
    for kind, pairs in kinds.items():
        images, rows = np.zeros(own.images, bool), np.zeros(len(own.group), bool)
        images[pairs[:, 1] - own.first] = True
        rows[own.row[images[own.image]]] = True
        found[kind] = images, rows
    images, rows = np.zeros(own.images, bool), np.isin(own.group, theirs.group)
    images[own.image[rows[own.row]]] = True
    found["group"] = images, rows
    sides = list(zip(*found.values(), strict=True))
    found["any"] = np.logical_or.reduce(sides[0]), np.logical_or.reduce(sides[1])
    return found
