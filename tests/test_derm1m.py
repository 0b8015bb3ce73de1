from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data_prep import PrepError, derm1m
from skinvl import prep
from skinvl.example import Dropped, Example, Facts, read, words

ROW = {
    "filename": "edu/a.jpg",
    "caption": "A red patch.",
    "truncated_caption": "A patch.",
    "source": "edu",
    "source_type": "knowledge",
    "disease_label": "Tinea corporis",
    "hierarchical_disease_label": "inflammatory, infectious, fungal, Tinea corporis",
    "skin_concept": "red, patch, annular_shape",
    "body_location": "Arm",
    "symptoms": "No symptom information",
    "age": "45",
    "gender": "Female",
}


def put(raw: Path, *changes: dict[str, str], name: str = "Derm1M_v2_pretrain.csv") -> None:
    raw.mkdir(exist_ok=True)
    with (raw / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows({**ROW, **change} for change in changes)


def convert(raw: Path, part: str, *changes: dict[str, str]) -> list[Example | Dropped]:
    if changes:
        put(raw, *changes)
    found = list(derm1m.convert(raw, part))
    assert derm1m.rows(raw, part) == len(found)
    return found


def one(raw: Path, part: str, **change: str) -> Example:
    (row,) = convert(raw, part, change)
    assert isinstance(row, Example), row
    return row


def dropped(raw: Path, part: str, **change: str) -> tuple[str, str]:
    (row,) = convert(raw, part, change)
    assert isinstance(row, Dropped), row
    assert row.row == "Derm1M_v2_pretrain.csv:2"
    return row.rule, row.detail


def test_what_is_known_becomes_facts_and_sentences_for_the_unknown_do_not(tmp_path: Path) -> None:
    known = one(tmp_path, "caption")
    assert known.facts == Facts(diagnosis="tinea corporis", age=45.0, sex="female", site="arm", kind="description")
    assert (known.group, known.split, words(known.messages[1])) == ("edu/a.jpg", "train", "A red patch.")
    unknown = {
        "disease_label": "No definitive diagnosis",
        "body_location": "no body location information.",
        "age": "No age information",
        "gender": "No gender information",
    }
    assert one(tmp_path, "caption", **unknown).facts == Facts(kind="description")
    assert one(tmp_path, "caption", gender="male, female", age="middle-aged", body_location="").facts == Facts(
        diagnosis="tinea corporis", kind="description"
    )
    found = one(tmp_path, "caption", disease_label="Melanoma").facts
    assert (found.diagnosis, found.malignancy) == ("melanoma", "malignant")


@pytest.mark.parametrize(
    ("part", "change", "rule"),
    [
        ("caption", {"caption": "A patch.</s>"}, "special-token"),
        ("caption", {"caption": " "}, "empty"),
        ("caption", {"filename": ""}, "empty"),
        ("diagnosis", {"disease_label": "NO DEFINITIVE DIAGNOSIS"}, "unknown-value"),
        ("diagnosis", {"disease_label": ""}, "empty"),
        ("concept", {"skin_concept": "No visual concepts"}, "unknown-value"),
        ("hierarchy", {"hierarchical_disease_label": "No definitive diagnosis"}, "unknown-value"),
        ("hierarchy", {"hierarchical_disease_label": "tinea corporis"}, "no-hierarchy"),
        ("hierarchy", {"hierarchical_disease_label": "fungal, tinea pedis"}, "unclear-hierarchy"),
        ("hierarchy", {"disease_label": "No definitive diagnosis"}, "unclear-hierarchy"),
    ],
)
def test_rows_without_an_answer_go_to_the_ledger(tmp_path: Path, part: str, change: dict[str, str], rule: str) -> None:
    assert dropped(tmp_path, part, **change)[0] == rule


def test_only_the_whole_sentence_is_unknown(tmp_path: Path) -> None:
    caption = "No definitive diagnosis was made in this patient."
    assert words(one(tmp_path, "caption", caption=caption).messages[1]) == caption


def test_a_hierarchy_goes_from_the_class_to_the_disease(tmp_path: Path) -> None:
    label = "Erythema, annulare"
    row = one(tmp_path, "hierarchy", disease_label=label, hierarchical_disease_label=f"inflammatory, other, {label}")
    turns = [words(message) for message in row.messages]
    assert [message["role"] for message in row.messages] == ["user", "assistant"] * 3
    for answer, level in zip(turns[1::2], ("inflammatory", "other", label), strict=True):
        assert level in answer
    assert not any(label in question or "inflammatory" in question for question in turns[::2])
    assert [[part["type"] for part in message["content"]] for message in row.messages[::2]] == [
        *(["image", "text"], ["text"], ["text"]),
    ]


def test_wording_varies_and_does_not_depend_on_the_answer(tmp_path: Path) -> None:
    names = [{"filename": f"edu/{number}.jpg"} for number in range(60)]
    for part, wordings in (("caption", derm1m.DESCRIBE), ("concept", derm1m.CONCEPT), ("hierarchy", derm1m.GENERAL)):
        rows = convert(tmp_path, part, *names)
        assert rows == convert(tmp_path, part, *names)
        assert {words(row.messages[0]) for row in rows if isinstance(row, Example)} == set(wordings)
    rows = convert(tmp_path, "diagnosis", *names)
    assert len({words(row.messages[0]) for row in rows if isinstance(row, Example)}) >= 2
    assert not any("inea" in words(row.messages[0]) for row in rows if isinstance(row, Example))
    features = words(one(tmp_path, "concept").messages[1])
    assert "red, patch and annular shape" in features


def test_both_tables_are_read_and_repeated_rows_dropped(tmp_path: Path) -> None:
    put(tmp_path, {}, {"caption": "Another."}, {})
    put(tmp_path, {"filename": "edu/b.jpg"}, name="Derm1M_v2_validation.csv")
    rows = convert(tmp_path, "caption")
    assert [row.split for row in rows if isinstance(row, Example)] == ["train", "train", "validation"]
    assert rows[2] == Dropped(
        "Derm1M_v2_pretrain.csv:4", "duplicate", "the image and caption of Derm1M_v2_pretrain.csv:2"
    )


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"no file Derm1M_\*\.csv in it or below it\. How to get Derm1M: accept"):
        derm1m.rows(tmp_path, "caption")
    (tmp_path / "Derm1M_v2_pretrain.csv").write_text("filename,caption\n")
    with pytest.raises(PrepError, match=r"no column disease_label, .*; found filename, caption; expected filename"):
        list(derm1m.convert(tmp_path, "caption"))


def test_a_source_is_prepared(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    put(raw, {}, {"filename": "edu/b.jpg"}, {"filename": "edu/c.jpg"})
    (raw / "edu").mkdir()
    for name in ("edu/a.jpg", "b.jpg"):  # unpacked with and without the folder
        Image.new("RGB", (8, 8)).save(raw / name)
    account = prep.prepare("derm1m", raw, tmp_path / "out", derm1m.CARD.parts)
    assert (account.rows, account.kept) == (12, 8)
    assert Counter(row.rule for row in account.ledger) == {"missing-image": 4}
    assert {row.images for row in read(tmp_path / "out", "train")} == {("images/edu/a.jpg",), ("images/b.jpg",)}
