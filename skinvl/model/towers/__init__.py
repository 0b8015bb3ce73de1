"""What is peculiar to one family of two towers: one module each, with one `FAMILY`.

A family's file is the real architecture; apart from it, below, stands its tiny twin: what only a random base needs.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, processors
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


class TinyTowers(ABC):
    """The tiny random base of a family, its tokenizer trained on the spot."""

    SIZE: ClassVar[dict[str, Any]] = {  # of either tower
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    SQUARE: ClassVar[dict[str, Any]] = {"image_size": 112, "patch_size": 16}

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """A tokenizer that works as those of the published bases do, trained on some texts."""

    @abstractmethod
    def settings(self, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """The fields of a DualEncoderConfig in which every special path of the family exists, of 112 px."""

    @staticmethod
    def bounded(backend: Tokenizer, template: str, *tokens: str) -> None:
        """Has a tokenizer put tokens around each text, such as "[CLS] $A [SEP]"."""
        ends = [(token, backend.token_to_id(token)) for token in tokens]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)

    mean: tuple[float, float, float]  # of the published image processors
    std: tuple[float, float, float]
    crops: bool = True  # whether an image is cropped to a square; else squeezed into one


class TowerFamily(ABC):
    """One image tower, one text tower, and how those who published the pair have named what they hold."""

    model_type: str  # the name of its file
    image_types: tuple[str, ...]  # model_type of the configs of its image towers
    text_types: tuple[str, ...]  # and of its text towers
    published: ClassVar[dict[str, type[PreTrainedModel]]] = {}  # model_type of a published pair → its class
    names: ClassVar[dict[str, str]] = {}  # what its names begin with there → and here; the longest one holds
    before: int  # positions before an image's patches
    pools: tuple[str, ...] = ()  # modules of the image tower through which its pooled feature alone goes
    fixed: tuple[str, ...] = ()  # parameters that are part of the architecture and never train
    # Whether a text gives the same feature without the padding behind it: not where what is pooled stands there.
    trims: bool = True
    lower_case: bool = False  # whether its texts were all in lower case
    cleans: bool = True  # whether its texts were rid of typographic quotes, ligatures and entities, as open_clip does
    flash_attention: bool = True  # whether both towers can run on flash-attention kernels
    tiny: TinyTowers

    @abstractmethod
    def image_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """The image tower of a config, without what no embedding needs."""

    @abstractmethod
    def text_tower(self, config: PretrainedConfig) -> PreTrainedModel:
        """The text tower of a config, without what no embedding needs."""

    def side(self, config: PretrainedConfig) -> int:
        """The side of the square images that the image tower of a config was made for, in pixels."""
        side: int = config.image_size
        return side

    @abstractmethod
    def read_images(
        self, tower: PreTrainedModel, pixels: torch.Tensor, *, pool: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The positions float[B, T, W] of pixels float[B, 3, H, W], and if asked for the tower's own pooling of them.

        Pixels of another side than the config's have the positions of the patches interpolated, not that of CLS.
        """

    def pool(self, tower: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        """float[B, W], the tower's own pooling of positions float[B, T, W], where it has one."""
        raise NotImplementedError(f"{type(tower).__name__} has no pooling of its own")

    def settings(self, config: PretrainedConfig) -> dict[str, Any]:
        """The fields of a DualEncoderConfig that a published pair's config means."""
        raise NotImplementedError(f"nobody has published a {config.model_type}")

    def renamed(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a published pair by their names in a DualEncoder.

        Raises:
            KeyError: one that has no place here.
        """
        tensors = {}
        for name, tensor in state.items():
            prefix = max((prefix for prefix in self.names if name.startswith(prefix)), key=len)
            here = self.names[prefix] + name.removeprefix(prefix)
            tensors[here] = tensor.reshape(()) if here.startswith("scale.") else tensor
        return tensors


def names() -> list[str]:
    """The families that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> TowerFamily:
    """The family of a name.

    Raises:
        ValueError: no file for it; the message says which file to write.
    """
    if name not in names():
        raise ValueError(
            f"towers {name!r}: no such family; skinvl has {', '.join(names())}. "
            f"To add it write skinvl/model/towers/{name}.py with one FAMILY"
        )
    family: TowerFamily = importlib.import_module(f"{__name__}.{name}").FAMILY
    return family


@cache
def of_image(model_type: str) -> TowerFamily:
    """The family of an image tower's `model_type`."""
    return _first("image tower", model_type, {name: load(name).image_types for name in names()})


@cache
def of_text(model_type: str) -> TowerFamily:
    """The family of a text tower's `model_type`."""
    return _first("text tower", model_type, {name: load(name).text_types for name in names()})


@cache
def of_published(model_type: str) -> TowerFamily:
    """The family of a published pair's `model_type`."""
    return _first("pair of towers", model_type, {name: tuple(load(name).published) for name in names()})


def _first(what: str, model_type: str, types: dict[str, tuple[str, ...]]) -> TowerFamily:
    for name, own in types.items():
        if model_type in own:
            return load(name)
    known = ", ".join(sorted(known_type for own in types.values() for known_type in own))
    raise ValueError(f"model type {model_type!r}: not known as {what}; skinvl has {known}")
