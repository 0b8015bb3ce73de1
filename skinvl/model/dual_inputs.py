"""What two towers are given: texts as token ids, and images as square pixels."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPImageProcessor, PreTrainedTokenizerBase

from skinvl.data.pixels import cropped, upright
from skinvl.data.profiles import Profiles
from skinvl.model.towers import TowerFamily

# What ftfy makes of what books and web pages leave in a text.
PLAIN = str.maketrans(
    {
        **dict.fromkeys("ʼ‘’‚‛", "'"),
        **dict.fromkeys("“”„‟", '"'),
        **{"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st"},
        **{chr(code + 0xFEE0): chr(code) for code in range(ord("!"), ord("~") + 1)},  # as wide as a Chinese character
        "\ufeff": "",
    }
)


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """A text tower's tokenizer: every text with the tokens at its ends, and no longer than the tower reads."""

    tokenizer: PreTrainedTokenizerBase
    length: int  # tokens of the longest text, those at its ends included
    # Whether texts run at their own length; else each is padded to `length`, as its tower was trained.
    trims: bool = True
    lower_case: bool = False
    cleans: bool = False  # whether texts are `cleaned` first, which a tokenizer saved by transformers does not keep

    @classmethod
    def read(cls, folder: Path, length: int, family: TowerFamily) -> TextTokenizer:
        """That of a folder, for a text tower of a family."""
        return cls(AutoTokenizer.from_pretrained(folder), length, family.trims, family.lower_case, family.cleans)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without padding; of one that is cut the last token is its end all the same."""
        return self._ids(texts, cut=True)

    def cut(self, text: str) -> bool:
        """Whether a text is longer than the tower reads."""
        return self.lengths([text])[0] > self.length

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text as a whole, beyond `length` too."""
        return [len(ids) for ids in self._ids(texts, cut=False)]

    def pad(self, texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input ids int64[n, L] of texts padded to the longest of them, or to `length`, and their mask int64[n, L]."""
        width = max(map(len, texts), default=0) if self.trims else self.length
        ids = torch.full((len(texts), width), int(self.tokenizer.pad_token_id), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        left = not self.trims and self.tokenizer.padding_side == "left"
        for row, text in enumerate(texts):
            start = width - len(text) if left else 0
            ids[row, start : start + len(text)] = torch.as_tensor(text)
            mask[row, start : start + len(text)] = 1
        return ids, mask

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder."""
        self.tokenizer.save_pretrained(folder)

    def _ids(self, texts: Sequence[str], *, cut: bool) -> list[list[int]]:
        if not texts:
            return []
        if self.cleans:
            texts = [cleaned(text) for text in texts]
        if self.lower_case:
            texts = [text.lower() for text in texts]
        # A text that is only counted needs no warning about its length.
        limit = {"truncation": True, "max_length": self.length} if cut else {"verbose": False}
        ids: list[list[int]] = self.tokenizer(list(texts), **limit)["input_ids"]
        return ids


def cleaned(text: str) -> str:
    """A text as CLIP's and open_clip's tokenizers clean it before they cut it, but for letters in a wrong encoding.

    Those of transformers do not: "dermatoﬁbroma" would be another word than it was in training
    (findings/clip-tokenizer-leaves-ligatures.sh).

    >>> cleaned("a dermatoﬁbroma &amp;lt; 6 mm, “target”&nbsp;like（arm）")
    'a dermatofibroma < 6 mm, "target" like(arm)'
    """
    once = text if "<" in text else html.unescape(text)  # ftfy takes what has a < for the source of a page
    return " ".join(html.unescape(html.unescape(once.translate(PLAIN))).split())


Choice = Callable[[int, int], tuple[float, float, float, float]]  # height, width → left, top, right, bottom


class ImageFormat(ABC):
    """How image files become what an image tower reads; a Draw decides what is cut out of them, a format how."""

    __slots__ = ()

    @abstractmethod
    def whole(self, path: Path) -> Image.Image:
        """An image file as it is where nothing is augmented, RGB.

        Raises:
            ImageError: it cannot be read.
        """

    @abstractmethod
    def cut(self, path: Path, choose: Choice) -> Image.Image:
        """A rectangle of an image file, RGB.

        Raises:
            ImageError: it cannot be read.
        """

    @abstractmethod
    def batch(self, pictures: Sequence[Image.Image]) -> Any:
        """Pictures that `whole` or `cut` gave, together: with a length, and slices of the same kind."""

    @abstractmethod
    def normalised(self, pixels: Any) -> Any:
        """What the image tower takes, of a `batch`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the files of an image processor that does the same into a folder."""


@dataclass(frozen=True, slots=True)
class PixelFormat(ImageFormat):
    """What an image tower reads: a square of RGB pixels, normalised."""

    side: int  # pixels
    mean: tuple[float, float, float]  # of values from 0 to 1, red, green, blue
    std: tuple[float, float, float]
    resample: Image.Resampling = Image.Resampling.BICUBIC
    crops: bool = True  # shorter side to `side`, then the middle of it; else both sides to it, whatever its shape
    profiles: Profiles = "srgb"  # how image files tagged with a colour profile are read

    @classmethod
    def read(cls, folder: Path, side: int, profiles: Profiles = "srgb") -> PixelFormat:
        """That of a folder's image processor, for a tower of images of this side."""
        processor = AutoImageProcessor.from_pretrained(folder)
        return cls(
            side,
            tuple(processor.image_mean),
            tuple(processor.image_std),
            Image.Resampling(int(processor.resample)),
            bool(getattr(processor, "do_center_crop", False)),
            profiles,
        )

    def whole(self, path: Path) -> Image.Image:
        """An image file as the tower reads it where nothing is augmented, RGB of `side` by `side` pixels.

        Raises:
            ImageError: it cannot be read.
        """
        return self.square(upright(path, self.profiles))

    def cut(self, path: Path, choose: Choice) -> Image.Image:
        """A rectangle of an image file, RGB of `side` by `side` pixels.

        Raises:
            ImageError: it cannot be read.
        """
        return cropped(path, self.side, self.resample, choose, self.profiles)

    def batch(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """uint8[B, 3, H, W]."""
        pixels = torch.empty(len(pictures), 3, self.side, self.side, dtype=torch.uint8)
        for row, picture in enumerate(pictures):
            pixels[row] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels

    def square(self, image: Image.Image) -> Image.Image:
        """An RGB image as the tower reads it where nothing is augmented, of `side` by `side` pixels."""
        side = self.side
        if not self.crops:
            return image.resize((side, side), self.resample)
        # As transformers has it: the longer side rounded down, the window to the upper left of the exact middle.
        short, long = sorted(image.size)
        longer = int(side * long / short)
        width, height = (side, longer) if image.width <= image.height else (longer, side)
        left, top = (width - side) // 2, (height - side) // 2
        return image.resize((width, height), self.resample).crop((left, top, left + side, top + side))

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32[B, 3, H, W] of pixels uint8[B, 3, H, W], or of the same as floats from 0 to 1."""
        values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        mean, std = (torch.tensor(row, device=pixels.device).view(3, 1, 1) for row in (self.mean, self.std))
        return (values - mean) / std

    def save(self, folder: Path) -> None:
        """Writes the files of an image processor that does the same into a folder."""
        side = {"height": self.side, "width": self.side}
        CLIPImageProcessor(
            size={"shortest_edge": self.side} if self.crops else side,
            crop_size=side,
            do_center_crop=self.crops,
            resample=int(self.resample),
            image_mean=list(self.mean),
            image_std=list(self.std),
        ).save_pretrained(folder)
