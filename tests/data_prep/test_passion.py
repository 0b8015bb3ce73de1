"""PASSION: photos by their subject, whose label it is, the official split, and terms that nobody has stated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_prep import PrepError, passion
from helpers import finished
from helpers.converted import converted
from helpers.raws import photo, prepared, said, table
from skinvl.data import licences
from skinvl.data.example import Dropped
from skinvl.release import publish
from skinvl.release.publish import PublishError

ROW = {"subject_id": "AA1", "country": "Malawi", "age": "7", "sex": "f", "fitzpatrick": "5", "body_loc": "hand"}
ROW |= {"impetig": "", "conditions_PASSION": "Scabies"}


def subject(name: str, **more: str) -> dict[str, str]:
    return {**ROW, "subject_id": name, **more}


def put(raw: Path, subjects: list[dict[str, str]], photos: list[str], test: tuple[str, ...] = ()) -> Path:
    """RAW in the published layout."""
    table(raw / passion.LABELS, subjects)
    named = dict.fromkeys(row["subject_id"] for row in subjects)
    splits = [{"subject_id": name, "Split": "TEST" if name in test else "TRAIN"} for name in named]
    table(raw / passion.SPLIT, splits)
    for name in photos:
        photo(raw / "images" / name)
    return raw


def test_the_photos_of_a_subject_are_one_conversation(tmp_path: Path) -> None:
    photos = ["AA1_10.jpg", "AA1_2.JPG", "AA1_1.jpeg", "AA12_1.png", "Files_Matrix_BB3_1.PNG", "bb3_2.jpg"]
    raw = put(tmp_path, [subject("AA1"), subject("AA12"), subject("BB3")], photos, test=("BB3",))
    examples, ledger = converted(passion, raw)
    assert ledger == []
    shown = {name: [Path(path).name for path in row.images] for name, row in examples.items()}
    assert shown["AA1-diagnosis"] == shown["AA1-site"] == ["AA1_1.jpeg", "AA1_2.JPG", "AA1_10.jpg"]
    assert shown["AA12-skin_type"] == ["AA12_1.png"]
    assert shown["BB3-impetigo"] == ["Files_Matrix_BB3_1.PNG", "bb3_2.jpg"]
    assert {row.group: row.split for row in examples.values()} == {"AA1": "train", "AA12": "train", "BB3": "test"}
    facts = examples["AA1-site"].facts
    assert (facts.diagnosis, facts.skin_type, facts.age, facts.sex) == ("scabies", "V", 7.0, "female")
    assert (facts.site, facts.institution, facts.modality) == ("hand", "Malawi", "clinical")


def test_more_photos_than_fit_make_more_conversations_and_none_is_lost(tmp_path: Path) -> None:
    photos = [f"AA1_{number}.jpg" for number in range(1, 10)]
    examples, _ = converted(passion, put(tmp_path, [subject("AA1")], photos))
    sizes = {name: len(row.images) for name, row in examples.items() if name.endswith("-diagnosis")}
    assert sizes == {"AA1-diagnosis": 3, "AA1.2-diagnosis": 3, "AA1.3-diagnosis": 3}
    assert max(sizes.values()) <= passion.MOST
    shown = Counter(path for row in examples.values() for path in row.images)
    assert shown == {f"images/{name}": len(passion.KINDS) for name in photos}
    assert {row.group for row in examples.values()} == {"AA1"}


def test_others_is_no_diagnosis_and_an_empty_impetig_is_no(tmp_path: Path) -> None:
    rows = [
        *(subject("A1", conditions_PASSION="Others"), subject("A2", impetig="1"), subject("A3", impetig="0")),
        *(
            subject("A4", conditions_PASSION="Fungal", impetig="1.0"),
            subject("A5", conditions_PASSION="Eczema,Scabies"),
        ),
        subject("A6", impetig="?", fitzpatrick="", body_loc=""),
    ]
    examples, ledger = converted(passion, put(tmp_path, rows, [f"A{number}_1.jpg" for number in range(1, 7)]))
    assert [(row.row, row.detail) for row in ledger] == [
        ("label.csv:2 diagnosis", "conditions_PASSION is 'Others'"),
        ("label.csv:6 diagnosis", "conditions_PASSION is 'Eczema,Scabies'"),
        ("label.csv:7 impetigo", "impetig is '?'"),
        ("label.csv:7 site", "body_loc is ''"),
        ("label.csv:7 skin_type", "fitzpatrick is ''"),
    ]
    assert (examples["A1-site"].facts.diagnosis, examples["A4-diagnosis"].facts.diagnosis) == (None, "fungal infection")
    says_no = {number: "no" in said(examples[f"A{number}-impetigo"])[1].lower() for number in range(1, 6)}
    assert says_no == {1: True, 2: False, 3: True, 4: False, 5: True}
    assert (examples["A2-site"].facts.present, examples["A3-site"].facts.absent) == (("impetigo",), ("impetigo",))
    assert {*examples["A6-diagnosis"].facts.present, *examples["A6-diagnosis"].facts.absent} == set()


def test_several_sites_are_one_answer(tmp_path: Path) -> None:
    rows = [subject("A1", body_loc="Hand;lower_limb; Face"), subject("A2", body_loc="unknown")]
    examples, ledger = converted(passion, put(tmp_path, rows, ["A1_1.jpg", "A2_1.jpg"]))
    assert "hand, lower limb and face" in said(examples["A1-site"])[1]
    assert [row.row for row in ledger] == ["label.csv:3 site"]


def test_subjects_without_photos_or_split_are_rows_of_the_ledger(tmp_path: Path) -> None:
    raw = put(tmp_path, [subject("A1"), subject("A2"), subject("A3")], ["A1_1.jpg", "A3_1.jpg", "C9_1.jpg", "x.jpg"])
    table(raw / passion.SPLIT, [{"subject_id": name, "Split": "train"} for name in ("A1", "A2")])
    examples, ledger = converted(passion, raw)
    assert {name.partition("-")[0] for name in examples} == {"A1"}
    assert Counter((row.row.split()[0], row.rule) for row in ledger) == {
        ("label.csv:3", "missing-image"): 4,
        ("label.csv:4", "no-split"): 4,
    }
    assert Dropped("label.csv:3 site", "missing-image", "no photo is named by the subject") in ledger
    assert passion.absent(raw, "vqa") == [
        "label.csv: no row for the subjects of 1 photos, such as images/C9_1.jpg; they are not used"
    ]
    table(raw / passion.SPLIT, [{"subject_id": "A1", "Split": split} for split in ("TRAIN", "TEST")])
    with pytest.raises(PrepError, match=r"PASSION_split\.csv:3 Split: 'A1' is in both splits"):
        converted(passion, raw)
    table(raw / passion.SPLIT, [{"subject_id": "A1", "Split": "dev"}])
    with pytest.raises(PrepError, match="Split: found 'DEV'; expected TEST or TRAIN"):
        converted(passion, raw)


def test_photos_of_one_name_are_one_photo(tmp_path: Path) -> None:
    raw = put(tmp_path, [subject("A1")], ["A1_1.jpg"])
    copy = raw / "images" / "images" / "A1_1.jpg"
    copy.parent.mkdir()
    copy.write_bytes((raw / "images" / "A1_1.jpg").read_bytes())
    assert converted(passion, raw)[0]["A1-site"].images == ("images/A1_1.jpg",)
    photo(copy)
    with pytest.raises(PrepError, match=r"images/A1_1\.jpg and images/images/A1_1\.jpg differ"):
        converted(passion, raw)


def test_terms_that_nobody_states_allow_nothing(tmp_path: Path) -> None:
    _, examples, ledger = prepared("passion", put(tmp_path / "raw", [subject("A1")], ["A1_1.jpg", "A1_2.JPEG"]))
    assert (len(examples), ledger) == (4, [])
    assert not licences.of_source(tmp_path / "raw-out").known
    run = finished.run(tmp_path / "run", licence=passion.CARD.licence)
    with pytest.raises(
        PublishError, match=r"--public: ham has terms that are not known \(none stated: given on request"
    ):
        publish.main([str(run), "ada/skin", "--public", "--yes"])
