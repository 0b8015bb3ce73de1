"""How fast a run trained, where its time went and how much memory it took, for each rank."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@dataclass(frozen=True, slots=True)
class Speed:
    """What all ranks did together, and what each of them waited and held. Evaluation and saving do not count."""

    steps: int
    step_seconds: float  # mean, with the wait for its data
    tokens_per_second: float  # of the conversations, each on its own
    samples_per_second: float
    computed: float  # positions that the language model computed for a token of a conversation
    data_wait: tuple[float, ...]  # share of the time that a rank waited for its batches
    peak_memory: tuple[float, ...]  # MiB of a rank: on the GPU what torch allocated, else the resident set


class Pace(TrainerCallback):
    """Counts while a run trains; `batches` is called by what fetches them."""

    def __init__(self) -> None:
        self.steps = self.samples = self.tokens = self.positions = 0
        self.waited = self.stepped = self._begun = 0.0

    def batches(self, found: list[dict[str, Any]], seconds: float) -> None:
        """Nothing; these batches of the next step took so long to come."""
        self.waited += seconds
        for batch in found:  # a filler does not count
            self.samples += len(batch["row_ids"])
            self.tokens += batch["tokens"]
            self.positions += batch["input_ids"].numel()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.stepped += time.perf_counter() - self._begun
        self.steps += 1

    def speed(self, accelerator: Accelerator) -> Speed | None:
        """The sums over all ranks, which all must ask; None where no step was taken."""
        if not self.steps:
            return None
        cuda = accelerator.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        mine = [self.tokens, self.samples, self.waited, self.waited + self.stepped, peak / 2**20, self.positions]
        ranks = accelerator.gather(torch.tensor([mine], dtype=torch.float64, device=accelerator.device)).cpu()
        seconds = float(ranks[:, 3].max())
        return Speed(
            self.steps,
            seconds / self.steps,
            float(ranks[:, 0].sum()) / seconds,
            float(ranks[:, 1].sum()) / seconds,
            float(ranks[:, 5].sum() / ranks[:, 0].sum()),
            tuple((ranks[:, 2] / ranks[:, 3]).tolist()),
            tuple(ranks[:, 4].tolist()),
        )
