"""Fits a sparse dictionary to embeddings: its step, its start, and what becomes of units that nothing activates.

Adam at 5e-4 on mean_d (x̃ − x̂)², with the decoder's columns kept at length one: before a step the gradient's part along
them is taken away, and after it they are made of that length again (Bricken et al. 2023, Towards Monosemanticity; the
released code of DermFM-Zero does the same).

A step of topk or batch-topk has two dense products, what the encoder finds and how the loss changes with each unit; the
rest touches only units that are active. benchmarks/concepts.py measures it beside the five of a dense autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import embedding_bag

from skinvl.data.progress import Progress
from skinvl.model.dictionary import Dictionary, Kind

L1 = 3e-5
ROUNDS = 20  # of a fit; after each of the first REVIVING the units that it left inactive are revived
REVIVING = 15
ALIKE = 0.5  # cosine from which a direction to begin with is as good as another


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a dictionary is fitted."""

    kind: Kind
    units: int
    k: int  # active units of an image, on average; of l1 unused
    steps: int
    batch: int  # images of a step
    learning_rate: float = 5e-4  # the released code's


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What a dictionary makes of a batch of n images in training."""

    embeddings: torch.Tensor  # float32[n, D], x̂
    units: torch.Tensor  # int64[M], of every active unit of every image
    values: torch.Tensor  # float32[M], how active it is
    loss: torch.Tensor  # float32[]


def fit(embeddings: torch.Tensor, settings: FitSettings, seed: int, say: Console) -> tuple[Dictionary, int]:
    """The dictionary of N embeddings float32[N, D], on their device, and how often a unit was revived.

    Of topk and batch-topk the embeddings are centred, and scaled to a mean square of 1 a number. A unit that no image
    of a twentieth of the steps activates is revived at its end, until three quarters are done: its direction becomes
    what the dictionary leaves unexplained of an image, drawn by the square of that, unless one drawn before is ALIKE;
    its encoder's half of that, and Adam forgets what it knew (after Bricken et al. 2023, whose fifth would hardly be
    among the largest k, as a whole would explain too much at once). The released code revives none in effect, nor does
    l1.
    """
    device = embeddings.device
    generator = torch.Generator().manual_seed(seed)
    dictionary = start(embeddings, settings, generator)
    adam = torch.optim.Adam(dictionary.parameters(), settings.learning_rate, fused=True)
    size = min(settings.batch, len(embeddings))
    seen, revived = torch.zeros(settings.units, dtype=torch.bool, device=device), 0
    ends = {settings.steps * round_ // ROUNDS for round_ in range(1, REVIVING + 1)}

    order, position = torch.empty(0, dtype=torch.int64), 0
    with Progress(f"seed {seed}", settings.steps, say) as progress:
        for number in range(1, settings.steps + 1):
            if position + size > len(order):
                order, position = torch.randperm(len(embeddings), generator=generator).to(device), 0
            scaled = dictionary.scaled(embeddings[order[position : position + size]])
            position += size
            seen[step(dictionary, adam, scaled).units] = True
            if number in ends and settings.kind != "l1":
                revived += revive(dictionary, adam, scaled, torch.nonzero(~seen)[:, 0], generator)
                seen.zero_()
            progress.advance(1)
    if settings.kind == "batch-topk":
        dictionary.threshold.copy_(_threshold(dictionary, embeddings, size, generator))
    return dictionary.requires_grad_(False), revived


def start(embeddings: torch.Tensor, settings: FitSettings, generator: torch.Generator) -> Dictionary:
    """A dictionary that has learned nothing: random directions of length one, which its encoder has too."""
    dictionary = Dictionary(embeddings.shape[1], settings.units, settings.kind, settings.k)
    with torch.no_grad():
        dictionary.directions.copy_(torch.randn(dictionary.directions.shape, generator=generator))
        normalise_(dictionary)
        dictionary.encoder.copy_(dictionary.directions)
        if settings.kind != "l1":
            mean = embeddings.mean(0)
            dictionary.mean.copy_(mean)
            dictionary.scale.copy_((embeddings - mean).square().mean().sqrt())
    return dictionary.to(embeddings.device)


def step(dictionary: Dictionary, adam: torch.optim.Optimizer, scaled: torch.Tensor) -> Reconstruction:
    """What one step of Adam on x̃ float32[n, D] saw; the directions are of length one after it."""
    adam.zero_grad()
    seen = forward(dictionary, scaled)
    seen.loss.backward()  # type: ignore[no-untyped-call]
    project_(dictionary)
    adam.step()
    normalise_(dictionary)
    return seen


def forward(dictionary: Dictionary, scaled: torch.Tensor) -> Reconstruction:
    """What the dictionary makes of x̃ float32[n, D], by its kind's rule in training, and the loss of that."""
    if dictionary.kind == "l1":
        active = torch.relu(dictionary.preactivations(scaled))
        rebuilt = active @ dictionary.directions + dictionary.bias
        loss = (scaled - rebuilt).square().mean() + L1 * active.sum(1).mean()
        units = (active.detach() > 0).nonzero()[:, 1]
        return Reconstruction(rebuilt, units, active.detach()[active.detach() > 0], loss)
    outcome: Any = _Sparse.apply(
        scaled,
        dictionary.bias,
        dictionary.encoder,
        dictionary.encoder_bias,
        dictionary.directions,
        dictionary.k,
        dictionary.kind == "batch-topk",
    )
    explained, units, values = outcome
    rebuilt = explained + dictionary.bias
    return Reconstruction(rebuilt, units, values, (scaled - rebuilt).square().mean())


@torch.no_grad()
def project_(dictionary: Dictionary) -> None:
    """Takes from the gradient of every direction its part along the direction."""
    directions, gradient = dictionary.directions, dictionary.directions.grad
    assert gradient is not None
    gradient.addcmul_(directions, (gradient * directions).sum(1, keepdim=True), value=-1)


@torch.no_grad()
def normalise_(dictionary: Dictionary) -> None:
    """Makes every direction of length one."""
    dictionary.directions.div_(dictionary.directions.norm(dim=1, keepdim=True))


@torch.no_grad()
def revive(
    dictionary: Dictionary,
    adam: torch.optim.Optimizer,
    scaled: torch.Tensor,
    dead: torch.Tensor,
    generator: torch.Generator,
) -> int:
    """How many of the units int64[m], the first of them, begin anew, each at an image of x̃ float32[n, D] of its own."""
    residual = scaled - forward(dictionary, scaled).embeddings
    weights = residual.square().sum(1).cpu()
    count = min(len(dead), int((weights > 0).sum()))
    if count == 0:
        return 0
    drawn = torch.multinomial(weights, count, generator=generator).to(scaled.device)
    directions = nn.functional.normalize(residual[drawn], dim=1)
    directions = directions[((directions @ directions.T).tril(-1) < ALIKE).all(1)]
    dead = dead[: len(directions)]
    dictionary.directions[dead] = directions
    dictionary.encoder[dead] = dictionary.directions[dead] / 2
    dictionary.encoder_bias[dead] = 0.0
    for parameter in (dictionary.directions, dictionary.encoder, dictionary.encoder_bias):
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[parameter][moment][dead] = 0.0
    return len(dead)


@torch.no_grad()
def _threshold(dictionary: Dictionary, embeddings: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """float32[], the mean over batches of the smallest activation that is kept (Bussmann et al. 2024, §3)."""
    order = torch.randperm(len(embeddings), generator=generator).to(embeddings.device)
    whole = len(order) // size * size  # the last batch may be small
    batches = [dictionary.scaled(embeddings[rows]) for rows in torch.split(order[:whole], size)]
    least = [values.min() for batch in batches if len(values := forward(dictionary, batch).values)]
    return torch.stack(least).mean() if least else dictionary.threshold


class _Sparse(torch.autograd.Function):
    """Σⱼ zⱼ dⱼ of the units that are kept, and which those are; what is not kept costs nothing but being found."""

    @staticmethod
    def forward(
        ctx: Any,
        scaled: torch.Tensor,
        bias: torch.Tensor,
        encoder: torch.Tensor,
        encoder_bias: torch.Tensor,
        directions: torch.Tensor,
        k: int,
        over_batch: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        centred = scaled - bias
        active = torch.addmm(encoder_bias, centred, encoder.T).relu_()
        places = _largest_of_batch(active, k) if over_batch else _largest_of_rows(active, k)
        values = active.view(-1)[places]
        rows, units = places // len(encoder), places % len(encoder)
        explained = _bags(directions, units, rows, values, len(scaled))
        ctx.save_for_backward(centred, encoder, directions, rows, units, values)
        ctx.mark_non_differentiable(units, values)
        return explained, units, values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        centred, encoder, directions, rows, units, values = ctx.saved_tensors
        gradient = gradients[0]
        by_unit = (gradient @ directions.T).view(-1)[rows * len(encoder) + units]

        # The same units, sorted: what each gathers from its images.
        order = units.argsort(stable=True)
        of, images = units[order], rows[order]
        to_directions = _bags(gradient, images, of, values[order], len(encoder))
        to_encoder = _bags(centred, images, of, by_unit[order], len(encoder))
        to_encoder_bias = torch.zeros_like(encoder[:, 0]).index_add_(0, units, by_unit)
        return None, -(to_encoder_bias @ encoder), to_encoder, to_encoder_bias, to_directions, None, None


def _bags(
    vectors: torch.Tensor, numbers: torch.Tensor, of: torch.Tensor, weights: torch.Tensor, count: int
) -> torch.Tensor:
    """float32[count, D]: for each owner the weighted sum of its vectors.

    Args:
        numbers: int64[M], which of the vectors float32[V, D].
        of: int64[M], whose, ascending.
        weights: float32[M].
    """
    starts = torch.searchsorted(of, torch.arange(count, device=of.device))
    return embedding_bag(numbers, vectors, starts, mode="sum", per_sample_weights=weights)


def _largest_of_rows(active: torch.Tensor, k: int) -> torch.Tensor:
    """int64[M ≤ n·k], the places in the flattened rows of the k largest of each that are above 0, ascending by row."""
    values, units = active.topk(k, dim=1, sorted=False)
    first = torch.arange(len(active), device=active.device)[:, None] * active.shape[1]
    return (units + first)[values > 0]


def _largest_of_batch(active: torch.Tensor, k: int) -> torch.Tensor:
    """int64[M], the places of the n·k largest of all n rows that are above 0, ascending; equals of the last too."""
    flat, count = active.view(-1), len(active) * k
    if flat.is_cuda:
        least = flat.topk(count, sorted=False).values.min()
        return ((flat >= least) & (flat > 0)).nonzero()[:, 0]
    host = flat.numpy()  # whose partition is ten times as fast as torch's on a CPU
    least = np.partition(host, len(host) - count)[len(host) - count]
    return torch.from_numpy(np.flatnonzero(host >= least if least > 0 else host > 0))
