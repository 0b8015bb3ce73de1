"""LoRA on two towers: on every layer that it is promised for and no other, alive in each, and back from its folder."""

from __future__ import annotations

import re
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from helpers import batches, two_towers
from skinvl.model import tiny_towers, towers, towers_adapter
from skinvl.model.adapter import AdapterError
from skinvl.model.dual import DualEncoder
from skinvl.model.towers_loaded import load_towers, open_towers, read_model
from skinvl.recipe.towers import PretrainRecipe

FAMILIES = towers.names()
LORA = {"towers__image__train": "lora", "towers__text__train": "lora"}
CPU = torch.device("cpu")
_ROOT = tempfile.TemporaryDirectory(prefix="skinvl-small-")


@cache
def small(family: str) -> Path:
    """The folder of a base smaller than the tiny ones; nothing may write into it."""
    with mock.patch.object(towers.TinyTowers, "SIZE", batches.SMALL):
        return tiny_towers.build(family, Path(_ROOT.name) / family, texts=["a red plaque"])


@pytest.fixture(autouse=True)
def _small_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_towers, "base", small)


@cache
def _loaded(family: str) -> DualEncoder:
    return DualEncoder.from_pretrained(small(family))


def attached(family: str, recipe: PretrainRecipe) -> Any:
    """The tiny base of a family with what the recipe trains."""
    return towers_adapter.attach(deepcopy(_loaded(family)), recipe)


def pixels() -> torch.Tensor:
    """float32[2, 3, 48, 48] of noise: nine patches, which are enough here."""
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def texts(model: Any) -> torch.Tensor:
    """float32[2, D] of two texts, one of them padded, which end as the text tower has it.

    Without an end it would be read at the first position, which attends to itself alone, whatever queries and keys are.
    """
    end = model.config.eos_token_id or 8
    ids, mask = torch.tensor([[5, 6, 7, end], [9, 10, end, 6]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    embeddings: torch.Tensor = model.encode_texts(ids, mask)
    return embeddings


def step(model: Any) -> None:
    """Gradients of something that depends on all that both sides make, the scale and bias included."""
    images = model.encode_images(pixels(), patches=True)
    bias = 0 if model.scale.bias is None else model.scale.bias
    logits = (images.embeddings + images.patches[:, 5]) @ texts(model).T
    (model.scale.value() * logits + bias).square().sum().backward()


def moved(model: Any) -> Any:
    """The model after a step of training, so to say: everything that trains is elsewhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def embedded(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of two images and two texts."""
    with torch.no_grad():
        return model.eval().encode_images(pixels()).embeddings, texts(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_a_lora_tower_has_an_adapter_and_each_pair_gets_gradient(family: str, tmp_path: Path) -> None:
    model = attached(family, two_towers.recipe(tmp_path, family, **LORA))
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    base = deepcopy(_loaded(family))
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear) and "_tower." in name}

    # SigLIP's pooling is computed with the weights of its child.
    assert linear - {name.removeprefix("base_model.model.") for name in adapted} == (
        {"image_tower.head.attention.out_proj"} if family == "siglip" else set()
    )
    step(model)
    assert towers_adapter.dead_pairs(model) == []
    moved(model).zero_grad()
    step(model)
    assert towers_adapter.dead_pairs(model) == []
    lora = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert lora
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in lora)


def test_a_layer_that_another_computes_with_has_a_dead_adapter_which_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_linear(model: nn.Module) -> list[str]:
        return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]

    monkeypatch.setattr(towers_adapter, "linear_layers", all_linear)
    model = attached("siglip", two_towers.recipe(tmp_path, "siglip", **LORA))
    step(model)
    assert towers_adapter.dead_pairs(model) == ["image_tower.head.attention.out_proj"]


def test_only_the_tower_that_trains_by_lora_has_it_though_both_name_their_layers_alike(tmp_path: Path) -> None:
    for tower, other in (("image", "text"), ("text", "image")):
        recipe = two_towers.recipe(tmp_path, **{f"towers__{tower}__train": "lora", f"towers__{other}__train": "frozen"})
        hits = towers_adapter.plan(deepcopy(_loaded("clip")), recipe)
        assert hits[other].patterns == {}
        names = [name for name, _ in _loaded("clip").named_modules()]
        matched = [name for name in names for pattern in hits[tower].patterns if re.fullmatch(pattern, name)]
        assert matched
        assert {name.split(".")[0] for name in matched} == {f"{tower}_tower"}
        assert sorted(matched) == sorted(hits[tower].layers)
        trained = towers_adapter.check(attached("clip", recipe), recipe)
        assert (trained[other].trainable, trained[other].lora) == (0, {})
        assert sum(trained[tower].lora.values()) == len(matched)


MODES = [
    ("lora", "full", "full"),
    ("full", "lora", "full"),
    ("frozen", "lora", "frozen"),
    ("full", "frozen", "full"),
]


@pytest.mark.parametrize("modes", MODES)
def test_what_is_promised_trains_in_fp32_and_nothing_else(modes: tuple[str, str, str], tmp_path: Path) -> None:
    parts = dict(zip(towers_adapter.PARTS, modes, strict=True))
    recipe = two_towers.recipe(tmp_path, "siglip", **{f"towers__{part}__train": mode for part, mode in parts.items()})
    model = attached("siglip", recipe)
    trained = towers_adapter.check(model, recipe)
    for part, mode in parts.items():
        assert (trained[part].trainable == trained[part].parameters) == (mode == "full")
        assert (trained[part].trainable == 0) == (mode == "frozen")
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    step(model)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.dtype == torch.float32 or not parameter.requires_grad

    # A check that never fails would say the same.
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    first.requires_grad_(False)
    first.data = first.data.half()
    first.requires_grad_(True)
    with pytest.raises(AdapterError, match="without an fp32 master"):
        towers_adapter.check(model, recipe)


def test_what_trains_beside_the_recipe_is_refused(tmp_path: Path) -> None:
    recipe = two_towers.recipe(tmp_path, **LORA, towers__heads__train="frozen")
    model = attached("clip", recipe)
    model.scale.log.requires_grad_(True)
    with pytest.raises(AdapterError, match=r"scale\.log: trainable, but the recipe freezes heads"):
        towers_adapter.check(model, recipe)
    lora_on_one = two_towers.recipe(tmp_path, towers__image__train="lora", towers__text__train="frozen")
    with pytest.raises(AdapterError, match="a LoRA layer in text, which the recipe does not adapt"):
        towers_adapter.check(attached("clip", recipe), lora_on_one)
    bare = attached("clip", two_towers.recipe(tmp_path, towers__text__train="lora", towers__heads__train="frozen"))
    with pytest.raises(
        AdapterError, match=r"image_tower\..*: a linear layer without LoRA in a tower that trains by it"
    ):
        towers_adapter.check(bare, recipe)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_fixed_positions_never_train(mode: str, tmp_path: Path) -> None:
    model = attached("beit_bert", two_towers.recipe(tmp_path, "beit_bert", towers__text__train=mode))
    fixed = [parameter for name, parameter in model.named_parameters() if name.endswith("position_embeddings")]
    assert fixed
    assert not any(parameter.requires_grad for parameter in fixed)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_comes_back_from_its_folder_to_the_bit_and_by_peft_alone_to_rounding(
    family: str, tmp_path: Path
) -> None:
    recipe = two_towers.recipe(tmp_path, family, towers__image__train="lora", towers__text__train="full")
    model = moved(attached(family, recipe))
    before = embedded(_loaded(family))
    expected = embedded(model)
    model.save_pretrained(tmp_path / "adapter")

    loaded = load_towers(recipe.model_copy(update={"init_adapter": str(tmp_path / "adapter")}), CPU)
    plain: Any = PeftModel.from_pretrained(deepcopy(_loaded(family)), str(tmp_path / "adapter"))

    for again, bound in ((loaded.model, 0.0), (plain, 1e-5)):  # PEFT adds its products up otherwise
        for value, was, base in zip(embedded(again), expected, before, strict=True):
            torch.testing.assert_close(value, was, rtol=bound, atol=bound)
            assert not torch.equal(value, base)
        assert torch.equal(again.scale.value(), model.scale.value())
    assert loaded.facts["adapter"]


def test_an_adapter_that_means_something_else_or_lacks_weights_is_refused(tmp_path: Path) -> None:
    lora = two_towers.recipe(tmp_path, **LORA)
    image = two_towers.recipe(tmp_path, towers__image__train="lora", towers__text__train="frozen")
    attached("clip", lora).save_pretrained(tmp_path / "both")
    attached("clip", image).save_pretrained(tmp_path / "image")

    def load(recipe: PretrainRecipe, folder: str) -> None:
        load_towers(recipe.model_copy(update={"init_adapter": str(tmp_path / folder)}), CPU)

    with pytest.raises(AdapterError, match=r"made with r=8, the recipe has 4; set lora.r"):
        load(lora.model_copy(update={"lora": {"r": 4}}), "both")
    with pytest.raises(AdapterError, match=r"not trained by this recipe"):
        load(image, "both")
    with pytest.raises(AdapterError, match=r"trained weights are not in the adapter"):
        load(lora, "image")
    with pytest.raises(AdapterError, match=r"an adapter, and no tower of the recipe has one"):
        load(two_towers.recipe(tmp_path), "both")


def test_a_whole_model_goes_on_where_a_run_has_left_it_and_only_on_its_own_base(tmp_path: Path) -> None:
    recipe = two_towers.recipe(tmp_path)
    opened = open_towers(recipe)
    model = moved(towers_adapter.attach(read_model(opened), recipe))
    expected = embedded(model)
    model.save_pretrained(tmp_path / "model")
    opened.tokenizer.save(tmp_path / "model")
    opened.pixels.save(tmp_path / "model")
    update = {"init_adapter": str(tmp_path / "model")}

    loaded = load_towers(recipe.model_copy(update=update), CPU)

    for value, was in zip(embedded(loaded.model), expected, strict=True):
        assert torch.equal(value, was)
    assert loaded.facts["adapter"] != load_towers(recipe, CPU).facts["adapter"]
    with pytest.raises(AdapterError, match=r"a whole model, and the recipe trains an adapter"):
        open_towers(two_towers.recipe(tmp_path, **LORA).model_copy(update=update))
    with pytest.raises(
        AdapterError, match=r"made of towers with eos_token_id=\d+, those of the base have None; give the base"
    ):
        open_towers(two_towers.recipe(tmp_path, "siglip").model_copy(update=update))


def test_a_plan_needs_no_weights(tmp_path: Path) -> None:
    recipe = two_towers.recipe(tmp_path, **LORA)
    with torch.device("meta"):
        blank = DualEncoder(_loaded("clip").config)
    model = towers_adapter.attach(blank, recipe)
    assert all(parameter.is_meta for parameter in model.parameters())
    trained, there = towers_adapter.check(model, recipe), towers_adapter.check(attached("clip", recipe), recipe)
    assert trained == there
