"""The control for learning from pixels: each image with the texts of another, so that no pair is true."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from skinvl.data.texts import TextedImage


def permuted(images: Sequence[TextedImage], seed: int) -> list[TextedImage]:
    """The images in their order, each with the texts and the diagnosis of another one of its source.

    Raises:
        ValueError: a source has one image alone.
    """
    sources: dict[Path, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        sources[image.root].append(index)

    # Each has the texts of what comes before it in a shuffled circle, so that none has its own.
    other: dict[int, TextedImage] = {}
    generator = random.Random(seed)
    for root, indices in sources.items():
        if len(indices) == 1:
            raise ValueError(f"data.permuted: {root} has one image with texts, and no other to take them from")
        generator.shuffle(indices)
        other |= {index: images[indices[position - 1]] for position, index in enumerate(indices)}
    return [
        replace(
            image,
            texts=other[index].texts,
            diagnosis=other[index].diagnosis,
            path_of_diagnosis=other[index].path_of_diagnosis,
        )
        for index, image in enumerate(images)
    ]
