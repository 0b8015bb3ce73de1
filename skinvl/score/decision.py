"""Decision curves: whether acting on a model is worth more than acting on everyone, or on no one.

Who would act from a probability t of malignancy on holds one malignant lesion that is found worth (1 − t) / t benign
ones that are treated for nothing. Over n lesions the net benefit of the model is TP / n − FP / n × t / (1 − t), that of
treating all the same with all of them, that of treating none 0 (Vickers & Elkin 2006, doi:10.1177/0272989X06295361).
It takes probabilities at their word: a model that is not calibrated loses by it, and a test set that is enriched
flatters treating all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from skinvl.score.operating import Malignancy
from skinvl.score.stats import Bootstrap, Estimate, Float, Int, ratio

THRESHOLDS = np.arange(1, 100) / 100  # from which probability on one acts


def curve(test: Malignancy, draws: Bootstrap) -> list[dict[str, Any]]:
    """A point for each threshold: net benefit of the model, of treating all, and the model's less the better of both.

    The last, `gain`, is against treating all or none, whichever is worth more in the same rows.
    """
    model, every = net_benefits(test, draws)
    better = model - np.maximum(every, 0.0)
    sizes: tuple[Int, ...] = (draws.sizes(test.rows),)
    return [
        {
            "threshold": float(threshold),
            "model": Estimate(model[:, number], sizes).number(),
            "treat_all": float(every[0, number]),
            "gain": Estimate(better[:, number], sizes).number(),
        }
        for number, threshold in enumerate(THRESHOLDS)
    ]


def net_benefits(test: Malignancy, draws: Bootstrap) -> tuple[Float, Float]:
    """float[1 + R, T] twice: the net benefit of the model and of treating all, in the data and in each resample."""
    # Each row is counted once, at the highest threshold that it reaches; above it stand those that reach all below.
    reached = np.searchsorted(THRESHOLDS, test.probability, side="right")
    width = len(THRESHOLDS) + 1
    columns = reached + width * ~test.malignant
    ones, starts = np.ones(len(reached)), np.arange(len(reached) + 1)
    sums = draws.sums(csr_array((ones, columns, starts), shape=(len(reached), 2 * width)), test.rows)
    tp, fp = (np.cumsum(side[:, :0:-1], axis=1)[:, ::-1] for side in (sums[:, :width], sums[:, width:]))

    malignant, benign = (sums[:, start : start + width].sum(axis=1, keepdims=True) for start in (0, width))
    odds = THRESHOLDS / (1 - THRESHOLDS)
    n = malignant + benign
    return ratio(tp - fp * odds, n), ratio(malignant - benign * odds, n)
