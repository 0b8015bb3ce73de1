"""How far readers say the same beyond chance: Cohen's κ of two, Fleiss' κ of all, with intervals over groups.

κ is (p − e) / (1 − e), where p is the share of pairs of readings that are the same and e the share that would be if
readers chose at random as often as they choose. Cohen 1960, doi:10.1177/001316446002000104, takes e from what each of
the two chose; Fleiss 1971, doi:10.1037/h0031619, from what all chose together. Both are functions of sums over cases.
"""

from __future__ import annotations

import numpy as np

from skinvl.score.stats import Bootstrap, Estimate, Float, Int, ratio

UNREAD = -1  # instead of a category


def cohen(one: Int, other: Int, draws: Bootstrap) -> Estimate:
    """Cohen's κ, unweighted, of two readers' categories int[N], over the cases that both read."""
    rows = (one != UNREAD) & (other != UNREAD)
    size = int(max(one.max(initial=0), other.max(initial=0))) + 1
    table = np.concatenate([(one == other)[:, None], _ones(one, size), _ones(other, size)], axis=1)
    sums = draws.sums(table.astype(np.float64), rows)
    count = sums[:, 1 : 1 + size].sum(axis=1)
    chance = ratio((sums[:, 1 : 1 + size] * sums[:, 1 + size :]).sum(axis=1), count**2)
    return draws.estimate(_beyond(ratio(sums[:, 0], count), chance), rows, int((~rows).sum()))


def fleiss(readings: Int, draws: Bootstrap) -> Estimate:
    """Fleiss' κ of the categories int[N, J] of all readers, over the cases that all of them read."""
    rows, readers = (readings != UNREAD).all(axis=1), readings.shape[1]
    size = int(readings.max(initial=0)) + 1
    counts = np.stack([_ones(column, size) for column in readings.T]).sum(axis=0).astype(np.float64)
    same = (np.square(counts).sum(axis=1) - readers) / (readers * (readers - 1))
    sums = draws.sums(np.concatenate([same[:, None], counts], axis=1), rows)
    total = sums[:, 1:].sum(axis=1)
    chance = np.square(ratio(sums[:, 1:], total[:, None])).sum(axis=1)
    return draws.estimate(_beyond(ratio(readers * sums[:, 0], total), chance), rows, int((~rows).sum()))


def _ones(categories: Int, size: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """bool[N, C]: whether a reading is of each category."""
    return np.asarray(categories[:, None] == np.arange(size))


def _beyond(same: Float, chance: Float) -> Float:
    """κ; NaN where all readings are of one category, of which nothing can be said."""
    return ratio(same - chance, np.where(chance > 1 - 1e-12, 0.0, 1 - chance))
