"""Several right answers to a conversation's last question, one of which an epoch trains on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from skinvl.data.example import Example, text


def answered(example: Example, number: int) -> Example:
    """The Example with one of its references for its last answer, without the thought that led to the first."""
    if not number:
        return example
    thoughts = (*example.thoughts[:-1], None) if any(example.thoughts[:-1]) else ()
    messages = (*example.messages[:-1], text("assistant", example.references[number].text))
    return replace(example, messages=messages, thoughts=thoughts)


def drawable(example: Example) -> list[int]:
    """The numbers of its references that may be drawn, those weighted above 0; of its only answer 0."""
    weighted = [number for number, reference in enumerate(example.references) if reference.weight > 0]
    return weighted or [0]


def only(example: Example, numbers: Sequence[int]) -> Example:
    """The Example with no other references than these, the first of which is its last answer."""
    references = tuple(example.references[number] for number in numbers if example.references)
    return replace(answered(example, numbers[0]), references=references if len(references) > 1 else ())


def drawn(example: Example, seed: str) -> int:
    """The number of one of its references, drawn by weight; 0 where it has one answer.

    Args:
        seed: of the epoch; the same for one row gives the same, whatever else is drawn.
    """
    numbers = drawable(example)
    if len(numbers) == 1:
        return numbers[0]
    weights = [example.references[number].weight for number in numbers]
    return random.Random(f"{seed}-{example.source}/{example.id}").choices(numbers, weights)[0]
