"""What two towers minimise: one file for each objective, a loss over one whole batch of images and their texts.

Every objective gets the features of all ranks and chunks at once, so that its value and gradient depend on neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

POSITIVE, IGNORED, NEGATIVE = 1, 0, -1


@dataclass(frozen=True, slots=True)
class Features:
    """What the towers made of a batch of B images with N texts in all (an image's texts stand together), fp32."""

    images: torch.Tensor  # float32[B, D], of length one
    texts: torch.Tensor  # float32[N, D], of length one
    scale: torch.Tensor  # float32[], what cosines are multiplied by
    bias: torch.Tensor | None = None  # float32[], of siglip
    local: torch.Tensor | None = None  # float32[N, D], from `Objective.local`, of each text and its own image's patches


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which text is whose, and what every image is to every text."""

    owner: torch.Tensor  # int64[N], the image of each text
    aspect: torch.Tensor  # int64[N], index in data.texts' Aspect: caption, ontology, concepts, sentence
    relation: torch.Tensor  # int8[B, N], POSITIVE (an image's own texts always are), IGNORED or NEGATIVE
    similarity: torch.Tensor | None = None  # float32[B, N], of diagnoses in the ontology, for make-ontology


class Objective(ABC):
    """One loss over a whole batch."""

    needs_patches: ClassVar[bool] = False  # whether `local` is to be called

    @abstractmethod
    def loss(self, features: Features, pairing: Pairing, progress: float) -> torch.Tensor:
        """float32[], differentiable by every feature.

        Args:
            progress: the share of the training that is done, 0 to 1.
        """

    def local(self, patches: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """float32[n, D], the features that some texts attend to in the patches float32[b, P, D] of their own images."""
        raise NotImplementedError
