"""MAKE: many texts of an image, sentences weighted by its diagnosis, and patches aligned with texts.

Of B images and N texts, with the pairs, weights w and losses ℓ of clip.py, and u[n] the diagnosis-guided weight of a
text,

    loss = ½ · (Σ_P w·u·ℓ_i→t / Σ_P w·u + Σ_P w·ℓ_t→i / Σ_P w) + local · alignment

**Weights.** Of the sentences n of an image that has an ontology text o: u[n] = exp(cos(o, n)) / max exp(cos(o, m)) over
its sentences m: a softmax at temperature 1 divided by its own maximum, through which no gradient flows. (Of several
ontology texts the cosines are averaged.) u = 1 of every other text, and of all texts with `weights: none`.

**Alignment.** Text n of image i attends to the patches p of its own image: a[p] = cos(p, n) where that is at least
sigma, else 0; v[n] = Σ a[p] · p / ‖a‖₂, whose length is left as it is. Then

    alignment = Σ u[n] · −log( exp(scale · v[n]·t[n]) / (exp(scale · v[n]·t[n]) + Σ exp(scale · v[n]·t[m])) ) / Σ u[n]

with m over the texts that are negatives of image i, and n over all texts but captions, which speak of the whole image.

**released: true** computes what the released code computes, for comparison. It wants 11 places an image (caption,
ontology, concepts, eight sentences), empty ones too, and differs so: all texts of the batch are in every denominator,
the image's other ones, equal ones and empty ones too; the weights and the alignment cut the texts, which stand image
after image, as if all captions came first, so that place k of image i is the text k·B + i of the batch, another
image's; each image has one v, from the text i of the batch; the alignment leaves out the first B texts, all
those of the first B/11 images, instead of the captions.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from skinvl.model.objectives import (
    CAPTION,
    EMPTY,
    NEGATIVE,
    ONTOLOGY,
    SENTENCE,
    Features,
    Objective,
    Pairing,
)
from skinvl.model.objectives.clip import Positives, absent, info_nce, mean
from skinvl.recipe import towers

BLOCK = 4096  # rows of the alignment's logits, float32[N, N] in all, that are in memory at a time


class MakeLoss(Objective):
    """Multi-aspect texts with diagnosis-guided weights, and local alignment."""

    def __init__(self, settings: towers.Objective) -> None:
        self.weighted = settings.weights == "diagnosis"
        self.alignment = settings.local
        self.sigma = settings.sigma
        self.needs_patches = settings.local > 0

    def _loss(self, features: Features, pairing: Pairing, progress: float) -> torch.Tensor:
        texts, owner = features.texts, pairing.owner
        weights = (
            diagnosis_weights(texts, pairing, len(features.images)) if self.weighted else texts.new_ones(len(texts))
        )

        # Many texts of an image.
        logits = features.scale * features.images @ texts.T
        loss = self.contrast(logits, pairing, weights, progress)
        if not self.needs_patches:
            return loss

        # Patches with texts: a row of logits for each text but the captions, in blocks that are computed again on the
        # way back, since N x N logits take more memory than all else here.
        assert features.local is not None
        rows = (pairing.aspect != CAPTION).nonzero()[:, 0]
        losses = [
            checkpoint(
                _align, features.scale, features.local[part], texts, part, pairing.relation, owner[part],
                use_reentrant=False, preserve_rng_state=False,
            )
            for part in torch.split(rows, BLOCK)
        ]  # fmt: skip
        return loss + self.alignment * mean(torch.cat(losses), weights[rows])

    def contrast(self, logits: torch.Tensor, pairing: Pairing, weights: torch.Tensor, progress: float) -> torch.Tensor:
        """float32[], the loss of the logits float32[B, N] with the weights float32[N] of the texts."""
        pairs = Positives.of(pairing.relation)
        to_texts, to_images = info_nce(logits, pairing.relation, pairs)
        return 0.5 * (mean(to_texts, pairs.share * weights[pairs.texts]) + mean(to_images, pairs.share))

    def _local(self, patches: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """v, float32[n, D], of each text."""
        # Texts of an image as rows of one matrix, padded to the most texts that an image has: no copy of its patches.
        counts = torch.bincount(owner, minlength=len(patches))
        column = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        queries = texts.new_zeros(len(patches), int(counts.max()), texts.shape[1]).index_put((owner, column), texts)

        return local_features(queries, patches, self.sigma)[owner, column]


class ReleasedMakeLoss(MakeLoss):
    """What MAKE's released code computes, of the same settings."""

    places = (1, 1, 1, 8)

    def _loss(self, features: Features, pairing: Pairing, progress: float) -> torch.Tensor:
        size, texts = len(features.images), features.texts
        valid = (pairing.aspect != EMPTY).view(size, sum(self.places))
        weights = self._weights(texts, valid) if self.weighted else torch.ones_like(valid, dtype=texts.dtype)
        weights = weights.flatten() * valid.flatten()

        logits = features.scale * features.images @ texts.T
        loss = self.contrast(logits, pairing, weights, progress)
        if not self.needs_patches:
            return loss

        # One v for an image, from the text of its number in the batch.
        assert features.local is not None
        patches = features.local.view(size, -1, features.local.shape[1])
        attended = local_features(texts[:size, None], patches, self.sigma)[:, 0]
        logits = features.scale * attended @ texts.T
        own = logits[pairing.owner, torch.arange(len(texts), device=texts.device)]
        losses = logits.logsumexp(dim=1)[pairing.owner] - own
        return loss + self.alignment * mean(losses[size:], weights[size:])

    def contrast(self, logits: torch.Tensor, pairing: Pairing, weights: torch.Tensor, progress: float) -> torch.Tensor:
        """float32[], the loss of the logits float32[B, N] with the weights float32[N] of the texts, 0 of empty ones."""
        own = logits[pairing.owner, torch.arange(len(weights), device=weights.device)]
        to_texts = logits.logsumexp(dim=1)[pairing.owner] - own
        to_images = logits.logsumexp(dim=0) - own
        return 0.5 * (mean(to_texts, weights) + mean(to_images, (pairing.aspect != EMPTY).to(weights.dtype)))

    def _local(self, patches: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """All patches, float32[b·P, D]: the text that an image attends with stands elsewhere in the batch."""
        return patches.flatten(0, 1)

    @torch.no_grad()
    def _weights(self, texts: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """float32[B, 11], from the texts of other images; only which of them count is the image's own."""
        places = texts.view(valid.shape[1], len(valid), -1)  # float32[11, B, D], cut as if all captions came first
        likeness = (places[SENTENCE:] * places[ONTOLOGY]).sum(dim=-1).T  # float32[B, 8]
        likeness = likeness.masked_fill(~valid[:, SENTENCE:], absent(likeness))
        guided = (likeness - likeness.amax(dim=1, keepdim=True)).exp()
        guided = guided.where(valid[:, ONTOLOGY, None], 1)
        return torch.cat([torch.ones_like(guided[:, :SENTENCE]), guided], dim=1)


def build(settings: towers.Objective) -> Objective:
    """The objective of a recipe."""
    return ReleasedMakeLoss(settings) if settings.released else MakeLoss(settings)


def local_features(queries: torch.Tensor, patches: torch.Tensor, sigma: float) -> torch.Tensor:
    """v, float32[B, K, D], of the K texts float32[B, K, D] of each image in its patches float32[B, P, D]."""
    likeness = queries @ patches.mT
    kept = likeness.where(likeness >= sigma, 0)
    return functional.normalize(kept, dim=-1) @ patches


@torch.no_grad()
def diagnosis_weights(texts: torch.Tensor, pairing: Pairing, images: int) -> torch.Tensor:
    """u, float32[N], of the texts float32[N, D] of so many images."""
    owner = pairing.owner
    ontology, sentence = pairing.aspect == ONTOLOGY, pairing.aspect == SENTENCE
    number = torch.bincount(owner[ontology], minlength=images)

    # The mean cosine of each text with the ontology texts of its image, and the highest of the image's sentences. Where
    # there is no ontology text all are 0, and the sentences weigh alike.
    summed = texts.new_zeros(images, texts.shape[1]).index_add(0, owner[ontology], texts[ontology])
    likeness = (texts * summed[owner]).sum(dim=1) / number[owner].clamp(min=1)
    highest = texts.new_full((images,), -1.0).scatter_reduce(
        0, owner[sentence], likeness[sentence], "amax", include_self=False
    )

    return (likeness - highest[owner]).exp().where(sentence, 1)


def _align(
    scale: torch.Tensor,
    attended: torch.Tensor,
    texts: torch.Tensor,
    rows: torch.Tensor,
    relation: torch.Tensor,
    owner: torch.Tensor,
) -> torch.Tensor:
    """The alignment's loss float32[r] of the r texts `rows` of the images `owner`, with their v float32[r, D]."""
    logits = scale * attended @ texts.T
    own = logits.gather(1, rows[:, None])[:, 0]
    others = logits.masked_fill(relation[owner] != NEGATIVE, absent(logits)).logsumexp(dim=1)
    return functional.softplus(others - own)
