"""What plan says of two towers: the story it tells, a training's operations, and what is assumed for want of data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import published_configs, two_towers
from skinvl.model.dual import DualEncoder
from skinvl.plan import plan, towers_plan
from skinvl.plan.dual_configs import open_config
from skinvl.plan.towers_plan import AssumedTexts
from skinvl.plan.towers_step import TowersStep
from skinvl.recipe import towers


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    assert plan.main(list(words)) == 0
    return capsys.readouterr().out


def test_a_recipe_without_data_is_told_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = str(published_configs.write(tmp_path / "configs"))
    words = ("make", "--gpu", "h200", "--gpus", "2", "--configs", configs, "--assume", "images=403563,caption=50")
    said = told(capsys, monkeypatch, *words, "train.activation_checkpointing=false")
    for line in (
        "make on clip-b16, 2 × h200 (141 GiB)",
        "not prepared, so that texts are assumed: derm1m (train)",
        "assumed: 403,563 images an epoch; tokens of a caption 50, ontology text 15",
        "parameters of clip-b16: 149,620,737",
        "256 images at a time",
        "the loss, over all images and texts",
        "the largest batch.at_once that would: about",
        "an epoch: 197 steps",
        "the whole run: 2,955 steps",
    ):
        assert line in said, line
    said = told(capsys, monkeypatch, *words[:2], "16:100", *words[3:], "train.activation_checkpointing=false")
    assert "does not fit: " in said
    assert "it would fit, and give the same result" in said


def test_a_prepared_source_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = two_towers.recipe(tmp_path, batch__images=3, batch__at_once=2)
    needed = towers_plan.needs(recipe, None, 1, AssumedTexts(), tmp_path)
    assert (needed.remarks, needed.steps, needed.step.images, needed.step.texts) == ((), 2, 3, 3)
    assert needed.step.aspects == ("caption",)
    assert sum(count for count, _ in needed.step.chunks) == 3
    assert needed.padded > needed.work
    assert needed.total == sum(needed.items.values())


def test_the_folder_of_a_run_is_planned_as_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = two_towers.recipe(tmp_path, batch__images=3)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(towers.dump(recipe))
    said = told(capsys, monkeypatch, str(run), "--gpu", "h200", "batch.images=2")
    assert "an epoch: 3 steps" in said
    with pytest.raises(FileNotFoundError, match=r"tset\.parquet: no such split; it has the splits: test, train"):
        plan.main([str(run), "--gpu", "h200", f"data.train=[{{source: {tmp_path}/lesions, split: tset}}]"])


@pytest.mark.parametrize("base", ["tiny-clip", "tiny-siglip"])
def test_operations_are_those_of_a_training(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objective = "siglip" if base == "tiny-siglip" else "clip"
    opened, _ = open_config(towers.load("tiny-clip", [f"base={base}", f"objective.name={objective}"]), None, tmp_path)
    step, model = TowersStep(opened, cuda=False), DualEncoder.from_pretrained(opened.path).train()
    ids = torch.full((3, 20 if opened.tokenizer.trims else opened.tokenizer.length), 5)
    ids[:, -1] = opened.config.eos_token_id or 0
    pixels = torch.randn(2, 3, opened.pixels.side, opened.pixels.side)
    for piece, forward in (
        (step.images(2, 1), lambda: model.encode_images(pixels).embeddings),
        (step.texts(*ids.shape), lambda: model.encode_texts(ids, torch.ones_like(ids))),
    ):
        with FlopCounterMode(display=False) as counter:
            forward().sum().backward()
        # Flash attention computes one of its five products of the backward a second time.
        assert piece.both == pytest.approx(counter.get_total_flops(), rel=0.03)
        assert 2.8 < piece.both / piece.forward < 3.2
        assert piece.peak > 0


def test_twice_as_many_images_at_a_time_take_twice_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = towers.load("tiny-clip", ["objective={name: make, aspects: [caption, sentences]}"])
    opened, _ = open_config(recipe, None, tmp_path)
    step = TowersStep(opened)
    assert step.images(8, 3).peak == pytest.approx(2 * step.images(4, 3).peak, rel=0.1)
    assert step.loss(64, ["caption", "sentence"]).peak > 2.5 * step.loss(32, ["caption", "sentence"]).peak


@pytest.mark.parametrize("assume", ["rows=3", "caption=0", "caption=x"])
def test_an_assumption_that_is_none_is_refused(assume: str) -> None:
    with pytest.raises(ValueError, match=f"--assume {assume}: expected images=NUMBER, caption=NUMBER"):
        plan.main(["tiny-clip", "--gpu", "h200", "--assume", assume])
