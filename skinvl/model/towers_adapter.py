"""What trains of two towers: LoRA in the towers that want it, what trains in full, everything else frozen, all checked.

LoRA is laid on every linear layer of a tower but those within an nn.MultiheadAttention, as SigLIP's pooling has one: it
computes with its children's weights and never calls them, so that an adapter on such a child would train nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights
from torch import nn
from transformers import PretrainedConfig

from skinvl.model import adapter, hub, lora
from skinvl.model.adapter import AdapterError, Hits, Trained
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.names import WRAPPER
from skinvl.recipe.towers import PretrainRecipe

PARTS = {
    "image": ("image_tower",),
    "text": ("text_tower",),
    "heads": ("image_head", "text_head", "scale"),
}


def part_of(name: str) -> str:
    """The part that a parameter or module of a DualEncoder belongs to: image, text or heads."""
    first = name.removeprefix(WRAPPER).split(".")[0]
    return next(part for part, modules in PARTS.items() if first in modules)


def plan(model: DualEncoder, recipe: PretrainRecipe) -> dict[str, Hits]:
    """What would train in each part of the model: LoRA patterns anchored at its root, or whole modules."""
    modules = dict(model.named_modules())
    layers = linear_layers(model)
    hits = {}
    for part, names in PARTS.items():
        mode = getattr(recipe.towers, part).train
        linear = [name for name in layers if part_of(name) == part] if mode == "lora" else []
        whole = [name for name in names if next(modules[name].parameters(), None) is not None]
        hits[part] = Hits(adapter.patterns(linear, modules), tuple(whole) if mode == "full" else (), tuple(linear))
    return hits


def attach(model: DualEncoder, recipe: PretrainRecipe) -> PeftModel | DualEncoder:
    """The model with what trains set to train, in fp32, and everything else frozen; with LoRA under PEFT's wrapper.

    On the meta device it has everything but numbers. An adapter that `init_adapter` names is copied into it; a whole
    model that it names is what `read_model` has read. With `train.bf16` the model is to be called under autocast.

    Raises:
        AdapterError: an adapter of `init_adapter` does not fit.
    """
    hits = plan(model, recipe)
    fixed = {*model.images.fixed, *model.texts.fixed}
    on_meta = model.device.type == "meta"
    attached: PeftModel | DualEncoder
    if recipe.makes_adapter:
        settings = LoraConfig(
            **(recipe.lora | {"init_lora_weights": False} if on_meta else recipe.lora),
            target_modules="|".join(pattern for hit in hits.values() for pattern in hit.patterns),
            modules_to_save=[name for hit in hits.values() for name in hit.full] or None,
        )
        peft_model = get_peft_model(model, settings, low_cpu_mem_usage=on_meta)
        assert isinstance(peft_model, PeftModel)
        attached = peft_model
        fixed |= {_copied(name) for name in fixed}
    else:
        trains = {name for hit in hits.values() for name in hit.full}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trains)
        attached = model

    # What is part of an architecture never trains, and all that trains has an fp32 master.
    for name, parameter in attached.named_parameters():
        if name.removeprefix(WRAPPER) in fixed:
            parameter.requires_grad_(False)
    adapter.give_masters(attached, autocast=recipe.bf16)
    lora.use(attached)
    if isinstance(attached, PeftModel) and recipe.init_adapter is not None:
        path = hub.fetch(recipe.init_adapter, None, weights=True, what="init_adapter", towers=True).path
        continue_from(attached, path, recipe)
    return attached


def continue_from(model: PeftModel, path: Path, recipe: PretrainRecipe) -> None:
    """Copies the weights of an earlier adapter folder, which may lack whole parts, into the model.

    Raises:
        AdapterError: the adapter does not cover a part whole, holds weights that the recipe would not train, or was
            made with settings under which the same weights mean something else.
    """
    require_same_settings(path, recipe)
    weights = load_peft_weights(str(path), device="cpu")
    trained = adapter.trained_parameters(model)
    fixed = {name for name in weights if name not in trained and _fixed(name, model)}
    adapter.copy_whole_parts({name: weights[name] for name in weights if name not in fixed}, model, path, part_of)


def require_whole(model: nn.Module, path: Path) -> None:
    """Refuses an adapter folder that lacks a weight that the model trains, which would be a fresh one.

    Raises:
        AdapterError: it lacks one.
    """
    adapter.require_all(adapter.trained_parameters(model), adapter.saved_keys(path), path)


def require_same_towers(
    path: Path, trained: DualEncoderConfig, base: DualEncoderConfig, recipe: PretrainRecipe
) -> None:
    """Refuses a whole model that a run has made of other towers than those of the base, or that LoRA would be laid on.

    Raises:
        AdapterError: it is of others; the message names the first field that differs. Or the recipe makes an adapter,
            which would then be one of the base.
    """
    if recipe.makes_adapter:
        raise AdapterError(
            f"init_adapter {path}: a whole model, and the recipe trains an adapter, which would be laid over the base "
            f"as it was; set base={path}, or towers.image.train and towers.text.train to full or frozen"
        )
    ours, theirs = _settings(base), _settings(trained)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise AdapterError(
                f"init_adapter {path}: made of towers with {key}={theirs.get(key)}, those of the base have "
                f"{ours.get(key)}; give the base that it was trained from"
            )


def require_same_settings(path: Path, recipe: PretrainRecipe) -> None:
    """Refuses an adapter folder whose weights would mean something else under the recipe, or have no place there.

    Raises:
        AdapterError: they would; the message names the setting.
    """
    if not recipe.makes_adapter:
        raise AdapterError(
            f"init_adapter {path}: an adapter, and no tower of the recipe has one; set towers as in the run that made "
            "it, or merge it (skinvl merge) and give the merged model as base"
        )
    adapter.require_same_settings(path, recipe)


def check(model: nn.Module, recipe: PretrainRecipe) -> dict[str, Trained]:
    """What each part trains, once everything that the recipe promised is found to hold.

    Raises:
        AdapterError: LoRA or a copy outside its part, a trainable parameter that is not fp32, a part that trains where
            the recipe froze it or does not where the recipe trains it, or a layer of a LoRA tower without LoRA.
    """
    modes = {part: getattr(recipe.towers, part).train for part in PARTS}
    trained = adapter.check_parts(model, modes, part_of, "towers")

    # Of a tower with LoRA every layer that can have it.
    bare = [
        name
        for name in linear_layers(model)
        if not name.endswith(".base_layer") and ".lora_" not in name and modes[part_of(name)] == "lora"
    ]
    if bare:
        raise AdapterError(f"{bare[0].removeprefix(WRAPPER)}: a linear layer without LoRA in a tower that trains by it")
    return trained


def dead_pairs(model: nn.Module) -> list[str]:
    """The layers whose LoRA has no gradient at all, by their names in the base; none may, after any backward pass.

    Not the part but each pair of lora_A and lora_B is looked at: of a layer that another module computes with, without
    calling it, the adapter is there and never used.
    """
    alive: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        layer, lora, _ = name.partition(".lora_")
        if lora and parameter.requires_grad:
            has = parameter.grad is not None and bool(parameter.grad.any())
            alive[layer] = alive.get(layer, False) or has
    return [layer.removeprefix(WRAPPER) for layer, has in alive.items() if not has]


def linear_layers(model: nn.Module) -> list[str]:
    """The linear layers that LoRA can be laid on: those that are called, which no nn.MultiheadAttention does."""
    modules = dict(model.named_modules())
    attentions = [module for module in modules.values() if isinstance(module, nn.MultiheadAttention)]
    within = {inner for attention in attentions for inner in attention.modules()}
    return [name for name, module in modules.items() if isinstance(module, nn.Linear) and module not in within]


def _settings(config: DualEncoderConfig) -> dict[str, Any]:
    """The fields of a config that say what is computed, those of its towers by dotted names."""
    free = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path")
    fields: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        if isinstance(value, dict | PretrainedConfig):
            inner = value if isinstance(value, dict) else value.to_dict()
            fields |= {f"{key}.{name}": inner[name] for name in inner if name not in free}
        elif key not in free:
            fields[key] = value
    return fields


def _copied(name: str) -> str:
    """What a parameter is called in PEFT's copy of the module that it lies in."""
    module, _, rest = name.partition(".")
    return f"{module}.modules_to_save.default.{rest}"


def _fixed(name: str, model: PeftModel) -> bool:
    dual = model.get_base_model()
    assert isinstance(dual, DualEncoder)
    return name.removeprefix(WRAPPER) in (*dual.images.fixed, *dual.texts.fixed)
