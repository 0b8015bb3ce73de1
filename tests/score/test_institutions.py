"""Institutions: a published meta-analysis from its counts, pooled shares by hand, and what a user sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import t

from helpers.lesions import drawn, written
from skinvl.data.example import Facts
from skinvl.score import classification, institutions, report, score, slices

# Vaccinated with and without tuberculosis, others with and without: the 13 trials of Colditz et al. 1994, JAMA 271.
BCG = (
    *((4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761)),
    *((180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232)),
    *((17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825)),
)


def test_the_published_meta_analysis_from_its_counts() -> None:
    """metafor's manual gives of their log risk ratios, by DerSimonian and Laird: −0.7141, 0.1787 and τ² 0.3088."""
    a, b, c, d = np.array(BCG, np.float64).T
    y = np.log(a / (a + b)) - np.log(c / (c + d))
    v = 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    mean, error, tau2 = institutions.random_effects(y, v)
    assert (mean, error, tau2) == pytest.approx((-0.7141, 0.1787, 0.3088), abs=5e-5)
    # The twin: without the variance between them the mean is another, and far surer of itself.
    fixed, sure, _ = institutions.random_effects(np.full(13, -0.7), v)
    assert fixed == pytest.approx(-0.7)
    assert sure < error / 3


def test_pooled_shares_are_the_formulas() -> None:
    shares, n = np.array([0.9, 0.7, 0.8, 0.6]), np.array([100.0, 80, 60, 90])
    variances = shares * (1 - shares) / n
    found = institutions.pooled(shares, variances, n)
    y, v = logit(shares), 1 / (n * shares * (1 - shares))
    mean, plain, tau2 = institutions.random_effects(y, v)
    factor = max(1, ((y - mean) ** 2 / (v + tau2)).sum() / 3)
    half = t.ppf(0.975, 3) * plain * np.sqrt(factor)
    assert (found["low"], found["value"], found["high"]) == pytest.approx(
        tuple(expit([mean - half, mean, mean + half]))
    )
    wide = t.ppf(0.975, 2) * np.sqrt(tau2 + factor * plain**2)
    assert found["expected"] == pytest.approx(list(expit([mean - wide, mean + wide])))
    assert found["expected"][0] < found["low"] < min(found["value"], 0.9)
    # Alike institutions: nothing between them, and the factor does not narrow the interval.
    alike = institutions.pooled(np.full(4, 0.8), np.full(4, 0.002), n)
    assert alike["tau"] == 0
    assert alike["value"] == pytest.approx(0.8)
    assert logit(alike["high"]) - logit(0.8) == pytest.approx(t.ppf(0.975, 3) * np.sqrt(0.002 / 0.16**2 / 4))
    # A share of 1 has an interval too.
    sure = institutions.pooled(np.array([1.0, 0.9, 0.95]), np.array([0.0, 0.001, 0.001]), np.array([40.0, 50, 50]))
    assert 0.85 < sure["value"] < 1
    assert institutions.pooled(shares[:2], variances[:2], n[:2])["method"] == "too few institutions (2)"


def test_institutions_stand_in_scores_tables_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        replace(row, facts=Facts(institution=f"clinic {place // 2 % 4}" if place < 380 else None, sex="male"))
        for place, row in enumerate(drawn(400, 2))
    ]
    written(tmp_path / "eval" / "classes", rows, [])
    assert score.main([str(tmp_path), "--resamples", "100"]) == 0
    block = json.loads((tmp_path / "scores.json").read_text())["sets"]["set"]["classes"]["institutions"]
    one = classification.classified_set(tmp_path / "eval" / "classes" / "set.jsonl")
    assert block.keys() == {"accuracy", "sensitivity", "specificity"}
    own = np.array([row.facts.institution == "clinic 1" for row in rows])
    right = one.variants["sum"].predicted == one.true
    assert block["accuracy"]["by"]["clinic 1"]["value"] == pytest.approx(right[own].mean(), abs=1e-5)
    assert list(block["accuracy"]["by"]) == [f"clinic {number}" for number in range(4)]  # the unknown is none
    assert block["accuracy"]["pooled"]["institutions"] == 4
    assert "pooled" in capsys.readouterr().out
    assert "By institution" in report.page(tmp_path)
    assert "Another institution" in report.page(tmp_path)


def test_runs_without_an_institution_each_are_pooled_over_those(tmp_path: Path) -> None:
    runs, expected = [], {}
    for number in range(3):
        clinics = [f"clinic {place // 2 % 3}" for place in range(240)]
        rows = [
            replace(row, facts=Facts(institution=clinic))
            for row, clinic in zip(drawn(240, 5 + number), clinics, strict=True)
        ]
        run = tmp_path / f"run-{number}"
        written(run / "eval" / "classes", rows, [])
        (run / "recipe.yaml").write_text(f"data: {{without: {{institution: clinic {number}}}}}\n")
        one = classification.classified_set(run / "eval" / "classes" / "set.jsonl")
        own = np.array([clinic == f"clinic {number}" for clinic in clinics])
        expected[f"clinic {number}"] = (one.variants["sum"].predicted == one.true)[own].mean()
        runs.append(run)
    assert score.main([*map(str, runs), "--resamples", "100"]) == 0
    scores = json.loads((runs[0] / "scores.json").read_text())
    found = scores["left_out"]["set"]["accuracy"]
    assert {name: own["value"] for name, own in found["by"].items()} == pytest.approx(expected, abs=1e-5)
    assert found["pooled"]["institutions"] == 3
    assert "each institution by the run without it" in (runs[0] / "scores.md").read_text()
    # Two runs without the same one are replicates, and nothing is pooled.
    (runs[1] / "recipe.yaml").write_text("data: {without: {institution: clinic 0}}\n")
    assert score.main([*map(str, runs), "--resamples", "100"]) == 0
    assert json.loads((runs[0] / "scores.json").read_text())["left_out"] is None


def test_crossed_slices_are_of_rows_that_know_both() -> None:
    (row,) = drawn(1, 1)
    of = [replace(row, facts=Facts(sex=sex, age=age)) for sex in ("male", None) for age in (30.0, None)]
    assert slices.known(of)[-1] == "sex × age"
    assert [slices.fact(one, "sex × age") for one in of] == ["male × 20-39", *["unknown"] * 3]
    assert "sex × age" not in slices.known(of[1:])
