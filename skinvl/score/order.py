"""What another order of a conversation's images changes: questions asked twice, told apart by nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from skinvl.score import answers
from skinvl.score.answers import Measured
from skinvl.score.compare import Resampling, same_rows
from skinvl.score.metrics import words


def block(
    name: str, given: Measured, turned: Measured, resampling: Resampling, what: str = "reversed"
) -> dict[str, Any]:
    """The Block of scores.json for the questions of a set that were asked with the images in reverse order too.

    `same` is the share of these whose answer has the same words both times. Each metric has its number both times, over
    the rows that were scored both times, and the difference, reversed − given, of these pairs.

    Args:
        given: all of the set's answers, to the images in their own order.
        what: how they were asked the other time, as the block calls it.

    Raises:
        CompareError: a question was not asked with the images in their own order.
    """
    given = same_rows(name, turned, given)
    draws = answers.bootstrap(turned.rows, resampling.resamples, resampling.seed)
    both = given.scored & turned.scored
    pairs = zip(given.rows, turned.rows, strict=True)
    same = np.array([words(one.answer or "") == words(other.answer or "") for one, other in pairs], np.bool_)
    before, after = (answers.estimates(side, draws, both) for side in (given, turned))
    return {
        "rows": len(turned.rows),
        "unpaired": int((~both).sum()),
        "same": draws.share(same, both).number(),
        "metrics": {
            metric: {
                "given": before[metric].number(),
                what: after[metric].number(),
                "difference": after[metric].minus(before[metric]).number(),
            }
            for metric in after
        },
    }
