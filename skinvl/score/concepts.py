"""How well scores tell images that show a concept from those that do not, where that is known of both.

What is not known of an image is missing: it is no negative. A concept that too few images are known to show, or not to
show, has no number; the mean over concepts is of those that have one, each counting alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from skinvl.score import curves
from skinvl.score.stats import Bootstrap, Estimate, Float, Int, Mask, defined_mean

Labels = NDArray[np.int8]
PRESENT, ABSENT, MISSING = 1, 0, -1
FEWEST = 10  # images that show a concept, and that do not; fewer have no number


@dataclass(frozen=True, slots=True)
class ConceptArea:
    """The area under the ROC curve of one concept's scores; None where too little is known."""

    positives: int
    negatives: int
    missing: int  # images of which it is not known
    rows: Mask  # bool[N], those that count
    estimate: Estimate | None

    @property
    def prevalence(self) -> float | None:
        """The share of the images that show it, of those of which it is known."""
        known = self.positives + self.negatives
        return self.positives / known if known else None


def area(scores: Float, labels: Labels, draws: Bootstrap) -> ConceptArea:
    """The area of scores float[N] for labels int8[N]; a score of NaN is of an image that could not be scored."""
    known, scored = labels != MISSING, np.isfinite(scores)
    rows, positive = known & scored, labels == PRESENT
    counts = [int((rows & positive).sum()), int((rows & ~positive).sum())]
    estimate = None
    if min(counts) >= FEWEST:
        roc, _ = curves.areas(np.where(scored, scores, 0.0), positive, draws, rows)
        estimate = draws.estimate(roc, rows, int((known & ~scored).sum()))
    return ConceptArea(counts[0], counts[1], int((~known).sum()), rows, estimate)


def macro(areas: Sequence[ConceptArea], draws: Bootstrap) -> tuple[Estimate | None, int]:
    """The unweighted mean over the concepts that have a number, resample by resample, and how many these are.

    In a resample without a positive, or a negative, of a concept the mean is over the others.
    """
    usable = [(one.estimate, one.rows) for one in areas if one.estimate is not None]
    if not usable:
        return None, 0
    values = defined_mean(np.stack([estimate.values for estimate, _ in usable], axis=1))
    rows = np.logical_or.reduce([rows for _, rows in usable])
    return draws.estimate(values, rows, max(estimate.unscored for estimate, _ in usable)), len(usable)


def unit_areas(units: Float, labels: Labels, strata: Int | None = None) -> Float:
    """float[K]: the area of each column of units float[N, K] for labels int8[N]; NaN where too little is known.

    Args:
        strata: int[N]; pairs are compared within a stratum alone, such as a class, so that a unit of the class is not
            taken for one of a concept that goes with it. None is one stratum.
    """
    strata = np.zeros(len(labels), np.int64) if strata is None else strata
    wins, pairs, counts = np.zeros(units.shape[1]), 0, np.zeros(2, np.int64)
    for stratum in np.unique(strata[labels != MISSING]):
        rows = (strata == stratum) & (labels != MISSING)
        positive = labels[rows] == PRESENT
        ones, zeros = int(positive.sum()), int((~positive).sum())
        if ones and zeros:
            ranks = rankdata(units[rows], axis=0)
            wins += ranks[positive].sum(axis=0) - ones * (ones + 1) / 2
            pairs += ones * zeros
            counts += (ones, zeros)
    return wins / pairs if counts.min() >= FEWEST else np.full(units.shape[1], np.nan)
