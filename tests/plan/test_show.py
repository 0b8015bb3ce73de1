"""`skinvl show` paints what is trained, and says of a row that is not why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers import runs, two_towers
from skinvl.data.example import read, text, write
from skinvl.plan import show
from skinvl.recipe import towers


def test_what_is_trained_is_shown_and_why_a_row_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    folder = Path(one.data.train[0].source)
    first, second, third, *rest = read(folder, "train")
    second = replace(second, messages=(second.messages[0], text("assistant", "<|im_end|>")))
    write(folder, "train", [first, second, third, *rest])
    (folder / rest[0].images[0]).unlink()
    show.paint_sources(one, 4)
    shown = capsys.readouterr().out
    assert "drawn/train-0-0" in shown
    assert "⟨image ×12⟩" in shown
    assert "drawn/train-0-1: not trained on" in shown
    assert "control-token: <|im_end|>" in shown
    assert "missing-image" in shown
    assert "drawn/test-0-0" in shown


def test_the_texts_of_images_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    recipe = two_towers.recipe(tmp_path, objective__aspects=["caption", "ontology"])
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(towers.dump(recipe))
    show.main([str(run), "-n", "2"])  # its folder stands for the recipe of a run
    shown = capsys.readouterr().out
    assert "train, lesions:images/train-0.png: 1 text ─" in shown
    assert "diagnosis: melanoma metastasis" in shown
    assert "\n  Number 0: a melanoma metastasis of train.\n" in shown
    assert "caption (" in shown
    assert "train-2.png" not in shown
    assert "lesions, lesions:images/test-0.png" in shown
    assert "left out: 12 × kind-without-text" in shown
