"""The images that a recipe trains on, each once, with what no split may cut, and their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from rich.console import Console

from skinvl.data import mixture
from skinvl.evaluate import embed
from skinvl.evaluate.embed import Vectors
from skinvl.model.towers_loaded import LoadedTowers
from skinvl.recipe.towers import PretrainRecipe


@dataclass(frozen=True, slots=True)
class TrainImages:
    """N images of train sources."""

    shown: Sequence[tuple[Path, str]]  # folder of the source, and path in it
    groups: NDArray[np.int64]  # int64[N]: what names and images hold together has one number
    sources: Sequence[str]  # of each image

    def name(self, row: int) -> str:
        """What an image is called in files: its source and the path in it."""
        return f"{self.sources[row]}:{self.shown[row][1]}"

    def of(self, rows: NDArray[np.int64]) -> TrainImages:
        """Those of these row numbers."""
        numbers = rows.tolist()
        return TrainImages(
            [self.shown[row] for row in numbers], self.groups[rows], [self.sources[row] for row in numbers]
        )


def train_images(recipe: PretrainRecipe) -> TrainImages:
    """The images of the rows that a recipe trains on, in their order.

    Raises:
        FileNotFoundError, LeakError, ValueError: as `mixture.load`.
    """
    rows = mixture.load(recipe.data).train
    _, clusters = mixture.keys(rows)
    of: dict[tuple[Path, str], tuple[int, str]] = {}
    for row, cluster in zip(rows, clusters.tolist(), strict=True):
        for path in row.example.images:
            of.setdefault((row.root, path), (cluster, row.example.source))
    return TrainImages(list(of), np.array([group for group, _ in of.values()], np.int64), [s for _, s in of.values()])


def embedded(
    loaded: LoadedTowers, images: TrainImages, state: PartialState, say: Console
) -> tuple[TrainImages, Vectors, list[str]]:
    """The images that can be read, their embeddings float32[N, D], and the paths of the others."""
    vectors = embed.images(loaded, images.shown, state, say)
    readable = np.isfinite(vectors).all(axis=1) if len(images.shown) else np.zeros(0, bool)
    unread = [images.shown[row][1] for row in np.flatnonzero(~readable).tolist()]
    kept = np.flatnonzero(readable)
    return images.of(kept), vectors[kept], unread
