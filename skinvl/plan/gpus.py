"""GPUs that can be rented: memory, speed and bandwidth as their makers publish them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from skinvl.plan.meta_step import Trace
from skinvl.plan.workload import Load

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    name: str
    memory: int  # GiB
    tflops: float  # dense products in bf16 with fp32 accumulation, per second; fp16 where there is no bf16
    bandwidth: float | None = None  # of its memory, GB/s
    bf16: bool = True


# From NVIDIA's data sheets, without sparsity: T4 (2019), V100 (2020), RTX A6000 (2021), A10, A30 and A100 (2022), L4,
# L40S and RTX 6000 Ada (2023), H100 and H200 (2024), B200 (2025). GeForce: the white papers on Ampere, Ada and
# Blackwell, with fp32 accumulation.
KNOWN = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 16, 65, 320, bf16=False),
        Gpu("v100-16gb", 16, 125, 900, bf16=False),
        Gpu("v100-32gb", 32, 125, 900, bf16=False),
        Gpu("a10", 24, 125, 600),
        Gpu("a30", 24, 165, 933),
        Gpu("a100-40gb", 40, 312, 1555),
        Gpu("a100-80gb", 80, 312, 2039),
        Gpu("rtx-a6000", 48, 154.8, 768),
        Gpu("l4", 24, 121, 300),
        Gpu("l40s", 48, 362, 864),
        Gpu("rtx-6000-ada", 48, 364.2, 960),
        Gpu("rtx-3090", 24, 71, 936),
        Gpu("rtx-4090", 24, 165.2, 1008),
        Gpu("rtx-5090", 32, 209.5, 1792),
        Gpu("h100", 80, 989, 3350),
        Gpu("h100-pcie", 80, 756, 2000),
        Gpu("h200", 141, 989, 4800),
        Gpu("b200", 180, 2250, 8000),
    )
}


def find(text: str) -> Gpu:
    """The GPU of a name in KNOWN, or another of so many GiB and TFLOP/s: `80:312`.

    Raises:
        ValueError: neither; the message names those that are known.
    """
    if pair := re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)", text):
        memory, tflops = int(pair[1]), float(pair[2])
        if memory > 0 and tflops > 0:
            return Gpu(text, memory, tflops)
    name = text.lower().replace("_", "-").replace(" ", "-")
    if name in KNOWN:
        return KNOWN[name]
    near = [gpu for gpu in KNOWN if gpu.startswith(name)] or difflib.get_close_matches(name, KNOWN, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(KNOWN)}"
    raise ValueError(f"--gpu {text}: not known; {hint} Any other is given as GIB:TFLOPS, such as 80:312")


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
    """The rates of a step on the meta device, for the batch that it was made with.

    Args:
        tower: operations for each vision position of a frozen tower that runs in every step.
    """
    flops = trace.flops
    return Rates(
        flops["positions"] / load.positions,
        flops["pairs"] / max(load.pairs, 1),
        flops["trained"] / max(load.trained, 1),
        flops["vision"] / max(load.vision, 1) + tower,
    )


def hours(flops: float, gpu: Gpu, mfu: float = MFU) -> float:
    """Hours that one GPU takes for so many operations, at a share of its published rate."""
    return flops / (gpu.tflops * 1e12 * mfu) / 3600
