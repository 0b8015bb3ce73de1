"""Overlap of normalised words: the means over rows of recall, precision and their harmonic mean.

A word counts as often as both have it, as in SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250): repeating a word of the
reference gains nothing, and lowers precision. What a word is, is said at `skinvl.score.metrics.words`. Of several
references each of the three takes the one that is best for it, as bert-score does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from skinvl.score.metrics import best, right_answers, words
from skinvl.score.metrics import means as value
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "statistics", "value"]

NAMES = ("token_recall", "token_precision", "token_f1")


def statistics(answer: str, row: Answer) -> tuple[float, ...]:
    """Recall, precision and F1 of one row; and 1, the row."""
    answer_words = words(answer)
    return best([_overlap(answer_words, words(text)) for text in right_answers(row)])


def _overlap(answer_words: Sequence[str], reference_words: Sequence[str]) -> tuple[float, float, float, float]:
    common = sum((Counter(answer_words) & Counter(reference_words)).values())
    if not common:
        return 0.0, 0.0, 0.0, 1.0
    f1 = 2 * common / (len(answer_words) + len(reference_words))
    return common / len(reference_words), common / len(answer_words), f1, 1.0
