"""Whether two runs that answered the same rows differ: paired tests, corrected for how many there are.

A number that is right or wrong for each row gets two tests: McNemar's, which takes rows for independent, and the paired
bootstrap of whole groups, which does not; so does the area under the ROC curve of malignancy, DeLong's beside it. All
tests of a comparison are one family for Holm's correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skinvl.score import answers, classification, delong, ranking, retrieval, stats
from skinvl.score.answers import Measured
from skinvl.score.classification import ClassifiedSet
from skinvl.score.predictions import Answer, Identified, key
from skinvl.score.probabilities import PROMPTS
from skinvl.score.retrieval import RetrievedSet
from skinvl.score.stats import Estimate, Mask

RIGHT_OR_WRONG = ("closed_accuracy", "exact_match", "multiple_choice")
LOWER = {"ece", "brier", "aurc", ranking.MEDIAN}  # metrics of which less is better
# What a difference comes to within a margin, from the least that is sure to the most.
VERDICTS = ("inferior", "not shown", "non-inferior", "equivalent")


class CompareError(ValueError):
    """Runs that were not asked the same."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How resamples are drawn."""

    resamples: int
    seed: int


def free(name: str, ours: Measured, theirs: Measured, resampling: Resampling) -> list[dict[str, Any]]:
    """The tests of two runs' free answers to one set, not yet corrected.

    Raises:
        CompareError: they were asked other rows, or these have other references.
    """
    # Theirs in our order, so that the rows stand pairwise.
    theirs = theirs.at(_order(name, ours.rows, theirs.rows))
    _same(name, "reference", [(key(row), row.reference) for row in ours.rows], [row.reference for row in theirs.rows])
    beside = [[_right(row) for row in side.rows] for side in (ours, theirs)]
    _same(name, "set of right answers", list(zip(map(key, ours.rows), beside[0], strict=True)), beside[1])

    # One Bootstrap for both runs, over the rows that both have.
    draws = answers.bootstrap(ours.rows, resampling.resamples, resampling.seed)
    both = ours.scored & theirs.scored
    our_numbers, their_numbers = (answers.estimates(side, draws, both) for side in (ours, theirs))

    right = {}
    for number, metric in enumerate(ours.metrics):
        if metric.name in RIGHT_OR_WRONG:
            counted = both & ours.asked[number]
            right[metric.name] = tuple(side.table[counted, side.columns[number].start] == 1 for side in (ours, theirs))
    return _tests(name, "answers", our_numbers, their_numbers, right, int((~both).sum()))


def same_rows(name: str, some: Measured, every: Measured) -> Measured:
    """Of a run's answers those to the questions of some others, in their order.

    Raises:
        CompareError: one of these is not among them.
    """
    positions = {key(row): index for index, row in enumerate(every.rows)}
    if missing := [key(row) for row in some.rows if key(row) not in positions]:
        raise CompareError(
            f"{name}: {len(missing):,} of {len(some.rows):,} questions were asked in another way "
            f"alone ({missing[0]}); the source was prepared anew in between: evaluate the run again"
        )
    return every.at(np.array([positions[key(row)] for row in some.rows], np.int64))


def classes(name: str, ours: ClassifiedSet, theirs: ClassifiedSet, resampling: Resampling) -> list[dict[str, Any]]:
    """The tests of two runs' classifications of one set by the headline variant of ours, not yet corrected.

    Prompts of two towers are tested against whatever is the headline of the other model, as `what` then says. A row
    that only one of the runs was trained on has a label in the other alone, and is not paired.

    Raises:
        CompareError: they were asked other rows, classes or labels, or theirs lacks that variant.
    """
    # They were asked the same rows with the same classes and labels.
    order = _order(name, ours.rows, theirs.rows)
    if ours.classes != theirs.classes:
        raise CompareError(
            f"{name}: the classes of the runs differ ({', '.join(ours.classes)} and {', '.join(theirs.classes)}); "
            "classify both with one recipe"
        )
    both_labelled = [
        (row, theirs.rows[index])
        for row, index in zip(ours.rows, order, strict=True)
        if row.label is not None and theirs.rows[index].label is not None
    ]
    pairs = [(key(row), row.label) for row, _ in both_labelled]
    _same(name, "label", pairs, [other.label for _, other in both_labelled])

    # Both are read by our headline variant, unless only one of them is made of prompts.
    headline, their_headline = (next(iter(side.variants), None) for side in (ours, theirs))
    if headline is None or their_headline is None:
        return []
    if PROMPTS not in (headline, their_headline):
        their_headline = headline
    if their_headline not in theirs.variants:
        raise CompareError(
            f"{name}: ours was read by {headline}, theirs only by {', '.join(theirs.variants) or 'nothing'}; "
            "classify both with one recipe"
        )

    # Theirs in our order, so that the rows stand pairwise.
    our_variant, their_variant = ours.variants[headline], theirs.variants[their_headline]
    in_our_order = replace(
        their_variant,
        predicted=their_variant.predicted[order],
        probabilities=None if their_variant.probabilities is None else their_variant.probabilities[order],
        log_odds=None if their_variant.log_odds is None else their_variant.log_odds[order],
        rows=their_variant.rows[order],
    )
    theirs = replace(
        theirs, rows=ours.rows, true=ours.true, malignant=ours.malignant, variants={headline: in_our_order}
    )

    draws = classification.bootstrap(ours.rows, resampling.resamples, resampling.seed)
    both = our_variant.rows & in_our_order.rows
    our_numbers, their_numbers = (classification.estimates(side, headline, draws, both) for side in (ours, theirs))
    right = {"accuracy": tuple((side.predicted == ours.true)[both] for side in (our_variant, in_our_order))}
    what = "classes" if headline == their_headline else f"classes, {headline} against {their_headline}"
    areas = {}
    if classification.OF_MALIGNANCY in our_numbers and in_our_order.probabilities is not None:
        (ours_of, malignant), (theirs_of, _) = (
            classification.malignancy(side, side.variants[headline]) for side in (ours, theirs)
        )
        areas[classification.OF_MALIGNANCY] = delong.paired(ours_of[both], theirs_of[both], malignant[both])
    return _tests(name, what, our_numbers, their_numbers, right, int((~both).sum()), areas)


def retrieved(name: str, ours: RetrievedSet, theirs: RetrievedSet, resampling: Resampling) -> list[dict[str, Any]]:
    """The tests of two runs' ranks of one set, query by query, for each direction; not yet corrected.

    Raises:
        CompareError: their queries or pools differ.
    """
    pools = [side.settings["pools"] for side in (ours, theirs)]
    if pools[0] != pools[1]:
        sizes = [f"{side.settings['images']:,} images and {side.settings['texts']:,} texts" for side in (ours, theirs)]
        raise CompareError(
            f"{name}: the pools differ ({sizes[0]} in ours, {sizes[1]} in theirs), so that ranks in them cannot be "
            "compared; retrieve with both in one source and split, cleaned of the same train sources"
        )
    tests = []
    for direction, rows in ours.rows.items():
        others = theirs.rows[direction]
        others = [others[index] for index in _order(name, rows, others)]
        size, draws = ours.size(direction), retrieval.bootstrap(rows, resampling.resamples, resampling.seed)
        ranks = [retrieval.ranked(side) for side in (rows, others)]
        numbers = [retrieval.estimates(side, size, draws) for side in (rows, others)]
        right = {f"R@{depth}": tuple(side <= depth for side in ranks) for depth in ranking.depths(size)}
        tests += _tests(name, direction, numbers[0], numbers[1], right, 0)
    return tests


def family(tests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tests with Holm's correction over all of them."""
    corrected = stats.holm([test["p"] for test in tests])
    return [{**test, "p_holm": value} for test, value in zip(tests, corrected, strict=True)]


def judged(tests: Sequence[Mapping[str, Any]], margin: float) -> list[dict[str, Any]]:
    """The tests, those by bootstrap with a `verdict` within a margin that was given beforehand; None for the others."""
    of_bootstrap = (test["test"] == "paired bootstrap" and test["metric"] != ranking.MEDIAN for test in tests)
    return [
        {**test, "verdict": verdict(test["metric"], test["difference"], margin) if own else None}
        for test, own in zip(tests, of_bootstrap, strict=True)
    ]


def verdict(metric: str, difference: Mapping[str, Any], margin: float) -> str | None:
    """What the interval of a difference, ours minus theirs, says of ours; None where it has none.

    Non-inferior: no end is worse by the margin or more, so that at 95 % this is a one-sided test of 2.5 %. Equivalent:
    nor is one better by as much. Inferior: even the better end is worse by more. (Piaggio et al. 2012, JAMA 308(24))
    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return None
    worst, best = (-high, -low) if metric in LOWER else (low, high)
    if best < -margin:
        return "inferior"
    if worst <= -margin:
        return "not shown"
    return "equivalent" if best < margin else "non-inferior"


def _tests(
    name: str,
    what: str,
    ours: Mapping[str, Estimate],
    theirs: Mapping[str, Estimate],
    right: Mapping[str, tuple[Mask, ...]],
    unpaired: int,
    areas: Mapping[str, float | None] | None = None,
) -> list[dict[str, Any]]:
    """A row for each number and test of it.

    Args:
        right: of the numbers that are right or wrong, which rows each run has right.
        areas: of those that are areas under one ROC curve, the p-value of DeLong's test.
    """
    tests = []
    for metric, estimate in ours.items():
        if metric not in theirs or not estimate.n:
            continue
        difference = estimate.minus(theirs[metric])
        common = {
            **{"set": name, "what": what, "metric": metric},
            **{"n": estimate.n, "groups": estimate.groups, "unpaired": unpaired},
            **{
                "ours": _plain(estimate.value),
                "theirs": _plain(theirs[metric].value),
                "difference": difference.number(),
            },
        }
        if metric in right:
            tests.append({**common, "p": stats.mcnemar(*right[metric]), "test": "McNemar"})
        if metric in (areas or {}):
            tests.append({**common, "p": (areas or {})[metric], "test": "DeLong"})
        tests.append({**common, "p": stats.paired(difference), "test": "paired bootstrap"})
    return tests


def _order(name: str, ours: Sequence[Identified], theirs: Sequence[Identified]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int[N]: where theirs has each row of ours."""
    positions = {key(row): index for index, row in enumerate(theirs)}
    mine = [key(row) for row in ours]
    shared = sum(row_key in positions for row_key in mine)
    if not shared == len(mine) == len(theirs):
        raise CompareError(
            f"{name}: ours has {len(mine):,} rows, theirs {len(theirs):,}, and {shared:,} of them are the same rows; a "
            "paired test needs the same rows in both: evaluate both runs on one source and split"
        )
    return np.array([positions[row_key] for row_key in mine], np.int64)


def _right(row: Answer) -> str | None:
    """What is right beside the reference, as text; None where nothing is."""
    known = row.references, row.options, row.right, row.schema
    return repr(known) if any(known) else None


def _same(name: str, what: str, ours: Sequence[tuple[str, str | None]], theirs: Sequence[str | None]) -> None:
    """Refuses rows that differ in what both runs must share, such as the reference.

    Raises:
        CompareError: some differ; the first is named.
    """
    pairs = zip(ours, theirs, strict=True)
    differ = [(row, own, other) for (row, own), other in pairs if own != other]
    if differ:
        row, own, other = differ[0]
        raise CompareError(
            f"{name}: {len(differ):,} of {len(ours):,} rows have another {what} in the other run ({row}: "
            f"{own!r:.300} and {other!r:.300}); the source was prepared anew between them: evaluate both runs again"
        )


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
