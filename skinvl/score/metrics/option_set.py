"""Questions of which several options are right: how much of the set is said, whether all of it, and what was read.

The credit of an answer is |right ∩ said| / max(|right|, |said|), as MEDIQA-MAGIC 2025 has it: an option too many costs
as much as one too few. What an answer says is read by `skinvl.data.options`, by letter, number or name as the question
lists them. An answer that cannot be read says nothing, and has no credit; option_read is the share of those that could.
"""

from __future__ import annotations

from skinvl.data.options import chosen
from skinvl.score.metrics import means as value
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "counts", "picked", "statistics", "value"]

NAMES = ("option_credit", "option_exact", "option_read")


def counts(row: Answer) -> bool:
    """Whether the question has a set of right options."""
    return bool(row.options)


def picked(answer: str, row: Answer) -> frozenset[int] | None:
    """The numbers of the options that the answer names; None where that cannot be read."""
    return chosen(answer, row.question, row.options)


def statistics(answer: str, row: Answer) -> tuple[float, float, float, float]:
    """The credit; 1 if exactly the right options are said, else 0; 1 if the answer could be read; and 1, the row."""
    numbers, right = picked(answer, row), {*row.right}
    if numbers is None:
        return 0.0, 0.0, 0.0, 1.0
    return len(right & numbers) / max(len(right), len(numbers), 1), float(numbers == right), 1.0, 1.0
