"""The loss of one batch over all ranks and every gradient of it, with the activations of a few images at a time.

The batch is encoded without activations; the loss and the gradient of the features are computed once, over the features
of all ranks; then each chunk is encoded again, its random numbers the same, and the features' gradient goes through it
(GradCache; Gao et al. 2021, arXiv:2101.06983). So what is in memory at a time decides neither the loss nor a gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from skinvl.model import ranks
from skinvl.model.dual import DualEncoder
from skinvl.model.dual_batch import DualBatch, relation
from skinvl.model.dual_inputs import TextTokenizer
from skinvl.model.objectives import Features, Objective, Pairing
from skinvl.model.objectives.make_ontology import tree_similarity
from skinvl.recipe.towers import Negatives

FEW = 16  # texts that are encoded together however their lengths differ


@dataclass(frozen=True, slots=True)
class Whole:
    """What a batch came to, over all ranks and the same on each."""

    loss: torch.Tensor  # float32[], without graph
    features: Features  # without graph
    pairing: Pairing
    tally: Counter[str]  # pairs beside an image's own texts that are no negatives, by reason and what they became


@dataclass(frozen=True, slots=True)
class CachedGradients:
    """A dual encoder and how batches go through it.

    `at_once` images, and as many texts, are encoded together; where a rank has no more images than that, the
    activations of all its chunks are kept and nothing is encoded twice.
    """

    model: DualEncoder  # as it is, under no wrapper that would look after its gradients; LoRA may be in it
    tokenizer: TextTokenizer
    objective: Objective
    negatives: Negatives
    at_once: int
    autocast: Callable[[], AbstractContextManager[Any]]

    def gradients(self, batch: DualBatch, progress: float) -> Whole:
        """What the batches of all ranks come to; adds the gradient of its loss to `.grad` of all that trains.

        The gradients are whole on every rank: summed over the ranks, not averaged, so that `.grad` is to be empty
        before. A loss that is not finite leaves it empty.

        Args:
            batch: that of this rank, on the model's device; it may hold no image while others do.
            progress: the share of the training that is done, 0 to 1.
        """
        encoded = self._encode(batch, keep=True)
        whole, gradients = self._loss(batch, encoded, progress, differentiate=True)
        if gradients is None:
            return whole

        # Images first, since what attends to their patches sends some of its gradient on to the texts.
        if encoded.images and encoded.images[-1].chunk.trains:
            for images in reversed(encoded.images):
                local = [] if gradients.local is None else [gradients.local[images.local]]
                images.chunk.backward([gradients.images[images.rows], *local])
        if encoded.texts and encoded.texts[-1].chunk.trains:
            at_distinct = torch.zeros_like(encoded.distinct).index_add_(0, batch.text, gradients.texts)
            if encoded.distinct.grad is not None:
                at_distinct += encoded.distinct.grad
            for texts in reversed(encoded.texts):
                texts.chunk.backward([at_distinct[texts.numbers]])
        ranks.sum_gradients([weight for weight in self.model.parameters() if weight.requires_grad])
        return whole

    @torch.no_grad()
    def evaluated(self, batch: DualBatch, progress: float) -> Whole:
        """What the batches of all ranks come to, as `gradients`, without any."""
        return self._loss(batch, self._encode(batch, keep=False), progress, differentiate=False)[0]

    def positions(self, batch: DualBatch) -> int:
        """How many positions the text tower computes for a batch, once."""
        if not self.tokenizer.trims:
            return len(batch.texts) * self.tokenizer.length
        return sum(len(numbers) * len(batch.texts[numbers[-1]]) for numbers in self.text_chunks(batch))

    def text_chunks(self, batch: DualBatch) -> list[torch.Tensor]:
        """int64[n] each, which of a batch's distinct texts are encoded together: such as are about equally long."""
        return text_chunks([len(ids) for ids in batch.texts], self.at_once, trims=self.tokenizer.trims)

    def _encode(self, batch: DualBatch, *, keep: bool) -> _Encoded:
        """The features of this rank; with `keep` its last chunks, or all where they are few, can be differentiated."""
        device = batch.text.device
        direct = len(batch.pixels) <= self.at_once

        # Texts before images, whose patches may attend to them.
        texts, outputs = [], []
        numbered = self.text_chunks(batch)
        for numbers in numbered:
            chunk = _Chunk(self._text_forward(batch, numbers.tolist()), device)
            outputs += chunk.run(keep=keep and (direct or numbers is numbered[-1]))
            texts.append(_Texts(chunk, numbers.to(device)))
        distinct = _rows(outputs, device)
        if texts:
            distinct = distinct[torch.cat([each.numbers for each in texts]).argsort()]
            distinct.requires_grad_(texts[-1].chunk.trains)

        images: list[_Images] = []
        embeddings: list[torch.Tensor] = []
        local: list[torch.Tensor] = []
        for start in range(0, len(batch.pixels), self.at_once):
            rows = slice(start, min(start + self.at_once, len(batch.pixels)))
            chunk = _Chunk(self._image_forward(batch, distinct, rows), device)
            embedded, *attended = chunk.run(keep=keep and (direct or rows.stop == len(batch.pixels)))
            before = images[-1].local.stop if images else 0
            embeddings.append(embedded)
            local += attended
            images.append(_Images(chunk, rows, slice(before, before + sum(map(len, attended)))))
        every_local = _rows(local, device) if self.objective.needs_patches else None
        return _Encoded(texts, distinct, images, _rows(embeddings, device), every_local)

    def _text_forward(self, batch: DualBatch, numbers: list[int]) -> Callable[[], list[torch.Tensor]]:
        def forward() -> list[torch.Tensor]:
            ids, mask = self.tokenizer.pad([batch.texts[number] for number in numbers])
            with self.autocast():
                return [self.model.encode_texts(ids.to(batch.text.device), mask.to(batch.text.device))]

        return forward

    def _image_forward(self, batch: DualBatch, distinct: torch.Tensor, rows: slice) -> Callable[[], list[torch.Tensor]]:
        patches = self.objective.needs_patches

        def forward() -> list[torch.Tensor]:
            with self.autocast():
                images = self.model.encode_images(batch.normalised(rows), patches=patches)
            if images.patches is None:
                return [images.embeddings]
            own = (batch.owner >= rows.start) & (batch.owner < rows.stop)
            texts = distinct[batch.text[own]]
            return [images.embeddings, self.objective.local(images.patches, texts, batch.owner[own] - rows.start)]

        return forward

    def _loss(
        self, batch: DualBatch, encoded: _Encoded, progress: float, *, differentiate: bool
    ) -> tuple[Whole, _AtFeatures | None]:
        """The loss over all ranks, and its gradient at the features of this one; None where it is not finite.

        The gradient at the scale, which every rank computes, is added to `.grad` by the first alone.
        """
        images, own_images = ranks.gathered(encoded.embeddings)
        texts, own_texts = ranks.gathered(encoded.distinct.detach()[batch.text])
        local, own_local = (None, slice(0)) if encoded.local is None else ranks.gathered(encoded.local)
        pairing, tally = self._pairing(batch)
        whole = Features(images, texts, self.model.scale.value().detach(), None, local)

        leaves = [
            tensor.detach().requires_grad_(differentiate) for tensor in (images, texts, local) if tensor is not None
        ]
        scale, bias = self.model.scale.value(), self.model.scale.bias
        loss = self.objective.loss(Features(leaves[0], leaves[1], scale, bias, *leaves[2:]), pairing, progress)
        reached = Whole(loss.detach(), whole, pairing, tally)
        if not differentiate or not loss.isfinite():
            return reached, None

        weights = [weight for weight in self.model.scale.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(loss, [*leaves, *weights], allow_unused=True, materialize_grads=True)
        if ranks.index() == 0:
            for weight, gradient in zip(weights, gradients[len(leaves) :], strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
        at_local = None if local is None else gradients[2][own_local]
        return reached, _AtFeatures(gradients[0][own_images], gradients[1][own_texts], at_local)

    @torch.no_grad()
    def _pairing(self, batch: DualBatch) -> tuple[Pairing, Counter[str]]:
        """What every image of all ranks is to every text, and how many pairs are no negatives, by reason."""
        keys, own = ranks.gathered(batch.keys)
        owner, aspect, text_keys = (
            ranks.gathered(rows)[0] for rows in (batch.owner + own.start, batch.aspect, batch.text_keys)
        )
        tally: Counter[str] = Counter()
        related = relation(keys, owner, text_keys, self.negatives, tally)
        similarity = None
        if self.objective.needs_ontology:
            similarity = tree_similarity(ranks.gathered(batch.paths)[0])[:, owner]
        return Pairing(owner, aspect, related, similarity), tally


def text_chunks(lengths: Sequence[int], at_once: int, *, trims: bool) -> list[torch.Tensor]:
    """int64[n] each, which texts of these lengths are encoded together: such as are about equally long.

    Args:
        at_once: most texts of a chunk.
        trims: whether a text runs at its own length; else all are equally long.
    """
    sizes = torch.as_tensor(lengths, dtype=torch.int64)
    order = sizes.argsort(stable=True)
    if not trims:
        return list(torch.split(order, at_once)) if len(order) else []
    chunks, start = [], 0
    for end in range(1, len(order) + 1):
        # Texts a quarter longer than the shortest go apart, once there are enough to keep a processor busy.
        if (
            end == len(order)
            or end - start == at_once
            or (end - start >= min(FEW, at_once) and sizes[order[end]] > 1.25 * sizes[order[start]])
        ):
            chunks.append(order[start:end])
            start = end
    return chunks


@dataclass(frozen=True, slots=True)
class _AtFeatures:
    """The gradient of the loss at the features of one rank."""

    images: torch.Tensor  # float32[b, D]
    texts: torch.Tensor  # float32[n, D]
    local: torch.Tensor | None  # float32[r, D]


@dataclass(frozen=True, slots=True)
class _Texts:
    """Distinct texts that are encoded together."""

    chunk: _Chunk
    numbers: torch.Tensor  # int64[n], which of the batch's distinct texts they are


@dataclass(frozen=True, slots=True)
class _Images:
    """Images that are encoded together."""

    chunk: _Chunk
    rows: slice  # of the batch's images
    local: slice  # of the rows of `Objective.local`


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What the batch of one rank was encoded to, chunk by chunk."""

    texts: list[_Texts]
    distinct: torch.Tensor  # float32[t, D], a leaf, to which what attends to patches adds its gradient
    images: list[_Images]
    embeddings: torch.Tensor  # float32[b, D]
    local: torch.Tensor | None  # float32[r, D]


class _Chunk:
    """A forward that can be run again with the same random numbers (dropout, drop path)."""

    def __init__(self, forward: Callable[[], list[torch.Tensor]], device: torch.device) -> None:
        self._forward = forward
        self._devices = [device] if device.type == "cuda" else []
        self._random: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] | None = None
        self.trains = False  # whether a gradient goes through it, known where its activations are kept

    def run(self, *, keep: bool) -> list[torch.Tensor]:
        """What it makes, without graph.

        Args:
            keep: whether the activations stay in memory, so that `backward` has not to make them again.
        """
        if not keep:
            self._random = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]
        with torch.set_grad_enabled(keep):
            outputs = self._forward()
        if keep:
            self._outputs = outputs
            self.trains = any(output.requires_grad for output in outputs)
        return [output.detach() for output in outputs]

    def backward(self, gradients: Sequence[torch.Tensor]) -> None:
        """Adds to `.grad` what comes of the gradients at what it makes."""
        outputs, self._outputs = self._outputs, None
        if outputs is None:
            with torch.random.fork_rng(self._devices):
                torch.set_rng_state(self._random[0])
                for device, state in zip(self._devices, self._random[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
                outputs = self._forward()
        pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def _rows(chunks: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    return torch.cat(list(chunks)) if chunks else torch.zeros(0, 0, device=device)
