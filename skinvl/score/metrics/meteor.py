"""METEOR with exact, stemmed and WordNet matches: nltk's, on normalised words, the mean over rows.

Banerjee & Lavie 2005, METEOR: An Automatic Metric for MT Evaluation; alpha 0.9, beta 3, gamma 0.5 as nltk has them. Of
several references the best counts.
"""

from __future__ import annotations

from functools import lru_cache

from nltk.corpus import wordnet
from nltk.translate.meteor_score import single_meteor_score

from skinvl.score.metrics import MetricError, right_answers, words
from skinvl.score.metrics import means as value
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "statistics", "value"]

NAMES = ("meteor",)


@lru_cache(maxsize=1)
def _ready() -> None:
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise MetricError(
            "evaluate.metrics: meteor needs WordNet, which nltk does not find; get it once with "
            "`python -m nltk.downloader wordnet` (its folder is named by NLTK_DATA), or leave meteor out"
        ) from error


def statistics(answer: str, row: Answer) -> tuple[float, float]:
    """METEOR of one row; and 1, the row.

    Raises:
        MetricError: WordNet is not there.
    """
    _ready()
    said = words(answer)
    return max(float(single_meteor_score(words(text), said)) for text in right_answers(row)), 1.0
