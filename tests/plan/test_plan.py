"""`skinvl plan`: the story it tells, and how near its numbers are to a training's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import runs
from skinvl.plan import plan
from skinvl.plan.workload import Assumed

ROOT = Path(__file__).parents[2]


def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_plan", ROOT / "benchmarks" / "plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def recipe_file(tmp_path: Path, **changes: Any) -> str:
    runs.make(tmp_path, "qwen2_vl", cache_gb=1.0, **changes)
    return str(tmp_path / "small.yaml")


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert plan.main(list(words)) == 0
    return capsys.readouterr().out


def test_a_prepared_recipe_is_told_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(capsys, monkeypatch, recipe_file(tmp_path), "--gpu", "24:100", "--mfu", "0.5")
    for words in (
        "small on qwen2_vl, 1 × 24:100 (24 GiB)",
        "largest batch, 4 conversations",
        "frozen weights, unquantised",
        "all, with checkpointing",
        "of the activations, logits of ",
        "fits into 24 GiB; the largest per_device_train_batch_size that would: about",
        "hours at an MFU of 0.5",
        "vision features of 8 images",
        "each checkpoint",
    ):
        assert words in said, words
    assert "assumed" not in said
    assert "assumption" not in said


def test_the_small_recipe_fits_into_16_gb(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = told(capsys, monkeypatch, "small", "--gpu", "t4", "--configs", str(shared / "configs"))
    assert "fits into 16 GiB" in said
    assert "no bf16" not in said


def test_what_does_not_fit_is_told_with_what_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_file(tmp_path)
    tree = yaml.safe_load(Path(file).read_text())
    tree["data"]["train"] = [{"source": "nowhere", "split": "train"}]
    tree["train"] |= {"bf16": True, "per_device_train_batch_size": 8}
    Path(file).write_text(yaml.safe_dump(tree))
    guess = "rows=8192,questions=4,answer=60000"
    said = told(capsys, monkeypatch, file, "--gpu", "t4", "--gpus", "2", "--assume", guess)
    assert "not prepared, so that conversations are assumed: nowhere (train)" in said
    assert "assumed: rows=8,192, questions=4.0, question=11, answer=60,000, around=20" in said
    assert "t4 has no bf16" in said
    assert "does not fit: " in said
    assert "and gradient_accumulation_steps to match) it would fit" in said
    for what in ("QLoRA", "train.deepspeed=zero3:", "train.deepspeed=zero3_offload:", "activation_checkpointing=true:"):
        assert what in said, what
    assert "an assumption (nothing was measured on a GPU)" in said
    half = told(capsys, monkeypatch, file, "train.bf16=false", "train.fp16=true", "--gpu", "t4", "--assume", guess)
    assert "no bf16" not in half
    lines = [[line for line in text.splitlines() if "weights" in line] for text in (said, half)]
    assert lines[0] == lines[1] != []


def test_assumptions_are_read_strictly() -> None:
    assert plan.assumption("") == Assumed()
    assert plan.assumption("rows=5,questions=1.5") == Assumed(rows=5, questions=1.5)
    for wrong in ("row=5", "rows=x", "rows=0", "rows", "questions=-1"):
        with pytest.raises(ValueError, match=rf"--assume {wrong}: expected rows=NUMBER"):
            plan.assumption(wrong)


def test_wrong_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--gpu", "h100", "--mfu", "2"], ["--gpu", "h100", "--gpus", "0"], []):
        with pytest.raises(SystemExit):
            plan.main(["tiny", *words])
    capsys.readouterr()
    with pytest.raises(ValueError, match="--gpu z80: not known"):
        plan.main(["tiny", "--gpu", "z80"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_memory_is_that_of_a_training(family: str) -> None:
    made = benchmark()
    point = made.Point(family=family, hidden=768, layers=6, batch=8, checkpointing=family == "mllama")
    said, peak, seconds, fastest = made.compare(point, 2)
    assert said.peak == pytest.approx(peak, rel=0.15)
    assert seconds > 0 < fastest
