"""A training step with LoRA by one product a layer, beside PEFT's own forward: `python benchmarks/lora.py`.

The random Qwen2-VL of roofline.py and its packed batch, images shared in both; forward, loss over the branches' tokens,
backward and AdamW. The forward of the adapters is exchanged within the process, in turns; ratios are medians over pairs
of neighbouring steps. Kept is what the graph holds after a forward (activations.py). Exit status 1: a target is missed.
With one thread, the default, it is the process's CPU time that is compared, with more the wall's. About four minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from activations import kept_by
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from roofline import HIDDEN, INNER, TARGETS, build, least, packed, rate, work
from torch.nn.functional import cross_entropy

from skinvl.model import lora


@dataclass(frozen=True, slots=True)
class Point:
    """Adapters, and what is expected of a step: times as fast, and the share of what is kept."""

    rank: int
    dropout: float
    faster: float
    kept: float


POINTS = (Point(8, 0.0, 1.12, 1.0), Point(128, 0.0, 1.06, 1.0), Point(128, 0.05, 1.05, 0.75))
REACHED = 0.72  # of one product's rate, at rank 8


class Step:
    """A training step of the adapters of a point, by either forward."""

    def __init__(self, point: Point, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        settings = LoraConfig(
            r=point.rank, lora_alpha=2 * point.rank, lora_dropout=point.dropout, target_modules=TARGETS
        )
        self.model: Any = get_peft_model(build(dtype), settings).train()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.01)
        self.half = dtype == torch.bfloat16
        self.layers = [module for module in self.model.modules() if isinstance(module, Linear)]
        for layer in self.layers:
            layer.cast_input_dtype_enabled = not self.half
        lora.use(self.model)
        self.laid = packed()
        self.embedded = torch.randn(1, self.laid.shape[1], HIDDEN).to(dtype)
        answers = torch.tensor([position for span in self.laid.spans if span.prefix[1] for position in _within(span)])
        self.answers, self.targets = answers, torch.randint(256, answers.shape)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.0)

    def by(self, ours: bool) -> None:
        """Exchanges the forward of all adapters."""
        for layer in self.layers:
            layer.__class__ = lora.AdaptedLinear if ours else Linear

    def forward(self) -> torch.Tensor:
        """The loss."""
        base = self.model.get_base_model()
        entering = self.embedded.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            states = base.model.language_model(inputs_embeds=entering, spans=self.laid, use_cache=False)
            logits = base.lm_head(states.last_hidden_state[0, self.answers])
        return cross_entropy(logits.float(), self.targets)

    def forward_backward(self) -> None:
        """Forward and backward."""
        torch.autograd.backward(self.forward())

    def __call__(self) -> None:
        self.forward_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _within(span: Any) -> range:
    return range(span.start, span.end)


def seconds(step: Step, ours: bool, clock: Callable[[], float]) -> float:
    """What a step takes."""
    step.by(ours)
    started = clock()
    step()
    return clock() - started


def kept(step: Step, ours: bool) -> tuple[float, float]:
    """MiB that the graph keeps after a forward, and its loss."""
    step.by(ours)
    torch.manual_seed(1)
    with kept_by(step.model) as activations:
        loss = step.forward()
    return activations.bytes / 2**20, loss.item()


def run(point: Point, dtype: torch.dtype, repeats: int, clock: Callable[[], float]) -> bool:
    """Whether a point meets its targets."""
    step = Step(point, dtype)
    (ours, loss), (theirs, expected) = kept(step, True), kept(step, False)
    for way in (True, False):
        step.by(way)
        step()  # does not count
    turns = []
    for number in range(repeats):
        order = (True, False) if number % 2 else (False, True)
        turns.append({way: seconds(step, way, clock) for way in order})
    ratios = [turn[False] / turn[True] for turn in turns]
    middle = {way: statistics.median(turn[way] for turn in turns) for way in (True, False)}
    good = statistics.median(ratios) >= point.faster and ours <= point.kept * theirs
    print(
        f"rank {point.rank}, dropout {point.dropout:g}: {middle[True]:.2f} s a step, by PEFT {middle[False]:.2f}: "
        f"{statistics.median(ratios):.3f} times as fast ({min(ratios):.3f} to {max(ratios):.3f}; wanted "
        f"{point.faster}); kept {ours:,.0f} of {theirs:,.0f} MiB: {ours / theirs:.2f} (wanted {point.kept}); "
        f"losses {loss:.6f}, {expected:.6f}{'' if good else '; MISSED'}",
        flush=True,
    )
    return good


def main() -> int:
    """1 if a target is missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    good = [run(point, dtype, given.repeats, clock) for point in POINTS]

    step = Step(POINTS[0], dtype)
    machine = rate(step.laid.shape[1], dtype)
    language = step.model.get_base_model().model.language_model
    reached = work(language, step.laid) / least(step.forward_backward, 3) / machine
    print(f"share of the rate of one product of {HIDDEN} x {INNER}: {reached:.2f} at rank 8, wanted {REACHED}")
    return 0 if all(good) and reached >= REACHED else 1


if __name__ == "__main__":
    sys.exit(main())
