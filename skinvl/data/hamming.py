"""Which 64-bit hashes are few bits apart: exact, and without comparing each with each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]  # [P, 2]
Hashes = NDArray[np.uint64]

# Of six bands of a hash at least two are equal in two hashes up to four bits apart, as each bit that differs spoils one
# band. Two of them are 20 to 22 bits, which few other hashes share. At eight bits (3 equal of 11 bands) this takes as
# long as comparing each with each.
BANDS, EQUAL = 6, 2
WIDEST = BANDS - EQUAL
CANDIDATES = 1 << 21  # pairs that are compared at once
BATCH = 8_192  # hashes that are searched for at once where each is compared with each


def near(hashes: Hashes, threshold: int) -> Pairs:
    """int64[P, 2], the indices of hashes at most `threshold` bits apart, each pair once and the lower index first.

    Exact. Equal hashes are linked as a chain, each with the next, and only the first of them with other hashes: so
    100,000 equal ones cost nothing, and clusters are the same as if every pair were given.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    if threshold <= WIDEST:
        pairs = within(unique, unique, threshold)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    else:
        pairs = np.concatenate([np.empty((0, 2), np.int64), *each_with_each(unique, threshold)])
    return np.concatenate([chains(inverse), np.sort(first[pairs], axis=1)])


def chains(codes: NDArray[np.integer[Any]]) -> Pairs:
    """int64[P, 2], the indices of equal codes, each with the next."""
    order = np.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    return np.stack([order[:-1][same], order[1:][same]], axis=1).astype(np.int64)


def within(queries: Hashes, base: Hashes, threshold: int) -> Pairs:
    """int64[P, 2], the indices of a query and a hash of the base at most `threshold` bits apart, each pair once.

    Exact by the pigeonhole principle: for every choice of bands, what is equal in them is compared. 400,000 hashes have
    2·10^7 such pairs with one another, of 8·10^10 in all.

    Raises:
        ValueError: the threshold is above WIDEST.
    """
    if threshold > WIDEST:
        raise ValueError(f"threshold {threshold}: expected at most {WIDEST} bits")
    widths = [len(band) for band in np.array_split(np.arange(64), BANDS)]
    bands = list(zip(np.cumsum([0, *widths[:-1]]).tolist(), widths, strict=True))  # (lowest bit, width)
    codes = [
        _equal(queries, base, chosen, threshold) for chosen in combinations(bands, EQUAL) if len(queries) and len(base)
    ]
    pairs = np.unique(np.concatenate([np.empty(0, np.int64), *codes]))  # a pair is met by every choice that fits
    return np.stack(np.divmod(pairs, max(len(base), 1)), axis=1)


def _equal(queries: Hashes, base: Hashes, bands: tuple[tuple[int, int], ...], threshold: int) -> NDArray[np.int64]:
    """int64[P], query × hashes of the base + hash, of the near pairs that are equal in the bands."""
    # The base in the order of its keys, and where each key begins there.
    keys = _keys(base, bands)
    order = (np.sort(keys << np.uint64(32) | np.arange(len(base), dtype=np.uint64)) & np.uint64(0xFFFFFFFF)).view(
        np.int64
    )
    sizes = np.bincount(keys.view(np.int64), minlength=1 << sum(width for _, width in bands))
    starts = np.cumsum(sizes) - sizes
    ordered = base[order]

    # Each query beside all hashes of its key, some millions of pairs at once.
    key = _keys(queries, bands).view(np.int64)
    first, counts = starts[key], sizes[key]
    total = np.cumsum(counts)
    edges = np.unique([0, *np.searchsorted(total, np.arange(CANDIDATES, total[-1], CANDIDATES)), len(queries)])
    codes = []
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        some = counts[start:end]
        query = np.repeat(np.arange(start, end), some)
        place = np.arange(len(query)) + np.repeat(first[start:end] - np.cumsum(some) + some, some)
        close = np.flatnonzero(np.bitwise_count(queries[query] ^ ordered[place]) <= threshold)
        codes.append(query[close] * len(base) + order[place[close]])
    return np.concatenate(codes)


def _keys(hashes: Hashes, bands: tuple[tuple[int, int], ...]) -> Hashes:
    """uint64[N], the bits of the bands, side by side."""
    keys = np.zeros(len(hashes), np.uint64)
    for low, width in bands:
        keys = keys << np.uint64(width) | hashes >> np.uint64(low) & np.uint64((1 << width) - 1)
    return keys


def each_with_each(unique: Hashes, threshold: int) -> Iterator[Pairs]:
    """The near pairs of different hashes, batch by batch: each batch against itself and what follows."""
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
