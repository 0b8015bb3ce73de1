"""What the queries of a retrieval came to: their ranks as they are written and read, and the numbers of them.

A set's ranks are `<set>.jsonl`, a row for each query in either direction, with `<set>.json` beside it: what they were
made with, what was left out of the pools, and the nearest neighbours of a sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from skinvl.data.example import Facts, facts_of
from skinvl.recipe.files import read_json, read_json_lines, whole_file, write_json
from skinvl.score import ranking, slices
from skinvl.score.predictions import PredictionError
from skinvl.score.stats import Bootstrap, Estimate, Float

DIRECTIONS = ("image to text", "text to image")
HEADLINE = 10  # k of the R@k that slices show
AGAIN = "make it again with skinvl retrieve"


@dataclass(frozen=True, slots=True)
class RankedQuery:
    """Where the nearest right one of a query stands in the pool of its direction."""

    direction: str  # of DIRECTIONS
    id: str  # of an image its path in the source, of a text the text
    source: str  # of the image, or of the first that has the text
    group: str  # what an interval resamples whole: the patient, lesion or figure of that image
    rank: float  # from 1; with .5 where a tie is shared
    positives: int  # how many of the pool are right
    group_rank: float  # the rank if all of the same group were right too
    facts: Facts  # of that image


@dataclass(frozen=True, slots=True)
class RetrievedSet:
    """The ranks of a set, by direction, and what they were made with."""

    settings: dict[str, Any]
    rows: dict[str, list[RankedQuery]]

    def size(self, direction: str) -> int:
        """How many there are in the pool that a direction's queries are compared with."""
        return int(self.settings["texts" if direction == DIRECTIONS[0] else "images"])


def write(path: Path, retrieved: RetrievedSet) -> None:
    """Writes the rows to the path, which ends in .jsonl, and the settings beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), retrieved.settings)
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for rows in retrieved.rows.values():
            file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def read(path: Path) -> RetrievedSet:
    """The ranks of a set.

    Raises:
        PredictionError: a file is not there, damaged, or not of this kind.
    """
    rows: dict[str, list[RankedQuery]] = {direction: [] for direction in DIRECTIONS}
    names = {field.name for field in fields(RankedQuery)}
    for plain in read_json_lines(path, AGAIN, PredictionError):
        if plain.keys() != names or plain["direction"] not in rows:
            raise PredictionError(f"{path}: not a file of ranks (fields {sorted(plain)}); {AGAIN}")
        rows[plain["direction"]].append(RankedQuery(**{**plain, "facts": facts_of(plain["facts"])}))
    settings = read_json(path.with_suffix(".json"), AGAIN, PredictionError)
    if missing := [
        name for name in ("images", "texts", "pools", "orders", "left_out", "neighbours") if name not in settings
    ]:
        raise PredictionError(f"{path.with_suffix('.json')}: has no {missing[0]}; {AGAIN}")
    return RetrievedSet(settings, {direction: ranked for direction, ranked in rows.items() if ranked})


def bootstrap(rows: Sequence[RankedQuery], resamples: int, seed: int) -> Bootstrap:
    """Resamples of the queries' groups; the pool stays."""
    return Bootstrap([(row.source, row.group) for row in rows], resamples, seed)


def ranked(rows: Sequence[RankedQuery]) -> Float:
    """float64[N], the ranks."""
    return np.array([row.rank for row in rows], np.float64)


def estimates(rows: Sequence[RankedQuery], size: int, draws: Bootstrap) -> dict[str, Estimate]:
    """R@k and the median rank in a pool of this size."""
    return ranking.estimates(ranked(rows), size, draws, np.ones(len(rows), np.bool_))


def block(retrieved: RetrievedSet, resamples: int, seed: int) -> dict[str, Any]:
    """The Block of scores.json for one set."""
    directions = {}
    for direction, rows in retrieved.rows.items():
        size, draws = retrieved.size(direction), bootstrap(rows, resamples, seed)
        numbers = {
            "n": len(rows),
            "pool": size,
            "numbers": _numbers(ranked(rows), size, draws),
            **retrieved.settings["orders"][direction],
            "same_group": {},
            "slices": _slices(rows, size, draws),
        }

        # What shares the query's group is no second truth: beside it, where it makes a difference.
        widened = np.array([row.group_rank for row in rows], np.float64)
        if (widened != ranked(rows)).any():
            numbers["same_group"] = _numbers(widened, size, draws)
        directions[direction] = numbers
    settings = {
        name: value for name, value in retrieved.settings.items() if name not in ("neighbours", "numbers", "orders")
    }
    return {"directions": directions, "left_out": retrieved.settings["left_out"], "settings": settings}


def flat(block: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of both directions of a block, each after its direction."""
    return {
        f"{direction} {name}": number
        for direction, numbers in block["directions"].items()
        for name, number in numbers["numbers"].items()
    }


def _slices(rows: Sequence[RankedQuery], size: int, draws: Bootstrap) -> dict[str, Any]:
    """Recall by what is known of the queries' images, in the same pool: at 10, or at 1 where that is all."""
    depth = HEADLINE if HEADLINE in ranking.depths(size) else 1
    hits = ranked(rows) <= depth
    return slices.table(rows, f"R@{depth}", lambda mask: draws.share(hits, mask), ("modality", *slices.FIELDS))


def _numbers(ranks: Float, size: int, draws: Bootstrap) -> dict[str, Any]:
    every = np.ones(len(ranks), np.bool_)
    return {name: number.number() for name, number in ranking.estimates(ranks, size, draws, every).items()}
