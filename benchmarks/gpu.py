"""Training on one GPU, in numbers: `python benchmarks/gpu.py [--minutes 9] [--only NAME,…] [--dry-run]`.

Random weights of published sizes, drawn images, 2.45 questions an image: whole trainings by `skinvl sft`, and by TRL's
SFTTrainer, each in a process of its own, in the order of CELLS until the time is over; what was not reached is named.
MFU is what `skinvl plan` counts of operations, adapters left out, over the time of a step and the rate of one product
that is measured first. Writes gpu.json and gpu.md, the table. --dry-run does all of it with next to nothing on whatever
device there is, to see that it starts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from rich.console import Console
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from skinvl.data.example import Example, text, write
from skinvl.model import tiny
from skinvl.model.loaded import open_base
from skinvl.plan import estimate, memory, workload
from skinvl.recipe import recipe
from skinvl.train import sft

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Which colours has this lesion, how sharp is its border, and is it symmetric?"
ANSWER = (
    "It is brown with a lighter rim and two darker dots near its centre; the border is sharp on the left and blurred "
    "on the right, and no axis divides it into equal halves."
)
WARM = 2  # steps that do not count
# Sizes as published: of the language model, and of the vision tower.
SIZES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2-vl-7b": (
        "qwen2_vl",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "mrope_section": [16, 24, 24]},
        {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
    ),
    "qwen2-vl-2b": (
        "qwen2_vl",
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
         "num_key_value_heads": 2, "vocab_size": 151936, "mrope_section": [16, 24, 24]},
        {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    ),
    "llama-3.2-11b-vision": (
        "mllama",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 40, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38]},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8,
         "attention_heads": 16, "vision_output_dim": 7680, "intermediate_layers_indices": [3, 7, 15, 23, 30]},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One training."""

    size: str = "qwen2-vl-7b"
    trainer: str = "skinvl"
    share: bool = True
    quantised: bool = False
    attention: str = "sdpa"
    batch: int = 16
    steps: int = 12
    image_tokens: int = 256


CELLS = {
    "7B LoRA, shared": Cell(),
    "7B LoRA, not shared": Cell(share=False),
    "7B LoRA, TRL's SFTTrainer": Cell(trainer="trl"),
    "7B QLoRA, shared": Cell(quantised=True),
    "Llama-Vision 11B LoRA, shared": Cell(size="llama-3.2-11b-vision", batch=8),
    "2B LoRA, shared": Cell(size="qwen2-vl-2b"),
    "7B LoRA, shared, flash-attention": Cell(attention="flash_attention_2"),
}


def base(cell: Cell, folder: Path, dry: bool) -> Path:
    """A random base of the cell's size, made on the device and saved once."""
    family, language, vision = SIZES[cell.size]
    small = folder / f"{family}-small"
    out = folder / f"{cell.size}-base"
    if out.is_dir():
        return out
    if not small.is_dir():
        tiny.build(family, small, texts=[QUESTION, ANSWER] * 20)
    if dry:
        return small
    given: dict[str, Any] = AutoConfig.from_pretrained(small).to_dict()
    given["text_config"].pop("layer_types", None)
    given["text_config"].pop("head_dim", None)
    sections = language.pop("mrope_section", None)
    given["tie_word_embeddings"] = given["text_config"]["tie_word_embeddings"] = cell.size == "qwen2-vl-2b"
    given["text_config"] |= language
    given["vision_config"] |= vision
    if sections:
        given["text_config"]["rope_parameters"]["mrope_section"] = sections
    config = type(AutoConfig.from_pretrained(small)).from_dict(given)
    with torch.device("cuda"):
        made = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():  # a new cross-attention gate is zero, and no gradient would pass it
        for name, parameter in made.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.5)
    made.save_pretrained(out)
    AutoProcessor.from_pretrained(small).save_pretrained(out)
    return out


def source(cell: Cell, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Drawn images with 2.45 questions each as a prepared source, and as TRL takes them."""
    root = folder / f"data-{cell.image_tokens}"
    count = cell.batch * (cell.steps + WARM)
    side = round(cell.image_tokens**0.5) * 28
    (root / "images").mkdir(parents=True, exist_ok=True)
    examples, plain = [], []
    for number in range(count):
        name = f"images/{int(number / 2.45)}.png"
        if not (root / name).exists():
            Image.effect_noise((side, side), 80).convert("RGB").save(root / name)
        asked = f"{number}. {QUESTION}"
        examples.append(
            Example(
                str(number),
                "drawn",
                (name,),
                (text("user", asked, 1), text("assistant", ANSWER)),
                name,
                "train",
                "CC0-1.0",
            )
        )
        plain.append({
            "images": [str(root / name)],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}],
        })  # fmt: skip
    write(root, "train", examples)
    return root, plain


class Clock(TrainerCallback):
    """The seconds of each step, to where the device has done it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.last = _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(_now() - self.last)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def train(cell: Cell, folder: Path, dry: bool) -> dict[str, float | None]:
    """What a training took: seconds of a step, bytes at the peak; what plan says of both."""
    work = Path(tempfile.mkdtemp(dir=folder))
    data, plain = source(cell, folder)
    made = base(cell, folder, dry)
    settings = {
        "bf16": not dry, "activation_checkpointing": True, "use_cpu": not torch.cuda.is_available(),
        "per_device_train_batch_size": cell.batch, "max_steps": cell.steps + WARM, "learning_rate": 1e-4,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    tree = {
        "base": str(made),
        "attention": cell.attention,
        "share_images": cell.share,
        "cache_gb": 0.0,  # the tower runs in every step, as TRL's does
        "data": {
            "train": [{"source": str(data), "split": "train"}],
            "image_tokens": cell.image_tokens,
            "max_tokens": 4096,
        },
        "parts": {"language": {"train": "lora"}},
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05},
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if cell.quantised else None,
        "train": settings,
    }
    file = work / "cell.yaml"
    file.write_text(yaml.safe_dump(tree))
    one = recipe.load(str(file))
    opened = open_base(one)
    clock = Clock()
    if cell.trainer == "trl":
        trainer: Any = _trl(settings, plain, made, work, dry)
    else:
        args = sft.arguments(one, work / "run")
        trainer = sft.prepare(one, args, work / "run", Console(quiet=True), {})
    trainer.add_callback(clock)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()

    # What plan says of it, on a GPU.
    found = estimate.estimate(opened, 1, workload.Assumed(), cuda=True)
    needed = memory.needed(one, memory.weights(found.real), found.trace)
    of_load = found.shared.load if cell.share else found.apart.load
    per_conversation = found.rates.of(of_load) / of_load.conversations
    step = sorted(clock.seconds[WARM:])[len(clock.seconds[WARM:]) // 2]
    return {
        "seconds": step,
        "samples": cell.batch / step,
        "tokens": cell.batch * of_load.tokens / of_load.conversations / step,
        "flops": per_conversation * cell.batch / step,
        "peak": float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None,
        "plan": None if cell.trainer == "trl" else needed.total,
    }


def _trl(settings: dict[str, Any], plain: list[dict[str, Any]], made: Path, work: Path, dry: bool) -> Any:
    """TRL's own trainer on the same rows, with PEFT's LoRA on the same layers."""
    from datasets import Dataset, Sequence
    from datasets import Image as ImageFeature
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    given = {key: value for key, value in settings.items() if key != "activation_checkpointing"}
    args = SFTConfig(output_dir=str(work / "trl"), gradient_checkpointing=True, max_length=None, **given)
    rows = Dataset.from_list(plain).cast_column("images", Sequence(ImageFeature()))
    model = AutoModelForImageTextToText.from_pretrained(made, dtype=torch.float32 if dry else torch.bfloat16)
    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    processor = AutoProcessor.from_pretrained(made)
    return SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=processor, peft_config=adapter)


def rate(dry: bool) -> float:
    """Operations a second of one product of 4,096 rows by 3,584 by 18,944, in bf16; the best of ten."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, inner, outer = (64, 64, 64) if dry else (4096, 3584, 18944)
    a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    b = torch.randn(inner, outer, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(11):
        begun = _now()
        a @ b
        best = min(best, _now() - begun)
    return 2 * rows * inner * outer / best


def older() -> list[str]:
    """Packages that are older than those that the tests were made with, with both versions."""
    pinned = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    found = []
    for name in ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate"):
        own = importlib.metadata.version(name)
        if _numbers(own) < _numbers(pinned[name]):
            found.append(f"{name} {own} ({pinned[name]})")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def table(found: dict[str, dict[str, float | None]], machine: float, device: str) -> str:
    """The numbers in Markdown."""
    lines = [
        f"{device}; one product in bf16: {machine / 1e12:,.0f} TFLOP/s",
        "",
        "| training | s a step | samples/s | tokens/s | MFU | peak, GiB | plan, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        peak, plan = (f"{one[key] / 2**30:,.1f}" if one[key] else "–" for key in ("peak", "plan"))  # type: ignore[operator]
        numbers = f"{one['seconds']:.2f} | {one['samples']:.1f} | {one['tokens']:,.0f} | {one['flops'] / machine:.2f}"  # type: ignore[operator]
        lines.append(f"| {name} | {numbers} | {peak} | {plan} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """0 where every cell that was begun has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", help="cells, separated by ; as they are called")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="gpu.json and gpu.md, without their ending")
    parser.add_argument("--work", type=Path, help="for bases and data (about 40 GB); default: a temporary folder")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    cells = (
        {name: replace(one, batch=2, steps=1, image_tokens=16) for name, one in CELLS.items()}
        if given.dry_run
        else CELLS
    )
    if given.cell:
        print(json.dumps(train(cells[given.cell], given.work, given.dry_run)))
        return 0
    if not torch.cuda.is_available() and not given.dry_run:
        parser.error("there is no CUDA device; --dry-run shows on a CPU that it starts")
    if old := older():
        print(f"older than what the tests were made with: {', '.join(old)}; what needs newer ones fails below")

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU, next to nothing"
    machine, begun = rate(given.dry_run), time.monotonic()
    names = given.only.split(";") if given.only else list(cells)
    found: dict[str, dict[str, float | None]] = {}
    failed, left = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        for name in names:
            seconds = 60 * given.minutes - (time.monotonic() - begun)
            lacking = cells[name].attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None
            if seconds < 20 or lacking:
                left.append(f"{name} ({'flash-attn is not installed' if lacking else 'the time was over'})")
                continue
            command = [sys.executable, __file__, "--cell", name, "--work", str(work), *["--dry-run"] * given.dry_run]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=seconds, check=False, env={**os.environ}
                )
            except subprocess.TimeoutExpired:
                left.append(f"{name} (begun, and the time was over)")
                continue
            if done.returncode:
                failed.append(f"{name}: {done.stderr[-600:]}")
                continue
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: {found[name]['seconds']:.2f} s a step", flush=True)
    written = table(found, machine, device)
    given.out.with_suffix(".md").write_text(written)
    record = {
        "device": device,
        "rate": machine,
        "cells": {name: asdict(cells[name]) for name in found},
        "numbers": found,
    }
    given.out.with_suffix(".json").write_text(json.dumps({**record, "left": left, "failed": failed}, indent=1))
    print(written)
    for one in [*(f"not run: {name}" for name in left), *(f"failed: {name}" for name in failed)]:
        print(one)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
