"""Weights, balance and epochs of a mixture."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from skinvl.data.example import Example, Facts, text
from skinvl.data.mixture import NOTHING, Row
from skinvl.data.sampler import MixtureSampler, alike, together
from skinvl.train.trainer import RowDataset


def example(name: str, group: str, **facts: str) -> Example:
    messages = (text("user", "What is shown?"), text("assistant", "A nevus."))
    return Example(name, "drawn", (), messages, group, "train", "CC0-1.0", Facts(**facts))


def rows(count: int, weight: float, root: str = "a", per_group: int = 2) -> list[Row]:
    return [Row(example(f"{root}{i}", f"g{i // per_group}"), Path(root), weight) for i in range(count)]


def test_a_weight_is_whole_copies_and_a_share_of_groups() -> None:
    sampler = MixtureSampler(rows(20, 2.5), seed=1)
    assert len(sampler) == 50
    counts = Counter(sampler)
    assert sum(counts.values()) == 50
    assert set(counts.values()) == {2, 3}
    extra = {index // 2 for index, count in counts.items() if count == 3}
    assert len(extra) == 5  # whole groups of two


def test_every_epoch_draws_anew_and_repeats_for_its_seed() -> None:
    sampler = MixtureSampler(rows(40, 0.5), seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert set(first) != set(second)
    assert len(first) == len(second) == len(sampler) == 20
    again = MixtureSampler(rows(40, 0.5), seed=1)
    assert list(again) == first
    again.set_epoch(1)
    assert list(again) == second
    assert list(MixtureSampler(rows(40, 0.5), seed=2)) != first


def test_sources_keep_their_own_weights() -> None:
    both = rows(10, 1.0, "a") + rows(10, 3.0, "b")
    counts = Counter(both[index].root.name for index in MixtureSampler(both, seed=0))
    assert counts == {"a": 10, "b": 30}


def test_balance_makes_the_known_values_equally_frequent() -> None:
    names = ["melanoma"] * 3 + ["nevus"] * 33 + [None] * 4
    some = [
        Row(replace(example(f"r{i}", f"g{i}"), facts=Facts(diagnosis=name)), Path("a")) for i, name in enumerate(names)
    ]
    drawn = Counter(names[index] for index in MixtureSampler(some, seed=0, balance="diagnosis"))
    assert drawn == {"melanoma": 18, "nevus": 18, None: 4}


def test_balance_counts_a_diagnosis_once_however_it_is_spelt() -> None:
    names = ["melanoma"] * 4 + ["nevus"] * 10 + ["nevocytic nevus"] * 10 + ["Hemangioma"] * 6 + ["haemangiomas"] * 6
    diagnosed = [
        Row(replace(example(f"r{i}", f"g{i}"), facts=Facts(diagnosis=name)), Path("a")) for i, name in enumerate(names)
    ]
    drawn = Counter(names[index] for index in MixtureSampler(diagnosed, seed=0, balance="diagnosis"))
    assert drawn["melanoma"] == drawn["nevus"] + drawn["nevocytic nevus"] == 12
    assert drawn["Hemangioma"] + drawn["haemangiomas"] == 12


def test_an_epoch_is_filled_to_what_all_ranks_see_at_once() -> None:
    sampler = MixtureSampler(rows(10, 1.0), seed=1, multiple=4)
    drawn = list(sampler)
    assert drawn[10:] == [NOTHING, NOTHING]
    assert sorted(drawn[:10]) == list(range(10))
    assert len(sampler) == 12
    assert NOTHING not in list(MixtureSampler(rows(8, 1.0), seed=1, multiple=4))
    assert RowDataset(sampler.rows)[NOTHING] == {"row": None}


def shown(counts: list[int]) -> list[Row]:
    """Rows about images; the image of number i has `counts[i]` of them."""
    return [
        Row(replace(example(f"{image}-{k}", f"g{image}"), images=(f"{image}.png",)), Path("a"))
        for image, count in enumerate(counts)
        for k in range(count)
    ]


def test_a_batch_holds_whole_images_where_they_fit() -> None:
    rows = shown([3] * 40 + [2] * 40 + [1] * 40)
    sampler = MixtureSampler(rows, seed=3, batch=8, step=8)
    order = list(sampler)
    assert sorted(order) == list(range(len(rows)))
    batches = [order[start : start + 8] for start in range(0, len(order), 8)]
    kinds = [{rows[index].example.images for index in batch} for batch in batches]
    cut = sum(map(len, kinds)) - len(set.union(*kinds))  # images that stand in two batches
    plain = list(MixtureSampler(rows, seed=3))
    spread = [{rows[index].example.images for index in plain[start : start + 8]} for start in range(0, len(plain), 8)]
    assert cut <= 1 < 60 < sum(map(len, spread)) - len(set.union(*spread))
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_an_image_with_more_questions_than_a_batch_is_cut() -> None:
    rows = shown([11, 2])
    blocks = list(together(alike(rows), range(13), 4))
    assert [len(block) for block in blocks] == [4, 4, 4, 1]
    assert sorted(index for block in blocks for index in block) == list(range(13))
    assert {rows[index].example.images for index in blocks[0]} == {("0.png",)}


def test_what_is_shown_twice_does_not_stand_together() -> None:
    rows = [Row(row.example, row.root, 2.0) for row in shown([2] * 20)]
    order = list(MixtureSampler(rows, seed=0, batch=4, step=4))
    batches = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert Counter(order) == dict.fromkeys(range(40), 2)
    twice = [batch for batch in batches if len(set(batch)) < 4]
    assert len(twice) <= 2  # two groups of one image may follow one another by chance


def test_a_step_sees_the_same_however_it_is_cut() -> None:
    rows = shown([3, 1, 2, 5, 4, 2, 1, 1, 3, 2] * 6)
    orders = [list(MixtureSampler(rows, seed=0, batch=batch, step=16)) for batch in (2, 4, 8, 16)]
    assert len(set(map(tuple, orders))) == 4
    for start in range(0, len(rows), 16):
        assert len({frozenset(order[start : start + 16]) for order in orders}) == 1


def test_images_with_many_questions_do_not_come_early() -> None:
    some = shown([6] * 200) + rows(400, 1.0)
    early = []
    for seed in range(10):
        order = list(MixtureSampler(some, seed=seed, batch=8, step=16))
        early.append(sum(bool(some[index].example.images) for index in order[:800]) / 800)
    assert abs(sum(early) / len(early) - 0.75) < 0.02
    assert max(early) - min(early) < 0.12
