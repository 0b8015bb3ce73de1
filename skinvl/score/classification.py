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
OF_MALIGNANCY = "auroc_malignant"


@dataclass(frozen=True, slots=True)
class ClassifiedSet:
    """The rows of a set with their true classes and every variant.

    Attributes:
        true: int[N]; C where a row has no label.
        malignant: bool[C], or None where that is not known of every class.
        threshold: the confidence from which on to answer, fitted on the validation rows.
        validation: of the validation rows that have both, `calibrated` probabilities float[V, C] and classes int[V].
    """

    rows: Sequence[Classified]
    settings: Mapping[str, Any]
    true: Int
    variants: Mapping[str, Variant]
    malignant: Mask | None
    threshold: float | None
    validation: tuple[Float, Int] | None = None

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        names: Sequence[str] = self.settings["classes"]
        return names


def classified_set(path: Path) -> ClassifiedSet:
    """The rows of a file of predictions by every variant, with what its validation file gives, if there is one.

    Raises:
        PredictionError: not readable predictions.
        ClassError: they contradict themselves.
    """
    settings, rows = read(path, Classified)
    classes = settings["classes"]
    true = probabilities.truth(rows, classes, str(path))

    # The validation rows lie beside it; only temperature and threshold come from them.
    beside = path.with_name(f"{path.stem}.validation.jsonl")
    validation = None
    if beside.is_file():
        validation_settings, validation_rows = read(beside, Classified)
        if validation_settings["classes"] != classes:
            raise probabilities.ClassError(
                f"{beside}: its classes differ from those of {path.name}; run skinvl classify again"
            )
        validation = validation_rows, probabilities.truth(validation_rows, classes, str(beside))
    variants = probabilities.read(rows, true, settings, validation)
    threshold = fitted = None
    if validation is not None and "calibrated" in variants:
        temperature = variants["calibrated"].temperature or 1.0
        fitted = probabilities.fitted(*validation, len(classes), temperature)
        threshold = curves.threshold(fitted[0].max(axis=1))

    grades = settings.get("malignant")
    malignant = None if grades is None or None in grades else np.array(grades, np.bool_)
    return ClassifiedSet(rows, settings, true, variants, malignant, threshold, fitted)


def bootstrap(rows: Sequence[Classified], resamples: int, seed: int) -> Bootstrap:
    """Resamples of the rows' groups."""
    return Bootstrap([(row.source, row.group) for row in rows], resamples, seed)


def estimates(
    classified: ClassifiedSet,
    name: str,
    draws: Bootstrap,
    rows: Mask,
    areas: Sequence[tuple[Float, Float]] | None = None,
) -> dict[str, Estimate]:
    """Every number of a variant over those of the rows that it has; `areas` of these rows, if they are at hand.

    Brier is the sum over classes of squared differences (Brier 1950), from 0 to 2. ECE is the expected calibration
    error of the predicted class in equally wide bins (Naeini et al. 2015; Guo et al. 2017): few rows bias it upwards,
    and a resample, which has fewer different ones, more than the data. AUROC and AUPRC are means over classes, each
    against the rest.
    """
    # All that is a sum over rows, in one product: true positives and the like, malignancy, calibration.
    variant, n_classes = classified.variants[name], len(classified.classes)
    counted = rows & variant.rows
    sides = _malignancy_columns(classified, variant)
    confident = _calibration_columns(classified, variant)
    table = hstack([_class_columns(classified, variant), csr_array(sides), confident], format="csr")
    sums = draws.sums(table, counted)

    # By class.
    tp, true, predicted = _split(sums, n_classes)
    total = true.sum(axis=1)
    f1 = np.where(true > 0, ratio(2 * tp, true + predicted), np.nan)
    numbers = {
        "accuracy": ratio(tp.sum(axis=1), total),
        BALANCED: defined_mean(ratio(tp, true)),
        "macro_f1": defined_mean(f1),
        "weighted_f1": ratio(np.nansum(true * f1, axis=1), total),
    }

    # Malignant or not, where that is known; how sure the model is, where it gives probabilities.
    rest = sums[:, 3 * (n_classes + 1) :]
    if classified.malignant is not None:
        numbers["sensitivity"], numbers["specificity"] = ratio(rest[:, 0], rest[:, 1]), ratio(rest[:, 2], rest[:, 3])
    if variant.probabilities is not None:
        top, brier, off = np.split(rest[:, sides.shape[1] :], [1, 2], axis=1)
        numbers |= {"top_3": ratio(top[:, 0], total)} if n_classes > TOP else {}
        numbers |= {"ece": ratio(np.abs(off).sum(axis=1), total), "brier": ratio(brier[:, 0], total)}
        numbers["aurc"] = curves.aurc(variant.confidence, variant.predicted != classified.true, draws, counted)
        areas = areas or areas_of(classified, variant, draws, counted)
        numbers["auroc"] = defined_mean(np.stack([roc for roc, _ in areas], axis=1))
        numbers["auprc"] = defined_mean(np.stack([precise for _, precise in areas], axis=1))

        if classified.malignant is not None:
            chances, is_malignant = malignancy(classified, variant)
            numbers[OF_MALIGNANCY], _ = curves.areas(chances, is_malignant, draws, counted)

    # Shares with what each row has, and the rows that they are of; every other number is of all rows.
    shares: dict[str, tuple[Float | Mask, Mask]] = {"accuracy": (variant.predicted == classified.true, counted)}
    if classified.malignant is not None:
        for place, metric in enumerate(("sensitivity", "specificity")):
            shares[metric] = sides[:, 2 * place], counted & (sides[:, 2 * place + 1] > 0)
    if variant.probabilities is not None:
        shares["top_3"] = confident[:, [0]].toarray()[:, 0], counted
    missed = int((rows & ~variant.rows).sum())
    return {
        metric: draws.share_of(values, *shares[metric], missed)
        if metric in shares
        else draws.estimate(values, counted, missed)
        for metric, values in numbers.items()
    }


def malignancy(classified: ClassifiedSet, variant: Variant) -> tuple[Float, Mask]:
    """float[N] and bool[N]: the probability that a lesion is malignant, summed over such classes, and whether it is.

    Of a variant with probabilities, where malignancy is known.
    """
    assert classified.malignant is not None
    assert variant.probabilities is not None
    return (
        variant.probabilities[:, classified.malignant].sum(axis=1),
        np.append(classified.malignant, False)[classified.true],
    )


def balanced(classified: ClassifiedSet, headline: str, draws: Bootstrap, rows: Mask) -> Estimate:
    """Balanced accuracy of the rows; apart from `estimates` because a slice needs none of its other numbers."""
    variant = classified.variants[headline]
    counted = rows & variant.rows
    tp, true, _ = by_class(classified, variant, draws, counted)
    missed = int((rows & ~variant.rows).sum())
    return draws.estimate(defined_mean(ratio(tp, true)), counted, missed)


def by_class(classified: ClassifiedSet, variant: Variant, draws: Bootstrap, rows: Mask) -> tuple[Float, Float, Float]:
    """float[1 + R, C] three times: true positives, rows of the class, rows predicted as it."""
    return _split(draws.sums(_class_columns(classified, variant), rows), len(classified.classes))


def areas_of(classified: ClassifiedSet, variant: Variant, draws: Bootstrap, rows: Mask) -> list[tuple[Float, Float]]:
    """float[1 + R] twice for each class against the rest: areas under ROC and precision; NaN for one without rows."""
    if variant.log_odds is None:
        return []
    nothing = np.full(draws.size, np.nan)
    areas = []
    for column, odds in enumerate(variant.log_odds.T):
        positive = classified.true == column
        occurs = positive[rows].any()
        areas.append(curves.areas(odds, positive, draws, rows) if occurs else (nothing, nothing))
    return areas


def _class_columns(classified: ClassifiedSet, variant: Variant) -> csr_array:
    """float[N, 3 (C + 1)]: the class where it was predicted rightly, the true one, the predicted one."""
    n_classes = len(classified.classes)
    # One class more takes the rows without a prediction, so that they are predicted as none.
    hit = np.where(variant.predicted == classified.true, classified.true, n_classes)
    columns = np.stack([hit, classified.true + n_classes + 1, variant.predicted + 2 * (n_classes + 1)], axis=1)
    return _sparse(np.ones(columns.size), columns, 3 * (n_classes + 1))


def _split(sums: Float, n_classes: int) -> tuple[Float, Float, Float]:
    tp, true, predicted = (sums[:, start : start + n_classes] for start in range(0, 3 * (n_classes + 1), n_classes + 1))
    return tp, true, predicted


def _malignancy_columns(classified: ClassifiedSet, variant: Variant) -> Float:
    """float[N, 4]: malignant and recognised, malignant, benign and recognised, benign; a row without a prediction was
    recognised as neither. float[N, 0] where malignancy is not known."""
    if classified.malignant is None:
        return np.zeros((len(classified.rows), 0))
    columns = []
    for side in (np.append(classified.malignant, False), np.append(~classified.malignant, False)):
        columns += [side[classified.true] & side[variant.predicted], side[classified.true]]
    return np.stack(columns, axis=1).astype(np.float64)


def _calibration_columns(classified: ClassifiedSet, variant: Variant) -> csr_array:
    """float[N, 2 + BINS]: whether the true class is among the likeliest, squared error, right − confidence by bin."""
    n, n_classes = len(classified.rows), len(classified.classes)
    if variant.probabilities is None:
        return csr_array((n, 0))
    label = np.zeros((n, n_classes + 1))
    label[np.arange(n), classified.true] = 1.0

    brier = np.square(variant.probabilities - label[:, :n_classes]).sum(axis=1)
    top = np.argsort(-variant.probabilities, axis=1, kind="stable")[:, :TOP]
    among = (top == classified.true[:, None]).any(axis=1)
    off = (variant.predicted == classified.true) - variant.confidence
    columns = np.stack([np.zeros(n, np.int64), np.ones(n, np.int64), 2 + curves.bins(variant.confidence)], axis=1)
    return _sparse(np.stack([among, brier, off], axis=1).ravel(), columns, 2 + curves.BINS)


def _sparse(values: Float, columns: Int, width: int) -> csr_array:
    """float[N, width] of values float[N · k] in the columns int[N, k]."""
    starts = np.arange(len(columns) + 1) * columns.shape[1]
    return csr_array((values, columns.ravel(), starts), shape=(len(columns), width))
