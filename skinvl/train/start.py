"""How a training begins and ends in its folder, whichever verb it is of: claimed, gone on with, and left whole."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from skinvl.data.mixture import digests
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.files import appear, clear, partial_folder
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.towers import PretrainRecipe
from skinvl.train import checkpoint
from skinvl.train.log import rewind
from skinvl.train.loop import Loop

A = TypeVar("A", bound=TrainingArguments)
L = TypeVar("L", bound=Loop)
R = TypeVar("R", Recipe, PretrainRecipe)


def parsed(verb: str, description: str, words: Sequence[str]) -> argparse.Namespace:
    """The words of a verb that trains: `recipe`, `overrides`, `dry_run` and `configs`."""
    parser = recipe_parser(verb, description)
    parser.add_argument("--dry-run", action="store_true", help="show what would train, without any weights")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="with --dry-run: model configs from this folder")
    args = parser.parse_intermixed_args(words)
    if args.configs is not None and not args.dry_run:
        parser.error("--configs names configs without weights; add --dry-run, or give base=FOLDER")
    return args


def train(
    recipe: R,
    args: A,
    prepare: Callable[[R, A, Path, Console, Mapping[str, str]], L],
    finish: Callable[[L, Path, float, Console], None],
) -> None:
    """Trains a recipe in the folder of its run.

    Args:
        args: the arguments of its trainer.
        prepare: (recipe, args, folder, console, digests of the data) → the trainer, everything checked.
        finish: (trainer, folder, minutes, console), what is saved and evaluated, unless SIGTERM stopped the training.
    """
    path = run.folder(recipe)
    say = Console(quiet=args.process_index != 0)

    # The folder first: what is wrong with it shows before anything is downloaded or loaded.
    run.require_kind_of_start(recipe)
    data = digests(recipe.data) if args.process_index == 0 else {}
    resume = claimed(recipe, args, path, data)

    trainer = prepare(recipe, args, path, say, data)
    minutes = _trained(trainer, path, resume, say)
    if minutes is not None:
        finish(trainer, path, minutes, say)
    trainer.accelerator.end_training()  # its threads, left to the interpreter, now and then abort a finished rank


def require_startable(recipe: Recipe | PretrainRecipe) -> None:
    """Checks what `claimed` checks, without beginning; how many ranks there will be is not asked for.

    Raises:
        CheckpointError, RunError: as `claimed`.
    """
    run.require_kind_of_start(recipe)
    path, data = run.folder(recipe), digests(recipe.data)
    run.require_free(path, recipe.resume is not None)
    if recipe.resume:
        checkpoint.same(path, recipe, data, None)
        if resume := checkpoint.last(path / "checkpoints"):
            checkpoint.verify(resume)


def claimed(recipe: Recipe | PretrainRecipe, args: Any, path: Path, data: Mapping[str, str]) -> Path | None:
    """The checkpoint to go on from, if any; the folder is this run's then, and rid of what a killed one left half done.

    Args:
        args: the transformers.TrainingArguments.
        data: digests of the files that are trained and evaluated on.

    Raises:
        CheckpointError: the run in the folder was begun otherwise, or its last checkpoint is damaged.
        RunError: the folder is taken, or cannot be written to.
    """
    resume = checkpoint.last(path / "checkpoints") if recipe.resume else None
    with args.main_process_first(local=False):
        if args.process_index > 0:
            return resume
        run.claim(path, recipe.resume is not None)
        if recipe.resume:
            checkpoint.same(path, recipe, data, args.world_size)
            checkpoint.sweep(path / "checkpoints")
            checkpoint.sweep(path)
            rewind(path / "log.jsonl", checkpoint.step_of(resume) if resume else 0)
        if resume:
            checkpoint.verify(resume)
    return resume


def _trained(trainer: Loop, path: Path, resume: Path | None, say: Console) -> float | None:
    """The minutes that the training took; None if SIGTERM stopped it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the collator's workers are forks
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.preemption.happened:
        last = checkpoint.last(path / "checkpoints")
        say.print(f"stopped by SIGTERM; {last} is whole: the same command with resume=auto goes on from it")
        return None
    return (time.monotonic() - started) / 60


def save_weights(trainer: Loop, path: Path, write: Callable[[Path], None] | None = None) -> None:
    """Writes what was trained, and what prepares its inputs, into a folder, whole.

    Args:
        write: what writes instead a part of it; the first rank alone calls it.
    """
    partial = partial_folder(path)
    with checkpoint.written(path, Path(str(trainer.args.output_dir))):
        if write is None:
            trainer.save_model(str(partial))
        elif trainer.is_world_process_zero():
            clear(partial)
            partial.mkdir(parents=True)
            write(partial)
        if trainer.is_world_process_zero():
            appear(partial, path)


def say_sizes(path: Path, say: Console) -> None:
    """Prints the bytes of a run's last checkpoint, by what they are for."""
    if last := checkpoint.last(path / "checkpoints"):
        sizes = checkpoint.sizes(last)
        say.print(f"{last}: {', '.join(f'{what} {size / 2**20:,.1f} MiB' for what, size in sizes.items())}")


def training_arguments(kind: type[A], values: Mapping[str, Any], path: Path, **owned: Any) -> A:
    """The arguments of a Trainer, with the few fields that skinvl decides.

    Args:
        kind: their class.
        values: the section `train` of a recipe.
        path: the folder of the run.
        owned: fields that a verb decides beside these.

    Raises:
        ValueError: what it reports to, or its optimizer, is not installed.
    """
    train = dict(values)
    if train.get("metric_for_best_model") is not None:
        train.setdefault("load_best_model_at_end", True)
        if train.get("save_total_limit") == 1:  # transformers would remove the last, and no run could go on
            train["save_total_limit"] = 2
    train.setdefault("report_to", "tensorboard")
    train.setdefault("use_cpu", not torch.cuda.is_available())
    own = {"output_dir": str(path / "checkpoints"), "remove_unused_columns": False, "logging_nan_inf_filter": False}
    args = kind(**{**train, **own, **owned})
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(path / "tensorboard")
    _require_libraries(args)
    return args


def _require_libraries(args: TrainingArguments) -> None:
    """Checks that what the Trainer reports to and its optimizer are installed, which it would find out late.

    Raises:
        ValueError: one is not.
    """
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()  # looks for its library, and no further
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"train.report_to: {error} Install it, or report to tensorboard or none") from error
    if args.optim.startswith(("galore", "apollo", "lomo", "adalomo")):  # these ask the model, which is not there yet
        return
    try:
        transformers.Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        raise ValueError(f"train.optim: {args.optim}: {error}. Install it, or leave train.optim out") from error
