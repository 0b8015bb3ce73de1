"""What changed images and other words change: the same questions asked in several ways, pair by pair beside the plain.

A blank image is no way of asking that should be withstood: what a model still gets right without any image stands
apart, and in neither mean, worst nor spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from skinvl.score import answers, order, stats
from skinvl.score.answers import Measured
from skinvl.score.compare import Resampling, same_rows
from skinvl.score.predictions import Answer, key
from skinvl.score.stats import Estimate, ratio

BLANK = "blank"
HEAD = ("metric", "asked", "value", "difference", "n", "groups")
MEAN, WORST, SHARE = "mean of ways", "worst of ways", "blank / plain"


def plainly(rows: Sequence[Answer], given: Sequence[Answer]) -> list[Answer]:
    """The rows with the questions in their own words, from which metrics read the options that are asked about."""
    questions = {key(row): row.question for row in given}
    return [replace(row, question=questions.get(key(row), row.question)) for row in rows]


def block(name: str, given: Measured, ways: Mapping[str, Measured], resampling: Resampling) -> dict[str, Any]:
    """The Block of scores.json for the questions of a set that were asked in other ways too.

    `ways` has of each way the share of answers with the same words as the plain one, and each metric both times with
    the difference, way − plain, of the pairs. `overall` has of each metric the mean over the ways, its difference to
    the plain number, the way that is worst in the data, and the spread of the ways' numbers; all over the rows that
    were scored plainly and in every way. `blank` has the share of the plain number that is left without an image.

    Raises:
        CompareError: a question was not asked plainly.
    """
    each = {way: order.block(name, given, asked, resampling, "changed") for way, asked in ways.items()}
    withstood = {way: asked for way, asked in ways.items() if way != BLANK}
    return {
        "ways": each,
        "overall": _overall(name, given, withstood, resampling) if withstood else {},
        "blank": _left(name, given, ways[BLANK], resampling) if BLANK in ways else {},
    }


def table(block: Mapping[str, Any], number: Callable[[Mapping[str, Any] | None], str]) -> list[list[str]]:
    """A row of HEAD for each metric plainly and in each way, then for their mean, worst and what is left when blank.

    Args:
        number: a Number as text.
    """
    rows = []
    metrics = dict.fromkeys(metric for way in block["ways"].values() for metric in way["metrics"])
    for way, numbers in block["ways"].items():
        rows.append(_row("same answer", way, numbers["same"], None))
    for metric in metrics:
        for way, numbers in block["ways"].items():
            if (own := numbers["metrics"][metric])["given"]["n"]:
                rows.append(_row(metric, f"{way}, plain", own["given"], None))
                rows.append(_row(metric, way, own["changed"], own["difference"]))
        if (own := block["overall"].get(metric)) and own["mean"]["n"]:
            rows.append(_row(metric, MEAN, own["mean"], own["difference"]))
            if own["worst"] is not None:
                worst = own["worst"]
                rows.append(_row(metric, f"{WORST}: {worst['way']}", worst["number"], worst["difference"]))
        if (left := block["blank"].get(metric)) and left["n"]:
            rows.append(_row(metric, SHARE, left, None))
    return [[number(cell) if isinstance(cell, Mapping | None) else cell for cell in row] for row in rows]


def _row(metric: str, way: str, own: Mapping[str, Any], difference: Mapping[str, Any] | None) -> list[Any]:
    return [metric, way, own, difference, f"{own['n']:,}", f"{own['groups']:,}"]


def _overall(name: str, given: Measured, ways: Mapping[str, Measured], resampling: Resampling) -> dict[str, Any]:
    """By metric, over the rows that were scored plainly and in every way."""
    asked = [{key(row) for row in way.rows} for way in ways.values()]
    shared = set.intersection(*asked)
    first = next(iter(ways.values()))
    common = first.at(np.array([index for index, row in enumerate(first.rows) if key(row) in shared], np.int64))
    if not common.rows:
        return {}
    sides = [same_rows(name, common, side) for side in (given, *ways.values())]
    scored = np.logical_and.reduce([side.scored for side in sides])
    draws = answers.bootstrap(common.rows, resampling.resamples, resampling.seed)
    plain, *others = (answers.estimates(side, draws, scored) for side in sides)
    return {metric: _of_metric(plain[metric], dict(_by_way(ways, others, metric))) for metric in plain}


def _by_way(
    ways: Mapping[str, Measured], estimates: Sequence[Mapping[str, Estimate]], metric: str
) -> Iterator[tuple[str, Estimate]]:
    for way, numbers in zip(ways, estimates, strict=True):
        yield way, numbers[metric]


def _of_metric(plain: Estimate, ways: Mapping[str, Estimate]) -> dict[str, Any]:
    mean = Estimate(np.mean([way.values for way in ways.values()], axis=0), plain.sizes, plain.unscored)
    known = [way for way, number in ways.items() if not np.isnan(number.value)]
    worst = min(known, key=lambda way: ways[way].value) if known else None
    return {
        "plain": plain.number(),
        "mean": mean.number(),
        "difference": mean.minus(plain).number(),
        "worst": None
        if worst is None
        else {
            "way": worst,
            "number": ways[worst].number(),
            "difference": ways[worst].minus(plain).number(),
        },
        "spread": stats.spread([ways[way].value for way in known]) if len(known) > 1 else None,
    }


def _left(name: str, given: Measured, blank: Measured, resampling: Resampling) -> dict[str, Any]:
    """By metric the number with blank images over that with the own ones, of the pairs; None where the latter is 0."""
    given = same_rows(name, blank, given)
    draws = answers.bootstrap(blank.rows, resampling.resamples, resampling.seed)
    both = given.scored & blank.scored
    own, without = (answers.estimates(side, draws, both) for side in (given, blank))
    return {
        metric: Estimate(ratio(without[metric].values, own[metric].values), own[metric].sizes).number()
        for metric in own
    }
