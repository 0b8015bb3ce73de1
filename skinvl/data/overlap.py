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

from skinvl.data import fingerprints, hamming
from skinvl.data.fingerprints import KINDS
from skinvl.data.hamming import Pairs
from skinvl.data.source import full_names, namespace, source_splits, used_images

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
    equal: bool = True  # whether images of one code are one by this kind

    def nearest(self, here: Set, there: Set) -> Pairs:
        """int64[P, 2], for each image of `there` that `here` has too: the nearest of `here`, and it."""
        codes_here = self.code[here.first : here.first + here.images]
        codes_there = self.code[there.first : there.first + there.images]

        # The first image of each code, as the later of two assignments wins.
        count = int(self.code.max(initial=-1)) + 1
        first_image = np.full(count, -1)
        coded = np.flatnonzero(codes_here >= 0)[::-1]
        first_image[codes_here[coded]] = coded

        # The nearest code that an image of `here` has: itself first, then by distance, so that the nearest comes last.
        all_codes = np.arange(count if self.equal else 0)
        code_pairs = np.concatenate([np.stack([all_codes, all_codes], axis=1), self.near, self.near[:, ::-1]])
        bits = np.concatenate([np.zeros(len(all_codes), np.int64), self.distance, self.distance])
        useful = first_image[code_pairs[:, 0]] >= 0
        code_pairs, bits = code_pairs[useful], bits[useful]
        far_first = np.argsort(-bits, kind="stable")
        nearest_here = np.full(count + 1, -1)  # the last entry is for images without a code
        nearest_here[code_pairs[far_first, 1]] = first_image[code_pairs[far_first, 0]]

        partner = nearest_here[codes_there]
        reached = np.flatnonzero(partner >= 0)
        return np.stack([partner[reached] + here.first, reached + there.first], axis=1)


@dataclass(frozen=True, slots=True, order=True)
class ImageMatch:
    """Two images, as rows of the table of all images, and what says that they are one."""

    distance: int  # bits, turned as they are nearest, 0 of equal bytes and 65 where one is too flat to have a hash
    first: int
    second: int
    kinds: tuple[str, ...]


def read(names: Sequence[str]) -> tuple[list[Set], pa.Table]:
    """The sets that are named, and the fingerprints of their images, set after set.

    Raises:
        FileNotFoundError, ValueError: a set is not there, or there are not two.
    """
    chosen = list(dict.fromkeys(source_split for name in names for source_split in source_splits(name)))
    if len(chosen) < 2:
        raise ValueError(f"{', '.join(names)}: one set, with nothing to compare it to; name another source or split")

    # Each set's rows, images and groups, numbered within the set.
    parts, tables = [], []
    keys: list[pa.Array] = []
    identities: list[pa.Array] = []
    owners, count = [], 0  # the row of each identity, over all sets
    for root, split in chosen:
        rows = pq.read_table(root / f"{split}.parquet", columns=["group", "identities", "images"], partitioning=None)
        shown = rows["images"].combine_chunks()
        images, image = used_images(root, pc.struct_field(shown.flatten(), "path"))
        parts.append((f"{root.name}:{split}", root, pc.list_parent_indices(shown).to_numpy(), image))
        space, own = namespace(root), rows["identities"].combine_chunks()
        owners.append(pc.list_parent_indices(own).to_numpy() + count)
        identities.append(full_names(space, own.flatten()))
        count += len(rows)
        keys.append(full_names(space, rows["group"].combine_chunks()))
        tables.append(images)

    # Numbers that hold over all sets: of a group by its names and where they hold, of an image by its row in the joined
    # table. Rows that share any name are of one group.
    encoded = pc.dictionary_encode(pa.concat_arrays([*keys, *identities]))
    codes = encoded.indices.to_numpy().astype(np.int64)
    pairs = np.stack([codes[np.concatenate(owners)], codes[count:]], axis=1)
    group_codes = fingerprints.clusters(len(encoded.dictionary), pairs)[codes[:count]]
    groups = np.split(group_codes, np.cumsum([len(key) for key in keys])[:-1])
    firsts = np.cumsum([0, *map(len, tables)]).tolist()
    sets = [
        Set(name, root, first, len(images), row, image, own)
        for (name, root, row, image), first, images, own in zip(parts, firsts[:-1], tables, groups, strict=True)
    ]
    return sets, pa.concat_tables(tables)


def evidence(images: pa.Table, threshold: int) -> tuple[list[Evidence], Evidence]:
    """What counts as one image by each kind, and all that looks alike up to BEYOND bits above the threshold.

    Turned copies are looked for up to the threshold, and never beyond `fingerprints.THRESHOLD`.
    """
    kinds = []
    for kind in ("sha256", "archive", "phash"):
        encoded = pc.dictionary_encode(images[kind].combine_chunks())
        code = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
        hashes = encoded.dictionary.to_numpy() if kind == "phash" else np.empty(0, np.uint64)
        near = hamming.near(hashes, threshold + BEYOND)
        distance = np.bitwise_count(hashes[near[:, 0]] ^ hashes[near[:, 1]]).astype(np.int64)
        kinds.append(Evidence(kind, code, near, distance))

    # The hash is the last of these: what lies beyond the threshold is shown, and does not count.
    close = kinds.pop()
    within = close.distance <= threshold
    kinds.append(Evidence(close.kind, close.code, close.near[within], close.distance[within]))
    turned = fingerprints.turned(images, threshold)
    return [*kinds, Evidence("turned", turned.code, turned.pairs, turned.bits, equal=False)], close


def matches(images: pa.Table, pairs: Pairs, threshold: int) -> list[ImageMatch]:
    """What says that the images of each pair are one, nearest first."""
    # Bits between the hashes, and whether bytes and archive ids are equal, pair by pair.
    left, right = pairs.T
    hashes = images["phash"].combine_chunks()
    known = hashes.is_valid().to_numpy(zero_copy_only=False)[pairs].all(axis=1)
    hashed = pc.fill_null(hashes, 0).to_numpy()
    apart = np.where(known, np.bitwise_count(hashed[left] ^ hashed[right]), 65)
    turned = fingerprints.turned_bits(images, pairs, threshold)
    columns = [images[kind].combine_chunks() for kind in ("sha256", "archive")]
    agreeing = [pc.fill_null(pc.equal(column.take(left), column.take(right)), False).to_pylist() for column in columns]

    image_matches = []
    distances = (apart.tolist(), turned.tolist())
    for first, second, equal, named, bits, other in zip(
        left.tolist(), right.tolist(), *agreeing, *distances, strict=True
    ):
        holds = (equal, named, bits <= threshold, other <= threshold)
        kinds = tuple(kind for kind, yes in zip(KINDS, holds, strict=True) if yes)
        image_matches.append(ImageMatch(0 if equal else min(bits, other), first, second, kinds))
    return sorted(image_matches)


def nearest(sets: Sequence[Set], kinds: Sequence[Evidence]) -> Shared:
    """By the numbers of two sets: for each kind, what `Evidence.nearest` finds of the second in the first."""
    return {
        (left, right): {kind.kind: kind.nearest(sets[left], sets[right]) for kind in kinds}
        for left, right in permutations(range(len(sets)), 2)
    }


def once(shared: Shared) -> Pairs:
    """int64[P, 2], each pair of images once, that of the set named first in front."""
    ordered = [
        pairs if left < right else pairs[:, ::-1]
        for (left, right), by_kind in shared.items()
        for pairs in by_kind.values()
    ]
    return np.unique(np.concatenate(ordered), axis=0)


def shared(own: Set, theirs: Set, kinds: Mapping[str, Pairs]) -> dict[str, tuple[Mask, Mask]]:
    """(bool[M] images, bool[N] conversations) of a set that another has too, by kind."""
    masks: dict[str, tuple[Mask, Mask]] = {}
    for kind, pairs in kinds.items():
        images, rows = np.zeros(own.images, bool), np.zeros(len(own.group), bool)
        images[pairs[:, 1] - own.first] = True
        rows[own.row[images[own.image]]] = True
        masks[kind] = images, rows

    # By group it is the conversations that are shared, and what they show.
    images, rows = np.zeros(own.images, bool), np.isin(own.group, theirs.group)
    images[own.image[rows[own.row]]] = True
    masks["group"] = images, rows

    sides = list(zip(*masks.values(), strict=True))
    masks["any"] = np.logical_or.reduce(sides[0]), np.logical_or.reduce(sides[1])
    return masks
