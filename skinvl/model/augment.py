"""How an image is changed from epoch to epoch: crops, brightness and colours, drawn by a generator of its own.

mild      crop of 85 to 100 % of the area, nearly as wide and high as it was; brightness and contrast within 10 %
released  DermLIP's and MAKE's: crop of 40 to 100 %; in four of five brightness, contrast and saturation within 32 % and
          hue within 8 % of the circle, in any order; one of five in grey

mild leaves alone whatever a caption may name: colours, sides (no mirror images) and what stands at the rim of the
picture, nearly. A crop of 40 % may be without the lesion, and a grey picture of an erythema is none.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

from skinvl.model.dual_inputs import ImageFormat

Augmentation = Literal["mild", "released", "none"]
TRIES = 10  # rectangles that are drawn, until one lies within the image


@dataclass(frozen=True, slots=True)
class Changes:
    """What may be drawn."""

    scale: tuple[float, float]  # of the area
    ratio: tuple[float, float]  # width over height
    brightness: float  # factors from 1 − x to 1 + x
    contrast: float
    saturation: float = 0.0
    hue: float = 0.0  # of the circle of colours, either way
    jittered: float = 1.0  # share of the images whose colours change
    grey: float = 0.0  # share that is shown in grey


CHANGES = {
    "mild": Changes((0.85, 1.0), (0.9, 1 / 0.9), 0.1, 0.1),
    "released": Changes((0.4, 1.0), (3 / 4, 4 / 3), 0.32, 0.32, 0.32, 0.08, jittered=0.8, grey=0.2),
}


def augmented(
    path: Path, format: ImageFormat, augmentation: Literal["mild", "released"], generator: random.Random
) -> Image.Image:
    """The image as the format cuts it, RGB; all chance is the generator's.

    Raises:
        ImageError: it cannot be read.
    """
    changes = CHANGES[augmentation]
    picture = format.cut(path, lambda height, width: rectangle(height, width, changes, generator))
    return recoloured(picture, changes, generator)


def rectangle(height: int, width: int, changes: Changes, generator: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a drawn rectangle; the middle of an image that has none of such a shape.

    Source: the crop of Szegedy et al. 2015 (arXiv:1409.4842), as torchvision's RandomResizedCrop draws it.
    """
    low, high = map(math.log, changes.ratio)
    for _ in range(TRIES):
        area = height * width * generator.uniform(*changes.scale)
        ratio = math.exp(generator.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.randint(0, width - w), generator.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * changes.ratio[1]))), min(height, max(1, round(width / changes.ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def recoloured(picture: Image.Image, changes: Changes, generator: random.Random) -> Image.Image:
    """The picture with drawn brightness, contrast, saturation and hue, in a drawn order, or in grey."""
    if generator.random() < changes.jittered:
        spreads = {name: getattr(changes, name) for name in ("brightness", "contrast", "saturation", "hue")}
        drawn = [(name, generator.uniform(-spread, spread)) for name, spread in spreads.items() if spread]
        generator.shuffle(drawn)
        for name, by in drawn:
            picture = _turned(picture, by) if name == "hue" else ENHANCERS[name](picture).enhance(1 + by)
    if generator.random() < changes.grey:
        picture = picture.convert("L").convert("RGB")
    return picture


ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def _turned(picture: Image.Image, by: float) -> Image.Image:
    """The picture with its colours turned by a share of their circle."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(by * 255) % 256)  # on around the circle, as uint8 does
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
