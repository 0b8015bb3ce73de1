"""Every recipe dry-runs on every base: hits, exact counts, no weights, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import runs, tiny
from skinvl.model.hub import BaseError
from skinvl.plan import dry
from skinvl.recipe import recipe

PAIRS = [(name, base) for name in recipe.recipes() for base in recipe.bases() if base not in tiny.UNSEEN]


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
    assert "(train): 24 of 24 rows" in shown
    assert "model.visual.merger" in shown


def test_configs_that_lack_the_base_name_those_there(shared: Path) -> None:
    with pytest.raises(BaseError, match=r"no qwen9-vl/config\.json for base qwen9-vl; found: .*qwen2-vl-7b-instruct"):
        dry.show(recipe.load("skinvl-mm", ["base=Qwen/Qwen9-VL"]), shared / "configs")
