from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import PrepError, Shard, llava
from helpers.converted import outcomes
from skinvl.data.example import Dropped, Example


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def convert(folder: Path, *entries: Any) -> list[Example | Dropped]:
    path = folder / "rows.json"
    path.write_text(json.dumps(entries))
    rows = outcomes(llava, folder, "all")
    assert len(entries) == len(rows)
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


@pytest.mark.parametrize("image", ["", " ", None, [], [""], ["", " "]])
def test_an_empty_path_is_no_image(tmp_path: Path, image: Any) -> None:
    row = one(tmp_path, id="q7", image=image, conversations=turns("Is acne common?", "Yes."))
    assert (row.images, row.group, shape(row)) == ((), "q7", [["Is acne common?"], ["Yes."]])
    (row,) = convert(tmp_path, {"image": image, "conversations": turns("<image>\nIs it red?", "Yes.")})
    assert isinstance(row, Dropped)
    assert (row.rule, row.detail) == ("image-count", "1 placeholders and 0 images")


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
        ({"conversations": turns("\udc00", "y")}, "malformed", "surrogate"),
        ({"conversations": turns("x", "y"), "id": "é\udfff"}, "malformed", "surrogate"),
        ({"image": "\ud800", "conversations": turns("x", "y")}, "malformed", "surrogate"),
        ({"conversations": turns("x", "<image>")}, "empty", "turn 2 has no words"),
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
    line = json.dumps({"conversations": turns("x", "y")})
    path.write_text(f"\ufeff{line}\n\n{{}}\n \n{line}")
    good, bad, last = outcomes(llava, path, "all")
    assert isinstance(bad, Dropped)
    assert bad.row == "rows.jsonl:3"
    assert [row.id for row in (good, last) if isinstance(row, Example)] == ["1", "3"]


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.json", '[\n{"id": 1},\n{"id": 2\n]', r"a\.json:4: not JSON"),
        ("a.json", "[1, " + "[" * 100_000, r"a\.json:1: not JSON \(maximum recursion depth .*, column 5\)"),
        ("a.jsonl", '{"id": 1}\n{"id": 2\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"id": 1}\n' + "[" * 100_000, r"a\.jsonl:2: not JSON"),
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


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 40])
def test_a_list_is_read_as_json_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(llava, "CHUNK", chunk)
    long = 'é\\"\n😀' * 30
    found = [1, -2.5e-7, 10**40, None, [], {}, "", long, {long: [long, {"a": [1.5, True]}]}, [[["]"]]], "\ud83d", "[,"]
    path = tmp_path / "a.json"
    for entries in (found, found[::-1], [], [[]]):
        for before, after in (("", ""), ("\ufeff \n", "\n \n")):
            for plain in (True, False):
                text = json.dumps(entries, ensure_ascii=plain, indent=indent).replace("\ud83d", "\\ud83d")
                path.write_bytes((before + text + after).encode())
                assert [entry for _, entry in llava.entries(path)] == entries
                assert llava.count(path) == len(entries)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        *('[1, 2] "x"', "[1, 2], 3", "[1, 2,]", "[,1]", "[1 2]", "[1", "[", "[1,", '["a', "[1.]", "[1, tru]", "[1}"),
        *('[{"a": 1}, {"a" 1}, {"b": 2}]', '[{"a": "x\ny"}]', '["\\x"]', "[\n1,\n\n  {'a': 1}]", '[{"a": 1,}]'),
        '["' + "x" * 100 + '", \n["' + "y" * 100 + '" 1], ' + "2, " * 100 + "3]",
    ],
)
def test_a_broken_list_is_refused_where_json_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: str
) -> None:
    monkeypatch.setattr(llava, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    error = expected.value
    where = re.escape(f"a.json:{error.lineno}: not JSON ({error.msg}, column {error.colno}); repair it there")
    with pytest.raises(PrepError, match=where):
        list(llava.entries(path))
    with pytest.raises(PrepError, match=where):
        llava.count(path)


def test_a_list_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "CHUNK", 10)
    (tmp_path / "a.json").write_bytes(b'[\n"long enough",\n"' + b"\xe9" + b'"]')
    with pytest.raises(PrepError, match=r"a\.json:3: not UTF-8 \(invalid continuation byte\); save it as UTF-8"):
        llava.rows(tmp_path, "all")


def test_a_list_takes_no_more_memory_than_a_few_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "CHUNK", 1 << 14)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"conversations": turns("x" * 1000, "y")}] * 3000))
    tracemalloc.start()
    try:
        assert llava.rows(path, "all") == sum(1 for _ in llava.convert(path, "all")) == 3000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 10
    finally:
        tracemalloc.stop()


def test_what_another_shard_takes_is_not_decoded(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"id": 1}\n{"id": 2\n{"id": 3}\n')
    assert [entry["id"] for _, entry in llava.entries(lines, Shard(0, 2, block=1))] == [1, 3]
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["abcdefgh" * 9, "x" * 99]}), table, row_group_size=1, compression="none")
    table.write_bytes(table.read_bytes().replace(b"abcdefgh" * 9, b"\xff" * 72))
    assert list(llava.entries(table, Shard(1, 2, block=1))) == [("a.parquet[1]", {"id": "x" * 99})]
    with pytest.raises(PrepError, match=r"a\.parquet: damaged after record 0 \("):
        list(llava.entries(table, Shard(0, 2, block=1)))
    table.write_bytes(b"PAR1")
    with pytest.raises(PrepError, match=r"a\.parquet: not a Parquet file"):
        llava.count(table)
