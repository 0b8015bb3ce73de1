"""Intervals cover what they should, tests reject as often as they should, and areas are scikit-learn's."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import fractional_matrix_power
from scipy.sparse import csr_array
from scipy.stats import binomtest, norm, t
from sklearn.metrics import average_precision_score, roc_auc_score

from skinvl.score import curves, stats
from skinvl.score.stats import Bootstrap, Estimate, Float, Mask


def _benchmark() -> Any:
    """The script that measures coverage: its settings are what the tests hold the intervals to."""
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("benchmarks_coverage", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


coverage = _benchmark()


def everything(count: int) -> Mask:
    return np.ones(count, np.bool_)


def repeated(draws: Bootstrap, column: int) -> NDArray[np.int64]:
    """The rows of a resample, each as often as its group was drawn."""
    return np.repeat(np.arange(len(draws.of)), draws.counts[draws.of, column])


def test_a_resample_takes_whole_groups_and_as_many_as_there_are() -> None:
    draws = Bootstrap(["a", "a", "b", "c", "c", "c"], 50, seed=3)
    assert draws.counts.shape == (3, 51)
    assert (draws.counts[:, 0] == 1).all()
    assert (draws.counts.sum(axis=0) == 3).all()
    assert len({tuple(column) for column in draws.counts.T}) > 5
    assert (Bootstrap(["a", "a", "b", "c", "c", "c"], 50, seed=3).counts == draws.counts).all()
    assert (Bootstrap(["a", "a", "b", "c", "c", "c"], 50, seed=4).counts != draws.counts).any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(-9, 9)), min_size=1, max_size=30))
def test_sums_are_those_of_the_rows_that_were_drawn(rows: list[tuple[int, bool, int]]) -> None:
    draws = Bootstrap([group for group, _, _ in rows], 20, seed=1)
    kept = np.array([flag for _, flag, _ in rows], np.bool_)
    table = np.array([[value, value**2] for _, _, value in rows], np.float64)
    sums = draws.sums(table, kept)
    assert (draws.sums(csr_array(table), kept) == sums).all()
    for column in range(draws.size):
        places = repeated(draws, column)
        assert (table[places[kept[places]]].sum(axis=0) == sums[column]).all()


def test_sums_of_more_groups_than_are_multiplied_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).normal(size=(40, 2))
    draws = Bootstrap(range(40), 5)
    whole = draws.sums(table)
    monkeypatch.setattr(stats, "CHUNK", 7)
    np.testing.assert_allclose(draws.sums(table), whole, rtol=1e-12)


def test_what_cannot_be_had_is_null() -> None:
    one = Bootstrap(["a"] * 8, 100)
    right = np.array([True] * 4 + [False] * 4)
    number = one.share(right, everything(8)).number()
    assert number == {
        **{"value": 0.5, "low": None, "high": None, "method": "too few groups (1)"},
        **{"n": 8, "groups": 1, "unscored": 0},
    }
    nothing = one.share(right, np.zeros(8, np.bool_)).number()
    assert (nothing["value"], nothing["low"], nothing["method"], nothing["n"]) == (None, None, None, 0)
    many = (np.ones(10, np.int64),)
    vanishing = Estimate(np.array([0.5, np.nan, 0.4, 0.6]), many).number()
    assert 0.4 < vanishing["low"] < 0.405
    vanished = Estimate(np.array([0.5, np.nan]), many).number()
    assert (vanished["value"], vanished["low"], vanished["method"]) == (0.5, None, None)


def test_the_interval_is_the_expanded_percentiles_of_the_resamples() -> None:
    draws = Bootstrap([row // 2 for row in range(40)], 200)
    values = np.arange(40) % 3 == 0
    estimate = draws.share(values, everything(40))
    number = replace(estimate, variance=None).number()
    drawn = [values[repeated(draws, column)].mean() for column in range(1, 201)]
    tail = 100 * norm.cdf(-np.sqrt(20 / 19) * t.ppf(0.975, 19))  # Hesterberg's, for 20 groups of equal size
    assert 1 < tail < 2
    assert [number["low"], number["high"]] == pytest.approx(np.percentile(drawn, [tail, 100 - tail]))
    assert number["method"] == "expanded percentile"


def test_the_variance_of_a_share_is_cr2_and_its_degrees_of_freedom_are_satterthwaites() -> None:
    sizes = np.array([16, 2, 2, 3, 2, 7])
    of = np.repeat(np.arange(6), sizes)
    rows = np.random.default_rng(0).random(32)

    # By the definition: residuals of a regression on a constant, corrected by (1 − H)^(−1/2) of each group's block.
    hat = np.full((32, 32), 1 / 32)
    residuals = rows - rows.mean()
    corrections = [fractional_matrix_power(np.eye(n) - hat[:n, :n], -0.5) for n in sizes]
    scores = [
        np.ones(n) @ root @ residuals[of == group]
        for group, (n, root) in enumerate(zip(sizes, corrections, strict=True))
    ]
    sums = np.bincount(of, rows)
    assert stats.cr2(sums, sizes) == pytest.approx(np.square(scores).sum() / 32**2)
    vectors = np.stack(
        [
            (np.eye(32) - hat)[:, of == group] @ root @ np.ones(n) / 32
            for group, (n, root) in enumerate(zip(sizes, corrections, strict=True))
        ]
    )
    moments = vectors @ vectors.T
    assert stats.satterthwaite(sizes) == pytest.approx(np.trace(moments) ** 2 / np.square(moments).sum())

    # Groups without rows change nothing, and what one group alone would be is not known.
    more = np.append(sizes, 0)
    assert stats.satterthwaite(more) == pytest.approx(stats.satterthwaite(sizes))
    assert stats.cr2(np.append(sums, 0.0), more) == pytest.approx(stats.cr2(sums, sizes))


def test_the_interval_of_a_share_is_wilsons() -> None:
    # One row a group is a binomial share, but for Student's quantile and n − 1 in its variance.
    right = np.array([True] * 30 + [False] * 10)
    number = Bootstrap(range(40), 0).share(right, everything(40)).number()
    quantile, n, p = t.ppf(0.975, 39), 39, 0.75
    middle = (p + quantile**2 / (2 * n)) / (1 + quantile**2 / n)
    half = quantile * np.sqrt(p * (1 - p) / n + quantile**2 / (4 * n**2)) / (1 + quantile**2 / n)
    assert [number["low"], number["high"]] == pytest.approx([middle - half, middle + half])
    assert (number["method"], number["n"], number["groups"]) == ("Wilson", 40, 40)


def test_five_patients_all_right_are_no_proof_of_perfection() -> None:
    def number(groups: int, right: list[bool]) -> dict[str, Any]:
        of = [row % groups for row in range(len(right))]
        return Bootstrap(of, 200).share(np.array(right), everything(len(right))).number()

    perfect = number(5, [True] * 60)
    assert (perfect["value"], perfect["high"], perfect["method"]) == (1.0, 1.0, "Wilson")
    quantile = t.ppf(0.975, 4) ** 2
    assert perfect["low"] == pytest.approx(5 / (5 + quantile))  # each group is one row
    assert number(5, [False] * 60)["high"] == pytest.approx(quantile / (5 + quantile))
    half = number(6, [True] * 6 + [False] * 6)  # all groups are alike, and none is all right
    assert 0.1 < half["low"] < 0.5 < half["high"] < 0.9
    few = number(4, [True] * 60)
    assert (few["low"], few["high"], few["method"]) == (None, None, "too few groups (4)")


def test_resamples_that_do_not_differ_give_no_interval_of_width_zero() -> None:
    draws = Bootstrap([row // 2 for row in range(40)], 100)
    side = draws.share(np.arange(40) % 3 == 0, everything(40))
    number = side.minus(side).number()
    assert (number["value"], number["low"], number["high"], number["method"]) == (0.0, None, None, "groups alike")


def test_a_gap_has_the_groups_of_its_smaller_side() -> None:
    right = np.random.default_rng(0).random(60) < 0.5
    few, many = np.arange(60) < 14, np.arange(60) >= 14

    def gap(rows_of_a_group: int, first: Mask) -> dict[str, Any]:
        draws = Bootstrap([row // rows_of_a_group for row in range(60)], 200)
        return draws.share(right, first).gap(draws.share(right, many)).number()

    small = gap(2, few)
    assert (small["n"], small["groups"], small["low"], small["method"]) == (60, 30, None, "too few groups (7)")
    enough = gap(1, few)
    assert enough["method"] == "expanded percentile"
    assert enough["low"] < enough["value"] < enough["high"]
    assert gap(1, everything(60))["groups"] == 60  # a group of both sides counts once


@pytest.mark.parametrize("setting", [one for one in coverage.SETTINGS if one.must], ids=lambda one: one.name)
def test_shares_of_few_groups_are_covered_at_their_level(setting: Any) -> None:
    error = np.sqrt(0.93 * 0.07 / 4_000)
    for groups in (5, 10, 20, 50):
        assert coverage.share(setting, groups, 4_000).covered >= 0.93 - 2 * error


def test_percentiles_of_few_groups_are_covered_too_rarely() -> None:
    """What was: so that the simulation is one that finds it."""
    draw, truth, found = np.random.default_rng(0), 0.9, []
    for seed in range(300):
        of = np.repeat(np.arange(5), [16, 2, 2, 3, 2])
        right = draw.random(25) < draw.beta(4.5, 0.5, 5)[of]
        values = Bootstrap(of.tolist(), 300, seed).share(right, everything(25)).values[1:]
        low, high = np.quantile(values, [0.025, 0.975])
        found.append(low <= truth <= high)
    assert np.mean(found) < 0.8


@pytest.mark.parametrize("name", [name for name in coverage.NUMBERS if "(R)" not in name])
def test_every_other_number_of_the_simulation_has_its_truth(name: str) -> None:
    """Many groups come near it, so that what the table says of few is no mistake of the simulation."""
    generator = np.random.default_rng(3)
    estimate, truth = coverage.NUMBERS[name](generator, 4_000, lambda of: Bootstrap(of.tolist(), 0))
    assert estimate.value == pytest.approx(truth, abs=0.05, rel=0.02)


def clustered(draw: np.random.Generator, groups: int) -> tuple[NDArray[np.int64], Float]:
    """Rows of right and wrong whose chance, half on average, is mostly that of their group; 1 to 5 rows a group."""
    sizes = draw.integers(1, 6, groups)
    of = np.repeat(np.arange(groups), sizes)
    chances = draw.beta(0.5, 0.5, groups)[of]
    return of, (draw.random(len(of)) < chances).astype(np.float64)


def covered(groups: NDArray[np.int64], right: Float, truth: float) -> bool:
    number = Bootstrap(groups.tolist(), 0).share(right > 0, everything(len(right))).number()
    return bool(number["low"] <= truth <= number["high"])


def test_intervals_of_clustered_rows_cover_at_their_level() -> None:
    draw = np.random.default_rng(0)
    found = [covered(*clustered(draw, 150), truth=0.5) for _ in range(1_500)]
    assert abs(np.mean(found) - 0.95) < 0.02  # 3.5 standard errors of this simulation


def test_rows_taken_for_independent_are_covered_too_rarely() -> None:
    draw = np.random.default_rng(0)
    found = []
    for _ in range(300):
        _, right = clustered(draw, 150)
        found.append(covered(np.arange(len(right)), right, 0.5))
    assert np.mean(found) < 0.9


def test_intervals_of_an_area_cover_at_their_level() -> None:
    draw = np.random.default_rng(1)
    truth = norm.cdf(1 / np.sqrt(2 * 2))
    found = []
    for seed in range(1_200):
        of = np.repeat(np.arange(120), draw.integers(1, 4, 120))
        positive = (draw.random(120) < 0.4)[of]
        scores = positive + draw.normal(size=120)[of] + draw.normal(size=len(of))
        values, _ = curves.areas(scores, positive, Bootstrap(of.tolist(), 1_000, seed), everything(len(of)))
        number = Estimate(values, (np.bincount(of),)).number()
        found.append(number["low"] <= truth <= number["high"])
    assert abs(np.mean(found) - 0.95) < 0.02


def test_paired_differences_are_found_as_often_as_their_level_says_and_by_mcnemar_too_often() -> None:
    draw = np.random.default_rng(2)
    covering, rejected, naive = [], [], []
    for seed in range(1_000):
        of = np.repeat(np.arange(60), 4)
        apart = draw.random(60) < 0.5
        better = draw.random(60) < 0.5
        ours, theirs = (apart & better)[of], (apart & ~better)[of]  # all rows of a group differ in one direction
        draws = Bootstrap(of.tolist(), 1_000, seed)
        one, other = (draws.share(side, everything(len(of))) for side in (ours, theirs))
        difference = one.minus(other)
        number = difference.number()
        covering.append(number["low"] <= 0 <= number["high"])
        p = stats.paired(difference)
        assert p is not None
        rejected.append(p < 0.05)
        naive.append(stats.mcnemar(ours, theirs) < 0.05)
    assert abs(np.mean(covering) - 0.95) < 0.02
    assert abs(np.mean(rejected) - 0.05) < 0.02
    assert np.mean(naive) > 0.2


def test_a_difference_without_variation_has_no_p_value() -> None:
    def p(ours: list[bool], theirs: list[bool], groups: list[int]) -> float | None:
        draws = Bootstrap(groups, 100)
        one, other = (draws.share(np.array(side), everything(len(side))) for side in (ours, theirs))
        return stats.paired(one.minus(other))

    assert p([True] * 4, [True] * 4, [0, 1, 2, 3]) == 1.0
    assert p([True] * 4, [False] * 4, [0, 1, 2, 3]) is None
    assert p([True, False], [False, False], [0, 0]) is None
    some = p([True] * 9 + [False], [False] * 5 + [True] * 4 + [False], list(range(10)))
    assert some is not None
    assert 0 < some < 0.05


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(only_ours: int, only_theirs: int, both: int) -> None:
    ours = np.array([True] * only_ours + [False] * only_theirs + [True] * both, np.bool_)
    theirs = np.array([False] * only_ours + [True] * only_theirs + [True] * both, np.bool_)
    apart = only_ours + only_theirs
    expected = binomtest(only_ours, apart, 0.5).pvalue if apart else 1.0
    assert stats.mcnemar(ours, theirs) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 8)), min_size=2, max_size=40),
)
def test_areas_are_those_of_scikit_learn_in_every_resample(rows: list[tuple[int, bool, int]]) -> None:
    scores = np.array([score for score, _, _ in rows]) / 5  # few values, so that there are ties
    positive = np.array([flag for _, flag, _ in rows])
    draws = Bootstrap([group for _, _, group in rows], 10, seed=len(rows))
    roc, precise = curves.areas(scores, positive, draws, everything(len(rows)))
    for column in range(draws.size):
        places = repeated(draws, column)
        if 0 < positive[places].mean() < 1:
            assert precise[column] == pytest.approx(average_precision_score(positive[places], scores[places]))
            assert roc[column] == pytest.approx(roc_auc_score(positive[places], scores[places]))
        else:
            assert np.isnan([precise[column], roc[column]]).all()


def test_areas_take_the_rows_they_are_given() -> None:
    draw = np.random.default_rng(0)
    scores, positive, kept = draw.random(60), draw.random(60) < 0.4, draw.random(60) < 0.7
    roc, precise = curves.areas(scores, positive, Bootstrap(range(60), 0), kept)
    assert roc[0] == pytest.approx(roc_auc_score(positive[kept], scores[kept]))
    assert precise[0] == pytest.approx(average_precision_score(positive[kept], scores[kept]))


def test_areas_do_not_depend_on_how_many_resamples_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    scores, positive = draw.random(50), draw.random(50) < 0.5
    draws = Bootstrap([row // 2 for row in range(50)], 30)

    def all_three() -> tuple[Float, ...]:
        rows = everything(50)
        return *curves.areas(scores, positive, draws, rows), curves.aurc(scores, ~positive, draws, rows)

    whole = all_three()
    monkeypatch.setattr(curves, "CELLS", 200)
    for one, other in zip(whole, all_three(), strict=True):
        assert (one == other).all()


def risks(confidence: Float, wrong: Mask) -> float:
    """The area under the risk-coverage curve by its definition, row by row; equal confidences are answered together."""
    total = 0.0
    for one in confidence:
        total += wrong[confidence >= one].mean()
    return total / len(confidence)


def test_the_area_of_risk_over_coverage() -> None:
    hand = np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, True, False, True])
    draws = Bootstrap(range(4), 0)
    assert curves.aurc(*hand, draws, everything(4))[0] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    draw = np.random.default_rng(5)
    confidence, wrong = draw.integers(0, 9, 50) / 9, draw.random(50) < 0.4
    many = Bootstrap([row // 3 for row in range(50)], 20)
    found = curves.aurc(confidence, wrong, many, everything(50))
    for column in range(many.size):
        places = repeated(many, column)
        assert found[column] == pytest.approx(risks(confidence[places], wrong[places]))


def test_the_curve_of_risk_over_coverage() -> None:
    points = curves.risk_coverage(np.array([0.9, 0.5, 0.5, 0.4]), np.array([False, True, False, True]))
    assert points == [
        {"coverage": 0.25, "risk": 0.0, "threshold": 0.9},
        {"coverage": 0.75, "risk": pytest.approx(1 / 3), "threshold": 0.5},
        {"coverage": 1.0, "risk": 0.5, "threshold": 0.4},
    ]
    draw = np.random.default_rng(0)
    many = curves.risk_coverage(draw.random(5_000), draw.random(5_000) < 0.3)
    assert len(many) <= 101
    assert many[-1]["coverage"] == 1.0
    assert curves.risk_coverage(np.zeros(0), np.zeros(0, np.bool_)) == []


def test_the_threshold_answers_four_in_five_of_the_rows_it_was_fitted_on() -> None:
    for count in (1, 7, 100, 1_001):
        confidence = np.random.default_rng(count).random(count)
        coverage = (confidence >= curves.threshold(confidence)).mean()
        assert 0.8 <= coverage < 0.8 + 2 / count


def test_the_temperature_undoes_what_scaled_the_scores() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(20_000, 4)) * 2
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    true = (chances.cumsum(axis=1) > draw.random((20_000, 1))).argmax(axis=1)
    plain = curves.temperature(scores, true)
    assert plain == pytest.approx(1, abs=0.05)
    assert curves.temperature(3 * scores - 7, true) == pytest.approx(3 * plain, rel=1e-4)

    def loss(temperature: float) -> float:
        scaled = scores / temperature
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(true)), true]))

    assert all(loss(plain) <= loss(plain * other) for other in (0.5, 0.99, 1.01, 2))


def test_reliability_bins_hold_their_upper_end() -> None:
    confidence = np.array([0.0, 1 / 15, 0.067, 0.99, 1.0])
    assert curves.bins(confidence).tolist() == [0, 0, 1, 14, 14]
    found = curves.reliability(confidence, np.array([False, True, True, True, False]))
    assert [one["n"] for one in found] == [2, 1, *[0] * 11, 0, 2]
    assert found[14]["accuracy"] == 0.5
    assert found[14]["confidence"] == pytest.approx(0.995)
    assert found[5]["accuracy"] is None
