"""Contrastive training through a generative base's own tower, for every family, and the way back to sft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft.utils import load_peft_weights
from rich.console import Console

from helpers import tiny, two_towers
from skinvl.data.pixels import upright
from skinvl.data.texts import TextedImage
from skinvl.model import adapter, families, own_tower
from skinvl.model.adapter import AdapterError
from skinvl.model.base import load_base
from skinvl.model.dual_batch import DualCollator
from skinvl.model.names import WRAPPER
from skinvl.model.own_tower import OpenGenerative
from skinvl.model.pictures import Pictures
from skinvl.recipe import towers
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.towers import PretrainRecipe
from skinvl.train import pretrain
from skinvl.train.dual_trainer import DualTrainer

FAMILIES = families.names()
QUICK = ("llava", "mllama", "qwen3_vl")  # of which a tower that trains in full is tried in every test run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = two_towers.source(tmp_path_factory.mktemp("data") / "lesions", images=6)
    tiny.picture(7, (50, 40)).save(folder / "images/train-1.png")  # of one tile, where others have four
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(source: Path, family: str, mode: str, **changes: Any) -> PretrainRecipe:
    """A recipe through the tiny base of a family, with MAKE's alignment of positions, in fp32."""
    tree: dict[str, Any] = {
        "base": {"name": family, "kind": "vlm", "model": str(tiny.base(family))},
        "text_base": str(two_towers.base("clip")),
        "data": {"train": [{"source": str(source), "split": "train"}], "image_tokens": 16, "augmentation": "mild"},
        "objective": {"name": "make", "aspects": ["caption", "concepts"]},
        "batch": {"images": 4, "at_once": 3},
        "towers": {"image": {"train": mode}, "text": {"train": "frozen"}},
        "train": {"bf16": False, "report_to": "none", "use_cpu": True, "learning_rate": 1e-2, "max_steps": 2},
        **({"lora": {"r": 2}} if mode == "lora" else {}),
        **changes,
    }
    tree["data"]["texts"] = {"colour": "a lesion that is {answer}"}
    Path("through.yaml").write_text(yaml.safe_dump(tree))
    return towers.load("through.yaml")


def trainer_of(recipe: PretrainRecipe, path: Path) -> DualTrainer:
    path.mkdir(exist_ok=True)
    made = pretrain.prepare(recipe, pretrain.arguments(recipe, path), path, Console(quiet=True), {})
    assert isinstance(made, DualTrainer)
    return made


def sft(family: str, mode: str, folder: Path | None) -> Recipe:
    """A recipe of sft whose vision part trains so, from the adapter in a folder."""
    parts = {"language": {"train": "lora"}, "vision": {"train": mode}}
    return Recipe.model_validate({
        "name": "after",
        "base": {"name": family, "model": str(tiny.base(family))},
        "data": {"train": [{"source": "none", "split": "train"}], "image_tokens": 16, "max_tokens": 64},
        "parts": parts,
        "lora": {"r": 2},
        "train": {"bf16": False},
        "init_adapter": None if folder is None else str(folder),
    })  # fmt: skip


@torch.no_grad()
def arriving(model: Any, opened: OpenGenerative, paths: list[Path]) -> list[torch.Tensor]:
    """What arrives at the projector when the whole base reads images, each as its positions float[P, W]."""
    family, format = opened.family, opened.pixels
    images = [upright(path) for path in paths]
    processor: Any = format.processor
    shapes = [format.picture((image.height, image.width)) for image in images]
    ids = torch.full((len(images), max(shape.text_tokens for shape in shapes) + 2), 5)
    for row, shape in enumerate(shapes):
        ids[row, : shape.text_tokens] = torch.tensor(family.expanded(processor, shape))
    inputs = family.batch(processor, ids, [[image] for image in images], format.arguments)
    if opened.whole.model_type == "mllama":
        ids = ids.clamp(max=opened.whole.text_config.vocab_size - 1)

    seen: list[torch.Tensor] = []
    (place,) = family.parts["vision"]
    tower = model.get_submodule(place)
    projectors = family.within(tower) or [model.get_submodule(name) for name in family.parts["projector"]]

    def see(_: Any, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        seen.append(given[0] if given else named["inputs_embeds"])

    hooks = [each.register_forward_pre_hook(see, with_kwargs=True) for each in projectors]
    if opened.whole.model_type == "internvl":  # whose projector is given squares of positions side by side
        hooks[0].remove()
        hooks[0] = tower.register_forward_hook(lambda _, given, made: seen.append(made.last_hidden_state[:, 1:]))
    model(input_ids=ids, **inputs)
    for hook in hooks:
        hook.remove()
    whole = torch.cat(seen, -1)
    if opened.whole.model_type == "gemma4":  # whose tower ends with a mean over squares of patches
        return list(torch.split(whole, [shape.text_tokens for shape in shapes]))
    if whole.dim() == 2:  # Qwen's, one image after another
        return list(torch.split(whole, [shape.vision_tokens for shape in shapes]))
    if opened.whole.model_type == "internvl":
        tiles = [shape.vision_tokens // 17 for shape in shapes]
        return [each.flatten(0, 1) for each in torch.split(whole, tiles)]
    if opened.whole.model_type == "gemma3":  # whose projector begins with a mean over squares of patches
        side = shapes[0].grid[0]
        squares = whole.mT.reshape(len(paths), -1, side, side)
        return list(torch.nn.functional.avg_pool2d(squares, 2).flatten(2).mT)
    if opened.whole.model_type == "mllama":
        tiles = [shape.grid[0] * shape.grid[1] for shape in shapes]
        whole = whole.view(len(paths), -1, 17, whole.shape[-1])
        return [each[:count].flatten(0, 1) for each, count in zip(whole, tiles, strict=True)]
    return list(whole)


def files(images: list[TextedImage]) -> list[Path]:
    return [image.root / image.path for image in images]


@pytest.mark.parametrize(
    ("family", "mode"),
    [(name, "lora") for name in FAMILIES]
    + [pytest.param(name, "full", marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES],
)
def test_a_tower_trains_by_the_images_of_its_base_and_sft_goes_on_from_it(
    family: str, mode: str, source: Path, tmp_path: Path
) -> None:
    recipe = make(source, family, mode)
    trainer = trainer_of(recipe, tmp_path / "run")
    opened, images = own_tower.opened(trainer.recipe), trainer.train_dataset.images[:3]
    model: Any = trainer.cached.model

    # What is pooled is what leaves for the projector in the base's own forward, whatever stands beside it in a batch.
    paths = files(images)
    batch = DualCollator(opened.tokenizer, opened.pixels)([(image, None) for image in images])
    read: Pictures = batch.normalised()
    fresh = tiny.model(family, prepared=False)
    with torch.no_grad():
        ours = model.image_tower(read)
    for theirs, own in zip(arriving(fresh, opened, paths), ours, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours[0].mean(0), ours[1].mean(0), atol=1e-2)

    # The embedding is of their mean; a position's own is what the head makes of it alone; and those of none are zeros.
    with torch.no_grad():
        made = model.encode_images(read, patches=True)
        norm, project = model.image_head.norm, model.image_head.projection
        mean = torch.stack([project(norm(norm(each).mean(0))) for each in ours])
        torch.testing.assert_close(made.embeddings, torch.nn.functional.normalize(mean, dim=-1))
        assert made.patches is not None
        for row, each in enumerate(ours):
            alone = torch.nn.functional.normalize(project(norm(norm(each))), dim=-1)
            torch.testing.assert_close(made.patches[row, : len(each)], alone)
            assert not made.patches[row, len(each) :].any()

    # Two steps: gradients reach every weight of the vision part that leads to the projector, and no other part.
    numbers = [(image, None) for image in trainer.train_dataset.images[:4]]
    for step in range(2):
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, trainer.data_collator(numbers))
        trainer.state.global_step = step
        with torch.no_grad():
            for weight in trainer.model.parameters():
                if weight.grad is not None:
                    weight -= 0.05 * weight.grad / (weight.grad.norm() + 1e-6)
    (place,) = opened.family.parts["vision"]
    unread = tuple(f"{place}.{name}." for name in opened.family.unread(opened.whole.vision_config))
    for name, weight in trainer.model.named_parameters():
        plain = own_tower.in_base(name)
        reached = weight.grad is not None and bool(weight.grad.any())
        if not weight.requires_grad:
            assert not reached, name
        elif plain and "k_proj.bias" not in name:  # of a key's bias no softmax knows
            assert reached, name
        if plain:
            assert opened.family.part_of(plain.partition(".lora_")[0]) == "vision"
            assert not (unread and plain.startswith(unread) and weight.requires_grad)
    assert adapter.trained_parameters(model.text_tower) == {}

    # The adapter has the names under which sft trains the vision part, all of them, and no others.
    folder = tmp_path / "adapter"
    folder.mkdir()
    own_tower.save(trainer.model, opened, folder)
    weights = load_peft_weights(str(folder), device="cpu")
    after = adapter.attach(load_base(tiny.base(family), opened.family, sft(family, mode, None)), opened.family,
                           sft(family, mode, None))  # fmt: skip
    of_vision = {
        name
        for name in adapter.trained_parameters(after)
        if opened.family.part_of(name.removeprefix(WRAPPER)) == "vision"
    }
    assert weights.keys() == of_vision

    # What sft goes on from computes what was trained; its twin that loads nothing does not.
    with torch.no_grad():
        trained = model.image_tower(read)
    one = sft(family, mode, folder)
    went_on = adapter.attach(load_base(tiny.base(family), opened.family, one), opened.family, one)
    for each, same in ((went_on, True), (after, False)):
        loaded = adapter.trained_parameters(each)
        assert all(torch.equal(loaded[name], weights[name]) for name in weights) == same
        tower = each.get_base_model().get_submodule(place)
        with torch.no_grad():
            shown = opened.family.encode_each(tower, read.pictures, read.pixels)
        close = [
            torch.allclose(opened.family.shown(picture, theirs), own, rtol=1e-3, atol=1e-3)
            for picture, theirs, own in zip(read.pictures, shown, trained, strict=True)
        ]
        assert all(close) == same

    # Recipes whose parts do not cover it are refused, with what would be lost.
    for other in {"lora": ("frozen", "full"), "full": ("frozen", "lora")}[mode]:
        lacking = sft(family, other, folder)
        base = load_base(tiny.base(family), opened.family, lacking)
        with pytest.raises(AdapterError, match=rf"learnt in vision \({mode}\) would be lost; set parts as"):
            adapter.attach(base, opened.family, lacking)
