"""`skinvl cache`: the vision features of a recipe's images, computed before anything trains on them."""

from __future__ import annotations

import math

from accelerate import PartialState
from rich.console import Console
from transformers import AutoProcessor

from skinvl import features, mixture, model
from skinvl.chat import Chat
from skinvl.lengths import preflight
from skinvl.recipe import Recipe


def main(recipe: Recipe) -> int:
    """0, once the features of every image that `skinvl sft` would show lie on disk."""
    if recipe.parts.vision.train != "frozen":
        raise ValueError(f"{recipe.name}: parts.vision trains, so that its features change with every step")
    if recipe.cache_gb == 0:
        raise ValueError(f"{recipe.name}: cache_gb=0 keeps no features; leave it out, or give the GB they may take")
    state = PartialState(cpu=bool(recipe.train.get("use_cpu")))
    say = Console(quiet=not state.is_main_process)
    sets = mixture.load(recipe.data)
    with state.main_process_first():
        base = model.snapshot(recipe)
    config, family = model.config(base.path)
    chat = Chat(AutoProcessor.from_pretrained(base.path), family, **recipe.data.budget)
    rows = [*sets.train, *(row for some in sets.evaluation.values() for row in some)]
    kept = [rows[length.index] for length in preflight(chat, [(row.example, row.root) for row in rows]).kept]
    asked = recipe if recipe.cache_gb is not None else recipe.model_copy(update={"cache_gb": math.inf})
    if features.once(asked, base.path, config, chat, kept, math.inf, say) is None:
        raise ValueError(f"{recipe.name}: nothing was computed: its images take more than cache_gb, or it has none")
    state.destroy_process_group()
    return 0
