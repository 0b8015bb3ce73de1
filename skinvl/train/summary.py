"""What `skinvl sft` prints: what trains, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skinvl.model.adapter import Trained
from skinvl.recipe.printing import entry
from skinvl.recipe.provenance import Provenance
from skinvl.recipe.recipe import Recipe
from skinvl.train.callbacks import Speed
from skinvl.train.image_control import Control


def parts(say: Console, recipe: Recipe, rate: float, parts: Mapping[str, Trained], made: Provenance) -> None:
    """Prints what trains in each part, where, and at which learning rate."""
    table = Table("part", "train", "learning rate", "trainable", "of", title=f"{recipe.name} on {recipe.base.name}")
    places = {}
    for name, part in parts.items():
        spec = getattr(recipe.parts, name)
        own = "" if spec.train == "frozen" else f"{spec.learning_rate or rate:g}"
        table.add_row(name, spec.train, own, f"{part.trainable:,}", f"{part.parameters:,}")
        if part.trainable:
            places[name] = ", ".join(f"{module} ×{count}" for module, count in part.lora.items())
            places[name] = places[name] or f"{part.full} module{'s' * (part.full != 1)}"
    say.print(table)
    for name, where in places.items():
        entry(say, f"{name} trains", where)
    say.print(
        f"{made.engine}, ranks {made.ranks}, effective batch {made.effective_batch}, {made.precision}, "
        f"attention {made.attention}, what conversations about one image have in common is computed "
        f"{made.shared}; trainable weights in fp32; vision tower, projector and lm_head unquantised"
    )


def result(
    say: Console,
    losses: Mapping[str, Any],
    control: Control | None,
    speed: Speed | None,
    minutes: float,
    path: Path,
) -> None:
    """Prints the run's losses, the image control and where the adapter lies."""
    table = Table("result", "value", title=str(path))
    table.add_row("train loss (mean of the run)", f"{losses['train_loss']:.4f}")
    shown = [name for name in losses if name.startswith("eval_") and name.endswith("_loss")]
    for name in shown[:1] if len(shown) == 2 else shown:  # of one source the overall loss is the same again
        table.add_row(name.replace("_", " "), f"{losses[name]:.4f}")
    if control:
        table.add_row(f"closed answers right, own image (n={control.questions})", f"{control.own:.3f}")
        table.add_row("closed answers right, images permuted", f"{control.permuted:.3f}")
    table.add_row("training time", f"{minutes:.1f} min")
    if speed:
        table.add_row("tokens/s, conversations/s", f"{speed.tokens_per_second:,.0f}, {speed.samples_per_second:,.1f}")
        table.add_row("positions computed for each token", f"{speed.computed:.2f}")
        table.add_row("seconds a step", f"{speed.step_seconds:.3f}")
        for rank, (wait, peak) in enumerate(zip(speed.data_wait, speed.peak_memory, strict=True)):
            table.add_row(f"rank {rank}: waiting for data, peak memory", f"{wait:.0%}, {peak:,.0f} MiB")
    say.print(table)
    say.print(f"adapter: {path / 'adapter'}")
