"""Operating points: from which probability of malignancy on a lesion is called malignant, and what comes of it.

A threshold is taken on the validation rows alone, at a sensitivity or a specificity that is fixed beforehand; the test
rows are then read with it. What is right of those called malignant depends on how many are: test sets are enriched, so
that predictive values are given for a prevalence π that the user names, by Bayes' theorem,

    PPV = Se π / (Se π + (1 − Sp) (1 − π)),    NPV = Sp (1 − π) / (Sp (1 − π) + (1 − Se) π),

and 1 / PPV is how many biopsies find one malignant lesion, if every lesion that is called malignant is biopsied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skinvl.score import classification, slices
from skinvl.score.classification import ClassifiedSet
from skinvl.score.stats import Bootstrap, Float, Mask, ratio

FIXED = (("sensitivity", 0.9), ("sensitivity", 0.95), ("specificity", 0.9), ("specificity", 0.95))
VARIANT = "calibrated"  # the reading that has validation rows


@dataclass(frozen=True, slots=True)
class Malignancy:
    """How likely each row is malignant, float[N], whether it is, bool[N], and which rows have both, bool[N]."""

    probability: Float
    malignant: Mask
    rows: Mask


def of_rows(classified: ClassifiedSet, name: str) -> Malignancy | None:
    """The malignancy of the rows by a variant, the sum over malignant classes; None where either is not known."""
    variant = classified.variants.get(name)
    if classified.malignant is None or variant is None or variant.probabilities is None:
        return None
    return Malignancy(*classification.malignancy(classified, variant), variant.rows)


def of_validation(classified: ClassifiedSet) -> Malignancy | None:
    """The same of the validation rows; None where there are none."""
    if classified.malignant is None or classified.validation is None:
        return None
    probabilities, true = classified.validation
    return Malignancy(
        probabilities[:, classified.malignant].sum(axis=1), classified.malignant[true], np.ones(len(true), np.bool_)
    )


def threshold(validation: Malignancy, fixed: str, at: float) -> float | None:
    """The probability from which on to call a lesion malignant; None where so few rows cannot tell `at` from 1.

    At a fixed sensitivity the highest that lets at most ⌊n (1 − at)⌋ of n malignant validation rows pass below it; at a
    fixed specificity the lowest that at most so many of n benign ones reach.
    """
    side = validation.malignant if fixed == "sensitivity" else ~validation.malignant
    own = np.sort(validation.probability[side & validation.rows])
    missed = math.floor(len(own) * (1 - at) + 1e-9)
    if not missed:
        return None
    return float(own[missed]) if fixed == "sensitivity" else float(np.nextafter(own[len(own) - 1 - missed], math.inf))


def block(classified: ClassifiedSet, draws: Bootstrap, prevalences: Sequence[float]) -> dict[str, Any] | None:
    """The operating points of a set, or why it has none; None where no malignancy is known."""
    test, validation = of_rows(classified, VARIANT), of_validation(classified)
    if classified.malignant is None:
        return None
    if test is None or validation is None:
        return {
            "points": [],
            "slices": None,
            "missing": "no validation rows: name a split for them (evaluate.classify: validation), so that no test row "
            "chooses a threshold",
        }
    found = list(_points(test, validation, draws, prevalences))
    chosen = next((point for point in found if point["threshold"] is not None), None)
    return {
        "validation": {"malignant": int(validation.malignant.sum()), "benign": int((~validation.malignant).sum())},
        "points": found,
        "slices": None if chosen is None else _slices(classified, test, chosen["threshold"], draws),
        "missing": None,
    }


def _slices(classified: ClassifiedSet, test: Malignancy, threshold: float, draws: Bootstrap) -> dict[str, Any]:
    """Sensitivity and specificity of subgroups at the first threshold that could be chosen, with their gaps."""
    called = test.probability >= threshold
    sides = {"sensitivity": (called, test.rows & test.malignant), "specificity": (~called, test.rows & ~test.malignant)}

    def table(right: Mask, of: Mask, name: str) -> dict[str, Any]:
        return slices.table(classified.rows, name, lambda rows: draws.share(right, of & rows))

    return {name: table(right, of, name) for name, (right, of) in sides.items()}


def _points(
    test: Malignancy, validation: Malignancy, draws: Bootstrap, prevalences: Sequence[float]
) -> Iterator[dict[str, Any]]:
    for fixed, at in FIXED:
        found = threshold(validation, fixed, at)
        point: dict[str, Any] = {"fixed": fixed, "at": at, "threshold": found}
        if found is not None:
            point |= _numbers(test, test.probability >= found, draws, prevalences)
        yield point


def _numbers(test: Malignancy, called: Mask, draws: Bootstrap, prevalences: Sequence[float]) -> dict[str, Any]:
    """What comes of calling these rows malignant."""
    sides = {"sensitivity": (called, test.rows & test.malignant), "specificity": (~called, test.rows & ~test.malignant)}
    shares = {name: draws.share(right, rows) for name, (right, rows) in sides.items()}
    se, sp = (shares[name].values for name in sides)
    at_prevalence = []
    for prevalence in prevalences:
        ppv, npv = predictive(se, sp, prevalence)
        values = {"ppv": ppv, "npv": npv, "biopsies": ratio(np.ones_like(ppv), ppv)}
        numbers = {name: draws.estimate(each, test.rows).number() for name, each in values.items()}
        at_prevalence.append({"prevalence": prevalence, **numbers})
    return {**{name: share.number() for name, share in shares.items()}, "at_prevalence": at_prevalence}


def predictive(sensitivity: Float, specificity: Float, prevalence: float) -> tuple[Float, Float]:
    """Positive and negative predictive value at a prevalence; NaN where nothing would be called so."""
    found, spared = sensitivity * prevalence, specificity * (1 - prevalence)
    ppv = ratio(found, found + (1 - specificity) * (1 - prevalence))
    return ppv, ratio(spared, spared + (1 - sensitivity) * prevalence)
