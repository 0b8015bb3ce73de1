"""What is peculiar to one architecture: one module per Hugging Face `model_type`, each with one `FAMILY`.

A family's file is the real architecture; apart from it, below, stands its tiny twin: what only a random base needs.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils.generic import ModelOutput

Size = tuple[int, int]  # height, width in pixels

PAIRS = ("skinvl_dual_encoder", "clip", "siglip", "siglip2")  # model types of two towers
PARTS = ("language", "projector", "vision")


class ShapeError(ValueError):
    """An image that its family cannot bring within the budget without distorting it: too long for its width."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What an image of a known size becomes: nothing here needs its pixels.

    `grid` is the family's own: (t, h, w) in patches for the Qwen families, (rows, columns) of patches for mistral3, of
    tiles for mllama and internvl.
    """

    grid: tuple[int, ...]
    text_tokens: int  # positions the image takes in the language row
    vision_tokens: int  # positions that the vision tower computes


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How a chat template sets a thought apart from the answer after it, where a model may have one.

    An answer with its thought is `turn_open`, `opening`, the thought, `closing`, the answer; one without is
    `turn_open`, `absent`, the answer. What a model is asked ends with `turn_open`.
    """

    turn_open: str
    opening: str  # empty where the template, not the model, begins the thought
    closing: str
    absent: str = ""
    marks: tuple[str, str] = ("<think>", "</think>")  # the tokens at which a thought begins and ends
    parser: str = ""  # vLLM's name for what tells it from the answer

    def with_thought(self, turn: dict[str, Any], thought: str) -> dict[str, Any]:
        """An assistant's turn with its thought where the template looks for it."""
        return {**turn, "reasoning_content": thought}


class TinyTwin(ABC):
    """The tiny random base of an architecture, its tokenizer trained on the spot: what no published base needs."""

    tokens: tuple[str, ...]  # the control tokens of the published tokenizers
    roles: ClassVar[dict[str, str]]  # which of them is "bos", "eos" and "pad", where the family has one
    template: str  # its turns in our own words, since there is no published template to follow

    @abstractmethod
    def config(self, tokenizer: Any) -> PretrainedConfig:
        """A config of a few million parameters in which every special path of the architecture exists."""

    @abstractmethod
    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        """The processor beside the config; 16 image tokens are a picture of about 112 x 112 px."""

    def prepare(self, model: PreTrainedModel) -> None:  # noqa: B027 - most families need nothing
        """Opens what starts shut in a new model of the architecture, so that a random one reads its images."""


class Family(ABC):
    """One architecture; `parts` maps each part of the model to the prefixes of its module names (longest wins)."""

    model_type: str
    image_token: str  # what the chat template writes for one image
    soft_token: str | None = None  # what stands in a row at each of its positions, where that is another token
    breaks: tuple[str, ...] = ()  # what stands among these at positions that show nothing of it: the ends of its rows
    turn_open: str  # what the chat template writes before an assistant's answer
    turn_close: str  # the end-of-turn token after it, trained with the answer
    first_turn: str | None = None  # what a conversation without a system turn begins with; None: a template may add one
    looks_ahead: bool = False  # whether an image's tokens see those of it that follow
    one_row: bool  # whether conversations about different images may stand in one row of a batch
    recurrent: bool = False  # whether layers carry a state along the row
    caches: bool = True  # whether reading an image's features is cheaper than computing them, so that it is the default
    flash_attention: bool  # whether the architecture can run on flash-attention kernels
    trims: bool = False  # whether the chat template trims what a turn says
    prefix_space: bool = False  # whether its tokenizer puts a space before any text, as SentencePiece's does
    thoughts: Thoughts | None = None  # how its chat template writes a thought before an answer; None: it has no place
    parts: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, tiny: TinyTwin) -> None:
        self.tiny = tiny

    def template(self, published: str, thinking: bool = False) -> str:
        """The chat template to use: the published one, with what it leaves to its caller settled where need be.

        Applied to its own result it changes nothing but what `thinking` decides.

        Args:
            thinking: whether answers may have thoughts; else `turn_open` is what stands before each of them.
        """
        return published

    def opens(self, template: str) -> str:
        """What a chat template, as `template` gives it, writes before an assistant's answer without a thought."""
        return self.turn_open

    def prepare_processor(self, processor: ProcessorMixin) -> None:  # noqa: B027 - most families need nothing
        """Sets what a published processor leaves out, or would do to images otherwise than in the base's training."""

    def spelled(self, text: str) -> str:
        """The text that the processor tokenises, with one token for each image, made of what the template writes."""
        return text

    def expanded(self, processor: ProcessorMixin, picture: Picture) -> list[int]:
        """The ids that stand for an image in a row, one for each of its `text_tokens`."""
        tokenizer: Any = processor.tokenizer
        return [tokenizer.convert_tokens_to_ids(self.soft_token or self.image_token)] * picture.text_tokens

    @abstractmethod
    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        """Arguments for the image processor that keep an image within `image_tokens` positions."""

    @abstractmethod
    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        """What the image processor will make of an image of this size.

        Raises:
            ShapeError: the image is too elongated for this image processor, or for the budget.
        """

    @abstractmethod
    def positions(self, processor: ProcessorMixin, ids: Sequence[int], pictures: Sequence[Picture]) -> torch.Tensor:
        """The `position_ids` of a conversation on its own, int64[T] or int64[3, T] (time, height, width)."""

    @abstractmethod
    def pixels(self, processor: ProcessorMixin, image: Any, image_arguments: dict[str, Any]) -> torch.Tensor:
        """What the vision tower reads of one RGB PIL image."""

    @abstractmethod
    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        """The model inputs beside `input_ids` and `attention_mask`; none where no row has an image.

        Args:
            ids: int64[B, T], right-padded, image tokens already expanded.
            pictures: the images of each of the B rows, in the order of their tokens; any row may have none.
            tensors: what becomes `pixel_values`: of each image its `pixels`, or what `encode` made of them.

        Raises:
            ValueError: a row's image tokens are not those of its images.
        """

    def batch(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        images: Sequence[Sequence[Any]],
        image_arguments: dict[str, Any],
    ) -> dict[str, torch.Tensor]:
        """The `inputs` of rows with these RGB PIL images."""
        pictures = [
            [self.picture(processor, (image.height, image.width), image_arguments) for image in row] for row in images
        ]
        tensors = [[self.pixels(processor, image, image_arguments) for image in row] for row in images]
        return self.inputs(processor, ids, pictures, tensors)

    @abstractmethod
    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        """The shape of what `encode` gives for an image."""

    @abstractmethod
    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        """All that leaves the vision tower for its projector, of one image: float[features]."""

    def encode_each(
        self, tower: PreTrainedModel, pictures: Sequence[Picture], pixels: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What `encode` gives for each of several images, which the tower may read together."""
        return [self.encode(tower, picture, each) for picture, each in zip(pictures, pixels, strict=True)]

    def shown(self, picture: Picture, features: torch.Tensor) -> torch.Tensor:
        """float[P, W], of an image's `features` the positions that show it, however many it has."""
        return features

    def unread(self, vision: PretrainedConfig) -> tuple[str, ...]:
        """The modules of the tower that nothing which leaves it for the projector has gone through."""
        return ()

    @abstractmethod
    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        """What the tower returns for a batch of images, given what `encode` made of them in place of their pixels."""

    @abstractmethod
    def without_tower(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config of the model without the layers that `read` does not need."""

    def branch(self, layer: int, config: PretrainedConfig) -> bool:
        """Whether a layer's cached keys stand in the language row, so that a branch takes only some of them."""
        return True

    def step(self, inputs: Mapping[str, torch.Tensor], rows: torch.Tensor, last: torch.Tensor) -> dict[str, Any]:
        """What the model needs beside ids and positions to go on by one token from these positions of these rows.

        Args:
            inputs: those of the batch in which the cache was filled.
            rows: int64[B].
            last: int64[B], the last position of each prompt in its row.
        """
        return {}

    def prepare(self, model: PreTrainedModel) -> None:  # noqa: B027 - most families need nothing
        """Hooks up whatever a loaded model needs so that the rows of a mixed batch do not touch one another.

        Called once, right after loading. It adds no parameter, and a single row runs as in the bare model.
        """

    def kernels(self, kernel: str) -> str | dict[str, str]:
        """What transformers is given as `attn_implementation` to load the architecture with a kernel."""
        return kernel

    def left_out(self, config: PretrainedConfig) -> str:
        """Which layers of the language model have nothing to adapt where others have; empty where all are alike."""
        return ""

    def within(self, tower: torch.nn.Module) -> list[torch.nn.Module]:
        """The modules of the projector that lie within the vision tower, those of a list one by one."""
        (vision,) = self.parts["vision"]
        inner = [name.removeprefix(vision + ".") for name in self.parts["projector"] if name.startswith(vision + ".")]
        modules: list[torch.nn.Module] = []
        for name in inner:
            module = tower.get_submodule(name)
            modules += module if isinstance(module, torch.nn.ModuleList) else [module]
        return modules

    @property
    def unquantised(self) -> list[str]:
        """The modules that stay as they are in a base that is loaded in 4 bits; all other linear layers do not.

        They are named in full: a bare suffix would leave some of their layers quantised.
        """
        return [name for part, names in self.parts.items() if part != "language" for name in names] + ["lm_head"]

    def quantises(self, name: str) -> bool:
        """Whether a linear layer of this name becomes one of 4 bits, where the base is loaded so."""
        return not any(name == module or name.startswith(module + ".") for module in self.unquantised)

    def part_of(self, name: str) -> str:
        """The part that a parameter or module name belongs to.

        Raises:
            KeyError: no part claims the name.
        """
        best = max(
            (
                (len(prefix), part)
                for part, prefixes in self.parts.items()
                for prefix in prefixes
                if name == prefix or name.startswith(prefix + ".")
            ),
            default=None,
        )
        if best is None:
            raise KeyError(f"{self.model_type}: no part of skinvl/model/families/{self.model_type}.py claims {name!r}")
        return best[1]


def names() -> list[str]:
    """The model types that have a family."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(model_type: str) -> Family:
    """The family of a `config.model_type`.

    Raises:
        ValueError: no file for it; the message says which file to write.
    """
    if model_type in PAIRS:
        raise ValueError(f"model type {model_type!r}: two towers, which answer nothing; skinvl pretrain trains them")
    if model_type not in names():
        raise ValueError(
            f"model type {model_type!r}: no such family; skinvl has {', '.join(names())}. "
            f"To add it write skinvl/model/families/{model_type}.py with one FAMILY (see CONTRIBUTING.md)"
        )
    family: Family = importlib.import_module(f"{__name__}.{model_type}").FAMILY
    return family
