"""Tiny bases of two towers, a drawn source with classes, and recipes over both."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers import sources, tiny
from skinvl.data import example
from skinvl.data.example import Example, Facts, text
from skinvl.data.pixels import upright
from skinvl.model import tiny_towers
from skinvl.model.towers_loaded import LoadedTowers
from skinvl.recipe import towers
from skinvl.recipe.towers import PretrainRecipe
from skinvl.train import pretrain
from skinvl.train.dual_trainer import DualTrainer

DIAGNOSES = ("melanoma metastasis", "scar", "dermatofibroma")  # few synonyms
_ROOT = tempfile.TemporaryDirectory(prefix="skinvl-towers-")


@cache
def base(family: str) -> Path:
    """The folder of a tiny base; shared by all tests, so nothing may write into it."""
    said = ("A photo of a brown melanoma with a jagged border.", "A nevus, or a basal cell carcinoma, on the back.")
    return tiny_towers.build(family, Path(_ROOT.name) / family, texts=said)


def source(folder: Path, images: int = 6, splits: tuple[str, ...] = ("train", "test", "validation")) -> Path:
    """A prepared source: a diagnosis and a description of each image, its last one's diagnosis no class."""
    (folder / "images").mkdir(parents=True)
    for start, split in enumerate(splits):
        examples = []
        for index in range(images):
            name = f"images/{split}-{index}.png"
            tiny.picture(index + 50 * start, (112, 90 + 8 * index)).save(folder / name)
            diagnosis = "nevus" if index == images - 1 else DIAGNOSES[index % 3]
            for kind, answer in (("description", f"Number {index}: a {diagnosis} of {split}."), ("colour", "Brown.")):
                turns = (text("user", "What is it?", 1), text("assistant", answer))
                facts = Facts(diagnosis=diagnosis, kind=kind)
                id_ = f"{split}-{index}-{kind}"
                examples.append(Example(id_, "lesions", (name,), turns, name, split, "CC0-1.0", facts))
        example.write(folder, split, examples)
    return sources.fingerprint(folder, alike=False)


def recipe(tmp_path: Path, family: str = "clip", **changes: Any) -> PretrainRecipe:
    """A recipe of a tiny base over the source in `lesions`, in fp32; changes are `section__key=value`."""
    data = tmp_path / "lesions"
    if not data.is_dir():
        source(data)
    tree: dict[str, Any] = {
        "base": str(base(family)),
        "data": {
            "train": [{"source": str(data), "split": "train"}],
            "eval": [{"source": str(data), "split": "test"}],
        },
        "objective": {"name": "siglip" if family == "siglip" else "clip"},
        "batch": {"images": 4},
        "evaluate": {
            "classify": [{"source": str(data), "classes": list(DIAGNOSES)}],
            "batch_size": 2,
            "synonyms": False,
        },
        "train": {"bf16": False, "report_to": "none", "use_cpu": True},
    }
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    file = tmp_path / "towers.yaml"
    file.write_text(yaml.safe_dump(tree))
    return towers.load(str(file))


def image_alone(loaded: LoadedTowers, path: Path) -> torch.Tensor:
    """float64[D], the embedding of one image, its pixels made by hand."""
    return images_by_hand(loaded, [path])[0]


@torch.no_grad()
def images_by_hand(loaded: LoadedTowers, paths: Sequence[Path]) -> torch.Tensor:
    """float64[N, D], the embeddings of images in one pass, their pixels made by hand."""
    made = []
    for path in paths:
        square = loaded.pixels.square(upright(path))
        bytes_ = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        pixels = bytes_.reshape(square.height, square.width, 3).float() / 255
        made.append((pixels - torch.tensor(loaded.pixels.mean)) / torch.tensor(loaded.pixels.std))
    model: Any = loaded.model
    embeddings: torch.Tensor = model.encode_images(torch.stack(made).permute(0, 3, 1, 2)).embeddings.double()
    return embeddings


@torch.no_grad()
def text_alone(loaded: LoadedTowers, said: str) -> torch.Tensor:
    """float64[D], the embedding of one text."""
    model: Any = loaded.model
    embedding: torch.Tensor = model.encode_texts(*loaded.tokenizer.pad(loaded.tokenizer([said])))[0].double()
    return embedding


class Interrupted(Exception):
    """What ends a training before a step."""


def interrupt(one: PretrainRecipe, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains a recipe, and stops it before a step."""
    taken = DualTrainer.training_step

    def stops(self: DualTrainer, *positional: Any) -> torch.Tensor:
        if self.state.global_step == step:
            raise Interrupted
        return taken(self, *positional)

    with monkeypatch.context() as patch:
        patch.setattr(DualTrainer, "training_step", stops)
        with pytest.raises(Interrupted):
            pretrain.train(one)
