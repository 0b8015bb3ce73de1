"""Whole runs whose answers are drawn, or come after thoughts: what is trained, said and saved of that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import runs, sources
from skinvl.data import example
from skinvl.data.example import Reference, words
from skinvl.model.loaded import open_with_adapter
from skinvl.plan import show
from skinvl.recipe import recipe
from skinvl.recipe.recipe import Recipe
from skinvl.train import sft
from skinvl.train.trainer import Trainer

pytestmark = pytest.mark.slow

THOUGHT = "It is brown all over."


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def change(folder: Path, **fields: Any) -> None:
    """Gives every Example of the train split these fields."""
    rows = example.read(folder, "train")
    example.write(folder, "train", [replace(row, **fields) for row in rows])
    sources.fingerprint(folder, alike=False)


def trained(one: Recipe, name: str, steps: int, **changes: Any) -> bytes:
    """The weights of a run of so many steps."""
    settings = {
        **one.train,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
    }
    sft.train(one.model_copy(update={"run": name, "train": settings, **changes}))
    return (Path("runs") / name / "adapter" / "adapter_model.safetensors").read_bytes()


def test_answers_are_drawn_anew_each_epoch_and_alike_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = runs.make(tmp_path, "qwen2_vl", data__references="drawn", train__per_device_train_batch_size=8)
    rows = example.read(tmp_path / "drawn", "train")
    several = [
        replace(row, references=(Reference(words(row.messages[-1])), Reference("I see.", 1.0), Reference("No.", -1.0)))
        for row in rows
    ]
    example.write(tmp_path / "drawn", "train", several)
    whole = trained(one, "whole", 5)  # an epoch has three steps
    assert "24 have several answers" in capsys.readouterr().out

    class Stopped(Exception):
        pass

    def stop(self: Trainer, *positional: Any, **named: Any) -> Any:
        if self.state.global_step == 4:  # in the second epoch
            raise Stopped
        return loss(self, *positional, **named)

    loss: Any = Trainer.compute_loss
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "compute_loss", stop)
        with pytest.raises(Stopped):
            trained(one, "cut", 5)
    assert trained(one, "cut", 5, resume="auto") == whole
    first = one.data.model_copy(update={"references": "first"})
    assert trained(one, "first", 5, data=first) != whole


def test_a_run_with_thoughts_says_so_and_is_asked_as_it_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = runs.make(tmp_path, "qwen3_5", data__thoughts="trained")
    change(tmp_path / "drawn", thoughts=(THOUGHT,))
    trained(one, "thinking", 2)
    assert "24 of 24 train conversations have thoughts before answers: trained" in capsys.readouterr().out
    saved = recipe.load(str(tmp_path / "runs" / "thinking" / "recipe.yaml"))
    assert saved.data.thoughts == "trained"
    opened = open_with_adapter(saved.model_copy(update={"init_adapter": "runs/thinking/adapter"}))
    assert opened.chat.template == runs.chat(one).template
    assert opened.facts["thoughts"] == "trained"
    asked = opened.chat.render(example.read(tmp_path / "drawn", "train")[0].messages[:1], generation=True)
    assert asked.endswith("<think>\n")
    show.paint_sources(one, 1)
    assert THOUGHT in capsys.readouterr().out
