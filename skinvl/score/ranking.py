"""Where the right ones stand among all that a query is compared with: ranks, recall at k, and both by chance.

What is right for a query is a set: every text of the photograph, every image that a text was written for. Its rank is
1 + the others that are nearer than the nearest right one, and half of those that are as near, so that no order of a
pool decides anything. The pool is fixed: intervals are over the groups of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def chance(positives: Int, size: int, depth: int) -> float:
    """R@depth of a random order of a pool of this size, whose queries have so many right ones, int64[N].

    The probability that one of p is among the first k of M is 1 − C(M − p, k) / C(M, k).
    """
    if depth >= size or not len(positives):
        return 1.0 if len(positives) else float("nan")
    others = size - positives
    enough = others >= depth  # else the first k cannot all be wrong
    left = np.maximum(others - depth, 0)
    missed = np.exp(gammaln(others + 1) - gammaln(left + 1) + gammaln(size - depth + 1) - gammaln(size + 1))
    return float(1 - np.where(enough, missed, 0.0).mean())


def chance_median(positives: Int, size: int) -> float:
    """The rank that half of the queries reach in a random order."""
    low, high = 1, size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(positives, size, middle) >= 0.5 else (middle + 1, high)
    return float(low)


def depths(size: int) -> list[int]:
    """The k of DEPTHS that leave something of a pool of this size out."""
    return [depth for depth in DEPTHS if depth < size]


def estimates(ranked: Float, size: int, draws: Bootstrap, rows: Mask) -> dict[str, Estimate]:
    """R@k of each depth, and the median rank, over the rows of ranks float64[N] in a pool of this size."""
    numbers = {f"R@{depth}": draws.share(ranked <= depth, rows) for depth in depths(size)}
    return {**numbers, MEDIAN: draws.estimate(_medians(ranked, draws, rows), rows)}


def expected(positives: Int, size: int) -> dict[str, float]:
    """What chance makes of the same numbers."""
    numbers = {f"R@{depth}": chance(positives, size, depth) for depth in depths(size)}
    return {**numbers, MEDIAN: chance_median(positives, size)}


def block(ranked: Float, positives: Int, size: int, draws: Bootstrap) -> dict[str, Any]:
    """Numbers with intervals beside those by chance, for one direction."""
    numbers = estimates(ranked, size, draws, np.ones(len(ranked), np.bool_))
    return {
        "n": len(ranked),
        "pool": size,
        "numbers": {name: estimate.number() for name, estimate in numbers.items()},
        "chance": expected(positives, size),
    }


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
