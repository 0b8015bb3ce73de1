"""What `skinvl plan` says beside what was measured: `python benchmarks/plan.py [--only NAME] [--threads 1]`.

Real trainings of small random models on a CPU, in float32, since few CPUs have bf16, each in a process of its own:
the peak of its resident memory over what the imports took, and its fastest step. What a training of next to nothing
takes is the process's own, and is added to what plan says. Memory is measured with an allocator that gives back what
is freed; time without, in seconds of the processor, which other work on the machine hardly lengthens. Beside it
stands what plan says of the same recipe, for a "GPU" of the rate that one matrix product reaches in that process, at
the share of it that roofline.py measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - what a library takes is not what training adds
import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from skinvl.data.example import Example, text, write
from skinvl.model import tiny
from skinvl.model.loaded import open_base
from skinvl.plan import estimate, memory, workload
from skinvl.recipe import recipe
from skinvl.train import sft

MFU = 0.63  # of roofline.py, with LoRA
VOCABULARY, STEPS = 16_384, 3
QUESTION = "Which colours has this lesion, how sharp is its border, and is it symmetric?"
ANSWER = (
    "It is brown with a lighter rim and two darker dots near its centre; the border is sharp on the left and blurred "
    "on the right, and no axis divides it into equal halves."
)
# So that memory falls as soon as something is freed, and the peak is what was needed at once.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, slots=True)
class Point:
    """One training."""

    family: str = "qwen2_vl"
    hidden: int = 512
    layers: int = 8
    batch: int = 8
    questions: int = 2  # about an image
    image_tokens: int = 144
    checkpointing: bool = False
    rank: int = 8
    projector: str = "frozen"
    quantised: bool = False
    accumulation: int = 1


NOTHING = Point(hidden=128, layers=1, batch=1, questions=1)  # what it takes beyond plan is the process's own
POINTS = {
    "plain": Point(),
    "checkpointing": Point(checkpointing=True),
    "wide": Point(hidden=1024, layers=6, batch=4),
    "deep, rank 64, full projector": Point(layers=16, checkpointing=True, rank=64, projector="full"),
    "many questions": Point(batch=16, questions=8),
    "long images, accumulated": Point(image_tokens=576, batch=2, questions=1, checkpointing=True, accumulation=2),
    "nf4": Point(hidden=1024, layers=6, batch=4, quantised=True, checkpointing=True),
    "mllama": Point(family="mllama", hidden=768, batch=8),
    "mllama, checkpointing, full projector": Point(
        family="mllama", hidden=768, batch=8, checkpointing=True, projector="full"
    ),
}


def base(point: Point, folder: Path) -> Path:
    """A random base of the point's size."""
    small = tiny.build(point.family, folder / "tiny", texts=[QUESTION, ANSWER] * 20)
    given: dict[str, Any] = AutoConfig.from_pretrained(small).to_dict()
    heads = point.hidden // 64
    given["text_config"].pop("layer_types", None)
    given["text_config"] |= {
        **{"hidden_size": point.hidden, "intermediate_size": point.hidden * 11 // 4, "vocab_size": VOCABULARY},
        **{"num_hidden_layers": point.layers, "num_attention_heads": heads, "num_key_value_heads": heads // 2},
    }
    if "mrope_section" in given["text_config"]["rope_parameters"]:
        given["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
        given["vision_config"]["hidden_size"] = point.hidden
    config = type(AutoConfig.from_pretrained(small)).from_dict(given)
    made = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    # A new cross-attention gate is zero, and no gradient would pass it.
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.5)
    # Each weight in a file of its own: one that a small unquantised weight is mapped from would count whole.
    made.save_pretrained(folder / "base", max_shard_size="1KB")
    AutoProcessor.from_pretrained(small).save_pretrained(folder / "base")
    return folder / "base"


def made(point: Point, folder: Path) -> Path:
    """The file of the point's recipe, its source and its base written beside it."""
    count = point.batch * point.accumulation * STEPS
    side = round(point.image_tokens**0.5) * 28
    (folder / "data" / "images").mkdir(parents=True)
    examples = []
    for number in range(count):
        name = f"images/{number // point.questions}.png"
        if not (folder / "data" / name).exists():
            Image.effect_noise((side, side), 80).convert("RGB").save(folder / "data" / name)
        turns = (text("user", f"{number}. {QUESTION}", 1), text("assistant", ANSWER))
        examples.append(Example(str(number), "drawn", (name,), turns, name, "train", "CC0-1.0"))
    write(folder / "data", "train", examples)
    tree = {
        "base": str(base(point, folder)),
        "data": {
            "train": [{"source": str(folder / "data"), "split": "train"}],
            "image_tokens": point.image_tokens,
            "max_tokens": 4096,
        },
        "parts": {"language": {"train": "lora"}, "projector": {"train": point.projector}},
        "lora": {"r": point.rank, "lora_alpha": 16, "lora_dropout": 0.05},
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if point.quantised else None,
        "cache_gb": 10.0,
        "train": {
            **{"bf16": False, "activation_checkpointing": point.checkpointing, "use_cpu": True},
            **{"per_device_train_batch_size": point.batch, "gradient_accumulation_steps": point.accumulation},
            **{"num_train_epochs": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
        },
    }
    file = folder / "point.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


class Clock(TrainerCallback):
    """The processor's seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self.last)


def train(file: Path, threads: int) -> None:
    """Trains in this process, and prints what it took as JSON."""
    torch.set_num_threads(threads)
    one = recipe.load(str(file))
    before = _status("VmRSS")
    args = sft.arguments(one, Path("run"))
    trainer = sft.prepare(one, args, Path("run"), Console(quiet=True), {})
    clock = Clock()
    trainer.add_callback(clock)
    # While a base is loaded, files of weights that are to be quantised count as the process's; on a GPU they do not.
    Path("/proc/self/clear_refs").write_text("5")
    trainer.train()
    peak = _status("VmHWM") - before
    rate = max(_rate() for _ in range(3))
    # The threads of a product run as long as it takes.
    found = {"peak": peak * 1024, "seconds": min(clock.seconds[1:]) / threads, "rate": rate * threads}
    print(json.dumps(found))


def _rate(seconds: float = 2.0) -> float:
    """Operations a second of one product, repeated for about as long as a step takes."""
    a, b, count = torch.randn(1024, 1024), torch.randn(1024, 2816), 0
    started = time.process_time()
    while time.process_time() - started < seconds:
        a @ b
        count += 1
    return count * 2 * 1024 * 1024 * 2816 / (time.process_time() - started)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def measured(file: Path, threads: int, exact: bool) -> dict[str, float]:
    """What a training in a new process took."""
    environment = {**os.environ, **(EXACT if exact else {}), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).resolve()), "--train", str(file), "--threads", str(threads)]
    done = subprocess.run(command, env=environment, cwd=file.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """What plan says of a recipe on this CPU."""

    parameters: int
    peak: float  # bytes
    flops: float  # of one step
    items: dict[str, float]


def said(file: Path) -> Said:
    """What plan says, of a process on a CPU."""
    one = recipe.load(str(file))
    found = estimate.estimate(open_base(one), 1, workload.Assumed(), cuda=False)
    needed = memory.needed(one, memory.weights(found.real), found.trace, overhead=0)
    steps = found.shared.batches / one.train["gradient_accumulation_steps"]
    return Said(found.parameters, needed.total, found.rates.of(found.shared.load) / steps, needed.items)


def compare(point: Point, threads: int) -> tuple[Said, float, float, float]:
    """What plan says of a point; the measured peak; the said and the measured seconds of a step."""
    with tempfile.TemporaryDirectory() as name:
        file = made(point, Path(name))
        plan = said(file)
        peak = measured(file, threads, exact=True)["peak"]
        fast = measured(file, threads, exact=False)
    return plan, peak, plan.flops / (fast["rate"] * MFU), fast["seconds"]


def main() -> None:
    """Prints a row for each point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train, given.threads)
        return
    say = Console(width=150)
    plan, peak, *_ = compare(NOTHING, given.threads)
    own = peak - plan.peak
    say.print(f"the process's own: {own / 2**20:,.0f} MiB, which are added to what plan says")
    names = ("point", "M parameters", "MiB said", "measured", "off by", "s a step said", "measured", "off by")
    table = Table(*names)
    for name, point in POINTS.items():
        if given.only in (None, name):
            plan, peak, seconds, fastest = compare(point, given.threads)
            total = plan.peak + own
            cells = [f"{plan.parameters / 1e6:.0f}", f"{total / 2**20:,.0f}", f"{peak / 2**20:,.0f}"]
            cells += [f"{total / peak - 1:+.0%}", f"{seconds:.2f}", f"{fastest:.2f}", f"{seconds / fastest - 1:+.0%}"]
            say.print(name, *cells, sep=" | ")
            table.add_row(name, *cells)
    say.print(table)


if __name__ == "__main__":
    main()
