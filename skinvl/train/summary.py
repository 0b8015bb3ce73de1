"""What `skinvl sft` and `pretrain` print: what trains, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PretrainedConfig

from skinvl.model import lora, recurrence
from skinvl.model.adapter import Trained
from skinvl.model.families import Family
from skinvl.recipe.printing import entry
from skinvl.recipe.provenance import Provenance
from skinvl.recipe.recipe import Parts, Recipe
from skinvl.recipe.towers import PretrainRecipe, Towers
from skinvl.train.callbacks import Speed
from skinvl.train.image_control import Control


def parts(say: Console, recipe: Recipe, rate: float, parts: Mapping[str, Trained], made: Provenance) -> None:
    """Prints what trains in each part, where, and at which learning rate."""
    _parts(say, f"{recipe.name} on {recipe.base.name}", recipe.parts, rate, parts)
    say.print(
        f"{made.engine}, ranks {made.ranks}, effective batch {made.effective_batch}, {made.precision}, "
        f"attention {made.attention}, what conversations about one image have in common is computed "
        f"{made.shared}; trainable weights in fp32; vision tower, projector and lm_head unquantised"
    )


def towers(say: Console, recipe: PretrainRecipe, rate: float, parts: Mapping[str, Trained], made: Provenance) -> None:
    """Prints what trains of two towers, where, and at which learning rate, and what of."""
    _parts(say, f"{recipe.name} on {recipe.base.name}", recipe.towers, rate, parts)
    assert made.towers is not None
    aspects = ", ".join(f"{count:,} {aspect}" for aspect, count in made.towers.texts.items())
    shown = f"texts: {aspects}, {made.towers.distinct:,} of them different"
    if made.towers.teacher is not None:
        shown = f"{recipe.objective.masked_share:.0%} of the patches masked; teacher {recipe.objective.teacher}"
    say.print(
        f"{made.engine}, ranks {made.ranks}, {made.precision}, attention {made.attention}; {made.effective_batch} "
        f"images in a step, at most {recipe.batch.at_once} of them in memory at a time on each rank; "
        f"objective {recipe.objective.name}; {shown}"
    )


def adapted_layers(say: Console, model: nn.Module) -> None:
    """Prints by which forward the LoRA layers of a model run, if it has some."""
    if line := lora.sentence(model):
        say.print(line, highlight=False)


def bare_layers(say: Console, family: Family, recipe: Recipe, config: PretrainedConfig) -> None:
    """Prints which layers of the language model have nothing that LoRA could adapt, if some have not."""
    if recipe.parts.language.train == "lora" and (line := family.left_out(config)):
        say.print(line, markup=False, highlight=False, soft_wrap=True)


def slow_layers(say: Console, model: nn.Module, device: torch.device) -> None:
    """Prints which kernels are missing on a GPU for the layers of a model that carry a state, if it has some."""
    if line := recurrence.sentence(model, device):
        say.print(line, markup=False, highlight=False, soft_wrap=True)


def _parts(say: Console, title: str, specs: Parts | Towers, rate: float, parts: Mapping[str, Trained]) -> None:
    table = Table("part", "train", "learning rate", "trainable", "of", title=title)
    places = {}
    for name, part in parts.items():
        spec = getattr(specs, name)
        own = "" if spec.train == "frozen" else f"{spec.learning_rate or rate:g}"
        table.add_row(name, spec.train, own, f"{part.trainable:,}", f"{part.parameters:,}")
        if part.trainable:
            places[name] = ", ".join(f"{module} ×{count}" for module, count in part.lora.items())
            full = f"{part.full} module{'s' * (part.full != 1)}" if part.full else "all of it"
            places[name] = places[name] or full
    say.print(table)
    for name, where in places.items():
        entry(say, f"{name} trains", where)


def result(
    say: Console,
    losses: Mapping[str, Any],
    control: Control | None,
    speed: Speed | None,
    minutes: float,
    path: Path,
) -> None:
    """Prints the run's losses, the image control and where the adapter lies."""
    table = _losses(losses, path)
    if control:
        table.add_row(f"closed-answer tokens right ({control.questions} questions)", f"{control.own:.3f}")
        table.add_row("closed-answer tokens right, images permuted", f"{control.permuted:.3f}")
    _speed(table, speed, minutes, "tokens/s, conversations/s", "positions computed for each token")
    say.print(table)
    say.print(f"adapter: {path / 'adapter'}")


def towers_result(
    say: Console, numbers: Mapping[str, Any], speed: Speed | None, minutes: float, path: Path, trained: Path
) -> None:
    """Prints the losses and recalls of a run of two towers, its pairs that were no negatives, and where it lies.

    Args:
        trained: the folder of what it trained.
    """
    table = _losses(numbers, path)
    for name in [name for name in numbers if name.startswith("eval_") and name.endswith("_R@1")]:
        images = numbers[f"{name.removesuffix('_R@1')}_images"]
        table.add_row(f"{name.replace('_', ' ')} (mean of both ways, n={images:,.0f})", f"{numbers[name]:.3f}")
    for name, count in numbers.get("pairs", {}).items():
        table.add_row(f"pairs of an epoch: {name.replace('_', ' ')}", f"{count:,}")
    counted, what = ("text tokens", "text token") if "pairs" in numbers else ("patches", "patch")
    _speed(table, speed, minutes, f"{counted}/s, images/s", f"positions computed for each {what}")
    say.print(table)
    say.print(f"{trained.name}: {trained}")


def _losses(numbers: Mapping[str, Any], path: Path) -> Table:
    table = Table("result", "value", title=str(path))
    table.add_row("train loss (mean of the run)", f"{numbers['train_loss']:.4f}")
    shown = [name for name in numbers if name.startswith("eval_") and name.endswith("_loss")]
    for name in shown[:1] if len(shown) == 2 else shown:  # of one source the overall loss is the same again
        table.add_row(name.replace("_", " "), f"{numbers[name]:.4f}")
    return table


def _speed(table: Table, speed: Speed | None, minutes: float, rates: str, computed: str) -> None:
    table.add_row("training time", f"{minutes:.1f} min")
    if speed:
        table.add_row(rates, f"{speed.tokens_per_second:,.0f}, {speed.samples_per_second:,.1f}")
        table.add_row(computed, f"{speed.computed:.2f}")
        table.add_row("seconds a step", f"{speed.step_seconds:.3f}")
        for rank, (wait, peak) in enumerate(zip(speed.data_wait, speed.peak_memory, strict=True)):
            table.add_row(f"rank {rank}: waiting for data, peak memory", f"{wait:.0%}, {peak:,.0f} MiB")
