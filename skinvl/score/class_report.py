"""The ClassBlock of scores.json: a classified set by every variant, by class and by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from skinvl.score import classification as numbers
from skinvl.score import curves, slices
from skinvl.score.classification import BALANCED, ClassifiedSet
from skinvl.score.predictions import Classified, rule
from skinvl.score.stats import Bootstrap, Estimate, Float, Mask, ratio

OUTCOMES = ("matched", "none", "ambiguous")


def block(judged: ClassifiedSet, draws: Bootstrap) -> dict[str, Any]:
    """The ClassBlock of scores.json for one set."""
    every = np.ones(len(judged.rows), np.bool_)
    headline = next(iter(judged.variants), None)
    ready = np.zeros(len(judged.rows), np.bool_)
    for variant in judged.variants.values():
        ready |= variant.rows
    asked = np.array([row.outcome is not None for row in judged.rows], np.bool_)
    matched = np.array([row.outcome == "matched" for row in judged.rows], np.bool_)
    outcomes: list[str | None] = [row.outcome for row in judged.rows]
    reasons = Counter(_reason(judged.rows[place]) for place in np.flatnonzero(~ready).tolist())
    areas = {name: numbers.areas_of(judged, variant, draws, variant.rows) for name, variant in judged.variants.items()}
    return {
        "rows": len(judged.rows),
        "unscored": int((~ready).sum()),
        "reasons": dict(sorted(reasons.items())),
        "classes": list(judged.classes),
        "benchmark": judged.settings.get("benchmark"),
        "headline": headline,
        "variants": {
            name: {
                metric: one.number()
                for metric, one in numbers.estimates(judged, name, draws, every, areas[name]).items()
            }
            for name in judged.variants
        },
        "valid": draws.share(matched, asked).number() if asked.any() else None,
        "outcomes": {name: outcomes.count(name) for name in OUTCOMES} if asked.any() else None,
        "majority": _majority(judged, draws, ready),
        "confusion": {name: _confusion(judged, name) for name in judged.variants},
        "reliability": {name: found for name in judged.variants if (found := _reliability(judged, name))},
        **_selective(judged),
        "per_class": _per_class(judged, headline, draws, areas[headline]) if headline else {},
        "slices": slices.table(judged.rows, BALANCED, lambda mask: numbers.balanced(judged, headline, draws, mask))
        if headline
        else {},
        "settings": dict(judged.settings),
    }


def _per_class(
    judged: ClassifiedSet, headline: str, draws: Bootstrap, areas: Sequence[tuple[Float, Float]]
) -> dict[str, Any]:
    """Precision over the rows predicted as a class; recall and F1 over its own, AUROC over all."""
    variant = judged.variants[headline]
    tp, true, predicted = numbers.by_class(judged, variant, draws, variant.rows)
    found = {}
    for place, name in enumerate(judged.classes):
        own = variant.rows & (judged.true == place)
        said = variant.rows & (variant.predicted == place)
        missed = int(((judged.true == place) & ~variant.rows).sum())
        columns: dict[str, tuple[Float, Mask]] = {
            "precision": (ratio(tp[:, place], predicted[:, place]), said),
            "recall": (ratio(tp[:, place], true[:, place]), own),
            "f1": (np.where(true[:, place] > 0, ratio(2 * tp, true + predicted)[:, place], np.nan), own),
        }
        if areas:
            columns["auroc"] = areas[place][0], variant.rows
        found[name] = {
            metric: Estimate(values, int(rows.sum()), draws.groups(rows), missed).number()
            for metric, (values, rows) in columns.items()
        }
    return found


def _majority(judged: ClassifiedSet, draws: Bootstrap, rows: Mask) -> dict[str, Any]:
    counts = np.bincount(judged.true[rows], minlength=1)
    return draws.share(judged.true == counts.argmax(), rows, int((~rows).sum())).number()


def _confusion(judged: ClassifiedSet, name: str) -> list[list[int]]:
    """int[C][C], rows the true class and columns the predicted; prompted has a last column for no class."""
    variant, size = judged.variants[name], len(judged.classes)
    found = np.zeros((size, size + 1), np.int64)
    np.add.at(found, (judged.true[variant.rows], variant.predicted[variant.rows]), 1)
    plain: list[list[int]] = (found if name == "prompted" else found[:, :size]).tolist()
    return plain


def _reliability(judged: ClassifiedSet, name: str) -> dict[str, Any] | None:
    variant = judged.variants[name]
    if variant.probabilities is None:
        return None
    right = variant.predicted == judged.true
    return {
        "temperature": variant.temperature,
        "bins": curves.reliability(variant.confidence[variant.rows], right[variant.rows]),
    }


def _selective(judged: ClassifiedSet) -> dict[str, Any]:
    """The risk-coverage curve, and what the threshold that was fitted on validation rows comes to on these."""
    name = next((name for name in ("calibrated", "sum") if name in judged.variants), None)
    if name is None:
        return {"risk_coverage": [], "threshold": None}
    variant = judged.variants[name]
    confidence = variant.confidence[variant.rows]
    wrong = (variant.predicted != judged.true)[variant.rows]
    fitted = None
    if judged.least is not None and len(wrong):
        answered = confidence >= judged.least
        risk = float(wrong[answered].mean()) if answered.any() else None
        fitted = {"value": judged.least, "coverage": float(answered.mean()), "risk": risk}
    return {"risk_coverage": curves.risk_coverage(confidence, wrong), "threshold": fitted}


def _reason(row: Classified) -> str:
    if row.detail:
        return rule(row.detail)
    return "no true class, and no reason was recorded" if row.label is None else "no scores, and no reason was recorded"
