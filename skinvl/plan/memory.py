"""Bytes of a training run on one GPU, item by item, from its exact parameters and a step on the meta device."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn
from transformers import Trainer

from skinvl.model.base import base_dtype
from skinvl.model.names import WRAPPER
from skinvl.plan.meta_step import MetaStep, Trace
from skinvl.recipe.files import read_json
from skinvl.recipe.recipe import Recipe, deepspeed_config
from skinvl.recipe.towers import PretrainRecipe

BLOCK = 64  # weights that share a scale in bitsandbytes' 4-bit types
NESTED = 256  # scales that share one in turn, with double quantisation
CONTEXT = 0.75 * 2**30  # of the CUDA context and its libraries' workspaces: an assumption, the usual order
# Moments that an optimizer keeps of each trained number, and their bits.
STATES = {
    **dict.fromkeys(
        ("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "paged_adamw_32bit", "paged_adamw"), (2, 32)
    ),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), (2, 8)),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "rmsprop", "adagrad"), (1, 32)),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), (1, 8)),
    "sgd": (0, 32),
}
OPTIMIZER = "adamw_torch_fused"  # transformers' own default
FP32 = 4
LEAST_8BIT = 4096  # numbers of a tensor; bitsandbytes keeps the moments of a smaller one in 32 bits
SCALED = 256  # 8-bit moments that share a scale
ALIGNED = 2  # numbers; DeepSpeed pads each rank's share of a group to a multiple


@dataclass(frozen=True, slots=True)
class ParameterBytes:
    """What the parameters of a run take, before any of it is sharded."""

    plain: int  # bytes of frozen unquantised weights and buffers
    quantised: int  # bytes of 4-bit weights with their scales
    groups: tuple[tuple[int, ...], ...]  # numbers of each tensor that trains, by the group of the optimizer it is in
    adapter: int  # bytes of what a checkpoint's adapter holds
    dequantised: int  # bytes of the largest 4-bit weight as it is multiplied
    layer: int  # bytes of the largest repeated layer

    @property
    def trained(self) -> int:
        """Parameters that train."""
        return sum(map(sum, self.groups))


@dataclass(slots=True)
class Zero:
    """How DeepSpeed shards a run; stage 0 is without it."""

    stage: int = 0
    bucket: float = 0.0  # parameters
    prefetch: float = 0.0  # parameters
    optimizer: bool = False  # whether its state lies in the host's memory
    parameters: bool = False


@dataclass(slots=True)
class Memory:
    """Bytes by item on each GPU, and in the host's memory where they were moved there."""

    items: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes of a GPU."""
        return sum(self.items.values())


def weights(stage: MetaStep) -> ParameterBytes:
    """The exact bytes of a recipe's parameters, from the model on the meta device."""
    recipe, peft_model = stage.recipe, stage.model()
    four = _four_bit(peft_model, stage) if recipe.quantization is not None else {}
    plain, layers = 0, Counter[str]()
    for name, parameter in peft_model.named_parameters():
        size = parameter.nbytes
        if parameter.requires_grad:
            continue
        size = four.get(name, size)
        plain += 0 if name in four else size
        head, _, rest = name.partition(".layers.")
        if rest:
            layers[f"{head}.{rest.split('.')[0]}"] += size
    plain += sum(buffer.nbytes for buffer in peft_model.buffers())
    largest = max((peft_model.get_parameter(name).nbytes for name in four), default=0)
    layer = max(layers.values(), default=0)
    groups = _groups(peft_model, stage)
    return ParameterBytes(plain, sum(four.values()), groups, sum(map(sum, groups)) * FP32, largest, layer)


def quantised(numbers: int, settings: dict[str, Any]) -> int:
    """Bytes of a 4-bit weight of so many numbers, its scales and code tables."""
    blocks = -(-numbers // BLOCK)
    table = 16 * FP32
    if not settings.get("bnb_4bit_use_double_quant"):
        return -(-numbers // 2) + blocks * FP32 + table
    return -(-numbers // 2) + blocks + -(-blocks // NESTED) * FP32 + FP32 + table + 256 * FP32


def zero(recipe: Recipe) -> Zero:
    """How a recipe's run is sharded."""
    name = recipe.train.get("deepspeed")
    if name is None:
        return Zero()
    section = read_json(deepspeed_config(name), "mend it or name another").get("zero_optimization", {})
    device = {key: section.get(key, {}).get("device", "none") for key in ("offload_optimizer", "offload_param")}
    return Zero(
        section.get("stage", 0),
        section.get("reduce_bucket_size", 5e8),
        section.get("stage3_prefetch_bucket_size", 5e7),
        device["offload_optimizer"] != "none",
        device["offload_param"] != "none",
    )


def state(recipe: Recipe | PretrainRecipe, numbers: int) -> int:
    """Bytes of what the optimizer keeps of one tensor of so many numbers.

    Raises:
        ValueError: an optimizer whose state is not known here.
    """
    name = recipe.train.get("optim", OPTIMIZER)
    if name not in STATES:
        raise ValueError(f"train.optim: found {name}; plan knows the state of {', '.join(STATES)}")
    moments, bits = STATES[name]
    if bits == 8 and numbers >= LEAST_8BIT:
        return moments * (numbers + -(-numbers // SCALED) * FP32)
    return moments * numbers * FP32


def states(recipe: Recipe, held: ParameterBytes, ranks: int = 1) -> int:
    """Bytes of what the optimizer keeps on each rank.

    DeepSpeed gives it one flat tensor for each of its groups, of which a rank holds its share: of the whole group
    (stages 1 and 2) or of each parameter (stage 3), rounded up.
    """
    stage = zero(recipe).stage
    if stage == 0:
        return sum(state(recipe, numbers) for group in held.groups for numbers in group)
    if stage == 3:
        return sum(state(recipe, sum(-(-numbers // ranks) for numbers in group)) for group in held.groups)
    return sum(state(recipe, -(-sum(group) // (ALIGNED * ranks)) * ALIGNED) for group in held.groups)


def needed(recipe: Recipe, held: ParameterBytes, trace: Trace, ranks: int = 1, *, overhead: float = CONTEXT) -> Memory:
    """What each GPU of a run holds at its fullest moment.

    DeepSpeed's stages divide optimizer state (1), gradients (2) and parameters (3) by the ranks, and keep an fp32 copy
    of what trains besides (deepspeed/runtime/zero); what they gather for a moment is counted by their own limits.

    Args:
        trace: of the largest batch of one rank.
        overhead: bytes that the process takes on a GPU before anything is loaded.
    """
    shard = zero(recipe)
    masters, moments = held.trained * FP32, float(states(recipe, held, ranks))
    gradients = float(masters)
    gpu, host = Memory().items, Memory().host
    frozen = {"frozen weights, unquantised": float(held.plain), "frozen weights, 4-bit": float(held.quantised)}
    if shard.stage == 3:
        frozen = {name: size / ranks for name, size in frozen.items()}
        masters //= ranks
        ratio = base_dtype(recipe).itemsize
        gpu["gathered weights (ZeRO)"] = held.layer + 2 * shard.prefetch * ratio
    if shard.stage > 0:
        moments += held.trained * FP32 / ranks
        gpu["buckets (ZeRO)"] = min(shard.bucket, held.trained) * FP32
    if shard.stage > 1:
        gradients /= ranks
    elif shard.stage == 0 and ranks > 1:
        gpu["buckets (DDP)"] = gradients
    gpu |= frozen
    gpu["adapter and full parts, fp32"] = masters
    gpu["gradients, fp32"] = gradients
    gpu["optimizer"] = moments
    if shard.optimizer:
        host["optimizer"] = gpu.pop("optimizer")
    if shard.parameters:
        host |= {name: gpu.pop(name) for name in (*frozen, "adapter and full parts, fp32")}
    # In a step gradients come as activations go; those of earlier batches of a step are all there.
    alone = recipe.train.get("gradient_accumulation_steps", 1) == 1 and shard.stage == 0
    moving = max(trace.peak - gradients, 0.0) if alone else trace.peak
    gpu["activations"] = moving + held.dequantised
    gpu["CUDA context"] = overhead
    order = [*frozen, "adapter and full parts, fp32", "gradients, fp32", "optimizer", "activations"]
    ranked = sorted(gpu, key=lambda name: order.index(name) if name in order else len(order))
    return Memory(
        {name: gpu[name] for name in ranked if gpu[name]}, {name: size for name, size in host.items() if size}
    )


def checkpoint(recipe: Recipe, held: ParameterBytes, ranks: int = 1) -> int:
    """Bytes of one checkpoint on disk: the adapter, and what the optimizer keeps on all ranks."""
    return held.adapter + states(recipe, held, ranks) * (ranks if zero(recipe).stage else 1)


def _groups(peft_model: Any, stage: MetaStep) -> tuple[tuple[int, ...], ...]:
    """The numbers of each tensor that trains, by part and weight decay, as the Trainer groups them."""
    decayed = set(Trainer.get_decay_parameter_names(cast(Any, None), peft_model))  # it asks nothing of its instance
    groups: dict[tuple[str, bool], list[int]] = {}
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            part = stage.family.part_of(name.removeprefix(WRAPPER))
            groups.setdefault((part, name in decayed), []).append(parameter.numel())
    return tuple(map(tuple, groups.values()))


def _four_bit(peft_model: Any, stage: MetaStep) -> dict[str, int]:
    """Bytes of each weight that is loaded in 4 bits."""
    sizes = {}
    for name, module in peft_model.named_modules():
        plain = name.removeprefix(WRAPPER).removesuffix(".base_layer")
        if not isinstance(module, nn.Linear) or "lora_" in name or module.weight.requires_grad:
            continue
        if stage.family.quantises(plain):
            sizes[f"{name}.weight"] = quantised(module.weight.numel(), stage.recipe.quantization or {})
    return sizes
