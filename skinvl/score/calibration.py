"""Calibration of the probability of malignancy: in the large, intercept and slope, and what ECE is by chance.

With y whether a lesion is malignant and l the logit of the probability that it was given, logistic regression of y on l
has the calibration slope (1: neither too extreme, below 1, nor too timid), and with l as an offset the calibration
intercept, which is calibration in the large (0: as many malignant lesions as were foretold). Cox 1958,
doi:10.1093/biomet/45.3-4.562; Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7. Their variance takes groups
whole: the sandwich over groups with G / (G − 1) (Liang & Zeger 1986, doi:10.1093/biomet/73.1.13), and Student's t with
G − 1 degrees of freedom.

The expected calibration error of so few rows is not 0 for a model that is calibrated: `by_chance` draws what is right
from the confidences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit, stdtrit

from skinvl.score import curves, slices
from skinvl.score.operating import Malignancy
from skinvl.score.slices import Sliced
from skinvl.score.stats import EXPANDED, FEWEST, LEVEL, Bootstrap, Float, Int, Mask, ratio

SANDWICH = "sandwich"  # the method of an interval
SURE = 1e-12  # a probability is at least so far from 0 and from 1: logits beyond are rounding
STEPS, ENOUGH = 60, 1e-10  # of Newton's method, and the change at which it ends
DRAWS = 200  # data sets whose labels are drawn from the probabilities
KNOTS = 50  # points of the smooth curve
BANDWIDTH = 0.2  # share of the rows that a point of it sees
FEWEST_ROWS, GROUPS = 50, 20  # of a subgroup: two coefficients of fewer say nothing


def block(test: Malignancy, rows: Sequence[Sliced], confidence: Float, draws: Bootstrap) -> dict[str, Any]:
    """The calibration of a set, and by value of the fields that its rows know, where they are enough.

    Args:
        confidence: float[N], the probability of the predicted class, whose ECE by chance is drawn.
    """
    by: dict[str, dict[str, Any]] = {}
    for field in slices.known(rows):
        for value, own in slices.values(rows, field).items():
            counted = own & test.rows
            if value != slices.UNKNOWN and counted.sum() >= FEWEST_ROWS and len(np.unique(draws.of[counted])) >= GROUPS:
                by.setdefault(field, {})[value] = numbers(test, own, draws)
    return {
        **numbers(test, np.ones(len(test.rows), np.bool_), draws),
        "ece_by_chance": by_chance(confidence[test.rows]),
        "curve": smooth(test.probability[test.rows], test.malignant[test.rows]),
        "by": by,
    }


def numbers(test: Malignancy, own: Mask, draws: Bootstrap) -> dict[str, Any]:
    """Observed less foretold share of malignant rows, intercept and slope of some of the rows, as Numbers."""
    counted = test.rows & own
    y, p, of = test.malignant[counted].astype(np.float64), test.probability[counted], draws.of[counted]
    odds = logit(np.clip(p, SURE, 1 - SURE))
    ones = np.ones(len(y))
    sums = draws.sums(np.stack([test.malignant - test.probability, np.ones(len(own))], axis=1), counted)
    large = draws.estimate(ratio(sums[:, 0], sums[:, 1]), counted).number()
    intercept = _number(fit(ones[:, None], y, odds), ones[:, None], y, odds, of, 0)
    design = np.stack([ones, odds], axis=1)
    slope = _number(fit(design, y, np.zeros(len(y))), design, y, np.zeros(len(y)), of, 1)
    return {"observed_less_foretold": large, "intercept": intercept, "slope": slope}


def fit(design: Float, y: Float, offset: Float) -> Float | None:
    """float[K]: the coefficients of a logistic regression of y on a design float[N, K], by Newton's method.

    None where there is no finite maximum of the likelihood: one class alone, or classes that are told apart whole.
    """
    if not 0 < y.sum() < len(y):
        return None
    found = np.zeros(design.shape[1])
    for _ in range(STEPS):
        p = expit(design @ found + offset)
        information = design.T @ (design * (p * (1 - p))[:, None])
        if np.linalg.cond(information) > 1 / np.finfo(np.float64).eps:
            return None
        step = np.linalg.solve(information, design.T @ (y - p))
        found = found + np.clip(step, -2, 2)  # a long step may overshoot
        if np.abs(step).max() < ENOUGH:
            return np.asarray(found, np.float64)
    return None


def _number(found: Float | None, design: Float, y: Float, offset: Float, of: Int, place: int) -> dict[str, Any]:
    """A coefficient as a Number, its interval by the sandwich over groups."""
    groups = len(np.unique(of))
    common = {"n": len(y), "groups": groups, "unscored": 0}
    nothing = {"low": None, "high": None, "method": None}
    if found is None:
        return {"value": None, **nothing, **common}
    if groups < FEWEST[EXPANDED]:
        return {"value": float(found[place]), **nothing, "method": f"too few groups ({groups})", **common}
    p = expit(design @ found + offset)
    bread = np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]))
    _, group = np.unique(of, return_inverse=True)
    scores = np.zeros((groups, design.shape[1]))
    np.add.at(scores, group, design * (y - p)[:, None])
    variance = (bread @ scores.T @ scores @ bread)[place, place] * groups / (groups - 1)
    half = float(stdtrit(groups - 1, (1 + LEVEL) / 2) * np.sqrt(variance))
    value = float(found[place])
    return {"value": value, "low": value - half, "high": value + half, "method": SANDWICH, **common}


def by_chance(confidence: Float) -> dict[str, Any] | None:
    """The ECE of rows whose predictions are right as often as they are sure: its mean and its 95th percentile."""
    if not len(confidence):
        return None
    bin_of = curves.bins(confidence)
    generator = np.random.default_rng(0)
    errors = np.empty(DRAWS)
    for number in range(DRAWS):
        off = (generator.random(len(confidence)) < confidence) - confidence
        errors[number] = np.abs(np.bincount(bin_of, off, curves.BINS)).sum() / len(confidence)
    return {"mean": float(errors.mean()), "p95": float(np.quantile(errors, 0.95)), "draws": DRAWS}


def smooth(probability: Float, malignant: Mask) -> list[dict[str, float]]:
    """The smoothed share of malignant rows over the probability: at most KNOTS points of a local linear regression.

    Cleveland 1979, doi:10.1080/01621459.1979.10481038, with tricube weights of the nearest BANDWIDTH of the rows and no
    robust steps, as calibration curves have it (Austin & Steyerberg 2014, doi:10.1002/sim.5941).
    """
    order = np.argsort(probability, kind="stable")
    x, y = probability[order], malignant[order].astype(np.float64)
    near = max(3, round(BANDWIDTH * len(x)))
    if len(x) < near or len(np.unique(x)) < 3:
        return []
    points = []
    for at in np.unique(np.quantile(x, np.linspace(0, 1, KNOTS))):
        # The nearest rows stand side by side.
        start = int(np.clip(np.searchsorted(x, at) - near // 2, 0, len(x) - near))
        while start > 0 and at - x[start - 1] < x[start + near - 1] - at:
            start -= 1
        while start + near < len(x) and x[start + near] - at < at - x[start]:
            start += 1
        own, seen = x[start : start + near] - at, y[start : start + near]
        widest = max(float(np.abs(own).max()), SURE)
        weights = (1 - np.minimum(np.abs(own) / widest, 1.0) ** 3) ** 3
        points.append({"foretold": float(at), "observed": _local(own, seen, weights)})
    return points


def _local(x: Float, y: Float, weights: Float) -> float:
    """The value at 0 of the line of weighted least squares, within [0, 1]."""
    total, mean_x = weights.sum(), float((weights * x).sum() / weights.sum())
    mean_y = float((weights * y).sum() / total)
    spread = float((weights * (x - mean_x) ** 2).sum())
    slope = 0.0 if spread < SURE else float((weights * (x - mean_x) * (y - mean_y)).sum() / spread)
    return float(np.clip(mean_y - slope * mean_x, 0.0, 1.0))
