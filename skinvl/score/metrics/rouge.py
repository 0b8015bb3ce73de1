"""ROUGE-1, ROUGE-2 and ROUGE-L: the means over rows of rouge-score's F measure, with Porter's stemmer.

Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries. The words of English are rouge-score's, letters and
digits without accents; it knows none of any other script, which have theirs here. The counts are made here too, since
its table for ROUGE-L takes longer than all other metrics together. Of several references each measure takes the one
that is best for it, as rouge-score's score_multi does.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from nltk.stem.porter import PorterStemmer
from rouge_score.tokenize import tokenize

from skinvl.data.normal import spaced, unmarked
from skinvl.score.metrics import best, means, right_answers
from skinvl.score.predictions import Answer
from skinvl.score.stats import Float

__all__ = ["NAMES", "ROW_MEANS", "statistics", "value"]

NAMES = ("rouge-1", "rouge-2", "rouge-l")
ROW_MEANS = True


class _Letters(dict[int, str]):
    """What becomes of a character: a letter, digit or mark itself, formatting nothing, anything else a space."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))
        self[code] = chr(code) if kind[0] in "LNM" else "" if kind == "Cf" else " "
        return self[code]


_LETTERS = _Letters()


class _Stemmer:
    """Porter's stemmer, which takes each word once."""

    stem = staticmethod(lru_cache(maxsize=1 << 17)(PorterStemmer().stem))


def statistics(answer: str, row: Answer) -> tuple[float, ...]:
    """The three F measures of one row; whether it has words, and pairs of words, to be compared; and 1, the row.

    It has them where the answer or the reference has; an answer without words can be compared, and is 0.
    """
    ours = _tokens(answer)
    return best([_compared(ours, _tokens(text)) for text in right_answers(row)])


def _compared(ours: list[str], theirs: list[str]) -> tuple[float, float, float, float, float, float]:
    pairs = Counter(pairwise(ours)) & Counter(pairwise(theirs))
    return (
        _f((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs)),
        _f(pairs.total(), len(ours) - 1, len(theirs) - 1),
        _f(longest(ours, theirs), len(ours), len(theirs)),
        float(bool(ours or theirs)),
        float((bool(theirs) and not ours) or max(len(ours), len(theirs)) > 1),
        1.0,
    )


def value(sums: Float) -> Float:
    """float[..., 3]: the means of the F measures; NaN where no row has what one compares, as two words for ROUGE-2."""
    averages = means(sums)
    has_words, has_pairs = averages[..., 3:4] > 0, averages[..., 4:5] > 0
    return np.where(np.concatenate([has_words, has_pairs, has_words], axis=-1), averages[..., :3], np.nan)


def _tokens(text: str) -> list[str]:
    plain = unmarked(text)
    if plain.isascii():
        english: list[str] = tokenize(plain, _Stemmer)
        return english
    tokens: list[str] = []
    for word in spaced(plain.casefold().translate(_LETTERS)).split():
        tokens += tokenize(word, _Stemmer) if word.isascii() else [word]
    return tokens


def longest(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, by one addition of bits for each word (Hyyrö 2004).

    >>> longest("a b c d".split(), "x a c b d".split())
    3
    """
    # Bit i of a word's mask: the i-th word of the other is this one.
    masks: dict[str, int] = {}
    for index, word in enumerate(other):
        masks[word] = masks.get(word, 0) | 1 << index

    full = (1 << len(other)) - 1
    unmatched = full
    for word in one:
        hits = unmatched & masks.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & full
    return len(other) - unmatched.bit_count()


def _f(common: int, answer_length: int, reference_length: int) -> float:
    return 2 * common / (answer_length + reference_length) if common else 0.0
