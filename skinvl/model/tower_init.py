"""`parts.vision.init`: the vision tower of a base starts as the image tower that a run of two towers has trained.

Both are of one architecture: CLIP's tower for LLaVA, SigLIP's for Gemma 3. Where they read images of other sizes, the
positions of the patches are interpolated as transformers does, never that of CLS. The tower trains in full, so that the
adapter holds it whole, and the projector, which was fitted to the old one, trains too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PretrainedConfig

from skinvl.model.adapter import AdapterError, trained_parameters
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.families import Family
from skinvl.model.families.llava import LAYER, Llava
from skinvl.model.loaded import OpenBase
from skinvl.model.names import WRAPPER
from skinvl.model.towers_loaded import PixelFormat, read_config
from skinvl.recipe import run
from skinvl.recipe.recipe import Recipe

POSITIONS = "embeddings.position_embedding.weight"
# What makes an architecture; how large an image is does not, its positions apart.
SHAPE = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
    *("hidden_act", "layer_norm_eps"),
)


@dataclass(frozen=True, slots=True)
class ImageTower:
    """The image tower of a run of two towers, in place of a base's own."""

    path: Path  # the folder of the two towers' weights
    digest: str  # of these
    side: int  # of its images, pixels
    own_side: int  # of those of the base
    patch: int  # side of a patch, pixels

    def lines(self, family: Family) -> list[str]:
        """What there is to know of it before it trains."""
        said = [f"parts.vision.init: the vision tower starts as the image tower of {self.path}"]
        if self.side != self.own_side:
            grids = (f"{side // self.patch} × {side // self.patch}" for side in (self.side, self.own_side))
            said.append(f"its positions are interpolated from {' to '.join(grids)} patches")
        if isinstance(family, Llava):
            said.append(f"LLaVA reads layer {LAYER}: what the tower learnt in its last one is not used")
        return ["; ".join(said)]

    def copy_into(self, model: PeftModel, family: Family) -> None:
        """Copies its weights into the vision tower that trains.

        Raises:
            AdapterError: a weight of the tower is not among its own, or of another shape.
        """
        weights = _weights(self.path)
        (tower,) = family.parts["vision"]
        trained = {
            name.removeprefix(f"{WRAPPER}{tower}."): parameter
            for name, parameter in trained_parameters(model).items()
            if name.startswith(f"{WRAPPER}{tower}.")
        }
        if POSITIONS in trained and POSITIONS in weights:
            weights[POSITIONS] = resized(weights[POSITIONS], len(trained[POSITIONS]))
        for name, parameter in trained.items():
            if name not in weights or weights[name].shape != parameter.shape:
                found = f"has shape {tuple(weights[name].shape)}" if name in weights else "is not there"
                raise AdapterError(
                    f"parts.vision.init {self.path}: {name} {found}; expected {tuple(parameter.shape)}, as the vision "
                    "tower of the base has it"
                )
        for name, parameter in trained.items():
            parameter.data.copy_(weights[name])


def of_recipe(recipe: Recipe, config: PretrainedConfig) -> ImageTower | None:
    """The image tower that a recipe's vision tower starts as; None where it starts as published.

    Raises:
        AdapterError: no two towers that a run has left whole, or an image tower of another architecture.
        RunError: the run has not ended.
    """
    if recipe.parts.vision.init is None:
        return None
    path = _folder(Path(recipe.parts.vision.init).expanduser())
    image, _ = _config(path).image_and_text
    own: Any = getattr(config, "vision_config", None)
    for key in SHAPE:
        found, expected = getattr(image, key, None), getattr(own, key, None)
        if found != expected:
            raise AdapterError(
                f"parts.vision.init {path}: an image tower with {key}={found}, and the vision tower of "
                f"{recipe.base.name} has {expected}; give a run on towers of its architecture, or skinvl pretrain "
                f"base={recipe.base.name}, which trains the base's own tower"
            )
    return ImageTower(path, run.adapter_digest(path), image.image_size, own.image_size, image.patch_size)


def require_same_pixels(tower: ImageTower | None, base: OpenBase) -> None:
    """Refuses a tower that has learnt from pixels that were normalised otherwise than the base's are.

    Raises:
        AdapterError: it has.
    """
    if tower is None:
        return
    processor: Any = base.chat.processor
    ours = PixelFormat.read(tower.path, tower.side)
    theirs = tuple(processor.image_processor.image_mean), tuple(processor.image_processor.image_std)
    if (ours.mean, ours.std) != theirs:
        raise AdapterError(
            f"parts.vision.init {tower.path}: it learnt from pixels with mean {ours.mean} and standard deviation "
            f"{ours.std}, those of {base.recipe.base.name} have {theirs[0]} and {theirs[1]}; give a run on towers that "
            "read pixels as this base does"
        )


def resized(positions: torch.Tensor, wanted: int) -> torch.Tensor:
    """float32[wanted, W] of positions float32[n, W]: those of a square of patches, interpolated, behind CLS if any."""
    if len(positions) == wanted:
        return positions
    before = 0 if math.isqrt(len(positions)) ** 2 == len(positions) else 1
    old, new = (math.isqrt(count - before) for count in (len(positions), wanted))
    grid = positions[before:].float().view(1, old, old, -1).permute(0, 3, 1, 2)
    larger = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:before].float(), larger.flatten(2)[0].T])


def _folder(path: Path) -> Path:
    """Where the weights of a run lie; a folder of two towers that is no run's is taken as it is."""
    if not (path / run.RECIPE).is_file():
        return path
    finished = run.finished_towers(path)
    if finished.recipe.leaves_adapter:
        raise AdapterError(
            f"parts.vision.init {path}: a run with LoRA, whose towers are no whole model; merge it with skinvl merge "
            f"{path}, and give {path / 'merged'}"
        )
    return finished.trained


def _config(path: Path) -> DualEncoderConfig:
    if not (path / "config.json").is_file():
        raise AdapterError(
            f"parts.vision.init {path}: neither a run of skinvl pretrain nor a folder of two towers; give runs/NAME"
        )
    return read_config(path)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of the image tower of a folder of two, in fp32, by their names in the tower."""
    model = DualEncoder.from_pretrained(path, dtype=torch.float32)
    return model.image_tower.state_dict()
