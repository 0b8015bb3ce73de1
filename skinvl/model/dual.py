"""Two towers and their heads in one model: images and texts → embeddings of one space."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ImageEmbeddings:
    """What the image side makes of B images."""

    embeddings: torch.Tensor  # float32[B, D], of length one
    patches: torch.Tensor | None  # float32[B, P, D], each through the same head, of length one; None if not asked for
