"""`skinvl cache`: the vision features of a recipe's images, computed before anything trains on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from accelerate import PartialState
from rich.console import Console

from skinvl.data import mixture
from skinvl.model import precompute
from skinvl.model.lengths import preflight
from skinvl.model.loaded import open_base
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.recipe import Recipe, load


def main(words: Sequence[str]) -> int:
    """0, once the features of every image that `skinvl sft` would show lie on disk."""
    parser = recipe_parser("cache", "Compute the vision features of a recipe's images ahead of sft.")
    args = parser.parse_intermixed_args(words)
    fill(load(args.recipe, args.overrides))
    return 0


def fill(recipe: Recipe) -> None:
    """Computes the features of every image that a training would show, and keeps them on disk.

    Raises:
        ValueError: the tower trains, or nothing may be kept.
    """
    if recipe.parts.vision.train != "frozen":
        raise ValueError(f"{recipe.name}: parts.vision trains, so that its features change with every step")
    if recipe.cache_gb == 0:
        raise ValueError(f"{recipe.name}: cache_gb=0 keeps no features; leave it out, or give the GB they may take")
    state = PartialState(cpu=bool(recipe.train.get("use_cpu")))
    say = Console(quiet=not state.is_main_process)
    sets = mixture.load(recipe.data)
    asked = recipe if recipe.cache_gb is not None else recipe.model_copy(update={"cache_gb": math.inf})
    with state.main_process_first():
        base = open_base(asked)
    rows = [*sets.train, *chain.from_iterable(sets.evaluation.values())]
    kept = [rows[length.index] for length in preflight(base.chat, [(row.example, row.root) for row in rows]).kept]
    if precompute.once(base, kept, math.inf, say) is None:
        raise ValueError(f"{recipe.name}: nothing was computed: its images take more than cache_gb, or it has none")
    state.destroy_process_group()
