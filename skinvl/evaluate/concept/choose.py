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
from skinvl.score.concepts import ABSENT, Labels
from skinvl.score.stats import Float, Int, Mask

By = Literal["name", "labels"]
CHANCE = 0.05  # the null of a name, above which it is as good as chance
WORTH, MOST = 0.75, 5  # the area from which a unit stands for a concept, and how many at most do


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


def telling(units: Float, labels: Labels, classes: Int) -> list[Chosen]:
    """The units that tell a concept within the classes, the best first; none where too little is known, or none does.

    A unit of a class that goes with the concept is none of the concept: taking it out would take the class out. So it
    must tell the concept better than it tells any class in the rows without the concept.

    Args:
        units: float[N, K].
        labels: int8[N], of the concept.
        classes: int[N], the class of each row.
    """
    areas = concepts.unit_areas(units, labels, classes)
    clean = labels == ABSENT
    of_class = [
        concepts.unit_areas(units[clean], (classes[clean] == one).astype(np.int8))
        for one in np.unique(classes).tolist()
    ]
    own = np.nan_to_num(areas)
    usable = (own >= WORTH) & (own > np.nan_to_num(np.array(of_class)).max(axis=0))
    order = [unit for unit in np.argsort(-own, kind="stable").tolist() if usable[unit]]
    return [Chosen(unit, "labels", float(areas[unit])) for unit in order[:MOST]]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
