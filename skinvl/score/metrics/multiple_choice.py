"""Share right of the multiple-choice questions: those that list lettered options, one to a line, such as `B. Melanoma`.

An answer chooses by the option's letter or its words, as a reader would take it, never by its first character; one that
names none, or several, is wrong.
"""

from __future__ import annotations

import re
from functools import lru_cache

from skinvl.data.match import choice_letter
from skinvl.score.metrics import means as value
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "counts", "statistics", "value"]

NAMES = ("multiple_choice",)
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)


def counts(row: Answer) -> bool:
    """Whether the question lists at least two options and its reference chooses one."""
    return _right(row.question, row.reference) is not None


def statistics(answer: str, row: Answer) -> tuple[float, float]:
    """1 if the answer chooses the option that the reference chooses, else 0; and 1, the row."""
    chosen = choice_letter(answer, options(row.question)).choice
    return float(chosen is not None and chosen == _right(row.question, row.reference)), 1.0


def options(question: str) -> dict[str, str]:
    """Letter → option of a question that lists them in the order of the alphabet; empty for any other.

    >>> options("Which is it?\\nA. Nevus\\nB. Melanoma")
    {'A': 'Nevus', 'B': 'Melanoma'}
    """
    listed: list[tuple[str, str]] = _OPTION.findall(question)
    letters = "".join(letter for letter, _ in listed)
    return dict(listed) if len(listed) > 1 and "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters) else {}


@lru_cache(maxsize=1 << 16)
def _right(question: str, reference: str) -> str | None:
    listed = options(question)
    return choice_letter(reference, listed).choice if listed else None
