"""The base of a recipe: its files, its config, its weights in bf16, fp32 or nf4, and its attention kernel."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from skinvl.model import attention, families, hub, tiny
from skinvl.model.families import Family
from skinvl.model.hub import Snapshot
from skinvl.model.towers import TowerFamily
from skinvl.recipe.recipe import Recipe


class ModelError(ValueError):
    """A base that cannot run as the recipe says."""


def snapshot(recipe: Recipe, *, weights: bool = True) -> Snapshot:
    """The files of a recipe's base: a local folder, the hub's, or a tiny one built on the recipe's data."""
    if recipe.base.random is not None:
        return Snapshot(tiny.ensure(recipe), None)
    return hub.fetch(recipe.base.location, recipe.base.revision, weights=weights)


def read_config(path: Path) -> tuple[PretrainedConfig, Family]:
    """The config in a model folder, and the family of its `model_type`.

    Raises:
        ValueError: the family has no file.
        ModelError: the weights are in FP8.
    """
    config = AutoConfig.from_pretrained(path)
    quantised = getattr(config, "quantization_config", None) or {}
    if dict(quantised).get("quant_method") == "fp8":
        raise ModelError(
            f"{path}: its weights are in FP8, which are neither trained on nor merged into; expected those in BF16, "
            "which Ministral 3 has in a repository of their own (mistralai/Ministral-3-3B-Instruct-2512-BF16, -8B-, "
            "-14B-; base=ministral3-3b, ministral3-8b, ministral3-14b)"
        )
    return config, families.load(config.model_type)


def attention_kernel(wanted: str, family: Family | TowerFamily) -> str:
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


def base_dtype(recipe: Recipe) -> torch.dtype:
    """What the unquantised weights of a base are loaded in, and what its tower's features are."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[recipe.precision]


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The precision that a recipe trains in, which whatever asks its model computes in too."""
    half = recipe.precision != "fp32"
    return torch.autocast(device.type, base_dtype(recipe) if half else torch.bfloat16, enabled=half)


def quantization(recipe: Recipe, family: Family) -> BitsAndBytesConfig | None:
    """How a recipe's base is quantised as it is loaded; None where it is not."""
    if recipe.quantization is None:
        return None
    settings = {"bnb_4bit_compute_dtype": base_dtype(recipe), **recipe.quantization}
    return BitsAndBytesConfig(**settings, llm_int8_skip_modules=family.unquantised)


def load_base(
    path: Path,
    family: Family,
    recipe: Recipe,
    *,
    device_map: dict[str, Any] | None = None,
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """The base of a recipe with its weights, in the precision that it trains in, or 4-bit.

    The vision tower, the projector and lm_head stay unquantised. Its language layers attend over spans, which every
    batch must bring.

    Args:
        config: one with fewer layers than the base's own, whose other weights are then not read.

    Raises:
        ModelError: the files lack weights of the model.
    """
    if is_deepspeed_zero3_enabled():  # each rank then loads its share of every weight, which needs the others
        import deepspeed

        deepspeed.init_distributed()
    kernel = attention_kernel(recipe.attention, family)
    settings: dict[str, Any] = {
        "quantization_config": quantization(recipe, family),
        "attn_implementation": family.kernels(kernel),
        "device_map": device_map,
        "config": config,
    }
    model = _read(AutoModelForImageTextToText, path, base_dtype(recipe), settings)
    for module in model.modules():
        # On a CPU with AVX512-BF16, bitsandbytes 0.50 packs a layer's weight when it is first evaluated; what then
        # passes through it has no gradient, in the training that goes on too
        # (findings/bitsandbytes-cpu-eval-cuts-gradients.sh).
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    attention.use(model, kernel)
    family.prepare(model)
    return model


def load_tower(path: Path, family: Family, recipe: Recipe) -> PreTrainedModel:
    """The vision tower of a base alone, with the projector where it lies within, as `load_base` would have it.

    Raises:
        ModelError: the files lack weights of the tower.
    """
    return read_tower(path, family, attention_kernel(recipe.attention, family), base_dtype(recipe))


def read_tower(path: Path, family: Family, kernel: str, dtype: torch.dtype) -> PreTrainedModel:
    """The vision tower of a base alone, with an `attn_implementation` and in a dtype.

    Raises:
        ModelError: the files lack weights of the tower.
    """
    config, _ = read_config(path)
    (name,) = family.parts["vision"]
    settings = {
        "config": config.vision_config,
        "attn_implementation": kernel,
        "key_mapping": {tower_names(family).pattern: ""},
    }
    tower = _read(type(blank_model(config).get_submodule(name)), path, dtype, settings)
    tower.eval()
    return tower


def tower_names(family: Family) -> re.Pattern[str]:
    """What the names of the tower's weights begin with in the files of a base, old or new."""
    (name,) = family.parts["vision"]
    return re.compile(rf"^(model\.)?{name.rpartition('.')[2]}\.")


def _read(kind: Any, path: Path, dtype: torch.dtype, settings: dict[str, Any]) -> PreTrainedModel:
    loader = logging.getLogger("transformers.modeling_utils")
    loader.addFilter(_no_report)
    model: PreTrainedModel
    try:
        model, report = kind.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **settings
        )
    finally:
        loader.removeFilter(_no_report)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are not in its files (first: {missing[0]}); "
            "they would be random. Download the base again, or give one that is whole"
        )
    return model


def _no_report(record: logging.LogRecord) -> bool:
    """False for the list of the weights that a loaded model has no place for: here they are left out on purpose."""
    return "LOAD REPORT" not in record.getMessage()


@contextmanager
def unsharded() -> Iterator[None]:
    """Within, a model is made or loaded whole under ZeRO-3 too, for which transformers would ask all ranks."""
    config = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config


def blank_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a config on the meta device: every module and shape, no weights."""
    with torch.device("meta"), unsharded():
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model


def logits(model: nn.Module, inputs: Mapping[str, Any], where: torch.Tensor, **settings: Any) -> torch.Tensor:
    """The logits at some positions of the rows, float32[N, V], row by row; at no other are they computed.

    `logits_to_keep` would take the same positions from every row.

    Args:
        where: bool[R, T].
        settings: more for the model's forward; without a cache unless they say so.
    """
    head: nn.Module = extract_model_from_parallel(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, arguments: (arguments[0][where][None],))
    try:
        values: torch.Tensor = model(**inputs, **{"use_cache": False, **settings}).logits[0]
    finally:
        hook.remove()
    return values.float()


def count_parameters(model: nn.Module) -> int:
    """How many parameters the model has; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
