"""Operating points and decision curves: formulas by hand, thresholds that test rows cannot move, dcurves' numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from helpers.lesions import drawn, written
from skinvl.data.example import Facts
from skinvl.score import class_report, classification, decision, delong, operating, report, score
from skinvl.score.classification import ClassifiedSet
from skinvl.score.operating import Malignancy
from skinvl.score.stats import Bootstrap, Mask


def points(one: ClassifiedSet, prevalences: tuple[float, ...] = (), resamples: int = 100) -> list[dict[str, Any]]:
    found = operating.block(one, classification.bootstrap(one.rows, resamples, 0), prevalences)
    assert found is not None
    listed: list[dict[str, Any]] = found["points"]
    return listed


def of(probability: list[float], malignant: list[bool]) -> Malignancy:
    return Malignancy(np.array(probability), np.array(malignant), np.ones(len(malignant), np.bool_))


# operating points


def test_a_threshold_lets_as_many_pass_as_its_target_allows() -> None:
    few = of([i / 100 for i in range(1, 41)], [place % 2 == 0 for place in range(40)])  # 20 malignant: .01, .03, …
    found = operating.threshold(few, "sensitivity", 0.9)
    assert found == pytest.approx(0.05)  # 2 of 20 below it
    assert (few.probability[few.malignant] >= found).mean() == 0.9
    found = operating.threshold(few, "specificity", 0.95)
    assert found is not None
    assert (few.probability[~few.malignant] < found).mean() == 0.95
    # Of nineteen malignant ones none may be missed at .95: nothing tells that from a sensitivity of 1.
    nineteen = of(few.probability[1:].tolist(), few.malignant[1:].tolist())
    assert operating.threshold(nineteen, "sensitivity", 0.95) is None
    assert operating.threshold(nineteen, "specificity", 0.95) is not None
    # Rows of one probability pass together, never so that the target is missed.
    tied = of([0.2] * 10 + [0.8] * 10, [True] * 20)
    found = operating.threshold(tied, "sensitivity", 0.9)
    assert found == pytest.approx(0.2)


def test_test_rows_choose_no_threshold(tmp_path: Path) -> None:
    validation = drawn(300, 1)
    one, other = (classification.classified_set(written(tmp_path / str(n), drawn(400, n), validation)) for n in (2, 3))
    assert [point["threshold"] for point in points(one)] == [point["threshold"] for point in points(other)]
    assert points(one)[0]["sensitivity"]["value"] != points(other)[0]["sensitivity"]["value"]
    moved = classification.classified_set(written(tmp_path / "moved", drawn(400, 2), drawn(300, 4)))
    assert points(moved)[0]["threshold"] != points(one)[0]["threshold"]


def test_numbers_are_those_of_a_confusion_matrix_and_of_bayes(tmp_path: Path) -> None:
    one = classification.classified_set(written(tmp_path, drawn(600, 2), drawn(400, 1)))
    test = operating.of_rows(one, "calibrated")
    assert test is not None
    for point in points(one, (0.02, 0.3)):
        called = test.probability >= point["threshold"]
        tn, fp, fn, tp = sk.confusion_matrix(test.malignant, called).ravel()
        se, sp = tp / (tp + fn), tn / (tn + fp)
        assert point["sensitivity"]["value"] == pytest.approx(se)
        assert point["specificity"]["value"] == pytest.approx(sp)
        assert point["sensitivity"]["method"] == "Wilson"
        for found, prevalence in zip(point["at_prevalence"], (0.02, 0.3), strict=True):
            # As of so many lesions of a clinic: who is called malignant, and who of them is.
            ill, well = 1e6 * prevalence, 1e6 * (1 - prevalence)
            called_ill, called_well = ill * se, well * (1 - sp)
            assert found["ppv"]["value"] == pytest.approx(called_ill / (called_ill + called_well))
            assert found["npv"]["value"] == pytest.approx(well * sp / (well * sp + ill * (1 - se)))
            assert found["biopsies"]["value"] == pytest.approx((called_ill + called_well) / called_ill)
            assert found["biopsies"]["low"] < found["biopsies"]["value"] < found["biopsies"]["high"]
        # The twin: predictive values of the enriched test set itself are others.
        assert point["at_prevalence"][0]["ppv"]["value"] < 0.5 * tp / (tp + fp)


def test_subgroups_are_read_at_the_first_threshold(tmp_path: Path) -> None:
    rows = [
        replace(row, facts=Facts(sex="male" if place % 4 < 2 else "female")) for place, row in enumerate(drawn(400, 2))
    ]
    one = classification.classified_set(written(tmp_path, rows, drawn(300, 1)))
    found = operating.block(one, classification.bootstrap(one.rows, 100, 0), ())
    assert found is not None
    test, first = operating.of_rows(one, "calibrated"), found["points"][0]["threshold"]
    assert test is not None
    male = np.array([row.facts.sex == "male" for row in rows])
    called, ill = test.probability >= first, test.malignant
    by = found["slices"]["sensitivity"]["sex"]
    assert by["values"]["male"]["value"] == pytest.approx(called[male & ill].mean())
    sides = sorted(called[side & ill].mean() for side in (male, ~male))
    assert by["gap"]["value"] == pytest.approx(sides[1] - sides[0])
    assert found["slices"]["specificity"]["sex"]["values"]["male"]["value"] == pytest.approx(
        (~called)[male & ~ill].mean()
    )


def test_without_validation_rows_or_malignancy_nothing_is_chosen(tmp_path: Path) -> None:
    alone = classification.classified_set(written(tmp_path / "alone", drawn(100, 2), []))
    found = operating.block(alone, classification.bootstrap(alone.rows, 100, 0), ())
    assert found == {"points": [], "slices": None, "missing": found and found["missing"]}
    assert "name a split for them (evaluate.classify: validation)" in found["missing"]
    unknown = classification.classified_set(written(tmp_path / "not", drawn(99, 2), drawn(99, 1), malignant=None))
    assert operating.block(unknown, classification.bootstrap(unknown.rows, 100, 0), ()) is None
    few = classification.classified_set(written(tmp_path / "few", drawn(99, 2), drawn(12, 1)))
    assert all(point["threshold"] is None and "sensitivity" not in point for point in points(few))


# decision curves

AT = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
# dcurves 1.1.7: dca(data, outcome="y", modelnames=["m"], thresholds=AT), net_benefit of "m", of "m" rounded to two
# digits, where probabilities are thresholds themselves, and of "all". It needs pandas before 3, and so stands in no
# environment of ours.
DCURVES = {
    None: (0.373889, 0.350263, 0.322778, 0.263750, 0.191154, 0.105000, 0.045000, -0.055000),
    2: (0.373838, 0.350000, 0.322222, 0.262500, 0.188462, 0.100000, 0.033333, -0.050000),
    "all": (0.378788, 0.352632, 0.316667, 0.231250, 0.053846, -0.230000, -1.050000, -5.150000),
}


def cases(digits: int | None = None) -> Malignancy:
    k = np.arange(200)
    probability = (k * 37 % 199 + 1) / 201
    malignant = (k * 53 % 101) / 101 < probability**1.5
    shown = probability if digits is None else np.round(probability, digits)
    return Malignancy(shown, malignant, np.ones(200, np.bool_))


@pytest.mark.parametrize("digits", [None, 2])
def test_net_benefits_are_those_of_dcurves(digits: int | None) -> None:
    draws = Bootstrap(list(range(200)), 100, 0)
    found = {point["threshold"]: point for point in decision.curve(cases(digits), draws)}
    assert [found[at]["model"]["value"] for at in AT] == pytest.approx(DCURVES[digits], abs=5e-7)
    assert [found[at]["treat_all"] for at in AT] == pytest.approx(DCURVES["all"], abs=5e-7)
    for at in AT:
        best = max(found[at]["treat_all"], 0.0)
        assert found[at]["gain"]["value"] == pytest.approx(found[at]["model"]["value"] - best)
    # The twin: who acts only above the threshold has other numbers where probabilities are thresholds.
    above = replace(cases(digits), probability=cases(digits).probability - 1e-9)
    moved = [point["model"]["value"] for point in decision.curve(above, draws)]
    same = [point["model"]["value"] for point in decision.curve(cases(digits), draws)]
    assert (moved == same) == (digits is None)


def test_resamples_of_a_curve_are_curves_of_resamples() -> None:
    test, groups = cases(), [place // 3 for place in range(200)]
    draws = Bootstrap(groups, 20, 3)
    model, every = decision.net_benefits(test, draws)
    counts = draws.counts[draws.of]  # int[N, 1 + R]
    for resample in (0, 7, 20):
        again = np.repeat(np.arange(200), counts[:, resample])
        for number in (4, 49):
            t = decision.THRESHOLDS[number]
            called, ill = test.probability[again] >= t, test.malignant[again]
            by_hand = (called & ill).mean() - (called & ~ill).mean() * t / (1 - t)
            assert model[resample, number] == pytest.approx(by_hand)
            assert every[resample, number] == pytest.approx(ill.mean() - (~ill).mean() * t / (1 - t))


def test_rows_that_do_not_count_change_nothing() -> None:
    test = cases()
    keep: Mask = np.arange(200) % 4 > 0
    part = replace(test, rows=keep)
    alone = Malignancy(test.probability[keep], test.malignant[keep], keep[keep])
    some = decision.curve(part, Bootstrap(list(range(200)), 0, 0))
    own = decision.curve(alone, Bootstrap(list(range(int(keep.sum()))), 0, 0))
    assert [a["model"]["value"] for a in some] == pytest.approx([b["model"]["value"] for b in own])
    assert [a["model"]["value"] for a in some] != [
        b["model"]["value"] for b in decision.curve(test, Bootstrap([0] * 200, 0, 0))
    ]


# as a user has them


def test_scores_tables_and_report_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "eval" / "classes", drawn(400, 2), drawn(300, 1))
    assert score.main([str(tmp_path), "--prevalence", "0.02,0.1", "--resamples", "100"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["prevalence"] == [0.02, 0.1]
    block = scores["sets"]["set"]["classes"]
    assert [of["prevalence"] for of in block["operating"]["points"][0]["at_prevalence"]] == [0.02, 0.1]
    assert len(block["decision"]["points"]) == 99
    told, page = capsys.readouterr().out, (tmp_path / "scores.md").read_text()
    for text in (told, page):
        assert "malignant from a probability on" in text
        assert "specificity 0.95" in text
        assert "0.02" in text
    html = report.page(tmp_path)
    assert "Operating points" in html
    assert "Of those called malignant" in html
    assert "Decision curve" in html
    assert "treat all" in html


def test_areas_of_malignancy_are_compared_by_delong_too(tmp_path: Path) -> None:
    ours, theirs = drawn(200, 2), drawn(200, 2)
    theirs = [replace(row, scores=tuple(score * 0.9 for score in row.scores[::-1])) for row in theirs if row.scores]
    for name, rows in (("a", ours), ("b", theirs)):
        written(tmp_path / name / "eval" / "classes", rows, [])
    assert score.main([str(tmp_path / "a"), "--against", str(tmp_path / "b"), "--resamples", "100"]) == 0
    tests = json.loads((tmp_path / "a" / "scores.json").read_text())["comparison"]["tests"]
    found = {test["test"]: test for test in tests if test["metric"] == "auroc_malignant"}
    assert found.keys() == {"DeLong", "paired bootstrap"}
    sides = [classification.classified_set(tmp_path / name / "eval" / "classes" / "set.jsonl") for name in "ab"]
    known = [classification.malignancy(side, side.variants["sum"]) for side in sides]
    assert found["DeLong"]["p"] == pytest.approx(delong.paired(known[0][0], known[1][0], known[0][1]), abs=1e-6)
    assert found["DeLong"]["ours"] == pytest.approx(sk.roc_auc_score(known[0][1], known[0][0]), abs=1e-5)
    assert found["DeLong"]["p"] < 0.01


@pytest.mark.parametrize("wrong", ["0", "1", "a", "0.1,", "-0.1"])
def test_a_prevalence_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        score.main(["run", f"--prevalence={wrong}"])
    assert f"{wrong!r}; expected numbers between 0 and 1" in capsys.readouterr().err


def test_a_report_says_what_is_lacking(tmp_path: Path) -> None:
    one = classification.classified_set(written(tmp_path, drawn(60, 2), []))
    found = class_report.block(one, classification.bootstrap(one.rows, 0, 0))
    assert found["decision"]["variant"] == "sum"
    assert found["operating"]["points"] == []
