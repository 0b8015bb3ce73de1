"""What every training of skinvl has on top of transformers' loop: learning rates by part, checkpoints, its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerControl

from skinvl.model.names import WRAPPER
from skinvl.recipe.recipe import EarlyStopping, Parts, PartSpec
from skinvl.recipe.towers import Towers
from skinvl.train import checkpoint
from skinvl.train.callbacks import Gradients, Log, Steps, StopEarly, Throughput, TrainingError

_Trainer: Any = transformers.Trainer  # by its annotations a batch is a dictionary, which none of ours is


class Loop(_Trainer):  # type: ignore[misc]
    """A Trainer whose parts learn at their own rates, and which whatever interrupts it leaves a whole checkpoint of."""

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl
    parts: Parts | Towers
    """What trains."""
    section: ClassVar[str]
    """The key of a recipe that says so."""
    unreached: ClassVar[str]
    """What a user may look for where no gradient reaches a part."""
    images_seen: bool
    """Whether this rank has seen an image in the current step."""

    def part_of(self, name: str) -> str:
        """The part that a parameter belongs to, by its name in the base."""
        raise NotImplementedError

    def spec(self, part: str) -> PartSpec:
        """How a part trains."""
        spec: PartSpec = getattr(self.parts, part)
        return spec

    def dead_layers(self) -> list[str]:
        """The layers whose LoRA nothing reaches, as far as that can be told from the gradients of a step."""
        return []

    def watch(self, log: Path, early: EarlyStopping | None) -> None:
        """Adds what is done while it trains; `log` is the JSON-lines file that every logged dictionary goes to."""
        self.images_seen = False
        self.preemption = checkpoint.Preemption(self.accelerator)
        self.throughput = Throughput()
        for theirs in (ProgressCallback, PrinterCallback):  # of which it added one
            self.remove_callback(theirs)
        bar = False if self.args.disable_tqdm else None  # where there is a terminal
        self.steps = Steps(Console(quiet=not self.is_world_process_zero(), force_terminal=bar))
        for callback in (self.steps, self.preemption, self.throughput, Log(log), Gradients(self)):
            self.add_callback(callback)
        if early is not None:
            self.add_callback(StopEarly(early))

    def train(self, *positional: Any, **named: Any) -> Any:
        """What transformers returns of the training, shown as it goes."""
        with self.steps:
            return super().train(*positional, **named)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """An optimizer with one group per part and weight decay, each at its part's learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        target: torch.nn.Module = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(target))
        groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in target.named_parameters():
            if parameter.requires_grad:
                part = self.part_of(name.removeprefix("module.").removeprefix(WRAPPER))
                groups.setdefault((part, name in decayed), []).append(parameter)
        optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, target)
        made: torch.optim.Optimizer = optimizer(
            [
                {
                    "params": parameters,
                    "lr": self.spec(part).learning_rate or self.args.learning_rate,
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                }
                for (part, decay), parameters in groups.items()
            ],
            **settings,
        )
        self.optimizer = made
        return made

    def refuse_loss(self, names: Sequence[str], what: str) -> None:
        """Stops a run whose loss is not a number.

        Args:
            names: of what the batch holds.
            what: the words for it, and what to do.

        Raises:
            TrainingError: always.
        """
        last = checkpoint.last(Path(str(self.args.output_dir)))
        raise TrainingError(
            f"step {self.state.global_step + 1}: the loss is not a finite number, in the batch of {', '.join(names)}. "
            + (f"The last good checkpoint is {last}" if last else "There is no checkpoint yet")
            + f"; {what}, lower train.learning_rate or set train.max_grad_norm"
        )

    def _run_epoch(self, *positional: Any, **named: Any) -> None:
        # Resumed after its last step, transformers would go on; a run that ended early had fewer of them.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*positional, **named)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        checkpoint.save(self)
