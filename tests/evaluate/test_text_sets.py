"""Multiple choice without images: which rows of a file are asked, of whom, and what the difference is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import runs
from skinvl.data.example import words
from skinvl.evaluate import classify, text_sets
from skinvl.evaluate import eval as evaluate
from skinvl.evaluate.text_sets import TextSetError
from skinvl.model import infer
from skinvl.model.loaded import load_model
from skinvl.model.pack import Collator
from skinvl.recipe import run
from skinvl.recipe.recipe import Recipe
from skinvl.score import predictions, report
from skinvl.score.predictions import Classified
from skinvl.train import sft

OPTIONS = {"A": "Nevus", "B": "Melanoma", "C": "Eczema", "D": "Acne"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def asked(number: int, right: str = "B", options: dict[str, str] = OPTIONS) -> dict[str, Any]:
    return {"question": f"Which is it, case {number}?", "options": options, "answer_idx": right, "meta_info": "step1"}


def test_rows_of_medqa_are_asked_with_their_options_by_letter(tmp_path: Path) -> None:
    task, unread = text_sets.read("medqa", lines(tmp_path / "a.jsonl", asked(1), asked(2, "D")))
    assert (task.classes, unread) == (("A", "B", "C", "D"), [])
    assert [sample.label for sample in task.samples] == ["B", "D"]
    question, answer = task.samples[0].example.messages
    assert words(question).splitlines()[:3] == ["Which is it, case 1?", "A. Nevus", "B. Melanoma"]
    assert words(answer) == "B"
    assert task.samples[0].example.images == ()


@pytest.mark.parametrize("head", ["question,A,B,C,D,answer\n", ""])
def test_rows_of_mmlu_are_read_with_their_head_and_without(tmp_path: Path, head: str) -> None:
    path = tmp_path / "anatomy.CSV"
    path.write_text(head + '"Where, then?\nSay.",Skin,Bone,Gut,Eye,A\nWho?,a,b,c\n')
    task, unread = text_sets.read("mmlu", path)
    (sample,) = task.samples
    assert (sample.label, words(sample.example.messages[0])[:19]) == ("A", "Where, then?\nSay.\nA")
    assert [(one.rule, one.row) for one in unread] == [("no-options", f"anatomy.CSV:{3 + bool(head)}")]


def test_every_row_is_asked_or_in_the_ledger_with_its_rule(tmp_path: Path) -> None:
    bad = (
        "{",
        {**asked(2), "question": " "},
        {**asked(3), "options": {"A": "Nevus", "C": "Acne"}},
        {**asked(4), "options": ["Nevus", "Acne"]},
        {**asked(5), "options": {**OPTIONS, "B": ""}},
        asked(6, "E"),
        asked(7, "B", {**OPTIONS, "E": "Scar"}),
        {**asked(8), "answer_idx": 1},
    )
    task, unread = text_sets.read("medqa", lines(tmp_path / "a.jsonl", asked(1), *bad, asked(10)))
    assert [sample.example.id for sample in task.samples] == ["1", "10"]
    assert {one.row: one.rule for one in unread} == {
        "a.jsonl:2": "no-json",
        "a.jsonl:3": "no-question",
        **dict.fromkeys(("a.jsonl:4", "a.jsonl:5", "a.jsonl:6"), "no-options"),
        **dict.fromkeys(("a.jsonl:7", "a.jsonl:9"), "no-answer"),
        "a.jsonl:8": "other-options",
    }


def test_a_file_without_a_question_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(TextSetError, match=r"text_sets\.medqa: .*no such file; expected MedQA's"):
        text_sets.read("medqa", tmp_path / "none.jsonl")
    with pytest.raises(TextSetError, match=r"no question to ask \(a\.jsonl:1 no-question: .*expected rows with"):
        text_sets.read("medqa", lines(tmp_path / "a.jsonl", {"query": "?"}))
    (tmp_path / "b.jsonl").write_bytes("Wärze".encode("latin-1"))
    with pytest.raises(TextSetError, match=r"no UTF-8"):
        text_sets.read("medqa", tmp_path / "b.jsonl")


def test_an_adapter_and_its_base_are_asked_and_the_base_is_the_one_without_it(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", *(asked(number, "ABCD"[number % 4]) for number in range(12)), "{")
    sets = {"medqa": str(path)}
    trained: Recipe = runs.make(tmp_path, "qwen2_vl", evaluate__text_sets=sets, train__learning_rate=0.3)
    sft.train(trained)
    folder = run.folder(trained)
    assert evaluate.main([str(folder), "data.eval=[]"]) == 0
    by_side = {
        side: predictions.read(folder / "eval" / "text_sets" / side / "medqa.jsonl", Classified)
        for side in ("adapter", "base")
    }
    rows = {side: [row.scores for row in of] for side, (_, of) in by_side.items()}
    assert by_side["adapter"][0]["adapter"] is not None
    assert by_side["base"][0]["adapter"] is None

    # The base with the adapter off says what the base says that never had one.
    alone = load_model(runs.make(tmp_path, "qwen2_vl", evaluate__text_sets=sets), torch.device("cpu"))
    task, _ = text_sets.read("medqa", path)
    collate = classify.ClassCollator(Collator(alone.chat), task, False)
    batch = collate(task.samples).classes
    assert batch is not None
    scores = np.array(infer.likelihoods(alone.model, batch)).reshape(12, 4)
    np.testing.assert_allclose(np.array(rows["base"]), scores, rtol=1e-4)
    assert not np.allclose(np.array(rows["adapter"]), scores, rtol=1e-2)  # the twin: with the adapter on it does not

    # The ledger, the difference of the pairs, and where they stand.
    ledger = (folder / "eval" / "text_sets" / "medqa.ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["rule"] for line in ledger] == ["no-json"]
    block = json.loads((folder / "scores.json").read_text())["sets"]["medqa"]["text"]
    right = {
        side: np.mean([np.argmax(row.scores) == "ABCD".index(row.label) for row in of])
        for side, (_, of) in by_side.items()
    }
    assert {side: number["value"] for side, number in block["accuracy"].items()} == pytest.approx(right)
    assert block["difference"]["value"] == pytest.approx(right["adapter"] - right["base"])
    assert (block["rows"], block["unread"], block["chance"]) == (12, {"no-json": 1}, 0.25)
    assert "medqa, without images (1 rows not read)" in (folder / "scores.md").read_text()
    report.main([str(folder)])
    assert "Multiple choice without images" in (folder / "report.html").read_text()


def test_a_base_alone_has_no_difference(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", *(asked(number) for number in range(3)))
    one = runs.make(tmp_path, "qwen2_vl", evaluate__text_sets={"medqa": str(path)})
    classify.classify_sets(one, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "eval" / "text_sets").iterdir()) == [
        *("base", "medqa.ledger.jsonl"),
    ]
