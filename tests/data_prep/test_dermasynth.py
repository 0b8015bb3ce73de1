from __future__ import annotations

import hashlib
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import PrepError, Shard, dermasynth
from helpers.converted import outcomes
from skinvl.data.example import Dropped, Example, Facts, words
from skinvl.sources.prepare.images import look


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
    return outcomes(dermasynth, raw, part)


def pictured(question: str, image: bytes | None) -> dict[str, Any]:
    return {"question": question, "answer": "A nevus.", "img_path": {"bytes": image, "path": "a.jpg"}}


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


def test_replies_are_read_as_all_are(tmp_path: Path) -> None:
    put(
        tmp_path / "a.json",
        response("a", '```json\n{"answer": "5 \\times 5 \\mu m",}\n```', 'So: {"answer": "B."} Bye.'),
    )
    reply = '{"qa_pairs": [{"question_1": "How \\beta?", "answer_1": "By \\frac12."},]}'
    put(tmp_path / "vqa" / "b.json", {"image_id": "b", "image_path": "b.jpg", "api_response": reply})
    (pair,) = convert(tmp_path, "vqa")
    assert said(pair) == ["How \\beta?", "By \\frac12."]
    shutil.move(tmp_path / "vqa", tmp_path.parent / "vqa")
    assert [said(row)[1] for row in convert(tmp_path, "response")] == ["5 \\times 5 \\mu m", "B."]


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
    first, _, again, *found = convert(tmp_path, "response")
    assert isinstance(first, Example)
    assert isinstance(again, Example)
    assert (first.id, said(first)[1], said(again)[1]) == (again.id, "x", "y")
    assert [(row.row, row.rule) for row in found if isinstance(row, Dropped)] == [
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
    one, two, three, four = (row for row in found if isinstance(row, Example))
    assert (one.group == two.group, three.facts.kind, three.images) == (True, "closed", ())
    assert (four.id, said(four)[1]) == (one.id, "Other.")
    assert found[4:] == [Dropped("train.parquet[4]", "empty", "no answer")]
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
    for place in ("images/other/a.jpg", "images/set/a.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    put(tmp_path / "a.json", response("a", fenced(answer="x")))
    put(tmp_path / "b.json", response("b", fenced(answer="x"), image_path="/set\\b.jpg"))
    found = [row.images for row in convert(tmp_path, "response") if isinstance(row, Example)]
    assert found == [("images/set/a.jpg",)] * 2 + [("set/b.jpg",)] * 2


def test_an_lfs_pointer_is_named(tmp_path: Path) -> None:
    for part, name in (("response", "a.json"), ("knowledge", "a.parquet")):
        (tmp_path / part).mkdir()
        (tmp_path / part / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(PrepError, match=rf"{name}: a Git LFS pointer of 63 bytes"):
            list(dermasynth.convert(tmp_path, part))


def images(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "eval1" / "test.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2, compression="none")
    return path


def test_images_within_a_table_are_named_by_their_row(tmp_path: Path) -> None:
    one, two = b"one image" * 20, b"two image" * 20
    path = images(tmp_path, *(pictured(f"{number}?", data) for number, data in enumerate((one, None, two, b"", one))))
    shutil.copy(path, path.with_name("more.parquet"))
    found = convert(tmp_path, "eval1")
    more, found = found[:5], found[5:]
    assert isinstance(more[4], Example)
    assert more[4].images == ("eval1/more.parquet#4",)
    path.with_name("more.parquet").unlink()
    examples = [row for row in found if isinstance(row, Example)]
    assert [row.images for row in examples] == [(f"eval1/test.parquet#{number}",) for number in (0, 2, 4)]
    assert [row.group for row in examples] == [hashlib.sha256(data).hexdigest() for data in (one, two, one)]
    assert {(row.split, row.facts.kind) for row in examples} == {("test", "open")}
    assert len({row.id for row in examples}) == 3
    assert said(examples[0]) == ["0?", "A nevus."]
    assert [row for row in found if isinstance(row, Dropped)] == [
        Dropped(f"test.parquet[{number}]", "missing-image", f"eval1/test.parquet#{number} holds no bytes of an image")
        for number in (1, 3)
    ]
    path.write_bytes(path.read_bytes().replace(two, bytes(len(two))))
    (again,) = dermasynth.convert(tmp_path, "eval1", Shard(2, 4, block=1))
    assert isinstance(again, Example)
    assert again.group == hashlib.sha256(bytes(len(two))).hexdigest()


def test_prep_finds_the_image_that_is_named(tmp_path: Path) -> None:
    pictures = [BytesIO() for _ in range(3)]
    for number, file in enumerate(pictures):
        Image.new("RGB", (8, 8), (90 * number, 0, 0)).save(file, "PNG")
    images(tmp_path / "raw", *(pictured(f"{file}?", file.getvalue()) for file in pictures))
    for row in convert(tmp_path / "raw", "eval1"):
        assert isinstance(row, Example)
        found = look(tmp_path / "raw", row.images[0], tmp_path / "out")
        assert (found.rule, found.sha256) == (None, row.group)


def test_images_that_no_shard_takes_are_not_read(tmp_path: Path) -> None:
    path = images(tmp_path, *(pictured("?", bytes([65 + number]) * 200) for number in range(4)))
    data = path.read_bytes()
    start = data.index(b"A" * 200)  # the length of the image stands before it
    path.write_bytes(data[: start - 4] + b"\xff" * 4 + data[start:])
    kept = list(dermasynth.convert(tmp_path, "eval1", Shard(1, 2, block=2)))
    assert [row.images for row in kept if isinstance(row, Example)] == [
        *(("eval1/test.parquet#2",), ("eval1/test.parquet#3",)),
    ]
    with pytest.raises(PrepError, match=r"test\.parquet: damaged after record 0 \("):
        list(dermasynth.convert(tmp_path, "eval1"))


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (["Scale", "Crust"], "B", "B. Crust"),
        (["Scale", "Crust"], "(b)", "B. Crust"),
        (["Scale", "Crust"], "crust", "B. Crust"),
        (["Scale", "Crust"], "B) crust", "B. Crust"),
        (["Scale", "Crust"], 1, "B. Crust"),
        (["Scale", "Crust"], "0", "A. Scale"),
        (["A. Scale", "B) Crust"], "B", "B. Crust"),
        (["C. albicans", "T. rubrum"], "A", "A. C. albicans"),
        (["A. flavus", "T. rubrum"], "B", "B. T. rubrum"),
        (["1", "2"], "1", "A. 1"),
        (["True", "False"], False, "B. False"),
        ({"A": "Scale", "B": "Crust", "C": None}, "A", "A. Scale"),
        ({"a": "A. Scale", "b": "B. Crust"}, "A: Scale", "A. Scale"),
        (["Scale", "Crust"], "C", None),
        (["Scale", "Crust"], 2, None),
        (["Scale", "Crust"], -1, None),
        (["Scale", "Crust"], True, None),
        (["Scale", "Crust"], None, None),
        (["Scale", "Scale"], "Scale", None),
        (["B", "A"], "A", None),
        (["Scale"], "A", None),
        (["Scale", ""], "A", None),
        (["x"] * 27, "A", None),
        ("Scale, Crust", "A", None),
    ],
)
def test_the_answer_of_a_choice_is_found(tmp_path: Path, choices: Any, answer: Any, expected: str | None) -> None:
    record = {"question_id": 7, "question": "Which?", "choices": choices, "answer": answer}
    put(tmp_path / "mcq" / "a.json", [record])
    (row,) = convert(tmp_path, "mcq")
    if expected is None:
        assert isinstance(row, Dropped)
        assert (row.row, row.rule) == ("a.json[0]", "unparsable-answer")
        return
    assert isinstance(row, Example)
    question, reply = said(row)
    assert reply == expected
    assert question.split("\n")[0] == "Which?"
    assert expected in question.split("\n")[1:]
    assert (row.split, row.facts, row.images) == ("test", Facts(kind="closed"), ())


def test_choices_in_parquet(tmp_path: Path) -> None:
    rows = [{"question": "Which?", "choices": {letter: letter * 3}, "answer": "A"} for letter in "AB"]
    rows += [{"question": "", "choices": {"A": "x", "B": "y"}, "answer": "A"}]
    rows += [{"question": "Which?", "choices": {"A": "x", "B": "y"}, "answer": "B"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = convert(tmp_path, "mcq")
    assert [row.rule for row in found if isinstance(row, Dropped)] == ["unparsable-answer"] * 2 + ["empty"]
    assert said(found[3]) == ["Which?\nA. x\nB. y", "B. y"]
