"""InfoNCE in both directions, each positive against true negatives only.

Of B images and N texts, S[i, n] = scale · cos(image i, text n); P are the positive pairs, and

    ℓ_i→t(i, n) = −log( exp S[i, n] / (exp S[i, n] + Σ exp S[i, m] over the texts m that are negatives of image i) )
    ℓ_t→i(i, n) = −log( exp S[i, n] / (exp S[i, n] + Σ exp S[j, n] over the images j that are negatives of text n) )

Other positives and ignored pairs are in no denominator. Every text has a weight of one, which the images it is a
positive of share equally: w(i, n) = 1 / |{j: (j, n) in P}|, so that Σ_P w = N and

    loss = ½ · (Σ_P w·ℓ_i→t + Σ_P w·ℓ_t→i) / N

So an image counts by how many texts it has. Where the same text stands at k images, each of them has k pairs with it
of weight 1/k: together what its own would be alone, so that copies add nothing but leave the denominators. With one
text an image and no equal ones this is open_clip's ClipLoss. A row for each positive pair, with the images of the batch
each once and the texts with their copies as candidates, gives the same value and gradients; here the sums of the
negatives are taken once for each image and text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch.nn import functional

from skinvl.model.objectives import NEGATIVE, POSITIVE, Features, Objective, Pairing
from skinvl.recipe import towers


class ClipLoss(Objective):
    """Symmetric InfoNCE; `released` knows no positives but an image's own texts, as DermLIP's code does."""

    def __init__(self, *, released: bool) -> None:
        self.released = released

    def _loss(self, features: Features, pairing: Pairing, progress: float) -> torch.Tensor:
        if self.released:
            pairing = only_own(pairing)

        logits = features.scale * features.images @ features.texts.T
        pairs = Positives.of(pairing.relation)
        to_texts, to_images = info_nce(logits, pairing.relation, pairs)
        return 0.5 * (mean(to_texts, pairs.share) + mean(to_images, pairs.share))


def build(settings: towers.Objective) -> ClipLoss:
    """The objective of a recipe."""
    return ClipLoss(released=settings.released)


@dataclass(frozen=True, slots=True)
class Positives:
    """The P positive pairs of a batch."""

    images: torch.Tensor  # int64[P]
    texts: torch.Tensor  # int64[P]
    share: torch.Tensor  # float32[P], of the text's weight of one, w in the formulas above

    @classmethod
    def of(cls, relation: torch.Tensor) -> Self:
        """The positive pairs of int8[B, N]."""
        images, texts = (relation == POSITIVE).nonzero(as_tuple=True)
        number = torch.bincount(texts, minlength=relation.shape[1])
        return cls(images, texts, 1 / number[texts])


def info_nce(logits: torch.Tensor, relation: torch.Tensor, pairs: Positives) -> tuple[torch.Tensor, torch.Tensor]:
    """ℓ_i→t and ℓ_t→i, float32[P] each, of the pairs, from the logits float32[B, N]."""
    # What is no negative is as good as absent, but finite: an image without negatives has a loss of 0, no NaN.
    negatives = logits.masked_fill(relation != NEGATIVE, absent(logits))
    own = logits[pairs.images, pairs.texts]

    # −log(e^own / (e^own + Σ e^negatives)) without the cancellation that a difference of two logarithms has.
    to_texts = functional.softplus(negatives.logsumexp(dim=1)[pairs.images] - own)
    to_images = functional.softplus(negatives.logsumexp(dim=0)[pairs.texts] - own)
    return to_texts, to_images


def mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """float32[], the weighted mean; 0 if nothing weighs."""
    return (weights * losses).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)


def absent(logits: torch.Tensor) -> float:
    """A logit so low that it adds nothing to a sum of exponentials."""
    return torch.finfo(logits.dtype).min / 2


def only_own(pairing: Pairing) -> Pairing:
    """The pairing in which every text of another image is a negative."""
    relation = torch.full_like(pairing.relation, NEGATIVE)
    relation[pairing.owner, torch.arange(len(pairing.owner), device=relation.device)] = POSITIVE
    return replace(pairing, relation=relation)
