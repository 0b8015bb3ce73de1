"""Which class a row is given, and how surely, by each way of reading its likelihoods and by its matched answer.

With s the log-likelihood of a class name and its end after the image and the question:

- `sum`: softmax(s), the exact probability of the class, given that the answer is the name of one of the classes;
- `mean`: softmax(s / tokens), so that long names are at no disadvantage (Brown et al. 2020, arXiv:2005.14165, §2.4);
- `prior`: softmax(s − s without the image), by how much the image makes the name more likely: domain-conditional PMI
  (Holtzman et al. 2021, arXiv:2104.08315);
- `calibrated`: softmax(s / T) with T fitted on the validation rows (Guo et al. 2017, arXiv:1706.04599);
- `prompts`: of two towers, in place of `sum`: softmax(s) with s the model's scale × the cosine of the image and the
  class's prompts (Radford et al. 2021, arXiv:2103.00020, §3.1);
- `prompted`: the class that the free answer to a list of the classes names. An answer that names none, or several, is
  wrong, and no class of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from skinvl.score import curves
from skinvl.score.predictions import Classified, key
from skinvl.score.stats import Float, Mask

Int = NDArray[np.int64]

PROMPTS = "prompts"  # the variant of two towers, and what their settings say it is


class ClassError(ValueError):
    """Predictions of classes that contradict themselves."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One reading of the rows of a set.

    Attributes:
        predicted: int[N], the class; C where a row has none.
        probabilities: float[N, C], or None where there are none.
        log_odds: float[N, C], log p / (1 − p), which tells apart what rounds to a probability of 1; None likewise.
        rows: bool[N], those that have a true class and this reading.
        temperature: that was fitted, of `calibrated` alone.
    """

    predicted: Int
    probabilities: Float | None
    log_odds: Float | None
    rows: Mask
    temperature: float | None = None

    @property
    def confidence(self) -> Float:
        """float[N]: the probability of the predicted class; 0 where there is none."""
        return np.zeros(len(self.rows)) if self.probabilities is None else self.probabilities.max(axis=1)


def truth(rows: Sequence[Classified], classes: Sequence[str], where: str) -> Int:
    """int[N]: the true class of each row; C where it has none.

    Raises:
        ClassError: a label or a matched choice is none of the classes, or scores are not one finite number for each.
    """
    for row in rows:
        for what, name in (("label", row.label), ("choice", row.choice)):
            if name is not None and name not in classes:
                raise ClassError(
                    f"{where}: row {key(row)}: {what} {name!r} is none of the classes {', '.join(classes)}; "
                    "remove the file and run skinvl classify again"
                )
        if row.scores is not None and (len(row.scores) != len(classes) or not np.isfinite(row.scores).all()):
            raise ClassError(
                f"{where}: row {key(row)}: scores {list(row.scores)}; expected {len(classes)} finite numbers, one for "
                "each class. Not-a-number comes from a model whose weights or dtype are broken: check it, then remove "
                "the file and run skinvl classify again"
            )
    return _numbers([row.label for row in rows], classes)


def read(
    rows: Sequence[Classified],
    true: Int,
    settings: Mapping[str, Any],
    validation: tuple[Sequence[Classified], Int] | None,
) -> dict[str, Variant]:
    """The variants that the rows allow, by name; the first is the headline."""
    classes: Sequence[str] = settings["classes"]
    has_label = true < len(classes)
    variants: dict[str, Variant] = {}

    # By the likelihoods of the class names, or the cosines of the prompts.
    scores, has_scores = _scores(rows, len(classes))
    if has_scores.any():

        def variant(readings: Float, temperature: float | None = None) -> Variant:
            chances = np.where(has_scores[:, None], softmax(readings, axis=1), 0.0)
            return Variant(readings.argmax(axis=1), chances, _log_odds(readings), has_scores & has_label, temperature)

        variants[PROMPTS if settings.get("variant") == PROMPTS else "sum"] = variant(scores)
        if settings.get("label_tokens"):
            variants["mean"] = variant(scores / np.array(settings["label_tokens"], np.float64))
        if settings.get("prior"):
            variants["prior"] = variant(scores - np.array(settings["prior"], np.float64))
        if validation is not None:
            validation_rows, validation_true = validation
            validation_scores, usable = _scores(validation_rows, len(classes))
            usable &= validation_true < len(classes)
            if usable.any():
                fitted = curves.temperature(validation_scores[usable], validation_true[usable])
                variants["calibrated"] = variant(scores / fitted, fitted)

    # By the free answer to the list of classes.
    asked = np.array([row.outcome is not None for row in rows], np.bool_)
    if asked.any():
        variants["prompted"] = Variant(_numbers([row.choice for row in rows], classes), None, None, asked & has_label)
    return variants


def fitted(rows: Sequence[Classified], true: Int, classes: int, temperature: float) -> tuple[Float, Int]:
    """The probabilities float[V, C], at the fitted temperature, of validation rows that have scores and a true class.

    And int[V], that class.
    """
    scores, has_scores = _scores(rows, classes)
    usable = has_scores & (true < classes)
    return softmax(scores[usable] / temperature, axis=1), true[usable]


def _log_odds(readings: Float) -> Float:
    """float[N, C]: s of a class less the logsumexp of the others', of which the greatest loses nothing by it."""
    rows, top = np.arange(len(readings)), readings.argmax(axis=1)
    below = readings - readings.max(axis=1, keepdims=True)
    powers = np.exp(below)
    others = powers.sum(axis=1, keepdims=True) - powers  # at least 1, but for the greatest
    others[rows, top] = 1.0
    odds: Float = below - np.log(others)
    rest = below.copy()
    rest[rows, top] = -np.inf
    odds[rows, top] = -logsumexp(rest, axis=1)
    return odds


def _scores(rows: Sequence[Classified], classes: int) -> tuple[Float, Mask]:
    has_scores = np.array([row.scores is not None for row in rows], np.bool_)
    return np.array([row.scores or (0.0,) * classes for row in rows], np.float64).reshape(-1, classes), has_scores


def _numbers(names: Sequence[str | None], classes: Sequence[str]) -> Int:
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([len(classes) if name is None else numbers[name] for name in names], np.int64)
