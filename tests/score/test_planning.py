"""Planning: variances against simulation, formulas by hand, and what a user may get wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from skinvl.score import calibration, planning, score
from skinvl.score.planning import Assumed, PlanningError


def drawn(assumed: Assumed, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a calibrated model with this area, and which of n rows are malignant."""
    draw = np.random.default_rng(seed)
    malignant = draw.random(n) < assumed.prevalence
    d = np.sqrt(2) * norm.ppf(assumed.value)
    middle = np.log(assumed.prevalence / (1 - assumed.prevalence))
    return middle + np.where(malignant, 0.5, -0.5) * d**2 + d * draw.normal(size=n), malignant


@pytest.mark.parametrize("assumed", [Assumed(), Assumed(value=0.7, prevalence=0.1)])
def test_variances_are_those_of_simulated_sets(assumed: Assumed) -> None:
    n, areas, slopes = 600, [], []
    for seed in range(300):
        logits, malignant = drawn(assumed, n, seed)
        areas.append(roc_auc_score(malignant, logits))
        found = calibration.fit(np.stack([np.ones(n), logits], axis=1), malignant.astype(float), np.zeros(n))
        assert found is not None
        slopes.append(found[1])
    assert np.mean(areas) == pytest.approx(assumed.value, abs=0.01)
    assert np.mean(slopes) == pytest.approx(1, abs=0.05)  # it is calibrated
    assert np.var(areas) == pytest.approx(planning.auroc(assumed, n), rel=0.3)
    assert np.var(slopes) == pytest.approx(planning.slope(assumed, n), rel=0.3)
    # The twins: another area, another prevalence.
    assert abs(planning.auroc(Assumed(value=0.95), n) / planning.auroc(assumed, n) - 1) > 0.5
    assert planning.slope(Assumed(assumed.value, assumed.prevalence / 5), n) > 2 * planning.slope(assumed, n)


def said(text: str) -> tuple[int, int]:
    """Groups and independent rows of an answer."""
    groups, rows = re.findall(r"^([\d,]+) groups .*: ([\d,]+) independent", planning.groups_for(text))[0]
    return int(groups.replace(",", "")), int(rows.replace(",", ""))


def test_the_width_is_reached_by_so_many_rows_and_not_by_one_less() -> None:
    for name, width in (("auroc", 0.1), ("sensitivity", 0.08), ("specificity", 0.08), ("slope", 0.3)):
        groups, n = said(f"{name}={width}")
        assert groups == n  # one row a group
        widths = [2 * 1.959964 * np.sqrt(planning.VARIANCES[name](Assumed(), rows)) for rows in (n, n - 1)]
        assert widths[0] <= width * (1 + 1e-9) < widths[1] * (1 + 1e-6)
    # A share by hand: z² p (1 − p) / (w / 2)² malignant rows, of which there is one in five.
    _, n = said("sensitivity=0.1,value=0.9,prevalence=0.2")
    assert n == int(np.ceil(1.959964**2 * 0.09 / 0.05**2 / 0.2))


def test_rows_of_a_group_count_for_less() -> None:
    _, n = said("auroc=0.1")
    groups, same = said("auroc=0.1,rows=4,icc=0.5")
    assert same == n
    assert groups == int(np.ceil(n * 2.5 / 4))
    assert said("auroc=0.1,rows=4,icc=1")[0] == n  # nothing but groups counts
    assert said("auroc=0.1,rows=4,icc=0")[0] == int(np.ceil(n / 4))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("auroc", r"'auroc' is no NAME=NUMBER; expected NAME=WIDTH with auroc, sensitivity, specificity, slope"),
        ("auroc=x", "'auroc=x' is no NAME=NUMBER"),
        ("accuracy=0.1", "'accuracy'; expected NAME=WIDTH"),
        ("auroc=0.1,size=3", "'size'; expected NAME=WIDTH .* any of value, prevalence, rows, icc"),
        ("auroc=0.1,value=0.4", "value 0.4; expected a number between 0.5 and 1"),
        ("auroc=0.1,prevalence=1", "prevalence 1; expected a number between 0 and 1"),
        ("auroc=0", "expected a width above 0"),
        ("slope=0.2,rows=0.5", "rows of at least 1"),
        ("slope=0.2,icc=2", "icc from 0 to 1"),
    ],
)
def test_what_cannot_be_planned_is_said(text: str, match: str) -> None:
    with pytest.raises(PlanningError, match=match):
        planning.groups_for(text)


def test_it_takes_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main(["--groups-for", "auroc=0.1,rows=3"]) == 0
    assert "groups for a 95% interval of auroc that is 0.1 wide" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        score.main(["--prevalence", "0.1"])
    assert "required: RUN" in capsys.readouterr().err
