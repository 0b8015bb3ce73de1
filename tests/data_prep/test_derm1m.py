from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from data_prep import PrepError, derm1m
from helpers.converted import converted, outcomes
from skinvl.data.example import Dropped, Example, Facts, words

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
    return outcomes(derm1m, raw, part)


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
        ("caption", {"caption": "nan"}, "sentinel"),
        ("diagnosis", {"disease_label": "NO DEFINITIVE DIAGNOSIS"}, "sentinel"),
        ("diagnosis", {"disease_label": ""}, "empty"),
        ("concept", {"skin_concept": "No visual concepts"}, "sentinel"),
        ("hierarchy", {"hierarchical_disease_label": "No definitive diagnosis"}, "sentinel"),
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


def test_both_tables_are_read_and_a_repeated_row_is_said_again(tmp_path: Path) -> None:
    put(tmp_path, {}, {"caption": "Another."}, {})
    put(tmp_path, {"filename": "edu/b.jpg"}, name="Derm1M_v2_validation.csv")
    rows = [row for row in convert(tmp_path, "caption") if isinstance(row, Example)]
    assert [row.split for row in rows] == ["train", "train", "train", "validation"]
    assert rows[2] == rows[0] != rows[1]
    assert derm1m.CARD.released == "sound"


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("youtube/nSw7XdNR0bg_frame_35881_3.jpg", "youtube/nSw7XdNR0bg"),
        ("youtube/a_frame_b_frame_7.png", "youtube/a_frame_b"),
        ("youtube/nSw7XdNR0bg_frame_.jpg", "youtube/nSw7XdNR0bg_frame_.jpg"),
        ("pubmed/PMC1_2.jpg", "pubmed/PMC1_2.jpg"),
    ],
)
def test_the_frames_of_a_video_are_one_group(tmp_path: Path, file: str, group: str) -> None:
    assert one(tmp_path, "caption", filename=file).group == group


ONTOLOGY = {
    "root": ["inflammatory"],
    "inflammatory": ["infectious"],
    "infectious": ["fungal"],
    "fungal": ["Tinea Corporis"],
    "Tinea Corporis": [],
}


@pytest.mark.parametrize("label", ["No definitive diagnosis", "", "tinea corporis", "fungal, tinea pedis"])
def test_the_ontology_gives_the_levels_that_the_table_lacks(tmp_path: Path, label: str) -> None:
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY), encoding="utf-8-sig")
    row = one(tmp_path, "hierarchy", hierarchical_disease_label=label)
    answers = [words(message) for message in row.messages[1::2]]
    for answer, level in zip(answers, ("inflammatory", "infectious", "fungal", "Tinea corporis"), strict=True):
        assert level in answer
    whole = one(tmp_path, "hierarchy", hierarchical_disease_label="own, Tinea corporis")
    assert len(whole.messages) == 4  # what the table says clearly stays
    lost = dropped(tmp_path, "hierarchy", hierarchical_disease_label=label, disease_label="Acne")
    assert lost[0] in ("sentinel", "empty", "unclear-hierarchy")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "found list"),
        ('{"root": {"inflammatory": {}}}', "found 'root' with {'inflammatory': {}}"),
        ('{"root": [1]}', r"found 'root' with \[1\]"),
        ('{"root": "a"}', "found 'root' with 'a'"),
        ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    ],
)
def test_an_ontology_of_another_shape_is_refused(tmp_path: Path, words: str, found: str) -> None:
    put(tmp_path, {})
    (tmp_path / "ontology.json").write_text(words)
    with pytest.raises(PrepError, match=rf"ontology\.json: {found}") as caught:
        list(derm1m.convert(tmp_path, "hierarchy"))
    assert "pointer" in found or "expected {" in str(caught.value)
    assert len(list(derm1m.convert(tmp_path, "caption"))) == 1  # which needs no ontology


def test_concepts_are_taken_from_the_file_beside_where_the_table_lacks_them(tmp_path: Path) -> None:
    rows = 'edu/a.jpg,x,papule\nedu/b.jpg,x,No visual concepts\nedu/c.jpg,x,scale\nedu/c.jpg,x,"crust, scale"\n'
    (tmp_path / "concept.csv").write_text(f"image,disease_label,skin_concept\n{rows}", encoding="utf-8-sig")
    none = {"skin_concept": "No visual concepts"}
    put(tmp_path, {}, *({"filename": f"edu/{name}.jpg", **none} for name in "abc"))
    examples, ledger = converted(derm1m, tmp_path, "concept")
    said = [words(row.messages[1]) for row in examples.values()]
    assert len(said) == 3
    for answer, named in zip(said, ("red, patch and annular shape", "papule", "scale and crust"), strict=True):
        assert named in answer
    assert [(row.row, row.rule) for row in ledger] == [("Derm1M_v2_pretrain.csv:4", "sentinel")]
    (tmp_path / "concept.csv").write_text("image,red,scaly\nedu/a.jpg,1,0\n")
    with pytest.raises(PrepError, match="no column disease_label, skin_concept; found image, red, scaly; expected "):
        list(derm1m.convert(tmp_path, "concept"))


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"no file Derm1M_\*\.csv in it or below it\. How to get Derm1M: accept"):
        derm1m.rows(tmp_path, "caption")
    (tmp_path / "Derm1M_v2_pretrain.csv").write_text("filename,caption\n")
    with pytest.raises(PrepError, match=r"no column disease_label, .*; found filename, caption; expected filename"):
        list(derm1m.convert(tmp_path, "caption"))


def test_images_are_found_with_and_without_their_first_folder(tmp_path: Path) -> None:
    put(tmp_path, *({"filename": f"edu/{name}.jpg"} for name in "abc"))
    (tmp_path / "edu").mkdir()
    for name in ("edu/a.jpg", "a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    rows = convert(tmp_path, "caption")
    assert [row.images for row in rows if isinstance(row, Example)] == [("edu/a.jpg",), ("b.jpg",), ("edu/c.jpg",)]
