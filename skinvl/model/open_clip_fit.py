"""Which activation a checkpoint's CLIP towers were trained with, by what a few pairs say of both: its files do not.

A tower trained with QuickGELU and run with GELU, or the other way round, gives features that look sound. On images and
their own texts its InfoNCE is higher than that of the right one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from skinvl.data import example
from skinvl.data.pixels import ImageError, upright
from skinvl.data.source import source_folder
from skinvl.data.texts import KINDS
from skinvl.model import open_clip_forward
from skinvl.model.dual_inputs import PixelFormat, TextTokenizer
from skinvl.model.open_clip_layout import Layout
from skinvl.recipe.recipe import SourceSpec

PAIRS = 8  # enough, since both are asked about the same; in float64 they take a ViT-B some ten seconds
CLEAR = 0.02  # of the larger InfoNCE
Pair = tuple[Path, str]


@dataclass(frozen=True, slots=True)
class Fit:
    """InfoNCE of the same pairs by both activations; it is ln n where features say nothing."""

    n: int
    quick_gelu: float
    gelu: float

    @property
    def fits(self) -> Literal["quick_gelu", "gelu"] | None:
        """The one with clearly less; None where they are about the same, as with weights that say nothing."""
        if abs(self.quick_gelu - self.gelu) <= CLEAR * max(self.quick_gelu, self.gelu):
            return None
        return "quick_gelu" if self.quick_gelu < self.gelu else "gelu"

    def __str__(self) -> str:
        """The two, and which fits, as a sentence."""
        fits = {"quick_gelu": "QuickGELU fits", "gelu": "GELU fits", None: "neither is clearly less"}
        return (
            f"on {self.n} pairs InfoNCE is {self.quick_gelu:.3f} with QuickGELU and {self.gelu:.3f} with GELU: "
            f"{fits[self.fits]}"
        )


def pairs(sources: Iterable[SourceSpec]) -> list[Pair]:
    """Images with their captions from the first source that is prepared and has some, at most PAIRS; none twice."""
    for spec in sources:
        folder = source_folder(spec.source)
        if not (folder / f"{spec.split}.parquet").is_file():
            continue
        few = list(islice(_captioned(folder, spec.split), PAIRS))
        if len(few) > 1:
            return few
    return []


def _captioned(folder: Path, split: str) -> Iterator[Pair]:
    """Images that can be read, each with one caption, and no caption twice."""
    images, captions = set(), set()
    for row in example.read(folder, split):
        answers = [example.words(message) for message in row.messages if message["role"] == "assistant"]
        is_caption = len(row.images) == 1 and KINDS.get(row.facts.kind or "") == "caption"
        if not is_caption or row.images[0] in images or answers[0] in captions:
            continue
        try:
            upright(folder / row.images[0])
        except ImageError:
            continue
        images.add(row.images[0])
        captions.add(answers[0])
        yield folder / row.images[0], answers[0]


@torch.no_grad()
def fit(
    tensors: Mapping[str, torch.Tensor],
    layout: Layout,
    tokenizer: TextTokenizer,
    pixels: PixelFormat,
    pairs: Sequence[Pair],
) -> Fit:
    """InfoNCE of some pairs by both activations."""
    squares = [np.array(pixels.whole(path)) for path, _ in pairs]
    values = pixels.normalised(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
    ids, _ = tokenizer.pad(tokenizer([text for _, text in pairs]))

    losses = []
    for quick_gelu in (True, False):
        images = open_clip_forward.images(tensors, values, heads=layout.image_heads, quick_gelu=quick_gelu)
        texts = open_clip_forward.texts(tensors, ids, heads=layout.text_heads, quick_gelu=quick_gelu, pad=layout.pad)
        losses.append(open_clip_forward.info_nce(images, texts, tensors["logit_scale"].flatten()[0]))
    return Fit(len(pairs), *losses)
