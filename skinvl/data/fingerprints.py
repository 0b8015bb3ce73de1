"""What tells that two files show one image (bytes, the ISIC archive's id, perceptual hashes), and which files do."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skinvl.data import hamming
from skinvl.data.hamming import Pairs
from skinvl.data.profiles import Profile

Kind = Literal["sha256", "archive", "phash", "turned"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Blocks = NDArray[np.floating[Any]]
LOOKS = ("phash", "turned", "signs")  # the columns of a table of images that are made of the pixels

# Grey levels between the darkest and the brightest of 32 × 32 cells. Real photos have 45 or more; with less than 12 a
# JPEG's own rounding turns more bits than THRESHOLD.
FLAT = 12
THIN = 160  # pixels a side that are looked at; a multiple of 32, so that the cells lie on every copy alike

# Bits. At 4 every JPEG of quality 30 or more, every half- or quarter-size copy and every brightness within 10 % of 245
# real photos is found, and 94 % of those cropped by 1 % a side. Among 400,000 images an estimated 9,000 pairs of
# strangers lie this near; at 6 it is 55,000, and at 8 300,000, enough to chain a large part into one cluster.
THRESHOLD = 4

# Bits of 256, in which the signs of two images may differ once one is turned as the other: the second look at a pair
# whose hashes are near in one of the other positions, where an image has seven times as many strangers. The mirrored
# and turned copies of 240 real photos, changed as above, are at most 35 bits apart where their hashes are near. Among
# 400,000 images with the statistics of those photos (benchmarks/hashes.py) the hashes of 3,514 pairs of strangers are
# near in another position, and their signs 66 bits apart or more: none is linked. Where hashes are made to be near
# four times as often as those of real photos, it is 65,340 pairs, 56 bits, and none.
AGREE = 40

_COSINES = np.cos(np.pi / 64 * np.outer(np.arange(16), 2 * np.arange(32) + 1))  # [16, 32], DCT-II of low frequency

# Mirrored, turned by quarters or both, a picture has the same frequencies with other signs and places: the last four of
# eight positions are transposed, and in each the signs change in no, the odd columns, the odd rows, or both. The first
# is upright.
_ODD = np.arange(16) % 2 == 1
_CHANGES = np.stack([(rows & _ODD)[:, None] ^ (columns & _ODD) for rows, columns in product((False, True), repeat=2)])
_SIGNS = np.where(_CHANGES, -1.0, 1.0)  # [4, 16, 16]

_ARCHIVE = re.compile(r"(?<![A-Za-z0-9])ISIC_(\d{7})(?!\d)", re.IGNORECASE)


# What is known of one file.


class Looks(TypedDict):
    """What is known of the pixels of one image, as the columns LOOKS; None of a picture that is too flat to tell."""

    phash: int | None  # 64 bits
    turned: list[int] | None  # the phash of each of its 7 other positions
    signs: bytes | None  # 32, the signs of its 16 × 16 lowest frequencies


def looks(picture: Image.Image, profile: Profile | None = None) -> Looks:
    """The perceptual hash of an RGB or grey picture, upright and in every other position, and its longer hash of signs.

    Source: DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010). On the
    32 × 32 cells it gives the bits of the ImageHash library's `phash`, in a sixth of its time. The hashes of the other
    positions are made of the frequencies: of the bits they could not be, as the median lies elsewhere.

    Args:
        profile: what the pixels are read by.
    """
    block = frequencies(picture, profile)
    if block is None:
        return Looks(phash=None, turned=None, signs=None)
    upright, *turned = hashes(block[None])[0].tolist()
    return Looks(phash=upright, turned=turned, signs=np.packbits(block > 0).tobytes())


def frequencies(picture: Image.Image, profile: Profile | None = None) -> Blocks | None:
    """float[16, 16], the lowest frequencies of an RGB or grey picture, None where it is too flat to tell."""
    thins = min(picture.size) > THIN
    thin = picture.resize((THIN, THIN), Image.Resampling.NEAREST) if thins else picture
    if profile is not None:  # which converts each pixel by itself, so that those that are looked at are enough
        thin = profile.applied(thin).convert("L")
    small = thin.reduce(THIN // 32) if thins else thin.resize((32, 32), Image.Resampling.LANCZOS)
    grey = small.convert("L")
    darkest, brightest = cast(tuple[int, int], grey.getextrema())
    if brightest - darkest < FLAT:
        return None
    block: Blocks = _COSINES @ np.frombuffer(grey.tobytes(), np.uint8).reshape(32, 32) @ _COSINES.T
    return block


def positions(blocks: Blocks) -> Blocks:
    """float[N, 8, K, K], the K × K lowest frequencies of N pictures, [N, K, K], upright and in the other positions."""
    signs = _SIGNS[:, : blocks.shape[1], : blocks.shape[2]]
    return np.concatenate([blocks[:, None] * signs, blocks.swapaxes(1, 2)[:, None] * signs], axis=1)


def hashes(blocks: Blocks) -> NDArray[np.uint64]:
    """uint64[N, 8], the perceptual hashes of frequencies, [N, 16, 16], upright and in the other positions."""
    # The 8 × 8 lowest frequencies; a bit says whether one lies above their median.
    lowest = positions(blocks[:, :8, :8]).reshape(len(blocks), 8, 64)
    ordered = np.sort(lowest, axis=2)
    bits = lowest > (ordered[..., 31:32] + ordered[..., 32:33]) / 2
    return np.packbits(bits, axis=2).view(">u8")[..., 0].astype(np.uint64)


def sha256(path: Path) -> str:
    """64 hexadecimal digits of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def archive_id(path: str) -> str | None:
    """The ISIC archive's id in a file's name, such as ISIC_0024306; None where it has none."""
    match = _ARCHIVE.search(path.replace("\\", "/").rsplit("/", 1)[-1])
    return f"ISIC_{match[1]}" if match else None


# Which images are one: pairs by each kind of evidence, and the clusters that they make.


@dataclass(frozen=True, slots=True)
class Turned:
    """Which images of a table of N are one in different positions: by numbers of what they look like."""

    code: NDArray[np.int64]  # [N], equal where all columns of LOOKS are, -1 where an image has none
    pairs: Pairs  # [P, 2], codes that are one image, each pair once and the lower first
    bits: NDArray[np.int64]  # [P], between their hashes


def turned(table: pa.Table, threshold: int = THRESHOLD) -> Turned:
    """The images that are mirrored or turned copies of others, at most `threshold` bits apart in one position.

    Near are the hash of one as it stands and that of the other in another position; then the second look decides.
    """
    rows, seen = _seen(table)
    every = np.concatenate([seen.hashes[:, None], seen.positions, seen.signs.view(np.uint64)], axis=1)
    _, first, inverse = np.unique(every, axis=0, return_index=True, return_inverse=True)
    code = np.full(len(table), -1)
    code[rows] = inverse.reshape(-1)

    positions = seen.positions[first]
    query, position = hamming.within(seen.hashes[first], positions.reshape(-1), min(threshold, THRESHOLD)).T
    candidates = np.sort(np.stack([query, position // positions.shape[1]], axis=1), axis=1)
    pairs = np.unique(candidates[candidates[:, 0] < candidates[:, 1]], axis=0)
    bits = _turned_bits(seen, first[pairs], threshold)
    agreed = bits <= 64
    return Turned(code, pairs[agreed], bits[agreed])


def turned_bits(table: pa.Table, pairs: Pairs, threshold: int = THRESHOLD) -> NDArray[np.int64]:
    """int64[P], the bits between two images of the table in the nearest of their other positions.

    65 where it is above the threshold, where the second look finds two images, and where they are near as they stand.
    """
    rows, seen = _seen(table)
    number = np.full(len(table), -1)
    number[rows] = np.arange(len(rows))
    numbered = number[pairs]
    known = (numbered >= 0).all(axis=1)
    bits = np.full(len(pairs), 65)
    bits[known] = _turned_bits(seen, numbered[known], threshold)
    return bits


@dataclass(frozen=True, slots=True)
class _Seen:
    """The columns LOOKS of M images."""

    hashes: NDArray[np.uint64]  # [M]
    positions: NDArray[np.uint64]  # [M, 7]
    signs: NDArray[np.uint8]  # [M, 32]


def _seen(table: pa.Table) -> tuple[NDArray[np.int64], _Seen]:
    """int64[M], the rows of a table of images that have LOOKS, and these."""
    valid = pc.and_(*(table[name].combine_chunks().is_valid() for name in ("turned", "signs")))
    known = table.filter(valid)
    positions = known["turned"].combine_chunks().flatten().to_numpy().reshape(-1, 7)
    signs = np.frombuffer(b"".join(known["signs"].to_pylist()), np.uint8).reshape(-1, 32)
    rows = np.flatnonzero(valid.to_numpy(zero_copy_only=False))
    return rows, _Seen(known["phash"].to_numpy(), positions, signs)


def _turned_bits(seen: _Seen, pairs: Pairs, threshold: int) -> NDArray[np.int64]:
    """See `turned_bits`."""
    threshold = min(threshold, THRESHOLD)
    bits = np.full(len(pairs), 65)
    for one, other in (pairs.T, pairs.T[::-1]):  # the median lies elsewhere by which of the two is turned
        apart = np.bitwise_count(seen.hashes[one][:, None] ^ seen.positions[other])
        pair, position = np.nonzero(apart <= threshold)
        agreed = second_look(seen.signs[one[pair]], seen.signs[other[pair]], position) <= AGREE
        np.minimum.at(bits, pair[agreed], apart[pair, position][agreed])
    bits[np.bitwise_count(np.bitwise_xor(*seen.hashes[pairs.T])) <= threshold] = 65
    return bits


def second_look(one: NDArray[np.uint8], other: NDArray[np.uint8], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[P], the bits between the signs of one image and those of another that is put into one of 7 positions."""
    apart = np.empty(len(position), np.int64)
    for number, (transposed, changes) in enumerate(list(product((False, True), _CHANGES))[1:]):
        here = position == number
        left, right = (np.unpackbits(signs[here], axis=1).reshape(-1, 16, 16) for signs in (one, other))
        apart[here] = (left ^ (right.swapaxes(1, 2) if transposed else right) ^ changes).sum(axis=(1, 2))
    return apart


def shared(table: pa.Table, kind: Kind, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of images that are one image by one kind of evidence; equal ones as a chain."""
    if kind == "turned":
        copies = turned(table, threshold)
        coded = np.flatnonzero(copies.code >= 0)
        first = coded[np.unique(copies.code[coded], return_index=True)[1]]
        return np.unique(np.sort(first[copies.pairs], axis=1), axis=0)
    column = table[kind].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    known = column.drop_null()
    if kind == "phash":
        return np.asarray(rows[hamming.near(known.to_numpy(), threshold)], np.int64)
    codes = pc.dictionary_encode(known).indices.to_numpy(zero_copy_only=False)
    return np.asarray(rows[hamming.chains(codes)], np.int64)


def links(table: pa.Table, *, alike: bool = True, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of images that are one image by any evidence, by what they look like if `alike`."""
    return np.concatenate([shared(table, kind, threshold) for kind in KINDS if alike or kind not in LOOKS])


def clusters(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """int64[count], the lowest member of the cluster of each one, where pairs link."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return np.asarray(first[label], np.int64)
