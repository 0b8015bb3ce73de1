"""Readers beside a model where readers and cases are both drawn from many: Obuchowski and Rockette's analysis.

Each reader j has a figure θj, such as accuracy; with one model that all are held against, ψj = θj − θ(model). The mean
of either over J readers has the variance (MS + J max(cov, 0)) / J: MS is the variance of the figures over readers, and
cov the covariance of two readers' figures, mean over pairs, that the cases which they share give them. Student's t has
(MS + J max(cov, 0))² / (MS² / (J − 1)) degrees of freedom (Obuchowski & Rockette 1995, doi:10.1080/03610919508813243;
Hillis 2007, doi:10.1002/sim.2532; held against one that has no readers as Chakraborty 2017, Observer Performance
Methods for Diagnostic Imaging, has it for CAD). The covariance is that of the delete-one jackknife over groups, which
takes a patient whole, and degrees of freedom are at most the groups less one, since it is no better known than that.

Few readers whose figures are alike by chance would make an interval narrower than their cases allow. So it is never
narrower than the jackknife's of the same mean, which takes the readers for all that there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from skinvl.score.stats import ALIKE, EXPANDED, FEWEST, LEVEL, NOTHING, Float, Int, Mask

METHOD = "Obuchowski-Rockette"
FEWEST_READERS = 2


@dataclass(frozen=True, slots=True)
class ReaderMean:
    """The mean over readers of a figure, or of its difference from the model's.

    Attributes:
        error: the standard error, readers and groups both random; NaN where it cannot be had.
        df: Student's degrees of freedom.
        bounds: the least and the greatest that the value can be.
    """

    value: float
    error: float
    df: float
    readers: int
    n: int
    groups: int
    bounds: tuple[float, float]

    def number(self) -> dict[str, Any]:
        """As a Number of scores.json, with the readers; and the p-value that the value is 0."""
        common = {"n": self.n, "groups": self.groups, "unscored": 0, "readers": self.readers}
        known = {"value": None if np.isnan(self.value) else self.value, "low": None, "high": None}
        if np.isnan(self.value):
            return {**known, "method": None, "p": None, **common}
        if self.readers < FEWEST_READERS:
            return {**known, "method": f"too few readers ({self.readers})", "p": None, **common}
        if self.groups < FEWEST[EXPANDED]:
            return {**known, "method": f"too few groups ({self.groups})", "p": None, **common}
        if self.error < NOTHING:
            return {**known, "method": ALIKE, "p": None, **common}
        half = float(stdtrit(self.df, (1 + LEVEL) / 2)) * self.error
        low, high = max(self.value - half, self.bounds[0]), min(self.value + half, self.bounds[1])
        p = float(2 * stdtr(self.df, -abs(self.value) / self.error))
        return {"value": self.value, "low": low, "high": high, "method": METHOD, "p": p, **common}


def readers_alone(right: Mask, rows: Mask, of: Int) -> ReaderMean:
    """The mean share of the rows that readers have right.

    Args:
        right: bool[N, J].
        rows: bool[N], those that count: all that were read for accuracy, the malignant ones for sensitivity.
        of: int[N], the number of each row's group.
    """
    return _mean(right[rows].astype(np.float64), of[rows], (0.0, 1.0))


def against_model(right: Mask, model: Mask, rows: Mask, of: Int) -> ReaderMean:
    """The model's share right, bool[N], minus the readers' mean, of the same rows."""
    return _mean(model[rows, None] - right[rows].astype(np.float64), of[rows], (-1.0, 1.0))


def _mean(values: Float, of: Int, bounds: tuple[float, float]) -> ReaderMean:
    """Of values float[N, J], whose means over rows are the figures."""
    n, readers = values.shape
    _, group = np.unique(of, return_inverse=True)
    sizes = np.bincount(group)
    groups = len(sizes)
    if not n:
        return ReaderMean(np.nan, np.nan, np.nan, readers, 0, 0, bounds)
    figures = values.mean(axis=0)
    value = float(figures.mean())
    if groups < 2 or readers < FEWEST_READERS:
        return ReaderMean(value, np.nan, np.nan, readers, n, groups, bounds)

    # The figures without each group, and from these the covariance of any two readers.
    sums = np.zeros((groups, readers))
    np.add.at(sums, group, values)
    without = (sums.sum(axis=0) - sums) / (n - sizes)[:, None]
    off = without - without.mean(axis=0)
    covariance = (groups - 1) / groups * off.T @ off
    shared = float((covariance.sum() - np.trace(covariance)) / (readers * (readers - 1)))

    between = float(figures.var(ddof=1))
    total = between + readers * max(shared, 0.0)
    df = float(groups - 1)
    if between > NOTHING**2:
        df = min(df, total**2 / (between**2 / (readers - 1)))

    # The wider of both: readers random, or taken as they are.
    either = [(float(np.sqrt(total / readers)), df), (float(np.sqrt(covariance.sum())) / readers, float(groups - 1))]
    error, df = max(either, key=lambda of: of[0] * stdtrit(of[1], (1 + LEVEL) / 2))
    return ReaderMean(value, error, df, readers, n, groups, bounds)
