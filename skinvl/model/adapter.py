"""What trains on a base: LoRA in the parts that want it, parts trained in full, everything else frozen, all checked."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from skinvl.model import earlier, families, hub, lora
from skinvl.model.base import blank_model, read_config
from skinvl.model.families import Family
from skinvl.model.names import WRAPPER, of_adapter
from skinvl.recipe.files import read_json
from skinvl.recipe.recipe import Recipe, shards_weights
from skinvl.recipe.towers import PretrainRecipe


class AdapterError(ValueError):
    """An adapter that does not fit the recipe, or a model that does not train what the recipe says."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What trains in one part: the LoRA patterns with how many modules each hit, and the modules trained in full."""

    patterns: dict[str, int]
    full: tuple[str, ...]
    layers: tuple[str, ...] = ()  # those that the patterns hit


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
        full = whole_modules(model, family, part) if mode == "full" else ()
        hits[part] = Hits(
            patterns(linear, modules) if mode == "lora" else {}, tuple(full), tuple(linear) if mode == "lora" else ()
        )
    return hits


def attach(model: PreTrainedModel, family: Family, recipe: Recipe, *, cached: bool = False) -> PeftModel:
    """The model with a fresh LoRA adapter, its fully trained parts copied, everything else frozen.

    On the meta device it has everything but numbers: how its weights start is left out there.

    Every trainable parameter is fp32, the master copy that small updates need: PEFT alone would leave fully trained
    modules in the base's dtype, where at a learning rate of 2e-5 most bf16 weights never move. A frozen vision tower
    runs without autograd from here on, or, `cached`, takes its images' features for pixels and does not run at all.
    In 16 bits the model is to be called under `base.autocast`, as a trainer does.

    Raises:
        AdapterError: a part that is to train has nothing to train, or `init_adapter` does not fit.
        BaseError: `init_adapter` cannot be had.
    """
    hits = plan(model, family, recipe)
    for part, hit in hits.items():
        mode = getattr(recipe.parts, part).train
        if mode != "frozen" and not (hit.patterns or hit.full):
            missing, instead = ("linear layer", "full or frozen") if mode == "lora" else ("module", "frozen")
            raise AdapterError(
                f"parts.{part}: {family.model_type} has no {missing} there that can train; set it to {instead}"
            )

    # PEFT's own adapter, over what the plan names and nothing else.
    settings = LoraConfig(
        **(recipe.lora | {"init_lora_weights": False} if model.device.type == "meta" else recipe.lora),
        target_modules="|".join(pattern for hit in hits.values() for pattern in hit.patterns),
        modules_to_save=[name for hit in hits.values() for name in hit.full] or None,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, settings, low_cpu_mem_usage=model.device.type == "meta")
    assert isinstance(peft_model, PeftModel)

    give_masters(peft_model, autocast=recipe.precision != "fp32")
    if not (model.device.type == "meta" and shards_weights(recipe)):  # where it trains, the process knows that it is
        lora.use(peft_model)
    if recipe.init_adapter is not None:
        files = hub.fetch(recipe.init_adapter, None, weights=True, what="init_adapter")
        continue_from(peft_model, files.path, family, recipe)
    if cached:
        _read_features(model, family)
    elif recipe.parts.vision.train == "frozen":
        _run_tower_without_grad(model, family)
    return peft_model


def give_masters(model: nn.Module, *, autocast: bool) -> None:
    """Makes all that trains fp32; what runs under autocast casts nothing that autocast would cast back."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if autocast:
        # Autocast makes a layer's input bf16 again, whatever PEFT casts it to first: two copies of it for nothing.
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False


def continue_from(model: PeftModel, path: Path, family: Family, recipe: Recipe) -> None:
    """Copies the weights of an earlier adapter folder, which may lack whole parts, into the model.

    Raises:
        AdapterError: the adapter does not cover a part whole, holds weights that the recipe would not train or that
            the base has under no name, or was made with settings under which the same weights mean something else.
    """
    require_same_settings(path, recipe)

    # Each by the name that it has today.
    weights = load_peft_weights(str(path), device="cpu")
    if not weights.keys() <= trained_parameters(model).keys():
        keys = todays_keys(path, _config(model))
        if renamed := [key for name, key in keys.items() if name != key]:
            warnings.warn(
                f"init_adapter {path}: {len(renamed)} of its {len(keys)} weights have names of an earlier transformers "
                f"(first: {renamed[0]}); they were renamed, and each has its place",
                stacklevel=2,
            )
        weights = {name: weights[key] for name, key in keys.items()}

    copy_whole_parts(weights, model, path, family.part_of)


def copy_whole_parts(
    weights: Mapping[str, torch.Tensor], model: PeftModel, path: Path, part_of: Callable[[str], str]
) -> None:
    """Copies the weights of an adapter folder, which may lack whole parts, into the parameters that train.

    Args:
        weights: by the names under which PEFT saves them.
        part_of: the part of a parameter by its name in the base.

    Raises:
        AdapterError: the weights do not cover a part whole, or not all of them train here.
    """
    # They are among those that train here, and of the same shapes.
    trained = trained_parameters(model)
    unknown = sorted(set(weights) - set(trained))
    if unknown:
        lost = {part_of(name.removeprefix(WRAPPER)) for name in unknown}
        modes = {"lora" if ".lora_" in name else "full" for name in unknown}
        raise AdapterError(
            f"init_adapter {path}: {len(unknown)} of its {len(weights)} weights are not trained by this recipe "
            f"(first: {unknown[0]}), and what it has learnt in {', '.join(sorted(lost))} "
            f"({' and '.join(sorted(modes))}) would be lost; set parts as in the run that made it"
        )
    for name, value in weights.items():
        if value.shape != trained[name].shape:
            raise AdapterError(
                f"init_adapter {path}: {name} has shape {tuple(value.shape)}, here it is {tuple(trained[name].shape)}; "
                "it was made for another base"
            )

    # Of a part that it trains it has them all.
    parts = {part_of(name.removeprefix(WRAPPER)) for name in weights}
    missing = [name for name in trained if name not in weights and part_of(name.removeprefix(WRAPPER)) in parts]
    if missing:
        raise AdapterError(
            f"init_adapter {path}: lacks {len(missing)} weights of the parts it trains (first: {missing[0]}); "
            "it was made for another base or another list of modules"
        )

    for name, value in weights.items():
        trained[name].data.copy_(value)


def todays_keys(path: Path, config: PretrainedConfig) -> dict[str, str]:
    """The keys in the file of an adapter folder, by the names that PEFT gives the same weights today.

    Args:
        path: the folder.
        config: of the base.

    Raises:
        AdapterError: the base has no such weight, whatever an earlier transformers called it.
    """
    saved = saved_keys(path)
    keys, nowhere = of_adapter(saved, blank_model(config))
    if nowhere:
        raise AdapterError(
            f"init_adapter {path}: {len(nowhere)} of its {len(saved)} weights have names that {config.model_type} has "
            f"in no layout known here (first: {nowhere[0]}): they are another version's of transformers, or another "
            "base's; merge it into its base with the version that made it, and start there"
        )
    return keys


def require_same_settings(path: Path, recipe: Recipe | PretrainRecipe) -> None:
    """Refuses an adapter folder whose weights would mean something else under the recipe.

    Raises:
        AdapterError: they would; the message names the setting.
    """
    config = read_json(path / "adapter_config.json", "save the adapter again", AdapterError)
    if reason := earlier.difference(config, recipe.lora):
        raise AdapterError(f"init_adapter {path}: {reason}")


def require_whole(model: PeftModel, path: Path) -> None:
    """Refuses an adapter folder that lacks a weight that the model trains, which would be a fresh one.

    Raises:
        AdapterError: it lacks one.
    """
    saved = saved_keys(path)  # the names alone; attach has read the weights
    trained = set(trained_parameters(model))
    if not trained <= saved:
        saved = set(todays_keys(path, _config(model)))
    require_all(trained, saved, path)


def require_all(trained: Collection[str], saved: Collection[str], path: Path) -> None:
    """Refuses an adapter folder whose weights are not all that train, by the names under which PEFT saves them.

    Raises:
        AdapterError: it lacks one.
    """
    if missing := sorted(set(trained) - set(saved)):
        raise AdapterError(
            f"{path}: {len(missing)} of {len(trained)} trained weights are not in the adapter (first: {missing[0]}); "
            "it was saved by another recipe"
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """What one part of a built model trains: parameters, and the modules that carry them."""

    trainable: int  # parameters
    parameters: int  # those of the base
    lora: dict[str, int]  # last name of the adapted modules → how many
    full: int  # modules trained in full


def check(model: PeftModel, family: Family, recipe: Recipe) -> dict[str, Trained]:
    """What each part trains, once everything that the recipe promised is found to hold.

    Raises:
        AdapterError: a LoRA layer outside its part, a quantised tower, projector or lm_head, a trainable parameter that
            is not fp32, or a part that trains where the recipe froze it, or does not where the recipe trains it.
    """
    modes = {part: getattr(recipe.parts, part).train for part in families.PARTS}
    for name, module in model.named_modules():
        plain = name.removeprefix(WRAPPER)
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt") and not family.quantises(plain):
            part = "lm_head" if plain == "lm_head" else family.part_of(plain)
            raise AdapterError(f"{plain}: quantised, but {part} must not be")
    return check_parts(model, modes, family.part_of)


def check_parts(
    model: nn.Module, modes: Mapping[str, str], part_of: Callable[[str], str], section: str = "parts"
) -> dict[str, Trained]:
    """What each part trains, once LoRA, full copies and fp32 masters are found where the modes have them alone.

    Args:
        modes: frozen, lora or full, of each part.
        part_of: the part of a parameter or module by its name in the base.
        section: of the recipe, that has the modes.

    Raises:
        AdapterError: something else is found.
    """
    # Modules: LoRA and copies where the recipe has them.
    lora: dict[str, Counter[str]] = {part: Counter() for part in modes}
    full: Counter[str] = Counter()
    for name, module in model.named_modules():
        plain = name.removeprefix(WRAPPER)
        if isinstance(module, LoraLayer):
            if modes[part_of(plain)] != "lora":
                raise AdapterError(f"{plain}: a LoRA layer in {part_of(plain)}, which the recipe does not adapt")
            lora[part_of(plain)][plain.rpartition(".")[2]] += 1
        elif isinstance(module, ModulesToSaveWrapper):
            full[part_of(plain)] += 1

    # Parameters: each trainable one in fp32 and in a part that trains.
    trainable: Counter[str] = Counter()
    of_base: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name.removeprefix(WRAPPER))
        if "lora_" not in name and ".modules_to_save." not in name:
            state = getattr(parameter, "quant_state", None)  # of a 4-bit weight, two of which share a byte
            of_base[part] += parameter.numel() if state is None else state.shape.numel()
        if parameter.requires_grad:
            trainable[part] += parameter.numel()
            if modes[part] == "frozen":
                raise AdapterError(f"{name}: trainable, but the recipe freezes {part}")
            if parameter.dtype != torch.float32:
                raise AdapterError(f"{name}: trainable in {parameter.dtype}, without an fp32 master")
    for part, mode in modes.items():
        if mode != "frozen" and not trainable[part]:
            raise AdapterError(f"{section}.{part}: the recipe trains it ({mode}), but nothing in it is trainable")
    return {part: Trained(trainable[part], of_base[part], dict(lora[part]), full[part]) for part in modes}


def patterns(names: Sequence[str], modules: Iterable[str]) -> dict[str, int]:
    """How many modules each pattern hits: their names with layer numbers left open, where that hits no other module."""
    counts: Counter[str] = Counter()
    others = set(modules) - set(names)
    for name in names:
        literal = re.escape(name)
        any_layer = re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", literal)
        # In nn.Sequential the numbers also count activations, which cannot be adapted.
        counts[literal if any(re.fullmatch(any_layer, other) for other in others) else any_layer] += 1
    return dict(counts)


def _embeddings(model: nn.Module) -> list[nn.Module]:
    assert isinstance(model, PreTrainedModel)
    # Some models have more embeddings, of a token for each layer.
    more = [module for name, module in model.named_modules() if name.endswith("embed_tokens_per_layer")]
    return [model.get_input_embeddings(), model.get_output_embeddings(), *more]


def whole_modules(model: nn.Module, family: Family, part: str) -> list[str]:
    """The largest modules that hold a part's weights and nothing else, embeddings and lm_head left out.

    Raises:
        AdapterError: a module holds weights of its own beside other parts.
    """
    skipped = _embeddings(model)
    whole: list[str] = []

    def descend(name: str, module: nn.Module) -> None:
        parameters = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
        if module in skipped or not any(family.part_of(key) == part for key in parameters):
            return
        pure = all(family.part_of(key) == part for key in parameters)
        if pure and not isinstance(module, nn.ModuleList) and not any(inner in skipped for inner in module.modules()):
            whole.append(name)
            return
        if any(family.part_of(f"{name}.{key}") == part for key, _ in module.named_parameters(recurse=False)):
            raise AdapterError(f"parts.{part}=full: {name} holds weights of its own beside other parts; use lora there")
        for key, child in module.named_children():
            descend(f"{name}.{key}" if name else key, child)

    descend("", model)
    return whole


def _run_tower_without_grad(model: nn.Module, family: Family) -> None:
    # Checkpointing makes even a frozen tower's output require grad. Its projector, where it lies inside, may train:
    # from there on the caller's mode holds, since what Qwen2.5-VL does after its merger must be recorded too.
    for name in family.parts["vision"]:
        callers = [True]  # whether the tower's caller records gradients
        tower = model.get_submodule(name)
        tower.forward = _unrecorded(tower.forward, callers)
        for inner in family.within(tower):
            inner.forward = _recorded_again(inner.forward, callers)


def _read_features(model: nn.Module, family: Family) -> None:
    (name,) = family.parts["vision"]
    tower: Any = model.get_submodule(name)

    def forward(pixel_values: torch.Tensor, **inputs: Any) -> ModelOutput:
        return family.read(tower, pixel_values, **inputs)

    tower.forward = forward


def _unrecorded(forward: Callable[..., Any], callers: list[bool]) -> Callable[..., Any]:
    def run(*args: Any, **settings: Any) -> Any:
        callers[0] = torch.is_grad_enabled()
        with torch.no_grad():
            return forward(*args, **settings)

    return run


def _recorded_again(forward: Callable[..., Any], callers: list[bool]) -> Callable[..., Any]:
    def run(*args: Any, **settings: Any) -> Any:
        torch.set_grad_enabled(callers[0])  # until the tower's own forward ends
        return forward(*args, **settings)

    return run


def _config(model: PeftModel) -> PretrainedConfig:
    # That of its folder: where features are kept, the model lacks its tower, and its own config with it.
    base: Any = model.get_base_model()
    return read_config(Path(base.name_or_path))[0]


def saved_keys(path: Path) -> set[str]:
    with safe_open(path / "adapter_model.safetensors", "pt") as file:
        return set(file.keys())


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by the names under which PEFT saves them."""
    return {_saved_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _saved_name(name: str) -> str:
    # PEFT saves a DoRA magnitude without the ".weight" that it has in the model.
    name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
    return re.sub(r"\.(modules_to_save\.)?default(?=\.|$)", "", name)
