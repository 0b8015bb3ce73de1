"""Which images an epoch shows: whole batches, by seed and epoch, the same for any number of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.texted import image
from skinvl.data.draws import BatchError, ImageSampler, _apart, part

FOLDER = Path("photos")


def test_an_epoch_is_drawn_by_seed_and_epoch_in_whole_batches() -> None:
    images = [image(FOLDER, number, "a") for number in range(50)]
    sampler = ImageSampler(images, seed=3, batch=8)
    first = list(sampler)
    assert (len(sampler), sampler.left_over, len({draw.row for draw in first})) == (48, 2, 48)
    assert first == list(ImageSampler(images, seed=3, batch=8)) != list(ImageSampler(images, seed=4, batch=8))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {draw.epoch for draw in second} == {1}
    assert [draw.row for draw in first] != [draw.row for draw in second]
    with pytest.raises(
        BatchError, match=r"batch\.images: found 64, and an epoch has 50 images; set batch\.images to 50"
    ):
        ImageSampler(images, seed=3, batch=64)


def test_weights_are_copies_in_different_batches_and_a_share_of_groups() -> None:
    other = FOLDER / "other"
    images = [image(FOLDER, number, "a", weight=2.5, group=number // 2) for number in range(20)]
    images += [replace(image(FOLDER, 100 + number, "a", weight=0.5), root=other) for number in range(20)]
    sampler = ImageSampler(images, seed=0, batch=6)
    draws = list(sampler)
    assert sampler.length + sampler.left_over == 60
    shown = Counter(draw.row for draw in draws)
    assert max(shown.values()) == 3
    assert {draw.copy for draw in draws if shown[draw.row] == 3 and draw.row == max(shown, key=shown.get)} == {0, 1, 2}
    for start in range(0, len(draws), 6):
        assert len({draw.row for draw in draws[start : start + 6]}) == 6


def test_copies_without_others_to_stand_between_lose_none() -> None:
    assert sorted(_apart([1, 1, 1, 1, 2, 3], 3)) == [1, 1, 1, 1, 2, 3]
    assert len(set(_apart([1, 1, 2, 3, 4, 5], 3)[:3])) == 3


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_ranks_take_one_batch_apart(ranks: int) -> None:
    batch = list(range(10))
    parts = [part(batch, rank, ranks) for rank in range(ranks)]
    assert [each for own in parts for each in own] == batch
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
