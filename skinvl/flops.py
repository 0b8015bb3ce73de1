"""Floating-point operations of an epoch, and the hours that they take, from those of one rehearsed batch."""

from __future__ import annotations

from dataclasses import dataclass

from skinvl.gpus import Gpu
from skinvl.rehearsal import Trace
from skinvl.workload import Load

# Share of a GPU's published rate that training reaches, recomputation counted. Nothing was measured on a GPU: an
# assumption, on the careful side of the 0.38 to 0.43 that Llama 3 reports (arXiv:2407.21783, table 4).
MFU = 0.35


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations of a training step, for each unit of what a batch holds."""

    position: float  # of the language rows
    pair: float  # of a query and a key
    trained: float  # token with a loss
    vision: float  # position of the tower

    def of(self, load: Load) -> float:
        """The operations of a batch, or of all of an epoch."""
        return (
            self.position * load.positions
            + self.pair * load.pairs
            + self.trained * load.trained
            + self.vision * load.vision
        )


def rates(trace: Trace, load: Load, tower: float = 0.0) -> Rates:
    """The rates that a rehearsed step gives for the batch that it was rehearsed with.

    Args:
        tower: operations for each vision position of a frozen tower that runs in every step.
    """
    found = trace.flops
    return Rates(
        found["positions"] / load.positions,
        found["pairs"] / max(load.pairs, 1),
        found["trained"] / max(load.trained, 1),
        found["vision"] / max(load.vision, 1) + tower,
    )


def hours(flops: float, gpu: Gpu, mfu: float = MFU) -> float:
    """Hours that one GPU takes for so many operations, at a share of its published rate."""
    return flops / (gpu.tflops * 1e12 * mfu) / 3600
