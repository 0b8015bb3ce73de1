"""What tells that two files show one image (their bytes, the ISIC archive's id, a perceptual hash), and which do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Kind = Literal["sha256", "archive", "phash"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Pairs = NDArray[np.int64]  # [P, 2]

# Grey levels between the darkest and the brightest of 32 × 32 cells. Real photos have 45 or more; with less than 12 a
# JPEG's own rounding turns more bits than THRESHOLD.
FLAT = 12
THIN = 160  # pixels a side that are looked at; a multiple of 32, so that the cells lie on every copy alike

# Bits. At 4 every JPEG of quality 30 or more, every half- or quarter-size copy and every brightness within 10 % of 245
# real photos is found, and 94 % of those cropped by 1 % a side. Among 400,000 images an estimated 9,000 pairs of
# strangers lie this near; at 6 it is 55,000, and at 8 300,000, enough to chain a large part into one cluster.
THRESHOLD = 4
BATCH = 8_192  # hashes that are searched for at once

_COSINES = np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))  # [8, 32], DCT-II of low frequency

_ARCHIVE = re.compile(r"(?<![A-Za-z0-9])ISIC_(\d{7})(?!\d)", re.IGNORECASE)


# What is known of one file.


def phash(picture: Image.Image) -> int | None:
    """The 64-bit perceptual hash of an RGB or grey picture, None where it is too flat to tell.

    Source: DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010). On the
    32 × 32 cells it gives the bits of the ImageHash library's `phash`, in a sixth of its time.
    """
    if min(picture.size) > THIN:
        small = picture.resize((THIN, THIN), Image.Resampling.NEAREST).reduce(THIN // 32)
    else:
        small = picture.resize((32, 32), Image.Resampling.LANCZOS)
    grey = small.convert("L")
    darkest, brightest = cast(tuple[int, int], grey.getextrema())
    if brightest - darkest < FLAT:
        return None

    # The 8 × 8 lowest frequencies; a bit says whether one lies above their median.
    frequencies = _COSINES @ np.frombuffer(grey.tobytes(), np.uint8).reshape(32, 32) @ _COSINES.T
    ordered = np.sort(frequencies, axis=None)
    return int.from_bytes(np.packbits(frequencies > (ordered[31] + ordered[32]) / 2).tobytes(), "big")


def sha256(path: Path) -> str:
    """64 hexadecimal digits of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def archive_id(path: str) -> str | None:
    """The ISIC archive's id in a file's name, such as ISIC_0024306; None where it has none."""
    match = _ARCHIVE.search(path.replace("\\", "/").rsplit("/", 1)[-1])
    return f"ISIC_{match[1]}" if match else None


# Which images are one: pairs by each kind of evidence, and the clusters that they make.


def near(hashes: NDArray[np.uint64], threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], the indices of hashes at most `threshold` bits apart, each pair once and the lower index first.

    Exact. Equal hashes are linked as a chain, each with the next, and only the first of them with other hashes: so
    100,000 equal ones cost nothing, and clusters are the same as if every pair were given.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    different = [np.sort(first[pairs], axis=1) for pairs in _search(unique, threshold)]
    return np.concatenate([_chains(inverse), *different])


def _chains(codes: NDArray[np.integer[Any]]) -> Pairs:
    """int64[P, 2], the indices of equal codes, each with the next."""
    order = np.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    return np.stack([order[:-1][same], order[1:][same]], axis=1).astype(np.int64)


def _search(unique: NDArray[np.uint64], threshold: int) -> Iterator[Pairs]:
    """The pairs of different hashes, batch by batch: each batch against itself and what follows."""
    codes = np.ascontiguousarray(unique).view(np.uint8).reshape(-1, 8)
    for start in range(0, len(codes), BATCH):
        index = faiss.IndexBinaryFlat(64)
        index.add(codes[start:])
        count = min(BATCH, len(codes) - start)
        limits, _, neighbours = index.range_search(codes[start : start + count], threshold + 1)  # faiss looks below it
        queries = np.repeat(np.arange(count), np.diff(limits).astype(np.int64))
        later = neighbours > queries  # each pair once
        pairs: Pairs = np.stack([queries[later], neighbours[later]], axis=1).astype(np.int64)
        yield pairs + start


def shared(table: pa.Table, kind: Kind, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of images that are one image by one kind of evidence; equal ones as a chain."""
    column = table[kind].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    known = column.drop_null()
    if kind == "phash":
        return np.asarray(rows[near(known.to_numpy(), threshold)], np.int64)
    codes = pc.dictionary_encode(known).indices.to_numpy(zero_copy_only=False)
    return np.asarray(rows[_chains(codes)], np.int64)


def links(table: pa.Table, *, alike: bool = True, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of images that are one image by any evidence, the perceptual hash if `alike`."""
    return np.concatenate([shared(table, kind, threshold) for kind in KINDS if alike or kind != "phash"])


def clusters(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """int64[count], the lowest member of the cluster of each one, where pairs link."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return np.asarray(first[label], np.int64)
