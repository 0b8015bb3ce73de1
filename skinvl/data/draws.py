"""Which images an epoch shows, and in which batches: the same for any number of ranks and workers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from skinvl.data.sampler import draw_share
from skinvl.data.texts import TextedImage

T = TypeVar("T")


class BatchError(ValueError):
    """Images that cannot be compared with one another."""


class Draw(NamedTuple):
    """One image of an epoch: what decides how it is augmented, whoever loads it."""

    row: int  # among the images of the set
    epoch: int
    copy: int = 0  # how often the epoch has shown it before


class ImageSampler:
    """The Draws of one epoch, anew from (seed, epoch), as whole batches: what is left over is not shown.

    Weight w is ⌊w⌋ copies of a source and a share w − ⌊w⌋ of its groups, as for conversations. The copies of an image
    stand in different batches, as long as there are others. A batch is `batch` consecutive Draws, whatever the number
    of ranks, each of which takes its `part` of it.

    Raises:
        BatchError: an epoch has less than a batch.
    """

    def __init__(self, images: Sequence[TextedImage], seed: int, batch: int) -> None:
        self.seed, self.batch, self.epoch = seed, batch, 0
        self.pools = [(str(image.root), image.weight) for image in images]
        self.groups = [image.group for image in images]
        drawn = len(draw_share(self.pools, self.groups, random.Random(0)))
        self.length = drawn // batch * batch
        self.left_over = drawn - self.length  # images that an epoch does not show
        if not self.length:
            raise BatchError(
                f"batch.images: found {batch}, and an epoch has {drawn} images; set batch.images to {drawn} or less"
            )

    def set_epoch(self, epoch: int) -> None:
        """Has the next iteration draw this epoch. Called by the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        generator = random.Random(f"{self.seed}-{self.epoch}")
        indices = draw_share(self.pools, self.groups, generator)
        generator.shuffle(indices)
        copies: Counter[int] = Counter()
        for index in _apart(indices, self.batch)[: self.length]:
            yield Draw(index, self.epoch, copies[index])
            copies[index] += 1


def _apart(indices: Sequence[int], size: int) -> list[int]:
    """The indices in an order in which no `size` of them hold one twice, as long as there are others."""
    if len(set(indices)) == len(indices):
        return list(indices)
    ordered: list[int] = []
    coming, waiting = iter(indices), list[int]()
    while len(ordered) < len(indices):
        block: dict[int, None] = {}
        later = []
        for index in waiting:
            if index in block or len(block) == size:
                later.append(index)
            else:
                block[index] = None
        while len(block) < size and (index := next(coming, -1)) >= 0:
            if index in block:
                later.append(index)
            else:
                block[index] = None
        ordered += block
        waiting = later
        if len(block) < size:  # nothing is left but copies of what stands here
            return ordered + waiting
    return ordered


def part(batch: Sequence[T], rank: int, ranks: int) -> Sequence[T]:
    """What one of several ranks takes of a batch: consecutive, and at most one more than another rank."""
    return batch[len(batch) * rank // ranks : len(batch) * (rank + 1) // ranks]
