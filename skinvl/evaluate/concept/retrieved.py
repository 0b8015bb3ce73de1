"""The pools that a recipe retrieves in, and how their ranks change when units are taken out of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console

from skinvl.data import texts
from skinvl.evaluate import retrieve
from skinvl.evaluate.embed import Vectors
from skinvl.evaluate.pools import Pools, pools
from skinvl.model.dictionary import Dictionary
from skinvl.model.towers_loaded import LoadedTowers
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import compare, ranking, retrieval, stats
from skinvl.score.compare import Resampling


@dataclass(frozen=True, slots=True)
class EmbeddedPools:
    """The pools of an eval set with the embeddings of both."""

    name: str
    pools: Pools
    images: Vectors
    texts: Vectors

    def recall(self, direction: str, images: Vectors) -> float:
        """R@k of a direction with these embeddings of the images, k as `depth` has it."""
        sides = (images, self.texts, self.pools.right)
        if direction != retrieval.DIRECTIONS[0]:
            sides = (self.texts, images, self.pools.right.T.tocsr())
        return float(np.mean(ranking.ranks(*sides) <= self.depth(direction)))

    def depth(self, direction: str) -> int:
        """The k that slices of retrieval show: 10, or 1 in a pool that 10 would hold."""
        size = len(self.pools.texts if direction == retrieval.DIRECTIONS[0] else self.pools.images)
        return retrieval.HEADLINE if retrieval.HEADLINE in ranking.depths(size) else 1


def embedded(loaded: LoadedTowers, recipe: PretrainRecipe, state: PartialState, say: Console) -> list[EmbeddedPools]:
    """The pools of each eval set of the recipe, as `skinvl retrieve` has them.

    Raises:
        PoolError: a set has too little left.
    """
    if not recipe.data.eval:
        return []
    sets = texts.load(recipe.data, recipe.objective)
    made = []
    for name, images in sets.evaluation.items():
        own = pools(name, images, sets.train)
        made.append(EmbeddedPools(name, *retrieve.embedded(loaded, name, own, state, say)))
    return made


def change(
    loaded: LoadedTowers,
    sets: Sequence[EmbeddedPools],
    dictionary: Dictionary,
    units: Sequence[int],
    random: Sequence[Sequence[int]],
    resampling: Resampling,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of each set the numbers before, after and without random units, by direction; and the tests of what changes."""
    blocks: dict[str, Any] = {}
    tests: list[dict[str, Any]] = []
    for own in sets:
        images = _without(dictionary, own.images, units)
        others = [_without(dictionary, own.images, numbers) for numbers in random]
        before, after = (
            retrieve.retrieve(loaded, own.name, own.pools, side, own.texts) for side in (own.images, images)
        )
        tests += compare.retrieved(own.name, after, before, resampling)
        blocks[own.name] = {
            direction: {
                "n": len(before.rows[direction]),
                "pool": before.size(direction),
                "k": own.depth(direction),
                "before": own.recall(direction, own.images),
                "after": own.recall(direction, images),
                "random": stats.spread([own.recall(direction, side) for side in others]) if len(others) > 1 else None,
            }
            for direction in before.rows
        }
    return blocks, tests


def _without(dictionary: Dictionary, images: Vectors, units: Sequence[int]) -> Vectors:
    made: Vectors = dictionary.without(torch.from_numpy(images), units).numpy()
    return made
