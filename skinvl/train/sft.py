"""`skinvl sft`: prepared sources and a base → a LoRA adapter, with the records of how it was made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel
from rich.console import Console
from transformers import set_seed
from trl import SFTConfig

from skinvl.data import mixture
from skinvl.data.example import write_jsonl
from skinvl.model import adapter, precompute, tower_init, ways_out
from skinvl.model.base import blank_model, load_base, unsharded
from skinvl.model.loaded import OpenBase, fetched_adapter, open_base
from skinvl.model.pack import Collator
from skinvl.model.precompute import Kept
from skinvl.model.tower_init import ImageTower
from skinvl.plan import dry
from skinvl.plan.rows import checked
from skinvl.recipe import run
from skinvl.recipe.files import write_json, write_text
from skinvl.recipe.provenance import FILE as PROVENANCE
from skinvl.recipe.recipe import Recipe, deepspeed_config, dump, load, shards_weights
from skinvl.score import metrics
from skinvl.train import start, summary
from skinvl.train.checkpoint import CheckpointError
from skinvl.train.image_control import image_control
from skinvl.train.log import mean, plot_losses
from skinvl.train.records import provenance
from skinvl.train.trainer import Trainer


def main(words: Sequence[str]) -> int:
    """0, once the run folder holds the adapter and its records (or, dry, once everything but the weights is shown)."""
    args = start.parsed("sft", "Train a recipe: prepared sources and a base become an adapter.", words)
    recipe = load(args.recipe, args.overrides)
    if args.dry_run:
        require_startable(recipe)
        dry.show(recipe, args.configs)
    else:
        train(recipe)
    return 0


def train(recipe: Recipe) -> None:
    """Trains a recipe; its run folder then holds the adapter and the records of how it was made."""
    start.train(recipe, arguments(recipe, run.folder(recipe)), prepare, finish)


def require_startable(recipe: Recipe) -> None:
    """Checks what a training of this recipe checks before it has a base, without beginning one.

    How it will be launched is not known here: neither the number of ranks nor a process group is asked for.

    Raises:
        CheckpointError, RunError: as `start.claimed`.
        ValueError: as `arguments`.
    """
    arguments(recipe, run.folder(recipe), launched=False)
    start.require_startable(recipe)


def prepare(recipe: Recipe, args: SFTConfig, path: Path, say: Console, data: Mapping[str, str]) -> Trainer:
    """The trainer of a recipe, everything checked; the run folder then holds recipe.yaml, env.json and ledger.jsonl.

    Args:
        data: digests of the files that are trained and evaluated on, for env.json.
    """
    # Rows: of no patient, lesion or image may some be trained on and some evaluated.
    sets = mixture.load(recipe.data)

    # Base: config, tokenizer and template; the weights wait until all else is known to be right.
    with args.main_process_first():  # one process of a machine downloads or builds
        fetched_adapter(recipe)  # what is wrong with it shows before anything is computed
        base = open_base(recipe)

    tower = tower_init.of_recipe(recipe, base.config)
    tower_init.require_same_pixels(tower, base)
    _require_same_start(recipe, path, tower)
    of_tower = tower.lines(base.family) if tower else []
    for line in [*ways_out.ahead(blank_model(base.config), base.family, recipe), *of_tower]:
        say.print(line, markup=False, highlight=False, soft_wrap=True)

    # Preflight: every row is laid out once, by its text and its images' sizes alone.
    rows = checked(base.chat, sets, say, recipe.data.references == "drawn")

    # Features: a tower that stays frozen sees each image once, and need not be loaded after that.
    with unsharded():  # ranks that go through different images cannot share weights
        features = precompute.once(base, rows.all, _passes(args, len(rows.train)), say)

    # Weights and adapter.
    peft_model = adapted(base, args, features)
    if tower is not None:
        tower.copy_into(peft_model, base.family)

    # Trainer: batches that encode an image once, over TRL's own loop.
    filler = args.world_size > 1 and any(row.example.images for row in rows.all)
    collator = Collator(base.chat, filler=filler, share=recipe.share_images, cache=features.cache if features else None)
    trainer = Trainer(peft_model, args, recipe, base.family, rows.train, rows.evaluation, collator, path / "log.jsonl")
    counts = adapter.check(peft_model, base.family, recipe)

    # Records: written before the first step, so that a run that is killed can be told from another.
    if args.process_index == 0:
        made = provenance(trainer, base, sets, rows, features, data, tower)
        summary.parts(say, recipe, args.learning_rate, counts, made)
        summary.adapted_layers(say, peft_model)
        summary.bare_layers(say, base.family, recipe, base.config)
        summary.slow_layers(say, peft_model, args.device)
        write_text(path / run.RECIPE, dump(recipe))
        made.write(path)
        write_jsonl(path / "ledger.jsonl", [*sets.moved, *sets.without, *rows.dropped])
    return trainer


def _require_same_start(recipe: Recipe, path: Path, tower: ImageTower | None) -> None:
    if recipe.resume is None or not (path / PROVENANCE).is_file():
        return
    digest = tower.digest if tower else None
    if run.begun(path).provenance.vision_init != digest:
        raise CheckpointError(
            f"{path}: parts.vision.init, {recipe.parts.vision.init}, has other weights than when the run began; put "
            "those back, or start another run with run=NAME"
        )


def adapted(base: OpenBase, args: SFTConfig, features: Kept | None) -> PeftModel:
    """The base with its weights and a fresh adapter, or `init_adapter`; where features are kept, without its tower."""
    recipe, family = base.recipe, base.family
    loaded = load_base(
        base.path,
        family,
        recipe,
        device_map={"": args.device} if recipe.quantization else None,
        config=family.without_tower(base.config) if features else None,
    )
    if args.deepspeed and recipe.precision == "bf16":
        _use_autocast(args)
    set_seed(args.seed)  # only now: a new adapter must not depend on how the base was loaded, sharded or whole
    peft_model = adapter.attach(loaded, family, recipe, cached=features is not None)
    settings = peft_model.peft_config["default"]
    settings.base_model_name_or_path, settings.revision = recipe.base.location, base.files.commit
    return peft_model


def finish(trainer: Trainer, path: Path, minutes: float, say: Console) -> None:
    """Saves the adapter, evaluates it, and writes summary.json and loss.png."""
    start.save_weights(trainer, path / "adapter")

    # Every rank evaluates its share.
    losses = trainer.evaluate() if trainer.eval_dataset else {}
    control = image_control(trainer, [row for rows in trainer.eval_dataset.values() for row in rows.rows])
    speed = trainer.throughput.speed(trainer.accelerator)
    if not trainer.is_world_process_zero():
        return

    plot_losses(path / "log.jsonl", path / "loss.png")
    start.say_sizes(path, say)
    numbers = {
        "train_loss": mean(path / "log.jsonl", "loss"),
        **losses,
        **({"speed": asdict(speed)} if speed else {}),
        **({"control": asdict(control)} if control else {}),
    }
    write_json(path / "summary.json", numbers)
    summary.result(say, numbers, control, speed, minutes, path)


def _passes(args: SFTConfig, rows: int) -> float:
    if args.max_steps <= 0:
        return float(args.num_train_epochs)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return float(args.max_steps * step / rows)


def _use_autocast(args: SFTConfig) -> None:
    # ZeRO-3 loads in the dtype of DeepSpeed's own bf16, which knows no autocast: in it the bf16 output of a frozen
    # layer would meet fp32 weights that train, and under ZeRO-2 these would be bf16 themselves.
    engine = args.hf_deepspeed_config.config
    engine["bf16"] = {"enabled": False}
    engine["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def arguments(recipe: Recipe, path: Path, *, launched: bool = True) -> SFTConfig:
    """The SFTConfig of a recipe, with the few fields that skinvl decides.

    Args:
        launched: whether this process trains; else sharding is checked, and left out.

    Raises:
        ValueError: sharding that cannot do what else the recipe asks for, or a best model by what no run computes.
    """
    train = dict(recipe.train)
    if "deepspeed" in train:
        train["deepspeed"] = str(_sharding(recipe))
        if not launched:
            del train["deepspeed"]
        elif "LOCAL_RANK" not in os.environ:
            raise ValueError(
                "train.deepspeed: DeepSpeed needs a process group, even on one GPU; start with make sft DEEPSPEED=…, "
                "or with torchrun --nproc-per-node GPUS -m skinvl sft …"
            )
    if train.get("metric_for_best_model") is not None:
        _require_computed(train["metric_for_best_model"], recipe)
    train.setdefault("per_device_eval_batch_size", train.get("per_device_train_batch_size", 8))
    return start.training_arguments(
        SFTConfig, train, path, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )


def _sharding(recipe: Recipe) -> Path:
    """The file of a recipe's DeepSpeed config.

    Raises:
        ValueError: it cannot do what else the recipe asks for.
    """
    file, sharded = deepspeed_config(recipe.train["deepspeed"]), shards_weights(recipe)
    if recipe.quantization is not None and sharded:
        raise ValueError(
            f"train.deepspeed: {file.name} shards the weights of the base (ZeRO-3), which transformers cannot load "
            "in 4 bits at the same time; use zero2 with quantization, or zero3 without"
        )
    if recipe.parts.vision.init is not None and sharded:
        raise ValueError(
            f"parts.vision.init: {file.name} shards the weights (ZeRO-3), into which no tower is copied; use zero2"
        )
    if recipe.evaluate.during and sharded:
        raise ValueError(
            f"evaluate.during: {file.name} shards the weights (ZeRO-3), so that every rank would wait for the "
            "others at every token that one of them generates; use zero2, or 0 and skinvl eval after it"
        )
    return file


def _require_computed(metric: str, recipe: Recipe) -> None:
    """Checks that a run of the recipe computes the metric by which its best checkpoint is to be chosen."""
    known = ["loss", *(f"{mixture.label(spec, recipe.data.eval)}_loss" for spec in recipe.data.eval)]
    if recipe.evaluate.during:
        known += [name for each in recipe.evaluate.metrics for name in metrics.load(each).names]
    if metric.removeprefix("eval_") not in known:
        raise ValueError(
            f"train.metric_for_best_model: found {metric}; expected {' or '.join(known)}, which a run computes"
            + ("" if recipe.evaluate.during else ", and with evaluate.during its metrics too")
        )
