"""Two towers by their config alone, before their weights are anywhere: from the hub, or from a folder of configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from safetensors import safe_open
from transformers import AutoTokenizer

from skinvl.data.source import source_folder
from skinvl.model import hub, open_clip, own_tower, tiny, tiny_towers, towers
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.dual_inputs import PixelFormat, TextTokenizer
from skinvl.model.hub import BaseError, Snapshot
from skinvl.model.open_clip_layout import layout
from skinvl.model.own_tower import OpenGenerative
from skinvl.model.towers_loaded import OpenTowers, read_config
from skinvl.plan.configs import config_folder, files, processor_of
from skinvl.recipe.files import read_json
from skinvl.recipe.towers import PretrainRecipe

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # a folder with one of them has a tokenizer


def open_config(recipe: PretrainRecipe, configs: Path | None, folder: Path) -> tuple[OpenTowers, bool]:
    """The two towers of a recipe without files of weights, and whether the tokenizer is their own or stands in.

    A checkpoint of open_clip has its sizes in the header of its weights, of which nothing else is fetched.

    Args:
        configs: a folder of model configs to read instead of the hub; the sub-folder is the last part of the model id
            in lower case.
        folder: where what is built on the way may lie.

    Raises:
        BaseError: they cannot be had, or `configs` lacks them.
    """
    read, config = _read(recipe, configs, folder)
    image, text = config.image_and_text
    images, texts = towers.of_image(image.model_type), towers.of_text(text.model_type)
    side, own = images.side(image), any((read.path / name).is_file() for name in TOKENIZER_FILES)
    if own:
        tokenizer = TextTokenizer.read(read.path, config.text_length, texts)
    else:
        stand_in = texts.tiny.tokenizer(["a b c"])
        tokenizer = TextTokenizer(stand_in, config.text_length, texts.trims, texts.lower_case, texts.cleans)
    pixels = PixelFormat(side, images.tiny.mean, images.tiny.std, crops=images.tiny.crops)
    return OpenTowers(recipe, read, read.path, config, tokenizer, pixels), own


def open_generative(recipe: PretrainRecipe, configs: Path | None, folder: Path) -> tuple[OpenGenerative, bool]:
    """As `open_config`, of a generative base with its text side.

    Raises:
        BaseError: one of them cannot be had, or `configs` lacks it.
    """
    text, own = open_config(own_tower.of_text(recipe), configs, folder)
    path = files(recipe, configs, folder)
    return own_tower.read(recipe, Snapshot(path, None), text, processor_of(path, folder)[0]), own


def blank(config: DualEncoderConfig) -> DualEncoder:
    """The model of a config on the meta device: every module and shape, no weights."""
    with torch.device("meta"):
        return DualEncoder(config)


def _read(recipe: PretrainRecipe, configs: Path | None, folder: Path) -> tuple[Snapshot, DualEncoderConfig]:
    base = recipe.base
    if base.random is not None:  # a dry run leaves nothing behind
        sources = [source_folder(spec.source) for spec in recipe.data.train]
        prepared = [source for source in sources if (source / "train.parquet").is_file()]
        built = tiny_towers.build(base.random, folder / base.name, texts=list(tiny.texts(prepared)) or ["a b c"])
        return Snapshot(built, None), read_config(built)
    if configs is not None:
        path = config_folder(configs, base.location)
        if not (path / "config.json").is_file():
            have = ", ".join(sorted(file.parent.name for file in configs.glob("*/config.json"))) or "none"
            raise BaseError(
                f"--configs {configs}: no {path.name}/config.json for base {base.name}; found: {have}. "
                "For a checkpoint of open_clip give that of its conversion, from bases/"
            )
        return Snapshot(path, None), read_config(path)
    fetched = hub.fetch(base.location, base.revision, weights=False, towers=True)
    if open_clip.is_checkpoint(fetched.path):
        return fetched, _of_open_clip(recipe, fetched)
    return fetched, read_config(fetched.path)


def _of_open_clip(recipe: PretrainRecipe, files: Snapshot) -> DualEncoderConfig:
    """The config of a checkpoint's conversion, from the names and shapes of its tensors."""
    settings: Mapping[str, Any] = {}
    if (files.path / open_clip.CONFIG).is_file():
        settings = read_json(files.path / open_clip.CONFIG, "download it again", BaseError).get("model_cfg") or {}
    source = (settings.get("text_cfg") or {}).get("hf_tokenizer_name") or open_clip.CLIP_TOKENIZER
    own = any((files.path / name).is_file() for name in TOKENIZER_FILES)
    beside = files.path if own else hub.fetch(source, None, weights=False).path
    bert = read_json(beside / "config.json", "download it again") if (beside / "config.json").is_file() else {}
    read = layout(
        _shapes(recipe, files),
        settings,
        AutoTokenizer.from_pretrained(beside),
        bert if bert.get("model_type") == "bert" else {},
        str(files.path),
    )
    return read.config(quick_gelu=bool(recipe.base.quick_gelu))


def _shapes(recipe: PretrainRecipe, files: Snapshot) -> Mapping[str, torch.Tensor]:
    """The tensors of a checkpoint on the meta device.

    Raises:
        BaseError: they are pickled, and no header has their shapes.
    """
    name = open_clip.WEIGHTS[0]
    if files.commit is None:
        weights = open_clip.weights_file(files.path)
        if weights.suffix != ".safetensors":
            return {key: tensor.to("meta") for key, tensor in open_clip.read(files.path).tensors.items()}
        with safe_open(weights, framework="pt") as opened:
            shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    else:
        try:
            header = HfApi().parse_safetensors_file_metadata(recipe.base.location, name, revision=files.commit)
        except (NotASafetensorsRepoError, SafetensorsParsingError, OSError) as error:
            raise BaseError(
                f"base {recipe.base.location}: no sizes without its weights ({str(error).splitlines()[0]:.120}); "
                "convert it once, by training or evaluating it, and give the folder in bases/ as base, or --configs"
            ) from error
        shapes = {key: tensor.shape for key, tensor in header.tensors.items()}
    return {key: torch.empty(tuple(shape), device="meta") for key, shape in shapes.items()}
