"""Each institution's value, and what they come to together: a random-effects mean, and where another one would lie.

Shares are pooled as logits y with the variances v of their groups: the weights are 1 / (v + τ²) with τ², the variance
between institutions, by DerSimonian & Laird 1986 (doi:10.1016/0197-2456(86)90046-2); the interval of the mean is that
of Hartung & Knapp 2001 (doi:10.1002/sim.1009) with Student's t of K − 1 degrees of freedom, never narrower than without
their factor (Röver et al. 2015, doi:10.1186/s12874-015-0091-1); the interval in which the value of another institution
is expected adds τ² and has K − 2 (Higgins, Thompson & Spiegelhalter 2009, doi:10.1111/j.1467-985X.2008.00552.x).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit, stdtrit

from skinvl.recipe import strict
from skinvl.score import classification, slices
from skinvl.score.classification import ClassifiedSet
from skinvl.score.stats import FEWEST, LEVEL, NOTHING, WILSON, Bootstrap, Estimate, Float, Mask

FIELD = "institution"
LEAST = 3  # institutions whose values are pooled
METHOD = "Hartung-Knapp"


def block(classified: ClassifiedSet, headline: str, draws: Bootstrap) -> dict[str, Any] | None:
    """The shares of a set by institution and together; None where no row knows its institution."""
    if FIELD not in slices.known(classified.rows):
        return None
    own = {name: rows for name, rows in slices.values(classified.rows, FIELD).items() if name != slices.UNKNOWN}
    return {
        metric: together({name: draws.share(right, of & rows) for name, rows in own.items() if (of & rows).any()})
        for metric, (right, of) in _shares(classified, headline).items()
    }


def left_out(runs: Sequence[Path], sets: Sequence[Mapping[str, ClassifiedSet]]) -> dict[str, Any] | None:
    """By set and metric, each institution's share by the run that trained without it, and these together.

    None where the runs are not such, each without another institution.

    Args:
        sets: what each of the runs classified, by name.
    """
    places = [_without(run) for run in runs]
    if None in places or len({*places}) < len(places):
        return None
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for place, classified in zip(places, sets, strict=True):
        for name, one in classified.items():
            own = slices.values(one.rows, FIELD).get(str(place))
            if own is None or not one.variants:
                continue
            draws = classification.bootstrap(one.rows, 0, 0)
            for metric, (right, of) in _shares(one, next(iter(one.variants))).items():
                if (of & own).any():
                    shares = found.setdefault(name, {}).setdefault(metric, {})
                    shares[str(place)] = draws.share(right, of & own)
    return {name: {metric: together(shares) for metric, shares in of.items()} for name, of in found.items()}


def _without(run: Path) -> str | None:
    """The institution that a run was trained without."""
    path = run / "recipe.yaml"
    data = strict.read(path).data.get("data") if path.is_file() else None
    place = ((data or {}).get("without") or {}).get(FIELD)
    return None if place is None else str(place)


def _shares(classified: ClassifiedSet, headline: str) -> dict[str, tuple[Mask, Mask]]:
    """Which rows are right, and of which rows that is the share."""
    variant = classified.variants[headline]
    shares: dict[str, tuple[Mask, Mask]] = {"accuracy": (variant.predicted == classified.true, variant.rows)}
    if classified.malignant is not None:
        side = np.append(classified.malignant, False)
        malignant, called = side[classified.true], side[variant.predicted]
        shares |= {
            "sensitivity": (called, variant.rows & malignant),
            "specificity": (~called & (variant.predicted < len(classified.classes)), variant.rows & ~malignant),
        }
    return shares


def together(shares: Mapping[str, Estimate]) -> dict[str, Any]:
    """Each institution's share, and the pooled one with `tau` and the interval of another institution's value."""
    usable = {name: share for name, share in shares.items() if share.groups >= FEWEST[WILSON]}
    values = np.array([share.value for share in usable.values()])
    variances = np.array([share.variance or 0.0 for share in usable.values()])
    sizes = np.array([share.n for share in usable.values()], np.float64)
    n, groups = sum(share.n for share in usable.values()), sum(share.groups for share in usable.values())
    return {
        "by": {name: share.number() for name, share in shares.items()},
        "pooled": pooled(values, variances, sizes) | {"n": n, "groups": groups, "unscored": 0},
    }


def pooled(shares: Float, variances: Float, n: Float) -> dict[str, Any]:
    """The random-effects mean of shares float[K] with these variances, of so many rows each.

    A share of 0 or 1, or one whose groups are alike, has that of half a row more of either kind.
    """
    if len(shares) < LEAST:
        nothing = dict.fromkeys(("value", "low", "high", "tau", "expected"))
        return {**nothing, "method": f"too few institutions ({len(shares)})", "institutions": len(shares)}
    smooth = (shares * n + 0.5) / (n + 1)
    edge = (variances < NOTHING**2) | (shares < NOTHING) | (shares > 1 - NOTHING)
    p = np.where(edge, smooth, shares)
    v = np.where(edge, smooth * (1 - smooth) / (n + 1), variances) / (p * (1 - p)) ** 2
    y, k = logit(p), len(shares)

    mean, plain, tau2 = random_effects(y, v)
    off = float(((y - mean) ** 2 / (v + tau2)).sum())
    error = plain * float(np.sqrt(max(1.0, off / (k - 1))))
    half = float(stdtrit(k - 1, (1 + LEVEL) / 2)) * error
    wide = float(stdtrit(k - 2, (1 + LEVEL) / 2)) * float(np.sqrt(tau2 + error**2))
    low, high, least, most = (float(expit(mean + end)) for end in (-half, half, -wide, wide))
    return {
        "value": float(expit(mean)),
        "low": low,
        "high": high,
        "method": METHOD,
        "tau": float(np.sqrt(tau2)),
        "expected": [least, most],
        "institutions": k,
    }


def random_effects(y: Float, v: Float) -> tuple[float, float, float]:
    """The mean of effects float[K] with variances float[K], its standard error, and τ², by DerSimonian and Laird."""
    weights = 1 / v
    mean = float((weights * y).sum() / weights.sum())
    off = float((weights * (y - mean) ** 2).sum())
    tau2 = max(0.0, (off - (len(y) - 1)) / float(weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (v + tau2)
    return float((weights * y).sum() / weights.sum()), float(1 / np.sqrt(weights.sum())), tau2
