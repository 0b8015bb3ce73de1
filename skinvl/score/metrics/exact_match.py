"""Whether the normalised answer is the normalised reference, or any of several."""

from __future__ import annotations

from skinvl.score.metrics import means as value
from skinvl.score.metrics import right_answers, words
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "statistics", "value"]

NAMES = ("exact_match",)


def statistics(answer: str, row: Answer) -> tuple[float, float]:
    """1 if right, else 0; and 1, the row."""
    return float(words(answer) in map(words, right_answers(row))), 1.0
