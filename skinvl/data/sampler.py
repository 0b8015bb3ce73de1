"""Which conversations an epoch shows, and how often."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from skinvl.data import labels, references
from skinvl.data.mixture import NOTHING, Row

SOON = 64  # groups ahead among which a block looks for one that fits


class MixtureSampler:
    """Indices of one epoch, drawn anew from (seed, epoch): weights in whole groups, and facts in balance.

    Weight w is ⌊w⌋ copies of a source and a share w − ⌊w⌋ of its groups; the last group drawn is cut, so that every
    epoch has the same length. With `balance`, the conversations whose fact is known are drawn so that each of its
    values is equally frequent; those whose fact is unknown are kept as they are.

    Conversations about the same images stand together, whole within every `step` consecutive indices where they fit,
    and in there within every `batch`: what an optimizer step sees does not depend on how it is cut into batches and
    ranks. What is shown twice in an epoch is not shown twice together. With a step of 1 the shuffle is a plain one.

    Where `drawn`, an index says too which of its references a row is trained on, drawn by weight: see `row_of`.

    An epoch ends with NOTHING until it is a multiple of `multiple`, the rows that all ranks see at once: where one has
    no conversation left it trains on none, while accelerate alone would show it some a second time.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        seed: int,
        balance: str | None = None,
        *,
        multiple: int = 1,
        batch: int = 1,
        step: int = 1,
        drawn: bool = False,
    ) -> None:
        self.rows, self.seed, self.balance, self.batch, self.step = rows, seed, balance, batch, step
        self.drawn = drawn
        self.alike = alike(rows)
        self.epoch = 0
        shown = len(self._draw(random.Random(0)))
        self.filling = -shown % multiple
        self.length = shown + self.filling

    def set_epoch(self, epoch: int) -> None:
        """Has the next iteration draw the indices of this epoch. Called by the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}-{self.epoch}")
        indices = self._draw(generator)
        if self.balance is not None:
            indices = self._balanced(indices, generator)
        generator.shuffle(indices)
        if self.step > 1:
            steps = together(self.alike, indices, self.step)
            blocks = [block for step in steps for block in together(self.alike, step, self.batch)]
            indices = [index for block in blocks for index in block]
        if self.drawn:  # last, so that the order of an epoch is what it is with one answer
            indices = list(self._answered(indices))
        return iter([*indices, *[NOTHING] * self.filling])

    def _answered(self, indices: Sequence[int]) -> Iterator[int]:
        """The indices with a reference drawn for each, a row's copies each with one of its own."""
        copies: Counter[int] = Counter()
        for index in indices:
            seed = f"{self.seed}-{self.epoch}-{copies[index]}"
            copies[index] += 1
            yield index + len(self.rows) * references.drawn(self.rows[index].example, seed)

    def _draw(self, generator: random.Random) -> list[int]:
        """The indices of an epoch, source by source: whole copies, and a share of its groups in a drawn order."""
        pools = [(str(row.root), row.weight) for row in self.rows]
        return draw_share(pools, [row.example.group for row in self.rows], generator)

    def _balanced(self, indices: list[int], generator: random.Random) -> list[int]:
        """As many indices, those with a known fact drawn so that each of its values is equally frequent."""
        values: dict[str, list[int]] = defaultdict(list)
        unknown: list[int] = []
        for index in indices:
            value = getattr(self.rows[index].example.facts, str(self.balance))
            if value is not None and self.balance == "diagnosis":  # sources spell one diagnosis in several ways
                value = labels.key(value)
            (unknown if value is None else values[str(value)]).append(index)

        # A value's pool is shown over and over, each time in another order, until its quota is full.
        known = len(indices) - len(unknown)
        balanced: list[int] = []
        for position, value in enumerate(sorted(values)):
            quota = known // len(values) + (position < known % len(values))
            pool = values[value]
            while quota > 0:
                generator.shuffle(pool)
                balanced += pool[:quota]
                quota -= len(pool)
        return balanced + unknown


def row_of(rows: Sequence[Row], index: int) -> Row | None:
    """The row of an index that a MixtureSampler of these rows gave, with the answer that was drawn; None at NOTHING."""
    if index == NOTHING:
        return None
    number, position = divmod(index, len(rows))
    row = rows[position]
    return replace(row, example=references.answered(row.example, number)) if number else row


def draw_share(pools: Sequence[tuple[str, float]], groups: Sequence[Hashable], generator: random.Random) -> list[int]:
    """Indices, pool by pool: of one of weight w ⌊w⌋ copies, and the share w − ⌊w⌋ of its groups in a drawn order.

    Args:
        pools: name and weight of the pool that each index is of.
    """
    by_pool: dict[tuple[str, float], list[int]] = defaultdict(list)
    for index, pool in enumerate(pools):
        by_pool[pool].append(index)
    drawn: list[int] = []
    for (_, weight), indices in by_pool.items():
        drawn += indices * int(weight)
        by_group: dict[Hashable, list[int]] = defaultdict(list)
        for index in indices:
            by_group[groups[index]].append(index)
        order = list(by_group)
        generator.shuffle(order)
        share = [index for group in order for index in by_group[group]]
        drawn += share[: round((weight - int(weight)) * len(indices))]
    return drawn


def alike(rows: Sequence[Row]) -> list[int]:
    """A number for each row, the same for those that show the same images; a row without images has its own."""
    numbers: dict[tuple[str | int, ...], int] = {}
    keys = (
        (str(row.root), *row.example.images) if row.example.images else (position,) for position, row in enumerate(rows)
    )
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def together(kinds: Sequence[int], indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """Blocks of `size` indices, the last one perhaps shorter, in which those of one kind stand together.

    A block takes groups in their order, and where the next does not fit the first of those soon after it that does;
    where none does, that next one is cut. An index that is given twice stands apart from itself.
    """
    # By kind, and by how often the index came before.
    seen: Counter[int] = Counter()
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for position, index in enumerate(indices):
        groups[kinds[index], seen[index]].append((index, position))
        seen[index] += 1

    # A group stands where its lowest index does: where its first does, large groups would all come early.
    ordered = sorted(groups.values(), key=lambda group: min(group)[1])
    parts = (group[start : start + size] for group in ordered for start in range(0, len(group), size))
    waiting = deque([index for index, _ in part] for part in parts)

    block: list[int] = []
    while waiting:
        room = size - len(block)
        fitting = next(
            (position for position in range(min(SOON, len(waiting))) if len(waiting[position]) <= room), None
        )
        if fitting is None:
            block += waiting[0][:room]
            waiting[0] = waiting[0][room:]
        else:
            block += waiting[fitting]
            del waiting[fitting]
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
