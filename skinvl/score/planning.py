"""How many groups an interval of a wanted width takes, before anything was classified.

AUROC by Hanley & McNeil 1982 (doi:10.1148/radiology.143.1.7063747), a share by the normal approximation, the
calibration slope by the information of a logistic regression (Riley et al. 2021, doi:10.1002/sim.9025) whose linear
predictors are normal among malignant and benign rows alike, as far apart as the AUROC says. Rows of a group are worth
fewer by the design effect 1 + (m − 1) ρ (Kish 1965) of m rows with a correlation ρ. It is a plan: real widths depend on
what is not known before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, ndtri

from skinvl.score.stats import LEVEL

QUANTILE = float(ndtri((1 + LEVEL) / 2))
NODES = 41  # of the Gauss-Hermite quadrature
MOST = 10**9  # rows that are looked for


class PlanningError(ValueError):
    """A plan that cannot be made as it was asked for."""


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is taken for granted of rows and model."""

    value: float = 0.85  # of the number; of the slope, the AUROC
    prevalence: float = 0.3  # share of malignant rows
    rows: float = 1.0  # of a group
    icc: float = 0.5  # correlation of the rows of a group


def groups_for(text: str) -> str:
    """The answer to `NAME=WIDTH,KEY=NUMBER,…` in words.

    Raises:
        PlanningError: another form, name or number.
    """
    (name, width), assumed = _read(text)
    error = float(width) / 2 / QUANTILE
    found = _rows(lambda n: VARIANCES[name](assumed, n), error**2)
    effect = 1 + (assumed.rows - 1) * assumed.icc
    groups = math.ceil(found * effect / assumed.rows)
    value = "AUROC" if name == "slope" else name
    return (
        f"{groups:,} groups for a {LEVEL:.0%} interval of {name} that is {width:g} wide: {found:,} independent rows, "
        f"{math.ceil(found * assumed.prevalence):,} of them malignant; assumed a {value} of {assumed.value:g} (value), "
        f"{assumed.prevalence:.3g} of the rows malignant (prevalence), {assumed.rows:g} rows a group (rows) with a "
        f"correlation of {assumed.icc:g} (icc): design effect {effect:.3g}"
    )


def _read(text: str) -> tuple[tuple[str, float], Assumed]:
    keys = [field.name for field in fields(Assumed)]
    expected = f"expected NAME=WIDTH with {', '.join(VARIANCES)}, then any of {', '.join(keys)}, such as auroc=0.1"
    pairs: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = part.partition("=")
        try:
            pairs[key.strip()] = float(number)
        except ValueError:
            raise PlanningError(f"--groups-for {text}: {part!r} is no NAME=NUMBER; {expected}") from None
    (name, width), *rest = pairs.items()
    if unknown := [key for key in pairs if key not in ([*VARIANCES] if key == name else keys)]:
        raise PlanningError(f"--groups-for {text}: {unknown[0]!r}; {expected}")
    assumed = Assumed(**dict(rest))
    bounds = {"value": (0.5 if name in ("auroc", "slope") else 0.0, 1.0), "prevalence": (0.0, 1.0)}
    for key, (low, high) in bounds.items():
        if not low < (own := getattr(assumed, key)) < high:
            raise PlanningError(f"--groups-for {text}: {key} {own:g}; expected a number between {low:g} and {high:g}")
    if not 0 < width < 1 + (name == "slope") or assumed.rows < 1 or not 0 <= assumed.icc <= 1:
        raise PlanningError(
            f"--groups-for {text}: expected a width above 0 and below 1 (of slope 2), rows of at least 1, icc from 0 "
            "to 1"
        )
    return (name, width), assumed


def auroc(assumed: Assumed, n: float) -> float:
    """The variance of the area of n rows."""
    a, ill = assumed.value, assumed.prevalence * n
    well = n - ill
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    return (a * (1 - a) + (ill - 1) * (q1 - a**2) + (well - 1) * (q2 - a**2)) / (ill * well)


def sensitivity(assumed: Assumed, n: float) -> float:
    """The variance of the share of the malignant rows that are found."""
    return assumed.value * (1 - assumed.value) / (assumed.prevalence * n)


def specificity(assumed: Assumed, n: float) -> float:
    """The variance of the share of the benign rows that are spared."""
    return assumed.value * (1 - assumed.value) / ((1 - assumed.prevalence) * n)


def slope(assumed: Assumed, n: float) -> float:
    """The variance of the calibration slope of a model that is calibrated.

    With variances of 1 the means of two normal scores of an area A are √2 Φ⁻¹(A) =: d apart, and the logit is d times
    the score and a constant: of variance d² about means that are d² apart.
    """
    d = math.sqrt(2) * float(ndtri(assumed.value))
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    shares = weights / weights.sum()
    middle = math.log(assumed.prevalence / (1 - assumed.prevalence))
    logits = np.concatenate([middle + side * d**2 / 2 + d * nodes for side in (1, -1)])
    mass = np.concatenate([assumed.prevalence * shares, (1 - assumed.prevalence) * shares])
    w = mass * expit(logits) * expit(-logits)
    one, cross, square = w.sum(), (w * logits).sum(), (w * logits**2).sum()
    return float(one / (one * square - cross**2) / n)


VARIANCES: dict[str, Callable[[Assumed, float], float]] = {
    "auroc": auroc,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "slope": slope,
}


def _rows(variance: Callable[[float], float], wanted: float) -> int:
    """The fewest rows whose variance is as small as wanted."""
    least = 4.0
    if variance(least) <= wanted:
        return int(least)
    found = float(brentq(lambda n: variance(n) - wanted, least, MOST, xtol=1e-6))
    return math.ceil(found - 1e-6)
