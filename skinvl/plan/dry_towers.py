"""What a recipe of two towers would do on its base, without the base's weights: the model is built on the meta device.

What a training refuses and needs no weights is refused here too, by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from skinvl.data import texts
from skinvl.data.draws import ImageSampler
from skinvl.data.texts import TextedImage
from skinvl.model import objectives, own_tower, towers_adapter
from skinvl.model.base import count_parameters
from skinvl.model.dual import DualEncoder
from skinvl.model.dual_batch import pool
from skinvl.model.own_tower import OpenGenerative
from skinvl.model.towers_loaded import OpenTowers, attention_of
from skinvl.plan.dry import prepared, say_parts
from skinvl.plan.dual_configs import blank, open_config, open_generative
from skinvl.plan.texts import checked_images, checked_texts, shaped
from skinvl.recipe import towers
from skinvl.recipe.towers import PretrainRecipe


def show(recipe: PretrainRecipe, configs: Path | None) -> None:
    """Prints the resolved recipe, what trains with its hits, the exact parameter counts, and how long the texts are.

    Args:
        configs: a folder of model configs to read instead of the hub; the sub-folder is the last part of the model
            id in lower case.
    """
    say = Console()
    say.print(towers.dump(recipe), markup=False, highlight=False)
    if recipe.reads_texts:
        objectives.load(recipe.objective)
    with TemporaryDirectory() as folder:
        opened: OpenTowers[Any]
        if recipe.generative:
            opened, own_tokenizer = open_generative(recipe, configs, Path(folder))
        else:
            opened, own_tokenizer = open_config(recipe, configs, Path(folder))
        parts(say, recipe, opened)
        data = prepared(say, recipe.data)
        if not recipe.reads_texts:
            if data is not None:
                images = checked_images(texts.images_alone(data), say).train
                _say_epoch(say, recipe, images)
        elif not own_tokenizer:
            say.print(f"texts: not measured, {opened.path} holds no tokenizer")
        elif data is not None:
            seed = recipe.train.get("seed", 42)
            sets = shaped(texts.load(data, recipe.objective), opened)
            rows = checked_texts(sets, opened.tokenizer, recipe, seed, say)
            for name, images in rows.evaluation.items():
                pool(name, images, recipe, seed)
            _say_epoch(say, recipe, rows.train)


def _say_epoch(say: Console, recipe: PretrainRecipe, images: Sequence[TextedImage]) -> None:
    sampler = ImageSampler(images, recipe.train.get("seed", 42), recipe.batch.images)
    say.print(f"an epoch: {len(sampler) // sampler.batch:,} steps of {sampler.batch:,} images")


def parts(say: Console, recipe: PretrainRecipe, opened: OpenTowers[Any]) -> None:
    """Prints what trains of two towers, and refuses what a training would."""
    fresh = recipe.model_copy(update={"init_adapter": None})
    image, text = opened.config.image_and_text
    if isinstance(opened, OpenGenerative):
        model: DualEncoder = own_tower.blank(opened, blank(opened.text.config))
        reads = f"the vision tower of {opened.whole.model_type}, images of {recipe.data.image_tokens} tokens at most,"
    else:
        attention_of(recipe, opened.config)
        model = blank(opened.config)
        reads = f"{image.model_type} of {opened.pixels.side} px"
    total, hits = count_parameters(model), towers_adapter.plan(model, recipe)
    attached: Any = (
        own_tower.attach(model, opened) if isinstance(opened, OpenGenerative) else towers_adapter.attach(model, fresh)
    )
    say_parts(say, recipe.towers, towers_adapter.check(attached, fresh), hits)
    say.print(
        f"{reads} and {text.model_type} of {opened.tokenizer.length} tokens, into {opened.config.projection_dim} "
        "dimensions",
        highlight=False,
        soft_wrap=True,
    )
    beside = f" without language model and projector, with the text tower of {recipe.text_base}" * recipe.generative
    say.print(f"parameters of {recipe.base.name}{beside}: {total:,}", soft_wrap=True)
