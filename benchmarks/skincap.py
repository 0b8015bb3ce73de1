"""Batches for two towers: images of noise, and random texts as long as SkinCAP's are in CLIP's tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from skinvl.data.texts import ASPECTS
from skinvl.model.dual_batch import DEPTH, UNKNOWN, DualBatch
from skinvl.model.dual_inputs import PixelFormat

LENGTH, VOCABULARY = 77, 49_408
ONTOLOGY, CONCEPTS = 78, 104  # different texts of these kinds, of which images have the commoner ones more often


def tokens(length: int, draw: random.Random) -> list[int]:
    """A text of so many tokens, its start and end among them."""
    return [VOCABULARY - 2, *(draw.randrange(1, VOCABULARY - 2) for _ in range(length - 2)), VOCABULARY - 1]


def caption_length(draw: random.Random) -> int:
    """Tokens of a caption: 46 % are cut at 77, and the mean is 64."""
    return LENGTH if draw.random() < 0.46 else draw.randint(30, LENGTH - 1)


def make_texts(images: int, draw: random.Random) -> list[list[tuple[str, list[int]]]]:
    """The aspect and tokens of every text of so many images: 2.9 sentences of 25 tokens, ontology 15, concepts 16."""
    pools = {
        aspect: [tokens(draw.randint(mean - 4, mean + 4), draw) for _ in range(number)]
        for aspect, number, mean in (("ontology", ONTOLOGY, 15), ("concepts", CONCEPTS, 16))
    }
    rows = []
    for _ in range(images):
        texts = [("caption", tokens(caption_length(draw), draw))]
        for aspect, pool in pools.items():
            commoner = [1 / (rank + 1) ** 0.5 for rank in range(len(pool))]
            texts.append((aspect, draw.choices(pool, commoner)[0]))
        number = draw.choices(range(1, 6), (12, 26, 30, 22, 10))[0]
        texts += [("sentence", tokens(draw.randint(12, 38), draw)) for _ in range(number)]
        rows.append(texts)
    return rows


def batch_of(side: int, texts: Sequence[Sequence[tuple[str, list[int]]]]) -> DualBatch:
    """Images of noise with these texts, each of a patient of its own."""
    torch.manual_seed(1)
    images = len(texts)
    numbers: dict[tuple[int, ...], int] = {}
    text = [numbers.setdefault(tuple(ids), len(numbers)) for row in texts for _, ids in row]
    owner = [image for image, row in enumerate(texts) for _ in row]
    keys = torch.arange(images)[:, None].repeat(1, 3)
    return DualBatch(
        pixels=torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8),
        format=PixelFormat(side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        texts=[list(ids) for ids in numbers],
        text=torch.tensor(text),
        owner=torch.tensor(owner),
        aspect=torch.tensor([ASPECTS.index(aspect) for row in texts for aspect, _ in row]),
        keys=keys,
        text_keys=torch.tensor(text),
        paths=torch.full((images, DEPTH), UNKNOWN),
        names=tuple(map(str, range(images))),
    )


def padded(texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """int64[n, 77], the ids of texts as open_clip's tokenizer fills them up, with zeros."""
    ids = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    return ids
