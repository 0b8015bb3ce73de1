"""The numbers of free answers: every metric over the rows that were answered, with intervals, by kind and by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from skinvl.data.workers import Workers, advance
from skinvl.score import slices, unsupported
from skinvl.score.metrics import (
    Metric,
    has_reference,
    json_fields,
    load,
    option_f1,
    option_set,
    right_answers,
    words,
)
from skinvl.score.metrics.closed_accuracy import NAMES as CLOSED
from skinvl.score.metrics.closed_accuracy import counts as is_closed
from skinvl.score.predictions import Answer, rule
from skinvl.score.stats import Bootstrap, Estimate, Float, Int, Mask, ratio

BY = ("kind", "modality", "source")
PIECE = 2_000  # rows that a process scores at a time
FIELDS = 256  # of answers in JSON that a table has at most
NO_WORDS = "the reference has no words"


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows with the statistics of every metric.

    Attributes:
        scored: bool[N], the rows that were answered and have a reference.
        table: float[N, K], the statistics of all metrics side by side; zero where a metric does not count the row.
        asked: bool[M, N], the rows that each metric is for, answered or not.
        unread: bool[M, N], the rows that it would be for, had what they ask been read; no metric scores them instead.
    """

    rows: Sequence[Answer]
    metrics: Sequence[Metric]
    scored: Mask
    table: Float
    asked: Mask
    unread: Mask
    columns: Sequence[slice]  # of each metric in the table

    @property
    def names(self) -> list[str]:
        """The names of all numbers."""
        return [name for metric in self.metrics for name in metric.names]

    def at(self, order: Int) -> Measured:
        """The rows at these positions, int[N], in this order."""
        return replace(
            self,
            rows=[self.rows[index] for index in order],
            scored=self.scored[order],
            table=self.table[order],
            asked=self.asked[:, order],
            unread=self.unread[:, order],
        )


def measure(rows: Sequence[Answer], metrics: Sequence[Metric], workers: Workers) -> Measured:
    """The rows with their statistics, spread over the workers.

    Raises:
        MetricError: a metric's model or data are absent.
    """
    scored = np.array([row.answer is not None and has_reference(row) for row in rows], np.bool_)
    asked = np.array([[metric.counts(row) for row in rows] for metric in metrics], np.bool_).reshape(-1, len(rows))
    unread = np.array([[metric.unread(row) for row in rows] for metric in metrics], np.bool_).reshape(-1, len(rows))

    # Metrics that take row by row go over the rows in pieces, on all workers.
    by_row = [metric.name for metric in metrics if metric.by_row]
    scored_rows = [rows[index] for index in np.flatnonzero(scored).tolist()]
    tasks = [(start, by_row, scored_rows[start : start + PIECE]) for start in range(0, len(scored_rows), PIECE)]
    pieces = dict(workers.each("score", len(scored_rows), _piece, tasks))

    # The others take all of their rows at once; either way a row that a metric does not count has zeros.
    tables = []
    for metric, for_metric in zip(metrics, asked, strict=True):
        parts = [pieces[start][metric.name] for start in sorted(pieces) if metric.by_row]
        parts = [part for part in parts if len(part)]
        counted = np.flatnonzero(scored & for_metric).tolist()
        statistics = np.concatenate(parts) if parts else metric.table([rows[index] for index in counted])
        table = np.zeros((len(rows), statistics.shape[1]))
        table[scored & for_metric] = statistics
        tables.append(table)

    edges = np.cumsum([0, *(table.shape[1] for table in tables)]).tolist()
    table = np.concatenate(tables, axis=1) if tables else np.zeros((len(rows), 0))
    return Measured(rows, metrics, scored, table, asked, unread, [slice(*edge) for edge in pairwise(edges)])


def bootstrap(rows: Sequence[Answer], resamples: int, seed: int) -> Bootstrap:
    """Resamples of the rows' groups."""
    return Bootstrap([(row.source, row.group) for row in rows], resamples, seed)


def estimates(measured: Measured, draws: Bootstrap, rows: Mask) -> dict[str, Estimate]:
    """Every number over those of the rows that were scored."""
    sums = draws.sums(measured.table, rows & measured.scored)
    numbers = {}
    masks = zip(measured.asked, measured.unread, strict=True)
    for metric, (asked, unread), columns in zip(measured.metrics, masks, measured.columns, strict=True):
        counted, missed = rows & asked & measured.scored, rows & ((asked & ~measured.scored) | unread)
        unscored, none = int(missed.sum()), np.full((draws.size, len(metric.names)), np.nan)
        values = metric.value(sums[:, columns]) if counted.any() else none
        for column, name in enumerate(metric.names):
            # The means of rows are shares; what a corpus has, such as BLEU, is none.
            if metric.row_means and counted.any():
                each = measured.table[:, columns.start + column]
                numbers[name] = draws.share_of(values[:, column], each, counted, unscored)
            else:
                numbers[name] = draws.estimate(values[:, column], counted, unscored)
    return numbers


def block(measured: Measured, settings: Mapping[str, Any], draws: Bootstrap) -> dict[str, Any]:
    """The Block of scores.json for one set."""
    rows, scored = measured.rows, measured.scored
    every = np.ones(len(rows), np.bool_)
    answered = np.array([row.answer is not None for row in rows], np.bool_)
    complete = np.array([row.finish_reason == "stop" and bool((row.answer or "").strip()) for row in rows], np.bool_)
    numbers = estimates(measured, draws, every)
    reasons = Counter(_reason(rows[index]) for index in np.flatnonzero(~scored).tolist())
    by = {
        field: {value: _numbers(estimates(measured, draws, mask)) for value, mask in slices.values(rows, field).items()}
        for field in BY
    }
    headline = _headline(numbers)
    return {
        "rows": len(rows),
        "unscored": int((~scored).sum()),
        "reasons": dict(sorted(reasons.items())),
        "valid": draws.share(complete, answered, int((~answered).sum())).number(),
        "metrics": _numbers(numbers),
        "majority": _majority(measured, draws),
        "by": by,
        "slices": _slices(measured, headline, draws) if headline else {},
        "options": _options(measured, draws),
        "fields": _fields(measured, draws),
        "unsupported": unsupported.block(rows, draws),
        "settings": dict(settings),
    }


def _slices(measured: Measured, headline: str, draws: Bootstrap) -> dict[str, Any]:
    """The headline by slice; measured anew with its metric alone, which is all that a slice shows."""
    (number,) = (number for number, metric in enumerate(measured.metrics) if headline in metric.names)
    table = measured.table[:, measured.columns[number]]
    headline_only = replace(
        measured,
        metrics=[measured.metrics[number]],
        asked=measured.asked[[number]],
        unread=measured.unread[[number]],
        table=table,
        columns=[slice(0, table.shape[1])],
    )
    return slices.table(measured.rows, headline, lambda mask: estimates(headline_only, draws, mask)[headline])


def _options(measured: Measured, draws: Bootstrap) -> dict[str, Any]:
    """Option → precision over the rows that say it, recall and F1 over those where it is right; where that is measured.

    Empty where there are too many options for a table.
    """
    number = next((number for number, metric in enumerate(measured.metrics) if metric.names == option_f1.NAMES), None)
    if number is None or not (counted := measured.asked[number] & measured.scored).any():
        return {}
    table = measured.table[:, measured.columns[number]]
    sums, marked = option_f1.by_option(draws.sums(table, counted)), option_f1.by_option(table) > 0
    numbers = {}
    for column, name in enumerate(
        option_f1.options_of([measured.rows[index] for index in np.flatnonzero(counted).tolist()])
    ):
        (both, said, right), (is_both, is_said, is_right) = sums[:, column].T, marked[:, column].T
        f1 = np.where(right > 0, ratio(2 * both, said + right), np.nan)
        numbers[name] = {
            "precision": draws.share_of(ratio(both, said), is_both, counted & is_said).number(),
            "recall": draws.share_of(ratio(both, right), is_both, counted & is_right).number(),
            "f1": draws.estimate(f1, counted & is_right).number(),
        }
    return numbers


def _fields(measured: Measured, draws: Bootstrap) -> dict[str, Any]:
    """Field of references in JSON → the share of the rows that have it right, where that is measured.

    Empty where there are too many fields for a table.
    """
    number = next((number for number, metric in enumerate(measured.metrics) if metric.names == json_fields.NAMES), None)
    if number is None:
        return {}
    right_of: dict[str, dict[int, bool]] = {}  # of each field the rows that have it
    for index in np.flatnonzero(measured.asked[number] & measured.scored).tolist():
        row = measured.rows[index]
        fields = json_fields.fields(row.answer or "", row)
        for path in fields.keys() & json_fields.asked(row):
            right_of.setdefault(path, {})[index] = fields[path]
    numbers = {}
    for path in sorted(right_of) if len(right_of) <= FIELDS else ():
        rows, right = np.zeros((2, len(measured.rows)), np.bool_)
        rows[[*right_of[path]]], right[[*right_of[path]]] = True, [*right_of[path].values()]
        numbers[path] = {"accuracy": draws.share(right, rows).number()}
    return numbers


def _piece(start: int, names: Sequence[str], rows: Sequence[Answer]) -> tuple[int, dict[str, Float]]:
    """Where the piece starts, and the statistics of its rows by metric; what a worker does."""
    tables = {}
    for metric in map(load, names):
        tables[metric.name] = metric.table([row for row in rows if metric.counts(row)])
    advance(len(rows))
    return start, tables


def _numbers(by_name: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.number() for name, estimate in by_name.items()}


def _reason(row: Answer) -> str:
    return NO_WORDS if row.answer is not None else rule(row.detail) or "not answered, and no reason was recorded"


def _headline(by_name: Mapping[str, Estimate]) -> str | None:
    """Share right of closed questions where there are any, else that of options or fields, else the first metric."""
    first = (*CLOSED, option_set.NAMES[0], json_fields.NAMES[1])
    ready = [name for name in (*first, *by_name) if name in by_name and by_name[name].n]
    return ready[0] if ready else None


def _majority(measured: Measured, draws: Bootstrap) -> dict[str, Any] | None:
    """The share right of always giving the most frequent reference of the row's kind, of the closed questions scored.

    The most frequent one is taken from these rows themselves, which favours the baseline.
    """
    closed = measured.scored & np.array([is_closed(row) for row in measured.rows], np.bool_)
    if not closed.any():
        return None
    indices = np.flatnonzero(closed).tolist()
    common: dict[str | None, Counter[tuple[str, ...]]] = {}
    for index in indices:
        row = measured.rows[index]
        common.setdefault(row.facts.kind, Counter())[words(row.reference)] += 1
    most = {kind: counts.most_common(1)[0][0] for kind, counts in common.items()}
    right = np.zeros(len(measured.rows), np.bool_)
    closed_rows = [measured.rows[index] for index in indices]
    right[indices] = [most[row.facts.kind] in map(words, right_answers(row)) for row in closed_rows]
    return draws.share(right, closed).number()
