"""Whether a merged model is the one that was trained: its logits beside those of base + adapter, on real examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import kl_div

from skinvl.data import mixture
from skinvl.data.mixture import Row
from skinvl.data.pixels import ImageError
from skinvl.model.base import load_base, logits
from skinvl.model.chat import Chat, ChatError
from skinvl.model.loaded import load_model
from skinvl.model.pack import Collator
from skinvl.model.row import encode_row, read_images
from skinvl.recipe.recipe import Recipe
from skinvl.release.merging import Merging, Onto

EXAMPLES = 8
POSITIONS = 64  # of an example that are looked at, its first supervised ones
# Of the merged weights before they are rounded, as a share of the greatest logit: float32 keeps seven digits of a sum,
# and loses one or two of them between two orders of the same sums.
EXACT = 1e-4
# Of rounding to bf16, in nats a token, a hundredth of the perplexity; on tiny bases rounding costs 1e-5, 4 bits of nf4
# 0.02 to 0.06. That each weight is the rounded one is checked bit by bit: what this finds is one bf16 cannot hold.
ROUNDED = 0.01


class MergeCheckError(ValueError):
    """A merged model that is not the trained one, or that cannot be compared with it."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far logits are from those that they should be, over supervised positions."""

    max: float  # greatest difference
    mean: float  # mean absolute difference
    argmax_agreement: float  # share of positions with the same likeliest token
    kl: float  # mean Kullback-Leibler divergence from the right distribution, nats a token


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """A merge check that was passed."""

    exact: Drift  # before rounding, against base + adapter on the same base
    rounded: Drift  # as written, against the same
    drift: dict[Onto, Drift]  # as written, onto each base, against the base + adapter that was trained
    tolerance: float  # that `exact.max` is below
    examples: int
    positions: int

    def record(self) -> dict[str, Any]:
        """The `check` of merge.json."""
        exact = {name: value for name, value in asdict(self.exact).items() if name != "kl"}
        return {
            **exact,
            "tolerance": self.tolerance,
            "rounded": {**asdict(self.rounded), "tolerance": {"kl": ROUNDED}},
            "examples": self.examples,
            "positions": self.positions,
        }


def examples(recipe: Recipe, chat: Chat) -> list[Row]:
    """The first conversations of a recipe's eval sets, or else of its train sets, each about other images.

    Raises:
        MergeCheckError: their files are gone, or none can be shown to the model.
    """
    specs = recipe.data.eval or recipe.data.train
    again = "the merge check compares on them; put them back, or merge with --unchecked, which merge.json records"
    try:
        sets = [mixture.rows(spec) for spec in specs]
    except OSError as error:
        raise MergeCheckError(f"data: {error}; {again}") from error
    shown: dict[tuple[str, ...], Row] = {}
    why = "they hold no conversation"
    for row in chain.from_iterable(zip_longest(*sets)):
        if len(shown) == EXAMPLES:
            break
        if row is not None and row.example.images not in shown:
            try:
                encode_row(chat, row)
                read_images(row)
            except (ChatError, ImageError, OSError) as error:  # such rows were not trained on either
                why = str(error)
            else:
                shown[row.example.images] = row
    if not shown:
        raise MergeCheckError(
            f"data: no conversation of {', '.join(spec.source for spec in specs)} to show ({why}); {again}"
        )
    return list(shown.values())


def check(merging: Merging, merged: Path, recipe: Recipe, onto: Onto, rows: Sequence[Row]) -> MergeCheck:
    """The verdict on a written merge; one model at a time is in memory, in float32.

    Raises:
        MergeCheckError: it is not the trained model.
    """
    plain = recipe.model_copy(update={"quantization": None})
    trained, collator = _trained(recipe, merging, rows)
    same = trained if recipe.quantization is None or onto == "dequantized" else _trained(plain, merging, rows)[0]
    # The files are in bf16, whose small numbers fp16 has not.
    as_written = {**plain.train, "bf16": True, "fp16": False} if plain.precision == "fp16" else plain.train
    loaded: torch.nn.Module = load_base(merged, merging.family, plain.model_copy(update={"train": as_written}))
    loaded.to(merging.device).eval()
    _in_float32(loaded)

    # As it was written: bit for bit the rounded weights, and how far their logits are from the trained ones.
    written = supervised_logits(loaded, collator, rows)
    state = loaded.state_dict()
    for name, tensor in merging.tensors(onto):
        if not torch.equal(state[name], _rounded(tensor).to(state[name])):
            raise MergeCheckError(
                f"{merged}: {name} is not the merged weight; the files were written or are named wrongly"
            )

    # The same before rounding, where nothing but the order of the sums may tell it from base + adapter.
    _put(state, merging.tensors(onto))
    exact = compare(same, supervised_logits(loaded, collator, rows))
    drift = {onto: compare(trained, written)}

    # And as it would be on the other base that a 4-bit run has.
    if recipe.quantization is not None:
        other: Onto = "bf16" if onto == "dequantized" else "dequantized"
        _put(state, ((name, _rounded(tensor)) for name, tensor in merging.tensors(other)))
        drift[other] = compare(trained, supervised_logits(loaded, collator, rows))

    tolerance = EXACT * max(1.0, max(float(logits_of_row.abs().max()) for logits_of_row in same))
    rounded = compare(same, written)
    if not exact.max <= tolerance:
        raise MergeCheckError(
            f"the merged weights are not those of base + adapter: before rounding their logits differ by up to "
            f"{exact.max:.2g} (mean {exact.mean:.2g}, the same likeliest token at {exact.argmax_agreement:.1%} of the "
            f"positions); expected at most {tolerance:.2g}. Nothing was kept"
        )
    if not rounded.kl <= ROUNDED:
        raise MergeCheckError(
            f"bf16 cannot hold the merged weights: rounding them costs {rounded.kl:.2g} nats a token (mean difference "
            f"of a logit {rounded.mean:.2g}, the same likeliest token at {rounded.argmax_agreement:.1%} of the "
            f"positions); expected at most {ROUNDED}. Nothing was kept; use the adapter on its base"
        )
    return MergeCheck(exact, rounded, drift, tolerance, len(rows), sum(map(len, same)))


@torch.no_grad()
def supervised_logits(loaded: torch.nn.Module, collator: Collator, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Of each conversation alone the logits at its first POSITIONS supervised positions, float32[N, V]."""
    of_rows = []
    device = next(loaded.parameters()).device
    for row in rows:
        batch = collator([{"row": row}]).to(device)
        first = batch.supervised & (batch.supervised.cumsum(-1) <= POSITIONS)
        of_rows.append(logits(loaded, batch.inputs, first).cpu())
    return of_rows


def compare(expected: Sequence[torch.Tensor], merged: Sequence[torch.Tensor]) -> Drift:
    """How far the merged model's logits are from the expected ones, float32[N, V] of each conversation."""
    ours, theirs = torch.cat(list(merged)), torch.cat(list(expected))
    difference = (ours - theirs).abs()
    kl = kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return Drift(
        max=float(difference.max()),
        mean=float(difference.mean()),
        argmax_agreement=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        kl=max(float(kl.mean()), 0.0),
    )


def _trained(recipe: Recipe, merging: Merging, rows: Sequence[Row]) -> tuple[list[torch.Tensor], Collator]:
    """The logits of a recipe's base + adapter, its weights as they were trained and all arithmetic in float32."""
    loaded = load_model(recipe, merging.device)
    _in_float32(loaded.model)
    return supervised_logits(loaded.model, loaded.collator, rows), loaded.collator


def _in_float32(loaded: torch.nn.Module) -> None:
    """Has the model compute in float32, with its weights and buffers as they were loaded."""
    for module in loaded.modules():
        if type(module).__name__ == "Linear4bit":
            layer: Any = module
            layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32
            layer.support_avx512bf16_for_cpu = False  # whose kernel computes in bf16
        for parameter in module.parameters(recurse=False):
            if type(parameter).__name__ != "Params4bit":
                parameter.data = parameter.data.float()
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.float())


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def _put(state: dict[str, torch.Tensor], tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        state[name].copy_(tensor)
