"""DeLong's test of two areas under ROC curves over the same rows, beside which groups are not taken whole.

DeLong, DeLong & Clarke-Pearson 1988, doi:10.2307/2531595: the area is the mean over pairs of a positive and a negative
of whether the positive scores higher, a tie counting half. Of each positive the mean over negatives, and of each
negative that over positives, are its structural components, whose covariances over m positives and n negatives are
S10 and S01; those of the areas are S10 / m + S01 / n. The components come from midranks (Sun & Xu 2014,
doi:10.1109/LSP.2014.2337313), in O(N log N). Rows are taken for independent: where a group has several, it finds too
much, and the paired bootstrap is the test to believe.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

from skinvl.score.stats import NOTHING, Float, Mask

FEWEST = 2  # rows of either kind


def covariance(scores: Float, positive: Mask) -> tuple[Float, Float]:
    """The areas float[K] of K scores float[K, N] of the same rows, and their covariance float[K, K].

    NaN with fewer than two positives or negatives.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < FEWEST:
        nothing = np.full(len(scores), np.nan)
        return nothing, np.full((len(scores), len(scores)), np.nan)
    every = rankdata(scores, axis=1)
    of_positives = (every[:, positive] - rankdata(scores[:, positive], axis=1)) / n
    of_negatives = 1 - (every[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m
    spread = np.atleast_2d(np.cov(of_positives)) / m + np.atleast_2d(np.cov(of_negatives)) / n
    return of_positives.mean(axis=1), spread


def paired(ours: Float, theirs: Float, positive: Mask) -> float | None:
    """The two-sided p-value that two scores float[N] of the same rows have one area; None where nothing can be said."""
    areas, spread = covariance(np.stack([ours, theirs]), positive)
    variance = float(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    if np.isnan(variance):
        return None
    difference = abs(float(areas[0] - areas[1]))
    if variance < NOTHING**2:
        return 1.0 if difference < NOTHING else None
    return float(2 * ndtr(-difference / np.sqrt(variance)))
