"""DeLong's test: all pairs one by one, a published example recomputed from its counts, and how often it errs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from skinvl.score import delong
from skinvl.score.stats import Float, Mask


def by_pairs(scores: Float, positive: Mask) -> tuple[Float, Float]:
    """The areas and their covariance, as the paper defines them, over every pair."""
    wins = scores[:, positive][:, :, None] - scores[:, ~positive][:, None, :]
    psi = (wins > 0) + 0.5 * (wins == 0)
    areas = psi.mean(axis=(1, 2))
    parts = []
    for components in (psi.mean(axis=2), psi.mean(axis=1)):
        off = components - areas[:, None]
        parts.append(off @ off.T / (components.shape[1] - 1) / components.shape[1])
    return areas, parts[0] + parts[1]


def drawn(seed: int, n: int = 90, apart: float = 1.0) -> tuple[Float, Mask]:
    """Two scores that know as much of who is positive, and share half of what they do not."""
    draw = np.random.default_rng(seed)
    positive = draw.random(n) < 0.4
    common = draw.normal(size=n)
    scores = np.stack([positive * strength + common + draw.normal(size=n) for strength in (apart, 1.0)])
    return np.round(scores, 1), positive  # rounded, so that there are ties


@pytest.mark.parametrize("seed", range(5))
def test_midranks_are_all_pairs(seed: int) -> None:
    scores, positive = drawn(seed)
    areas, spread = delong.covariance(scores, positive)
    expected, theirs = by_pairs(scores, positive)
    assert areas == pytest.approx(expected)
    assert areas[0] == pytest.approx(roc_auc_score(positive, scores[0]))
    assert spread == pytest.approx(theirs)
    # The twin: ranks that break ties by place are not midranks.
    broken = scores + np.arange(scores.shape[1]) * 1e-6
    assert delong.covariance(broken, positive)[0] != pytest.approx(expected)


def test_the_published_example_from_its_counts() -> None:
    """Hanley & McNeil 1982, Radiology 143, table 1: ratings of 58 normal and 51 abnormal CT images.

    Stata's manual (roctab) gives of these counts an area of 0.8932 with DeLong's standard error, 0.0307.
    """
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    ratings = np.concatenate([np.repeat(np.arange(5.0), counts) for counts in (normal, abnormal)])
    positive = np.arange(109) >= 58
    areas, spread = delong.covariance(ratings[None], positive)
    assert areas[0] == pytest.approx(0.8932, abs=5e-5)
    assert np.sqrt(spread[0, 0]) == pytest.approx(0.0307, abs=5e-5)


def test_equal_areas_are_told_apart_as_rarely_as_the_level_says_and_others_often() -> None:
    same = [delong.paired(*drawn(seed)[0], drawn(seed)[1]) for seed in range(400)]
    other = [delong.paired(*drawn(seed, apart=2.5)[0], drawn(seed, apart=2.5)[1]) for seed in range(100)]
    assert 0.02 < np.mean([value < 0.05 for value in same if value is not None]) < 0.09
    assert np.mean([value < 0.05 for value in other if value is not None]) > 0.8


def test_where_nothing_can_be_said() -> None:
    scores, positive = drawn(1)
    assert delong.paired(scores[0], scores[0], positive) == 1.0
    assert delong.paired(scores[0], 2 * scores[0] + 1, positive) == 1.0  # in the same order
    for few in (np.zeros(90, np.bool_), np.arange(90) == 3):
        assert delong.paired(scores[0], scores[1], few) is None
    apart = np.arange(4.0)
    assert delong.paired(apart, -apart, np.arange(4) > 1) is None  # 1 and 0 without any variance
