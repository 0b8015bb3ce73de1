"""What the ways out of a training cannot take of it: merging, vLLM, the public hub.

One list: a training asks it before its first step, and so does each of the ways out.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from skinvl.data import licences
from skinvl.data.source import source_folder
from skinvl.model import adapter
from skinvl.model.families import Family
from skinvl.recipe.recipe import Recipe

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as max_lora_rank
# vLLM 0.11 dropped the cross-attention to images with its first engine (vllm-project/vllm#24907).
NOT_IN_VLLM = ("mllama",)


class WayOutError(ValueError):
    """Settings by which an adapter would come of a training that neither merging nor vLLM can take."""


def unmergeable(model: nn.Module, family: Family, recipe: Recipe) -> str:
    """Why the adapter of a recipe cannot be merged into its base; empty where it can."""
    if not recipe.lora.get("lora_bias"):
        return ""
    modules: dict[str, Any] = dict(model.named_modules())
    layers = [name for hit in adapter.plan(model, family, recipe).values() for name in hit.layers]
    if bare := sorted(name for name in layers if modules[name].bias is None):
        return f"lora.lora_bias=true: {bare[0]} has no bias in the base that a trained one could go into"
    return ""


def not_in_vllm(model_type: str, recipe: Recipe, *, alone: bool = False) -> str:
    """Why vLLM cannot serve the adapter of a recipe on its base, or the base `alone`; empty where it can."""
    if model_type in NOT_IN_VLLM:
        return f"vLLM serves no {model_type} since 0.11"
    if recipe.quantization is not None:
        return "the base is trained in 4 bits, which vLLM quantises otherwise"
    if alone:
        return ""
    if recipe.parts.language.train != "lora":
        return f"parts.language={recipe.parts.language.train}, and vLLM takes an adapter of LoRA alone"
    for part in ("projector", "vision"):
        if getattr(recipe.parts, part).train != "frozen":
            return f"parts.{part} is trained too, and vLLM takes LoRA on the language model alone"
    for key in ("use_dora", "lora_bias"):
        if recipe.lora.get(key):
            return f"lora.{key}=true, which vLLM does not take"
    if (rank := recipe.lora.get("r", 8)) > RANKS[-1]:
        return f"lora.r={rank}, and vLLM takes at most {RANKS[-1]}"
    return ""


def not_public(model_type: str, recipe: Recipe) -> str:
    """Why what is trained may not be made public, by the licences of base and data; empty where it may."""
    base = licences.of_base(recipe.base, model_type)
    roots = {spec.source: source_folder(spec.source) for spec in recipe.data.train}
    data = {root.name: licences.of_source(root) for root in roots.values() if root.is_dir()}
    return "; ".join(licences.chosen(base, data).private)


def ahead(model: nn.Module, family: Family, recipe: Recipe) -> list[str]:
    """What single ways out will refuse of the adapter that a recipe trains, a line each.

    Raises:
        WayOutError: neither merging nor vLLM will take it.
    """
    merge, vllm = unmergeable(model, family, recipe), not_in_vllm(family.model_type, recipe)
    if merge and vllm:
        raise WayOutError(f"{merge}, so that skinvl merge will refuse it; nor does vLLM take it ({vllm}). Leave it out")
    lines = [f"skinvl merge will refuse this adapter: {merge}"] if merge else []
    lines += [f"vLLM will not take this adapter as it is, but merged: {vllm}"] if vllm else []
    private = not_public(family.model_type, recipe)
    return lines + ([f"skinvl publish will refuse --public: {private}"] if private else [])
