"""What challenges take: each lesion and each encounter once, from predictions as they lie, read back and checked."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from skinvl.data.example import Facts
from skinvl.data.labels import MILK10K_CODES
from skinvl.score import score, submissions
from skinvl.score.predictions import Answer, Classified
from skinvl.score.submissions import SubmissionError, magic2025, milk10k

BLIND = "its question 'class', whose answer says the class, is not in the source"


def put(folder: Path, name: str, rows: Sequence[Answer | Classified], **settings: Any) -> Path:
    where = folder / "eval" / ("classes" if isinstance(rows[0], Classified) else "answers")
    where.mkdir(parents=True, exist_ok=True)
    path = where / f"{name}.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    path.with_suffix(".json").write_text(json.dumps(settings))
    return path


# MILK10k.

CLASSES = [*MILK10K_CODES.values()]


def lesion(number: int, kind: str = "view", label: str | None = None, seed: int = 0) -> Classified:
    name = f"IL_{number:07d}"
    scores = tuple(np.random.default_rng([number, seed]).normal(scale=3, size=11).tolist())
    return Classified(f"{name}-{kind}", "milk10k_blind", name, (), Facts(), label, scores, "" if label else BLIND)


def test_milk10k_has_a_line_for_each_lesion_with_its_probabilities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [lesion(number) for number in (7, 3, 5)]
    rows.append(replace(lesion(3, seed=1), id="IL_0000003-view.2"))  # another row of the lesion, with other images
    put(tmp_path / "run", "milk10k_blind", rows, classes=CLASSES)
    put(tmp_path / "run", "other", [replace(rows[0], scores=(0.0, 1.0))], classes=["a", "b"])
    out = tmp_path / "made" / "milk.csv"
    assert score.main([str(tmp_path / "run"), "--submission", "milk10k", str(out)]) == 0
    assert "3 lesions of 4 rows, 11 probabilities each" in capsys.readouterr().out
    assert not (tmp_path / "run" / "scores.json").exists()
    head, *lines = csv.reader(out.open())
    assert head == ["lesion_id", "AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC"]
    assert [line[0] for line in lines] == ["IL_0000003", "IL_0000005", "IL_0000007"]
    expected = [
        (softmax(rows[1].scores) + softmax(rows[3].scores)) / 2,
        softmax(rows[2].scores),
        softmax(rows[0].scores),
    ]
    assert np.array([line[1:] for line in lines], float) == pytest.approx(np.array(expected), abs=1e-8)
    assert np.array([line[1:] for line in lines], float).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-6)


def test_the_blind_set_is_taken_where_there_are_labelled_ones_too(tmp_path: Path) -> None:
    known = [replace(lesion(number, "class"), label="melanoma", detail="") for number in (1, 2)]
    put(tmp_path, "milk10k", known, classes=CLASSES)
    assert "2 lesions" in submissions.write("milk10k", tmp_path, tmp_path / "a.csv")
    put(tmp_path, "milk10k_blind", [lesion(3)], classes=CLASSES)
    assert "1 lesions" in submissions.write("milk10k", tmp_path, tmp_path / "b.csv")
    path = put(tmp_path, "again", [lesion(4), lesion(5)], classes=CLASSES)
    with pytest.raises(SubmissionError, match=r"2 sets could be submitted \(again.jsonl, milk10k_blind.jsonl\)"):
        submissions.write("milk10k", tmp_path, tmp_path / "c.csv")
    assert "2 lesions" in submissions.write("milk10k", path, tmp_path / "c.csv")


def test_a_lesion_without_probabilities_stops_and_nothing_is_written(tmp_path: Path) -> None:
    broken = replace(lesion(2), scores=None, detail="unreadable-image: a.jpg")
    put(tmp_path, "s", [lesion(1), broken], classes=CLASSES)
    out = tmp_path / "out.csv"
    with pytest.raises(SubmissionError, match=r"1 of 2 lesions have no .*IL_0000002 \(unreadable-image\)"):
        submissions.write("milk10k", tmp_path, out)
    put(tmp_path, "s", [lesion(1), replace(lesion(2), id="ISIC_2-view")], classes=CLASSES)
    with pytest.raises(SubmissionError, match="ISIC_2-view: no lesion of MILK10k"):
        submissions.write("milk10k", tmp_path, out)
    put(tmp_path, "s", [lesion(1)], classes=CLASSES[::-1])
    with pytest.raises(SubmissionError, match=r"no predictions for milk10k among 1 sets .*blind: true"):
        submissions.write("milk10k", tmp_path, out)
    assert {path.name for path in tmp_path.iterdir()} == {"eval"}


def test_what_is_read_back_must_be_what_was_predicted() -> None:
    rows = [lesion(1), lesion(2)]
    text, _ = milk10k.content(rows)
    milk10k.check(text, rows)
    head, first, second = text.splitlines()
    cells = second.split(",")
    wrong = ",".join([cells[0], cells[2], cells[1], *cells[3:]])
    for broken in ([head, first], [head, first, first], [head, first, wrong], [head[::-1], first, second]):
        with pytest.raises(SubmissionError):
            milk10k.check("\n".join(broken) + "\n", rows)


# MEDIQA-MAGIC 2025.

OPTIONS = {
    question: (*(f"option {letter}" for letter in "pqrstuvwxyz"[: max(2, places + 1)]), "Not mentioned")
    for question, places in magic2025.PLACES.items()
}


def closed(encounter: str, question: str, answer: str | None) -> Answer:
    options = OPTIONS[question]
    asked = "Which?\n" + "\n".join(
        f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJKLM", options, strict=False)
    )
    how = "stop" if answer is not None else "refused"
    return Answer(
        *(f"{encounter}-{question}", "das", encounter, (), asked, f"A. {options[0]}", Facts(), answer, how, "", 1, 0),  # type: ignore[arg-type]
        options=options,
        right=(0,),
    )


def encounter(name: str, **answers: str | None) -> list[Answer]:
    return [closed(name, question, answers.get(question, "A")) for question in magic2025.PLACES]


def test_magic_has_each_encounter_with_all_ids(tmp_path: Path) -> None:
    rows = encounter("ENC1", CQID011="C, A", CQID012="I cannot tell.", CQID015=None, CQID020="Not mentioned, option r")
    rows += encounter("ENC2", CQID010="A, B", CQID011="")[::-1]
    put(tmp_path, "das", rows)
    put(tmp_path, "m3g", [replace(rows[0], id="ENC1-m3g", options=(), right=())])
    what = submissions.write("magic2025", tmp_path, tmp_path / "magic.json")
    assert "2 encounters, 18 questions, 3 answers unread, 1 options too many left out" in what
    first, second = json.loads((tmp_path / "magic.json").read_text())
    assert [*first] == [*second] == ["encounter_id", *magic2025.IDS]
    assert len(magic2025.IDS) == 27
    assert first["encounter_id"] == "ENC1"
    last = {question: len(options) - 1 for question, options in OPTIONS.items()}
    assert [first[f"CQID011-{place:03d}"] for place in range(1, 7)] == [0, 2, *[last["CQID011"]] * 4]
    assert [first[f"CQID012-{place:03d}"] for place in range(1, 7)] == [last["CQID012"]] * 6
    assert first["CQID015-001"] == last["CQID015"]
    assert [first[f"CQID020-{place:03d}"] for place in range(1, 10)] == [2, *[last["CQID020"]] * 8]
    assert second["CQID010-001"] == 0  # of two, for one place
    assert [second[f"CQID011-{place:03d}"] for place in range(1, 7)] == [last["CQID011"]] * 6
    assert first["CQID036-001"] == second["CQID036-001"] == 0


def test_magic_refuses_what_is_not_whole(tmp_path: Path) -> None:
    out = tmp_path / "magic.json"
    for rows, why in (
        (encounter("ENC1")[:-2], "ENC1: no answer to CQID035, CQID036"),
        ([*encounter("ENC1"), closed("ENC1", "CQID036", "B")], "ENC1-CQID036: answered twice"),
        (
            [*encounter("ENC1"), replace(closed("ENC1", "CQID036", "B"), id="ENC1-list")],
            "ENC1-list: no closed question",
        ),
        ([replace(row, options=row.options[:-1]) for row in encounter("ENC1")], "expected 'Not mentioned' the last"),
    ):
        put(tmp_path, "das", rows)
        with pytest.raises(SubmissionError, match=why):
            submissions.write("magic2025", tmp_path, out)
    assert not out.exists()


def test_magic_is_read_back() -> None:
    rows = encounter("ENC1", CQID011="C, A")
    text, _ = magic2025.content(rows)
    magic2025.check(text, rows)
    for found, wrong in (('"CQID011-002": 2', '"CQID011-002": 3'), ("ENC1", "ENC2"), ("CQID011-006", "CQID011-007")):
        assert found in text
        with pytest.raises(SubmissionError):
            magic2025.check(text.replace(found, wrong), rows)


def test_an_unknown_challenge_names_the_known_ones(tmp_path: Path) -> None:
    assert submissions.names() == ["magic2025", "milk10k"]
    with pytest.raises(SubmissionError, match="--submission milk: no such challenge; did you mean milk10k"):
        submissions.write("milk", tmp_path, tmp_path / "x")
    with pytest.raises(SystemExit):
        score.main([str(tmp_path), str(tmp_path), "--submission", "milk10k", "x.csv"])


def test_probabilities_are_of_likelihoods_not_of_their_order() -> None:
    text, _ = milk10k.content([replace(lesion(1), scores=(0.0, math.log(3.0), *[-1000.0] * 9))])
    assert text.splitlines()[1].split(",")[1:4] == ["0.250000000", "0.750000000", "0.000000000"]
