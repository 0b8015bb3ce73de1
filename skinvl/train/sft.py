"""`skinvl sft`: prepared sources and a base → a LoRA adapter, with the records of how it was made."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoProcessor, set_seed
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import SFTConfig

from skinvl.data import mixture
from skinvl.data.example import Dropped, words, write_jsonl
from skinvl.data.mixture import Row, digests
from skinvl.model import adapter, attention, precompute
from skinvl.model.base import load_base, read_config, snapshot
from skinvl.model.chat import Chat
from skinvl.model.lengths import preflight
from skinvl.model.loaded import base_fingerprint
from skinvl.model.pack import Collator
from skinvl.plan import dry
from skinvl.recipe import run
from skinvl.recipe.files import appear, write_text
from skinvl.recipe.recipe import Recipe, deepspeed_config, dump, load
from skinvl.recipe.words import recipe_parser
from skinvl.score import metrics
from skinvl.train import checkpoint, summary
from skinvl.train.log import mean_loss, plot_losses, rewind
from skinvl.train.summary import Control
from skinvl.train.trainer import Trainer

CONTROL_ROWS = 512  # closed questions asked with their own and with another image after training


def main(words: Sequence[str]) -> int:
    """0, once the run folder holds the adapter and its records (or, dry, once everything but the weights is shown)."""
    parser = recipe_parser("sft", "Train a recipe: prepared sources and a base become an adapter.")
    parser.add_argument("--dry-run", action="store_true", help="show what would train, without any weights")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="with --dry-run: model configs from this folder")
    given = parser.parse_intermixed_args(words)
    if given.configs is not None and not given.dry_run:
        parser.error("--configs names configs without weights; add --dry-run, or give base=FOLDER")
    recipe = load(given.recipe, given.overrides)
    if given.dry_run:
        dry.show(recipe, given.configs)
    else:
        train(recipe)
    return 0


def train(recipe: Recipe) -> None:
    """Trains a recipe; its run folder then holds the adapter and the records of how it was made."""
    path = run.folder(recipe)
    args = arguments(recipe, path)
    first = args.process_index == 0
    say = Console(quiet=not first)
    resume = checkpoint.last(path / "checkpoints") if recipe.resume else None
    facts = {"ranks": args.world_size, "data": digests(recipe.data) if first else {}}
    with args.main_process_first(local=False):
        if first:
            run.claim(path, recipe.resume is not None)
            if recipe.resume:
                checkpoint.same(path, dump(recipe), facts)
                checkpoint.sweep(path / "checkpoints")
                checkpoint.sweep(path)
                rewind(path / "log.jsonl", checkpoint.step_of(resume) if resume else 0)
            if resume:
                checkpoint.verify(resume)
    trainer = prepare(recipe, args, path, say, facts)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    minutes = (time.monotonic() - started) / 60
    if trainer.preemption.happened:
        there = checkpoint.last(path / "checkpoints")
        say.print(f"stopped by SIGTERM; {there} is whole: the same command with resume=auto goes on from it")
        trainer.accelerator.end_training()
        return
    save_adapter(trainer, path / "adapter")
    losses = trainer.evaluate() if trainer.eval_dataset else {}
    control = image_control(trainer, [row for rows in trainer.eval_dataset.values() for row in rows.rows])
    speed = trainer.pace.speed(trainer.accelerator)
    if first:
        plot_losses(path / "log.jsonl", path / "loss.png")
        if there := checkpoint.last(path / "checkpoints"):
            written = checkpoint.sizes(there)
            say.print(f"{there}: {', '.join(f'{what} {size / 2**20:,.1f} MiB' for what, size in written.items())}")
        found = {
            "train_loss": mean_loss(path / "log.jsonl"),
            **losses,
            **({"speed": asdict(speed)} if speed else {}),
            **({"control": asdict(control)} if control else {}),
        }
        (path / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        summary.result(say, found, control, speed, minutes, path)
    trainer.accelerator.end_training()  # its threads, left to the interpreter, now and then abort a finished rank


def prepare(recipe: Recipe, args: SFTConfig, path: Path, say: Console, begun: Mapping[str, Any]) -> Trainer:
    """The trainer of a recipe, everything checked; the run folder then holds recipe.yaml, env.json and ledger.jsonl."""
    sets = mixture.load(recipe.data)
    summary.shared(say, sets)
    with args.main_process_first():  # one process of a machine downloads or builds
        base = snapshot(recipe)
    config, family = read_config(base.path)
    chat = Chat(AutoProcessor.from_pretrained(base.path), family, **recipe.data.budget)
    train, evaluation, dropped = checked(chat, sets.train, sets.evaluation, say)
    seen = [*train, *(row for rows in evaluation.values() for row in rows)]
    with _unsharded(args):
        kept = precompute.once(recipe, base.path, config, chat, seen, _passes(args, len(train)), say)
    loaded = load_base(
        base.path,
        family,
        recipe,
        device_map={"": args.device} if recipe.quantization else None,
        config=family.without_tower(config) if kept else None,
    )
    if args.deepspeed and recipe.bf16:
        _use_autocast(args)
    set_seed(args.seed)  # only now: a new adapter must not depend on how the base was loaded, sharded or whole
    peft_model = adapter.attach(loaded, family, recipe, cached=kept is not None)
    settings = peft_model.peft_config["default"]
    settings.base_model_name_or_path, settings.revision = recipe.base.location, base.commit
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the collator's workers are forks
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(path / "tensorboard")
    cache = kept.cache if kept else None
    filler = args.world_size > 1 and any(row.example.images for row in seen)
    collator = Collator(chat, filler=filler, share=recipe.share_images and family.shares, cache=cache)
    trainer = Trainer(peft_model, args, recipe, family, train, evaluation, collator, path / "log.jsonl")
    counts = adapter.check(peft_model, family, recipe)
    facts = {
        "base": {
            "model": recipe.base.location,
            "commit": base.commit,
            "fingerprint": base_fingerprint(base) if args.process_index == 0 else None,
            "model_type": config.model_type,
        },
        "attention": attention.kernel_of(loaded),
        "shared": "once a batch" if collator.share else f"for each{'' if family.shares else ', as the family needs'}",
        "features": {"folder": str(kept.cache.folder), "computed": kept.computed, "seconds": kept.seconds}
        if kept
        else None,
        "precision": "bf16" if recipe.bf16 else "fp32",
        "quantization": recipe.quantization,
        "engine": "deepspeed" if trainer.is_deepspeed_enabled else "ddp" if args.world_size > 1 else "one process",
        **begun,
        "effective_batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "allow_leak": recipe.data.allow_leak,
        "leaking": sets.leaking,
        "moved": len(sets.moved),
        "rows": {"train": len(train), **{name: len(rows) for name, rows in evaluation.items()}},
        "dropped": len(dropped),
    }
    summary.parts(say, recipe, args.learning_rate, counts, facts)
    if args.process_index == 0:
        write_text(path / "recipe.yaml", dump(recipe))
        write_text(path / "env.json", json.dumps(run.environment(facts), indent=2) + "\n")
        write_jsonl(path / "ledger.jsonl", [*sets.moved, *dropped])
    return trainer


def _passes(args: SFTConfig, rows: int) -> float:
    if args.max_steps <= 0:
        return float(args.num_train_epochs)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return float(args.max_steps * step / rows)


@contextmanager
def _unsharded(args: SFTConfig) -> Iterator[None]:
    """Within, a model is loaded whole under ZeRO-3 too: ranks that go through different images cannot share weights."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if args.deepspeed:
            set_hf_deepspeed_config(args.hf_deepspeed_config)


def _use_autocast(args: SFTConfig) -> None:
    # ZeRO-3 loads in the dtype of DeepSpeed's own bf16, which knows no autocast: in it the bf16 output of a frozen
    # layer would meet fp32 weights that train, and under ZeRO-2 these would be bf16 themselves.
    engine = args.hf_deepspeed_config.config
    engine["bf16"] = {"enabled": False}
    engine["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def save_adapter(trainer: Trainer, path: Path) -> None:
    """Nothing; the folder holds the adapter with its fully trained parts, the processor and the template."""
    partial = path.with_name(f".{path.name}.partial")
    with checkpoint.written(path, Path(str(trainer.args.output_dir))):
        trainer.save_model(str(partial))
        if trainer.is_world_process_zero():
            appear(partial, path)


def arguments(recipe: Recipe, path: Path) -> SFTConfig:
    """The SFTConfig of a recipe, with the few fields that skinvl decides."""
    train = dict(recipe.train)
    if "deepspeed" in train:
        file = deepspeed_config(train["deepspeed"])
        stage = json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage")
        if recipe.quantization is not None and stage == 3:
            raise ValueError(
                f"train.deepspeed: {file.name} shards the weights of the base (ZeRO-3), which transformers cannot load "
                "in 4 bits at the same time; use zero2 with quantization, or zero3 without"
            )
        if recipe.evaluate.during and stage == 3:
            raise ValueError(
                f"evaluate.during: {file.name} shards the weights (ZeRO-3), so that every rank would wait for the "
                "others at every token that one of them generates; use zero2, or 0 and skinvl eval after it"
            )
        train["deepspeed"] = str(file)
        if "LOCAL_RANK" not in os.environ:
            raise ValueError(
                "train.deepspeed: DeepSpeed needs a process group, even on one GPU; start with make sft DEEPSPEED=…, "
                "or with torchrun --nproc-per-node GPUS -m skinvl sft …"
            )
    if train.get("metric_for_best_model") is not None:
        known = ["loss", *(f"{mixture.label(spec, recipe.data.eval)}_loss" for spec in recipe.data.eval)]
        if recipe.evaluate.during:
            known += [name for metric in recipe.evaluate.metrics for name in metrics.load(metric).names]
        if train["metric_for_best_model"].removeprefix("eval_") not in known:
            raise ValueError(
                f"train.metric_for_best_model: found {train['metric_for_best_model']}; expected {' or '.join(known)}, "
                "which a run computes"
                + ("" if recipe.evaluate.during else ", and with evaluate.during its metrics too")
            )
        train.setdefault("load_best_model_at_end", True)
        if train.get("save_total_limit") == 1:  # transformers would remove the last, and no run could go on
            train["save_total_limit"] = 2
    train.setdefault("report_to", "tensorboard")
    train.setdefault("use_cpu", not torch.cuda.is_available())
    train.setdefault("per_device_eval_batch_size", train.get("per_device_train_batch_size", 8))
    return SFTConfig(
        **{
            **train,
            "output_dir": str(path / "checkpoints"),
            "max_length": None,
            "remove_unused_columns": False,
            "logging_nan_inf_filter": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
    )


def checked(
    chat: Chat, train: list[Row], evaluation: Mapping[str, list[Row]], say: Console
) -> tuple[list[Row], dict[str, list[Row]], list[Dropped]]:
    """The rows that will be seen, and the ledger of those that will not.

    Raises:
        ValueError: a set has no row left; the message gives the commonest reason.
    """
    kept: list[list[Row]] = []
    ledger: list[Dropped] = []
    for name, rows in [("train", train), *evaluation.items()]:
        report = preflight(chat, [(row.example, row.root) for row in rows])
        kept.append([rows[length.index] for length in report.kept])
        ledger += report.dropped
        say.print(report.table(name))
        if not kept[-1]:
            reason = f"; the first: {report.dropped[0].rule}: {report.dropped[0].detail}" if rows else ""
            raise ValueError(f"{name}: none of {len(rows)} rows can be used{reason}")
    return kept[0], dict(zip(evaluation, kept[1:], strict=True)), ledger


def image_control(trainer: Trainer, rows: Sequence[Row]) -> Control | None:
    """The control for learning from pixels; None where there are too few closed questions about different images.

    A question is closed here when its last answer has at most three words.
    """
    closed = [row for row in rows if row.example.images and len(words(row.example.messages[-1]).split()) <= 3]
    generator = random.Random(trainer.args.seed)
    sample = closed if len(closed) <= CONTROL_ROWS else generator.sample(closed, CONTROL_ROWS)
    swapped = mixture.permuted(sample, generator)
    pairs = [(row, other) for row, other in zip(sample, swapped, strict=True) if other is not None]
    if len(pairs) < 2:
        return None
    own, permuted = (trainer.sums(rows) for rows in zip(*pairs, strict=True))
    return Control(float(own[3] / own[2]), float(permuted[3] / permuted[2]), len(pairs))
