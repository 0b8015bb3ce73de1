"""`skinvl merge`: a folder that plain transformers loads, made whole or not at all, of the base that was trained on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers import merges, runs, tiny
from skinvl import __main__
from skinvl.data import mixture
from skinvl.evaluate.engine import Transformers, questions
from skinvl.model.hub import Snapshot
from skinvl.model.loaded import load_model
from skinvl.recipe import run
from skinvl.recipe.recipe import Base, Recipe
from skinvl.recipe.run import RunError, adapter_digest
from skinvl.release import merge, merge_check
from skinvl.release.merge_check import MergeCheckError
from skinvl.train import sft


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def same_logits(path: Path, one: Recipe) -> None:
    """Nothing, if plain transformers gives on the merged folder what plain PEFT gives on base and adapter."""
    model, told = AutoModelForImageTextToText.from_pretrained(path / "merged", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    processor = AutoProcessor.from_pretrained(path / "merged")
    trained = AutoProcessor.from_pretrained(path / "adapter")
    assert processor.chat_template == trained.chat_template
    base = AutoModelForImageTextToText.from_pretrained(one.base.location, dtype=torch.float32)
    whole = PeftModel.from_pretrained(base, str(path / "adapter"))
    chat = runs.chat(one)
    model, whole = model.float().eval(), whole.eval()
    with torch.no_grad():
        for row in mixture.rows(one.data.eval[0])[:3]:
            inputs = runs.alone(chat, row).inputs
            found, expected = model(**inputs).logits, whole(**inputs).logits
            with whole.disable_adapter():
                bare = whole(**inputs).logits
            assert (found - expected).abs().mean() < 0.03
            assert (bare - expected).abs().mean() > 0.2  # the adapter does something


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2_vl", {}),
        *(pytest.param(name, {"parts": merges.everywhere(name)}, marks=pytest.mark.slow) for name in tiny.FAMILIES),
    ],
)
def test_a_run_becomes_a_model_that_plain_transformers_loads(
    tmp_path: Path, family: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base = merges.sharded(tiny.base(family), tmp_path / "base")
    path = merges.made(tmp_path, family, base=base, **changes)
    assert __main__.main(["merge", str(path)]) == 0
    keys = len(load_file(path / "adapter" / "adapter_model.safetensors"))
    told = capsys.readouterr().out
    assert f"onto the bf16 base; {keys} keys of the adapter used, none left over" in told
    out = path / "merged"
    weights = {file.name for file in base.glob("model*")}
    beside = {file.name for file in (path / "adapter").iterdir()} - {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    expected = {"config.json", "generation_config.json", "merge.json", "complete.json"}
    assert {file.name for file in out.iterdir()} == weights | beside | expected
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    assert config["dtype"] == "bfloat16"
    assert all(part.get("dtype", "bfloat16") == "bfloat16" for part in config.values() if isinstance(part, dict))
    assert {name for name in config if config[name] != original.get(name)} <= {
        "text_config", "vision_config", "audio_config",
    }  # fmt: skip
    assert (out / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    facts = json.loads((out / "merge.json").read_text())
    trained = json.loads((path / "env.json").read_text())["base"]
    assert facts["base"] == {name: trained[name] for name in ("model", "commit", "fingerprint")}
    assert facts["adapter"] == adapter_digest(path / "adapter")
    assert facts["onto"] == "bf16"
    assert facts["check"]["max"] <= facts["check"]["tolerance"]
    assert facts["check"]["examples"] == 3
    assert facts["drift"].keys() == {"bf16"}
    assert hidden(path) == []
    same_logits(path, merges.asked(path))


def test_merging_twice_gives_the_same_bytes_and_a_stale_merge_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = merges.made(tmp_path, "qwen2_vl", quantization=merges.NF4)
    out = path / "merged"
    assert merge.main([str(path), "--unchecked"]) == 0
    told = capsys.readouterr().out
    assert "onto the dequantized base" in told
    assert "not compared with base + adapter" in told
    first = contents(out)
    assert merge.main([str(path), "--unchecked", "--out", str(tmp_path / "elsewhere")]) == 0
    assert contents(tmp_path / "elsewhere") == first
    capsys.readouterr()
    before = (out / "merge.json").stat().st_ino
    assert merge.main([str(path)]) == 0
    assert "merged already" in capsys.readouterr().out
    assert (out / "merge.json").stat().st_ino == before
    assert merge.main([str(path), "--onto", "bf16"]) == 0
    facts = json.loads((out / "merge.json").read_text())
    assert facts["onto"] == "bf16"
    assert facts["drift"].keys() == {"dequantized", "bf16"}
    assert facts["drift"]["dequantized"]["kl"] < facts["drift"]["bf16"]["kl"]
    assert contents(out)["model.safetensors"] != first["model.safetensors"]
    file = path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert merge.main([str(path), "--onto", "bf16", "--unchecked"]) == 0
    facts = json.loads((out / "merge.json").read_text())
    assert (facts["adapter"], facts["check"], facts["drift"]) == (adapter_digest(path / "adapter"), None, {})
    assert hidden(path) == hidden(tmp_path) == []


def test_what_cannot_be_merged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(shutil.copytree(tiny.base("qwen2_vl"), tmp_path / "base"))
    path = merges.made(tmp_path, "qwen2_vl", base=base)

    def refused(message: str, *words: str) -> None:
        with pytest.raises(ValueError, match=message):
            merge.main([str(path), *words])
        assert hidden(path) == []

    refused("--onto dequantized: the run was not trained on a 4-bit base", "--onto", "dequantized")
    with pytest.raises(RunError, match="no run, there is no such folder"):
        merge.main([str(tmp_path / "nothing")])
    refused("base: no merged model, and not empty", "--out", str(base))
    taken = tmp_path / "taken"
    taken.write_text("")
    refused("taken: no merged model", "--out", str(taken))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
        refused(r"merged: 0\.0 GB to write, 0\.0 GB free")
    environment = (path / "env.json").read_text()
    (path / "env.json").unlink()
    refused("nothing was trained here")
    (path / "env.json").write_text(environment.replace(str(base), "another"))
    refused(r"trained on another, but its recipe\.yaml names")
    (path / "env.json").write_text(environment)
    for file in ("config.json", "model.safetensors"):
        kept = (base / file).read_bytes()
        (base / file).write_bytes(kept.replace(b"0", b"1", 1))
        refused(r"base: not the base that .* was trained on: its fingerprint is")
        (base / file).write_bytes(kept)
    shutil.rmtree(tmp_path / "drawn")
    refused("--unchecked")
    assert not (path / "merged").exists()
    assert merge.main([str(path), "--unchecked"]) == 0


def test_a_merge_that_fails_the_gate_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = merges.made(tmp_path, "qwen2_vl")
    monkeypatch.setattr(merge_check, "EXACT", 1e-12)
    with pytest.raises(MergeCheckError, match="Nothing was kept"):
        merge.main([str(path)])
    assert not (path / "merged").exists()
    assert hidden(path) == []


def test_a_fingerprint_is_of_config_and_weights_alone(tmp_path: Path) -> None:
    base = tiny.base("qwen2_vl")
    assert Snapshot(base, "abc").fingerprint() == "abc"
    found = Snapshot(base, None).fingerprint()
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    (copy / "README.md").write_text("notes")
    assert Snapshot(copy, None).fingerprint() == found
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert Snapshot(copy, None).fingerprint() != found


KILLED = """
import os
import signal
import sys
from pathlib import Path
import torch
from skinvl.recipe import files
from skinvl.release import merge, merge_check, merging
torch.set_num_threads(1)

def child(at):
    left = [at]
    def counted(function):
        def run(*given, **named):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)
        return run
    merging.Merging._merged = counted(merging.Merging._merged)
    for owner, name in ((merge_check, "check"), (files, "sync"), (files, "replace_folder"), (os, "rename")):
        setattr(owner, name, counted(getattr(owner, name)))
    os._exit(merge.main([sys.argv[1]]))

for at in (*map(int, sys.argv[2:]), 10**9):
    process = os.fork()
    if process == 0:
        child(at)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    out = Path(sys.argv[1]) / "merged"
    print("killed at", at, code, sorted(path.name for path in out.iterdir()) if out.exists() else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stale", [False, True])
def test_a_killed_merge_leaves_nothing_that_looks_whole(tmp_path: Path, stale: bool) -> None:
    path = merges.made(tmp_path, "qwen2_vl")
    fresh = Path(shutil.copytree(path, tmp_path / "fresh"))
    assert merge.main([str(fresh)]) == 0
    tensors = len(load_file(tiny.base("qwen2_vl") / "model.safetensors"))
    if stale:
        assert merge.main([str(path), "--unchecked"]) == 0
        facts = json.loads((path / "merged" / "merge.json").read_text())
        (path / "merged" / "merge.json").write_text(json.dumps({**facts, "adapter": "another"}))
    # while weights are written, as the check begins, within it, and at each step by which the folder appears
    moments = [tensors // 2, tensors + 1, 2 * tensors, *range(3 * tensors + 2, 3 * tensors + 15, 4)]
    found = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), *map(str, moments)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    lines = [line for line in found.splitlines() if line.startswith("killed at")]
    assert len(lines) == len(moments) + 1
    assert all(line.split()[3] == "-9" for line in lines[:-1])
    for line in lines[:-1]:
        assert line.endswith("None") or "complete.json" in line, line
    assert lines[-1].split()[3] == "0"
    whole, expected = (contents(one / "merged") for one in (path, fresh))
    for one in (whole, expected):  # with the last digits of the check, which the number of threads decides
        one.pop("merge.json")
        one.pop("complete.json")
    assert whole == expected
    assert hidden(path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("family", "quantization"), [("qwen2_5_vl", None), ("mllama", merges.NF4)])
def test_a_trained_run_its_merge_and_a_run_on_its_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, quantization: dict[str, Any] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    one = runs.make(tmp_path, family, quantization=quantization, train__max_steps=30)
    sft.train(one)
    path = run.folder(one)
    trained = json.loads((path / "env.json").read_text())["base"]
    assert trained["fingerprint"] == Snapshot(tiny.base(family), None).fingerprint()
    assert merge.main([str(path)]) == 0
    with pytest.raises(ValueError, match=r"what a run has made.*; give .*base=.*merged"):
        merge.main([str(path / "merged")])
    base = Base(name="merged", model=str(path / "merged"))
    update = {"base": base, "quantization": None, "init_adapter": None}
    asked = [question for row in mixture.rows(one.data.train[0]) for question in questions(row)]
    said = []
    for found in (run.evaluated(str(path), ())[0], one.model_copy(update=update)):
        engine = Transformers(load_model(found, merges.CPU), one.evaluate.generation)
        said.append([answer.answer for some in engine.answers([[each] for each in asked]) for answer in some])
    assert said[0] == said[1]
    assert len(set(said[0])) >= 3
    again = one.model_copy(update={"base": base, "quantization": None, "run": "again"})
    sft.train(again.model_copy(update={"train": {**one.train, "max_steps": 2}}))
    assert merge.main(["runs/again"]) == 0
    untrained = one.model_copy(update={"base": base})
    run.begin(tmp_path / "runs" / "untrained", untrained)
    with pytest.raises(RunError, match="nothing was trained here"):
        merge.main(["runs/untrained"])
