"""Macro F1 over the options of questions of which several may be right: the mean of the options that are ever right.

An option is told from others by its words and the kind of its question. Where there are more than MANY of them they are
not those of a fixed list, and there is no number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skinvl.score.metrics.option_set import counts, picked
from skinvl.score.predictions import Answer
from skinvl.score.stats import Float, defined_mean, ratio

__all__ = ["MANY", "NAMES", "by_option", "counts", "options_of", "table", "value"]

NAMES = ("option_f1",)
MANY = 512


def options_of(rows: Sequence[Answer]) -> list[str]:
    """The options of the rows, each with the kind of its question, in order; none where there are more than MANY."""
    names = sorted({_name(row, option) for row in rows for option in row.options})
    return names if len(names) <= MANY else []


def table(rows: Sequence[Answer], argument: str | None = None) -> Float:
    """float[n, 3 C + 1]: of each of the C options whether it is said and right, said, right; and 1, the row."""
    columns = {name: column for column, name in enumerate(options_of(rows))}
    marked = np.zeros((len(rows), len(columns), 3))
    for index, row in enumerate(rows if columns else ()):
        numbers = picked(row.answer or "", row) or frozenset()
        for number, option in enumerate(row.options):
            is_said, is_right = number in numbers, number in row.right
            marked[index, columns[_name(row, option)]] = is_said and is_right, is_said, is_right
    return np.concatenate([marked.reshape(len(rows), -1), np.ones((len(rows), 1))], axis=1)


def by_option(sums: Float) -> Float:
    """float[..., C, 3]: of each option how often it is said and right, said, right; of sums float[..., 3 C + 1]."""
    return sums[..., :-1].reshape(*sums.shape[:-1], -1, 3)


def value(sums: Float) -> Float:
    """float[..., 1]: the macro F1; NaN where no option is right."""
    both, of_answer, of_reference = np.moveaxis(by_option(sums), -1, 0)
    f1 = np.where(of_reference > 0, ratio(2 * both, of_answer + of_reference), np.nan)
    return defined_mean(f1)[..., None]


def _name(row: Answer, option: str) -> str:
    return f"{row.facts.kind}: {option}" if row.facts.kind else option
