"""What the batches of a recipe hold, from lengths alone, is what its sampler and collator make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers import runs
from skinvl.data import example, mixture
from skinvl.data.example import Reference, words
from skinvl.data.sampler import MixtureSampler
from skinvl.model.base import read_config
from skinvl.model.pack import Batch, Collator
from skinvl.plan import workload
from skinvl.plan.configs import open_folder
from skinvl.plan.workload import Assumed, Load
from skinvl.recipe.recipe import Recipe


def laid(one: Recipe, share: bool) -> list[Batch]:
    rows = mixture.rows(one.data.train[0])
    order = list(MixtureSampler(rows, 42, batch=4, step=4 if share else 1))
    collator = Collator(runs.chat(one), share=share)
    return [collator([{"row": rows[index]} for index in order[at : at + 4]]) for at in range(0, len(order), 4)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_an_epoch_is_what_the_collator_makes_of_it(family: str, share: bool, tmp_path: Path) -> None:
    one = runs.make(tmp_path, family)
    chat = runs.chat(one)
    rows = workload.rows_of(chat, one)
    epoch = workload.drawn(one, chat, rows, 1, share)
    batches = laid(one, share)
    assert epoch.batches == len(batches) == 6
    assert epoch.load.conversations == 24
    assert epoch.load.tokens == sum(some.tokens for some in batches)
    assert epoch.load.positions == sum(some.ids.numel() for some in batches)
    assert epoch.load.trained == sum(int(some.supervised.sum()) for some in batches)
    shown = sum(int((some.ids == chat.image_id).sum()) for some in batches)
    picture = epoch.largest.conversations[0].encoded.pictures[0]
    if family == "mllama":
        assert epoch.load.images == shown
    largest = workload.load(chat, epoch.largest, share).positions
    assert largest == max(some.ids.numel() for some in batches)
    made = workload.inputs(chat, read_config(Path(one.base.location))[0], epoch.largest, share, None)
    assert made.ids.numel() == largest
    assert made.inputs["pixel_values"].is_meta
    real = next(some for some in batches if some.ids.shape == made.ids.shape)
    assert made.inputs["pixel_values"].shape[1:] == real.inputs["pixel_values"].shape[1:]
    assert picture.vision_tokens > 0


def test_sharing_computes_less_and_two_ranks_half_each(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    rows = workload.rows_of(chat, one)
    shared, apart = (workload.drawn(one, chat, rows, 1, share).load for share in (True, False))
    assert shared.tokens == apart.tokens == apart.positions > shared.positions
    assert shared.trained == apart.trained
    assert shared.images < apart.images
    two = workload.drawn(one, chat, rows, 2, True)
    assert two.load.conversations == 12
    assert two.batches == 3


def test_pairs_are_those_that_attention_computes(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    epoch = workload.drawn(one, chat, workload.rows_of(chat, one), 1, False)
    lengths = [len(some.encoded.ids) for some in epoch.largest.conversations]
    assert workload.load(chat, epoch.largest, False).pairs == sum(n * (n + 1) / 2 for n in lengths)


def test_a_long_epoch_is_scaled_up_from_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    rows = workload.rows_of(chat, one)
    whole = workload.drawn(one, chat, rows, 1, True).load
    monkeypatch.setattr(workload, "SAMPLE", 12)
    part = workload.drawn(one, chat, rows, 1, True).load
    assert part.conversations == whole.conversations
    assert part.tokens == pytest.approx(whole.tokens, rel=0.1)


def test_assumed_conversations_are_as_long_as_they_are_told(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    guess = Assumed(rows=40, questions=2, question=5, answer=7, around=3)
    shared, apart = (workload.assumed(one, chat, guess, 1, share) for share in (True, False))
    image = chat.picture(workload.SQUARE).text_tokens
    assert image == 16
    assert apart.load.tokens == apart.load.positions == 40 * (image + 15)
    assert apart.load.trained == 40 * 7
    assert apart.load.images == 40
    assert shared.load.images == 20
    assert shared.load.positions == 20 * (image + 3 + 2 * 12)
    assert workload.guessed(chat, read_config(Path(one.base.location))[0], guess)[0] == 20


def test_twice_a_batch_is_about_other_images(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    batch = workload.assumed(one, chat, Assumed(questions=2), 1, True).largest
    once, twice = (workload.load(chat, some, True) for some in (batch, workload.twice(batch)))
    assert twice == once * 2
    assert once + once == twice


def test_features_count_each_image_once(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    config, family = read_config(Path(one.base.location))
    rows = workload.rows_of(chat, one)
    images, numbers = workload.features(chat, config, rows)
    assert images == 8
    assert numbers == sum(
        shape[0] * shape[1]
        for shape in (family.features(config, chat.picture(size)) for size in [(112, 84), (112, 112)] * 4)
    )


def test_of_answers_that_are_drawn_the_longest_that_fits_counts(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", data__references="drawn")
    others = Reference("It is brown, and its border is jagged all the way round."), Reference("brown " * 300)
    several = [
        replace(row, references=(Reference(words(row.messages[-1])), *others))
        for row in example.read(tmp_path / "drawn", "train")
    ]
    example.write(tmp_path / "drawn", "train", several)
    rows = workload.rows_of(runs.chat(one), one)
    assert len(rows) == len(several)
    assert {words(row.example.messages[-1]) for row in rows} == {others[0].text}
    first = one.model_copy(update={"data": one.data.model_copy(update={"references": "first"})})
    assert [row.example for row in workload.rows_of(runs.chat(one), first)] == [
        row.example for row in mixture.rows(first.data.train[0])
    ]


def test_what_is_not_prepared_is_named(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    assert workload.missing(one) == []
    gone = one.data.train[0].model_copy(update={"source": "nowhere"})
    lacking = one.model_copy(update={"data": one.data.model_copy(update={"train": [gone]})})
    assert workload.missing(lacking) == ["nowhere (train)"]


def test_a_base_without_a_tokenizer_keeps_its_own_images_and_template(shared: Path, tmp_path: Path) -> None:
    path = shared / "configs" / "qwen2.5-vl-7b-instruct"
    one = runs.make(tmp_path, "qwen2_vl")
    base = open_folder(one, path, tmp_path)
    assert not base.own_tokenizer
    assert base.config.image_token_id == base.chat.image_id
    assert "You are a helpful assistant." in base.chat.template
    assert open_folder(one, Path(one.base.location), tmp_path).own_tokenizer


def test_loads_add_up() -> None:
    assert Load(1, 2, 3, 4, 5, 6, 7) + Load(1, 1, 1, 1, 1, 1, 1) == Load(2, 3, 4, 5, 6, 7, 8)
    assert replace(Load(), tokens=2) * 3 == Load(tokens=6)
