"""Every recipe dry-runs on every base: hits, exact counts, no weights, nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import runs, sources, tiny
from skinvl.data.mixture import LeakError
from skinvl.model import precompute
from skinvl.model.adapter import AdapterError
from skinvl.model.base import ModelError
from skinvl.model.feature_cache import CacheError
from skinvl.model.hub import BaseError
from skinvl.plan import dry
from skinvl.recipe import recipe
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.run import RunError
from skinvl.train import sft

PAIRS = [(name, base) for name in recipe.recipes("sft") for base in recipe.bases("vlm") if base not in tiny.UNSEEN]


@pytest.mark.parametrize(("name", "base"), PAIRS, ids=["--".join(pair) for pair in PAIRS])
def test_every_recipe_dry_runs_on_every_base(
    name: str,
    base: str,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    one = recipe.load(name, [f"base={base}"])
    dry.show(one, shared / "configs")
    shown = capsys.readouterr().out
    golden = json.loads((shared / "configs" / "golden_parameter_counts.json").read_text())
    if one.base.model is not None:
        assert f"parameters of {base}: {golden[one.base.model.rsplit('/', 1)[-1].lower()]:,}" in shown
        assert r"model\.language_model\.layers\.\d+\.self_attn\.q_proj ×" in shown
    else:
        assert "demo (train): not prepared, skipped" in shown or name != "tiny"
    assert list(tmp_path.iterdir()) == []


def test_lengths_are_shown_for_prepared_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = runs.make(tmp_path, "qwen3_vl")
    dry.show(one, None)
    shown = capsys.readouterr().out
    assert "train: 24 of 24 rows" in shown
    assert "model.visual.merger" in shown


def refused(one: Recipe, folder: Path, error: type[Exception], message: str) -> None:
    """A dry run and a training refuse the recipe in the same words, and the dry run leaves nothing behind."""
    for asked in (lambda: dry.show(one, None), lambda: sft.train(one)):
        before = sorted(folder.rglob("*"))
        with pytest.raises(error, match=message):
            asked()
        if (folder / "runs").is_dir():
            shutil.rmtree(folder / "runs")
        assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data__max_tokens": 20}, ValueError, "train: none of 24 rows can be used"),
        ({"attention": "flash_attention_2"}, ModelError, "attention=flash_attention_2: family mllama has no"),
        ({"cache_gb": 1.0}, CacheError, r"vision features of 1\d images: .*cache/vision has room for"),
    ],
    ids=["too-long", "attention", "cache"],
)
def test_a_dry_run_refuses_what_the_run_would(
    changes: dict[str, Any],
    error: type[ValueError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precompute.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    refused(runs.make(tmp_path, "mllama", **changes), tmp_path, error, message)


def test_a_dry_run_asks_the_leak_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = runs.make(tmp_path, "qwen2_vl")
    data = Path(one.data.train[0].source)
    shutil.copy(data / "images" / "train-0.png", data / "images" / "test-0.png")
    sources.fingerprint(data, alike=False)
    (data / "card.json").write_text(json.dumps({"split": "official", "alike": False}))
    refused(one, tmp_path, LeakError, "3 eval conversations of drawn share a group or an image with data.train")
    (data / "train.parquet").rename(data / "elsewhere.parquet")
    refused(one, tmp_path, FileNotFoundError, "train.parquet: no such split; it has the splits: elsewhere, test")
    data.rename(tmp_path / "elsewhere")
    dry.show(one, None)  # of what is not prepared nothing is known


def test_a_dry_run_refuses_an_adapter_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = runs.make(tmp_path, "qwen2_vl")
    runs.attached(one).save_pretrained(tmp_path / "earlier")
    one = one.model_copy(update={"init_adapter": str(tmp_path / "earlier")})
    dry.show(one, None)
    refused(one.model_copy(update={"lora": {"r": 8}}), tmp_path, AdapterError, "made with r=4, the recipe has 8")


def test_a_dry_run_refuses_a_folder_that_is_taken_and_arguments_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.make(tmp_path, "qwen2_vl")
    words = ["small.yaml", "--dry-run"]
    for setting, message in (
        ("train.metric_for_best_model=bleu", "metric_for_best_model: found bleu"),
        ("train.deepspeed=zero3 evaluate.during=3 train.eval_strategy=steps", "every rank would wait"),
        (
            "train.load_best_model_at_end=true train.save_strategy=steps train.eval_strategy=no",
            "load_best_model_at_end",
        ),
        ("train.report_to=wandb", r"train\.report_to: .*wandb.* Install it, or report to tensorboard or none"),
        ("train.optim=schedule_free_adamw", r"train\.optim: .*schedule.*Install it, or leave train\.optim out"),
    ):
        with pytest.raises(ValueError, match=message):
            sft.main([*words, *setting.split()])
    assert sft.main([*words, "train.deepspeed=zero2"]) == 0  # which torchrun launches, and not here
    assert not (tmp_path / "runs").exists()
    taken = tmp_path / "runs" / "small--qwen2_vl"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty; continue that run with resume=auto"):
        sft.main(words)
    assert [file.name for file in taken.iterdir()] == ["notes.txt"]


def test_configs_that_lack_the_base_name_those_there(shared: Path) -> None:
    with pytest.raises(BaseError, match=r"no qwen9-vl/config\.json for base qwen9-vl; found: .*qwen2-vl-7b-instruct"):
        dry.show(recipe.load("skinvl-mm", ["base=Qwen/Qwen9-VL"]), shared / "configs")
