"""What the ranks of one training tell each other: their rows, and the sum of their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

FLAT = 1 << 26  # numbers that are summed over the ranks at a time


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def index() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@torch.no_grad()
def gathered(rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """The rows of all ranks one after another, and which of them are this one's; a rank may have none.

    Args:
        rows: [n] or [n, W]; where n is 0, W does not matter.
    """
    if count() == 1:
        return rows, slice(0, len(rows))

    # How many rows each rank has, and how wide they are where there are any.
    own = torch.tensor([len(rows), rows.shape[1] if rows.dim() == 2 and len(rows) else 0], device=rows.device)
    sizes = [torch.empty_like(own) for _ in range(count())]
    dist.all_gather(sizes, own)
    numbers = [int(size[0]) for size in sizes]
    width = [max(int(size[1]) for size in sizes)] if rows.dim() == 2 else []

    # Collectives move tensors of one shape alone.
    padded = rows.new_zeros(max(numbers), *width)
    if len(rows):
        padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(parts, padded)
    before = sum(numbers[: index()])
    every = torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])
    return every, slice(before, before + len(rows))


@torch.no_grad()
def sum_gradients(weights: Sequence[torch.Tensor]) -> None:
    """Sums the gradients of weights over the ranks, a few flat tensors at a time; where there is none it is zero."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    if count() == 1:
        return
    bucket: list[torch.Tensor] = []
    for position, weight in enumerate(weights):
        assert weight.grad is not None
        bucket.append(weight.grad)
        following = weights[position + 1] if position + 1 < len(weights) else None
        if following is None or following.dtype != weight.dtype or sum(g.numel() for g in bucket) >= FLAT:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))
            bucket = []


@torch.no_grad()
def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks of values of one shape."""
    total = values.detach().clone()
    if count() > 1:
        dist.all_reduce(total)
    return total
