"""Share right of the questions whose reference is so short that a right answer can only be the same words."""

from __future__ import annotations

from skinvl.data.normal import UNSPACED
from skinvl.score.metrics import means as value
from skinvl.score.metrics import multiple_choice, words
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "counts", "statistics", "value"]

NAMES = ("closed_accuracy",)
WORDS = 3.0  # of a reference, at most
LETTER = 0.5  # of a word, for each letter of a script without blanks: a word has about two


def counts(row: Answer) -> bool:
    """Whether the reference has one to three words after normalisation, and the question is not of multiple choice."""
    length = sum(LETTER if UNSPACED.match(word) else 1.0 for word in words(row.reference))
    return 0 < length <= WORDS and not multiple_choice.counts(row) and not multiple_choice.unread(row)


def statistics(answer: str, row: Answer) -> tuple[float, float]:
    """1 if the normalised answer is the normalised reference, else 0; and 1, the row."""
    return float(words(answer) == words(row.reference)), 1.0
