from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import PrepError, llava
from skinvl.example import Dropped, Example, validate


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def convert(folder: Path, *entries: Any) -> list[Example | Dropped]:
    path = folder / "rows.json"
    path.write_text(json.dumps(entries))
    rows = list(llava.convert(folder, "all"))
    assert llava.rows(folder, "all") == len(entries) == len(rows)
    for row in rows:
        if isinstance(row, Example):
            validate(row)
    return rows


def one(folder: Path, **entry: Any) -> Example:
    (row,) = convert(folder, entry)
    assert isinstance(row, Example), row
    return row


def shape(row: Example) -> list[list[str | None]]:
    return [[part["text"] for part in message["content"]] for message in row.messages]


def test_placeholders_become_images_where_they_stood(tmp_path: Path) -> None:
    row = one(tmp_path, image="a.png", conversations=turns("What is it?\n<image>", "A nevus.", "Sure?", "Yes."))
    assert shape(row) == [["What is it?", None], ["A nevus."], ["Sure?"], ["Yes."]]
    row = one(tmp_path, image=["a.png", "b.png"], conversations=turns("<image>\nor <image>?", "b", "And?", "No."))
    assert shape(row)[0] == [None, "or", None, "?"]
    assert row.group == "a.png + b.png"


def test_images_without_a_placeholder_go_first(tmp_path: Path) -> None:
    talk = [{"from": "system", "value": "Be brief."}, *turns("Compare.", "Alike.")]
    row = one(tmp_path, image=["a.png", "b.png"], conversations=talk)
    assert shape(row) == [["Be brief."], [None, None, "Compare."], ["Alike."]]


def test_rows_of_text_alone_are_kept(tmp_path: Path) -> None:
    row = one(tmp_path, id="q7", conversations=turns("Is acne common?", "Yes."))
    assert (row.images, row.group) == ((), "q7")


@pytest.mark.parametrize(
    ("entry", "rule", "detail"),
    [
        ({"image": "a", "conversations": turns("<image><image> x", "y")}, "image-count", "2 placeholders and 1 images"),
        ({"conversations": turns("<image> x", "y")}, "image-count", "1 placeholders and 0 images"),
        ({"image": "a", "conversations": turns("<image>", "y")}, "empty", "turn 1 has no words"),
        ({"image": "a", "conversations": turns("x", " ")}, "empty", "turn 2 has no words"),
        ({"image": 3, "conversations": turns("x", "y")}, "malformed", "image is 3"),
        ({"conversations": []}, "malformed", "no list of turns"),
        ({"messages": []}, "malformed", "no list of turns"),
        ("text", "malformed", "no list of turns"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "malformed", "expected from human, gpt or system"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "malformed", "expected from human, gpt or system"),
        ({"conversations": turns("x", "y", "z")}, "malformed", "human, gpt, human; expected human and gpt by turns"),
        ({"image": "a", "conversations": turns("x", "<image> y")}, "malformed", "placeholder in a turn of gpt"),
        ({"conversations": turns("x", "\ud800")}, "malformed", "surrogate"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason(tmp_path: Path, entry: Any, rule: str, detail: str) -> None:
    good = {"conversations": turns("x", "y")}
    first, row, last = convert(tmp_path, good, entry, good)
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert isinstance(row, Dropped)
    assert (row.row, row.rule) == ("rows.json[1]", rule)
    assert detail in row.detail


def test_json_lines_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"conversations": turns("x", "y")}) + "\n\n" + json.dumps({}) + "\n")
    assert llava.rows(path, "all") == 2
    good, bad = llava.convert(path, "all")
    assert isinstance(good, Example)
    assert isinstance(bad, Dropped)
    assert bad.row == "rows.jsonl:3"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.json", '[\n{"id": 1},\n{"id": 2\n]', r"a\.json:4: not JSON"),
        ("a.jsonl", '{"id": 1}\n{"id": 2\n', r"a\.jsonl:2: not JSON"),
        ("a.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer of 63 bytes"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, name: str, body: str, message: str) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(PrepError, match=message):
        list(llava.convert(tmp_path, "all"))


def test_a_folder_must_hold_exactly_one_file(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"found 0 \.json or \.jsonl files"):
        llava.rows(tmp_path, "all")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(PrepError, match=r"found 2 .*\(a\.json, b\.jsonl\)"):
        llava.rows(tmp_path, "all")
