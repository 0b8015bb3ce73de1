"""An estimate of a whole recipe: what fits, what would fit instead, what is kept on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import runs
from skinvl.model.chat import UNTRAINED
from skinvl.model.loaded import open_base
from skinvl.plan import estimate, workload
from skinvl.plan.estimate import NF4, Requirements
from skinvl.plan.workload import Assumed
from skinvl.recipe.recipe import Recipe


def made(one: Recipe, ranks: int = 1, own: bool = True) -> Requirements:
    return estimate.estimate(replace(open_base(one), own_tokenizer=own), ranks, Assumed(rows=400, questions=2))


def with_batch(one: Recipe, size: int) -> Recipe:
    return one.model_copy(update={"train": {**one.train, "per_device_train_batch_size": size}})


def test_the_batch_that_fits_is_the_largest(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", cache_gb=1.0)
    found = made(one, own=False)
    needed = found.needed().total
    each = (found.double.peak - found.trace.peak) / found.conversations
    most = found.fitting(needed + 12.5 * each)
    assert most == found.conversations + 12
    there, above = (made(with_batch(one, size), own=False).needed().total for size in (most, most + 2))
    assert there <= needed + 12.5 * each < above
    assert found.fitting(needed - found.trace.peak) == 0


def test_what_would_take_less_takes_less(tmp_path: Path) -> None:
    found = made(runs.make(tmp_path, "qwen2_vl", cache_gb=1.0))
    assert found.needed(quantization=NF4).total < found.needed().total
    less = found.otherwise()
    assert less.peak < 0.7 * found.trace.peak
    assert found.needed(less).total < found.needed().total
    ids = found.batch.ids.flatten().tolist()
    images = sum(id_ in found.image_ids for id_ in ids)
    assert 0.5 < found.halved() == 1 - images / 2 / len(ids) < 1
    assert found.shared.load.positions < found.apart.load.positions


def test_checkpointing_the_other_way_round_is_what_a_recipe_with_it_needs(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", cache_gb=0.0)  # so that the tower's step may be the fullest
    again = one.model_copy(update={"train": {**one.train, "activation_checkpointing": True}})
    kept, computed = made(one), made(again)
    # Python frees a little sooner or later.
    assert kept.otherwise().peaks == pytest.approx(computed.trace.peaks, rel=0.01)
    assert computed.otherwise().peaks == pytest.approx(kept.trace.peaks, rel=0.01)
    assert kept.trace.peak > 1.2 * computed.trace.peak


def test_logits_are_those_of_the_trained_tokens(tmp_path: Path) -> None:
    found = made(runs.make(tmp_path, "qwen2_vl", cache_gb=1.0))
    encoded = [conversation.encoded for conversation in found.shared.largest.conversations]
    trained = sum(len(one.labels) - one.labels.count(UNTRAINED) for one in encoded)
    assert found.logits == (trained, trained * found.stage.config.text_config.vocab_size * 4)


@pytest.mark.parametrize(
    ("changes", "kept", "says"),
    [
        ({"cache_gb": 1.0}, True, ""),
        ({}, False, "the run sees an image"),
        pytest.param({"cache_gb": 0.0}, False, "cache_gb=0", marks=pytest.mark.slow),
        pytest.param({"parts__vision__train": "lora"}, False, "", marks=pytest.mark.slow),
    ],
)
def test_features_are_kept_as_the_run_would_keep_them(
    changes: dict[str, Any], kept: bool, says: str, tmp_path: Path
) -> None:
    found = made(runs.make(tmp_path, "qwen2_vl", **changes))
    assert found.disk.kept is kept
    assert found.disk.images == 8
    assert says in " ".join(found.remarks)
    frozen = found.needed().items["frozen weights, unquantised"]
    assert sum(count.parameters for count in found.counts.values()) == found.parameters
    assert (frozen < 4 * found.parameters) is kept  # a tower whose features are kept is not loaded
    if "parts__vision__train" not in changes:
        assert found.disk.flops > 0


def test_epochs_are_those_of_the_run(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    epoch = workload.drawn(one, chat, workload.rows_of(chat, one), 1, True)
    assert estimate.epochs(one, epoch) == 3 / 6  # max_steps 3 of 6 batches
    endless = one.model_copy(update={"train": {"num_train_epochs": 2}})
    assert estimate.epochs(endless, epoch) == 2
    assert estimate.checkpointing(endless)
    assert not estimate.checkpointing(one)
