"""The base of a recipe: its files, its config, its weights in bf16, fp32 or nf4, and its attention kernel."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from skinvl import attention, families, hub, tiny
from skinvl.families import Family
from skinvl.hub import Snapshot
from skinvl.recipe import Recipe


class ModelError(ValueError):
    """A base that cannot run as the recipe says."""


def snapshot(recipe: Recipe, *, weights: bool = True) -> Snapshot:
    """The files of a recipe's base: a local folder, the hub's, or a tiny one built on the recipe's data."""
    if recipe.base.random is not None:
        return Snapshot(tiny.ensure(recipe), None)
    return hub.fetch(recipe.base.location, recipe.base.revision, weights=weights)


def config(path: Path) -> tuple[PretrainedConfig, Family]:
    """The config in a model folder, and the family of its `model_type`.

    Raises:
        ValueError: the family has no file.
    """
    found = AutoConfig.from_pretrained(path)
    return found, families.load(found.model_type)


def attention_kernel(wanted: str, family: Family) -> str:
    """The `attn_implementation` to load with: as wanted, or the fastest that is installed and that the family allows.

    Raises:
        ModelError: the wanted kernel is not to be had for this family or on this machine.
    """
    flash = wanted.startswith("flash_attention") or wanted == "auto"
    if not flash:
        return wanted
    cuda = torch.cuda.is_available()
    if family.flash_attention and cuda:
        for module, name in (("flash_attn_interface", "flash_attention_3"), ("flash_attn", "flash_attention_2")):
            if wanted in ("auto", name) and importlib.util.find_spec(module) is not None:
                return name
        if importlib.util.find_spec("kernels") is not None:
            return "kernels-community/flash-attn3" if wanted == "flash_attention_3" else "kernels-community/flash-attn2"
    if wanted == "auto":
        return "sdpa"
    reason = (
        f"family {family.model_type} has no flash-attention path"
        if not family.flash_attention
        else "there is no CUDA device"
        if not cuda
        else "neither flash-attn nor kernels is installed (pip install 'skinvl[flash]')"
    )
    raise ModelError(f"attention={wanted}: {reason}; use attention=auto or attention=sdpa")


def load(path: Path, family: Family, recipe: Recipe, *, device_map: dict[str, Any] | None = None) -> PreTrainedModel:
    """The base of a recipe with its weights, in bf16 (fp32 with `train.bf16: false`) or 4-bit.

    The vision tower, the projector and lm_head stay unquantised: they are named in full, since a bare suffix would
    leave some of them quantised. Its language layers attend over spans, which every batch must bring.
    """
    if is_deepspeed_zero3_enabled():  # each rank then loads its share of every weight, which needs the others
        import deepspeed

        deepspeed.init_distributed()
    dtype = torch.bfloat16 if recipe.train.get("bf16", True) else torch.float32
    quantization = None
    if recipe.quantization is not None:
        keep = [*family.parts["vision"], *family.parts["projector"], "lm_head"]
        quantization = BitsAndBytesConfig(
            **{"bnb_4bit_compute_dtype": dtype, **recipe.quantization, "llm_int8_skip_modules": keep}
        )
    kernel = attention_kernel(recipe.attention, family)
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        quantization_config=quantization,
        attn_implementation=kernel,
        device_map=device_map,
    )
    attention.use(model, kernel)
    family.prepare(model)
    return model


def blank(found: PretrainedConfig) -> PreTrainedModel:
    """The model of a config on the meta device: every module and shape, no weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(found)
    return model


def count_parameters(model: nn.Module) -> int:
    """How many parameters the model has; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
