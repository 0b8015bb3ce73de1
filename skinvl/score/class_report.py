"""The ClassBlock of scores.json: a classified set by every variant, by class and by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from skinvl.score import calibration, classification, curves, decision, institutions, operating, slices
from skinvl.score.classification import BALANCED, ClassifiedSet
from skinvl.score.predictions import Classified, rule
from skinvl.score.probabilities import PROMPTS
from skinvl.score.stats import Bootstrap, Estimate, Float, Mask, defined_mean, ratio, spread

OUTCOMES = ("matched", "none", "ambiguous")


def block(classified: ClassifiedSet, draws: Bootstrap, prevalences: Sequence[float] = ()) -> dict[str, Any]:
    """The ClassBlock of scores.json for one set.

    Args:
        prevalences: of malignancy, for which predictive values are given.
    """
    every = np.ones(len(classified.rows), np.bool_)
    headline = next(iter(classified.variants), None)

    # A row is scored where any variant reads it; what the free answers came to is counted apart.
    scored = np.zeros(len(classified.rows), np.bool_)
    for variant in classified.variants.values():
        scored |= variant.rows
    asked = np.array([row.outcome is not None for row in classified.rows], np.bool_)
    matched = np.array([row.outcome == "matched" for row in classified.rows], np.bool_)
    outcomes: list[str | None] = [row.outcome for row in classified.rows]
    reasons = Counter(_reason(classified.rows[index]) for index in np.flatnonzero(~scored).tolist())

    # The areas take longest and are needed twice.
    areas = {
        name: classification.areas_of(classified, variant, draws, variant.rows)
        for name, variant in classified.variants.items()
    }
    estimates = {
        name: classification.estimates(classified, name, draws, every, areas[name]) for name in classified.variants
    }
    reliability = {name: _reliability(classified, name) for name in classified.variants}
    return {
        "rows": len(classified.rows),
        "unscored": int((~scored).sum()),
        "reasons": dict(sorted(reasons.items())),
        "classes": list(classified.classes),
        "benchmark": classified.settings.get("benchmark"),
        "headline": headline,
        "variants": {
            variant: {metric: estimate.number() for metric, estimate in by_metric.items()}
            for variant, by_metric in estimates.items()
        },
        "spread": _spread(classified),
        "valid": draws.share(matched, asked).number() if asked.any() else None,
        "outcomes": {name: outcomes.count(name) for name in OUTCOMES} if asked.any() else None,
        "majority": _majority(classified, draws, scored),
        "confusion": {name: _confusion(classified, name) for name in classified.variants},
        "reliability": {name: bins for name, bins in reliability.items() if bins},
        **_selective(classified),
        "operating": operating.block(classified, draws, prevalences),
        **_foretold(classified, draws),
        "per_class": _per_class(classified, headline, draws, areas[headline]) if headline else {},
        "slices": _slices(classified, headline, draws) if headline else {},
        "institutions": institutions.block(classified, headline, draws) if headline else None,
        "settings": dict(classified.settings),
    }


def _slices(classified: ClassifiedSet, headline: str, draws: Bootstrap) -> dict[str, Any]:
    def estimate(rows: Mask) -> Estimate:
        return classification.balanced(classified, headline, draws, rows)

    return slices.table(classified.rows, BALANCED, estimate)


def _per_class(
    classified: ClassifiedSet, headline: str, draws: Bootstrap, areas: Sequence[tuple[Float, Float]]
) -> dict[str, Any]:
    """Precision over the rows predicted as a class; recall and F1 over its own, AUROC over all."""
    variant = classified.variants[headline]
    tp, true, predicted = classification.by_class(classified, variant, draws, variant.rows)
    report = {}
    for column, name in enumerate(classified.classes):
        own = variant.rows & (classified.true == column)
        called = variant.rows & (variant.predicted == column)
        missed = int(((classified.true == column) & ~variant.rows).sum())
        columns: dict[str, tuple[Float, Mask]] = {
            "precision": (ratio(tp[:, column], predicted[:, column]), called),
            "recall": (ratio(tp[:, column], true[:, column]), own),
            "f1": (np.where(true[:, column] > 0, ratio(2 * tp, true + predicted)[:, column], np.nan), own),
        }
        if areas:
            columns["auroc"] = areas[column][0], variant.rows
        report[name] = {
            metric: (
                draws.share_of(values, own & called, rows, missed)
                if metric in ("precision", "recall")
                else draws.estimate(values, rows, missed)
            ).number()
            for metric, (values, rows) in columns.items()
        }
    return report


def _spread(classified: ClassifiedSet) -> dict[str, Any]:
    """How accuracy and balanced accuracy vary over each kind of variation of the prompts, over rows that have a class.

    What is not the choice of a test set's best prompt: every variation is as likely as the others.
    """
    kinds: dict[str, int] = classified.settings.get("variations") or {}
    n_classes = len(classified.classes)
    usable = np.array([row.varied is not None for row in classified.rows], np.bool_) & (classified.true < n_classes)
    true = classified.true[usable]
    varied = [row.varied for row, counts in zip(classified.rows, usable.tolist(), strict=True) if counts]
    right = np.array(varied, np.int64).reshape(len(true), sum(kinds.values())) == true[:, None]
    of_class = (true == np.arange(n_classes)[:, None]).astype(np.float64)  # float[C, N]
    recall = ratio(of_class @ right, np.broadcast_to(of_class.sum(axis=1, keepdims=True), (n_classes, right.shape[1])))

    spreads, start = {}, 0
    for kind, count in kinds.items():
        part = slice(start, start + count)
        start += count
        if count > 1 and len(true):
            spreads[kind] = {
                "accuracy": spread(right[:, part].mean(axis=0).tolist()),
                BALANCED: spread(defined_mean(recall[:, part].T).tolist()),
            }
    return spreads


def _majority(classified: ClassifiedSet, draws: Bootstrap, rows: Mask) -> dict[str, Any]:
    """The accuracy of always saying the most frequent class."""
    counts = np.bincount(classified.true[rows], minlength=1)
    return draws.share(classified.true == counts.argmax(), rows, int((~rows).sum())).number()


def _confusion(classified: ClassifiedSet, name: str) -> list[list[int]]:
    """int[C][C], rows the true class and columns the predicted; prompted has a last column for no class."""
    variant, n_classes = classified.variants[name], len(classified.classes)
    counts = np.zeros((n_classes, n_classes + 1), np.int64)
    np.add.at(counts, (classified.true[variant.rows], variant.predicted[variant.rows]), 1)
    matrix: list[list[int]] = (counts if name == "prompted" else counts[:, :n_classes]).tolist()
    return matrix


def _reliability(classified: ClassifiedSet, name: str) -> dict[str, Any] | None:
    """The bins of a variant's confidences and its temperature; None for one without probabilities."""
    variant = classified.variants[name]
    if variant.probabilities is None:
        return None
    right = variant.predicted == classified.true
    return {
        "temperature": variant.temperature,
        "bins": curves.reliability(variant.confidence[variant.rows], right[variant.rows]),
    }


def _selective(classified: ClassifiedSet) -> dict[str, Any]:
    """The risk-coverage curve, and what the threshold that was fitted on validation rows comes to on these."""
    name = next((name for name in ("calibrated", "sum", PROMPTS) if name in classified.variants), None)
    if name is None:
        return {"risk_coverage": [], "threshold": None}
    variant = classified.variants[name]
    confidence = variant.confidence[variant.rows]
    wrong = (variant.predicted != classified.true)[variant.rows]

    fitted = None
    if classified.threshold is not None and len(wrong):
        answered = confidence >= classified.threshold
        risk = float(wrong[answered].mean()) if answered.any() else None
        fitted = {"value": classified.threshold, "coverage": float(answered.mean()), "risk": risk}
    return {"risk_coverage": curves.risk_coverage(confidence, wrong), "threshold": fitted}


def _foretold(classified: ClassifiedSet, draws: Bootstrap) -> dict[str, Any]:
    """The decision curve and the calibration by the best calibrated probabilities of malignancy that there are."""
    name = next((name for name in ("calibrated", "sum", PROMPTS) if name in classified.variants), "")
    test = operating.of_rows(classified, name)
    if test is None or not test.rows.any():
        return {"decision": None, "calibration": None}
    confidence = classified.variants[name].confidence
    return {
        "decision": {"variant": name, "points": decision.curve(test, draws)},
        "calibration": {"variant": name, **calibration.block(test, classified.rows, confidence, draws)},
    }


def _reason(row: Classified) -> str:
    if row.detail:
        return rule(row.detail)
    return "no true class, and no reason was recorded" if row.label is None else "no scores, and no reason was recorded"
