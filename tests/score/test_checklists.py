"""Checklists: every item once, what the run's files know filled in, nothing invented, the rest visibly empty."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from skinvl.data.example import Facts
from skinvl.score import checklists, report, score
from skinvl.score.checklists import EMPTY, ChecklistError, claim, fact, tripod
from skinvl.score.predictions import Classified

CLASSES = ["nevus", "melanoma"]
SETTINGS = {"classes": CLASSES, "label_tokens": [2, 3], "prior": [-2.0, -6.0], "benchmark": None,
            "malignant": [False, True], "question": "Which?"}  # fmt: skip
ENVIRONMENT = {
    "python": "3.11.7",
    "libraries": {"torch": "2.15.0", "skinvl": "0.1.0"},
    "base": {"model": "/home/someone/bases/tiny", "commit": None, "fingerprint": "d3262f1b", "model_type": "qwen2_vl"},
    **{"init_adapter": None, "precision": "bf16", "effective_batch": 16, "rows": {"train": 117, "ham10000": 40}},
    **{"allow_leak": False, "leaking": 0, "moved": 3, "dropped": 2},
}
RECIPE = """
name: r
data:
  train: [{source: /home/someone/data/mm_skin, split: train, weight: 0.5}]
  eval: [{source: ham10000, split: test}]
  image_tokens: 256
  balance: null
parts: {language: {train: lora}, vision: {train: frozen}}
lora: {r: 8, lora_alpha: 16}
train: {seed: 42, learning_rate: 0.0001, num_train_epochs: 2}
"""


def run(folder: Path, full: bool = True) -> Path:
    draw = np.random.default_rng(0)
    path = folder / "eval/classes/ham10000.jsonl"
    path.parent.mkdir(parents=True)
    rows = []
    for number in range(60):
        label = CLASSES[number % 2]
        facts_of = Facts(sex=["female", "male", None][number % 3], confirmed="histopathology", modality="dermoscopy")
        scores = tuple(float(draw.normal() + 2 * (name == label)) for name in CLASSES)
        rows.append(Classified(f"r{number}", "ham10000", f"g{number // 2}", (), facts_of, label, scores, ""))
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    path.with_suffix(".json").write_text(json.dumps(SETTINGS))
    if full:
        (folder / "env.json").write_text(json.dumps(ENVIRONMENT))
        (folder / "recipe.yaml").write_text(RECIPE)
        ledger = [{"row": "a", "rule": "missing-image", "detail": ""}] * 2
        (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    score.main([str(folder), "--resamples", "100", "--workers", "1"])
    return folder


def items(path: Path) -> dict[str, str]:
    """What the page says of each item."""
    lines = re.findall(r"^\| (\d+[a-g]?) \| .*? \| (.*) \|$", path.read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines)
    return dict(lines)


@pytest.mark.parametrize(("name", "module", "count"), [("claim", claim, 44), ("tripod", tripod, 52)])
def test_every_item_stands_once_and_asks_what_there_is(
    tmp_path: Path, name: str, module: object, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = module.ITEMS  # type: ignore[attr-defined]
    assert len({number for number, _, _, _ in listed}) == len(listed) == count
    assert all(callable(fact(one)) for _, _, _, of in listed for one in of)
    path = run(tmp_path / "one")
    assert report.main([str(path), "--checklist", name]) == 0
    found = items(path / f"{name}.md")
    assert list(found) == [number for number, _, _, _ in listed]
    filled = [number for number, text in found.items() if text != EMPTY]
    assert f"{len(filled)} of {count} items filled" in capsys.readouterr().out
    for number, _, _, of in listed:
        assert of or found[number] == EMPTY  # what no run can know stays empty
    assert not (path / "report.html").exists()


def test_what_the_run_knows_is_filled_in_as_it_is(tmp_path: Path) -> None:
    path = run(tmp_path)
    report.main([str(path), "--checklist", "claim"])
    found = {number: text.replace("\\", "") for number, text in items(path / "claim.md").items()}
    assert found["7"] == "train: mm_skin (train). eval: ham10000 (test)."
    assert found["8"] == "2 rows left out or moved by rule: missing-image 2."
    assert "histopathology 30" in found["14"]
    assert found["19"].endswith("train 117, ham10000 40.")
    assert "none is shared; 3 rows" in found["20"]
    assert "…/tiny (qwen2_vl) with digest d3262f1b" in found["22"]
    assert "language: lora, vision: frozen. LoRA: r: 8, lora_alpha: 16." in found["22"]
    assert "torch 2.15.0" in found["23"]
    assert "seed: 42" in found["25"]
    assert found["26"] == "The last checkpoint; none was chosen by a score."
    assert found["33"].startswith("Sets of sources that training did not use, or not alone: ham10000 (classes);")
    assert found["32"] == EMPTY
    assert "60 rows of 30 groups" in found["35"]
    assert "female" in found["36"]
    scores = json.loads((path / "scores.json").read_text())["sets"]["ham10000"]["classes"]
    assert f"accuracy {scores['variants']['sum']['accuracy']['value']:.3f} [" in found["37"]
    wrong = scores["confusion"]["sum"][0][1]
    assert f"nevus taken for melanoma {wrong} times" in found["39"]
    for number in ("2", "5", "11", "15", "16", "18", "21", "27", "31", "34", "40", "43", "44"):
        assert found[number] == EMPTY
    assert "/home/someone" not in (path / "claim.md").read_text()


def test_a_run_that_knows_little_leaves_more_empty(tmp_path: Path) -> None:
    path = run(tmp_path, full=False)
    for name in checklists.names():
        report.main([str(path), "--checklist", name])
    found = items(path / "claim.md")
    for number in ("1", "7", "8", "9", "19", "20", "22", "23", "24", "25", "26", "32", "33"):
        assert found[number] == EMPTY
    assert found["37"] != EMPTY
    readers = {"cases": 20, "cohen": [], "fleiss": {"value": 0.5, "low": 0.4, "high": 0.6, "method": "Wilson"}}
    (path / "readers.json").write_text(json.dumps(readers))
    report.main([str(path), "--checklist", "claim"])
    assert "all (Fleiss) 0.500" in items(path / "claim.md")["18"]


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChecklistError, match=r"did you mean tripod\?"):
        report.main([str(run(tmp_path)), "--checklist", "tripode"])
    assert checklists.names() == ["claim", "tripod"]
