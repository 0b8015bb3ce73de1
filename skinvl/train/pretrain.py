"""`skinvl pretrain`: prepared sources and a base of two towers → towers that embed images and their texts alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import TrainingArguments, set_seed

from skinvl.data import mixture, texts
from skinvl.data.example import write_jsonl
from skinvl.model import latent, own_tower, towers_adapter
from skinvl.model.own_tower import OpenGenerative
from skinvl.model.towers_loaded import LoadedTowers, open_towers, read_model
from skinvl.plan import dry_towers
from skinvl.plan.texts import checked_images, checked_texts, shaped
from skinvl.recipe import provenance, run, towers
from skinvl.recipe.files import write_json, write_text
from skinvl.recipe.towers import PretrainRecipe
from skinvl.train import start, summary
from skinvl.train.checkpoint import CheckpointError
from skinvl.train.dual_trainer import DualTrainer, TowersTrainer
from skinvl.train.latent_trainer import LOSSES, LatentTrainer
from skinvl.train.log import mean, plot_losses
from skinvl.train.records import towers_provenance


def main(words: Sequence[str]) -> int:
    """0, once the run folder holds the towers and their records (or, dry, once all but the weights is shown)."""
    args = start.parsed("pretrain", "Train a recipe of two towers: they come to embed images and texts alike.", words)
    recipe = towers.load(args.recipe, args.overrides)
    if args.dry_run:
        require_startable(recipe)
        dry_towers.show(recipe, args.configs)
    else:
        train(recipe)
    return 0


def train(recipe: PretrainRecipe) -> None:
    """Trains a recipe; its run folder then holds the adapter or model and the records of how it was made."""
    start.train(recipe, arguments(recipe, run.folder(recipe)), prepare, finish)


def require_startable(recipe: PretrainRecipe) -> None:
    """Checks what a training of this recipe checks before it has a base, without beginning one.

    Raises:
        CheckpointError, RunError: as `start.claimed`.
        ValueError: as `arguments`.
    """
    arguments(recipe, run.folder(recipe))
    start.require_startable(recipe)


def prepare(
    recipe: PretrainRecipe, args: TrainingArguments, path: Path, say: Console, data: Mapping[str, str]
) -> TowersTrainer:
    """The trainer of a recipe, everything checked; the run folder then holds recipe.yaml, env.json and ledger.jsonl.

    Args:
        data: digests of the files that are trained and evaluated on, for env.json.
    """
    # Images with their texts: of no patient, lesion or image may some be trained on and some evaluated.
    sets = texts.load(recipe.data, recipe.objective) if recipe.reads_texts else texts.images_alone(recipe.data)

    # Base: config, tokenizer and pixels; the weights wait until all else is known to be right.
    with args.main_process_first():  # one process of a machine downloads, converts or builds
        opened: Any = own_tower.opened(recipe) if recipe.generative else open_towers(recipe)

    # Texts that the tower reads whole, or what data.too_long makes of the others.
    if recipe.reads_texts:
        sets = shaped(sets, opened)
        rows = checked_texts(sets, opened.tokenizer, recipe, args.seed, say)
    else:
        rows = checked_images(sets, say)

    # Weights, and what of them trains.
    generative = isinstance(opened, OpenGenerative)
    model = own_tower.load(opened) if generative else read_model(opened)
    set_seed(args.seed)  # only now: a new adapter must not depend on how the base was loaded
    attached: Any = own_tower.attach(model, opened) if generative else towers_adapter.attach(model, recipe)
    counts = towers_adapter.check(attached, recipe)
    if isinstance(attached, PeftModel):
        settings = attached.peft_config["default"]
        settings.base_model_name_or_path, settings.revision = recipe.base.location, opened.files.commit
    facts = {**opened.facts, "attention": model.config._attn_implementation}
    loaded = LoadedTowers(attached.to(args.device), opened.tokenizer, opened.pixels, recipe, facts)

    # Trainer: a batch over all ranks and its gradients in chunks, over transformers' own loop.
    trainer: TowersTrainer
    taught_by: str | None = None
    if recipe.reads_texts:
        trainer = DualTrainer(loaded, args, rows.train, rows.evaluation, path / "log.jsonl")
        if generative:
            trainer.write = partial(own_tower.save, attached, opened)
    else:
        teacher, taught_by = latent.teacher_of(recipe, args.device)
        _require_same_teacher(recipe, path, taught_by)
        trainer = LatentTrainer(loaded, teacher, args, rows.train, rows.evaluation, path / "log.jsonl")
    if left := trainer.sampler.left_over:
        say.print(f"each epoch leaves out {left:,} images, the last ones of its order: less than a batch")

    # Records: written before the first step, so that a run that is killed can be told from another.
    if args.process_index == 0:
        made = towers_provenance(trainer, opened, sets, rows, data, taught_by)
        summary.towers(say, recipe, args.learning_rate, counts, made)
        summary.adapted_layers(say, attached)
        write_text(path / run.RECIPE, towers.dump(recipe))
        made.write(path)
        write_jsonl(path / "ledger.jsonl", rows.ledger)
    return trainer


def _require_same_teacher(recipe: PretrainRecipe, path: Path, digest: str) -> None:
    if recipe.resume is None or not (path / provenance.FILE).is_file():
        return
    before = run.begun(path).provenance.towers
    if before is not None and before.teacher != digest:
        raise CheckpointError(
            f"{path}: objective.teacher, {recipe.objective.teacher}, has other weights than when the run began; put "
            "those back, or start another run with run=NAME"
        )


def finish(trainer: TowersTrainer, path: Path, minutes: float, say: Console) -> None:
    """Saves what was trained, evaluates it, and writes summary.json and loss.png."""
    trained = path / ("adapter" if trainer.recipe.leaves_adapter else "model")
    start.save_weights(trainer, trained, trainer.write)

    # Every rank evaluates its share.
    losses = trainer.evaluate() if trainer.eval_dataset else {}
    speed = trainer.throughput.speed(trainer.accelerator)
    if not trainer.is_world_process_zero():
        return

    log = path / "log.jsonl"
    plot_losses(log, path / "loss.png", "loss (nats)")
    start.say_sizes(path, say)
    numbers = {
        "train_loss": mean(log, "loss"),
        **losses,
        **({"pairs": _pairs(trainer, log)} if isinstance(trainer, DualTrainer) else {}),
        **({"speed": asdict(speed)} if speed else {}),
    }
    write_json(path / "summary.json", numbers)
    summary.towers_result(say, numbers, speed, minutes, path, trained)


def _pairs(trainer: DualTrainer, log: Path) -> dict[str, int]:
    """Pairs of an epoch that were no negatives, by reason."""
    steps = len(trainer.sampler) // trainer.sampler.batch
    return {name: round(mean(log, name) * steps) for name in trainer.pair_names}


def arguments(recipe: PretrainRecipe, path: Path) -> TrainingArguments:
    """The TrainingArguments of a recipe, with the few fields that skinvl decides.

    Raises:
        ValueError: a best model by what no run computes, or fewer images in a batch than ranks.
    """
    train = recipe.train
    if train.get("metric_for_best_model") is not None:
        labels = [mixture.label(spec, recipe.data.eval) for spec in recipe.data.eval]
        computed = ("loss", "R@1") if recipe.reads_texts else ("loss", *LOSSES)
        known = ["loss", *(f"{label}_{metric}" for label in labels for metric in computed)]
        if (metric := train["metric_for_best_model"].removeprefix("eval_")) not in known:
            raise ValueError(
                f"train.metric_for_best_model: found {metric}; expected {' or '.join(known)}, which a run computes"
            )
    args = start.training_arguments(
        TrainingArguments,
        {"bf16": recipe.bf16, **train},
        path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
    )
    if recipe.batch.images < args.world_size:
        raise ValueError(
            f"batch.images: found {recipe.batch.images}, and there are {args.world_size} ranks; expected at least one "
            "image for each, and many more, as each is compared with the texts of all"
        )
    return args
