"""What two towers minimise: one file for each objective, a loss over one whole batch of images and their texts.

Every objective gets the features of all ranks and chunks at once, so that its value and gradient depend on neither.
A module has `build(settings) -> Objective`; its name is the recipe's `objective.name`, with _ for -.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from skinvl.recipe import towers

POSITIVE, IGNORED, NEGATIVE = 1, 0, -1
# Indices of data.texts' Aspect, and what stands in a place that has no text where an objective asks for `places`.
CAPTION, ONTOLOGY, CONCEPTS, SENTENCE, EMPTY = 0, 1, 2, 3, -1


@dataclass(frozen=True, slots=True)
class Features:
    """What the towers made of a batch of B images with N texts in all (an image's texts stand together), fp32."""

    images: torch.Tensor  # float32[B, D], of length one
    texts: torch.Tensor  # float32[N, D], of length one
    scale: torch.Tensor  # float32[], what cosines are multiplied by
    bias: torch.Tensor | None = None  # float32[], of siglip
    local: torch.Tensor | None = None  # float32[R, D], the rows of `Objective.local`, image after image


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which text is whose, and what every image is to every text."""

    owner: torch.Tensor  # int64[N], the image of each text; never falls
    aspect: torch.Tensor  # int64[N], index in data.texts' Aspect: caption, ontology, concepts, sentence; or EMPTY
    relation: torch.Tensor  # int8[B, N], POSITIVE (an image's own texts always are), IGNORED or NEGATIVE
    similarity: torch.Tensor | None = None  # float32[B, N], of diagnoses in the ontology, for make-ontology


class Objective(ABC):
    """One loss over a whole batch."""

    needs_patches: bool = False  # whether `local` is to be called
    needs_ontology: bool = False  # whether `Pairing.similarity` is to be there
    # How many texts of each aspect every image has, those that it lacks as empty texts of the aspect EMPTY; None: the
    # texts there are.
    places: tuple[int, ...] | None = None

    def loss(self, features: Features, pairing: Pairing, progress: float) -> torch.Tensor:
        """float32[], differentiable by every feature, computed in fp32 also under autocast.

        Args:
            progress: the share of the training that is done, 0 to 1.
        """
        with _without_autocast(features.images.device):
            wide = Features(
                _wide(features.images),
                _wide(features.texts),
                _wide(features.scale),
                None if features.bias is None else _wide(features.bias),
                None if features.local is None else _wide(features.local),
            )
            return self._loss(wide, pairing, progress)

    def local(self, patches: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """float32[r, D], what the loss has to know of the patches float32[b, P, D] of b images, image after image.

        The rows of chunks and ranks, one after another, are `Features.local`; they are differentiable by patches and
        by texts.

        Args:
            texts: float32[n, D], the texts of these images.
            owner: int64[n], the image of each text among these; never falls.
        """
        with _without_autocast(patches.device):
            return self._local(_wide(patches), _wide(texts), owner)

    @abstractmethod
    def _loss(self, features: Features, pairing: Pairing, progress: float) -> torch.Tensor: ...

    def _local(self, patches: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def load(settings: towers.Objective) -> Objective:
    """The objective of a recipe.

    Raises:
        ValueError: settings that contradict each other.
    """
    module = importlib.import_module(f"{__name__}.{settings.name.replace('-', '_')}")
    objective: Objective = module.build(settings)
    return objective


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within, nothing is cast; of the meta device, which a plan counts on, torch knows no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """The values in fp32, or in fp64 if they are: at 100 times a cosine bf16 has steps of a half."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
