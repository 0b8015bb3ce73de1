"""Whatever ends a run, its last checkpoint is whole, and from there it goes on to the weights it would have had."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import runs, two_towers
from skinvl.recipe.files import MANIFEST
from skinvl.train import checkpoint, sft
from skinvl.train.callbacks import TrainingError
from skinvl.train.checkpoint import CheckpointError
from skinvl.train.trainer import Trainer

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "train__learning_rate": 1e-3,
    "train__max_steps": 10,
    "train__save_strategy": "steps",
    "train__save_steps": 2,
    "train__save_total_limit": 2,
    "train__eval_strategy": "steps",
    "train__eval_steps": 2,
    "train__metric_for_best_model": "eval_loss",
    "cache_gb": 1,
}


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def commands(folder: Path, *given: dict[str, Any]) -> list[dict[str, Any]]:
    """What each run of the folder's one recipe came to; see killed.py."""
    (file,) = folder.glob("*.yaml")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "killed.py"), file.name, json.dumps(given)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"code"')]


def result(folder: Path, name: str) -> tuple[bytes, list[dict[str, Any]], list[str]]:
    """What a run trained, what it logged but for times, and the checkpoints that are left."""
    run = folder / "runs" / name
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = ("runtime", "per_second", "flos")
    entries = [{key: value for key, value in entry.items() if not any(word in key for word in timed)} for entry in log]
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    (weights,) = [*run.glob("adapter/adapter_model.safetensors"), *run.glob("model/model.safetensors")]
    return weights.read_bytes(), entries, left


def killed(folder: Path, seeds: range) -> None:
    """Fails unless a run that is killed again and again ends as the whole one; the kills are seeded."""
    given: list[dict[str, Any]] = []
    for seed in seeds:
        draw = random.Random(seed)
        for turn in range(2):
            kill = {"call": draw.randrange(1, 60)} if seed % 2 else {"after": draw.uniform(1.0, 5.0)}
            given.append({"set": {"run": f"killed-{seed}", "resume": "auto" if turn else None}, **kill})
        given.append({"set": {"run": f"killed-{seed}", "resume": "auto"}})
    # A run that was killed before it made its folder is begun again by resume=auto as well.
    whole, *done = commands(folder, {"set": {"run": "whole"}}, *given)
    assert whole["code"] == 0
    assert all(one["code"] in (0, -9) for one in done), [one for one in done if one["code"] not in (0, -9)]
    assert all(one["code"] == 0 for one in done[2::3])
    assert any(one["code"] == -9 for one in done)
    if any(seed % 2 for seed in seeds):
        assert any(one["inside"] for one in done)
    for seed in seeds:
        assert result(folder, f"killed-{seed}") == result(folder, "whole"), seed


@pytest.mark.slow
def test_a_killed_run_ends_as_the_whole_one(tmp_path: Path) -> None:
    runs.make(tmp_path, "qwen2_vl", **SETTINGS)
    killed(tmp_path, range(2))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "mllama"])
def test_runs_killed_by_twenty_seeds_end_as_the_whole_one(tmp_path: Path, family: str) -> None:
    runs.make(tmp_path, family, **SETTINGS)
    killed(tmp_path, range(2, 12) if family == "mllama" else range(12, 22))


@pytest.mark.slow
def test_two_towers_that_are_killed_or_stopped_or_out_of_disk_end_as_the_whole_run(tmp_path: Path) -> None:
    """With augmentation and a worker that loads ahead; a model of all weights is what a checkpoint holds."""
    changes = {key: value for key, value in SETTINGS.items() if key not in ("lora", "cache_gb")}
    loader = {"data__augmentation": "mild", "train__dataloader_num_workers": 1}
    small = {"train__max_steps": 6, "train__logging_steps": 1, "batch": {"images": 4, "at_once": 3}}
    two_towers.source(tmp_path / "lesions", images=10)
    two_towers.recipe(tmp_path, **{**changes, **loader, **small, "train__disable_tqdm": True})
    killed(tmp_path, range(2))
    stopped, resumed, failed, freed = commands(
        tmp_path,
        {"set": {"run": "stopped"}, "term": 3},
        {"set": {"run": "stopped", "resume": "auto"}},
        {"set": {"run": "full"}, "bytes": 4_000_000},
        {"set": {"run": "full", "resume": "auto"}},
    )
    assert [one["code"] for one in (stopped, resumed, freed)] == [0] * 3
    assert "stopped by SIGTERM; runs/stopped/checkpoints/checkpoint-" in " ".join(stopped["said"].split())
    assert result(tmp_path, "stopped")[0] == result(tmp_path, "whole")[0]
    assert failed["code"] == 2
    assert "checkpoint-2: cannot be written (" in failed["said"]
    assert result(tmp_path, "full") == result(tmp_path, "whole")


def test_early_stopping_counts_across_an_interruption(tmp_path: Path) -> None:
    """The loss falls; were more of it better, no evaluation after the first would improve."""
    watched = {"train__greater_is_better": True, "early_stopping": {"early_stopping_patience": 2}}
    one = runs.make(tmp_path, "qwen2_vl", **{**SETTINGS, **watched, "train__save_total_limit": 5})
    sft.train(one.model_copy(update={"run": "whole"}))
    whole = result(tmp_path, "whole")
    assert [entry["step"] for entry in whole[1] if "eval_loss" in entry] == [2, 4, 6, 6]
    assert whole[0] == (tmp_path / "runs/whole/checkpoints/checkpoint-2/adapter_model.safetensors").read_bytes()
    auto = one.model_copy(update={"run": "cut", "resume": "auto"})
    for gone in ([4, 6], [6], []):
        shutil.rmtree(tmp_path / "runs/cut", ignore_errors=True)
        shutil.copytree(tmp_path / "runs/whole", tmp_path / "runs/cut")
        for step in gone:
            shutil.rmtree(tmp_path / f"runs/cut/checkpoints/checkpoint-{step}")
        sft.train(auto)
        assert result(tmp_path, "cut") == whole, gone


@pytest.mark.slow
def test_sigterm_saves_and_a_full_disk_says_so(tmp_path: Path) -> None:
    runs.make(tmp_path, "qwen2_vl", **SETTINGS)
    auto = {"run": "stopped", "resume": "auto"}
    full = {"run": "full"}
    whole, stopped, resumed, failed, freed, ended = commands(
        tmp_path,
        {"set": {"run": "whole"}},
        {"set": {"run": "stopped"}, "term": 3},
        {"set": auto},
        {"set": full, "bytes": 200_000},
        {"set": {**full, "resume": "auto"}},
        {"set": {"run": "whole", "resume": "auto"}},  # a run that has ended stays what it is
    )
    assert [one["code"] for one in (whole, stopped, resumed, freed, ended)] == [0] * 5
    said = " ".join(stopped["said"].split())
    assert "stopped by SIGTERM; runs/stopped/checkpoints/checkpoint-" in said
    assert "the same command with resume=auto goes on from it" in said
    assert result(tmp_path, "stopped")[0] == result(tmp_path, "whole")[0]
    assert failed["code"] == 2
    assert "checkpoint-2: cannot be written (" in failed["said"]
    assert "free space or permit the folder. No checkpoint was written before" in failed["said"]
    assert result(tmp_path, "full") == result(tmp_path, "whole")


def test_a_checkpoint_is_of_what_trains_and_the_best_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runs.make(tmp_path, "qwen2_vl", **SETTINGS | {"train__save_total_limit": 1, "train__max_steps": 8})
    losses = iter((3.0, 1.0, 2.0, 2.5, 0.5))
    evaluate = Trainer.evaluate

    def scripted(self: Trainer, *given: Any, **named: Any) -> dict[str, float]:
        return evaluate(self, *given, **named) | {"eval_loss": next(losses)}

    monkeypatch.setattr(Trainer, "evaluate", scripted)
    sft.train(one)
    folder = tmp_path / "runs" / "small--qwen2_vl"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-8"]
    best = folder / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors"
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == best.read_bytes()
    sizes = checkpoint.sizes(folder / "checkpoints" / "checkpoint-8")
    base = sum(file.stat().st_size for file in Path(one.base.location).glob("*.safetensors"))
    assert sizes["optimizer"] < 2.5 * sizes["adapter"]
    assert sizes["rest"] < 30_000_000
    names = {file.name for file in best.parent.iterdir()}
    assert not {"model.safetensors", "pytorch_model.bin", "training_args.bin"} & names
    assert best.stat().st_size < base


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps and two checkpoints."""
    folder = tmp_path_factory.mktemp("begun")
    one = runs.make(folder, "qwen2_vl", **SETTINGS | {"train__max_steps": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sft.train(one)
    return folder


def again(begun: Path, folder: Path, **changes: Any) -> Any:
    """What going on with a copy of that run gives, under a changed recipe."""
    shutil.copytree(begun / "runs", folder / "runs")
    one = runs.make(folder, "qwen2_vl", **SETTINGS | {"train__max_steps": 4} | changes)
    shutil.rmtree(folder / "drawn")
    one = one.model_copy(update={"resume": "auto", "data": one.data.model_copy(update=_from(begun, one.data))})
    return lambda: sft.train(one)


def _from(begun: Path, data: Any) -> dict[str, Any]:
    moved = {"source": str(begun / "drawn")}
    return {name: [spec.model_copy(update=moved) for spec in getattr(data, name)] for name in ("train", "eval")}


def test_what_only_shows_may_change(begun: Path, tmp_path: Path) -> None:
    again(begun, tmp_path, train__logging_steps=2, train__save_total_limit=5)()


def test_a_changed_recipe_is_refused(begun: Path, tmp_path: Path) -> None:
    run = again(begun, tmp_path, train__learning_rate=2e-3)
    with pytest.raises(
        CheckpointError, match=r"resume=auto goes on with the same training, but train\.learning_rate was 0\.001 and is"
    ):
        run()


def test_changed_data_are_refused(begun: Path, tmp_path: Path) -> None:
    run = again(begun, tmp_path)
    file = tmp_path / "runs" / "small--qwen2_vl" / "env.json"
    found = json.loads(file.read_text())
    name = next(name for name in found["data"] if name.endswith("train.parquet"))
    found["data"][name] = "0" * 32
    file.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=r"train\.parquet is another file"):
        run()
    file.write_text(json.dumps({**found, "data": {}, "ranks": 2}))
    with pytest.raises(CheckpointError, match="ranks were 2 and are 1"):
        run()


def test_a_damaged_checkpoint_names_the_one_before(begun: Path, tmp_path: Path) -> None:
    run = again(begun, tmp_path)
    last = tmp_path / "runs" / "small--qwen2_vl" / "checkpoints" / "checkpoint-4"
    file = last / "optimizer.pt"
    whole = file.read_bytes()
    for data, found in (
        (whole[:-1], r"damaged \([0-9,]+ bytes; written"),
        (b"\0" + whole[1:], "damaged"),
        (None, "missing"),
    ):
        file.unlink(missing_ok=True)
        if data is not None:
            file.write_bytes(data)
        with pytest.raises(
            CheckpointError, match=rf"optimizer\.pt: {found}.*remove .*checkpoint-4 to go on from check.*-2"
        ):
            run()
    file.write_bytes(whole)
    for text in ("{", '{"files": ["optimizer.pt"]}', '{"files": {"optimizer.pt": 1}}'):
        (last / MANIFEST).write_text(text)
        with pytest.raises(CheckpointError, match=r"complete\.json: damaged"):
            run()
    (last / MANIFEST).unlink()
    assert checkpoint.last(last.parent) == last.with_name("checkpoint-2")  # without it, it is not there
    run()


def test_a_loss_that_is_no_number_names_its_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runs.make(tmp_path, "qwen2_vl", **SETTINGS)
    step = Trainer.training_step

    def poisoned(self: Trainer, *given: Any, **named: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            with torch.no_grad():
                next(p for p in self.model.parameters() if p.requires_grad).fill_(float("nan"))
        return step(self, *given, **named)

    monkeypatch.setattr(Trainer, "training_step", poisoned)
    with pytest.raises(
        TrainingError, match=r"step 4: the loss is not a finite number, in the batch of drawn/train-\d"
    ) as error:
        sft.train(one)
    assert str(error.value).count("train-") == 4
    assert "last good checkpoint is runs/small--qwen2_vl/checkpoints/checkpoint-2" in str(error.value)
