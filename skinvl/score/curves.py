"""What the order and the size of confidences tell: areas under curves, calibration, abstention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import log_softmax

from skinvl.score.stats import Bootstrap, Float, Mask, ratio

Int = NDArray[np.int64]

BINS = 15
POINTS = 100  # of a risk-coverage curve
COVERAGE = 0.8  # share of the validation rows that the threshold answers
CELLS = 4_000_000  # weights held at a time


def areas(scores: Float, positive: Mask, bootstrap: Bootstrap, rows: Mask) -> tuple[Float, Float]:
    """float[1 + R] twice: the areas under the ROC curve and, as average precision, under precision over recall.

    Of the rows; NaN in resamples without a positive or without a negative, where nothing can be told apart. Rows of
    equal score pass the threshold together, as in scikit-learn's roc_auc_score and average_precision_score. Only
    thresholds that let a positive pass matter, so the negatives between two such are summed at once, by one sparse
    product for all resamples.
    """
    # Rows from the highest score down, in runs of equal scores.
    counted = np.flatnonzero(rows)
    order, ends = _order(scores[counted])
    groups, hit = bootstrap.of[counted[order]], positive[counted[order]]
    run = np.searchsorted(ends, np.arange(len(order)))  # of equal scores, for each row

    # A step is some negatives alone, then a run that holds positives: how many rows of each group it has of each kind.
    mixed = np.bincount(run[hit], minlength=len(ends)) > 0
    step: Int = (np.cumsum(mixed) - mixed)[run]
    tied = mixed[run]
    steps = int(mixed.sum()) + 1
    alone, beside, positives = (
        csr_array((np.ones(int(kind.sum()), np.int32), (step[kind], groups[kind])), (steps, len(bootstrap.counts)))
        for kind in (~tied, tied & ~hit, hit)
    )

    roc, precision = np.full(bootstrap.size, np.nan), np.full(bootstrap.size, np.nan)
    for columns in _columns(bootstrap, max(steps, len(bootstrap.counts))):
        weights = bootstrap.counts[:, columns].astype(np.int32)
        # float[S, T] each, by resample and step: negatives alone, negatives beside positives, positives.
        below, level, new = (
            np.ascontiguousarray((kind @ weights).T, np.float64) for kind in (alone, beside, positives)
        )
        hits, falls = np.cumsum(new, axis=1), np.cumsum(below + level, axis=1)

        # Pairs in which the positive stands above the negative, a tie counting half.
        above = hits - new
        wins = np.einsum("st,st->s", below, above) + np.einsum("st,st->s", level, above + new / 2)
        roc[columns] = ratio(wins, hits[:, -1] * falls[:, -1])

        # The precision at each step, weighted by the positives that it adds.
        share = np.divide(hits, hits + falls, out=np.zeros_like(hits), where=new > 0)
        mean_precision = ratio(np.einsum("st,st->s", new, share), hits[:, -1])
        precision[columns] = np.where(falls[:, -1] > 0, mean_precision, np.nan)
    return roc, precision


def aurc(confidence: Float, wrong: Mask, bootstrap: Bootstrap, rows: Mask) -> Float:
    """float[1 + R]: the mean risk over all coverages; lower is better.

    Geifman & El-Yaniv 2017, arXiv:1705.08500; the area as in Geifman, Uziel & El-Yaniv 2019, arXiv:1805.08206. Rows of
    equal confidence are answered together.
    """
    counted = np.flatnonzero(rows)
    mean_risks = np.full(bootstrap.size, np.nan)
    if not len(counted):
        return mean_risks
    order, ends = _order(confidence[counted])
    groups, is_wrong = bootstrap.of[counted[order]], wrong[counted[order]]
    for columns in _columns(bootstrap, max(len(order), len(bootstrap.counts))):
        # int[S, T], by resample and threshold: rows answered, and those of them that are wrong.
        weights = np.ascontiguousarray(bootstrap.counts[:, columns].T)[:, groups]
        answered = np.cumsum(weights, axis=1, dtype=np.int32)[:, ends]
        errors = np.cumsum(weights * is_wrong, axis=1, dtype=np.int32)[:, ends]

        risk = errors / np.maximum(answered, 1)
        area = np.einsum("st,st->s", np.diff(answered, axis=1, prepend=0), risk)
        mean_risks[columns] = ratio(area, answered[:, -1].astype(np.float64))
    return mean_risks


def risk_coverage(confidence: Float, wrong: Mask) -> list[dict[str, float]]:
    """At most 101 points: share of the rows answered, of those the share wrong, and the least confidence answered."""
    if not len(confidence):
        return []
    order, ends = _order(confidence)
    risks = np.cumsum(wrong[order])[ends] / (ends + 1)
    steps = np.linspace(0, 1, POINTS + 1) * len(order)
    shown = np.unique(np.searchsorted(ends + 1, steps).clip(0, len(ends) - 1))
    return [
        {
            "coverage": float(ends[run] + 1) / len(order),
            "risk": float(risks[run]),
            "threshold": float(confidence[order[ends[run]]]),
        }
        for run in shown
    ]


def threshold(confidence: Float) -> float:
    """The confidence from which on COVERAGE of the rows, or a little more, are answered.

    A quantile of the validation rows, as Geifman & El-Yaniv 2019, arXiv:1901.09192, calibrate coverage.
    """
    return float(np.quantile(confidence, 1 - COVERAGE, method="lower"))


def temperature(scores: Float, truth: Int) -> float:
    """The T > 0 at which softmax(scores / T) gives the true classes the highest likelihood: scores float[N, C].

    Guo et al. 2017, arXiv:1706.04599; looked for between exp(−5) and exp(5).
    """

    def loss(exponent: float) -> float:
        return -float(log_softmax(scores / np.exp(exponent), axis=1)[np.arange(len(truth)), truth].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x))


def bins(confidence: Float) -> Int:
    """int[N]: the bin of each confidence, of BINS equally wide ones from 0 to 1 that each hold their upper end."""
    return (np.ceil(confidence * BINS) - 1).clip(0, BINS - 1).astype(np.int64)


def reliability(confidence: Float, right: Mask) -> list[dict[str, Any]]:
    """Each bin with its mean confidence, the share that is right, and the rows; None in an empty one."""
    bin_of = bins(confidence)
    counts = np.bincount(bin_of, minlength=BINS)
    sums = [np.bincount(bin_of, values, BINS) for values in (confidence, right.astype(np.float64))]
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "confidence": float(sums[0][number] / count) if count else None,
            "accuracy": float(sums[1][number] / count) if count else None,
            "n": int(count),
        }
        for number, count in enumerate(counts)
    ]


def _order(scores: Float) -> tuple[Int, Int]:
    """int[N] and int[T]: the rows from the highest score down, and the last row of each run of equal scores."""
    order = np.argsort(-scores, kind="stable")
    return order, np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)


def _columns(bootstrap: Bootstrap, rows: int) -> Iterator[slice]:
    """The resamples, as many at a time as CELLS allow."""
    width = max(1, CELLS // max(rows, 1))
    for start in range(0, bootstrap.size, width):
        yield slice(start, start + width)
