"""Images changed on purpose, after they are decoded and before a base reads them: what robustness is measured by.

Every change keeps height and width, so that a changed image has exactly the positions of the plain one, and what
differs between two answers is what was seen.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from skinvl.recipe.recipe import ImageChange

GREY = 128  # of a blank image, in each channel
KEPT = 0.8  # of either side, about the middle, that a crop leaves
QUALITY = 30  # of JPEG
LIGHT = 0.5  # of each value, in sRGB


def changed(image: Image.Image, change: ImageChange) -> Image.Image:
    """The RGB image, changed; the same for the same image.

    blank: one grey. rotate: by half a turn, which invents and loses no pixel. crop: the middle, as large as the whole
    was. recompress: through a JPEG file of low quality. darken: every value lowered.
    """
    width, height = image.size
    if change == "blank":
        return Image.new("RGB", image.size, (GREY, GREY, GREY))
    if change == "rotate":
        return image.transpose(Image.Transpose.ROTATE_180)
    if change == "crop":
        edge = (1 - KEPT) / 2
        box = (edge * width, edge * height, (1 - edge) * width, (1 - edge) * height)
        return image.resize(image.size, Image.Resampling.BICUBIC, box)
    if change == "recompress":
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=QUALITY)
        with Image.open(jpeg, formats=("JPEG",)) as again:
            return again.convert("RGB")
    return image.point(lambda value: round(LIGHT * value))


def parameters(change: ImageChange) -> dict[str, Any]:
    """How far a change goes, as the settings of predictions hold it."""
    of: dict[ImageChange, dict[str, Any]] = {
        "blank": {"grey": GREY},
        "rotate": {"degrees": 180},
        "crop": {"kept": KEPT},
        "recompress": {"quality": QUALITY},
        "darken": {"light": LIGHT},
    }
    return {"change": change, **of[change]}
