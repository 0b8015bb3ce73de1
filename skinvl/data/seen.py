"""What a training has seen of an image that is to be evaluated: its photograph, its group or its caption."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from skinvl.data.texts import ImageText, TextedImage

LONG = 12  # words; nobody writes so many twice by chance

What = Literal["image", "group", "caption"]


class Seen:
    """The photographs, groups and captions of the images that were trained on.

    Figures of books and articles come again under other bytes, and their caption gives them away: one that a single
    group of the train set has, or a long one. A short caption that several groups share is a phrase, which tells
    nothing of an image.
    """

    def __init__(self, train: Sequence[TextedImage]) -> None:
        self._photographs = {image.image for image in train}
        self._groups = {image.group for image in train}
        self._groups_of: dict[int, set[int]] = defaultdict(set)
        for image in train:
            for text in image.texts:
                self._groups_of[text.key].add(image.group)

    def what(self, image: TextedImage) -> What | None:
        """What of the image was seen; None if nothing was."""
        if image.image in self._photographs:
            return "image"
        if image.group in self._groups:
            return "group"
        return "caption" if any(text.aspect == "caption" and self._given_away(text) for text in image.texts) else None

    def _given_away(self, text: ImageText) -> bool:
        groups = self._groups_of.get(text.key, set())
        return len(groups) == 1 or (bool(groups) and len(text.text.split()) > LONG)
