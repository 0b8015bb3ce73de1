"""Answers in JSON: what is valid, which fields are right, what is read, and that nothing is ever fetched."""

from __future__ import annotations

import json
import math
import socket
import urllib.request
from typing import Any

import pytest

from skinvl.data.example import Facts, Reference
from skinvl.data.workers import Workers
from skinvl.score import answers, metrics
from skinvl.score.metrics import closed_accuracy, json_fields, multiple_choice
from skinvl.score.predictions import Answer

SCHEMA = {
    "type": "object",
    "properties": {
        "diagnosis": {"type": "string"},
        "size": {"type": "number"},
        "biopsy": {"type": "boolean"},
        "colours": {"type": "array", "items": {"enum": ["red", "brown", "white"]}},
        "site": {"type": "object", "properties": {"part": {"type": "string"}, "side": {"type": "string"}}},
    },
    "required": ["diagnosis"],
}
RIGHT = {
    **{"diagnosis": "Nevus", "size": 5, "biopsy": False, "colours": ["brown", "red"]},
    "site": {"part": "arm", "side": "left"},
}


def row(answer: Any, reference: Any = RIGHT, schema: Any = SCHEMA, id: str = "1") -> Answer:
    said = answer if isinstance(answer, str) else json.dumps(answer)
    texts = [text if isinstance(text, str) else json.dumps(text) for text in (reference, schema)]
    return Answer(id, "s", id, (), "Describe it.", texts[0], Facts(), said, "stop", "", 3, 0, schema=texts[1])


def scored(*rows: Answer) -> tuple[float, float]:
    numbers = metrics.measure(rows, [metrics.load("json_fields")])
    return numbers["json_valid"], numbers["json_fields"]


@pytest.mark.parametrize(
    ("answer", "valid", "right"),
    [
        (RIGHT, 1.0, 6 / 6),
        ({**RIGHT, "colours": ["red", "brown", "red"], "diagnosis": " naevus. "}, 1.0, 5 / 6),
        ({**RIGHT, "colours": ["red", "brown"], "diagnosis": "NEVUS."}, 1.0, 6 / 6),
        ({**RIGHT, "size": 5.0, "biopsy": 0}, 0.0, 5 / 6),  # 0 is not false
        ({**RIGHT, "size": "5"}, 0.0, 5 / 6),
        ({**RIGHT, "colours": ["red", "green"]}, 0.0, 5 / 6),
        ({**RIGHT, "note": "flat"}, 1.0, 6 / 7),  # a field that the reference does not have
        ({"diagnosis": "Nevus"}, 1.0, 1 / 6),
        ({}, 0.0, 0.0),
        ([], 0.0, 0.0),
        ("", 0.0, 0.0),
        ("A nevus of 5 mm.", 0.0, 0.0),
    ],
)
def test_fields_are_compared_by_what_they_mean(answer: Any, valid: float, right: float) -> None:
    assert scored(row(answer)) == pytest.approx((valid, right))


@pytest.mark.parametrize(
    "around", ["```json\n{}\n```", "Here it is:\n```json\n{}\n```\nThat is all.", "```\n{}\n```", " {}\n"]
)
def test_json_in_one_fence_is_read(around: str) -> None:
    assert scored(row(around.replace("{}", json.dumps(RIGHT, indent=1)))) == (1.0, 1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is " + json.dumps(RIGHT),  # words around it
        json.dumps(RIGHT)[:-1],
        json.dumps(RIGHT).replace('"', "'"),
        json.dumps(RIGHT).replace("5", "NaN"),
        '{"diagnosis": "Nevus", "diagnosis": "Nevus"}',
        f"```json\n{json.dumps(RIGHT)}\n```\n```json\n{json.dumps(RIGHT)}\n```",  # which of them?
        "[" * 100_000,
        '{"a":' * 600 + "1" + "}" * 600,  # which parses
        "[" * 900 + "]" * 900,
        "9" * 10_000,
    ],
)
def test_nothing_else_is_mended_or_guessed(answer: str) -> None:
    assert scored(row(answer)) == (0.0, 0.0)


def test_a_schema_that_names_another_place_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []

    def refuse(*words: Any, **more: Any) -> Any:
        fetched.append(words)
        raise OSError

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    remote = {"properties": {"diagnosis": {"$ref": "https://schemas.example/diagnosis.json"}}}
    asked = row(RIGHT, schema=remote)
    assert json_fields.unread(asked)
    assert not json_fields.counts(asked)
    assert not fetched
    local = {"$defs": {"name": {"type": "string"}}, "properties": {"diagnosis": {"$ref": "#/$defs/name"}}}
    assert scored(row(RIGHT, schema=local)) == (1.0, 1.0)
    assert scored(row({"diagnosis": 1}, schema=local))[0] == 0.0


@pytest.mark.parametrize(
    ("reference", "schema"),
    [
        (RIGHT, {"type": "nothing"}),
        (RIGHT, "[]"),
        (RIGHT, {"$ref": "#"}),
        ({"size": 5}, SCHEMA),
        ("Nevus", SCHEMA),
    ],
)
def test_a_row_whose_schema_or_reference_cannot_be_used_is_not_scored(reference: Any, schema: Any) -> None:
    asked = row(RIGHT, reference, schema)
    assert json_fields.unread(asked)
    measured = answers.measure([asked], [metrics.load("json_fields")], Workers(1))
    number = answers.block(measured, {}, answers.bootstrap([asked], 100, 0))["metrics"]["json_valid"]
    assert (number["value"], number["n"], number["unscored"]) == (None, 0, 1)


def test_only_answers_with_a_schema_count_and_are_no_closed_questions() -> None:
    plain = Answer("1", "s", "1", (), "What?", "{}", Facts(), "{}", "stop", "", 1, 0)
    assert not json_fields.counts(plain)
    assert not json_fields.unread(plain)
    short = row({"diagnosis": "A"}, {"diagnosis": "A"})
    assert json_fields.counts(short)
    assert not closed_accuracy.counts(short)
    assert not multiple_choice.counts(short)
    assert math.isnan(scored(plain)[0])


def test_of_several_references_the_one_that_agrees_most_counts() -> None:
    other = {**RIGHT, "diagnosis": "Scar", "size": 7}
    said = row({**other, "biopsy": True})
    texts = [json.dumps(RIGHT), json.dumps(other), json.dumps({**other, "biopsy": True})]
    several = Answer(
        **{name: getattr(said, name) for name in Answer.__slots__}
        | {"references": (Reference(texts[0]), Reference(texts[1], 0.5), Reference(texts[2], -1.0))}
    )
    assert scored(said) == pytest.approx((1.0, 3 / 6))
    assert scored(several) == pytest.approx((1.0, 5 / 6))


def test_scores_have_a_table_by_field() -> None:
    rows = [row({**RIGHT, "size": number}, id=str(number)) for number in range(4, 10)]
    rows.append(row({"diagnosis": "Nevus", "note": "x"}, {"diagnosis": "Scar"}, id="other"))
    measured = answers.measure(rows, [metrics.load("json_fields")], Workers(1))
    block = answers.block(measured, {}, answers.bootstrap(rows, 100, 0))
    table = {
        path: (numbers["accuracy"]["value"], numbers["accuracy"]["n"]) for path, numbers in block["fields"].items()
    }
    assert table["size"] == (pytest.approx(1 / 6), 6)
    assert table["diagnosis"] == (pytest.approx(6 / 7), 7)
    assert table["site.part"] == (1.0, 6)
    assert table.keys() == {"diagnosis", "size", "biopsy", "colours", "site.part", "site.side"}
    assert block["metrics"]["json_fields"]["value"] == pytest.approx((5 * 5 / 6 + 1) / 7)
