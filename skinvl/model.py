"""The base (bf16, fp32 or nf4) with its frozen parts and its LoRA, and the names of everything that will train."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from skinvl import families, hub, tiny
from skinvl.families import Family
from skinvl.hub import Snapshot
from skinvl.recipe import Recipe

WRAPPER = "base_model.model."  # what PEFT puts before every name of the base


class ModelError(ValueError):
    """A base or an adapter that does not fit the recipe."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What trains in one part: the LoRA patterns with how many modules each hit, and the modules trained in full."""

    patterns: dict[str, int]
    full: tuple[str, ...]


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
    leave some of them quantised.
    """
    dtype = torch.bfloat16 if recipe.train.get("bf16", True) else torch.float32
    quantization = None
    if recipe.quantization is not None:
        keep = [*family.parts["vision"], *family.parts["projector"], "lm_head"]
        quantization = BitsAndBytesConfig(
            **{"bnb_4bit_compute_dtype": dtype, **recipe.quantization, "llm_int8_skip_modules": keep}
        )
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype,
        quantization_config=quantization,
        attn_implementation=attention_kernel(recipe.attention, family),
        device_map=device_map,
    )
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


def plan(model: nn.Module, family: Family, recipe: Recipe) -> dict[str, Hits]:
    """What would train in each part of the model.

    Linear layers of a LoRA part become patterns anchored at the root of the model, with layer numbers left open.
    A part trained in full is named by its largest modules that hold nothing else; embeddings and lm_head stay frozen.
    """
    modules = dict(model.named_modules())
    frozen = _embeddings(model)
    hits = {}
    for part in families.PARTS:
        mode = getattr(recipe.parts, part).train
        linear = [
            name
            for name, module in modules.items()
            if isinstance(module, nn.Linear) and module not in frozen and family.part_of(name) == part
        ]
        full = _whole_modules(model, family, part) if mode == "full" else ()
        hits[part] = Hits(_patterns(linear, modules) if mode == "lora" else {}, tuple(full))
    return hits


def attach(model: PreTrainedModel, family: Family, recipe: Recipe) -> PeftModel:
    """The model with a fresh LoRA adapter, its fully trained parts copied, everything else frozen.

    Every trainable parameter is fp32, the master copy that small updates need: PEFT alone would leave fully trained
    modules in the base's dtype, where at a learning rate of 2e-5 most bf16 weights never move. A frozen vision tower
    runs without autograd from here on.

    Raises:
        ModelError: a part that is to train has nothing to train, or `init_adapter` does not fit.
    """
    hits = plan(model, family, recipe)
    for part, hit in hits.items():
        if getattr(recipe.parts, part).train != "frozen" and not (hit.patterns or hit.full):
            raise ModelError(f"parts.{part}: {family.model_type} has no module there that can train; set it to frozen")
    lora = LoraConfig(
        **recipe.lora,
        target_modules="|".join(pattern for hit in hits.values() for pattern in hit.patterns),
        modules_to_save=[name for hit in hits.values() for name in hit.full] or None,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, lora, low_cpu_mem_usage=model.device.type == "meta")
    assert isinstance(peft_model, PeftModel)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if recipe.init_adapter is not None:
        continue_from(peft_model, Path(recipe.init_adapter), family)
    if recipe.parts.vision.train == "frozen":
        _run_tower_without_grad(model, family)
    return peft_model


def continue_from(model: PeftModel, path: Path, family: Family) -> list[str]:
    """The parts whose weights were taken from an earlier adapter folder.

    Raises:
        ModelError: the adapter does not cover a part whole, or holds weights that the recipe would not train.
    """
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"init_adapter {path}: no adapter_config.json there; give the adapter/ folder of a run")
    weights = load_peft_weights(str(path), device="cpu")
    ours = {_saved_name(name): value for name, value in model.named_parameters() if value.requires_grad}
    unknown = sorted(set(weights) - set(ours))
    if unknown:
        raise ModelError(
            f"init_adapter {path}: {len(unknown)} of its {len(weights)} weights are not trained by this recipe "
            f"(first: {unknown[0]}); set parts as in the run that made it"
        )
    for name, value in weights.items():
        if value.shape != ours[name].shape:
            raise ModelError(
                f"init_adapter {path}: {name} has shape {tuple(value.shape)}, "
                f"the recipe makes {tuple(ours[name].shape)}; set lora.r as in the run that made it"
            )
    parts = {family.part_of(name.removeprefix(WRAPPER)) for name in weights}
    missing = [n for n in ours if n not in weights and family.part_of(n.removeprefix(WRAPPER)) in parts]
    if missing:
        raise ModelError(
            f"init_adapter {path}: lacks {len(missing)} weights of the parts it trains (first: {missing[0]}); "
            "it was made for another base or another list of modules"
        )
    for name, value in weights.items():
        ours[name].data.copy_(value)
    return sorted(parts)


def check(model: PeftModel, family: Family, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """(trainable, all) parameters of each part, once everything that the recipe promised is found to hold.

    Raises:
        ModelError: a LoRA layer outside its part, a quantised tower, projector or lm_head, a trainable parameter that
            is not fp32, or a part that trains where the recipe froze it.
    """
    trained = {part: getattr(recipe.parts, part).train for part in families.PARTS}
    for name, module in model.named_modules():
        plain = name.removeprefix(WRAPPER)
        if isinstance(module, LoraLayer) and trained[family.part_of(plain)] != "lora":
            raise ModelError(
                f"{plain}: a LoRA layer in the part {family.part_of(plain)}, which the recipe does not adapt"
            )
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            part = family.part_of(plain)
            if part != "language" or plain == "lm_head":
                raise ModelError(f"{plain}: quantised, but {part if plain != 'lm_head' else 'lm_head'} must not be")
    counts = {part: [0, 0] for part in families.PARTS}
    for name, parameter in model.named_parameters():
        part = family.part_of(name.removeprefix(WRAPPER))
        counts[part][1] += parameter.numel()
        if parameter.requires_grad:
            counts[part][0] += parameter.numel()
            if trained[part] == "frozen":
                raise ModelError(f"{name}: trainable, but the recipe freezes {part}")
            if parameter.dtype != torch.float32:
                raise ModelError(f"{name}: trainable in {parameter.dtype}, without an fp32 master")
    for part, mode in trained.items():
        if mode != "frozen" and counts[part][0] == 0:
            raise ModelError(f"parts.{part}: the recipe trains it ({mode}), but nothing in it is trainable")
    return {part: (some, every) for part, (some, every) in counts.items()}


def _patterns(names: Sequence[str], modules: Iterable[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    others = set(modules) - set(names)
    for name in names:
        literal = re.escape(name)
        open_ = re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", literal)
        # In nn.Sequential the numbers also count activations, which cannot be adapted.
        found[literal if any(re.fullmatch(open_, other) for other in others) else open_] += 1
    return dict(found)


def _embeddings(model: nn.Module) -> list[nn.Module]:
    assert isinstance(model, PreTrainedModel)
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _whole_modules(model: nn.Module, family: Family, part: str) -> list[str]:
    skipped = _embeddings(model)
    found: list[str] = []

    def descend(name: str, module: nn.Module) -> None:
        parameters = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
        if module in skipped or not any(family.part_of(key) == part for key in parameters):
            return
        pure = all(family.part_of(key) == part for key in parameters)
        if pure and not isinstance(module, nn.ModuleList) and not any(m in skipped for m in module.modules()):
            found.append(name)
            return
        if any(family.part_of(f"{name}.{key}") == part for key, _ in module.named_parameters(recurse=False)):
            raise ModelError(f"parts.{part}=full: {name} holds weights of its own beside other parts; use lora there")
        for key, child in module.named_children():
            descend(f"{name}.{key}" if name else key, child)

    descend("", model)
    return found


def _run_tower_without_grad(model: nn.Module, family: Family) -> None:
    # Checkpointing makes even a frozen tower's output require grad. Its projector, where it lies inside, may train:
    # from there on the caller's mode holds, since what Qwen2.5-VL does after its merger must be recorded too.
    for name in family.parts["vision"]:
        tower = model.get_submodule(name)
        callers = [True]

        def run(*args: Any, _forward: Any = tower.forward, _callers: list[bool] = callers, **settings: Any) -> Any:
            _callers[0] = torch.is_grad_enabled()
            with torch.no_grad():
                return _forward(*args, **settings)

        tower.forward = run
        for inner in family.parts["projector"]:
            if inner.startswith(name + "."):
                module = model.get_submodule(inner)
                for one in module if isinstance(module, nn.ModuleList) else [module]:

                    def project(
                        *args: Any, _forward: Any = one.forward, _callers: list[bool] = callers, **settings: Any
                    ) -> Any:
                        torch.set_grad_enabled(_callers[0])
                        return _forward(*args, **settings)

                    one.forward = project


def _saved_name(name: str) -> str:
    return re.sub(r"\.(modules_to_save\.)?default(?=\.|$)", "", name)
