"""AUROC of concepts against scikit-learn: missing labels, too few, ties, the mean over concepts, and chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from skinvl.score import concepts
from skinvl.score.concepts import ABSENT, FEWEST, MISSING, PRESENT
from skinvl.score.stats import Bootstrap

GENERATOR = np.random.default_rng(7)
N = 120
SCORES = GENERATOR.normal(size=(N, 4)).round(1)  # rounded, so that some are equal
LABELS = GENERATOR.choice([PRESENT, ABSENT, MISSING], size=(N, 4), p=[0.3, 0.5, 0.2]).astype(np.int8)
DRAWS = Bootstrap([number // 2 for number in range(N)], 200)


def test_an_area_is_of_the_rows_of_which_it_is_known() -> None:
    for column in range(4):
        scores, labels = SCORES[:, column].copy(), LABELS[:, column]
        scores[3] = np.nan  # an image that cannot be read
        known = (labels != MISSING) & np.isfinite(scores)
        one = concepts.area(scores, labels, DRAWS)
        assert one.estimate is not None
        assert one.estimate.value == pytest.approx(roc_auc_score(labels[known], scores[known]))
        assert (one.positives, one.negatives) == ((labels[known] == 1).sum(), (labels[known] == 0).sum())
        assert one.missing == (labels == MISSING).sum()
        assert one.prevalence == pytest.approx(labels[known].mean())
        assert one.estimate.unscored == int(labels[3] != MISSING)
        number = one.estimate.number()
        assert number["low"] < number["value"] < number["high"]
        # Missing read as absent gives another number.
        finite = np.isfinite(scores)
        assert one.estimate.value != pytest.approx(roc_auc_score(labels[finite] == PRESENT, scores[finite]), abs=1e-3)


@pytest.mark.parametrize("few", [PRESENT, ABSENT])
def test_fewer_than_ten_of_either_kind_have_no_number(few: int) -> None:
    labels = np.full(N, 1 - few, np.int8)
    labels[: FEWEST - 1] = few
    assert concepts.area(SCORES[:, 0], labels, DRAWS).estimate is None
    assert np.isnan(concepts.unit_areas(SCORES, labels)).all()
    labels[FEWEST - 1] = few
    assert concepts.area(SCORES[:, 0], labels, DRAWS).estimate is not None
    assert np.isfinite(concepts.unit_areas(SCORES, labels)).all()


def test_a_concept_of_which_nothing_is_known_has_no_prevalence() -> None:
    nothing = concepts.area(SCORES[:, 0], np.full(N, MISSING, np.int8), DRAWS)
    assert (nothing.positives, nothing.negatives, nothing.missing, nothing.prevalence) == (0, 0, N, None)


def test_the_mean_is_unweighted_and_of_those_that_have_a_number() -> None:
    few = np.full(N, MISSING, np.int8)
    few[:5] = PRESENT
    areas = [concepts.area(SCORES[:, column], LABELS[:, column], DRAWS) for column in range(4)]
    areas.append(concepts.area(SCORES[:, 0], few, DRAWS))
    mean, count = concepts.macro(areas, DRAWS)
    assert mean is not None
    assert count == 4
    assert mean.value == pytest.approx(np.mean([one.estimate.value for one in areas[:4] if one.estimate]))
    assert mean.n == int((LABELS != MISSING).any(axis=1).sum())
    assert concepts.macro(areas[4:], DRAWS) == (None, 0)


def test_permuted_labels_are_told_no_better_than_chance() -> None:
    """Scores of one's own labels are told at .9, those of another's rows within the interval around one half."""
    labels = (GENERATOR.random(N) < 0.4).astype(np.int8)
    scores = labels + GENERATOR.normal(scale=0.5, size=N)
    own = concepts.area(scores, labels, DRAWS).estimate
    other = concepts.area(scores, GENERATOR.permutation(labels), DRAWS).estimate
    assert own is not None
    assert own.value > 0.85
    assert other is not None
    number = other.number()
    assert number["low"] < 0.5 < number["high"]


def test_areas_of_units_are_within_strata() -> None:
    """A unit of the class tells a concept that goes with it, but not within the classes."""
    strata = np.repeat([0, 1], N // 2)
    labels = (GENERATOR.random(N) < np.where(strata == 1, 0.9, 0.2)).astype(np.int8)
    units = np.stack([strata + GENERATOR.normal(scale=0.1, size=N), labels * GENERATOR.random(N), SCORES[:, 0]], axis=1)
    plain = concepts.unit_areas(units, labels)
    assert plain == pytest.approx([roc_auc_score(labels, column) for column in units.T])
    assert plain[0] > 0.8
    within = concepts.unit_areas(units, labels, strata)
    assert within[0] == pytest.approx(0.5, abs=0.12)
    assert within[1] > 0.9
    pairs = [labels[strata == one].sum() * (labels[strata == one] == 0).sum() for one in (0, 1)]
    by_hand = [roc_auc_score(labels[strata == one], units[strata == one, 2]) for one in (0, 1)]
    assert within[2] == pytest.approx(np.average(by_hand, weights=pairs))
