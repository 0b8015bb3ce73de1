"""ROUGE-1, ROUGE-2 and ROUGE-L: the means over rows of rouge-score's F measure, with Porter's stemmer.

Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries. The words are rouge-score's: letters and digits of
English alone. The counts are made here, since its table for ROUGE-L takes longer than all other metrics together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from nltk.stem.porter import PorterStemmer
from rouge_score.tokenize import tokenize

from skinvl.score.metrics import means as value
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "statistics", "value"]

NAMES = ("rouge-1", "rouge-2", "rouge-l")


class _Stemmer:
    """Porter's stemmer, which takes each word once."""

    stem = staticmethod(lru_cache(maxsize=1 << 17)(PorterStemmer().stem))


def statistics(answer: str, row: Answer) -> tuple[float, float, float, float]:
    """The three F measures of one row; and 1, the row."""
    said, wanted = tokenize(answer, _Stemmer), tokenize(row.reference, _Stemmer)
    pairs = Counter(pairwise(said)) & Counter(pairwise(wanted))
    return (
        _f((Counter(said) & Counter(wanted)).total(), len(said), len(wanted)),
        _f(pairs.total(), len(said) - 1, len(wanted) - 1),
        _f(longest(said, wanted), len(said), len(wanted)),
        1.0,
    )


def longest(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, by one addition of bits for each word (Hyyrö 2004).

    >>> longest("a b c d".split(), "x a c b d".split())
    3
    """
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(other)) - 1
    unmatched = full
    for word in one:
        hits = unmatched & places.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & full
    return len(other) - unmatched.bit_count()


def _f(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if common else 0.0
