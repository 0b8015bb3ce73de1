#!/usr/bin/env bash
# On a CPU with AVX512-BF16, one evaluation cuts the gradients of a 4-bit model that goes on training.
#
# Versions: bitsandbytes 0.50.2, torch 2.15.0, Python 3.11, Linux x86-64.
#
# bitsandbytes packs the weight of a Linear4bit for its AVX512-BF16 kernel at the first forward in eval mode whose input
# needs no gradient, and unpacks it only to save it. From then on a forward of the layer, in training too, is that kernel's
# (bitsandbytes::gemv_4bit), which has no backward: without a bias no gradient passes through the layer any more, though
# its result says that it requires one, and what lies before it gets none but what comes by other ways; with a bias,
# which is added in place, it raises. So a LoRA on a 4-bit base that is evaluated between two steps of training goes on
# with gradients that are wrong, and the loss may still fall. torch warns of it once, as of any operator without an
# autograd kernel (left out below).
# Setting `support_avx512bf16_for_cpu = False` on each Linear4bit before its first forward keeps them from being packed.
#
# The script needs no GPU and nothing of skinvl: it installs both packages into a temporary folder (some GB), trains a
# low-rank layer before a 4-bit one, and prints the norm of its gradient before and after an evaluation. It exits 1 if
# that is not as described here. Where the CPU has no AVX512-BF16 it says so and exits 0, having shown nothing.
#
# Output seen:
#   torch 2.15.0, bitsandbytes 0.50.2, on the CPU
#   no bias, as it is     before: 0.029177  after: none
#   bias, as it is        before: 0.024571  after: RuntimeError: a view of a leaf Variable that requires grad is being used in an in-place operation.
#   no bias, never packed before: 0.029177  after: 0.029177
#   bias, never packed    before: 0.024571  after: 0.024571
#   as described: an evaluation cuts the gradients of the training that goes on after it
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.15.0 bitsandbytes==0.50.2 numpy

cat > "$work/show.py" <<'PYTHON'
import logging
import sys

logging.disable(logging.WARNING)

import bitsandbytes
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import nn

WIDTH = 128
print(f"torch {torch.__version__.split('+')[0]}, bitsandbytes {bitsandbytes.__version__}, on the CPU")
if not has_avx512bf16():
    print("this CPU has no AVX512-BF16: nothing is packed, and nothing was shown")
    sys.exit(0)


class Adapted(nn.Module):
    """A frozen 4-bit layer with a trained low-rank one beside it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.frozen = Linear4bit(WIDTH, WIDTH, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
        self.frozen.requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.frozen(states) + self.up(self.down(states))


def stack(bias: bool, packs: bool) -> nn.Sequential:
    torch.manual_seed(0)
    last = Linear4bit(WIDTH, WIDTH, bias=bias, compute_dtype=torch.float32, quant_type="nf4").requires_grad_(False)
    layers = nn.Sequential(Adapted(bias), last)
    layers.to("cpu")  # which quantises
    for layer in layers.modules():
        if isinstance(layer, Linear4bit) and not packs:
            layer.support_avx512bf16_for_cpu = False
    return layers


def gradient(layers: nn.Sequential, states: torch.Tensor) -> str:
    """The norm of the gradient of the trained layer before the last 4-bit one, or why there is none."""
    layers.train()
    layers.zero_grad()
    try:
        layers(states).square().mean().backward()
    except RuntimeError as error:
        return f"RuntimeError: {str(error).splitlines()[0]}"
    gradient = layers[0].up.weight.grad
    return "none" if gradient is None else f"{gradient.norm():.6f}"


def shown(bias: bool, packs: bool) -> tuple[str, str]:
    layers, states = stack(bias, packs), torch.randn(8, WIDTH)
    before = gradient(layers, states)
    layers.eval()
    with torch.no_grad():
        layers(states)
    after = gradient(layers, states)
    name = f"{'bias' if bias else 'no bias'}, {'as it is' if packs else 'never packed'}"
    print(f"{name:22}before: {before}  after: {after}")
    return before, after


results = {(bias, packs): shown(bias, packs) for packs in (True, False) for bias in (False, True)}
cut = all(results[bias, True][0] != results[bias, True][1] for bias in (False, True))
kept = all(results[bias, False][0] == results[bias, False][1] for bias in (False, True))
if not (cut and kept):
    print("the behaviour has changed")
    sys.exit(1)
print("as described: an evaluation cuts the gradients of the training that goes on after it")
PYTHON
"$work/venv/bin/python" -W ignore "$work/show.py"
