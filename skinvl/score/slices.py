"""How a number differs between patients: by skin type, sex, age, body site and source, with the worst and the gap.

Where any row knows them, also by institution, how the diagnosis was confirmed, skin tone and the images' views, and by
skin type, sex and age, two at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from skinvl.data import table1
from skinvl.data.example import Facts
from skinvl.score.stats import Estimate, Mask

FIELDS = ("skin_type", "sex", "age", "site", "source")
IF_KNOWN = ("institution", "confirmed", "tone", "views")  # fields that few sources know
CROSSED = ("skin_type × sex", "skin_type × age", "sex × age")  # where any row knows both
UNKNOWN = "unknown"
ROWS, GROUPS = 10, 5  # fewer say nothing about a slice
AGES = (20, 40, 60, 80)


class Sliced(Protocol):
    """A row of which it is known what its image shows, and of whom."""

    @property
    def source(self) -> str:
        """The source of its image."""

    @property
    def facts(self) -> Facts:
        """What is known of its image."""


def fact(row: Sliced, field: str) -> str:
    """A row's value of a field, or of two crossed ones, ages in bands, all views together; `unknown` where it has none.

    >>> [_band(age) for age in (19.5, 20, 80)]
    ['<20', '20-39', '80+']
    """
    if field == "source":
        return row.source
    if " × " in field:
        both = [fact(row, one) for one in field.split(" × ")]
        return UNKNOWN if UNKNOWN in both else " × ".join(both)
    value = table1.fact(row.facts, field)
    return UNKNOWN if value is None else str(value) if isinstance(value, str) else _band(value)


def values(rows: Sequence[Sliced], field: str) -> dict[str, Mask]:
    """The values of a field, sorted, each with the rows that have it."""
    facts = np.array([fact(row, field) for row in rows], object)
    return {value: np.asarray(facts == value) for value in sorted(set(facts))}


def table(
    rows: Sequence[Sliced], metric: str, estimate: Callable[[Mask], Estimate], fields: Sequence[str] = FIELDS
) -> dict[str, Any]:
    """A Slice for each field: the metric by value, the worst value, and the gap between best and worst.

    To the fields come those of IF_KNOWN that any row knows.
    A value has no number with fewer than ROWS rows or GROUPS groups. Unknown is not ranked; with fewer than two values
    that are, worst and gap are None, since a single group is no evidence of fairness. The gap's interval is that of the
    difference between the two values that are best and worst in the data; as these were chosen by it, it is no test. It
    takes groups enough on either side.
    """
    return {field: _slice(values(rows, field), metric, estimate) for field in known(rows, fields)}


def known(rows: Sequence[Sliced], fields: Sequence[str] = FIELDS) -> list[str]:
    """The fields, and those of IF_KNOWN and CROSSED that any row knows."""
    more = [field for field in IF_KNOWN if field not in fields and any(getattr(row.facts, field) for row in rows)]
    crossed = [field for field in CROSSED if any(fact(row, field) != UNKNOWN for row in rows)]
    return [*fields, *more, *(crossed if fields == FIELDS else [])]


def _slice(masks: dict[str, Mask], metric: str, estimate: Callable[[Mask], Estimate]) -> dict[str, Any]:
    estimates = {value: estimate(mask) for value, mask in masks.items()}
    usable = {value: number for value, number in estimates.items() if number.n >= ROWS and number.groups >= GROUPS}

    # The worst value, and the gap between it and the best.
    ranked = sorted(
        (value for value, number in usable.items() if value != UNKNOWN and not np.isnan(number.value)),
        key=lambda value: usable[value].value,
    )
    worst = gap = None
    if len(ranked) > 1:
        worst, best = ranked[0], usable[ranked[-1]]
        low = usable[worst]
        gap = best.gap(low).number()
    return {
        "metric": metric,
        "values": {value: usable[value].number() if value in usable else None for value in masks},
        "worst": worst,
        "gap": gap,
    }


def _band(age: float) -> str:
    above = [edge for edge in AGES if age < edge]
    if not above:
        return f"{AGES[-1]}+"
    return f"<{AGES[0]}" if above[0] == AGES[0] else f"{AGES[AGES.index(above[0]) - 1]}-{above[0] - 1}"
