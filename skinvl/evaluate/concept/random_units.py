"""Random units that are as active as some others: what losing as much of an embedding does, whatever is lost.

The mass of units is the sum of their activations, a mean over images. As directions have length one, it is the length
of what they add to an embedding. A draw goes through the other units in random order and takes each that leaves the
mass at most TOLERANCE above what is wanted; one that stays more than TOLERANCE below is drawn again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from skinvl.score.stats import Float, Int, Mask

TOLERANCE = 0.05  # of the mass
TRIES = 20  # of a draw


@dataclass(frozen=True, slots=True)
class Drawn:
    """The units of one draw, and their mass."""

    units: tuple[int, ...]
    mass: float


def drawn(units: Float, rows: Mask, chosen: Collection[int], draws: int, seed: int) -> tuple[float, list[Drawn]]:
    """The mass of the chosen units in the rows of units float64[N, K], and draws of others that have it."""
    masses = units[rows].mean(axis=0)
    wanted = float(masses[sorted(chosen)].sum())
    others = np.array([unit for unit in np.flatnonzero(masses > 0).tolist() if unit not in chosen], np.int64)
    generator = np.random.default_rng(seed)
    return wanted, [_nearest(masses, others, wanted, generator) for _ in range(draws)]


def _nearest(masses: Float, others: Int, wanted: float, generator: np.random.Generator) -> Drawn:
    """The first draw whose mass is within the tolerance, or of TRIES the nearest."""
    best = Drawn((), 0.0)
    for _ in range(TRIES):
        taken, mass = [], 0.0
        for unit in generator.permutation(others).tolist():
            if mass + masses[unit] <= (1 + TOLERANCE) * wanted:
                taken.append(unit)
                mass += float(masses[unit])
            if mass >= (1 - TOLERANCE) * wanted:
                break
        if abs(mass - wanted) < abs(best.mass - wanted):
            best = Drawn(tuple(sorted(taken)), mass)
        if abs(best.mass - wanted) <= TOLERANCE * wanted:
            break
    return best
