"""Batches of images with their texts: each once, whose is whose, what no pair is to be, and which an epoch shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.sources import photo
from helpers.texted import Letters, image
from skinvl.data.draws import BatchError, Draw, ImageSampler
from skinvl.data.texts import ImageText, TextedImage
from skinvl.model import dual_batch
from skinvl.model.dual_batch import DualBatch, DualCollator, TextedDataset
from skinvl.model.dual_inputs import PixelFormat
from skinvl.model.objectives import EMPTY, IGNORED, NEGATIVE, POSITIVE
from skinvl.recipe.towers import Negatives

FORMAT = PixelFormat(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
KEEP = Negatives(same_text="keep", same_image="keep", same_group="keep", same_diagnosis="keep")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        photo(number, 48).save(folder / f"{number}.png")
    return folder


def collated(*images: TextedImage, draws: Any = None, **settings: Any) -> DualBatch:
    collator = DualCollator(Letters(), FORMAT, **settings)  # type: ignore[arg-type]
    dataset = TextedDataset(images)
    return collator([dataset[index] for index in draws or range(len(images))])


def relate(batch: DualBatch, negatives: Negatives, tally: Counter[str] | None = None) -> torch.Tensor:
    return dual_batch.relation(batch.keys, batch.owner, batch.text_keys, negatives, tally)


def test_an_image_and_a_text_are_once_and_the_pixels_are_those_of_the_base(folder: Path) -> None:
    batch = collated(
        image(folder, 0, "a red patch", "a scar"), image(folder, 1, "A  red patch"), image(folder, 2, "spot")
    )
    assert batch.texts == [[1, 11, 13, 15, 2], [1, 11, 14, 2], [1, 14, 2]]
    assert batch.text.tolist() == [0, 1, 0, 2]
    assert batch.owner.tolist() == [0, 0, 1, 2]
    assert batch.text_keys[0] == batch.text_keys[2] != batch.text_keys[1]
    assert batch.names == ("drawn:0.png", "drawn:1.png", "drawn:2.png")
    own = torch.from_numpy(np.array(FORMAT.square(Image.open(folder / "1.png").convert("RGB")))).permute(2, 0, 1)
    assert torch.equal(batch.pixels[1], own)
    expected = (own / 255 - torch.tensor(FORMAT.mean)[:, None, None]) / torch.tensor(FORMAT.std)[:, None, None]
    torch.testing.assert_close(batch.normalised(slice(1, 2))[0], expected)
    moved = batch.to("cpu")
    assert torch.equal(moved.keys, batch.keys)
    empty = collated()
    assert [len(empty.pixels), len(empty.keys), len(empty.paths), empty.texts] == [0, 0, 0, []]


def test_paths_of_diagnoses_have_a_number_for_each_class_and_stay_whole_at_their_ends(folder: Path) -> None:
    deep = tuple(f"level {number}" for number in range(10))
    batch = collated(
        image(folder, 0, "a", diagnosis="nevus", path_of_diagnosis=("neoplastic", "benign", "nevus")),
        image(folder, 1, "b", diagnosis="melanocytic naevi"),
        image(folder, 2, "c"),
        image(folder, 3, "d", diagnosis=deep[-1], path_of_diagnosis=deep),
    )
    first, alone, none, long = batch.paths.tolist()
    assert first[2] == alone[0] == batch.keys[0, 2] == batch.keys[1, 2]
    assert len({*first[:3]}) == 3
    assert first[3:] == [-1] * 5
    assert none == [-1] * dual_batch.DEPTH
    assert batch.keys[2, 2] == -1
    assert len({*long}) == dual_batch.DEPTH
    assert long[-1] == batch.keys[3, 2]


def many(folder: Path) -> DualBatch:
    """Images of which 0 and 1 share a text, 0 and 2 the photograph (so the patient), 2 and 3 the patient, 3 and 4 a
    diagnosis, and 5 nothing."""
    return collated(
        image(folder, 0, "a patch", "a spot", group=7, image=0),
        image(folder, 1, "A patch"),
        image(folder, 2, "a nodule", group=7, image=0),
        image(folder, 3, "a scar", group=7, diagnosis="nevus"),
        image(folder, 4, "a dot", diagnosis="melanocytic naevi"),
        image(folder, 5, "a line"),
    )


def brute(batch: DualBatch, negatives: Negatives) -> torch.Tensor:
    """The relation pair by pair, as the docs have it."""
    table = torch.empty(len(batch.keys), len(batch.owner), dtype=torch.int8)
    owner, keys, texts = batch.owner.tolist(), batch.keys.tolist(), batch.text_keys.tolist()
    for i, j in product(range(len(keys)), range(len(owner))):
        verdicts = []
        if texts[j] in [texts[k] for k in range(len(owner)) if owner[k] == i]:
            verdicts.append(negatives.same_text)
        for column, name in enumerate(("same_image", "same_group", "same_diagnosis")):
            if keys[i][column] == keys[owner[j]][column] != -1:
                verdicts.append(getattr(negatives, name))
        table[i, j] = (
            POSITIVE if owner[j] == i or "positive" in verdicts else IGNORED if "ignore" in verdicts else NEGATIVE
        )
    return table


@pytest.mark.parametrize("text", ["positive", "ignore", "keep"])
@pytest.mark.parametrize("same", ["positive", "ignore", "keep"])
@pytest.mark.parametrize("group", ["ignore", "keep"])
def test_the_relation_is_that_of_every_pair_by_itself(folder: Path, text: Any, same: Any, group: Any) -> None:
    batch = many(folder)
    for diagnosis in ("positive", "ignore", "keep"):
        negatives = Negatives(same_text=text, same_image=same, same_group=group, same_diagnosis=diagnosis)
        expected, tally = brute(batch, negatives), Counter[str]()
        related = relate(batch, negatives, tally)
        assert torch.equal(related, expected)
        others = int((related != NEGATIVE).sum()) - len(batch.owner)
        assert sum(tally.values()) == others


def test_by_default_copies_are_positives_a_patient_is_ignored_and_each_pair_is_counted_once(folder: Path) -> None:
    tally = Counter[str]()
    related = relate(many(folder), Negatives(), tally)
    assert related.tolist() == [
        [1, 1, 1, 1, 0, -1, -1],
        [1, -1, 1, -1, -1, -1, -1],
        [1, 1, -1, 1, 0, -1, -1],
        [0, 0, -1, 0, 1, -1, -1],
        [-1, -1, -1, -1, -1, 1, -1],
        [-1, -1, -1, -1, -1, -1, 1],
    ]
    assert +tally == {"same_text positive": 2, "same_image positive": 3, "same_group ignore": 5}
    assert (relate(many(folder), KEEP) == POSITIVE).sum() == 7
    assert not torch.equal(related, relate(replace(many(folder), keys=many(folder).keys.flip(0)), Negatives()))


def test_a_batch_without_a_negative_is_refused(folder: Path) -> None:
    batch = collated(*(image(folder, number, "the same") for number in range(3)))
    with pytest.raises(BatchError, match=r"^3 images with 3 texts have no negative"):
        relate(batch, Negatives())
    assert (relate(batch, KEEP) == NEGATIVE).sum() == 6


def test_the_pixels_of_a_draw_depend_on_row_epoch_copy_and_seed_alone(folder: Path) -> None:
    images = [image(folder, number, "a") for number in (0, 1, 2, 3, 2)]

    def pixels(draw: Draw, seed: int = 0, *before: Draw) -> torch.Tensor:
        return collated(*images, draws=[*before, draw], augmentation="mild", seed=seed).pixels[-1]

    draw = Draw(2, 5)
    assert torch.equal(pixels(draw), pixels(draw, 0, Draw(0, 5), Draw(1, 4)))
    for other in (pixels(Draw(4, 5)), pixels(Draw(2, 6)), pixels(Draw(2, 5, 1)), pixels(draw, 1)):
        assert not torch.equal(pixels(draw), other)
    plain = collated(*images).pixels
    assert torch.equal(collated(*images, draws=[Draw(n, 3) for n in range(5)]).pixels, plain)
    assert torch.equal(collated(*images, augmentation="released").pixels, plain)  # as an evaluation has them


def test_an_evaluation_within_the_training_compares_a_fixed_sample(folder: Path) -> None:
    images = [image(folder, number, f"text {number}") for number in range(40)]

    def sample(during: int, seed: int = 0, of: list[TextedImage] = images) -> list[TextedImage]:
        recipe: Any = SimpleNamespace(evaluate=SimpleNamespace(during=during), negatives=Negatives())
        return dual_batch.pool("lesions", of, recipe, seed)

    chosen = sample(6)
    assert len(chosen) == 6
    assert chosen == sorted(sample(6), key=images.index) != images[:6]
    assert chosen != sample(6, seed=1)
    assert sample(50) == images
    with pytest.raises(BatchError, match=r"^data\.eval, lesions: 3 images with 3 texts have no negative.*raise evalu"):
        sample(5, of=[image(folder, number, "the same") for number in range(3)])


def test_workers_give_the_same_batches(folder: Path) -> None:
    images = [image(folder, number, "a", "b c") for number in range(8)]
    loaders = [
        torch.utils.data.DataLoader(
            TextedDataset(images),
            batch_size=4,
            sampler=ImageSampler(images, seed=1, batch=4),  # type: ignore[arg-type]
            collate_fn=DualCollator(Letters(), FORMAT, "released", 1),  # type: ignore[arg-type]
            num_workers=workers,
        )
        for workers in (0, 2)
    ]
    for here, there in zip(*loaders, strict=True):
        assert torch.equal(here.pixels, there.pixels)
        assert here.texts == there.texts


def test_places_of_the_released_make_are_filled_up(folder: Path) -> None:
    whole = image(folder, 0, "a red patch", "a scar")
    path, sentence = ImageText("eczema", "ontology", 1), ImageText("red", "sentence", 2)
    batch = collated(replace(whole, texts=(*whole.texts, path, sentence)), image(folder, 1), places=(1, 1, 1, 2))
    assert batch.owner.tolist() == [0] * 5 + [1] * 5
    assert batch.aspect.tolist() == [0, 1, EMPTY, 3, EMPTY, *[EMPTY] * 5]
    assert batch.texts == [[1, 11, 13, 15, 2], [1, 16, 2], [1, 2], [1, 13, 2]]
    assert batch.text.tolist() == [0, 1, 2, 3, *[2] * 6]
