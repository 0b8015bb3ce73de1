"""The control for learning from pixels: closed questions with their own image, and with another's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skinvl.data import mixture
from skinvl.data.example import words
from skinvl.data.mixture import Row
from skinvl.train.trainer import Trainer

CONTROL_ROWS = 512  # closed questions asked with their own and with another image after training


@dataclass(frozen=True, slots=True)
class Control:
    """Closed-answer token accuracy with each question's own image, and with the images permuted among questions."""

    own: float
    permuted: float
    questions: int


def image_control(trainer: Trainer, rows: Sequence[Row]) -> Control | None:
    """The control for learning from pixels; None where there are too few closed questions about different images.

    A question is closed here when its last answer has at most three words; thoughts are left out, whose tokens would
    count as those of answers.
    """
    closed = [row for row in rows if row.example.images and len(words(row.example.messages[-1]).split()) <= 3]
    generator = random.Random(trainer.args.seed)
    sample = closed if len(closed) <= CONTROL_ROWS else generator.sample(closed, CONTROL_ROWS)
    sample = [replace(row, example=replace(row.example, thoughts=())) for row in sample]
    swapped = mixture.permuted(sample, generator)
    pairs = [(row, other) for row, other in zip(sample, swapped, strict=True) if other is not None]
    if len(pairs) < 2:
        return None
    own, permuted = (trainer.sums(rows) for rows in zip(*pairs, strict=True))
    return Control(float(own[3] / own[2]), float(permuted[3] / permuted[2]), len(pairs))
