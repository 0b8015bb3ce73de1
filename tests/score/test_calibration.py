"""Calibration of malignancy: scipy's maximum of the likelihood, a known miscalibration, groups, and chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

from skinvl.data.example import Facts
from skinvl.score import calibration, curves
from skinvl.score.operating import Malignancy
from skinvl.score.predictions import Classified
from skinvl.score.stats import Bootstrap, Float, Int


def drawn(seed: int, groups: int = 150, slope: float = 0.5, shift: float = -0.4) -> tuple[Malignancy, Int]:
    """Probabilities that are too extreme for a slope below 1, and the group of each row; three rows of a group."""
    draw = np.random.default_rng(seed)
    of = np.repeat(np.arange(groups), 3)
    odds = draw.normal(size=groups)[of] * 1.5 + draw.normal(size=len(of))
    malignant = draw.random(len(of)) < expit(shift + slope * odds)
    return Malignancy(expit(odds), malignant, np.ones(len(of), np.bool_)), of


def by_scipy(design: Float, y: Float, offset: Float) -> Float:
    """The coefficients of the greatest likelihood, by a general optimiser."""

    def loss(found: Float) -> float:
        odds = design @ found + offset
        return -float(np.sum(y * log_expit(odds) + (1 - y) * log_expit(-odds)))

    found: Float = minimize(loss, np.zeros(design.shape[1]), method="BFGS", options={"gtol": 1e-8}).x
    return found


@pytest.mark.parametrize("seed", range(3))
def test_intercept_and_slope_are_those_of_the_greatest_likelihood(seed: int) -> None:
    test, of = drawn(seed)
    found = calibration.numbers(test, test.rows, Bootstrap(of.tolist(), 100, 0))
    y, odds = test.malignant.astype(np.float64), logit(test.probability)
    design = np.stack([np.ones(len(y)), odds], axis=1)
    assert found["slope"]["value"] == pytest.approx(by_scipy(design, y, np.zeros(len(y)))[1], abs=1e-4)
    assert found["intercept"]["value"] == pytest.approx(by_scipy(design[:, :1], y, odds)[0], abs=1e-4)
    assert found["observed_less_foretold"]["value"] == pytest.approx(y.mean() - test.probability.mean())
    # The twin: the intercept beside a free slope is another number.
    assert abs(by_scipy(design, y, np.zeros(len(y)))[0] - found["intercept"]["value"]) > 0.02


def test_variance_takes_groups_whole() -> None:
    """By the sandwich written out, and nearly that of the resampled groups."""
    test, of = drawn(1, groups=80)
    draws = Bootstrap(of.tolist(), 100, 0)
    found = calibration.numbers(test, test.rows, draws)["slope"]
    design = np.stack([np.ones(len(of)), logit(test.probability)], axis=1)
    y = test.malignant.astype(np.float64)
    coefficients = calibration.fit(design, y, np.zeros(len(y)))
    assert coefficients is not None
    p = expit(design @ coefficients)
    bread = np.linalg.inv(sum(np.outer(row, row) * q * (1 - q) for row, q in zip(design, p, strict=True)))
    meat = np.zeros((2, 2))
    for group in range(80):
        score = (design * (y - p)[:, None])[of == group].sum(axis=0)
        meat += np.outer(score, score)
    error = np.sqrt((bread @ meat @ bread)[1, 1] * 80 / 79)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.9905 * error, rel=1e-3)  # t with 79 degrees
    resampled = []
    for seed in range(200):
        picked = np.random.default_rng(seed).integers(0, 80, 80)
        rows = np.concatenate([np.flatnonzero(of == group) for group in picked])
        again = calibration.fit(design[rows], y[rows], np.zeros(len(rows)))
        resampled.append(np.nan if again is None else again[1])
    assert np.nanstd(resampled) == pytest.approx(error, rel=0.25)


def test_intervals_hold_a_known_miscalibration() -> None:
    held, widths = 0, []
    for seed in range(200):
        test, of = drawn(seed, groups=50)
        found = calibration.numbers(test, test.rows, Bootstrap(of.tolist(), 0, 0))["slope"]
        held += found["low"] <= 0.5 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert 0.9 <= held / 200 <= 1.0
    assert np.median(widths) < 1.0


def test_where_there_is_no_greatest_likelihood() -> None:
    apart = Malignancy(np.linspace(0.01, 0.99, 40), np.arange(40) >= 20, np.ones(40, np.bool_))
    found = calibration.numbers(apart, apart.rows, Bootstrap(list(range(40)), 0, 0))
    assert found["slope"]["value"] is None
    assert found["intercept"]["value"] is not None
    alone = Malignancy(apart.probability, np.zeros(40, np.bool_), apart.rows)
    found = calibration.numbers(alone, alone.rows, Bootstrap(list(range(40)), 0, 0))
    assert found["intercept"]["value"] is None
    few = calibration.numbers(apart, np.arange(40) % 8 == 0, Bootstrap(list(range(40)), 0, 0))
    assert few["intercept"]["method"] == "too few groups (5)"
    # A probability of 0 or 1 is one as far as it can be told apart from it.
    sure = Malignancy(np.array([0.0, 1.0] * 20), np.arange(40) % 3 == 0, apart.rows)
    assert calibration.numbers(sure, sure.rows, Bootstrap(list(range(40)), 0, 0))["slope"]["value"] is not None


def test_ece_by_chance_is_that_of_models_that_are_calibrated() -> None:
    draw = np.random.default_rng(5)
    confidence = draw.uniform(0.4, 1, 300)
    known = calibration.by_chance(confidence)
    assert known is not None
    errors = []
    for _ in range(300):
        off = (draw.random(300) < confidence) - confidence
        errors.append(sum(abs(off[curves.bins(confidence) == b].sum()) for b in range(curves.BINS)) / 300)
    assert known["mean"] == pytest.approx(np.mean(errors), rel=0.06)
    assert known["p95"] == pytest.approx(np.quantile(errors, 0.95), rel=0.1)
    more = calibration.by_chance(np.tile(confidence, 16))
    assert more is not None
    assert more["mean"] == pytest.approx(known["mean"] / 4, rel=0.15)  # as 1 / √n
    assert calibration.by_chance(confidence[:0]) is None


def test_the_smooth_curve_follows_what_is_true() -> None:
    test, _ = drawn(3, groups=4000, slope=0.5, shift=0.0)
    points = calibration.smooth(test.probability, test.malignant)
    inner = [point for point in points if 0.03 < point["foretold"] < 0.97]
    truth = [expit(0.5 * logit(point["foretold"])) for point in inner]
    assert len(inner) > 20
    assert [point["observed"] for point in inner] == pytest.approx(truth, abs=0.06)
    assert max(abs(point["observed"] - point["foretold"]) for point in inner) > 0.1  # and not the diagonal
    assert calibration.smooth(np.full(30, 0.5), np.arange(30) > 3) == []


def test_subgroups_have_their_own_where_they_are_large_enough() -> None:
    test, of = drawn(2)
    worse = of % 2 == 1
    moved = Malignancy(np.where(worse, expit(3 * logit(test.probability)), test.probability), test.malignant, test.rows)
    facts = [
        Facts(sex="male" if flag else "female", age=200.0 if group == 7 else None)
        for flag, group in zip(worse, of, strict=True)
    ]
    rows = [
        Classified(str(n), "s", str(g), (), f, None, None, "", None, None, None)
        for n, (g, f) in enumerate(zip(of, facts, strict=True))
    ]
    found = calibration.block(moved, rows, moved.probability, Bootstrap(of.tolist(), 0, 0))
    assert found["by"].keys() == {"sex", "source"}
    slopes = {value: number["slope"]["value"] for value, number in found["by"]["sex"].items()}
    assert slopes["male"] == pytest.approx(slopes["female"] / 3, rel=0.4)
    assert found["by"]["source"]["s"]["slope"] == found["slope"]
