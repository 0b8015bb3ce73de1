"""Weights, balance and epochs of a mixture, and the guard against rows that stand on both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from skinvl.example import Example, Facts, text, write
from skinvl.mixture import LeakError, MixtureSampler, Row, folder, leaks, load
from skinvl.recipe import Data, SourceSpec


def example(name: str, group: str, images: tuple[str, ...] = (), **facts: str) -> Example:
    messages = (text("user", "What is shown?", images=len(images)), text("assistant", "A nevus."))
    return Example(name, "drawn", images, messages, group, "train", "CC0-1.0", Facts(**facts))


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


def prepared(folder: Path, split: str, examples: list[Example], shade: int = 0) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for one in examples:
        for name in one.images:
            Image.new("RGB", (30, 30), (shade, 0, 0)).save(folder / name)
    write(folder, split, [replace(one, split=split) for one in examples])
    return folder


def data(train: Path, evaluation: Path, **settings: bool) -> Data:
    return Data(
        train=[SourceSpec(source=str(train), split="train")],
        eval=[SourceSpec(source=str(evaluation), split="test")],
        image_tokens=16,
        max_tokens=256,
        **settings,
    )


def test_a_shared_group_is_refused_unless_allowed(tmp_path: Path) -> None:
    train = prepared(tmp_path / "one", "train", [example("a", "patient-1")])
    prepared(train, "test", [example("b", "patient-1"), example("c", "patient-2")])
    with pytest.raises(LeakError, match=r"1 eval conversations share a group .*drawn:a ~ drawn:b.*allow_leak=true"):
        load(data(train, train))
    rows_, evaluation = load(data(train, train, allow_leak=True))
    assert [len(rows_), len(evaluation["one"])] == [1, 2]


def test_the_same_image_under_another_name_and_group_is_a_leak(tmp_path: Path) -> None:
    train = prepared(tmp_path / "one", "train", [example("a", "g1", ("images/a.png",))])
    other = prepared(tmp_path / "two", "test", [replace(example("b", "g2", ("images/b.png",)), source="else")])
    with pytest.raises(LeakError, match="share a group or an image"):
        load(data(train, other))
    different = prepared(tmp_path / "three", "test", [replace(example("b", "g2", ("images/b.png",)), source="else")], 9)
    assert load(data(train, different))[1]["three"]


def test_a_source_that_is_not_prepared_says_how(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*skinvl prep"):
        load(data(tmp_path / "nowhere", tmp_path / "nowhere"))


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    train = prepared(tmp_path / "one", "train", [example("a", "g1")])
    with pytest.raises(FileNotFoundError, match="it has the splits: train"):
        load(data(train, train))


def test_two_eval_sets_of_one_name_are_refused_and_two_splits_told_apart(tmp_path: Path) -> None:
    train = prepared(tmp_path / "one", "train", [example("a", "g1")])
    for place in ("x", "y"):
        prepared(tmp_path / place / "two", "test", [example("b", f"{place}2")])
    prepared(tmp_path / "x" / "two", "dev", [example("c", "g3")])
    specs = [SourceSpec(source=str(tmp_path / place / "two"), split="test") for place in ("x", "y")]
    both = data(train, train).model_copy(update={"eval": specs})
    with pytest.raises(ValueError, match=r"data\.eval: two sets are called two_test"):
        load(both)
    splits = [specs[0], SourceSpec(source=specs[0].source, split="dev")]
    assert set(load(both.model_copy(update={"eval": splits}))[1]) == {"two_test", "two_dev"}


def test_a_bare_name_lies_in_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert folder("demo") == Path("data/demo")
    assert folder("./demo") == Path("demo")


def test_leaks_finds_nothing_between_strangers() -> None:
    assert leaks(rows(4, 1.0, "a"), [Row(example("x", "elsewhere"), Path("b"))]) == []
