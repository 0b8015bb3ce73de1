"""What a report shows of a retrieval: its numbers beside chance and the base, a curve, and neighbours to browse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from skinvl.data.pages import Thumbnail
from skinvl.recipe.files import read_json
from skinvl.score import charts, retrieval
from skinvl.score.predictions import PredictionError
from skinvl.score.samples import thumbnail

SAYS_MOST = ("R@1", "R@10", "median_rank")  # in the headline


def context(run: Path, scores: Mapping[str, Any]) -> dict[str, Any]:
    """What towers.html.j2 is given besides the scores: the base's numbers, the headline, the nearest of a sample.

    Raises:
        PredictionError: what lies beside the ranks cannot be read.
    """
    ranked = {name: blocks["retrieval"] for name, blocks in scores["sets"].items() if blocks.get("retrieval")}
    bases = {name: {direction: base(scores, name, direction) for direction in retrieval.DIRECTIONS} for name in ranked}
    return {
        "bases": bases,
        "ranked_headline": list(_headline(ranked)),
        "neighbours": {name: _neighbours(run / "eval" / "retrieval" / f"{name}.json") for name in ranked},
        "recall_curve": recall_curve,
    }


def base(scores: Mapping[str, Any], name: str, what: str) -> dict[str, float]:
    """The numbers of the base without training for a set and what was asked of it, as far as it was evaluated."""
    tests = (scores["untrained"] or {"tests": []})["tests"]
    return {test["metric"]: test["theirs"] for test in tests if (test["set"], test["what"]) == (name, what)}


def recall_curve(numbers: Mapping[str, Any], theirs: Mapping[str, float], title: str) -> Markup:
    """R@k by k, beside that of a random order, of one for all queries, and of the base."""
    lines = {"this run": {name: number["value"] for name, number in numbers["numbers"].items()}}
    lines |= {"random order": dict(numbers["chance"]), "one order for all": dict(numbers["blind"])}
    lines |= {"base without training": dict(theirs)} if theirs else {}
    points = {
        name: [(float(key.removeprefix("R@")), value) for key, value in line.items() if key.startswith("R@")]
        for name, line in lines.items()
    }
    return charts.curves(points, title, ("k: the nearest of the pool", "share with a right one among them"))


def _headline(ranked: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], list[str]]]:
    """For each set its name, the direction, its block, and the names of the numbers that say most."""
    for name, block in ranked.items():
        for direction, numbers in block["directions"].items():
            yield name, direction, numbers, [metric for metric in SAYS_MOST if metric in numbers["numbers"]]


def _neighbours(path: Path) -> dict[str, list[dict[str, Any]]]:
    """By direction the sample of queries with what is nearest, its images small; none where the file is gone."""
    if not path.is_file():
        return {}
    small = lru_cache(maxsize=None)(thumbnail)
    sample = read_json(path, retrieval.AGAIN, PredictionError)["neighbours"]
    return {
        direction: [
            {
                **query,
                "query": _shown(query["query"], small),
                "nearest": [{**other, **_shown(other, small)} for other in query["nearest"]],
            }
            for query in queries
        ]
        for direction, queries in sample.items()
    }


def _shown(row: Mapping[str, Any], small: Any) -> dict[str, Any]:
    image: Thumbnail | None = small(row["image"]) if row["image"] is not None else None
    return {"image": image, "text": row["text"]}
