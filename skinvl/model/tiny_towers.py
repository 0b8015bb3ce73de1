"""Tiny bases of two towers: complete model folders with random weights, for tests, demos and dry runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from skinvl.model import tiny, towers
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.dual_inputs import PixelFormat
from skinvl.recipe.files import whole_folder
from skinvl.recipe.towers import PretrainRecipe


def build(family_name: str, out: Path, *, texts: Iterable[str], seed: int = 0) -> Path:
    """The folder `out`, a complete base of the family with seeded random weights; it appears whole or not at all.

    Args:
        texts: what the tokenizer is trained on.

    Raises:
        ValueError: no such family.
    """
    family = towers.load(family_name)
    tokenizer = family.tiny.tokenizer(texts)
    config = DualEncoderConfig(**family.tiny.settings(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DualEncoder(config)
    side = family.side(model.image_tower.config)
    with whole_folder(out, shared=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        PixelFormat(side, family.tiny.mean, family.tiny.std, crops=family.tiny.crops).save(partial)
    return out


def ensure(recipe: PretrainRecipe) -> Path:
    """The folder of a recipe's random base, built when it is not there, its tokenizer trained on the recipe's data.

    Raises:
        FileNotFoundError: the folder is not there, and neither is a source to train its tokenizer on.
    """
    return tiny.ensure(recipe, build)
