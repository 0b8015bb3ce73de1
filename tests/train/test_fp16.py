"""Training in fp16: a scaled loss over fp32 masters, its scale in the log and the checkpoints, a run that goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import runs
from skinvl.model import loaded
from skinvl.recipe import run
from skinvl.recipe.files import MANIFEST, file_facts
from skinvl.recipe.recipe import Recipe, RecipeError, load
from skinvl.release import merge
from skinvl.train import sft
from skinvl.train.trainer import Trainer

FP16 = {"train__fp16": True, "train__max_steps": 4, "train__save_strategy": "steps", "train__save_steps": 2}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def logged(path: Path, key: str) -> list[float]:
    """What the steps of a run logged under a key."""
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_a_run_in_fp16_learns_from_a_scaled_loss_and_goes_on_where_it_was(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", **FP16)
    sft.train(one)
    path = run.folder(one)
    assert logged(path, "loss_scale") == [2.0**16] * 4
    losses = logged(path, "loss")
    assert losses[-1] < 0.9 * losses[0]
    weights = load_file(path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert json.loads((path / "env.json").read_text())["precision"] == "fp16"
    whole = runs.make(tmp_path, "qwen2_vl", **{**FP16, "train__fp16": False, "run": "fp32"})
    sft.train(whole)
    assert losses == pytest.approx(logged(run.folder(whole), "loss"), rel=0.02)
    assert losses != logged(run.folder(whole), "loss")

    # From its middle it ends in the same weights; with the scale that the checkpoint holds, whatever that is.
    for name, scale in (("same", 2.0**16), ("other", 2.0**10)):
        resumed = one.model_copy(update={"run": name, "resume": "auto"})
        shutil.copytree(path, run.folder(resumed))
        shutil.rmtree(run.folder(resumed) / "checkpoints" / "checkpoint-4")
        state = run.folder(resumed) / "checkpoints" / "checkpoint-2" / "scaler.pt"
        torch.save({**torch.load(state, weights_only=True), "scale": scale}, state)
        manifest = state.with_name(MANIFEST)
        facts = json.loads(manifest.read_text())
        facts["files"][state.name] = file_facts(state)
        manifest.write_text(json.dumps(facts))
        sft.train(resumed)
        assert logged(run.folder(resumed), "loss_scale")[-2:] == [scale] * 2
        if name == "same":
            again = load_file(run.folder(resumed) / "adapter" / "adapter_model.safetensors")
            assert all(torch.equal(again[key], tensor) for key, tensor in weights.items())

    # It is merged into files in bf16, bit for bit, and asked in fp16.
    assert merge.main([str(path)]) == 0
    model = loaded.load_model(run.finished(path).adapted(), torch.device("cpu"))
    assert model.facts["precision"] == "fp16"
    assert model.autocast().fast_dtype == torch.float16


def test_a_step_that_overflows_is_left_out_and_halves_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(trainer: Trainer) -> None:
        theirs(trainer)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)

    theirs = Trainer.create_accelerator_and_postprocess
    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", overflowing)
    one = runs.make(tmp_path, "qwen2_vl", **{**FP16, "train__save_strategy": "no"})
    sft.train(one)
    scales = logged(run.folder(one), "loss_scale")
    assert scales[:2] == [2.0**39, 2.0**38]
    losses = logged(run.folder(one), "loss")
    assert losses == pytest.approx([losses[0]] * 4, rel=0.5)
    weights = load_file(run.folder(one) / "adapter" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.bf16=true"], "train.bf16 is true as well; set one of them to false"),
        (["train.bf16=false", "train.deepspeed=zero2"], "untested under DeepSpeed; leave train.deepspeed out"),
    ],
)
def test_what_fp16_does_not_go_with_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load("tiny", ["train.fp16=true", *overrides])


def precision(**train: Any) -> str:
    one: Recipe = load("tiny", [f"train.{key}={str(value).lower()}" for key, value in train.items()])
    return one.precision


def test_the_precision_of_a_recipe() -> None:
    assert precision(bf16=True) == "bf16"
    assert precision(bf16=False) == "fp32"
    assert precision(bf16=False, fp16=True) == "fp16"
    assert precision(bf16=True, fp16=False) == "bf16"
