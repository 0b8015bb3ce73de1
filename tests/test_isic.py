from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from raws import image, prepared, said, table

from data_prep import PrepError, isic
from skinvl.example import Dropped, Facts

ROW = {
    "isic_id": "ISIC_1",
    "copyright_license": "CC-0",
    "age_approx": "55",
    "sex": "female",
    "diagnosis_1": "Malignant",
}
ROW |= {"anatom_site_general": "head/neck", "diagnosis_2": "Malignant melanocytic proliferations (Melanoma)"}
ROW |= {"diagnosis_3": "Melanoma, NOS", "diagnosis_4": "", "image_type": "TBP tile: close-up", "patient_id": "IP_1"}
ROW |= {"lesion_id": "IL_1", "fitzpatrick_skin_type": "II"}
CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def test_a_csv_of_the_archive(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "isic_id": "ISIC_2", "lesion_id": "", "diagnosis_3": "Cylindroma", "diagnosis_1": "Benign"},
        {**ROW, "isic_id": "ISIC_3", "lesion_id": "", "patient_id": "", "image_type": "RCM: macroscopic", "sex": ""},
        {**ROW, "isic_id": "ISIC_4", "diagnosis_1": "Indeterminate", "diagnosis_3": "Solar or actinic keratosis"},
        {**dict.fromkeys(ROW, ""), "isic_id": "ISIC_5"},
        ROW,
        {**ROW, "isic_id": ""},
        {**ROW, "isic_id": "ISIC_6"},
    ]
    raw = tmp_path / "raw"
    table(raw / "metadata.csv", rows)
    for number in range(1, 6):
        image(raw / "images" / f"ISIC_{number}.jpg")
    count, examples, ledger = prepared("isic", raw)
    assert count == 8 * 5
    assert Counter(row.rule for row in ledger) == {
        "unknown-value": 6,
        "duplicate": 5,
        "empty": 5,
        "missing-image": 5,
    }
    assert Dropped("metadata.csv:4 modality", "unknown-value", "image_type is 'RCM: macroscopic'") in ledger
    first = examples["ISIC_1-diagnosis"]
    assert first.facts == Facts(
        "clinical", "melanoma", "malignant", "II", 55.0, "female", "head or neck", kind="diagnosis"
    )
    assert (first.group, examples["ISIC_2-site"].group, examples["ISIC_3-site"].group) == ("IL_1", "IP_1", "ISIC_3")
    assert first.licence == "CC0-1.0"
    assert examples["ISIC_2-diagnosis"].facts.diagnosis == "cylindroma"
    assert "cylindroma" in said(examples["ISIC_2-diagnosis"])[1]
    assert examples["ISIC_4-malignancy"].facts.malignancy == "premalignant"


def test_the_challenge_of_2019(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    hot = dict.fromkeys(CLASSES, "0.0")
    truth = [{"image": "ISIC_1", **hot, "BKL": "1.0"}, {"image": "ISIC_2", **hot, "UNK": "1.0"}]
    site = {"age_approx": "", "anatom_site_general": "anterior torso", "lesion_id": "BCN_1", "sex": "male"}
    table(raw / isic.TRUTH, truth)
    table(raw / isic.METADATA, [{"image": "ISIC_1", **site}, {"image": "ISIC_2", **dict.fromkeys(site, "")}])
    image(raw / "ISIC_1.jpg")
    image(raw / "ISIC_2.jpg")
    count, examples, ledger = prepared("isic", raw, "2019")
    assert count == 2 * 4
    assert [row.row for row in ledger] == [f"{isic.TRUTH}:3 {kind}" for kind in ("diagnosis", "malignancy", "site")]
    assert "benign keratosis" in said(examples["ISIC_1-diagnosis"])[1]
    assert examples["ISIC_1-diagnosis"].facts.diagnosis == "seborrheic keratosis"
    assert (examples["ISIC_1-site"].group, examples["ISIC_2-modality"].group) == ("BCN_1", "ISIC_2")
    assert examples["ISIC_1-site"].licence == "CC-BY-NC-4.0"
    table(raw / isic.METADATA, [{"image": "ISIC_1", **site}])
    with pytest.raises(PrepError, match=r"image 'ISIC_2' has no row in ISIC_2019_Training_Metadata\.csv"):
        list(isic.convert(raw, "2019"))


@pytest.mark.parametrize("lines", [True, False])
def test_records_as_json(tmp_path: Path, lines: bool) -> None:
    clinical = {"diagnosis": "nevus", "benign_malignant": None, "sex": "male", "age_approx": 40}
    records = [
        {"name": "ISIC_1", "meta": {"clinical": clinical, "acquisition": {"image_type": "dermoscopic"}}},
        {"isic_id": "ISIC_2", "metadata": {"clinical": {"diagnosis_3": "Nevus"}}},
    ]
    words = "\n".join(map(json.dumps, records)) + "\n\n" if lines else json.dumps(records)
    path = tmp_path / ("records.jsonl" if lines else "records.json")
    path.write_text(words)
    made = list(isic.convert(path, "archive"))
    assert isic.rows(path, "archive") == len(made) == 10
    assert [row.facts.malignancy for row in made if not isinstance(row, Dropped)] == ["benign"] * 5
    assert isic.rows(tmp_path, "archive") == 10


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("a.csv", "isic_id,sex\n1,male\n", "no column diagnosis or diagnosis_1; found isic_id, sex"),
        ("a.csv", "image,dx\n", "expected one metadata file, .*; found none"),
        ("a.jsonl", "{}\n", "a.jsonl:1: found no name or isic_id"),
        ("a.jsonl", "{\n", "a.jsonl:1: not JSON"),
        ("a.json", "{}", "found dict; expected a list of records"),
    ],
)
def test_files_that_are_no_metadata_are_named(tmp_path: Path, name: str, words: str, message: str) -> None:
    (tmp_path / name).write_text(words)
    with pytest.raises(PrepError, match=message):
        list(isic.convert(tmp_path, "archive"))


def test_the_real_records(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").symlink_to(shared / "isic")
    count, examples, ledger = prepared("isic", tmp_path / "raw")
    assert count == 550 * 5
    placed = {path.stem for path in (shared / "isic").rglob("*.jpg")}
    assert {row.facts.diagnosis for row in examples.values()} <= {"nevus", "melanoma"}
    assert {row.id.partition("-")[0] for row in examples.values()} == placed
    unknown = Counter(row.row.split()[-1] for row in ledger if row.rule == "unknown-value")
    assert unknown == {"site": 550, "skin_type": 550, "diagnosis": 2}
    assert {row.rule for row in ledger} <= {"unknown-value", "missing-image"}
