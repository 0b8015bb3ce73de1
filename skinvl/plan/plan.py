"""`skinvl plan`: what a recipe needs in memory and hours, said before anything is rented."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from skinvl.model.families import PARTS
from skinvl.plan import estimate, gpus, memory, towers_plan
from skinvl.plan.configs import open_config
from skinvl.plan.estimate import NF4, Requirements
from skinvl.plan.gpus import GIB, Gpu
from skinvl.plan.workload import Assumed
from skinvl.recipe import towers
from skinvl.recipe.loading import kind_of
from skinvl.recipe.recipe import load
from skinvl.recipe.run import recipe_name, require_kind_of_start

SMALLER = 0.95  # share of a step's activations at which a suggestion is worth making


def main(arguments: Sequence[str]) -> int:
    """0, once it is said what the recipe needs, whether it fits or not.

    Raises:
        ValueError: a GPU or an optimizer that is not known, or data that cannot be trained on.
    """
    parser = argparse.ArgumentParser(prog="skinvl plan", description="Memory and hours of a recipe, before renting.")
    parser.add_argument("recipe", help="the folder of a run, a name in recipes/, or a path to a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as base=qwen3-vl-8b")
    parser.add_argument("--gpu", required=True, help="a name such as a100-80gb, or GIB:TFLOPS in dense bf16")
    parser.add_argument("--gpus", type=int, default=1, metavar="N")
    parser.add_argument(
        "--mfu", type=float, default=gpus.MFU, help=f"share of the GPU's rate that is reached (default {gpus.MFU})"
    )
    parser.add_argument("--configs", type=Path, metavar="DIR", help="model configs from this folder, not the hub")
    parser.add_argument(
        "--assume",
        default="",
        metavar="KEY=NUMBER,…",
        help="where data is not prepared: rows, questions (about an image), and in tokens question, answer, around "
        "(what the template adds); of two towers images, sentences (of an image), and in tokens caption, ontology, "
        "concepts, sentence",
    )
    args = parser.parse_intermixed_args(arguments)
    if args.gpus < 1 or not 0 < args.mfu <= 1:
        parser.error("--gpus is at least 1, and --mfu above 0 and at most 1")
    rented = gpus.find(args.gpu)
    name = recipe_name(args.recipe)
    if kind_of(name, args.overrides) == "pretrain":
        pair = towers.load(name, args.overrides)
        require_kind_of_start(pair)
        towers_plan.show(pair, args.configs, rented, args.gpus, args.mfu, args.assume)
        return 0
    guess = assumption(args.assume)
    recipe = load(name, args.overrides)
    require_kind_of_start(recipe)
    say = Console()
    with TemporaryDirectory() as folder:
        base = open_config(recipe, args.configs, Path(folder))
        show(say, estimate.estimate(base, args.gpus, guess), rented, args.mfu)
    return 0


def assumption(text: str) -> Assumed:
    """The conversations of `rows=…,questions=…`; what it leaves out stays as in MM-Skin's test set.

    Raises:
        ValueError: another key, or not a positive number.
    """
    kinds = {"rows": int, "questions": float, "question": int, "answer": int, "around": int}
    numbers: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        try:
            numbers[key] = kinds[key](value)
        except (KeyError, ValueError):
            numbers[key] = 0
        if numbers[key] <= 0:
            raise ValueError(f"--assume {pair}: expected {', '.join(f'{kind}=NUMBER' for kind in kinds)}, each above 0")
    return Assumed(**numbers)


def show(say: Console, requirements: Requirements, gpu: Gpu, mfu: float) -> None:
    """Prints parameters, tokens, memory, whether that fits, hours and disk."""
    ranks = requirements.ranks
    say.print(
        f"{requirements.recipe.name} on {requirements.recipe.base.name}, {ranks} × {gpu.name} ({gpu.memory} GiB)",
        style="bold",
    )
    for line in requirements.remarks:
        say.print(line, style="yellow", markup=False, highlight=False)
    if requirements.recipe.precision == "bf16" and not gpu.bf16:
        say.print(f"{gpu.name} has no bf16: train.bf16=false train.fp16=true, or another GPU", style="red")
    table = Table("part", "train", Column("trainable", justify="right"), Column("of", justify="right"))
    for part in PARTS:
        count = requirements.counts[part]
        table.add_row(
            part, getattr(requirements.recipe.parts, part).train, f"{count.trainable:,}", f"{count.parameters:,}"
        )
    say.print(table)
    say.print(f"parameters of {requirements.recipe.base.name}: {requirements.parameters:,}")
    _memory(say, requirements, gpu)
    _time(say, requirements, gpu, mfu)
    _disk(say, requirements)


def _memory(say: Console, requirements: Requirements, gpu: Gpu) -> None:
    needed, room = requirements.needed(), gpu.memory * GIB
    table = Table(
        "memory of each GPU",
        Column("GiB", justify="right"),
        title=f"largest batch, {requirements.conversations} conversations",
    )

    # What lies on the GPU; then what is part of that, or lies elsewhere.
    for name, size in needed.items.items():
        table.add_row(name, f"{size / GIB:,.2f}")
    table.add_row("all", f"{needed.total / GIB:,.2f}", style="bold")
    other = requirements.needed(requirements.otherwise()).total
    table.add_row(
        f"all, {'without' if requirements.stage.checkpointing else 'with'} checkpointing", f"{other / GIB:,.2f}"
    )
    count, size = requirements.logits
    table.add_row(f"of the activations, logits of {count:,} trained tokens", f"{size / GIB:,.2f}")
    for name, size in needed.host.items():
        table.add_row(f"in the host's memory: {name}", f"{size / GIB:,.2f}")
    say.print(table)

    # What to do where it does not fit: fewer conversations at once, or one of the ways that take less for each.
    most = requirements.fitting(room)
    if needed.total <= room:
        say.print(f"fits into {gpu.memory} GiB; the largest per_device_train_batch_size that would: about {most}")
        return
    say.print(f"does not fit: {needed.total / GIB:,.1f} GiB, and {gpu.name} has {gpu.memory}", style="bold red")
    if most:
        say.print(f"with per_device_train_batch_size={most} (and gradient_accumulation_steps to match) it would fit")
    for what, size in _instead(requirements, other):
        say.print(f"{what}: {size / GIB:,.1f} GiB{', fits' if size <= room else ''}", markup=False, highlight=False)


def _instead(requirements: Requirements, other: float) -> Iterator[tuple[str, float]]:
    """What would take less, and how much it would take; `other` is checkpointing the other way round."""
    recipe, train = requirements.recipe, requirements.recipe.train
    if recipe.quantization is None:
        yield "QLoRA (quantization, nf4 with double quantisation)", requirements.needed(quantization=NF4).total
        sharded = requirements.sharded() if requirements.ranks > 1 else None
        for name in ("zero3", "zero3_offload"):
            if sharded and train.get("deepspeed") != name:
                needed = requirements.needed(sharded, train={**train, "deepspeed": name})
                yield f"train.deepspeed={name}", needed.total
    if not requirements.stage.checkpointing:
        yield "train.activation_checkpointing=true", other
    half = requirements.halved()
    if half < SMALLER:
        yield (
            f"data.image_tokens={recipe.data.image_tokens // 2} (about)",
            requirements.needed().total - requirements.trace.peak * (1 - half),
        )


def _time(say: Console, requirements: Requirements, gpu: Gpu, mfu: float) -> None:
    table = Table(
        f"an epoch, each of {requirements.ranks}",
        *(Column(name, justify="right") for name in ("shared prefixes", "each apart")),
    )
    loads = requirements.shared.load, requirements.apart.load
    for name in ("conversations", "tokens", "positions", "trained"):
        table.add_row(name, *(f"{getattr(load, name):,.0f}" for load in loads))
    work = [requirements.rates.of(load) for load in loads]
    table.add_row("PFLOP", *(f"{flops / 1e15:,.1f}" for flops in work))
    table.add_row(f"hours at an MFU of {mfu:g}", *(f"{gpus.hours(flops, gpu, mfu):,.2f}" for flops in work))
    say.print(table)

    # All epochs, and the vision features, which are computed before the first of them and kept.
    count = estimate.epochs(requirements.recipe, requirements.shared)
    once = gpus.hours(requirements.disk.flops / requirements.ranks, gpu, mfu) if requirements.disk.kept else 0.0
    total = gpus.hours(work[0], gpu, mfu) * count + once
    say.print(
        f"the whole run, {count:g} × an epoch: {total:,.2f} hours"
        + (f", {once:,.2f} of them for vision features, once" if once else "")
    )
    if mfu == gpus.MFU:
        say.print(f"the MFU of {mfu:g} is an assumption (nothing was measured on a GPU); --mfu gives another")


def _disk(say: Console, requirements: Requirements) -> None:
    disk = requirements.disk
    if disk.kept:
        say.print(f"on disk: vision features of {disk.images:,} images, {disk.size / 1e9:,.1f} GB")
    size = memory.checkpoint(requirements.recipe, memory.weights(requirements.real), requirements.ranks)
    say.print(f"on disk: each checkpoint {size / 1e9:,.2f} GB")
