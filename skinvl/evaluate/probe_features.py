"""What the frozen image tower of a recipe makes of image files, a vector each, for a linear probe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from numpy import float32
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.data import DataLoader

from skinvl.data import fingerprints
from skinvl.data.pixels import ImageError
from skinvl.data.progress import Progress
from skinvl.evaluate import embed
from skinvl.evaluate.benchmarks import Sample
from skinvl.model.base import autocast, load_tower
from skinvl.model.chat import Chat, ChatError
from skinvl.model.families import Picture
from skinvl.model.loaded import open_base
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.towers import PretrainRecipe, TowersProbe


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """An image through the tower: float32[W], and the sha256 of its file; or why it cannot be read."""

    features: NDArray[float32] | None
    sha256: str
    detail: str


Encoded = Mapping[Path, ImageFeatures]


def features_of(recipe: Recipe | PretrainRecipe) -> str:
    """What a probe of the recipe learns from: tower or embedding."""
    asked = recipe.evaluate.probe
    return asked.features if isinstance(asked, TowersProbe) else "tower"


def look(
    recipe: Recipe, samples: Iterable[Sample], state: PartialState, say: Console
) -> tuple[dict[Path, ImageFeatures], dict[str, Any]]:
    """What the base's vision tower makes of every image of the samples, and the facts of it that settings hold."""
    base = open_base(recipe)  # an adapter leaves the tower as it was
    family = base.family
    tower = load_tower(base.path, family, recipe).to(state.device)
    paths: Any = _paths(samples)
    workers = int(recipe.train.get("dataloader_num_workers", 0))
    reading: Any = _Reading(base.chat)  # of one path, where a batch would be a list
    loader: Any = DataLoader(paths, batch_size=None, collate_fn=reading, num_workers=workers)
    encoded = {}
    with Progress("vision features", len(paths), say) as progress:
        for path, picture, pixels, sha256, detail in loader:
            features = None
            if picture is not None:
                with torch.no_grad(), autocast(recipe, state.device):
                    whole = family.encode(tower, picture, pixels).float()
                features = pooled(whole, picture).cpu().numpy()
            encoded[path] = ImageFeatures(features, sha256, detail)
            progress.advance(1)
    return encoded, {**base.facts, "features": features_of(recipe), "device": state.device.type}


def look_towers(
    recipe: PretrainRecipe, samples: Iterable[Sample], state: PartialState, say: Console
) -> tuple[dict[Path, ImageFeatures], dict[str, Any]]:
    """As `look`, of the image tower of two, or the embeddings that both compare."""
    loaded = load_towers(recipe, state.device)
    paths = _paths(samples)
    size = recipe.evaluate.batch_size
    blocks = [paths[start : start + size] for start in range(0, len(paths), size)]
    encoded = {}
    with Progress("image features", len(paths), say) as progress:
        for block in embed.streamed(loaded, blocks, tower=features_of(recipe) == "tower"):
            for path, made in block.items():
                if isinstance(made, str):
                    encoded[path] = ImageFeatures(None, "", made)
                else:
                    encoded[path] = ImageFeatures(made, fingerprints.sha256(path), "")
            progress.advance(len(block))
    return encoded, {**loaded.facts, "features": features_of(recipe), "device": state.device.type}


def _paths(samples: Iterable[Sample]) -> list[Path]:
    return sorted({sample.root / name for sample in samples for name in sample.example.images})


def pooled(features: torch.Tensor, picture: Picture) -> torch.Tensor:
    """The mean over positions, float[W], of [positions, W] or of [tiles, positions, W] that the picture fills."""
    if features.ndim == 3:  # what the tower makes of the other tiles says nothing of the image
        features = features[: math.prod(picture.grid)].flatten(0, 1)
    return features.mean(0)


@dataclass(frozen=True, slots=True)
class _Reading:
    """An image file → its pixels for the tower: a collate function, so that workers decode."""

    chat: Chat

    def __call__(self, path: Path) -> tuple[Path, Picture | None, torch.Tensor | None, str, str]:
        try:
            image = self.chat.upright(path)
            picture = self.chat.picture((image.height, image.width))
        except (ImageError, ChatError) as error:
            return path, None, None, "", str(error)
        digest = fingerprints.sha256(path)
        return path, picture, self.chat.pixels(image), digest, ""
