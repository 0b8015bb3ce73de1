"""Two towers opened: their config, tokenizer and pixels, then their weights, as published or as a run has left them."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn
from transformers import AutoConfig
from transformers import initialization as init
from typing_extensions import TypeVar

from skinvl.model import families, hub, open_clip, tiny_towers, towers, towers_adapter
from skinvl.model.base import attention_kernel
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.dual_inputs import ImageFormat
from skinvl.model.dual_inputs import PixelFormat as PixelFormat
from skinvl.model.dual_inputs import TextTokenizer as TextTokenizer
from skinvl.model.hub import BaseError, Snapshot
from skinvl.model.loaded import LIBRARIES
from skinvl.recipe.run import adapter_digest
from skinvl.recipe.towers import PretrainRecipe

F = TypeVar("F", bound=ImageFormat, default=PixelFormat)  # what its images go through


@dataclass(frozen=True, slots=True)
class OpenTowers(Generic[F]):
    """The two towers of a recipe without their weights: their files, and what those say."""

    recipe: PretrainRecipe
    files: Snapshot  # of the base
    path: Path  # the folder that the weights are read from: that of the base, converted if need be, or of a whole run
    config: DualEncoderConfig
    tokenizer: TextTokenizer
    pixels: F
    trained: Path | None = None  # the folder of what a run has trained, model/ or adapter/

    @property
    def facts(self) -> dict[str, Any]:
        """What the settings of every prediction hold of them."""
        image, text = self.config.image_and_text
        assert isinstance(self.pixels, PixelFormat)
        return {
            "base": {
                "model": self.recipe.base.location,
                "commit": self.files.commit,
                "model_type": f"{image.model_type} + {text.model_type}",
            },
            "adapter": adapter_digest(self.trained) if self.trained else None,
            "precision": "bf16" if self.recipe.bf16 else "fp32",
            "image_side": self.pixels.side,
            "profiles": self.pixels.profiles,
            "text_length": self.tokenizer.length,
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }


@dataclass(frozen=True, slots=True)
class LoadedTowers(Generic[F]):
    """Two towers that are asked, what they are given, and the facts that every prediction's settings hold of them."""

    model: nn.Module  # a DualEncoder, or the PeftModel around one
    tokenizer: TextTokenizer
    pixels: F
    recipe: PretrainRecipe
    facts: dict[str, Any]

    def autocast(self) -> torch.autocast:
        """The precision that they were trained in."""
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16)


def snapshot(recipe: PretrainRecipe, *, weights: bool = True) -> Snapshot:
    """The files of a recipe's base as they were published, or a tiny one built on the recipe's data."""
    if recipe.base.random is not None:
        return Snapshot(tiny_towers.ensure(recipe), None)
    return hub.fetch(recipe.base.location, recipe.base.revision, weights=weights, towers=True)


def open_towers(recipe: PretrainRecipe, *, weights: bool = True) -> OpenTowers:
    """The two towers that a recipe starts from: its base, with what `init_adapter` names, if it names something.

    A tiny base is built, and a checkpoint of open_clip converted, when it is first opened.

    Args:
        weights: whether files of weights are to be there too; a conversion needs them in any case.

    Raises:
        ModelError, BaseError: the base cannot be had, or is none of two towers.
        AdapterError: what was trained is not of this base, or not trained under the recipe's settings.
    """
    files = snapshot(recipe, weights=weights)
    path = files.path
    if open_clip.is_checkpoint(path):
        whole = files if weights else snapshot(recipe)
        quick_gelu, sources = recipe.base.quick_gelu, recipe.data.train
        path = open_clip.converted(whole, recipe.base.name, quick_gelu=quick_gelu, sources=sources)
    config = read_config(path)
    trained = None
    if recipe.init_adapter is not None:
        trained = hub.fetch(recipe.init_adapter, None, weights=True, what="init_adapter", towers=True).path
        if (trained / "adapter_config.json").is_file():
            towers_adapter.require_same_settings(trained, recipe)
        else:
            towers_adapter.require_same_towers(trained, read_config(trained), config, recipe)
            path = trained

    # A run saves what its texts and images went through beside its weights.
    inputs = trained if trained is not None and (trained / "tokenizer_config.json").is_file() else path
    image, text = config.image_and_text
    images, texts = towers.of_image(image.model_type), towers.of_text(text.model_type)
    tokenizer = TextTokenizer.read(inputs, config.text_length, texts)
    require_fit(tokenizer, config, inputs)
    pixels = PixelFormat.read(inputs, images.side(image), recipe.data.profiles)
    return OpenTowers(recipe, files, path, config, tokenizer, pixels, trained)


def read_config(path: Path) -> DualEncoderConfig:
    """The config of the two towers in a folder: of ours, or of a pair that transformers has a class for.

    Raises:
        BaseError: neither.
    """
    config = AutoConfig.from_pretrained(path)
    if isinstance(config, DualEncoderConfig):
        return config
    try:
        family = towers.of_published(config.model_type)
    except ValueError as error:
        if config.model_type in families.names():
            raise BaseError(
                f"base {path}: a vision-language model ({config.model_type}), and taken for two towers; give "
                f"base={{name: {path.name}, kind: vlm, model: {path}}} to train its own vision tower"
            ) from error
        raise BaseError(f"base {path}: {error}") from error
    return DualEncoderConfig(**family.settings(config))


def require_fit(tokenizer: TextTokenizer, config: DualEncoderConfig, folder: Path) -> None:
    """Refuses a tokenizer that is not the text tower's.

    Raises:
        BaseError: it has more tokens than the tower, or does not end a text as the tower looks for it.
    """
    _, text = config.image_and_text
    ids = tokenizer(["a"])[0]
    if config.text_pooling == "eos" and config.eos_token_id not in ids:
        raise BaseError(
            f"base {folder}: its tokenizer ends a text with {ids[-1]}, and its text tower is read at the end-of-text "
            f"token {config.eos_token_id}; give a base with the tokenizer that it was trained with"
        )
    if len(tokenizer.tokenizer) > text.vocab_size:
        raise BaseError(
            f"base {folder}: its tokenizer has {len(tokenizer.tokenizer)} tokens, its text tower {text.vocab_size}; "
            "give a base with the tokenizer that it was trained with"
        )


def attention_of(recipe: PretrainRecipe, config: DualEncoderConfig) -> str:
    """The `attn_implementation` to load two towers with: as the recipe wants it, or PyTorch's own.

    Raises:
        ModelError: the wanted kernel is not to be had for one of them, or on this machine.
    """
    if recipe.attention == "auto":
        return "sdpa"  # flash-attention's own kernels gain nothing on rows this short
    image, text = config.image_and_text
    families = towers.of_image(image.model_type), towers.of_text(text.model_type)
    kernels = [attention_kernel(recipe.attention, family) for family in families]
    return kernels[0]


def read_model(opened: OpenTowers) -> DualEncoder:
    """The two towers of a folder with their weights, in fp32; without an adapter that is to be laid over them.

    Raises:
        BaseError: the files lack weights, which would be random.
    """
    kernel = attention_of(opened.recipe, opened.config)
    config = AutoConfig.from_pretrained(opened.path)
    kind: Any = DualEncoder
    if not isinstance(config, DualEncoderConfig):
        kind = towers.of_published(config.model_type).published[config.model_type]
    model, report = kind.from_pretrained(
        opened.path, dtype=torch.float32, attn_implementation=kernel, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise BaseError(
            f"base {opened.path}: {len(missing)} weights are not in its files (first: {missing[0]}); they would be "
            "random. Download the base again, or give one that is whole"
        )
    if isinstance(model, DualEncoder):
        return model

    # Of a published pair the tensors, by our names; each has its place.
    opened.config._attn_implementation = kernel
    with init.no_init_weights():
        dual = DualEncoder(opened.config)
    state = towers.of_published(config.model_type).renamed(model.state_dict())
    dual.load_state_dict(state, strict=True, assign=True)
    return dual


def load_towers(recipe: PretrainRecipe, device: torch.device) -> LoadedTowers:
    """The two towers of a recipe, with what `init_adapter` names, if it names something, ready to be asked.

    Raises:
        AdapterError: the adapter does not fit the base, or lacks weights that the recipe trains.
        BaseError: base or adapter cannot be had.
    """
    opened = open_towers(recipe)
    dual = read_model(opened)
    facts = {**opened.facts, "attention": dual.config._attn_implementation, "device": device.type}
    model: nn.Module = dual
    if opened.trained is not None and opened.trained != opened.path:
        model = towers_adapter.attach(dual, recipe)
        towers_adapter.require_whole(model, opened.trained)
    return LoadedTowers(model.to(device).eval(), opened.tokenizer, opened.pixels, recipe, facts)
