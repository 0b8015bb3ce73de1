"""Intervals of numbers whose rows come in groups, paired tests, and a correction for many of them.

Rows of one patient, lesion or figure are no independent evidence. A resample therefore draws as many groups as there
are, with replacement, and takes each with all of its rows (Davison & Hinkley 1997, Bootstrap Methods and their
Application, §3.8; Cameron, Gelbach & Miller 2008, doi:10.1162/rest.90.3.414). What is estimated must be a function of
sums over rows, so that all resamples are one matrix product.

Percentiles of resamples are too narrow where groups are few, and nothing at all where all groups are right. A share has
Wilson's interval instead, every other number percentiles that are expanded; benchmarks/coverage.py measures both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import bdtr, ndtr, stdtr, stdtrit

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Mask = NDArray[np.bool_]

RESAMPLES = 1_000
LEVEL = 0.95
WILSON, EXPANDED = "Wilson", "expanded percentile"  # methods of an interval
FEWEST = {WILSON: 5, EXPANDED: 10}  # groups that each needs
ALIKE = "groups alike"  # instead of a method: no resample differs, which says nothing about how groups do
DRAWN = 1 << 18  # groups drawn at a time
NOTHING = 1e-12  # a difference of numbers around 1 that is rounding
CHUNK = 512  # groups multiplied at a time: 4 MB of float64 weights with 1,000 resamples, which a cache holds


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with what became of it in the resamples.

    Args:
        values: float[1 + R], the number in the data and then in each resample; NaN where it cannot be had.
        sizes: int[G] of the rows that were counted, how many each group has; of a gap, those of either side.
        unscored: rows that should have been counted and could not.
        variance: of a share, `cr2`; None for every other number.
    """

    values: Float
    sizes: tuple[Int, ...]
    unscored: int = 0
    variance: float | None = None

    @property
    def value(self) -> float:
        """The number in the data; NaN where it cannot be had."""
        return float(self.values[0])

    @property
    def n(self) -> int:
        """Rows counted."""
        return sum(int(sizes.sum()) for sizes in self.sizes)

    @property
    def groups(self) -> int:
        """Groups that these belong to."""
        return int(np.count_nonzero(np.sum(self.sizes, axis=0)))

    def number(self) -> dict[str, Any]:
        """Value, interval, n, groups, unscored, and the interval's method; None for what cannot be had."""
        low, high, method = (None, None, None) if np.isnan(self.value) else self._interval()
        return {
            "value": None if np.isnan(self.value) else self.value,
            **{"low": low, "high": high, "method": method},
            **{"n": self.n, "groups": self.groups, "unscored": self.unscored},
        }

    def minus(self, other: Estimate) -> Estimate:
        """The difference, resample by resample: both estimates come from the same rows and Bootstrap."""
        return Estimate(self.values - other.values, self.sizes, self.unscored)

    def gap(self, other: Estimate) -> Estimate:
        """The difference of estimates of other rows by the same Bootstrap."""
        return Estimate(self.values - other.values, self.sizes + other.sizes, self.unscored + other.unscored)

    def _interval(self) -> tuple[float | None, float | None, str | None]:
        """Both ends and the method, or why there is no interval. A gap has the groups of its smaller side."""
        method = EXPANDED if self.variance is None else WILSON
        groups = min(int(np.count_nonzero(sizes)) for sizes in self.sizes)
        if groups < FEWEST[method]:
            return None, None, f"too few groups ({groups})"
        df = min(satterthwaite(sizes) for sizes in self.sizes)
        if self.variance is not None:
            low, high = (float(end) for end in wilson(self.values[0], self.variance, groups, df))
            return low, high, method

        # Resamples in which the number cannot be had are left out.
        drawn = self.values[1:][~np.isnan(self.values[1:])]
        if not len(drawn):
            return None, None, None
        if np.ptp(drawn) < NOTHING:
            return None, None, ALIKE
        tail = expanded(df)
        low, high = (float(end) for end in np.quantile(drawn, [tail, 1 - tail]))
        return low, high, method


class Bootstrap:
    """How often each group stands in each resample.

    Args:
        groups: the group of each row, such as (source, patient).
        resamples: how many; 0 for the numbers alone, without intervals.
        seed: of the draws; the same groups and seed make the same resamples.

    Attributes:
        of: int[N], the number of each row's group.
        counts: uint8[G, 1 + R]; the first column is the data, each group once. A group is drawn 256 times with a
            probability below 1/256!, so that the type holds them.
    """

    def __init__(self, groups: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = 0) -> None:
        numbers: dict[Hashable, int] = {}
        self.of = np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)

        # In each resample as many groups are drawn as there are; counted, as many resamples at a time as DRAWN allows.
        size = len(numbers)
        generator = np.random.default_rng(seed)
        drawn = np.ones((1 + resamples, size), np.uint8)
        step = max(1, DRAWN // max(size, 1))
        for start in range(1, 1 + resamples, step):
            block = drawn[start : start + step]
            draws = generator.integers(0, size, block.shape) + size * np.arange(len(block))[:, None]
            block[:] = np.bincount(draws.ravel(), minlength=block.size).reshape(block.shape)
        self.counts = np.ascontiguousarray(drawn.T)

    @property
    def size(self) -> int:
        """1 + R: the data and its resamples."""
        return int(self.counts.shape[1])

    def sums(self, table: Float | csr_array, rows: Mask | None = None) -> Float:
        """float[1 + R, k]: the sum of a table float[N, k] over the rows, each as often as its group was drawn."""
        of = self.of
        if rows is not None:
            of, table = of[rows], table[np.flatnonzero(rows)]

        # First the sums of each group that has rows, then these by the group's count in each resample.
        is_present = np.bincount(of, minlength=len(self.counts)) > 0
        present, present_index = np.flatnonzero(is_present), (np.cumsum(is_present) - 1)[of]
        ones = np.ones(len(of))
        grouped = csr_array((ones, (present_index, np.arange(len(of)))), shape=(len(present), len(of))) @ table
        total = np.zeros((table.shape[1], self.size))
        for start in range(0, len(present), CHUNK):
            weights = self.counts[present[start : start + CHUNK]].astype(np.float64)
            total += grouped[start : start + CHUNK].T @ weights
        return total.T

    def sizes(self, rows: Mask) -> Int:
        """int[G]: how many of the rows each group has."""
        return np.bincount(self.of[rows], minlength=len(self.counts)).astype(np.int64)

    def estimate(self, values: Float, rows: Mask, unscored: int = 0) -> Estimate:
        """The estimate of values float[1 + R] that were counted over the rows."""
        return Estimate(values, (self.sizes(rows),), unscored)

    def share_of(self, values: Float, each: Float | Mask, rows: Mask, unscored: int = 0) -> Estimate:
        """The same of a share: values are the means over the rows of what each has, float[N] from 0 to 1."""
        sizes = self.sizes(rows)
        sums = np.bincount(self.of[rows], each[rows], len(self.counts)).astype(np.float64)
        return Estimate(values, (sizes,), unscored, float(cr2(sums, sizes)))

    def share(self, right: Mask, rows: Mask, unscored: int = 0) -> Estimate:
        """The share of the rows that are right."""
        sums = self.sums(np.stack([right, np.ones(len(right))], axis=1).astype(np.float64), rows)
        return self.share_of(ratio(sums[:, 0], sums[:, 1]), right, rows, unscored)


def cr2(sums: Float, sizes: Int) -> Float:
    """float[...]: the variance of the means over all rows, whose sums by group are float[..., G] over so many rows.

    CR2 of Bell & McCaffrey 2002, Survey Methodology 28(2), of a regression on nothing but a constant. NaN with fewer
    than two groups.
    """
    weights = sizes / max(sizes.sum(), 1)
    residuals = sums - sizes * (sums.sum(axis=-1, keepdims=True) / max(sizes.sum(), 1))
    corrected = ratio(np.square(residuals), np.broadcast_to(1 - weights, sums.shape))
    variance: Float = corrected.sum(axis=-1) / max(sizes.sum(), 1) ** 2
    return variance


def satterthwaite(sizes: Int) -> float:
    """The degrees of freedom of `cr2` where rows are independent, as Bell & McCaffrey 2002 have them.

    >>> round(satterthwaite(np.array([5, 5, 5, 5])), 9), round(satterthwaite(np.array([16, 2, 2, 3, 2])), 2)
    (3.0, 2.06)
    """
    weights = sizes / sizes.sum()
    squares = ratio(np.square(weights), 1 - weights)
    return float(1 / (np.square(weights).sum() + squares.sum() ** 2 - np.square(squares).sum()))


def wilson(share: Float, variance: Float | float, groups: int, df: float) -> tuple[Float, Float]:
    """Both ends of Wilson's interval of shares with these cluster variances; arrays of one shape, or numbers.

    Wilson 1927, Journal of the American Statistical Association 22, with as many independent rows as would have that
    variance (Franco, Little, Louis & Slud 2019, PMC6690503, compare such intervals), and Student's t for the normal
    quantile. Where no group differs from another, each group is one row.
    """
    share, variance = np.broadcast_arrays(np.asarray(share, np.float64), variance)
    alike = variance < NOTHING**2
    rows = np.where(alike, groups, ratio(share * (1 - share), np.where(alike, 1.0, variance)))
    quantile = stdtrit(np.where(alike, groups - 1, df), (1 + LEVEL) / 2)

    shrunk = quantile**2 / rows
    middle = (share + shrunk / 2) / (1 + shrunk)
    half = np.sqrt(shrunk * (share * (1 - share) + shrunk / 4)) / (1 + shrunk)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def expanded(df: float) -> float:
    """The share of resamples beyond either end of an expanded percentile interval.

    Hesterberg 2015, The American Statistician 69, 371–386: Student's quantile for the normal one, and a variance that
    is not divided by one too many, of df + 1 groups.
    """
    return float(ndtr(-np.sqrt((df + 1) / df) * stdtrit(df, (1 + LEVEL) / 2)))


def ratio(one: Float, other: Float) -> Float:
    """one / other, and NaN where the other is 0."""
    one, other = np.broadcast_arrays(one, other)
    quotient = np.full(one.shape, np.nan)
    np.divide(one, other, out=quotient, where=other != 0)
    return quotient


def defined_mean(values: Float) -> Float:
    """The mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


def paired(difference: Estimate) -> float | None:
    """The two-sided p-value of a difference of 0; None where no two groups differ in it, so that nothing can be said.

    2 P(T ≥ |d| / se) with se the standard deviation of d over the resamples and T Student's with G − 1 degrees of
    freedom: the pairs cluster bootstrap-se of Cameron, Gelbach & Miller 2008, with T instead of a normal variable for
    where groups are few. Unlike a count of resamples it has no smallest value, which Holm's factor would lift beyond
    any level.
    """
    if np.isnan(difference.value) or difference.groups < 2:
        return None
    drawn = difference.values[1:][~np.isnan(difference.values[1:])]
    error = float(drawn.std(ddof=1)) if len(drawn) > 1 else 0.0
    if error < NOTHING:
        return 1.0 if abs(difference.value) < NOTHING and len(drawn) > 1 else None
    return float(2 * stdtr(difference.groups - 1, -abs(difference.value) / error))


def mcnemar(ours: Mask, theirs: Mask) -> float:
    """The exact two-sided p-value that both are right equally often, from the rows where one alone is.

    McNemar 1947, doi:10.1007/BF02295996, by the binomial distribution, as scipy.stats.binomtest has it. It takes rows
    for independent: where a group has several, it finds too much, and `paired` is the test to believe.
    """
    sides = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return min(1.0, 2 * float(bdtr(min(sides), sum(sides), 0.5)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p-values of a family, corrected so that any of them is below a level by chance no more often than that.

    Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure. Tests without a value are no part of the family.
    """
    # From the smallest, each times the number of tests not yet passed, and never below the one before.
    ordered = sorted((value, index) for index, value in enumerate(values) if value is not None)
    corrected = np.maximum.accumulate([min(1.0, (len(ordered) - i) * value) for i, (value, _) in enumerate(ordered)])
    by_index = {index: float(value) for (_, index), value in zip(ordered, corrected, strict=True)}
    return [by_index.get(index) for index in range(len(values))]


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation, least and greatest; None where one is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "sd": None, "min": None, "max": None, "values": list(values)}
    return {
        "mean": float(np.mean(known)),
        "sd": float(np.std(known, ddof=1)),
        "min": min(known),
        "max": max(known),
        "values": known,
    }
