"""A classified set with its true classes, and the numbers of each way of reading its rows.

All but the areas are functions of sums over rows. Means over classes take the classes that occur among the true labels,
and in a resample those that occur in it: a class that vanished there has no recall that could be averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack

from skinvl.score import curves, probabilities
from skinvl.score.predictions import Classified, read
from skinvl.score.probabilities import Int, Variant
from skinvl.score.stats import Bootstrap, Estimate, Float, Mask, defined_mean, ratio

TOP = 3
BALANCED = "balanced_accuracy"


@dataclass(frozen=True, slots=True)
class ClassifiedSet:
    """The rows of a set with their true classes and every variant.

    Attributes:
        true: int[N]; C where a row has no label.
        malignant: bool[C], or None where that is not known of every class.
        least: the confidence from which on to answer, fitted on the validation rows.
    """

    rows: Sequence[Classified]
    settings: Mapping[str, Any]
    true: Int
    variants: Mapping[str, Variant]
    malignant: Mask | None
    least: float | None

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        names: Sequence[str] = self.settings["classes"]
        return names


def judge(path: Path) -> ClassifiedSet:
    """The rows of a file of predictions, with what its validation file beside it gives, if there is one.

    Raises:
        PredictionError: not readable predictions.
        ClassError: they contradict themselves.
    """
    settings, rows = read(path, Classified)
    classes = settings["classes"]
    true = probabilities.truth(rows, classes, str(path))
    beside = path.with_name(f"{path.stem}.validation.jsonl")
    validation = None
    if beside.is_file():
        theirs, held = read(beside, Classified)
        if theirs["classes"] != classes:
            raise probabilities.ClassError(
                f"{beside}: its classes differ from those of {path.name}; run skinvl classify again"
            )
        validation = held, probabilities.truth(held, classes, str(beside))
    found = probabilities.read(rows, true, settings, validation)
    malignant, least = settings.get("malignant"), None
    if validation is not None and "calibrated" in found:
        fitted = found["calibrated"].temperature
        least = curves.threshold(probabilities.confidence(*validation, len(classes), fitted or 1.0))
    known = malignant is not None and None not in malignant
    return ClassifiedSet(rows, settings, true, found, np.array(malignant, np.bool_) if known else None, least)


def bootstrap(rows: Sequence[Classified], resamples: int, seed: int) -> Bootstrap:
    """Resamples of the rows' groups."""
    return Bootstrap([(row.source, row.group) for row in rows], resamples, seed)


def estimates(
    judged: ClassifiedSet, name: str, draws: Bootstrap, rows: Mask, areas: Sequence[tuple[Float, Float]] | None = None
) -> dict[str, Estimate]:
    """Every number of a variant over those of the rows that it has; `areas` of these rows, if they are at hand.

    Brier is the sum over classes of squared differences (Brier 1950), from 0 to 2. ECE is the expected calibration
    error of the predicted class in equally wide bins (Naeini et al. 2015; Guo et al. 2017): few rows bias it upwards,
    and a resample, which has fewer different ones, more than the data. AUROC and AUPRC are means over classes, each
    against the rest.
    """
    variant, size = judged.variants[name], len(judged.classes)
    counted = rows & variant.rows
    sides = _malignancy(judged, variant)
    confident = _confident(judged, variant)
    table = hstack([_hits(judged, variant), csr_array(sides), confident], format="csr")
    sums = draws.sums(table, counted)
    tp, true, predicted = _split(sums, size)
    total = true.sum(axis=1)
    f1 = np.where(true > 0, ratio(2 * tp, true + predicted), np.nan)
    found = {
        "accuracy": ratio(tp.sum(axis=1), total),
        BALANCED: defined_mean(ratio(tp, true)),
        "macro_f1": defined_mean(f1),
        "weighted_f1": ratio(np.nansum(true * f1, axis=1), total),
    }
    rest = sums[:, 3 * (size + 1) :]
    if judged.malignant is not None:
        found["sensitivity"], found["specificity"] = ratio(rest[:, 0], rest[:, 1]), ratio(rest[:, 2], rest[:, 3])
    if variant.probabilities is not None:
        top, brier, off = np.split(rest[:, sides.shape[1] :], [1, 2], axis=1)
        found |= {"top_3": ratio(top[:, 0], total)} if size > TOP else {}
        found |= {"ece": ratio(np.abs(off).sum(axis=1), total), "brier": ratio(brier[:, 0], total)}
        found["aurc"] = curves.aurc(variant.confidence, variant.predicted != judged.true, draws, counted)
        areas = areas or areas_of(judged, variant, draws, counted)
        found["auroc"] = defined_mean(np.stack([roc for roc, _ in areas], axis=1))
        found["auprc"] = defined_mean(np.stack([precise for _, precise in areas], axis=1))
    missed = int((rows & ~variant.rows).sum())
    groups = draws.groups(counted)
    return {metric: Estimate(values, int(counted.sum()), groups, missed) for metric, values in found.items()}


def balanced(judged: ClassifiedSet, headline: str, draws: Bootstrap, rows: Mask) -> Estimate:
    """Balanced accuracy of the rows; apart from `estimates` because a slice needs none of its other numbers."""
    variant = judged.variants[headline]
    counted = rows & variant.rows
    tp, true, _ = by_class(judged, variant, draws, counted)
    missed = int((rows & ~variant.rows).sum())
    return Estimate(defined_mean(ratio(tp, true)), int(counted.sum()), draws.groups(counted), missed)


def by_class(judged: ClassifiedSet, variant: Variant, draws: Bootstrap, rows: Mask) -> tuple[Float, Float, Float]:
    """float[1 + R, C] three times: true positives, rows of the class, rows predicted as it."""
    return _split(draws.sums(_hits(judged, variant), rows), len(judged.classes))


def areas_of(judged: ClassifiedSet, variant: Variant, draws: Bootstrap, rows: Mask) -> list[tuple[Float, Float]]:
    """float[1 + R] twice for each class against the rest: areas under ROC and precision; NaN for one without rows."""
    if variant.probabilities is None:
        return []
    nothing = np.full(draws.size, np.nan)
    found = []
    for place, chances in enumerate(variant.probabilities.T):
        positive = judged.true == place
        there = positive[rows].any()
        found.append(curves.areas(chances, positive, draws, rows) if there else (nothing, nothing))
    return found


def _hits(judged: ClassifiedSet, variant: Variant) -> csr_array:
    """float[N, 3 (C + 1)]: the class where it was predicted rightly, the true one, the predicted one."""
    size = len(judged.classes)
    # One class more takes the rows without a prediction, so that they are predicted as none.
    hit = np.where(variant.predicted == judged.true, judged.true, size)
    places = np.stack([hit, judged.true + size + 1, variant.predicted + 2 * (size + 1)], axis=1)
    return _sparse(np.ones(places.size), places, 3 * (size + 1))


def _split(sums: Float, size: int) -> tuple[Float, Float, Float]:
    tp, true, predicted = (sums[:, start : start + size] for start in range(0, 3 * (size + 1), size + 1))
    return tp, true, predicted


def _malignancy(judged: ClassifiedSet, variant: Variant) -> Float:
    """float[N, 4]: malignant and recognised, malignant, benign and recognised, benign; a row without a prediction was
    recognised as neither. float[N, 0] where malignancy is not known."""
    if judged.malignant is None:
        return np.zeros((len(judged.rows), 0))
    columns = []
    for side in (np.append(judged.malignant, False), np.append(~judged.malignant, False)):
        columns += [side[judged.true] & side[variant.predicted], side[judged.true]]
    return np.stack(columns, axis=1).astype(np.float64)


def _confident(judged: ClassifiedSet, variant: Variant) -> csr_array:
    """float[N, 2 + BINS]: whether the true class is among the likeliest, squared error, right − confidence by bin."""
    n, size = len(judged.rows), len(judged.classes)
    if variant.probabilities is None:
        return csr_array((n, 0))
    label = np.zeros((n, size + 1))
    label[np.arange(n), judged.true] = 1.0
    brier = np.square(variant.probabilities - label[:, :size]).sum(axis=1)
    top = np.argsort(-variant.probabilities, axis=1, kind="stable")[:, :TOP]
    among = (top == judged.true[:, None]).any(axis=1)
    off = (variant.predicted == judged.true) - variant.confidence
    places = np.stack([np.zeros(n, np.int64), np.ones(n, np.int64), 2 + curves.bins(variant.confidence)], axis=1)
    return _sparse(np.stack([among, brier, off], axis=1).ravel(), places, 2 + curves.BINS)


def _sparse(values: Float, places: Int, columns: int) -> csr_array:
    """float[N, columns] of values float[N · k] in the columns int[N, k]."""
    starts = np.arange(len(places) + 1) * places.shape[1]
    return csr_array((values, places.ravel(), starts), shape=(len(places), columns))
