"""What became of the rows of an evaluation, as `flow` draws it: asked, not scored by reason, scored by set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from skinvl.data.flow import Flow, SplitCounts
from skinvl.data.pages import short
from skinvl.score.metrics import has_reference
from skinvl.score.predictions import Answer, Classified, rule
from skinvl.score.samples import ScoredRows

NO_REASON = "no reason recorded"
LONGEST = 15  # characters of a set's name that its box has room for


def flow(run: str, predicted: Sequence[ScoredRows]) -> Flow | None:
    """The flow of the sets whose predictions are there; None where there are none.

    A group and an image count once for each set, and once in all.
    """
    left: Counter[str] = Counter()
    splits, everything = [], list[Any]()
    for each in predicted:
        scored = [row for row in each.rows if _is_scored(row)]
        left.update(_reason(row) for row in each.rows if not _is_scored(row))
        splits.append(SplitCounts(_short(each.name), len(scored), *_counts(scored)))
        everything += scored
    if not splits:
        return None
    return Flow(run, tuple(left.most_common()), tuple(splits), *_counts(everything))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _is_scored(row: Answer | Classified) -> bool:
    if isinstance(row, Answer):
        return row.answer is not None and has_reference(row)
    return row.label is not None and (row.scores is not None or row.outcome is not None)


def _reason(row: Answer | Classified) -> str:
    if isinstance(row, Answer) and row.answer is not None:
        return "reference without words"
    return str(short(rule(row.detail))) or NO_REASON


def _counts(rows: Sequence[Answer | Classified]) -> tuple[int, int]:
    """How many images and groups the rows have."""
    images = {(row.source, path) for row in rows for path in row.images}
    return len(images), len({(row.source, row.group) for row in rows})
