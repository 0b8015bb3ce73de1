"""A sigmoid for each pair of an image and a text: is this text one of this image?

Of B images and N texts, S[i, n] = scale · cos(image i, text n) + bias, z[i, n] = 1 of a positive pair and −1 of a
negative one:

    loss = −(1 / B) · Σ log σ(z[i, n] · S[i, n]) over the pairs that are not ignored

The sum goes over all images and all texts of the whole batch and is divided by its images, not by its texts: with K
texts an image it is K times as large. With one text an image this is open_clip's SigLipLoss in one process.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from skinvl.model.objectives import Features, Objective, Pairing
from skinvl.model.objectives.clip import only_own
from skinvl.recipe import towers


class SiglipLoss(Objective):
    """Sigmoid loss; `released` knows no positives but an image's own texts."""

    def __init__(self, *, released: bool) -> None:
        self.released = released

    def _loss(self, features: Features, pairing: Pairing, progress: float) -> torch.Tensor:
        if self.released:
            pairing = only_own(pairing)

        logits = features.scale * features.images @ features.texts.T
        if features.bias is not None:
            logits = logits + features.bias
        labels = pairing.relation.to(logits.dtype)  # 0 of an ignored pair
        return -(labels.abs() * functional.logsigmoid(labels * logits)).sum() / len(logits)


def build(settings: towers.Objective) -> SiglipLoss:
    """The objective of a recipe."""
    return SiglipLoss(released=settings.released)
