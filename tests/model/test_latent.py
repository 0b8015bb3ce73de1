"""Masked latents: which patches are masked, what the tower is shown of an image, and the loss of a batch."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from helpers import tiny, two_towers
from skinvl.data.draws import Draw
from skinvl.data.texts import TextedImage, images_alone
from skinvl.model import latent, towers_adapter
from skinvl.model.dual import DualEncoder
from skinvl.model.hub import BaseError
from skinvl.model.latent import Latents, MaskedBatch, MaskingCollator, Regressor, Teacher
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe.base import load_base
from skinvl.recipe.towers import PretrainRecipe

CPU = torch.device("cpu")
GRID = 7  # of the tiny bases: 112 px in patches of 16
FAMILIES = ("clip", "siglip", "beit_bert")


def recipe(tmp_path: Path, family: str = "clip", **changes: Any) -> PretrainRecipe:
    teacher = str(two_towers.base("clip"))
    settings = {"objective": {"name": "latent", "teacher": teacher, "regressor_layers": 1}, **changes}
    return two_towers.recipe(tmp_path, family, **settings)


def latents(one: PretrainRecipe) -> tuple[Latents, latent.MaskingSizes]:
    """A student with its regressor, as a training has it."""
    torch.manual_seed(0)
    loaded = load_towers(one, CPU)
    assert isinstance(loaded.model, DualEncoder)
    towers_adapter.attach(loaded.model, one)
    teacher, _ = latent.teacher_of(one, CPU)
    sizes = latent.lay_regressor(loaded.model, teacher, one.objective)
    return Latents(loaded, teacher, one.objective), sizes


def batch_of(one: PretrainRecipe, made: Latents, sizes: latent.MaskingSizes, epoch: int = 0) -> MaskedBatch:
    collator = MaskingCollator(made.student.pixels, "none", 0, sizes.grid, sizes.count)
    return collator([(image, Draw(row, epoch)) for row, image in enumerate(images(one))])


def images(one: PretrainRecipe) -> list[TextedImage]:
    return images_alone(one.data).train


def gradients_of(made: Latents) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def test_a_mask_has_its_count_in_blocks() -> None:
    generator = random.Random(0)
    often: Counter[int] = Counter()
    lonely = 0
    for count in [24, 1, 48, *[24] * 200]:
        masked = latent.block_mask(GRID, count, generator)
        assert len(masked) == len({*masked}) == count
        assert masked == sorted(masked)
        assert 0 <= masked[0] <= masked[-1] < GRID**2
        often.update(masked)
        near = {number + step for number in masked for step in (-1, 1, -GRID, GRID)}
        lonely += sum(number not in near for number in masked) if count == 24 else 0
    assert set(often) == set(range(GRID**2))
    assert lonely < 0.02 * 24 * 200  # drawn one by one, a tenth would have no neighbour


def test_masks_depend_on_seed_epoch_and_row_alone(tmp_path: Path) -> None:
    one = recipe(tmp_path)
    made, sizes = latents(one)
    first = batch_of(one, made, sizes)
    assert torch.equal(first.masked, batch_of(one, made, sizes).masked)
    assert not torch.equal(first.masked, batch_of(one, made, sizes, epoch=1).masked)
    assert not torch.equal(first.masked[0], first.masked[1])
    both = torch.cat([first.visible, first.masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(GRID**2).expand(len(both), -1))
    collator = MaskingCollator(made.student.pixels, "none", 1, sizes.grid, sizes.count)
    assert not torch.equal(collator([(images(one)[0], Draw(0, 0))]).masked, first.masked[:1])
    # Of an evaluation the same each time, whatever else is in the batch.
    alone, others = (collator([(image, None) for image in images(one)[:count]]) for count in (1, 3))
    assert torch.equal(alone.masked[0], others.masked[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_sees_nothing_of_what_is_masked(tmp_path: Path, family: str) -> None:
    one = recipe(tmp_path, family)
    made, sizes = latents(one)
    made.model.eval()
    batch = batch_of(one, made, sizes)
    other = batch.pixels.clone()
    patches = other.view(len(other), 3, GRID, 16, GRID, 16)
    for row, masked in enumerate(batch.masked):
        patches[row, :, masked // GRID, :, masked % GRID] = 255
    assert not torch.equal(other, batch.pixels)

    def seen(pixels: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return latent.read_visible(made.model, made.student.pixels.normalised(pixels), visible)

    hidden = seen(batch.pixels, batch.visible)
    assert hidden.shape == (len(batch.names), made.model.images.before + GRID**2 - sizes.count, 96)
    assert torch.equal(hidden, seen(other, batch.visible))
    everything = torch.arange(GRID**2).expand(len(other), -1)
    assert not torch.equal(seen(batch.pixels, everything), seen(other, everything))  # all of it shows the change
    with torch.no_grad():
        whole, _ = made.model.images.read_images(
            made.model.image_tower, made.student.pixels.normalised(batch.pixels), pool=False
        )
    torch.testing.assert_close(seen(batch.pixels, everything), whole)


def test_the_loss_is_one_minus_the_cosines_to_the_teacher(tmp_path: Path) -> None:
    one = recipe(tmp_path, objective__masked_weight=2.0, objective__visible_weight=0.5, objective__cls_weight=0.25)
    made, sizes = latents(one)
    made.model.eval()
    batch = batch_of(one, made, sizes)
    with torch.no_grad():
        losses = made.losses(batch)
        pixels = made.student.pixels.normalised(batch.pixels)
        teacher: Any = made.teacher.loaded.model
        wanted = teacher.encode_images(pixels, patches=True)
        regressor: Any = made.model.regressor
        masked, visible, image = regressor(latent.read_visible(made.model, pixels, batch.visible), 1, batch)
        expected = []
        for ours, theirs, numbers in (
            (masked, wanted.patches, batch.masked),
            (visible, wanted.patches, batch.visible),
            (image[:, None], wanted.embeddings[:, None], torch.zeros(len(image), 1, dtype=torch.int64)),
        ):
            cosines = [
                float(normalize(ours[row, place], dim=0) @ theirs[row, number])
                for row in range(len(ours))
                for place, number in enumerate(numbers[row])
            ]
            expected.append(1 - sum(cosines) / len(cosines))
    torch.testing.assert_close(losses, torch.tensor(expected))
    assert float(made.weighed(losses)) == pytest.approx(2 * expected[0] + 0.5 * expected[1] + 0.25 * expected[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_change_no_gradient_and_the_teacher_has_none(tmp_path: Path, family: str) -> None:
    one = recipe(tmp_path, family)
    found = []
    for at_once in (64, 1):
        made, sizes = latents(one)
        batch = batch_of(one, made, sizes)
        losses = made.gradients(batch, len(batch.names), at_once)
        found.append((losses, gradients_of(made)))
        teacher: Any = made.teacher.loaded.model
        assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
        assert not made.model.text_tower.get_input_embeddings().weight.requires_grad
    (whole, gradients), (chunked, others) = found
    torch.testing.assert_close(whole, chunked)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6)
    # All that trains has a gradient: the tower as far as patches go through it, and the regressor.
    trains = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert trains == {name for name, gradient in gradients.items() if gradient.any()} | {
        name for name in trains if name.endswith("k_proj.bias")
    }
    assert {name.split(".")[0] for name in trains} == {"image_tower", "regressor"}


def test_a_regressor_tells_places_apart() -> None:
    torch.manual_seed(0)
    regressor = Regressor(32, 4, 2, 3, 8)
    hidden = torch.randn(1, 5, 32)
    first = MaskedBatch(torch.empty(1), torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 5]]), ("a",))
    masked, _, _ = regressor(hidden, 1, first)
    swapped, _, _ = regressor(hidden, 1, replace(first, masked=torch.tensor([[5, 4]])))
    torch.testing.assert_close(masked.flip(1), swapped)
    assert not torch.allclose(masked[:, 0], masked[:, 1], atol=1e-4)
    elsewhere, _, _ = regressor(hidden, 1, replace(first, visible=torch.tensor([[0, 1, 2, 8]])))
    assert not torch.allclose(masked, elsewhere, atol=1e-4)


def test_what_has_no_latents_is_refused(tmp_path: Path) -> None:
    one = recipe(tmp_path)
    loaded = load_towers(one, CPU)
    teacher, _ = latent.teacher_of(one, CPU)
    assert isinstance(loaded.model, DualEncoder)
    other: Any = loaded.model
    other.config.image_config.model_type = "siglip2_vision_model"
    with pytest.raises(BaseError, match="an image tower of type siglip2_vision_model"):
        latent.lay_regressor(other, teacher, one.objective)
    other.config.image_config.model_type = "clip_vision_model"
    teachers: Any = teacher.loaded.model
    wider = DualEncoder(type(teachers.config)(**{**teachers.config.to_dict()}))
    wider.config.image_config.patch_size = 28
    with pytest.raises(BaseError, match="sees 112 px in patches of 28, and the tower 112 px in patches of 16"):
        latent.lay_regressor(other, Teacher(replace(teacher.loaded, model=wider)), one.objective)
    with pytest.raises(BaseError, match=r"masked_share: 0.001 of 49 patches are 0"):
        latent.lay_regressor(other, teacher, one.objective.model_copy(update={"masked_share": 0.001}))


def test_a_teacher_is_a_run_or_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = recipe(tmp_path, objective__teacher="runs/none")
    with pytest.raises(latent.RunError, match=r"objective.teacher: runs/none is no finished run; train it first"):
        latent.teacher_of(missing, CPU)
    teacher, digest = latent.teacher_of(recipe(tmp_path), CPU)
    assert teacher.loaded.recipe.base == load_base(str(two_towers.base("clip")), "dual")
    assert digest == latent.teacher_of(recipe(tmp_path), CPU)[1]
    pixels = torch.from_numpy(tiny_pixels())
    patches, image = teacher.latents(pixels)
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(1, GRID**2))
    assert image.shape == (1, 64)


def tiny_pixels() -> Any:
    import numpy as np

    return np.asarray(tiny.picture(1, (112, 112)), np.uint8).transpose(2, 0, 1)[None].copy()
