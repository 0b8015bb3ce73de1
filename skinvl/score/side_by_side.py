"""What two runs said of the same rows, side by side: where one is better, where the other is, and some of the rest."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from skinvl.data import pages
from skinvl.data.example import Facts
from skinvl.data.pages import Thumbnail
from skinvl.score import samples
from skinvl.score.predictions import key
from skinvl.score.samples import IMAGES, PredictionText, ScoredRows

EACH = 15  # pairs of a set that are shown as better here, as better there, and drawn from the others
ASKED = ("Question", "Reference", "True class")  # how lines begin that are the same for both
HERE, THERE, OTHERS = "better here", "better there", "as good"


class SideBySideError(ValueError):
    """Runs that have no row in common, or were asked it otherwise."""


@dataclass(frozen=True, slots=True)
class PairCard:
    """One row and what both runs said of it, as the page shows it."""

    set: str
    pick: str  # better here, better there, as good
    id: str
    source: str
    facts: Facts
    asked: list[tuple[str, str]]
    ours: PredictionText
    theirs: PredictionText
    images: list[Thumbnail]
    more: int  # images that are not shown


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How the rows of a set that both runs have come out."""

    set: str
    rows: int
    here: int  # rows that score higher in this run, and so on
    there: int
    same: int
    unscored: int  # in one run or both
    alone: int  # rows that one run has and the other has not


def page(run: Path, ours: Mapping[str, Any], other: Path, theirs: Mapping[str, Any]) -> str:
    """The page as HTML; the same for the same files.

    Args:
        ours, theirs: the scores of the runs.

    Raises:
        SideBySideError: they have no row in common, or were asked it otherwise.
        PredictionError: predictions cannot be read.
    """
    found = [{each.name: each for each in samples.scored(each / "eval", scores["sets"])}
             for each, scores in ((run, ours), (other, theirs))]  # fmt: skip
    shared = [name for name in found[0] if name in found[1]]
    counts, cards = list[PairCounts](), list[PairCard]()
    small = lru_cache(maxsize=None)(samples.thumbnail)
    for name in shared:
        counted, drawn = _pairs(name, found[0][name], found[1][name], ours["seed"])
        counts.append(counted)
        cards += [_card(name, *pair, small) for pair in drawn]
    if not any(each.rows for each in counts):
        mine, others = (", ".join(each) or "none" for each in found)
        raise SideBySideError(
            f"{run} has predictions of {mine} and {other} of {others}: no row is in both; evaluate both on one set"
        )
    template = pages.template(Path(__file__).with_name("side_by_side.html.j2"))
    return template.render(ours=ours["run"], theirs=theirs["run"], counts=counts, cards=cards, seed=ours["seed"])


Pair = tuple[str, Any, PredictionText, PredictionText]


def _pairs(name: str, ours: ScoredRows, theirs: ScoredRows, seed: int) -> tuple[PairCounts, list[Pair]]:
    """The counts of a set and the pairs that are shown of it, ties drawn.

    Raises:
        SideBySideError: a row was asked otherwise.
    """
    by_key = {key(row): row for row in theirs.rows}
    both = [(row, by_key[key(row)]) for row in ours.rows if key(row) in by_key]
    told = []
    for row, other in both:
        texts = ours.describe(row), theirs.describe(other)
        here, there = ([line for line in text.lines if line[0].startswith(ASKED)] for text in texts)
        if here != there:
            raise SideBySideError(
                f"{name}: {key(row)} was asked otherwise in the other run ({dict(here)} and {dict(there)}); evaluate "
                "both runs on one source"
            )
        told.append((row, *texts))
    random.Random(f"{seed}-{name}-pairs").shuffle(told)
    apart = [(_apart(one, other), row, one, other) for row, one, other in told]
    scored = [pair for pair in apart if pair[0] is not None]
    better = sorted((pair for pair in scored if (pair[0] or 0) > 0), key=lambda pair: -(pair[0] or 0))
    worse = sorted((pair for pair in scored if (pair[0] or 0) < 0), key=lambda pair: pair[0] or 0)
    same = [pair for pair in apart if not pair[0]]
    counts = PairCounts(
        name,
        len(both),
        len(better),
        len(worse),
        len(scored) - len(better) - len(worse),
        len(apart) - len(scored),
        len(ours.rows) + len(theirs.rows) - 2 * len(both),
    )
    shown = ((HERE, better), (THERE, worse), (OTHERS, same))
    return counts, [(pick, *pair[1:]) for pick, pairs in shown for pair in pairs[:EACH]]


def _apart(one: PredictionText, other: PredictionText) -> float | None:
    """How much higher the one scores; None where either has no score."""
    return None if one.score is None or other.score is None else one.score - other.score


def _card(name: str, pick: str, row: Any, one: PredictionText, other: PredictionText, small: Any) -> PairCard:
    asked = [line for line in one.lines if line[0].startswith(ASKED)]
    images = [small(path) for path in row.images[:IMAGES]]
    ours, theirs = (_said(text) for text in (one, other))
    return PairCard(
        name, pick, row.id, row.source, row.facts, asked, ours, theirs, images, len(row.images) - len(images)
    )


def _said(text: PredictionText) -> PredictionText:
    lines = [line for line in text.lines if not line[0].startswith(ASKED)]
    return PredictionText(text.score, text.outcome, text.summary, lines)
