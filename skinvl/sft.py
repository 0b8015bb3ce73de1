"""`skinvl sft`: prepared sources and a base → a LoRA adapter, with the records of how it was made."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor, PretrainedConfig, set_seed
from trl import SFTConfig

from skinvl import dry, mixture, model, run
from skinvl.chat import Chat
from skinvl.example import Dropped, words, write_jsonl
from skinvl.lengths import preflight
from skinvl.mixture import Row
from skinvl.pack import Collator
from skinvl.recipe import Recipe, deepspeed_config, dump
from skinvl.trainer import Trainer

CONTROL_ROWS = 512  # closed questions asked with their own and with another image after training


@dataclass(frozen=True, slots=True)
class Control:
    """Closed-answer token accuracy with each question's own image, and with the images permuted among questions."""

    own: float
    permuted: float
    questions: int


def main(recipe: Recipe, *, dry_run: bool = False, configs: Path | None = None) -> int:
    """0, once the run folder holds the adapter and its records (or, dry, once everything but the weights was shown)."""
    if dry_run:
        return dry.main(recipe, configs)
    path = run.folder(recipe)
    args = arguments(recipe, path)
    say = Console(quiet=args.process_index != 0)
    resume = run.last_checkpoint(path / "checkpoints") if recipe.resume else None
    with args.main_process_first(local=False):
        if args.process_index == 0:
            run.claim(path, recipe.resume is not None)
    set_seed(args.seed)
    train, evaluation = mixture.load(recipe.data)
    with args.main_process_first():  # one process of a machine downloads or builds
        base = model.snapshot(recipe)
    config, family = model.config(base.path)
    chat = Chat(AutoProcessor.from_pretrained(base.path), family, **recipe.data.budget)
    train, evaluation, dropped = checked(chat, train, evaluation, say)
    peft_model = model.attach(
        model.load(base.path, family, recipe, device_map=device_map(recipe, args)), family, recipe
    )
    settings = peft_model.peft_config["default"]
    settings.base_model_name_or_path, settings.revision = recipe.base.location, base.commit
    if args.process_index == 0:
        (path / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        write_jsonl(path / "ledger.jsonl", dropped)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(path / "tensorboard"))
    trainer = Trainer(peft_model, args, recipe, family, train, evaluation, Collator(chat), path / "log.jsonl")
    counts = model.check(peft_model, family, recipe)
    kernel = config_kernel(peft_model)
    show_parts(say, recipe, args.learning_rate, counts, kernel)
    if args.process_index == 0:
        facts = {
            "base": {"model": recipe.base.location, "commit": base.commit, "model_type": config.model_type},
            "attention": kernel,
            "precision": "bf16" if args.bf16 else "fp32",
            "quantization": recipe.quantization,
            "engine": "deepspeed" if trainer.is_deepspeed_enabled else "ddp" if args.world_size > 1 else "one process",
            "ranks": args.world_size,
            "effective_batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "allow_leak": recipe.data.allow_leak,
            "rows": {"train": len(train), **{name: len(rows) for name, rows in evaluation.items()}},
            "dropped": len(dropped),
        }
        (path / "env.json").write_text(json.dumps(run.environment(facts), indent=2) + "\n", encoding="utf-8")
    started = time.monotonic()
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    minutes = (time.monotonic() - started) / 60
    trainer.save_model(str(path / "adapter"))
    control = image_control(trainer, [row for rows in evaluation.values() for row in rows])
    losses = trainer.evaluate() if evaluation else {}
    if args.process_index == 0:
        run.plot_losses(path / "log.jsonl", path / "loss.png")
        summary = {"train_loss": result.training_loss, **losses, **({"control": asdict(control)} if control else {})}
        (path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show_result(say, result.training_loss, losses, control, minutes, path)
    return 0


def arguments(recipe: Recipe, path: Path) -> SFTConfig:
    """The SFTConfig of a recipe, with the few fields that skinvl decides."""
    train = dict(recipe.train)
    if "deepspeed" in train:
        train["deepspeed"] = str(deepspeed_config(train["deepspeed"]))
        if "LOCAL_RANK" not in os.environ:
            raise ValueError(
                "train.deepspeed: DeepSpeed needs a process group, even on one GPU; start with make sft DEEPSPEED=…, "
                "or with torchrun --nproc-per-node GPUS -m skinvl sft …"
            )
    if "metric_for_best_model" in train:
        train.setdefault("load_best_model_at_end", True)
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
    kept: dict[str, list[Row]] = {}
    ledger: list[Dropped] = []
    for name, rows in {"train": train, **evaluation}.items():
        report = preflight(chat, [(row.example, row.root) for row in rows])
        kept[name] = [rows[length.index] for length in report.kept]
        ledger += report.dropped
        say.print(report.table(name))
        if not kept[name]:
            first = report.dropped[0]
            raise ValueError(f"{name}: none of {len(rows)} rows can be used; the first: {first.rule}: {first.detail}")
    return kept.pop("train"), kept, ledger


def device_map(recipe: Recipe, args: SFTConfig) -> dict[str, Any] | None:
    """Where a quantised base is put while it loads; others are moved by the Trainer."""
    return {"": args.device} if recipe.quantization is not None else None


def config_kernel(peft_model: PeftModel) -> str:
    """The attention kernel that the language part runs."""
    config: PretrainedConfig = peft_model.config
    return str(config.get_text_config()._attn_implementation)


def image_control(trainer: Trainer, rows: Sequence[Row]) -> Control | None:
    """The control for learning from pixels; None where there are too few closed questions about different images.

    A question is closed here when its last answer has at most three words.
    """
    closed = [row for row in rows if row.example.images and len(words(row.example.messages[-1]).split()) <= 3]
    generator = random.Random(trainer.args.seed)
    sample = closed if len(closed) <= CONTROL_ROWS else generator.sample(closed, CONTROL_ROWS)
    pools: dict[tuple[Path, int], list[tuple[str, ...]]] = {}
    for row in sample:
        pool = pools.setdefault((row.root, len(row.example.images)), [])
        if row.example.images not in pool:
            pool.append(row.example.images)
    other: dict[tuple[Path, tuple[str, ...]], tuple[str, ...]] = {}
    for (root, _), pool in pools.items():
        generator.shuffle(pool)
        other |= {(root, images): pool[position - 1] for position, images in enumerate(pool)}
    sample = [row for row in sample if other[row.root, row.example.images] != row.example.images]
    if len(sample) < 2:
        return None
    swapped = [replace(row, example=replace(row.example, images=other[row.root, row.example.images])) for row in sample]
    own, permuted = trainer.sums(sample), trainer.sums(swapped)
    return Control(float(own[3] / own[2]), float(permuted[3] / permuted[2]), len(sample))


def show_parts(say: Console, recipe: Recipe, rate: float, counts: Mapping[str, tuple[int, int]], kernel: str) -> None:
    """Nothing; prints what trains in each part, at which learning rate."""
    table = Table("part", "train", "learning rate", "trainable", "of", title=f"{recipe.name} on {recipe.base.name}")
    for part, (trainable, every) in counts.items():
        spec = getattr(recipe.parts, part)
        own = "" if spec.train == "frozen" else f"{spec.learning_rate or rate:g}"
        table.add_row(part, spec.train, own, f"{trainable:,}", f"{every:,}")
    say.print(table)
    say.print(f"attention {kernel}, trainable weights in fp32")


def show_result(
    say: Console, train_loss: float, losses: Mapping[str, float], control: Control | None, minutes: float, path: Path
) -> None:
    """Nothing; prints the run's losses, the image control and where the adapter lies."""
    table = Table("result", "value", title=str(path))
    table.add_row("train loss (mean of the run)", f"{train_loss:.4f}")
    for name, value in losses.items():
        if name.endswith("_loss"):
            table.add_row(name.replace("_", " "), f"{value:.4f}")
    if control:
        table.add_row(f"closed answers right, own image (n={control.questions})", f"{control.own:.3f}")
        table.add_row("closed answers right, images permuted", f"{control.permuted:.3f}")
    table.add_row("training time", f"{minutes:.1f} min")
    say.print(table)
    say.print(f"adapter: {path / 'adapter'}")
