"""Share right of the questions whose reference is so short that a right answer can only be the same words.

Where there are several references, each is so short, and the answer is one of them. Questions with options and answers
in JSON have metrics of their own: multiple_choice, option_set, json_fields.
"""

from __future__ import annotations

from skinvl.data.normal import UNSPACED
from skinvl.score.metrics import means as value
from skinvl.score.metrics import multiple_choice, right_answers, words
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "counts", "statistics", "value"]

NAMES = ("closed_accuracy",)
WORDS = 3.0  # of a reference, at most
LETTER = 0.5  # of a word, for each letter of a script without blanks: a word has about two


def counts(row: Answer) -> bool:
    """Whether each reference has one to three words after normalisation, and no metric of its own has the question."""
    if row.options or row.schema is not None or not all(map(_is_short, right_answers(row))):
        return False
    return not multiple_choice.counts(row) and not multiple_choice.unread(row)


def statistics(answer: str, row: Answer) -> tuple[float, float]:
    """1 if the normalised answer is a normalised reference, else 0; and 1, the row."""
    return float(words(answer) in map(words, right_answers(row))), 1.0


def _is_short(reference: str) -> bool:
    return 0 < sum(LETTER if UNSPACED.match(word) else 1.0 for word in words(reference)) <= WORDS
