"""Where the right ones stand among all that a query is compared with: ranks, recall at k, and both without a look.

What is right for a query is a set: every text of the photograph, every image that a text was written for. Its rank is
1 + the others that are nearer than the nearest right one, and half of those that are as near, so that no order of a
pool decides anything. The pool is fixed: intervals are over the groups of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import gammaln

from skinvl.score.stats import Bootstrap, Estimate, Float, Int, Mask

DEPTHS = (1, 5, 10, 50, 100)  # k of R@k
CELLS = 1 << 23  # similarities held at a time: 32 MB
MEDIAN = "median_rank"

Embeddings = NDArray[np.float32]


class RankError(ValueError):
    """Embeddings that cannot be ranked."""


def ranks(queries: Embeddings, pool: Embeddings, positives: csr_array) -> Float:
    """float64[N], the rank of the nearest right one of each query in the pool, from 1; a tie counts half.

    Args:
        queries: float32[N, D], of length one.
        pool: float32[M, D], of length one.
        positives: bool[N, M], which of the pool are right for each query; at least one is.

    Raises:
        RankError: an embedding is not finite, or nothing is right for a query.
    """
    for name, vectors in (("queries", queries), ("pool", pool)):
        if broken := int((~np.isfinite(vectors).all(axis=1)).sum()):
            raise RankError(
                f"{broken:,} of {len(vectors):,} embeddings of the {name} are not finite; nothing is ranked"
            )
    if len(queries) and (lacking := int((np.diff(positives.indptr) == 0).sum())):
        raise RankError(f"{lacking:,} of {len(queries):,} queries have nothing right in the pool; leave them out")

    # What is equal in the pool is multiplied once: a matrix product may round equal columns differently.
    distinct, index = np.unique(pool, axis=0, return_inverse=True)
    every = len(distinct) == len(pool)
    columns = np.ascontiguousarray((pool if every else distinct).T)

    ranked = np.empty(len(queries))
    step = max(1, CELLS // max(len(pool), 1))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        similarities = queries[block] @ columns
        if not every:
            similarities = similarities[:, index]

        # The nearest right one of each query; then all that is right is out of the way.
        own = positives[block]
        row, column = np.repeat(np.arange(len(similarities)), np.diff(own.indptr)), own.indices
        best = np.maximum.reduceat(similarities[row, column], own.indptr[:-1])
        similarities[row, column] = -np.inf

        nearer = np.count_nonzero(similarities > best[:, None], axis=1)
        level = np.count_nonzero(similarities == best[:, None], axis=1)
        ranked[block] = 1 + nearer + level / 2
    return ranked


def relevant(queries: Sequence[Sequence[int]], size: int) -> csr_array:
    """bool[N, M], from the numbers in the pool that are right for each query, of a pool of this size."""
    counts = [len({*numbers}) for numbers in queries]
    columns = np.array([number for numbers in queries for number in sorted({*numbers})], np.int64)
    edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return csr_array((np.ones(len(columns), np.bool_), columns, edges), shape=(len(queries), size))


def chance(positives: csr_array) -> dict[str, float]:
    """The numbers of a random order of the pool: R@k of `depths`, and the median rank.

    Args:
        positives: bool[N, M], as of `ranks`.
    """
    counts, size = np.diff(positives.indptr).astype(np.int64), positives.shape[1]
    return _expected(counts, np.full(len(counts), size), np.zeros(len(counts), np.int64), size)


def blind(positives: csr_array) -> dict[str, float]:
    """The same of one order for all queries, in which comes first what is right for most; equals are in random order.

    What many queries share is found without a look at any: captions that name one trait are such. As the majority class
    it is taken from these queries themselves, which favours it.
    """
    queries, size = positives.shape
    counts = np.bincount(positives.indices, minlength=size)
    row, own = np.repeat(np.arange(queries), np.diff(positives.indptr)), counts[positives.indices]
    best = np.zeros(queries, np.int64)
    np.maximum.at(best, row, own)

    # What more queries have stands before the first right one, and this one anywhere among what as many have.
    ordered = np.sort(counts)
    first, last = (size - np.searchsorted(ordered, best, side=side) for side in ("right", "left"))
    right = np.bincount(row, own == best[row], queries).astype(np.int64)
    return _expected(right, last - first, first, size)


def _expected(right: Int, level: Int, above: Int, size: int) -> dict[str, float]:
    """What becomes of queries whose right ones, int64[N], stand at random among `level` others after `above` others."""

    def recall(depth: int) -> float:
        return float(_hit(right, level, np.clip(depth - above, 0, level)).mean())

    # The median is the first rank that half of the queries reach.
    low, high = 1, size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= 0.5 else (middle + 1, high)
    return {**{f"R@{depth}": recall(depth) for depth in depths(size)}, MEDIAN: float(low)}


def _hit(right: Int, size: Int, depth: Int) -> Float:
    """float64[N]: how likely one of p is among the first k of M in random order, 1 − C(M − p, k) / C(M, k)."""
    others = size - right
    left = np.maximum(others - depth, 0)
    missed = np.exp(gammaln(others + 1) - gammaln(left + 1) + gammaln(size - depth + 1) - gammaln(size + 1))
    return np.where(others >= depth, 1 - missed, 1.0)


def depths(size: int) -> list[int]:
    """The k of DEPTHS that leave something of a pool of this size out."""
    return [depth for depth in DEPTHS if depth < size]


def estimates(ranked: Float, size: int, draws: Bootstrap, rows: Mask) -> dict[str, Estimate]:
    """R@k of each depth, and the median rank, over the rows of ranks float64[N] in a pool of this size."""
    numbers = {f"R@{depth}": draws.share(ranked <= depth, rows) for depth in depths(size)}
    return {**numbers, MEDIAN: draws.estimate(_medians(ranked, draws, rows), rows)}


def _medians(ranked: Float, draws: Bootstrap, rows: Mask) -> Float:
    """float64[1 + R]: the median of the rows in the data and in each resample."""
    if not rows.any():
        return np.full(draws.size, np.nan)
    values, column = np.unique(ranked, return_inverse=True)
    each = csr_array((np.ones(len(ranked)), (np.arange(len(ranked)), column)), shape=(len(ranked), len(values)))
    below = np.cumsum(draws.sums(each, rows), axis=1)
    half = below[:, -1:] / 2
    lower, upper = (below < half).sum(axis=1), (below <= half).sum(axis=1)
    medians: Float = (values[lower] + values[np.minimum(upper, len(values) - 1)]) / 2
    return medians
