from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import PrepError, dermasynth
from skinvl import prep
from skinvl.example import Dropped, Example, Facts, read, validate, words


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def fenced(**reply: str) -> str:
    return f"Here it is:\n```json\n{json.dumps(reply)}\n```\nI hope that helps."


def response(name: str, general: Any, dataset: Any = '{"answer": "B."}', **fields: str) -> dict[str, Any]:
    asked = {"q1_general_question": "What is seen?", "q2_dataset_question": "Where is it?"}
    entry = {"image_id": name, "image_path": f"/home/x/set/{name}.jpg", **asked, **fields}
    return {**entry, "q1_general_response": general, "q2_dataset_response": dataset}


def convert(raw: Path, part: str) -> list[Example | Dropped]:
    found = list(dermasynth.convert(raw, part))
    assert dermasynth.rows(raw, part) == len(found)
    for row in found:
        if isinstance(row, Example):
            validate(row)
    return found


def said(row: Example | Dropped) -> list[str]:
    assert isinstance(row, Example), row
    return [words(message) for message in row.messages]


def test_answers_are_taken_out_of_their_fences(tmp_path: Path) -> None:
    put(tmp_path / "a.json", response("a", fenced(answer="A ```macule```."), '{"answer": "Two\nlines."}'))
    put(tmp_path / "b.json", response("b", {"answer": "A papule."}, None))
    put(tmp_path / "c.json", response("c", "```json\n{answer: no}\n```", '{"answer": ["x"]}'))
    found = convert(tmp_path, "response")
    assert [said(row) for row in found[:3]] == [
        ["What is seen?", "A ```macule```."],
        ["Where is it?", "Two\nlines."],
        ["What is seen?", "A papule."],
    ]
    assert [(row.row, row.rule) for row in found[3:] if isinstance(row, Dropped)] == [
        ("b.json q2_dataset", "unparsable-answer"),
        ("c.json q1_general", "unparsable-answer"),
        ("c.json q2_dataset", "unparsable-answer"),
    ]


def test_a_creative_question_replaces_the_stored_one(tmp_path: Path) -> None:
    both = fenced(question="Is it flat?", answer="Yes.")
    create = 'Use the format {"question": "<question>", "answer": "<answer>"}'
    put(tmp_path / "a.json", response("a", both, both, q1_general_prompt=create, q2_dataset_prompt="Answer."))
    put(tmp_path / "b.json", response("b", both, fenced(answer="Yes."), q2_dataset_prompt=create))
    put(tmp_path / "c.json", response("c", both, q1_general_prompt="Answer."))
    asked = {"question_type": "Creativity", "question": "What is seen?"}
    other = {"question_type": "Differential Diagnosis", "question": "Where is it?"}
    request = {"image_id": "c", "q1_general": asked, "q2_dataset_specific": other}
    put(tmp_path / "deep" / "api_requests_x.json", {"total_requests": 2, "requests": [request, {"prompt": "figure"}]})
    found = convert(tmp_path, "response")
    assert [said(row)[0] for row in found if isinstance(row, Example)] == [
        *("Is it flat?", "Where is it?", "Is it flat?", "Is it flat?", "Where is it?"),
    ]
    assert [row.facts.kind for row in found if isinstance(row, Example)] == [
        *("creativity", "open", "open", "creativity", "differential diagnosis"),
    ]
    dropped = found[3]
    assert isinstance(dropped, Dropped)
    assert (dropped.row, dropped.rule) == ("b.json q2_dataset", "unparsable-answer")
    put(tmp_path / "api_requests_y.json", {"requests": [{"q1_general": {}}]})
    with pytest.raises(PrepError, match=r"api_requests_y\.json: KeyError 'question'; expected image_id, q1_general"):
        convert(tmp_path, "response")


def test_damaged_and_repeated_responses_go_to_the_ledger(tmp_path: Path) -> None:
    put(tmp_path / "a.json", response("a", fenced(answer="x")))
    put(tmp_path / "b.json", {**response("a", fenced(answer="y")), "q2_dataset_question": None})
    put(tmp_path / "c.json", [1])
    (tmp_path / "d.json").write_text('{"image_id": ' + "[" * 100_000)
    found = convert(tmp_path, "response")[2:]
    assert [(row.row, row.rule) for row in found if isinstance(row, Dropped)] == [
        ("b.json q1_general", "duplicate"),
        ("b.json q2_dataset", "empty"),
        *((f"{name}.json {slot}", "malformed") for name in "cd" for slot in ("q1_general", "q2_dataset")),
    ]


def test_figures_give_pairs_and_benchmark_questions(tmp_path: Path) -> None:
    def figure(name: str, reply: Any) -> None:
        put(tmp_path / "vqa" / f"{name}.json", {"image_id": name, "image_path": f"{name}.jpg", "api_response": reply})

    pairs = [{"question_1": "What?", "answer_1": "Scale."}, {"question_2": "x", "answer_3": "y"}, "text"]
    figure("PMC1", {"qa_pairs": pairs})
    options = {"A": "Scale", "B": "Crust", "C": "Ulcer", "D": "Scar"}
    figure(
        "PMC2",
        fenced(qa_pair="x").replace(
            '"x"', json.dumps({"question": "Which?", "options": options, "correct_answer": "B"})
        ),
    )
    figure("PMC3", {"qa_pair": {"question": "Which?", "options": options, "correct_answer": "E"}})
    figure("PMC4", {"qa_pair": {"question": "Why?", "answer": "Because."}})
    figure("PMC5", "no")
    found = convert(tmp_path, "vqa")
    examples = [row for row in found if isinstance(row, Example)]
    assert [(row.group, row.split, row.facts.kind) for row in examples] == [
        *(("PMC1", "train", "open"), ("PMC2", "test", "closed"), ("PMC4", "test", "open")),
    ]
    assert said(examples[0]) == ["What?", "Scale."]
    assert said(examples[1]) == ["Which?\nA. Scale\nB. Crust\nC. Ulcer\nD. Scar", "B. Crust"]
    assert [(row.row, row.rule) for row in found if isinstance(row, Dropped)] == [
        *(("vqa/PMC1.json 2", "malformed"), ("vqa/PMC1.json 3", "malformed")),
        *(("vqa/PMC3.json 1", "malformed"), ("vqa/PMC5.json 1", "unparsable-answer")),
    ]
    with pytest.raises(PrepError, match=r"no folder response; found vqa\. How to get DermaSynth"):
        convert(tmp_path, "response")


def test_tables_of_text_alone(tmp_path: Path) -> None:
    tasks = [
        {"instruction": "Define.", "input": "Term: papule", "output": "A bump.", "is_classification": False},
        {"instruction": "Define.", "input": "Term: macule", "output": "A spot.", "is_classification": False},
        {"instruction": "Is acne common?", "input": "<noinput>", "output": "Yes.", "is_classification": True},
        {"instruction": "Define.", "input": "Term: papule", "output": "Other.", "is_classification": False},
        {"instruction": "Define.", "input": None, "output": None, "is_classification": None},
    ]
    (tmp_path / "self_instruct").mkdir()
    pq.write_table(pa.Table.from_pylist(tasks), tmp_path / "self_instruct" / "train.parquet")
    found = convert(tmp_path, "self_instruct")
    assert [said(row) for row in found[:3]] == [
        *(["Define.\n\nTerm: papule", "A bump."], ["Define.\n\nTerm: macule", "A spot."], ["Is acne common?", "Yes."]),
    ]
    one, two, three = (row for row in found if isinstance(row, Example))
    assert (one.group == two.group, three.facts.kind, three.images) == (True, "closed", ())
    assert found[3:] == [
        Dropped("train.parquet[3]", "duplicate", "repeats train.parquet[0]"),
        Dropped("train.parquet[4]", "empty", "no answer"),
    ]
    put(
        tmp_path / "knowledge" / "kb.json",
        [{"disease_name": "Acne", "question": "What is it?", "answer": "A disease."}],
    )
    (row,) = convert(tmp_path, "knowledge")
    assert isinstance(row, Example)
    assert row.facts == Facts(diagnosis="acne", kind="open")
    put(tmp_path / "knowledge" / "kb.json", [{"disease_name": "Acne", "question": "What is it?"}])
    with pytest.raises(
        PrepError, match=r"kb\.json\[0\]: no answer; found disease_name, question; expected disease_name"
    ):
        convert(tmp_path, "knowledge")


def test_images_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for place in ("images/other/a.jpg", "images/set/a.jpg"):
        (raw / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(raw / place)
    put(raw / "a.json", response("a", fenced(answer="x")))
    put(raw / "b.json", response("b", fenced(answer="x"), image_path="set\\b.jpg"))
    account = prep.prepare("dermasynth", raw, tmp_path / "out")
    assert Counter(row.rule for row in account.ledger) == {"missing-image": 2}
    assert {row.images for row in read(tmp_path / "out", "train")} == {("images/images/set/a.jpg",)}
