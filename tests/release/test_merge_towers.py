"""An adapter merged into two towers embeds as before, or nothing is written; a whole model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from helpers import provenances, two_towers
from skinvl.model import towers_adapter
from skinvl.model.towers_loaded import load_towers, open_towers, read_model
from skinvl.recipe import run, towers
from skinvl.recipe.files import read_json
from skinvl.release import merge, merge_towers
from skinvl.release.merge import MergeError
from skinvl.release.merge_towers import MergeTowersError


def made(tmp_path: Path, **changes: Any) -> Path:
    """A run whose adapter and full parts are random."""
    recipe = two_towers.recipe(tmp_path, towers__image={"train": "lora"}, lora={"r": 4}, **changes)
    opened = open_towers(recipe)
    attached = towers_adapter.attach(read_model(opened), recipe)
    assert isinstance(attached, PeftModel)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    path = tmp_path / "runs" / "one"
    attached.save_pretrained(path / "adapter")
    opened.tokenizer.save(path / "adapter")
    opened.pixels.save(path / "adapter")
    (path / run.RECIPE).write_text(towers.dump(recipe))
    base = {"model": recipe.base.location, "fingerprint": opened.files.fingerprint(), "model_type": "clip"}
    of_towers = {"texts": {"caption": 6}, "distinct": 6, "text_length": 77, "too_long": 0, "conversion": None}
    provenances.made(base=base, towers=of_towers).write(path)
    return path


def test_a_merged_model_embeds_as_base_and_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path)
    assert merge.main([str(path)]) == 0
    assert "one model of both towers in float32" in capsys.readouterr().out
    facts = read_json(path / "merged" / "merge.json", "x")
    assert max(facts["check"]["images"], facts["check"]["texts"]) <= 1e-5
    assert facts["adapter"] == run.adapter_digest(path / "adapter")

    # By plain transformers, and as the base of a recipe.
    before = load_towers(run.finished_towers(path).adapted(), torch.device("cpu"))
    expected = merge_towers.embeddings(before.model, before)
    plain = AutoModel.from_pretrained(path / "merged", dtype=torch.float32)
    assert (merge_towers.embeddings(plain, before)["images"] - expected["images"]).abs().max() < 1e-5
    recipe = two_towers.recipe(tmp_path, base=str(path / "merged"))
    again = load_towers(recipe, torch.device("cpu"))
    assert (merge_towers.embeddings(again.model, again)["texts"] - expected["texts"]).abs().max() < 1e-5
    untrained = load_towers(two_towers.recipe(tmp_path), torch.device("cpu"))
    assert (merge_towers.embeddings(untrained.model, untrained)["images"] - expected["images"]).abs().max() > 1e-3

    # Twice is once.
    assert merge.main([str(path)]) == 0
    assert "merged already" in capsys.readouterr().out


def test_a_merge_that_embeds_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.layer import Linear

    path, right = made(tmp_path), Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda *arguments: 1.01 * right(*arguments))
    with pytest.raises(MergeTowersError, match=r"merged, embeddings of probes differ by .* nothing was written"):
        merge.main([str(path)])
    assert sorted(child.name for child in path.iterdir()) == ["adapter", "env.json", "recipe.yaml"]


def test_another_base_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path)
    env = path / "env.json"
    fingerprint = read_json(env, "x")["base"]["fingerprint"]
    env.write_text(env.read_text().replace(fingerprint, "0" * 32))
    with pytest.raises(MergeError, match=r"not the base that .*one was trained on: its fingerprint is"):
        merge.main([str(path)])


def test_what_is_not_of_two_towers_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path)
    with pytest.raises(MergeError, match=r"--onto: of vision-language models; .*one is a run of two towers, leave it"):
        merge.main([str(path), "--onto", "bf16"])
    recipe = two_towers.recipe(tmp_path)
    (path / run.RECIPE).write_text(towers.dump(recipe))
    (path / "model").mkdir()
    (path / "model" / "model.safetensors").touch()
    with pytest.raises(MergeError, match="model: a whole model already, without an adapter to merge; use it as it is"):
        merge.main([str(path)])
