"""A base opened: its config, family and chat, then its weights, with an adapter or without, and the facts of it."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import AutoProcessor, PretrainedConfig, ProcessorMixin

from skinvl.model import adapter, attention, hub
from skinvl.model.base import autocast, load_base, read_config, snapshot
from skinvl.model.chat import Chat
from skinvl.model.families import Family
from skinvl.model.hub import Snapshot
from skinvl.model.pack import Collator
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.run import adapter_digest

LIBRARIES = ("skinvl", "torch", "transformers", "peft")  # that decide what a model answers


@dataclass(frozen=True, slots=True)
class OpenBase:
    """The base of a recipe without its weights: its files, what they say, and the chat by which it is asked."""

    recipe: Recipe
    files: Snapshot
    config: PretrainedConfig
    family: Family
    chat: Chat
    adapter: Path | None = None  # the folder of the one that is laid over it
    own_tokenizer: bool = True  # else one stands in, by which images count right, and texts do not

    @property
    def path(self) -> Path:
        """The folder of its files."""
        return self.files.path

    @property
    def facts(self) -> dict[str, Any]:
        """What the settings of every prediction hold of it."""
        recipe = self.recipe
        return {
            "base": {"model": recipe.base.location, "commit": self.files.commit, "model_type": self.config.model_type},
            "adapter": adapter_digest(self.adapter) if self.adapter else None,
            "quantization": recipe.quantization,
            "precision": recipe.precision,
            "template": xxhash.xxh3_128_hexdigest(self.chat.template.encode()),
            "image_tokens": recipe.data.image_tokens,
            "profiles": self.chat.profiles,
            "thoughts": recipe.data.thoughts,
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }


def open_base(recipe: Recipe, *, weights: bool = True) -> OpenBase:
    """The base of a recipe as its authors published it, whatever adapter the recipe names.

    Args:
        weights: whether files of weights are to be there too.

    Raises:
        BaseError: it cannot be had.
    """
    files = snapshot(recipe, weights=weights)
    return read_base(recipe, files, AutoProcessor.from_pretrained(files.path))


def open_with_adapter(recipe: Recipe) -> OpenBase:
    """The base of a recipe with its `init_adapter`, if it names one, and the template that this was trained with.

    Raises:
        AdapterError: the adapter's weights would mean something else under the recipe.
        BaseError: base or adapter cannot be had.
    """
    trained = fetched_adapter(recipe)
    if trained is None:
        return open_base(recipe)
    files = snapshot(recipe)
    saved = any((trained / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    processor = AutoProcessor.from_pretrained(trained if saved else files.path)
    return replace(read_base(recipe, files, processor), adapter=trained)


def fetched_adapter(recipe: Recipe) -> Path | None:
    """The folder of a recipe's `init_adapter`, if it names one.

    Raises:
        AdapterError: its weights would mean something else under the recipe.
        BaseError: it cannot be had.
    """
    if recipe.init_adapter is None:
        return None
    trained = hub.fetch(recipe.init_adapter, None, weights=True, what="init_adapter").path
    adapter.require_same_settings(trained, recipe)
    return trained


def read_base(recipe: Recipe, files: Snapshot, processor: ProcessorMixin) -> OpenBase:
    """The base in a folder, with the processor that it is asked by."""
    config, family = read_config(files.path)
    chat = Chat(processor, family, **recipe.data.budget, profiles=recipe.data.profiles, thoughts=recipe.data.thoughts)
    return OpenBase(recipe, files, config, family, chat)


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
        return autocast(self.recipe, next(self.model.parameters()).device)


def load_model(recipe: Recipe, device: torch.device) -> LoadedModel:
    """The base of a recipe, with its `init_adapter` if it names one, ready to be asked.

    Raises:
        AdapterError: the adapter does not fit the base, or lacks weights that the recipe trains.
        BaseError: base or adapter cannot be had.
    """
    base = open_with_adapter(recipe)
    device_map = {"": device} if recipe.quantization else None
    loaded = load_base(base.path, base.family, recipe, device_map=device_map)
    facts = {**base.facts, "attention": attention.kernel_of(loaded), "device": device.type}

    # An adapter that lacks weights would be filled up with random ones.
    model: torch.nn.Module = loaded
    if base.adapter is not None:
        peft_model = adapter.attach(loaded, base.family, recipe)
        adapter.require_whole(peft_model, base.adapter)
        model = peft_model
    return LoadedModel(model.to(device).eval(), Collator(base.chat), recipe, facts)
