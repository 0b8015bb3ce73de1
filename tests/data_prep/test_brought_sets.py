"""Sets of several images, answers, options and thoughts, as users bring them: prepared, trained on, and evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import test_dermavqa
from PIL import Image
from test_shards import RAWS

import data_prep
from skinvl.__main__ import main
from skinvl.data.example import Example, read, splits

# What of each is trained on; SkinCon lies over the photos of Fitzpatrick17k, which come first.
PARTS = {
    "fitzpatrick17k": ("vqa", ()),
    "milk10k": ("challenge", ()),
    "derm7pt": ("vqa", ()),
    "passion": ("vqa", ()),
    "dermavqa m3g": ("m3g", ()),
    "dermavqa das": ("das", ()),
    "skincare": ("caption", ()),
    "skincare cot": ("cot", ()),
    "skincon": ("fitzpatrick17k", ("--over", "data/fitzpatrick17k")),
    "slice_3d": ("tiles", ()),
}


def _several_responses(raw: Path) -> list[Path]:
    responses = test_dermavqa.reply("a", "Scabies", 1.0), test_dermavqa.reply("b", "It may be scabies", 0.5)
    return [test_dermavqa.raw(raw, train=[test_dermavqa.query("ENC1", *responses)])]


def photos(rows: Iterator[object], root: Path) -> None:
    """Draws every image that the rows name and RAW has not, each another one."""
    for row in rows:
        for name in row.images if isinstance(row, Example) else ():
            path = root / name
            if "#" not in name:
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(sum(name.encode())).integers(0, 256, (6, 6, 3), np.uint8)
                Image.fromarray(noise).resize((64, 64)).save(path, "PNG")


@pytest.mark.slow
def test_prepared_trained_on_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    specs = []
    for label, (part, options) in PARTS.items():
        name, out = label.partition(" ")[0], f"data/{label.replace(' ', '_')}"
        raw = (_several_responses if label == "dermavqa m3g" else RAWS[name])(tmp_path / "raw" / label)[0]
        if name != "skincon":
            photos(data_prep.load(name).convert(raw, part), raw)
        assert main(["prep", name, str(raw), out, "--part", part, *options]) == 0, capsys.readouterr()
        specs += [{"source": Path(out).name, "split": split} for split in splits(tmp_path / out)]
    several = [row for spec in specs for row in read(tmp_path / "data" / spec["source"], spec["split"])]
    for field in ("references", "options", "thoughts"):
        assert any(getattr(row, field) for row in several), field
    assert any(len(row.facts.views) > 1 for row in several)
    assert any(row.facts.present and row.facts.absent for row in several)

    # One training on all of them, and an evaluation on the same, as nothing is left of most.
    sets = json.dumps(specs)
    data = [f"data.train={sets}", "data.eval=[]", "data.references=drawn", "data.max_tokens=2048"]
    train = ["max_steps=2", "eval_strategy=no", "save_strategy=no", "load_best_model_at_end=false"]
    words = [*data, *(f"train.{word}" for word in train), "run=brought"]
    assert main(["sft", "tiny", *words]) == 0, capsys.readouterr()
    labels = {f"{spec['source']}_{spec['split']}" for spec in specs} | {spec["source"] for spec in specs}
    asked = ["evaluate.classify=[]", "evaluate.generation.max_new_tokens=4"]
    assert main(["eval", "runs/brought", f"data.eval={sets}", "data.allow_leak=true", *asked]) == 0, capsys.readouterr()
    scores = json.loads((tmp_path / "runs" / "brought" / "scores.json").read_text())["sets"]
    assert {*scores} <= labels
    questions = sum(message["role"] == "assistant" for row in several for message in row.messages)
    assert sum(block["answers"]["rows"] for block in scores.values()) == questions
    das = [block["answers"]["metrics"] for name, block in scores.items() if name.startswith("dermavqa_das")]
    assert sum(metrics["option_credit"]["n"] for metrics in das) > 0
