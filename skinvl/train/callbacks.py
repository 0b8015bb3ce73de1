"""What is done while a run trains: its log, gradients that must be there, and an end where it no longer improves."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skinvl.data.progress import Progress
from skinvl.model.names import WRAPPER
from skinvl.recipe.recipe import EarlyStopping as Patience

UNSHOWN = ("tokens", "runtime")  # of an evaluation; log.jsonl has them


class TrainingError(ValueError):
    """A run that would train nothing or the wrong thing."""


class Log(TrainerCallback):
    """Appends every logged dictionary to a JSON-lines file; the last step is logged whatever `logging_steps` says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        event["logs"].pop("train_loss", None)  # of what was trained since the last resume; log.mean is of all
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **event["logs"]}) + "\n")


class Steps(TrainerCallback):
    """Shows how far training is, and a line for each logged step and each evaluation; its block ends with training.

    It takes the place of transformers' bar, of which a log file holds every state, and of its printed dictionaries.
    """

    def __init__(self, say: Console) -> None:
        self._say = say
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)
            self._progress = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress = Progress("steps", state.max_steps, self._say, done=state.global_step)
        self._progress.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._progress is not None:
            self._progress.show(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        if self._progress is not None and (line := self.line(event["logs"], state, self._progress.speed())):
            self._say.print(line, markup=False, highlight=False, soft_wrap=True)

    @staticmethod
    def line(logs: Mapping[str, Any], state: TrainerState, speed: str) -> str:
        """A logged dictionary as a sentence; nothing for what the summary of the run says."""
        step = f"step {state.global_step:,} of {state.max_steps:,}"
        if "loss" in logs:
            parts = [f"loss {logs['loss']:.4g}", f"learning rate {logs['learning_rate']:.4g}", *filter(None, [speed])]
            return f"{step}: {', '.join(parts)}"
        numbers = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if len([name for name in numbers if name.endswith("_loss")]) == 1:
            numbers.pop("loss", None)  # of one set the loss of all is the same again
        shown = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items() if name not in UNSHOWN]
        return f"{step}, evaluated: {', '.join(shown)}" if shown else ""


class Gradients(TrainerCallback):
    """Gives what has no gradient zeros, and stops a run in which a part that should train has nothing else.

    lora_A has none in the first step, since lora_B starts at zero; so lora_B and full weights are looked at, from the
    second step on, for projector and vision in the first step that shows an image. So are single LoRA layers, where a
    trainer can tell dead ones.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer  # a Loop
        self.left = {part for part in type(trainer.parts).model_fields if trainer.spec(part).train != "frozen"}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.images_seen = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.trainer.is_deepspeed_enabled:  # it has taken the gradients away by now
            return
        # A step without an image gives the projector no gradient in one process and zeros on several ranks. AdamW skips
        # what has none and moves what has zeros by its momentum, so all must have the same.
        for parameter in self.trainer.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if state.global_step == 0 or not self.left:
            return
        due = self.left if self.trainer.images_seen else self.left & {"language"}
        alive: set[str] = set()
        for name, parameter in self.trainer.model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                part = self.trainer.part_of(name.removeprefix(WRAPPER))
                if part in due - alive and parameter.grad is not None and parameter.grad.any():
                    alive.add(part)
        if due - alive:
            raise TrainingError(
                f"{self.trainer.section}.{min(due - alive)}: every gradient is zero in step {state.global_step + 1}; "
                f"nothing reaches this part of the base. {self.trainer.unreached}"
            )
        if dead := self.trainer.dead_layers():
            names = ", ".join(dead[:3]) + " …" * (len(dead) > 3)
            raise TrainingError(
                f"{self.trainer.section}: LoRA on {names} has no gradient in step {state.global_step + 1}: the base "
                f"computes with the weights of {len(dead)} such layers and calls none of them. Please report it; until "
                "then set this part to full or frozen"
            )
        self.left -= alive


class StopEarly(TrainerCallback):
    """Ends training when the metric of the best model has not improved for so many evaluations in a row.

    They are counted in the trainer's own log, which a checkpoint holds: a resumed run ends where the whole one does.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience = patience

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop |= self._stale(args, state) >= self.patience.early_stopping_patience

    on_evaluate = on_train_begin

    def _stale(self, args: TrainingArguments, state: TrainerState) -> int:
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        sign = 1 if args.greater_is_better else -1
        best, stale = float("-inf"), 0
        for value in (sign * entry[name] for entry in state.log_history if name in entry):
            stale = 0 if value - best > self.patience.early_stopping_threshold else stale + 1
            best = max(best, value)
        return stale


@dataclass(frozen=True, slots=True)
class Speed:
    """What all ranks did together, and what each of them waited and held. Evaluation and saving do not count."""

    steps: int
    step_seconds: float  # mean, with the wait for its data
    tokens_per_second: float  # of the conversations, or of the images' texts, each on its own
    samples_per_second: float  # conversations, or images
    computed: float  # positions that the language model, or the text tower, computed for such a token
    data_wait: tuple[float, ...]  # share of the time that a rank waited for its batches
    peak_memory: tuple[float, ...]  # MiB of a rank: on the GPU what torch allocated, else the resident set


class Throughput(TrainerCallback):
    """Counts while a run trains; `batches` is called by what fetches them."""

    def __init__(self) -> None:
        self.steps = self.samples = self.tokens = self.positions = 0
        self.waited = self.stepped = self._begun = 0.0

    def batches(self, samples: int, tokens: int, positions: int, seconds: float) -> None:
        """Counts what the next step has, which took so long to come."""
        self.waited += seconds
        self.samples += samples
        self.tokens += tokens
        self.positions += positions

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
