"""What the steps of a recipe hold: rows, branches and tokens of the batches that its sampler and collator would make.

Lengths come from text and image sizes; no pixel is read. Where the data is not there, conversations are assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from PIL import Image
from transformers import PretrainedConfig

from skinvl.data import mixture, references
from skinvl.data.example import have, splits
from skinvl.data.mixture import NOTHING, Row
from skinvl.data.sampler import MixtureSampler
from skinvl.data.source import source_folder
from skinvl.model.attention import Span
from skinvl.model.chat import UNTRAINED, Chat, Encoded
from skinvl.model.families import Picture, Size
from skinvl.model.feature_cache import Cache
from skinvl.model.layout import spans
from skinvl.model.lengths import preflight, sizes
from skinvl.model.pack import Batch, Collator
from skinvl.model.row import EncodedRow, encode_row
from skinvl.recipe.recipe import Recipe, SourceSpec
from skinvl.recipe.towers import PretrainRecipe

SAMPLE = 2048  # conversations of an epoch that are laid out; a longer one is scaled up from as many, evenly spread
BATCH, SEED, EPOCHS = 8, 42, 3.0  # transformers' own defaults
SQUARE = (4096, 4096)  # px: an image that fills any budget


@dataclass(frozen=True, slots=True)
class Load:
    """What one batch, or all of an epoch, has for the model to compute."""

    conversations: float = 0
    tokens: float = 0  # of the conversations, each on its own
    positions: float = 0  # of the language rows, padding included
    pairs: float = 0  # of a query and a key, for one head of one layer
    trained: float = 0  # tokens with a loss
    images: float = 0  # through the projector
    vision: float = 0  # positions of these in the tower

    def __add__(self, other: Load) -> Load:
        return Load(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, times: float) -> Load:
        return Load(*(getattr(self, field.name) * times for field in fields(self)))


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Conversations of one step on one GPU, and the images that they show."""

    conversations: tuple[EncodedRow, ...]
    sizes: dict[Picture, Size]  # of some image that becomes the picture


@dataclass(frozen=True, slots=True)
class Assumed:
    """Conversations for want of data: as many, and as long, on average."""

    rows: int = 10_000  # conversations an epoch
    questions: float = 1.25  # conversations about an image
    question: int = 11  # tokens of a question
    answer: int = 29  # tokens of an answer; these and the two before as in MM-Skin's test set
    around: int = 20  # tokens that a chat template puts around them


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch on one of the GPUs: all that it computes, its batches, and the largest of these."""

    load: Load
    batches: int
    largest: PlannedBatch


def rows_of(chat: Chat, recipe: Recipe) -> list[Row]:
    """The train conversations that a run would train on, with the longest of their answers where these are drawn.

    Raises:
        FileNotFoundError: a source is not prepared.
        ValueError: none can be used.
    """
    every = [row for spec in recipe.data.train for row in mixture.rows(spec)]
    kept = preflight(chat, [(row.example, row.root) for row in every], recipe.data.references == "drawn").kept
    if not kept:
        raise ValueError(f"data.train: none of {len(every)} conversations can be trained on; see skinvl sft --dry-run")
    return [_longest(every[length.index], length.references[0]) for length in kept]


def _longest(row: Row, number: int) -> Row:
    return replace(row, example=references.answered(row.example, number)) if number else row


def missing(recipe: Recipe | PretrainRecipe) -> list[str]:
    """The train sources of a recipe that are not prepared.

    Raises:
        FileNotFoundError: one is, and has no such split.
    """
    return [f"{spec.source} ({spec.split})" for spec in recipe.data.train if not is_prepared(spec)]


def is_prepared(spec: SourceSpec) -> bool:
    """Whether a source of a recipe lies here.

    Raises:
        FileNotFoundError: it does, and has no such split: a slip, where one that is not there may come later.
    """
    folder = source_folder(spec.source)
    names = splits(folder)
    if names and spec.split not in names:
        raise FileNotFoundError(f"{folder / spec.split}.parquet: no such split; {have(folder)}")
    return bool(names)


def drawn(recipe: Recipe, chat: Chat, rows: Sequence[Row], ranks: int, share: bool) -> Epoch:
    """The first epoch as the trainer's sampler draws it."""
    size, accumulation = batch_size(recipe), recipe.train.get("gradient_accumulation_steps", 1)
    step = size * ranks * accumulation
    order = list(
        MixtureSampler(
            rows,
            recipe.train.get("seed", SEED),
            recipe.data.balance,
            multiple=size * ranks if ranks > 1 else 1,
            batch=size,
            step=step if share else 1,
        )
    )
    cut = ([index for index in order[at : at + size] if index != NOTHING] for at in range(0, len(order), size))
    drawn_batches = [indices for indices in cut if indices]

    # As many batches as SAMPLE allows, evenly spread over the epoch, stand for all.
    count = min(len(drawn_batches), max(1, SAMPLE // size))
    chosen = [drawn_batches[number * len(drawn_batches) // count] for number in range(count)]

    def batches() -> Iterator[PlannedBatch]:
        for indices in chosen:
            members = [rows[index] for index in indices]
            picture_sizes = {chat.picture(size): size for row in members for size in sizes(row.root, row.example)}
            yield PlannedBatch(tuple(encode_row(chat, row) for row in members), picture_sizes)

    return _epoch(chat, batches(), share, len(drawn_batches), ranks)


def assumed(recipe: Recipe, chat: Chat, guess: Assumed, ranks: int, share: bool) -> Epoch:
    """An epoch of alike conversations about one image each, which fills the budget."""
    size = batch_size(recipe)
    picture = chat.picture(SQUARE)
    text = [chat.pad_id] * guess.question
    ids = [chat.pad_id] * guess.around + chat.family.expanded(chat.processor, picture) + text
    conversation = Encoded(
        [*ids, *[chat.pad_id] * guess.answer],
        [UNTRAINED] * len(ids) + [chat.pad_id] * guess.answer,
        (picture,),
        1,
    )
    # A conversation's own tokens begin after the image: their first ids differ.
    first = [number + (number >= chat.image_id) for number in range(size)]
    at = len(ids) - guess.question
    own = [[*conversation.ids[:at], token, *conversation.ids[at + 1 :]] for token in first]
    conversations = tuple(
        EncodedRow(replace(conversation, ids=ids), (Path(str(int(number / guess.questions))),))
        for number, ids in enumerate(own)
    )
    batch = PlannedBatch(conversations, {picture: SQUARE})
    return _epoch(chat, iter([batch]), share, guess.rows / size, ranks)


def batch_size(recipe: Recipe) -> int:
    """Conversations of one batch on one GPU."""
    size: int = recipe.train.get("per_device_train_batch_size", BATCH)
    return size


def load(chat: Chat, batch: PlannedBatch, share: bool) -> Load:
    """What one batch has to compute, with or without a prefix that conversations about one image share."""
    rows = Collator(chat, share=share).groups(batch.conversations)
    encoded = [conversation.encoded for conversation in batch.conversations]
    layout = spans(rows, [len(branch.ids) for branch in encoded])
    first = [encoded[group.members[0]] for row in rows for group in row]
    pictures = [picture for branch in first for picture in branch.pictures]
    return Load(
        conversations=len(encoded),
        tokens=sum(len(branch.ids) for branch in encoded),
        positions=layout.shape[0] * layout.shape[1],
        pairs=sum(_pairs(span) for span in layout.spans),
        trained=sum(len(branch.labels) - branch.labels.count(UNTRAINED) for branch in encoded),
        images=len(pictures),
        vision=sum(picture.vision_tokens for picture in pictures),
    )


def inputs(
    chat: Chat, config: PretrainedConfig, batch: PlannedBatch, share: bool, features: torch.dtype | None
) -> Batch:
    """The batch as the collator makes it, `pixel_values` on the meta device.

    Args:
        features: the dtype of a frozen tower's features, which are then in place of pixels.
    """
    shapes = Shapes(Path(), features or torch.float32, lambda picture: chat.family.features(config, picture))
    if features is None:
        known = {picture: pixels(chat, size).shape for picture, size in batch.sizes.items()}
        shapes = Shapes(Path(), torch.float32, lambda picture: tuple(known[picture]))
    collator = Collator(chat, share=share, cache=shapes)
    return collator.lay(batch.conversations, collator.groups(batch.conversations))


def pixels(chat: Chat, size: Size) -> torch.Tensor:
    """What the tower reads of a black image of this size."""
    return chat.pixels(Image.new("RGB", (size[1], size[0])))


def features(chat: Chat, config: PretrainedConfig, rows: Sequence[Row]) -> tuple[int, int]:
    """How many images these conversations show, and how many numbers leave a frozen tower for them."""
    pictures = {
        row.root / name: chat.picture(size)
        for row in rows
        for name, size in zip(row.example.images, sizes(row.root, row.example), strict=True)
    }
    return len(pictures), sum(math.prod(chat.family.features(config, picture)) for picture in pictures.values())


def guessed(chat: Chat, config: PretrainedConfig, guess: Assumed) -> tuple[int, int]:
    """As `features`, of assumed conversations."""
    images = math.ceil(guess.rows / guess.questions)
    return images, images * math.prod(chat.family.features(config, chat.picture(SQUARE)))


def twice(batch: PlannedBatch) -> PlannedBatch:
    """The batch, and as much again about other images."""
    again = tuple(
        replace(conversation, images=tuple(path and path / "again" for path in conversation.images))
        for conversation in batch.conversations
    )
    return PlannedBatch(batch.conversations + again, batch.sizes)


class Shapes(Cache):
    """Features, or pixels, that have a shape alone."""

    def get(self, image: Path, picture: Picture) -> torch.Tensor:
        """A tensor of that shape on the meta device."""
        return torch.empty(self.shape(picture), dtype=self.dtype, device="meta")


def _epoch(chat: Chat, batches: Iterator[PlannedBatch], share: bool, count: float, ranks: int) -> Epoch:
    loads = [(load(chat, batch, share), batch) for batch in batches]
    _, largest = max(loads, key=lambda pair: pair[0].positions)
    total = sum((load for load, _ in loads), Load())
    return Epoch(total * (count / len(loads) / ranks), math.ceil(count / ranks), largest)


def _pairs(span: Span) -> float:
    length, before = span.end - span.start, span.prefix[1] - span.prefix[0]
    # Behind a prefix the kernel is given a mask, and computes what it hides.
    return length * (before + length) if before or span.whole else length * (length + 1) / 2
