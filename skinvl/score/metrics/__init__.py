"""Metrics of free answers, each a module of this folder; all are sums over rows until the very end.

A module has

- `NAMES: tuple[str, ...]`, the names of its numbers, all from 0 to 1 and better when higher;
- `statistics(answer, row) -> Sequence[float]`, k numbers of one row, spread over processes; or
  `table(rows, argument) -> float[n, k]` of all rows at once, where a model must be loaded;
- `value(sums: float[..., k]) -> float[..., len(NAMES)]`, the numbers from the sums over any rows;
- `counts(row) -> bool`, if it is not for every row;
- `unread(row) -> bool`, if there are rows that it would be for, had what they ask been read: they are not scored;
- `ROW_MEANS = True`, if its numbers are the means of its first statistics though `value` is more than `means`.

A row that was not answered has no statistics. An empty answer is an answer, and scores zero.

Where a row has several references, a metric takes the best over those that are right, which weigh more than 0; each of
its numbers its own. By how much they weigh only delta_bleu goes.
"""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import numpy as np

from skinvl.data.normal import APOSTROPHES, spaced, unmarked
from skinvl.score.predictions import Answer
from skinvl.score.stats import Float, ratio


class _Characters(dict[int, str]):
    """What becomes of a character: punctuation a space, formatting such as a soft hyphen nothing, the rest itself."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))
        self[code] = " " if kind[0] == "P" or kind == "Cc" else "" if kind == "Cf" else chr(code)
        return self[code]


_CHARACTERS = _Characters()


class MetricError(ValueError):
    """A metric that there is not, or whose model or data are absent."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One module of this folder, loaded; `argument` is what stands after the colon of its name."""

    name: str
    names: tuple[str, ...]
    argument: str | None
    table: Callable[[Sequence[Answer]], Float]
    value: Callable[[Float], Float]
    counts: Callable[[Answer], bool]
    unread: Callable[[Answer], bool]
    row_means: bool  # whether its numbers are means over rows, of numbers from 0 to 1
    by_row: bool  # whether rows may be spread over processes


def load(name: str) -> Metric:
    """The metric of a name such as `bleu`, or `bertscore:MODEL` for one that takes an argument.

    Raises:
        MetricError: no such metric, or an argument too many; what the module itself raises.
    """
    stem, _, argument = name.partition(":")
    known = names()
    if stem not in known:
        near = get_close_matches(stem, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise MetricError(f"evaluate.metrics: {name!r}: no such metric; {hint}")
    module = importlib.import_module(f"{__name__}.{stem}")
    by_row = hasattr(module, "statistics")
    if by_row and argument:
        raise MetricError(f"evaluate.metrics: {name!r}: {stem} takes no argument; write {stem}")

    def table(rows: Sequence[Answer]) -> Float:
        if not rows:
            return np.zeros((0, 1))
        if not by_row:
            whole: Float = module.table(rows, argument)
            return whole
        return np.array([module.statistics(row.answer, row) for row in rows], np.float64)

    counts = getattr(module, "counts", lambda row: True)
    unread = getattr(module, "unread", lambda row: False)
    row_means = module.value is means or getattr(module, "ROW_MEANS", False)
    return Metric(name, module.NAMES, argument or None, table, module.value, counts, unread, row_means, by_row)


def names() -> list[str]:
    """The names of the metrics: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """The normalised words of a text, which answer and reference are compared by.

    Compatibility forms are unified, accents left off and case is folded; apostrophes vanish, and every other
    punctuation mark separates, so that 2.5 is not 25 and non-tumor is not one word with tumor in it. Signs such as <
    and + stay, and so do articles: a reference may be the letter A. Of scripts that write no blanks, each letter is a
    word.

    >>> words("The patient’s Non-tumor, ≥2.5 ＭＭ: Behçet 痣")
    ('the', 'patients', 'non', 'tumor', '≥2', '5', 'mm', 'behcet', '痣')
    """
    plain = unmarked(text.translate(APOSTROPHES)).casefold()
    return tuple(spaced(plain.translate(_CHARACTERS)).split())


def right_answers(row: Answer) -> tuple[str, ...]:
    """The texts that answer a row's question rightly: its references that weigh more than 0, or its only one.

    Of several, those without words are left out, which an answer without words would match.
    """
    if not row.references:
        return (row.reference,)
    texts = tuple(reference.text for reference in row.references if reference.weight > 0 and words(reference.text))
    return texts or (row.reference,)


def best(statistics: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Of each statistic the greatest, over the references of a row."""
    return statistics[0] if len(statistics) == 1 else tuple(map(max, zip(*statistics, strict=True)))


def has_reference(row: Answer) -> bool:
    """Whether there is anything to compare an answer with: a reference that has words."""
    return bool(words(right_answers(row)[0]))


def means(sums: Float) -> Float:
    """Each sum but the last over the last, which counts rows; NaN where there is none."""
    return ratio(sums[..., :-1], sums[..., -1:])


def measure(rows: Sequence[Answer], metrics: Sequence[Metric]) -> dict[str, float]:
    """Each number over the rows that were answered, without intervals; NaN where no row counts."""
    numbers: dict[str, float] = {}
    for metric in metrics:
        counted = [row for row in rows if row.answer is not None and has_reference(row) and metric.counts(row)]
        values = metric.value(metric.table(counted).sum(axis=0)) if counted else np.full(len(metric.names), np.nan)
        numbers.update(zip(metric.names, values.tolist(), strict=True))
    return numbers
