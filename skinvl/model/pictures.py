"""Images as a generative base's own vision tower reads them: of any size, through its processor, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin

from skinvl.data.pixels import upright
from skinvl.data.profiles import Profiles
from skinvl.model.dual_inputs import Choice, ImageFormat
from skinvl.model.families import Family, Picture, ShapeError

UNIT = 10_000  # sides of the square in which a rectangle is chosen


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images of a batch, each of its own size."""

    pictures: tuple[Picture, ...]
    pixels: tuple[torch.Tensor, ...]  # what the family's `pixels` gives for each

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: slice) -> Pictures:
        return Pictures(self.pictures[rows], self.pixels[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pictures:
        """The same on a device."""
        return replace(self, pixels=tuple(each.to(device, non_blocking=non_blocking) for each in self.pixels))

    def pin_memory(self) -> Pictures:
        """The same in page-locked memory, from which a GPU copies fast."""
        return replace(self, pixels=tuple(each.pin_memory() for each in self.pixels))


@dataclass(frozen=True, slots=True)
class PictureFormat(ImageFormat):
    """What a generative base's vision tower reads: an image of its own shape, through the base's processor."""

    family: Family
    processor: ProcessorMixin
    arguments: dict[str, Any]  # of the image processor: the budget
    profiles: Profiles = "srgb"

    def picture(self, size: tuple[int, int]) -> Picture:
        """What an image of this height and width becomes.

        Raises:
            ShapeError: it is too elongated.
        """
        return self.family.picture(self.processor, size, self.arguments)

    def whole(self, path: Path) -> Image.Image:
        """An image file, RGB.

        Raises:
            ImageError: it cannot be read.
        """
        return upright(path, self.profiles)

    def cut(self, path: Path, choose: Choice) -> Image.Image:
        """A rectangle of an image file, RGB: as of a square, so that it is shaped nearly as the image is.

        Of an image that is nearly too elongated it is the whole.

        Raises:
            ImageError: it cannot be read.
        """
        image = upright(path, self.profiles)
        across, down = image.width / UNIT, image.height / UNIT
        left, top, right, bottom = choose(UNIT, UNIT)
        corner = int(left * across), int(top * down)
        size = max(round((right - left) * across), 1), max(round((bottom - top) * down), 1)
        cut = image.crop((*corner, corner[0] + size[0], corner[1] + size[1]))
        try:
            self.picture((cut.height, cut.width))
        except ShapeError:
            return image
        return cut

    def batch(self, pictures: Sequence[Image.Image]) -> Pictures:
        """The pictures as the tower reads them."""
        return Pictures(
            tuple(self.picture((image.height, image.width)) for image in pictures),
            tuple(self.family.pixels(self.processor, image, self.arguments) for image in pictures),
        )

    def normalised(self, pixels: Pictures) -> Pictures:
        """The same: the processor has normalised them."""
        return pixels

    def save(self, folder: Path) -> None:
        """Writes the base's image processor into a folder."""
        processor: Any = self.processor
        processor.image_processor.save_pretrained(folder)
