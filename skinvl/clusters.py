"""Which images are one by their fingerprints: an exact search, for hundreds of thousands, and the clusters of links."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Kind = Literal["sha256", "archive", "phash"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Pairs = NDArray[np.int64]  # [P, 2]

# Bits. At 4 every JPEG of quality 30 or more, every half- or quarter-size copy and every brightness within 10 % of 245
# real photos is found, and 94 % of those cropped by 1 % a side. Among 400,000 images an estimated 9,000 pairs of
# strangers lie this near; at 6 it is 55,000, and at 8 300,000, enough to chain a large part into one cluster.
THRESHOLD = 4
BATCH = 8_192  # hashes that are searched for at once


def near(hashes: NDArray[np.uint64], threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], the places of hashes at most `threshold` bits apart, each pair once and the lower place first.

    Exact. Equal hashes are linked as a chain, each with the next, and only the first of them with other hashes: so
    100,000 equal ones cost nothing, and clusters are the same as if every pair were given.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    same = inverse[order[1:]] == inverse[order[:-1]]
    chains = np.stack([order[:-1][same], order[1:][same]], axis=1)
    found = [np.sort(first[pairs], axis=1) for pairs in _search(unique, threshold)]
    return np.concatenate([chains.astype(np.int64), *found])


def _search(unique: NDArray[np.uint64], threshold: int) -> Iterator[Pairs]:
    """The pairs of different hashes, batch by batch: each batch against itself and what follows."""
    codes = np.ascontiguousarray(unique).view(np.uint8).reshape(-1, 8)
    for start in range(0, len(codes), BATCH):
        index = faiss.IndexBinaryFlat(64)
        index.add(codes[start:])
        count = min(BATCH, len(codes) - start)
        limits, _, found = index.range_search(codes[start : start + count], threshold + 1)  # faiss looks below it
        asked = np.repeat(np.arange(count), np.diff(limits).astype(np.int64))
        later = found > asked  # each pair once
        pairs: Pairs = np.stack([asked[later], found[later]], axis=1).astype(np.int64)
        yield pairs + start


def shared(table: pa.Table, kind: Kind, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of images that are one image by one kind of evidence; equal ones as a chain."""
    column = table[kind].combine_chunks()
    places = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    known = column.drop_null()
    if kind == "phash":
        return np.asarray(places[near(known.to_numpy(), threshold)], np.int64)
    codes = pc.dictionary_encode(known).indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    return np.asarray(places[np.stack([order[:-1][same], order[1:][same]], axis=1)], np.int64)


def links(table: pa.Table, *, alike: bool = True, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of images that are one image by any evidence, the perceptual hash if `alike`."""
    return np.concatenate([shared(table, kind, threshold) for kind in KINDS if alike or kind != "phash"])


def clusters(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """int64[count], the lowest member of the cluster of each one, where pairs link."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return np.asarray(first[label], np.int64)
