"""Two runs row by row, and the flow of an evaluation: what is shown, that numbers add up, on a phone and on paper."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import HOSTILE, Page, browser, console, picture, visible
from skinvl.data.example import Facts
from skinvl.score import evaluated_flow, report, samples, score
from skinvl.score.predictions import Answer, Classified
from skinvl.score.side_by_side import EACH, SideBySideError

CLASSES = ["nevus", "melanoma"]
SETTINGS = {"classes": CLASSES, "label_tokens": [2, 3], "prior": [-2.0, -6.0], "benchmark": None,
            "malignant": [False, True], "question": "Which?"}  # fmt: skip
WORD = " ".join(HOSTILE)


def answers(folder: Path, right: set[int], rows: int = 60) -> list[Answer]:
    found = []
    for number in range(rows):
        said = f"Answer {number}" if number in right else f"Wrong {WORD}"
        found.append(
            Answer(
                **{"id": f"r{number}", "source": "demo", "group": f"g{number // 2}"},
                **{"images": (picture(folder / f"images/{number % 5}.png", number % 5),) * (number % 4 > 0)},
                **{"question": f"Question {number}? {WORD}", "reference": f"Answer {number}"},
                **{"facts": Facts(kind=["site", "sign"][number % 2], sex="female"), "answer": said},
                **{"finish_reason": "stop", "detail": "", "tokens": 3, "seed": 0},
            )
        )
    return found


def classified(right: int, rows: int = 30) -> list[Classified]:
    found = []
    for number in range(rows):
        label = CLASSES[number % 2]
        told = label if number < right else CLASSES[1 - number % 2]
        scores = tuple(-1.0 if name == told else -3.0 for name in CLASSES)
        found.append(Classified(f"c{number}", "ham", f"l{number}", (), Facts(), label, scores, ""))
    found.append(replace(found[0], id="none", label=None, scores=None, detail="no-class: it has none"))
    return found


def run(folder: Path, rows: list[Answer], classes: list[Classified] | None = None) -> Path:
    for what, name, of in (("answers", "demo", rows), ("classes", "ham", classes or [])):
        if of:
            path = folder / "eval" / what / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in of))
            path.with_suffix(".json").write_text(json.dumps(SETTINGS if what == "classes" else {}))
    score.main([str(folder), "--resamples", "100", "--workers", "1", "--metrics", "exact_match"])
    return folder


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    ours = answers(tmp_path, {*range(30)})
    theirs = [*answers(tmp_path, {*range(20, 40)})[:50], replace(ours[0], id="other")]
    return run(tmp_path / "one", ours, classified(25)), run(tmp_path / "two", theirs, classified(10))


def page(one: Path, other: Path) -> Page:
    assert report.main([str(one), "--against", str(other)]) == 0
    return Page((one / "side_by_side.html").read_text())


def test_rows_are_counted_and_shown_by_who_is_better(both: tuple[Path, Path]) -> None:
    found = page(*both)
    # Of 50 rows 20 are right here alone, 10 there alone, 10 + 10 as good; 10 are here alone and one there.
    assert "demo 50 20 10 20 0 11" in found.text
    assert "ham (classes) 31 15 0 15 1 0" in found.text
    cards = [attributes for attributes in found.all("article") if "pair" in attributes["class"]]
    picks = [(one["data-set"], one["data-pick"]) for one in cards]
    assert {pick: picks.count(("demo", pick)) for pick in ("better here", "better there", "as good")} == {
        **{"better here": EACH, "better there": 10, "as good": EACH},
    }
    assert all(f"Answer {number}" in found.text for number in range(30, 40))
    assert found.text == page(*both).text
    assert not (both[0] / "report.html").exists()
    # Twin: the other way round, what was better here is better there.
    assert "demo 50 10 20 20 0 11" in page(*both[::-1]).text


def test_nothing_is_loaded_and_data_stays_text(both: tuple[Path, Path]) -> None:
    found = page(*both)
    text = (both[0] / "side_by_side.html").read_text()
    assert "alert(1)" in found.text
    assert not [one for one in found.all("script") if "src" in one]
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert len(found.all("script")) == 1
    assert str(both[0].parent) not in text


def test_rows_that_were_asked_otherwise_or_not_at_all_are_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    changed = [replace(row, reference="else") for row in answers(tmp_path, {1})]
    with pytest.raises(SideBySideError, match="demo/r0 was asked otherwise in the other run"):
        page(both[0], run(tmp_path / "three", changed))
    other = [replace(row, id=f"x{row.id}") for row in changed]
    with pytest.raises(SideBySideError, match="no row is in both"):
        page(both[0], run(tmp_path / "four", other))
    with pytest.raises(SystemExit):
        report.main([str(both[0]), "--against", str(both[1]), "--checklist", "claim"])


def test_the_flow_of_an_evaluation_adds_up_and_stands_before_the_sets(tmp_path: Path) -> None:
    rows = answers(tmp_path, {*range(30)})
    rows[3] = replace(rows[3], answer=None, finish_reason="refused", detail=f"missing-image: {tmp_path}/gone.png")
    rows[4] = replace(rows[4], reference="!?")
    folder = run(tmp_path / "one", rows, classified(25))
    scores = json.loads((folder / "scores.json").read_text())
    found = evaluated_flow.flow("one", list(samples.scored(folder / "eval", scores["sets"])))
    assert found is not None
    assert found.rows == 60 + 31
    assert dict(found.ledger) == {"missing-image": 1, "reference without words": 1, "no-class": 1}
    assert [(one.name, one.conversations) for one in found.splits] == [("demo", 58), ("ham (classes)", 30)]
    assert [one.groups for one in found.splits] == [30, 30]
    assert (found.groups, found.images) == (60, 5)
    for name, what in (("demo", "answers"), ("ham", "classes")):  # as score counts them
        block = scores["sets"][name][what]
        assert block["rows"] - block["unscored"] == {"demo": 58, "ham": 30}[name]
    assert evaluated_flow.flow("one", []) is None

    text = report.page(folder)
    places = [text.index(f'<section id="{name}"') for name in ("headline", "table1", "set-1")]
    assert places == sorted(places)
    assert "What became of the rows of one" in text


def test_readers_stand_in_the_report_where_there_were_any(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", answers(tmp_path, {1}), classified(25))
    assert "Readers beside the model" not in report.page(folder)
    number: dict[str, Any] = {"value": 0.5, "low": 0.4, "high": 0.6, "method": "Wilson", "n": 9, "groups": 9}
    number |= {"unscored": 0, "p": 0.2, "readers": 3}
    of_one = {"accuracy": number, "kappa_with_model": number}
    numbers: dict[str, Any] = {
        **{"study": "s", "predictions": "ham.jsonl", "cases": 9, "read_by_all": 9, "absent": []},
        **{"readers": {"ann": of_one, WORD: of_one}, "model": {"accuracy": number}, "fleiss": number},
        **{"cohen": [], "together": {"accuracy": {"readers": number, "difference": number}}},
    }
    (folder / "readers.json").write_text(json.dumps(numbers))
    found = Page(report.page(folder))
    assert "Readers beside the model" in found.within("h2")
    assert "ann 0.500 [0.400, 0.600] W" in found.text
    assert "all Fleiss 0.500 [0.400, 0.600] W" in found.text
    assert "alert(1)" in found.text


@pytest.mark.slow
def test_in_a_browser_pairs_fit_a_phone_and_a_sheet_of_paper(both: tuple[Path, Path]) -> None:
    page(*both)
    path = both[0] / "side_by_side.html"
    stacked = (
        "return [...document.querySelectorAll('.pair')].map((one) => [...one.querySelectorAll('.side')]"
        ".map((side) => side.getBoundingClientRect().left))"
    )
    with browser(path, 390) as driver:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert all(left == right for left, right in driver.execute_script(stacked))
        assert driver.execute_script("return window.hacked") is None
        assert console(driver) == []
    with browser(path, 1280) as driver:
        assert len(visible(driver)) == 40 + 30
        assert all(left < right for left, right in driver.execute_script(stacked))
        sheet = driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    data = base64.b64decode(sheet)
    assert data.startswith(b"%PDF")
    boxes = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox \[([^\]]+)\]", io.BytesIO(data).read())}
    assert boxes  # A4 is 595 × 842 points
    assert all(abs(box[2] - 595) < 2 and abs(box[3] - 842) < 2 for box in boxes)


@pytest.mark.slow
def test_in_a_browser_no_table_of_a_report_is_cut_on_paper(tmp_path: Path) -> None:
    report.main([str(run(tmp_path / "one", answers(tmp_path, {1}), classified(25)))])
    path = tmp_path / "one/report.html"
    beyond = (
        "return [...document.querySelectorAll('table')].filter((one) => one.offsetParent"
        " && one.getBoundingClientRect().right > 689).length"
    )
    with browser(path, 688) as driver:  # 182 mm, as A4 leaves between its margins
        assert driver.execute_script(beyond) > 0  # on a screen they scroll
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert driver.execute_script(beyond) == 0
