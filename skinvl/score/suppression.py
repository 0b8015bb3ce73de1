"""What taking units out of the embeddings changes in a classification, where an artefact is seen and where it is not.

An artefact that stands for a class costs accuracy where it says the wrong one. The drop is the balanced accuracy of the
rows without it less that of the rows with it; what suppression brings back is what the rows with it gain, as a share of
the drop. Beside it stands the mean over draws of random units, so that what any loss of as much does is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skinvl.score import classification, compare, probabilities, slices, stats
from skinvl.score.classification import BALANCED, ClassifiedSet
from skinvl.score.compare import Resampling
from skinvl.score.concepts import ABSENT, PRESENT, Labels
from skinvl.score.predictions import Classified
from skinvl.score.probabilities import PROMPTS
from skinvl.score.stats import Bootstrap, Estimate, Float, Mask

PARTS = ("all", "with", "without")  # rows: every one, those that show the artefact, those that do not


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A set classified before, after, and after each draw of random units, row by row.

    Attributes:
        artefact: int8[N], whether a row shows one of the concepts; MISSING where that is not known.
    """

    before: ClassifiedSet
    after: ClassifiedSet
    random: Sequence[ClassifiedSet]
    artefact: Labels

    def rows(self, part: str) -> Mask:
        """bool[N], those of a part."""
        if part == "all":
            return np.ones(len(self.artefact), np.bool_)
        return np.asarray(self.artefact == (PRESENT if part == "with" else ABSENT))


def classified(rows: Sequence[Classified], settings: Mapping[str, Any], where: str) -> ClassifiedSet:
    """The rows with their true classes, read by their prompts.

    Raises:
        ClassError: they contradict themselves.
    """
    true = probabilities.truth(rows, settings["classes"], where)
    grades = settings.get("malignant")
    malignant = None if grades is None or None in grades else np.array(grades, np.bool_)
    return ClassifiedSet(rows, settings, true, probabilities.read(rows, true, settings, None), malignant, None)


def block(name: str, suppressed: Suppressed, resampling: Resampling) -> dict[str, Any]:
    """Every number of a set: by part, the share that is brought back, and by Fitzpatrick type."""
    draws = classification.bootstrap(suppressed.before.rows, resampling.resamples, resampling.seed)
    parts = {part: _part(name, suppressed, part, draws, resampling) for part in PARTS if suppressed.rows(part).any()}

    def change(rows: Mask) -> Estimate:
        before, after = (_balanced(side, draws, rows) for side in (suppressed.before, suppressed.after))
        return after.minus(before)

    by_type = {
        what: slices.table(suppressed.before.rows, BALANCED, estimate, ("skin_type",))["skin_type"]
        for what, estimate in (
            ("before", lambda rows: _balanced(suppressed.before, draws, rows)),
            ("after", lambda rows: _balanced(suppressed.after, draws, rows)),
            ("change", change),
        )
    }
    return {"parts": parts, "brought_back": brought_back(suppressed, draws), "skin_type": by_type}


def brought_back(suppressed: Suppressed, draws: Bootstrap) -> dict[str, Any]:
    """The drop, the shares of it that the units and random ones bring back, and the difference, each with an interval.

    Shares are None where the drop's interval is not above 0: there is nothing to bring back.
    """
    shown, clean = (suppressed.rows(part) for part in ("with", "without"))
    if not shown.any() or not clean.any():
        return {"drop": None, "units": None, "random": None, "beyond_random": None}
    before, without = _balanced(suppressed.before, draws, shown), _balanced(suppressed.before, draws, clean)
    drop = without.gap(before)
    number = drop.number()
    if number["low"] is None or number["low"] <= 0:
        return {"drop": number, "units": None, "random": None, "beyond_random": None}

    def share(side: Float) -> Estimate:
        return replace(drop, values=stats.ratio(side - before.values, drop.values))

    units = share(_balanced(suppressed.after, draws, shown).values)
    random = share(_mean_of_random(suppressed, draws, shown))
    return {
        "drop": number,
        "units": units.number(),
        "random": random.number() if len(suppressed.random) else None,
        "beyond_random": units.minus(random).number() if len(suppressed.random) else None,
    }


def _part(name: str, suppressed: Suppressed, part: str, draws: Bootstrap, resampling: Resampling) -> dict[str, Any]:
    """Before, after and by random units in the rows of a part, and the tests of what changes."""
    rows = suppressed.rows(part)
    sides = {"before": suppressed.before, "after": suppressed.after}
    numbers = {
        side: {
            metric: estimate.number()
            for metric, estimate in classification.estimates(one, PROMPTS, draws, rows).items()
        }
        for side, one in sides.items()
    }
    random = [_balanced(one, draws, rows).value for one in suppressed.random]
    beyond = None
    if random:
        after = _balanced(suppressed.after, draws, rows)
        difference = after.minus(draws.estimate(_mean_of_random(suppressed, draws, rows), rows))
        beyond = {"difference": difference.number(), "p": stats.paired(difference)}
    tests = compare.classes(name, _only(suppressed.after, rows), _only(suppressed.before, rows), resampling)
    return {
        "rows": int(rows.sum()),
        **numbers,
        "tests": [{**test, "part": part} for test in tests],
        "random": {BALANCED: stats.spread(random) if len(random) > 1 else None, "beyond": beyond},
    }


def _only(side: ClassifiedSet, rows: Mask) -> ClassifiedSet:
    kept = [row for row, counts in zip(side.rows, rows.tolist(), strict=True) if counts]
    return classified(kept, side.settings, str(side.settings["set"]))


def _balanced(side: ClassifiedSet, draws: Bootstrap, rows: Mask) -> Estimate:
    return classification.balanced(side, PROMPTS, draws, rows)


def _mean_of_random(suppressed: Suppressed, draws: Bootstrap, rows: Mask) -> Float:
    """float[1 + R], the mean over the draws of random units of the balanced accuracy."""
    values = [_balanced(one, draws, rows).values for one in suppressed.random]
    return np.mean(values, axis=0) if values else np.full(draws.size, np.nan)
