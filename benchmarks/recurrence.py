"""A training step of Qwen3.5 with its prefixes shared, beside separate padded rows: `python benchmarks/recurrence.py`.

The model and data of `peers.py --family qwen3_5`, features cached, LoRA in one forward. By the former way, which skinvl
had before layers that carry a state could go on from a prefix, every conversation is a row of its own, padded, and
Hugging Face's layers read these rows whole. Forward, loss, backward and AdamW of the same batches in turns, after one
that does not count; ratios are those of all steps. Kept is what the graph holds after a forward (activations.py). Exit
status 1: a target is missed, or the losses are not the same. With one thread, the default, it is the process's CPU time
that is compared, with more the wall's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
import torch
import yaml
from activations import kept_by
from rich.console import Console
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from skinvl.model import recurrence
from skinvl.model.layout import Group
from skinvl.model.pack import Batch
from skinvl.model.row import encode_row
from skinvl.recipe.recipe import load
from skinvl.sources.prepare.steps import prepare
from skinvl.train import sft
from skinvl.train.trainer import Trainer, token_losses

SAME = 1e-4  # largest difference of a token's loss
FAMILY = "qwen3_5"


@dataclass(frozen=True, slots=True)
class Point:
    """Questions an image, and what is expected of a step: times as fast, and the share of what is kept."""

    questions: float
    images: int
    faster: float
    kept: float


POINTS = (Point(2.45, 20, 1.6, 0.75), Point(8, 6, 2.4, 0.75))


def trainer(point: Point, work: Path) -> Trainer:
    """The trainer of the peers' case, as `skinvl sft` makes it."""
    model = peers.MODELS[FAMILY]
    texts = peers.write_rows(work / "raw", point.images, point.questions, model.side)
    peers.build(work / "base", texts, "float32", FAMILY)
    if prepare("llava", work / "raw", work / "data", workers=1) is None:
        raise RuntimeError(f"{work / 'raw'}: no source could be made of it")
    recipe = {
        "base": str(work / "base"),
        "data": {
            "train": [{"source": str(work / "data"), "split": "train"}],
            "image_tokens": peers.IMAGE_TOKENS,
            "max_tokens": peers.LONGEST,
        },
        "parts": {"language": {"train": "lora"}},
        "lora": peers.LORA,
        "train": {**peers.TRAIN, "bf16": False, "num_train_epochs": 1, "activation_checkpointing": False},
        "run": "run",
    }
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load(str(work / "recipe.yaml"), [])
    (work / "runs" / "run").mkdir(parents=True)
    return sft.prepare(loaded, sft.arguments(loaded, work / "runs" / "run"), work / "runs" / "run", QUIET, {})


QUIET = Console(quiet=True)


class Step:
    """A training step by either way."""

    def __init__(self, made: Trainer) -> None:
        self.model: Any = made.model
        self.model.train()
        self.collator = made.data_collator
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.0)
        rows, size = made.train_dataset.rows, peers.BATCH
        order = [rows[index] for index in made._get_train_sampler()]
        self.batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def by(self, shared: bool) -> None:
        """Exchanges the forward of all layers that carry a state."""
        for module in self.model.modules():
            if isinstance(module, Qwen3_5GatedDeltaNet):
                module.__dict__.pop("forward", None)
        if shared:
            recurrence.use(self.model, Qwen3_5GatedDeltaNet)

    def laid(self, number: int, shared: bool) -> Batch:
        """A batch, laid out."""
        rows = self.batches[number]
        if shared:
            return self.collator([{"row": row} for row in rows])
        apart = [[Group((place,), 0)] for place in range(len(rows))]
        return self.collator.lay([encode_row(self.collator.chat, row) for row in rows], apart)

    def seconds(self, number: int, shared: bool, clock: Callable[[], float]) -> float:
        """What a step takes, the layout of its batch included."""
        self.by(shared)
        started = clock()
        losses, _ = token_losses(self.model, self.laid(number, shared))
        losses.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return clock() - started

    def kept(self, number: int, shared: bool) -> tuple[float, torch.Tensor, float]:
        """MiB that the graph keeps after a forward, its sorted losses, and the positions for a token."""
        self.by(shared)
        batch = self.laid(number, shared)
        with kept_by(self.model) as activations:
            losses, _ = token_losses(self.model, batch)
        tokens = sum(len(encode_row(self.collator.chat, row).encoded.ids) for row in self.batches[number])
        return activations.bytes / 2**20, losses.detach().sort().values, batch.ids.numel() / tokens


def run(point: Point, repeats: int, clock: Callable[[], float], work: Path) -> bool:
    """Whether a point meets its targets."""
    step = Step(trainer(point, work))
    numbers = range(len(step.batches))
    ours, theirs = ([step.kept(number, shared) for number in numbers] for shared in (True, False))
    off = max(float((a[1] - b[1]).abs().max()) for a, b in zip(ours, theirs, strict=True))
    share = sum(one[0] for one in ours) / sum(one[0] for one in theirs)
    for shared in (True, False):
        step.seconds(0, shared, clock)  # does not count
    ratios, totals = [], {True: 0.0, False: 0.0}
    for turn in range(repeats):
        taken = {True: 0.0, False: 0.0}
        for number in numbers:
            for shared in (True, False) if (turn + number) % 2 else (False, True):
                taken[shared] += step.seconds(number, shared, clock)
        ratios.append(taken[False] / taken[True])
        totals = {way: totals[way] + taken[way] for way in taken}
    faster, steps = totals[False] / totals[True], repeats * len(numbers)
    good = faster >= point.faster and share <= point.kept and off <= SAME
    positions = [sum(one[2] for one in ways) / len(ways) for ways in (ours, theirs)]
    print(
        f"{point.questions:g} questions an image, {len(numbers)} steps: {totals[True] / steps:.2f} s a step, apart "
        f"{totals[False] / steps:.2f}: {faster:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}; wanted "
        f"{point.faster}); kept {share:.2f} (wanted {point.kept}); positions for a token {positions[0]:.2f}, apart "
        f"{positions[1]:.2f}; losses differ by {off:.1e}{'' if good else '; MISSED'}",
        flush=True,
    )
    return good


def main() -> int:
    """1 if a target is missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--questions", type=float, help="an image; without it at each point")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    good = []
    with tempfile.TemporaryDirectory() as folder:
        for point in (one for one in POINTS if given.questions in (None, one.questions)):
            work = Path(folder) / f"{point.questions:g}"
            work.mkdir()
            os.chdir(work)  # where a run keeps its cache
            good.append(run(point, given.repeats, clock, work))
        os.chdir("/")  # a folder that is left can be removed
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
