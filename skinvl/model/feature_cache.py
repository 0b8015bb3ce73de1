"""What a frozen vision tower makes of an image, kept on disk: a file is there whole, or it is computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from skinvl.data import fingerprints
from skinvl.model.families import Picture
from skinvl.recipe.files import whole_file

NAME = "features"  # of the one tensor in a file
CHECK = "xxh3_128"  # of its bytes, in the file's metadata


class CacheError(ValueError):
    """Features that cannot be kept, or that were lost while a run needed them."""


@dataclass(frozen=True, slots=True)
class Cache:
    """The features of images under one tower and one image budget: a file for each, named by the image's sha256.

    Files are memory-mapped: what fits into memory stays in the system's page cache, across epochs and runs.
    """

    folder: Path
    dtype: torch.dtype
    shape: Callable[[Picture], tuple[int, ...]]

    def file(self, image: Path) -> Path:
        """Where the features of an image lie, whatever the image is called.

        Raises:
            OSError: the image cannot be read.
        """
        digest = fingerprints.sha256(image)
        return self.folder / digest[:2] / f"{digest[2:]}.safetensors"

    def read(self, image: Path, picture: Picture) -> torch.Tensor | None:
        """The features of an image, or None where they were never computed, or the file is not as it was written."""
        try:
            with safe_open(self.file(image), "pt") as opened:
                check = (opened.metadata() or {}).get(CHECK)
                features: torch.Tensor = opened.get_tensor(NAME)
        except (FileNotFoundError, SafetensorError):
            return None
        shaped = features.shape == self.shape(picture) and features.dtype == self.dtype
        return features if shaped and check == _digest(features) else None

    def get(self, image: Path, picture: Picture) -> torch.Tensor:
        """The features of an image that a run has computed before it began.

        Raises:
            CacheError: they are gone, or no longer what was written.
        """
        features = self.read(image, picture)
        if features is None:
            raise CacheError(
                f"{self.file(image)}: gone or damaged since the run began, and the tower that could compute the "
                f"features of {image} again is not loaded; the same command with resume=auto does that and goes on"
            )
        return features

    def blank(self, picture: Picture) -> torch.Tensor:
        """Features for an image that nothing is trained on: zeros."""
        return torch.zeros(self.shape(picture), dtype=self.dtype)

    def write(self, image: Path, features: torch.Tensor) -> None:
        """Writes the features of an image into its file, which appears whole.

        Raises:
            CacheError: there is no room, or the folder cannot be written to.
        """
        path = self.file(image)
        kept = features.detach().cpu().contiguous()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:  # other processes may write the same image's at once
                save_file({NAME: kept}, partial, metadata={CHECK: _digest(kept)})
        except (OSError, SafetensorError) as error:
            raise CacheError(
                f"{path}: cannot be written ({error}); make room, link cache/ to another disk, or set cache_gb=0 and "
                "have the tower run in every step"
            ) from error


def buffer(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _digest(tensor: torch.Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(buffer(tensor))
