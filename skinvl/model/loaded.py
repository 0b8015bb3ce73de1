"""What is evaluated: a base, with the adapter of a run or without, as it was trained; and the settings that say so."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import AutoProcessor

from skinvl.model import adapter, attention, hub
from skinvl.model.base import load_base, read_config, snapshot
from skinvl.model.chat import Chat
from skinvl.model.families import Family
from skinvl.model.hub import Snapshot
from skinvl.model.pack import Collator
from skinvl.recipe.files import digest
from skinvl.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is asked, its chat, and the facts of it that every prediction's settings hold."""

    model: torch.nn.Module
    collator: Collator
    recipe: Recipe
    facts: dict[str, Any]

    @property
    def chat(self) -> Chat:
        """The chat of its base: the template, image budget and tokenizer that it was trained with."""
        return self.collator.chat

    def autocast(self) -> torch.autocast:
        """The precision that it was trained in."""
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16)


@dataclass(frozen=True, slots=True)
class Opened:
    """The files of what is evaluated: its base, the chat it was trained with, its adapter, and the facts of them."""

    base: Path
    family: Family
    chat: Chat
    adapter: Path | None
    facts: dict[str, Any]


def base_fingerprint(base: Snapshot) -> str:
    """What tells a base from any other: its commit, or of a local folder 32 hexadecimal digits, xxh3.

    Those of a folder are of its config and weights, whatever the folder is called; 20 GB take about ten seconds.
    """
    if base.commit is not None:
        return base.commit
    found = xxhash.xxh3_128()
    for file in sorted([base.path / "config.json", *base.path.glob("*.safetensors")]):
        found.update(f"{file.name} {digest(file)}\n".encode())
    return found.hexdigest()


def opened(recipe: Recipe) -> Opened:
    """Everything but the weights of a recipe's base, with its `init_adapter` if it names one.

    Raises:
        BaseError: base or adapter cannot be had.
    """
    base = snapshot(recipe)
    config, family = read_config(base.path)
    trained = None
    processor = base.path
    if recipe.init_adapter is not None:
        trained = hub.fetch(recipe.init_adapter, None, weights=True, what="init_adapter").path
        if any((trained / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
            processor = trained  # with the template it was trained with
    chat = Chat(AutoProcessor.from_pretrained(processor), family, **recipe.data.budget)
    facts = {
        "base": {"model": recipe.base.location, "commit": base.commit, "model_type": config.model_type},
        "adapter": digest(trained / "adapter_model.safetensors") if trained else None,
        "quantization": recipe.quantization,
        "precision": "bf16" if recipe.bf16 else "fp32",
        "template": xxhash.xxh3_128_hexdigest(chat.template.encode()),
        "image_tokens": recipe.data.image_tokens,
        "libraries": {name: importlib.metadata.version(name) for name in ("skinvl", "torch", "transformers", "peft")},
    }
    return Opened(base.path, family, chat, trained, facts)


def load_model(recipe: Recipe, device: torch.device) -> LoadedModel:
    """The base of a recipe, with its `init_adapter` if it names one, ready to be asked.

    Raises:
        AdapterError: the adapter does not fit the base, or lacks weights that the recipe trains.
        BaseError: base or adapter cannot be had.
    """
    found = opened(recipe)
    family = found.family
    loaded = load_base(found.base, family, recipe, device_map={"": device} if recipe.quantization else None)
    facts = {**found.facts, "attention": attention.kernel_of(loaded), "device": device.type}
    whole: torch.nn.Module = loaded
    if found.adapter is not None:
        attached = adapter.attach(loaded, family, recipe)
        adapter.require_whole(attached, found.adapter)
        whole = attached
    return LoadedModel(whole.to(device).eval(), Collator(found.chat, share=family.shares), recipe, facts)
