"""The texts of an image: captions, ontology paths, concepts and sentences, made of the Examples that show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Aspect = Literal["caption", "ontology", "concepts", "sentence"]


@dataclass(frozen=True, slots=True)
class ImageText:
    """One text of an image."""

    text: str
    aspect: Aspect
    key: int  # the same for texts that read the same, case and spaces apart


@dataclass(frozen=True, slots=True)
class TextedImage:
    """One image with all its texts, and what tells whose it is."""

    root: Path  # the folder that its path starts from
    path: str
    source: str
    texts: tuple[ImageText, ...]  # each once, in the order caption, ontology, concepts, sentences
    image: int  # the same for one photograph: bytes, archive id or perceptual hash
    group: int  # the same for one patient, lesion, figure, over all sources
    diagnosis: str | None  # canonical
    path_of_diagnosis: tuple[str, ...] = ()  # from the broadest class to the disease, where an Example says it
    weight: float = 1.0
