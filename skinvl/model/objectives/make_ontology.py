"""MAKE with soft targets by the tree of diagnoses: what is nearly right counts as partly right.

The targets of a positive pair (i, n), among itself and the texts m that are negatives of image i (likewise, of text n,
among the images):

    y = (1 − β) · onehot(n) + β · softmax_m(d(i, m) / 0.07),        β = soft · ½ (1 + cos(π · progress))

d is the similarity of the two images' diagnoses in the tree, `tree_similarity`, and 1 of the pair itself; β falls from
`soft` to 0. ℓ is then the cross-entropy to y in both directions, in which both, as published, weigh by the
diagnosis-guided weights u. With β = 0 that is the loss of make.py, its t→i part weighted.

The sums over negatives are taken once for each image and text: with Z = Σ exp((d(i, m) − 1) / 0.07) and
U = Σ exp((d(i, m) − 1) / 0.07) · S[i, m] over them, the cross-entropy is ℓ_i→t(i, n) + β · (Z · S[i, n] − U) / (1 + Z).

**released: true** is make.py's, with these targets among all texts of the batch, an image's own at d = 1.
"""

from __future__ import annotations

import math

import torch

from skinvl.model.objectives import NEGATIVE, Objective, Pairing
from skinvl.model.objectives.clip import Positives, info_nce, mean
from skinvl.model.objectives.make import MakeLoss, ReleasedMakeLoss
from skinvl.recipe import towers

TEMPERATURE = 0.07


class SoftTargets(MakeLoss):
    """What MAKE has to know for targets by the tree of diagnoses."""

    needs_ontology = True

    def __init__(self, settings: towers.Objective) -> None:
        super().__init__(settings)
        self.soft = settings.soft


class MakeOntologyLoss(SoftTargets):
    """MAKE with targets that fall off with the distance in the tree of diagnoses."""

    def contrast(self, logits: torch.Tensor, pairing: Pairing, weights: torch.Tensor, progress: float) -> torch.Tensor:
        """float32[], the loss of the logits float32[B, N] with the weights float32[N] of the texts."""
        assert pairing.similarity is not None
        pairs = Positives.of(pairing.relation)
        to_texts, to_images = info_nce(logits, pairing.relation, pairs)

        # What the soft part of the targets adds, from sums over the negatives of each image and each text.
        nearness = ((pairing.similarity - 1) / TEMPERATURE).exp().to(logits.dtype)
        nearness = nearness * (pairing.relation == NEGATIVE)
        drawn = nearness * logits
        own = logits[pairs.images, pairs.texts]
        beta = share_of_soft(self.soft, progress)
        nearness_i, drawn_i = nearness.sum(dim=1)[pairs.images], drawn.sum(dim=1)[pairs.images]
        nearness_t, drawn_t = nearness.sum(dim=0)[pairs.texts], drawn.sum(dim=0)[pairs.texts]
        to_texts = to_texts + beta * (nearness_i * own - drawn_i) / (1 + nearness_i)
        to_images = to_images + beta * (nearness_t * own - drawn_t) / (1 + nearness_t)

        return mean(0.5 * (to_texts + to_images), pairs.share * weights[pairs.texts])


class ReleasedMakeOntologyLoss(SoftTargets, ReleasedMakeLoss):
    """The released MAKE with these targets."""

    def contrast(self, logits: torch.Tensor, pairing: Pairing, weights: torch.Tensor, progress: float) -> torch.Tensor:
        """float32[], the loss of the logits float32[B, N] with the weights float32[N] of the texts, 0 of empty ones."""
        assert pairing.similarity is not None
        images, texts = torch.arange(len(logits), device=logits.device), pairing.owner
        similarity = pairing.similarity.to(logits.dtype).masked_fill(images[:, None] == texts, 1)
        beta = share_of_soft(self.soft, progress)

        own = (1 - beta) * logits[texts, torch.arange(len(texts), device=logits.device)]
        nearness = similarity / TEMPERATURE
        to_texts = logits.logsumexp(dim=1) - beta * (nearness.softmax(dim=1) * logits).sum(dim=1)
        to_images = logits.logsumexp(dim=0) - beta * (nearness.softmax(dim=0) * logits).sum(dim=0)
        return mean(0.5 * (to_texts[texts] + to_images) - own, weights)


def build(settings: towers.Objective) -> Objective:
    """The objective of a recipe."""
    return ReleasedMakeOntologyLoss(settings) if settings.released else MakeOntologyLoss(settings)


def share_of_soft(soft: float, progress: float) -> float:
    """β, the share of the soft targets when so much of the training is done."""
    return soft * 0.5 * (1 + math.cos(math.pi * progress))


def tree_similarity(paths: torch.Tensor) -> torch.Tensor:
    """float32[B, B], how near the diagnoses of images are: the depth that two paths share over the longer path's.

    1 of the same diagnosis, 0 of diagnoses without a class in common and of an image without a path, to itself too.

    Args:
        paths: int64[B, depth], the classes of each image's diagnosis from the broadest to the disease, numbers that are
            the same for the same name; -1 after the last.
    """
    shared = torch.zeros(len(paths), len(paths), device=paths.device)
    together = torch.ones_like(shared, dtype=torch.bool)
    for level in paths.T:
        together &= (level[:, None] == level) & (level >= 0)
        shared += together

    depth = (paths >= 0).sum(dim=1)
    return shared / torch.maximum(depth[:, None], depth).clamp(min=1)
