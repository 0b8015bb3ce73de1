"""A base by its config alone, before its weights are anywhere: from the hub, or from a folder of configs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor

from skinvl.data.source import source_folder
from skinvl.model import hub, tiny
from skinvl.model.base import read_config
from skinvl.model.hub import Snapshot
from skinvl.model.loaded import OpenBase, read_base
from skinvl.recipe.files import read_json
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.towers import PretrainRecipe


def open_config(recipe: Recipe, configs: Path | None, folder: Path) -> OpenBase:
    """The base of a recipe without files of weights, its chat its own or one that stands in.

    Args:
        configs: a folder of model configs to read instead of the hub; the sub-folder is the last part of the model id
            in lower case.
        folder: where what is built on the way may lie.

    Raises:
        BaseError: it cannot be had, or `configs` lacks it.
    """
    return open_folder(recipe, files(recipe, configs, folder), folder)


def files(recipe: Recipe | PretrainRecipe, configs: Path | None, folder: Path) -> Path:
    """The folder of the base's config, tokenizer and template; a random base is built into the folder given.

    Raises:
        BaseError: it cannot be had, or `configs` lacks it.
    """
    location = recipe.base.location
    if recipe.base.random is not None:  # a dry run leaves nothing behind
        sources = [source_folder(spec.source) for spec in recipe.data.train]
        prepared = [source for source in sources if (source / "train.parquet").is_file()]
        return tiny.build(recipe.base.random, folder / recipe.base.name, texts=tiny.texts(prepared))
    if configs is None:
        return hub.fetch(location, recipe.base.revision, weights=False).path
    path = config_folder(configs, location)
    if not (path / "config.json").is_file():
        have = ", ".join(sorted(file.parent.name for file in configs.glob("*/config.json"))) or "none"
        raise hub.BaseError(
            f"--configs {configs}: no {path.name}/config.json for base {recipe.base.name}; found: {have}"
        )
    return path


def config_folder(configs: Path, location: str) -> Path:
    """Where a folder of configs has that of a base."""
    return configs / location.rsplit("/", 1)[-1].lower()


def open_folder(recipe: Recipe, path: Path, folder: Path) -> OpenBase:
    """The base whose config lies in `path`: without tokenizer.json one stands in, built into the other folder.

    Image processor and template are the base's own where it has them: a stand-in counts images right, and no text.
    """
    processor, own = processor_of(path, folder)
    base = replace(read_base(recipe, Snapshot(path, None), processor), own_tokenizer=own)

    # The model looks for the images among the ids by the number in its config, which the stand-in's differs from.
    for key in ("image_token_id", "image_token_index"):
        if hasattr(base.config, key):
            setattr(base.config, key, base.chat.image_id)
    return base


def processor_of(path: Path, folder: Path) -> tuple[Any, bool]:
    """The processor of a base, and whether its tokenizer is its own: see `open_folder`."""
    if (path / "tokenizer.json").is_file():
        return AutoProcessor.from_pretrained(path), True
    config, _ = read_config(path)
    stand_in = tiny.build(config.model_type, folder / "stand-in", texts=["a b c"])
    processor: Any = AutoProcessor.from_pretrained(stand_in)
    if (path / "preprocessor_config.json").is_file():
        processor.image_processor = AutoImageProcessor.from_pretrained(path)
    processor.chat_template = _template(path) or processor.chat_template
    return processor, False


def _template(path: Path) -> str | None:
    """The chat template of a base, from wherever its age has it."""
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (path / name).is_file():
            template = read_json(path / name, "download the base's files again").get("chat_template")
            if isinstance(template, str):
                return template
    return None
