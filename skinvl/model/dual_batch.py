"""Images with their texts as a batch for two towers: each image once, each different text once, and what is whose."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import xxhash
from PIL import Image
from torch.utils.data import Dataset

from skinvl.data import labels
from skinvl.data.draws import BatchError, Draw
from skinvl.data.texts import ASPECTS, ImageText, TextedImage
from skinvl.model import augment
from skinvl.model.augment import Augmentation
from skinvl.model.dual_inputs import ImageFormat, TextTokenizer
from skinvl.model.objectives import EMPTY, IGNORED, NEGATIVE, POSITIVE
from skinvl.model.pictures import Pictures
from skinvl.recipe.towers import Negatives, PretrainRecipe

UNKNOWN = -1
DEPTH = 8  # levels of a path of diagnosis; of a longer one those in the middle are left out
REASONS = ("same_text", "same_image", "same_group", "same_diagnosis")  # the fields of Negatives
NO_TEXT = ImageText("", "caption", UNKNOWN)  # what stands in a place of the released MAKE's that has no text


@dataclass(frozen=True, slots=True)
class DualBatch:
    """b images of one rank with their n texts, an image's texts together and in the order of the images."""

    pixels: torch.Tensor | Pictures  # uint8[b, 3, H, W], or what a generative base's own tower reads
    format: ImageFormat
    texts: list[list[int]]  # the different token lists, each with its EOS and without padding
    text: torch.Tensor  # int64[n], which of them each text is
    owner: torch.Tensor  # int64[n], the image of each text
    aspect: torch.Tensor  # int64[n], index in data.texts' ASPECTS
    keys: torch.Tensor  # int64[b, 3]: image, group, diagnosis; UNKNOWN where it is not known
    text_keys: torch.Tensor  # int64[n]
    paths: torch.Tensor  # int64[b, DEPTH], the classes of the diagnosis from the broadest on, then UNKNOWN
    names: tuple[str, ...]  # of the images

    def normalised(self, rows: slice = slice(None)) -> Any:
        """float32[b, 3, H, W], or Pictures: some images as the image tower takes them."""
        return self.format.normalised(self.pixels[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DualBatch:
        """The same on a device."""
        tensors = self._tensors()
        return replace(self, **{name: each.to(device, non_blocking=non_blocking) for name, each in tensors.items()})

    def pin_memory(self) -> DualBatch:
        """The same with its tensors in page-locked memory, from which a GPU copies fast."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor | Pictures)}


class TextedDataset(Dataset[tuple[TextedImage, Draw | None]]):
    """Images by their index, which is not augmented, or by what an epoch has drawn."""

    def __init__(self, images: Sequence[TextedImage]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | Draw) -> tuple[TextedImage, Draw | None]:
        return (self.images[index.row], index) if isinstance(index, Draw) else (self.images[index], None)


@dataclass(frozen=True, slots=True)
class DualCollator:
    """What a TextedDataset gives → DualBatch; a picture depends on its Draw and the seed alone."""

    tokenizer: TextTokenizer
    format: ImageFormat
    augmentation: Augmentation = "none"
    seed: int = 0
    places: tuple[int, ...] | None = None  # of the objective: texts of each aspect that every image has

    def __call__(self, items: Sequence[tuple[TextedImage, Draw | None]]) -> DualBatch:
        """The batch.

        Raises:
            ImageError: an image cannot be read.
        """
        images = [image for image, _ in items]
        slots = [(owner, text) for owner, image in enumerate(images) for text in self._texts(image)]
        tokens = list(map(tuple, self.tokenizer([text.text for _, text in slots]))) if slots else []
        numbers: dict[tuple[int, ...], int] = {}
        text = [numbers.setdefault(ids, len(numbers)) for ids in tokens]

        pictures = [drawn(image, draw, self.format, self.augmentation, self.seed) for image, draw in items]
        return DualBatch(
            self.format.batch(pictures),
            self.format,
            list(map(list, numbers)),
            _int64(text),
            _int64([owner for owner, _ in slots]),
            _int64([ASPECTS.index(text.aspect) if text is not NO_TEXT else EMPTY for _, text in slots]),
            keys_of(images),
            _int64([text.key for _, text in slots]),
            _int64([_path(image) for image in images]).view(-1, DEPTH),
            tuple(image.name for image in images),
        )

    def _texts(self, image: TextedImage) -> Sequence[ImageText]:
        """The texts of an image, or of each aspect as many as there are places, filled up with empty ones."""
        if self.places is None:
            return image.texts
        texts = []
        for aspect, places in zip(ASPECTS, self.places, strict=True):
            own = [text for text in image.texts if text.aspect == aspect][:places]
            texts += own + [NO_TEXT] * (places - len(own))
        return texts


def drawn(
    image: TextedImage, draw: Draw | None, format: ImageFormat, augmentation: Augmentation, seed: int
) -> Image.Image:
    """An image as its format has it, augmented where an epoch has drawn it.

    Raises:
        ImageError: it cannot be read.
    """
    path = image.root / image.path
    if draw is None or augmentation == "none":
        return format.whole(path)
    generator = random.Random(f"{seed}-{draw.epoch}-{draw.row}-{draw.copy}")
    return augment.augmented(path, format, augmentation, generator)


def _int64(values: Sequence[int | tuple[int, ...]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@lru_cache(maxsize=1 << 14)
def _hashed(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode()) >> 1


@lru_cache(maxsize=1 << 14)
def _diagnosis(name: str | None) -> int:
    return UNKNOWN if name is None else _hashed(labels.key(name))


def keys_of(images: Sequence[TextedImage]) -> torch.Tensor:
    """int64[b, 3], the `keys` of a DualBatch."""
    return _int64([(image.image, image.group, _diagnosis(image.diagnosis)) for image in images]).view(-1, 3)


def _path(image: TextedImage) -> tuple[int, ...]:
    """int64[DEPTH]; a disease without the classes above it is a class of its own."""
    path = image.path_of_diagnosis or ((image.diagnosis,) if image.diagnosis else ())
    levels = [*map(_hashed, path[:-1]), *map(_diagnosis, path[-1:])]
    if len(levels) > DEPTH:
        levels = [*levels[: DEPTH - 1], levels[-1]]
    return (*levels, *[UNKNOWN] * (DEPTH - len(levels)))


def relation(
    keys: torch.Tensor,
    owner: torch.Tensor,
    text_keys: torch.Tensor,
    negatives: Negatives,
    tally: Counter[str] | None = None,
) -> torch.Tensor:
    """int8[B, N], what each image is to each text of the batch over all ranks: POSITIVE, IGNORED or NEGATIVE.

    An image's own texts are positives. Of several reasons that hold for another pair a positive one decides before one
    to ignore it, and that before none.

    Args:
        keys: int64[B, 3], as in DualBatch.
        owner: int64[N], the image of each text.
        text_keys: int64[N].
        tally: what is added to: pairs by reason and what they became, such as "same_text positive", each pair once.

    Raises:
        BatchError: no pair is a negative.
    """
    related = torch.full((len(keys), len(owner)), NEGATIVE, dtype=torch.int8, device=keys.device)
    related[owner, torch.arange(len(owner), device=keys.device)] = POSITIVE
    for verdict, value in (("positive", POSITIVE), ("ignore", IGNORED)):
        for reason in REASONS:
            if getattr(negatives, reason) == verdict:
                holds = _holds(reason, keys, owner, text_keys) & (related < value)
                related.masked_fill_(holds, value)
                if tally is not None:
                    tally[f"{reason} {verdict}"] += int(holds.sum())
    if not (related == NEGATIVE).any():
        raise BatchError(
            f"{len(keys)} images with {len(owner)} texts have no negative: each shares its text, photograph, patient "
            "or diagnosis with all others, as negatives says"
        )
    return related


def sampled(images: Sequence[TextedImage], count: int, seed: int) -> list[TextedImage]:
    """So many of the images at most, drawn by the seed, in their order."""
    numbers = random.Random(seed).sample(range(len(images)), min(count, len(images)))
    return [images[number] for number in sorted(numbers)]


def pool(name: str, images: Sequence[TextedImage], recipe: PretrainRecipe, seed: int) -> list[TextedImage]:
    """The images of an eval set that an evaluation within the training compares: a fixed sample, in their order.

    Raises:
        BatchError: nothing in it is to be told apart, which the first evaluation would find out late.
    """
    chosen = sampled(images, recipe.evaluate.during, seed)
    owner = _int64([number for number, image in enumerate(chosen) for _ in image.texts])
    text_keys = _int64([text.key for image in chosen for text in image.texts])
    try:
        relation(keys_of(chosen), owner, text_keys, recipe.negatives)
    except BatchError as error:
        raise BatchError(
            f"data.eval, {name}: {error}; raise evaluate.during, name another source or split, or set negatives.… to "
            "keep"
        ) from error
    return chosen


def _holds(reason: str, keys: torch.Tensor, owner: torch.Tensor, text_keys: torch.Tensor) -> torch.Tensor:
    """bool[B, N], for which images and texts a reason holds."""
    if reason == "same_text":  # one of the image's own texts reads like the text
        distinct, number = torch.unique(text_keys, return_inverse=True)
        has = torch.zeros(len(keys), len(distinct), dtype=torch.bool, device=keys.device)
        has[owner, number] = True
        return has[:, number]
    own = keys[:, ("same_image", "same_group", "same_diagnosis").index(reason)]
    return (own[:, None] == own[owner]) & (own[:, None] != UNKNOWN)
