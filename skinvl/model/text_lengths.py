"""Which texts the text tower reads whole, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from skinvl.data.example import Dropped
from skinvl.data.sentences import sentences
from skinvl.data.texts import ImageText, TextedImage, text_key
from skinvl.model.dual_inputs import TextTokenizer

TOGETHER = 10_000  # texts whose tokens are counted at a time


@dataclass(frozen=True, slots=True)
class Fitted:
    """Images whose texts the text tower reads, and what became of those that are too long."""

    images: list[TextedImage]
    texts: int  # of all images
    cut: int  # of these, read without their end
    split: int  # were split into several, by their sentences
    ledger: list[Dropped]  # `long-text`: a text that is left out; `no-text`: an image with no text left


def fitted(
    images: Sequence[TextedImage], tokenizer: TextTokenizer, too_long: Literal["cut", "split", "ledger"]
) -> Fitted:
    """The images with texts that fit, as data.too_long says; a split text's single sentences may still be cut."""
    distinct = list({text.text: None for image in images for text in image.texts})
    too_long_texts = set[str]()
    for start in range(0, len(distinct), TOGETHER):
        texts_together = distinct[start : start + TOGETHER]
        lengths = tokenizer.lengths(texts_together)
        too_long_texts |= {
            text for text, length in zip(texts_together, lengths, strict=True) if length > tokenizer.length
        }

    kept, ledger, split = [], list[Dropped](), 0
    for image in images:
        long = [text for text in image.texts if text.text in too_long_texts]
        if not long or too_long == "cut":
            kept.append(image)
            continue
        if too_long == "split":
            parts: dict[int, ImageText] = {}
            for text in image.texts:
                pieces = _split(text, tokenizer) if text in long else [text]
                split += len(pieces) > 1
                for piece in pieces:
                    parts.setdefault(piece.key, piece)
            texts = tuple(parts.values())
        else:
            detail = f"longer than {tokenizer.length} tokens: "
            ledger += [Dropped(image.name, "long-text", f"{text.aspect} {detail}{text.text!r:.80}") for text in long]
            texts = tuple(text for text in image.texts if text not in long)
        if texts:
            kept.append(replace(image, texts=texts))
        else:
            ledger.append(Dropped(image.name, "no-text", "all of its texts are too long"))

    every = [text.text for image in kept for text in image.texts]
    if too_long == "split":  # a sentence alone may be too long
        new = list(dict.fromkeys(every).keys() - set(distinct))
        lengths = tokenizer.lengths(new)
        too_long_texts |= {text for text, length in zip(new, lengths, strict=True) if length > tokenizer.length}
    return Fitted(kept, len(every), sum(text in too_long_texts for text in every), split, ledger)


def _split(text: ImageText, tokenizer: TextTokenizer) -> list[ImageText]:
    """A text that is too long as few parts of whole sentences as fit, one of which may be too long by itself."""
    parts: list[str] = []
    for sentence in sentences(text.text):
        if parts and not tokenizer.cut(f"{parts[-1]} {sentence}"):
            parts[-1] += f" {sentence}"
        else:
            parts.append(sentence)
    return [ImageText(part, text.aspect, text_key(part)) for part in parts]
