"""Which units of a dictionary stand for a concept: those that are called so, or those that tell it in other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skinvl.evaluate.concept import name as naming
from skinvl.evaluate.concept import terms
from skinvl.evaluate.concept.rows import StatedSplit
from skinvl.model.dictionary import FOLDER
from skinvl.score import concepts
from skinvl.score.concepts import Labels
from skinvl.score.stats import Float, Int, Mask

By = Literal["name", "labels"]
CHANCE = 0.05  # the null of a name, above which it is as good as chance
WORTH, MOST = 0.75, 5  # the area from which several units stand for one concept, and how many at most


@dataclass(frozen=True, slots=True)
class Chosen:
    """A unit that stands for a concept."""

    unit: int
    by: By  # its name, or what is known of other rows
    worth: float  # of a name its margin over the next; of labels the area in the rows that chose it

    def record(self) -> dict[str, Any]:
        """As files have it."""
        return asdict(self)


def named(out: Path, names: Sequence[str]) -> dict[str, list[Chosen]]:
    """Of each concept the units that `concepts name` calls so, no worse than chance, of the greatest margin first.

    Raises:
        DictionaryError: the names are of another dictionary.
    """
    units = naming.read(out) if (out / FOLDER / naming.NAMES).is_file() else []
    fitting: dict[str, list[Chosen]] = {}
    for name in names:
        words = {_plain(term) for term in terms.terms(name)}
        own = [unit for unit in units if _plain(unit["name"]) in words and unit["null"] <= CHANCE]
        if own:
            own.sort(key=lambda unit: -unit["margin"])
            fitting[name] = [Chosen(unit["unit"], "name", unit["margin"]) for unit in own]
    return fitting


def best(units: Float, split: StatedSplit, rows: Mask, names: Sequence[str]) -> dict[str, Chosen]:
    """Of each concept the unit of the greatest area in the rows of another split, if enough is known there."""
    chosen = {}
    rows = rows & np.isfinite(units).all(axis=1)
    for name in names:
        areas = concepts.unit_areas(units[rows], split.column(name)[rows])
        if np.isfinite(areas).any():
            unit = int(np.nanargmax(areas))
            chosen[name] = Chosen(unit, "labels", float(areas[unit]))
    return chosen


def telling(units: Float, labels: Labels, strata: Int) -> list[Chosen]:
    """The units that tell a concept within the classes, the best first; none where too little is known.

    Args:
        units: float[N, K].
        labels: int8[N], of the concept.
        strata: int[N], the class of each row: a unit of a class that goes with the concept is none of the concept.
    """
    areas = concepts.unit_areas(units, labels, strata)
    if not np.isfinite(areas).any():
        return []
    order = np.argsort(-np.nan_to_num(areas), kind="stable")[:MOST].tolist()
    return [Chosen(unit, "labels", float(areas[unit])) for unit in order if unit == order[0] or areas[unit] >= WORTH]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
