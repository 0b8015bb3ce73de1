"""Whole runs on tiny bases: what lies in the run folder, that it reloads, resumes, and refuses what it must."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers import runs, sources, tiny
from skinvl.data import mixture
from skinvl.model import families
from skinvl.model.base import ModelError
from skinvl.model.chat import Chat
from skinvl.recipe import recipe, run
from skinvl.train import sft
from skinvl.train.trainer import token_losses


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(tmp_path: Path, family: str, **changes: Any) -> Path:
    """The folder of a small run with evaluation and a best checkpoint."""
    settings = {
        "train__eval_strategy": "steps",
        "train__eval_steps": 2,
        "train__save_strategy": "steps",
        "train__save_steps": 2,
        "train__max_steps": 4,
        "train__metric_for_best_model": "eval_loss",
        **changes,
    }
    one = runs.make(tmp_path, family, **settings)
    sft.train(one)
    return run.folder(one)


@pytest.mark.parametrize("family", tiny.SOME)
def test_a_run_leaves_an_adapter_that_peft_alone_loads_and_that_gives_the_same_loss(
    tmp_path: Path, family: str
) -> None:
    path = trained(tmp_path, family)
    expected = {"adapter", "checkpoints", "env.json", "ledger.jsonl", "log.jsonl", "loss.png", "recipe.yaml"}
    assert expected | {"summary.json"} <= {file.name for file in path.iterdir()}
    summary = json.loads((path / "summary.json").read_text())
    base = AutoModelForImageTextToText.from_pretrained(tiny.base(family), dtype=torch.float32)
    families.load(family).prepare(base)
    model = PeftModel.from_pretrained(base, str(path / "adapter")).eval()
    one = recipe.load(str(path / "recipe.yaml"))
    processor = AutoProcessor.from_pretrained(path / "adapter")
    chat = Chat(processor, families.load(family), **one.data.budget)
    evaluation = mixture.load(one.data).evaluation
    with torch.no_grad():
        losses = torch.cat([token_losses(model, runs.alone(chat, row))[0] for row in evaluation["drawn"]])
        model.disable_adapter_layers()
        bare = torch.cat([token_losses(model, runs.alone(chat, row))[0] for row in evaluation["drawn"]])
    assert float(losses.mean()) == pytest.approx(summary["eval_drawn_loss"], rel=1e-4)
    assert float(bare.mean()) != pytest.approx(summary["eval_drawn_loss"], rel=1e-2)
    assert 0 <= summary["control"]["permuted"] <= 1
    environment = json.loads((path / "env.json").read_text())
    assert environment["effective_batch"] == 4
    assert environment["base"]["model_type"] == family
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny.base(family))
    assert not [file for file in (path / "adapter").iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert (path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_adapter_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    path = trained(tmp_path, "qwen2_vl", train__greater_is_better=True)  # so the best is not the last
    log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    losses = {entry["step"]: entry["eval_loss"] for entry in log[:-1] if "eval_loss" in entry}
    summary = json.loads((path / "summary.json").read_text())
    assert losses[2] > losses[4] * 1.01
    assert summary["eval_loss"] == pytest.approx(losses[2], rel=1e-5)


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train__save_strategy": "steps", "train__save_steps": 2, "train__max_steps": 10}  # 6 an epoch
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
    one = runs.make(tmp_path, "qwen2_vl", lora=lora, **settings)
    sft.train(one.model_copy(update={"run": "whole"}))

    class Stop(Exception):
        pass

    def interrupt(*_: Any, **__: Any) -> None:
        raise Stop

    cut = one.model_copy(update={"run": "cut"})
    with monkeypatch.context() as patch:
        from skinvl.train.trainer import Trainer

        step = Trainer.training_step

        def stop_at_9(self: Any, *args: Any, **named: Any) -> Any:
            return interrupt() if self.state.global_step == 9 else step(self, *args, **named)

        patch.setattr(Trainer, "training_step", stop_at_9)
        with pytest.raises(Stop):
            sft.train(cut)
    sft.train(cut.model_copy(update={"resume": "auto"}))
    first, second = (tmp_path / "runs" / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()
    logs = [(tmp_path / "runs" / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    whole_losses, cut_losses = ([json.loads(line).get("loss") for line in log] for log in logs)
    assert whole_losses == cut_losses


def test_a_run_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    folder = run.folder(one)
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(run.RunError, match=r"not empty; continue that run with resume=auto.*run=NAME"):
        sft.train(one)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(run.RunError, match="cannot be created"):
        sft.train(runs.make(tmp_path, "qwen2_vl"))
    (tmp_path / "runs").unlink()
    folder = tmp_path / "runs" / "small--qwen2_vl"
    folder.mkdir(parents=True)
    folder.chmod(stat.S_IREAD | stat.S_IEXEC)
    if os.geteuid() != 0:  # root writes anywhere
        with pytest.raises(run.RunError, match="not writable"):
            run.claim(folder, resume=False)


def test_rows_that_cannot_be_trained_are_in_the_ledger(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    data = Path(one.data.train[0].source)
    (data / "images" / "train-0.png").unlink()
    (data / "images" / "train-1.png").write_bytes(b"not a picture")
    sft.train(one)
    ledger = [json.loads(line) for line in (run.folder(one) / "ledger.jsonl").read_text().splitlines()]
    assert sorted(row["rule"] for row in ledger) == ["missing-image"] * 3 + ["unreadable-image"] * 3
    environment = json.loads((run.folder(one) / "env.json").read_text())
    assert environment["rows"]["train"] + environment["dropped"] == 24


@pytest.mark.parametrize("allowed", [False, True])
def test_a_shared_image_moves_or_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str], allowed: bool) -> None:
    one = runs.make(tmp_path, "qwen2_vl", data__allow_leak=allowed, train__max_steps=1)
    data = Path(one.data.train[0].source)
    shutil.copy(data / "images" / "train-0.png", data / "images" / "test-0.png")
    sources.fingerprint(data, alike=False)
    sft.train(one)
    ledger = [json.loads(line) for line in (run.folder(one) / "ledger.jsonl").read_text().splitlines()]
    environment = json.loads((run.folder(one) / "env.json").read_text())
    said = " ".join(capsys.readouterr().out.split())
    assert [row["rule"] for row in ledger] == ([] if allowed else ["moved-to-train"] * 3)
    assert environment["rows"] == ({"train": 24, "drawn": 9} if allowed else {"train": 27, "drawn": 6})
    assert (environment["leaking"], environment["moved"]) == ((3, 0) if allowed else (0, 3))
    assert ("allow_leak: 3 eval conversations" in said) == allowed
    assert (
        "3 eval conversations share a group or an image with the train set: moved to the train set" in said
    ) != allowed


def test_nothing_left_to_train_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train: none of 24 rows can be used; the first: too-long"):
        sft.train(runs.make(tmp_path, "qwen2_vl", data__max_tokens=20))


def test_a_broken_parquet_is_one_message(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    (Path(one.data.train[0].source) / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train\.parquet: not a file of Examples.*prepare the source again"):
        sft.train(one)


@pytest.mark.parametrize("family", tiny.SOME)
def test_a_qlora_run_leaves_the_base_untouched(tmp_path: Path, family: str) -> None:
    before = {file.name: file.read_bytes() for file in tiny.base(family).iterdir()}
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    path = trained(tmp_path, family, quantization=nf4, train__max_steps=2)
    assert {file.name: file.read_bytes() for file in tiny.base(family).iterdir()} == before
    assert json.loads((path / "env.json").read_text())["quantization"]["load_in_4bit"] is True


def test_a_run_without_an_eval_set_ends_with_its_adapter(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", data__eval=[])
    sft.train(one)
    assert (run.folder(one) / "adapter" / "adapter_model.safetensors").is_file()
    assert "control" not in json.loads((run.folder(one) / "summary.json").read_text())


def test_a_wrong_kernel_stops_before_the_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="attention=flash_attention_2: there is no CUDA device"):
        sft.train(runs.make(tmp_path, "qwen2_vl", attention="flash_attention_2"))


def test_bf16_trains_with_checkpointing(tmp_path: Path) -> None:
    settings = {"train__bf16": True, "train__activation_checkpointing": True}
    path = trained(tmp_path, "qwen3_vl", **settings)
    assert json.loads((path / "env.json").read_text())["precision"] == "bf16"


def test_only_a_loss_that_is_computed_can_choose_the_best(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", train__metric_for_best_model="bleu")
    with pytest.raises(ValueError, match=r"metric_for_best_model: found bleu; expected loss or drawn_loss"):
        sft.arguments(one, tmp_path)
