"""A run whose answers are free, sets of options and JSON: every number on the terminal, in files and on the page."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from skinvl.data.example import Facts, Reference
from skinvl.score import report, samples, score
from skinvl.score.predictions import Answer

SCHEMA = json.dumps({"type": "object", "properties": {"size": {"type": "number"}}, "required": ["size"]})


def rows(count: int = 30) -> list[Answer]:
    """Three kinds of questions in turn, a group each; each right two times in three."""
    made = []
    for number in range(count):
        right = number % 9 < 6
        facts = Facts(kind=("open", "site", "form")[number % 3], tone=f"Monk {number % 2}", views=("dermoscopic",))
        row = Answer(f"r{number}", "s", f"g{number}", (), "What is it?", "a flat nevus", facts, "", "stop", "", 3, 0)
        if number % 3 == 0:
            several = Reference("a flat nevus"), Reference("it is a nevus", 0.5), Reference("a flat scar", -1.0)
            made.append(replace(row, answer="It is a nevus." if right else "a scar", references=several))
        elif number % 3 == 1:
            question, options = "Where?\nA. Arm\nB. Leg\nC. Face", ("Arm", "Leg", "Face")
            asked = replace(row, question=question, reference="A. Arm\nC. Face", options=options, right=(0, 2))
            made.append(replace(asked, answer="A, C" if right else "A or B"))
        else:
            asked = replace(row, reference='{"size": 5}', schema=SCHEMA, thought="I measure it.")
            made.append(replace(asked, answer='```json\n{"size": 5}\n```' if right else '{"size": "5"}'))
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "eval" / "answers" / "s.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows()))
    path.with_suffix(".json").write_text("{}")
    return tmp_path / "run"


def test_each_kind_has_its_numbers_and_no_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main([str(run), "--resamples", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in ("option_credit", "option_exact", "option_read", "option_f1", "json_valid", "json_fields"):
        assert any(line.startswith(name) for line in lines), name
    block: dict[str, Any] = json.loads((run / "scores.json").read_text())["sets"]["s"]["answers"]
    numbers = block["metrics"]
    counts = {name: number["n"] for name, number in numbers.items() if name in ("option_credit", "json_valid")}
    assert counts == {"option_credit": 10, "json_valid": 10}
    assert numbers["closed_accuracy"]["n"] == 0  # one of the references has four words
    assert numbers["exact_match"]["n"] == 30
    assert numbers["option_credit"]["value"] == numbers["json_valid"]["value"] == pytest.approx(7 / 10)
    assert {*block["options"]} == {"site: Arm", "site: Leg", "site: Face"}
    assert block["fields"]["size"]["accuracy"]["value"] == pytest.approx(7 / 10)
    assert [*block["slices"]] == ["skin_type", "sex", "age", "site", "source", "tone", "views"]
    assert set(block["slices"]["tone"]["values"]) == {"Monk 0", "Monk 1"}


def test_the_page_shows_options_fields_and_what_is_right_beside_the_reference(run: Path) -> None:
    score.main([str(run), "--resamples", "100"])
    html = report.page(run)
    for words in (
        *("Options of questions with several right ones", "site: Face", "Fields of answers in JSON", "Monk 1"),
        *("Reference of weight 0.5", "it is a nevus", "I measure it.", "not read, credit 0.000", "option credit"),
    ):
        assert words in html, words


def test_a_prediction_is_right_by_its_own_kind() -> None:
    free, options, _ = rows(3)
    assert samples._answered(free).outcome == "right"  # as the second reference
    assert samples._answered(replace(free, answer="a flat scar")).outcome == "partly right"
    assert samples._answered(options).outcome == "right"  # other words than the reference
    assert samples._answered(replace(options, answer="A")).summary == "credit 0.500"


def test_a_set_of_one_kind_is_sliced_by_its_own_number(run: Path) -> None:
    for place, headline in ((1, "option_credit"), (2, "json_fields")):
        path = run / "eval" / "answers" / "s.jsonl"
        path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows()[place::3]))
        score.main([str(run), "--resamples", "100"])
        block = json.loads((run / "scores.json").read_text())["sets"]["s"]["answers"]
        assert block["slices"]["source"]["metric"] == headline
