"""Images with texts by hand, and a tokenizer of words by their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinvl.data.texts import ImageText, TextedImage, text_key


@dataclass
class Letters:
    """A tokenizer of words by their lengths, between 1 and 2."""

    length: int = 8

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [[1, *(10 + len(word) for word in text.split()[: self.length - 2]), 2] for text in texts]

    def lengths(self, texts: list[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]

    def cut(self, text: str) -> bool:
        return self.lengths([text])[0] > self.length


def image(folder: Path, number: int, *texts: str, **other: Any) -> TextedImage:
    own = tuple(ImageText(text, "caption", text_key(text)) for text in texts)
    values = {"image": number, "group": 100 + number, "diagnosis": None, **other}
    return TextedImage(folder, f"{number}.png", "drawn", own, **values)
