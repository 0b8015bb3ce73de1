"""What `skinvl bases` says of two towers: what they are, and what changes in a recipe from one base to another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from skinvl.model import tiny_towers, towers, towers_adapter
from skinvl.model.base import count_parameters
from skinvl.model.dual import DualEncoderConfig
from skinvl.model.towers_loaded import read_config
from skinvl.plan.dual_configs import blank, open_config
from skinvl.plan.gpus import GIB
from skinvl.plan.towers_plan import AssumedTexts, needs, require_counted
from skinvl.recipe.recipe import Base
from skinvl.recipe.towers import PretrainRecipe

HEADS = ("image tower", "text tower", "parameters", "image side", "text length", "embedding")


def about(base: Base, path: Path | None, folder: Path) -> list[str] | None:
    """The towers, parameters and sizes of a base; None where its config is not known here.

    Args:
        path: the folder of its config, if there is one; a random base is built into `folder`.
    """
    if base.random is not None:
        path = tiny_towers.build(base.random, folder, texts=["a b c"])
    return None if path is None else _sizes(read_config(path))


def compared(recipe: PretrainRecipe, configs: Path | None) -> dict[str, str]:
    """What a comparison says of a recipe on its base, by name."""
    return dict(_compared(recipe, configs))


def _compared(recipe: PretrainRecipe, configs: Path | None) -> Iterator[tuple[str, str]]:
    require_counted(recipe)
    with TemporaryDirectory() as folder:
        opened, _ = open_config(recipe, configs, Path(folder))
        needed = needs(recipe, configs, 1, AssumedTexts(), Path(folder) / "needs")
    for name, words in zip(HEADS, _sizes(opened.config), strict=True):
        yield name, f"{needed.parameters:,}" if name == "parameters" else words
    hits = towers_adapter.plan(blank(opened.config), recipe)
    for part, count in needed.counts.items():
        mode = getattr(recipe.towers, part).train
        yield part, mode
        yield f"{part}: parameters", f"{count.parameters:,}"
        yield f"{part}: of these trainable", f"{count.trainable:,}"
        if mode != "frozen":
            modules = [f"{pattern} ×{number}" for pattern, number in hits[part].patterns.items()]
            yield f"{part}: modules", "\n".join([*modules, *hits[part].full]).replace("\\", "")
    yield "positions of texts in a step", f"{needed.step.positions:,}"
    yield "TFLOP a step", f"{needed.work / 1e12:,.1f}"
    for name, size in needed.items.items():
        yield f"GiB: {name}", f"{size / GIB:,.2f}"
    yield f"GiB, {recipe.batch.at_once} images at a time", f"{needed.total / GIB:,.2f}"
    yield "assumed", "\n".join(needed.remarks)


def _sizes(config: DualEncoderConfig) -> list[str]:
    image, text = config.image_and_text
    count = count_parameters(blank(config))
    return [
        image.model_type,
        text.model_type,
        f"{count / 1e6:,.0f} million" if count > 5e6 else "about a million",
        f"{towers.of_image(image.model_type).side(image)} px",
        f"{config.text_length} tokens",
        f"{config.projection_dim}",
    ]
