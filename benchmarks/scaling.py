"""Time and memory of a conversation as batches share more: `python benchmarks/scaling.py [--plot FILE.png]`.

One step of a small Qwen2-VL with LoRA, forward and backward, with and without shared prefixes: as the questions about
an image, the tokens of an image, and the conversations of a batch grow. Beside it the ideal, the ratio of positions
k (image + text) / (image + k text) for k questions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoProcessor, Qwen2VLForConditionalGeneration

from skinvl.data.example import Example, text
from skinvl.data.mixture import Row
from skinvl.model import attention, families, tiny
from skinvl.model.chat import Chat
from skinvl.model.pack import Batch, Collator
from skinvl.train.trainer import token_losses

THREADS = 2
QUESTION = "Which colours has this lesion, how sharp is its border, and is it symmetric?"
ANSWER = (
    "It is brown with a lighter rim and two darker dots near its centre; the border is sharp on the left and blurred "
    "on the right, and no axis divides it into equal halves."
)
TEXT = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
QUESTIONS, TOKENS, BATCHES = (1, 2, 4, 8, 12), (64, 144, 256, 576, 1024), (1, 4, 16, 64)


@dataclass(frozen=True, slots=True)
class Point:
    """One batch: questions an image, tokens of an image, conversations."""

    questions: int
    tokens: int
    batch: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds and positions of a conversation, and MiB that a step keeps for its backward."""

    seconds: float
    positions: float
    memory: float


def batch(base: Path, folder: Path, point: Point, share: bool) -> Batch:
    """The batch of a point, as the trainer would be given it."""
    side = round(point.tokens**0.5) * 28
    rows = []
    for number in range(point.batch):
        name = f"{point.tokens}-{number // point.questions}.png"
        if not (folder / name).exists():
            Image.effect_noise((side, side), 80).convert("RGB").save(folder / name)
        turns = (text("user", f"{number}. {QUESTION}", 1), text("assistant", ANSWER))
        rows.append(Row(Example(str(number), "drawn", (name,), turns, name, "train", "CC0-1.0"), folder))
    chat = Chat(AutoProcessor.from_pretrained(base), families.load("qwen2_vl"), point.tokens, 1 << 20)
    return Collator(chat, share=share)([{"row": row} for row in rows])


def cost(model: torch.nn.Module, batch: Batch, conversations: int) -> Cost:
    """The least of three steps after a first one, and what the first keeps for its backward."""
    times = []
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}  # bytes of each storage

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for number in range(4):
        started = time.perf_counter()
        with saved_tensors_hooks(keep, lambda tensor: tensor) if number == 0 else nullcontext():
            loss = token_losses(model, batch)[0].mean()
        torch.autograd.backward(loss)
        times.append(time.perf_counter() - started)
    return Cost(min(times[1:]) / conversations, batch.ids.numel() / conversations, sum(kept.values()) / 2**20)


def points() -> Iterator[tuple[str, Point]]:
    """Every point with the name of what varies."""
    yield from (("questions an image", Point(number, 144, 24)) for number in QUESTIONS)
    yield from (("tokens an image", Point(4, number, 8)) for number in TOKENS)
    yield from (("conversations a batch", Point(4, 144, number)) for number in BATCHES)


def main() -> None:
    """Prints a table of every point, and draws the ratios beside the ideal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="PNG of the ratios")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    found: dict[str, list[tuple[Point, Cost, Cost]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny.build("qwen2_vl", folder / "base", texts=[QUESTION, ANSWER] * 20)
        config = AutoConfig.from_pretrained(base)
        for key, value in TEXT.items():
            setattr(config.text_config, key, value)
        config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
        config.vision_config.hidden_size = TEXT["hidden_size"]
        model = Qwen2VLForConditionalGeneration(config)
        attention.use(model, "sdpa")
        peft_model = get_peft_model(model, LoraConfig(r=8, target_modules=r".*language_model.*_proj"))
        for varies, point in points():
            shared, apart = (
                cost(peft_model, batch(base, folder, point, share), point.batch) for share in (True, False)
            )
            found.setdefault(varies, []).append((point, shared, apart))
    for varies, rows in found.items():
        show(varies, rows)
    if given.plot:
        draw(found, given.plot)


def show(varies: str, rows: list[tuple[Point, Cost, Cost]]) -> None:
    """Prints the points of one table."""
    columns = (
        "questions",
        "image tokens",
        "batch",
        "ms shared",
        "ms apart",
        "ratio",
        "ideal",
        "MiB shared",
        "MiB apart",
    )
    table = Table(*columns, title=f"{varies}: time of a conversation, memory kept for backward")
    for point, shared, apart in rows:
        table.add_row(
            *map(str, (point.questions, point.tokens, point.batch)),
            *(f"{one.seconds * 1000:.1f}" for one in (shared, apart)),
            f"{apart.seconds / shared.seconds:.2f}",
            f"{apart.positions / shared.positions:.2f}",
            *(f"{one.memory:.0f}" for one in (shared, apart)),
        )
    Console(width=120).print(table)


def draw(found: dict[str, list[tuple[Point, Cost, Cost]]], path: Path) -> None:
    """Draws measured ratios and the ideal ones into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(12, 3.6))
    for axis, (varies, rows), key in zip(axes, found.items(), ("questions", "tokens", "batch"), strict=True):
        across = [getattr(point, key) for point, _, _ in rows]
        axis.plot(across, [apart.seconds / shared.seconds for _, shared, apart in rows], "o-", label="measured")
        axis.plot(across, [apart.positions / shared.positions for _, shared, apart in rows], "--", label="positions")
        axis.set(xlabel=varies, ylabel="times as fast", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
