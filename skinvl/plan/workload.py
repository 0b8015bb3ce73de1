"""What the steps of a recipe hold: rows, branches and tokens of the batches that its sampler and collator would make.

Lengths come from text and image sizes; no pixel is read. Where the data is not there, conversations are assumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, PretrainedConfig

from skinvl.data import mixture
from skinvl.data.mixture import NOTHING, Row
from skinvl.data.sampler import MixtureSampler
from skinvl.data.source import source_folder
from skinvl.model import tiny
from skinvl.model.attention import Span
from skinvl.model.chat import UNTRAINED, Chat, Encoded
from skinvl.model.families import Family, Picture, Size
from skinvl.model.feature_cache import Cache
from skinvl.model.lengths import preflight, sizes
from skinvl.model.pack import Collator, Shown, seen, spans
from skinvl.recipe.recipe import Recipe

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
        return Load(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __mul__(self, times: float) -> Load:
        return Load(*(getattr(self, one.name) * times for one in fields(self)))


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Conversations of one step on one GPU, and the images that they show."""

    encoded: tuple[Encoded, ...]
    shown: tuple[Shown, ...]
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


def chat_of(path: Path, config: PretrainedConfig, family: Family, recipe: Recipe, folder: Path) -> tuple[Chat, bool]:
    """The chat of a base, and whether it is its own: without tokenizer.json one stands in, built into a folder.

    Image processor and template are the base's own where it has them: a stand-in counts images right, and no text.
    """
    own = (path / "tokenizer.json").is_file()
    processor: Any
    if own:
        processor = AutoProcessor.from_pretrained(path)
    else:
        processor = AutoProcessor.from_pretrained(tiny.build(config.model_type, folder / "stand-in", texts=["a b c"]))
        if (path / "preprocessor_config.json").is_file():
            processor.image_processor = AutoImageProcessor.from_pretrained(path)
        processor.chat_template = _template(path) or processor.chat_template
    chat = Chat(processor, family, **recipe.data.budget)
    for key in ("image_token_id", "image_token_index"):  # what the model looks for in the ids
        if hasattr(config, key):
            setattr(config, key, chat.image_id)
    return chat, own


def rows_of(chat: Chat, recipe: Recipe) -> list[Row]:
    """The train conversations that a run would train on.

    Raises:
        FileNotFoundError: a source is not prepared.
        ValueError: none can be used.
    """
    every = [row for spec in recipe.data.train for row in mixture.rows(spec)]
    kept = preflight(chat, [(row.example, row.root) for row in every]).kept
    if not kept:
        raise ValueError(f"data.train: none of {len(every)} conversations can be trained on; see skinvl sft --dry-run")
    return [every[one.index] for one in kept]


def missing(recipe: Recipe) -> list[str]:
    """The train sources of a recipe that are not prepared."""
    return [
        f"{spec.source} ({spec.split})"
        for spec in recipe.data.train
        if not (source_folder(spec.source) / f"{spec.split}.parquet").is_file()
    ]


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
    cut = [[index for index in order[at : at + size] if index != NOTHING] for at in range(0, len(order), size)]
    cut = [some for some in cut if some]
    count = min(len(cut), max(1, SAMPLE // size))
    chosen = [cut[place * len(cut) // count] for place in range(count)]

    def batches() -> Iterator[PlannedBatch]:
        for some in chosen:
            given = [rows[index] for index in some]
            found = [sizes(row.root, row.example) for row in given]
            encoded = tuple(chat.encode(row.example, size) for row, size in zip(given, found, strict=True))
            shown = tuple(seen(row, one) for row, one in zip(given, encoded, strict=True))
            known = {chat.picture(size): size for some in found for size in some}
            yield PlannedBatch(encoded, shown, known)

    return _epoch(chat, batches(), share, len(cut), ranks)


def assumed(recipe: Recipe, chat: Chat, given: Assumed, ranks: int, share: bool) -> Epoch:
    """An epoch of alike conversations about one image each, which fills the budget."""
    size = batch_size(recipe)
    picture = chat.picture(SQUARE)
    text = [chat.pad_id] * given.question
    ids = [chat.pad_id] * given.around + [chat.image_id] * picture.text_tokens + text
    one = Encoded(
        [*ids, *[chat.pad_id] * given.answer],
        [UNTRAINED] * len(ids) + [chat.pad_id] * given.answer,
        (picture,),
        1,
    )
    # A conversation's own tokens begin after the image: their first ids differ.
    first = [number + (number >= chat.image_id) for number in range(size)]
    own = [[*one.ids[: len(ids) - given.question], some, *one.ids[len(ids) - given.question + 1 :]] for some in first]
    every = [replace(one, ids=ids) for ids in own]
    shown = tuple((Path(str(int(number / given.questions))),) for number in range(size))
    batch = PlannedBatch(tuple(every), shown, {picture: SQUARE})
    return _epoch(chat, iter([batch]), share, given.rows / size, ranks)


def batch_size(recipe: Recipe) -> int:
    """Conversations of one batch on one GPU."""
    size: int = recipe.train.get("per_device_train_batch_size", BATCH)
    return size


def load(chat: Chat, batch: PlannedBatch, share: bool) -> Load:
    """What one batch has to compute, with or without a prefix that conversations about one image share."""
    rows = Collator(chat, share=share).groups(batch.encoded, batch.shown)
    laid = spans(rows, [len(one.ids) for one in batch.encoded])
    first = [batch.encoded[group.members[0]] for row in rows for group in row]
    pictures = [picture for one in first for picture in one.pictures]
    return Load(
        conversations=len(batch.encoded),
        tokens=sum(len(one.ids) for one in batch.encoded),
        positions=laid.shape[0] * laid.shape[1],
        pairs=sum(_pairs(one) for one in laid.spans),
        trained=sum(len(one.labels) - one.labels.count(UNTRAINED) for one in batch.encoded),
        images=len(pictures),
        vision=sum(picture.vision_tokens for picture in pictures),
    )


def inputs(chat: Chat, config: PretrainedConfig, batch: PlannedBatch, share: bool, features: torch.dtype | None) -> Any:
    """The batch as the collator makes it, `pixel_values` on the meta device.

    Args:
        features: the dtype of a frozen tower's features, which are then in place of pixels.
    """
    shapes = Shapes(Path(), features or torch.float32, lambda picture: chat.family.features(config, picture))
    if features is None:
        known = {picture: pixels(chat, size).shape for picture, size in batch.sizes.items()}
        shapes = Shapes(Path(), torch.float32, lambda picture: tuple(known[picture]))
    collator = Collator(chat, share=share, cache=shapes)
    return collator.lay(batch.encoded, batch.shown, collator.groups(batch.encoded, batch.shown))


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
    return len(pictures), sum(math.prod(chat.family.features(config, one)) for one in pictures.values())


def guessed(chat: Chat, config: PretrainedConfig, given: Assumed) -> tuple[int, int]:
    """As `features`, of assumed conversations."""
    images = math.ceil(given.rows / given.questions)
    return images, images * math.prod(chat.family.features(config, chat.picture(SQUARE)))


def twice(batch: PlannedBatch) -> PlannedBatch:
    """The batch, and as much again about other images."""
    again = tuple(tuple(path and path / "again" for path in some) for some in batch.shown)
    return PlannedBatch(batch.encoded * 2, batch.shown + again, batch.sizes)


class Shapes(Cache):
    """Features, or pixels, that have a shape alone."""

    def get(self, image: Path, picture: Picture) -> torch.Tensor:
        """A tensor of that shape on the meta device."""
        return torch.empty(self.shape(picture), dtype=self.dtype, device="meta")


def _template(path: Path) -> str | None:
    """The chat template of a base, from wherever its age has it."""
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (path / name).is_file():
            found = json.loads((path / name).read_text(encoding="utf-8")).get("chat_template")
            if isinstance(found, str):
                return found
    return None


def _epoch(chat: Chat, batches: Iterator[PlannedBatch], share: bool, count: float, ranks: int) -> Epoch:
    found = [(load(chat, batch, share), batch) for batch in batches]
    _, largest = max(found, key=lambda pair: pair[0].positions)
    total = sum((one for one, _ in found), Load())
    return Epoch(total * (count / len(found) / ranks), math.ceil(count / ranks), largest)


def _pairs(span: Span) -> float:
    length, before = span.end - span.start, span.prefix[1] - span.prefix[0]
    # Behind a prefix the kernel is given a mask, and computes what it hides.
    return length * (before + length) if before or span.whole else length * (length + 1) / 2
