from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep import PrepError, isic
from helpers.converted import converted, outcomes
from helpers.raws import image, said, table
from skinvl.data.example import Dropped, Example, Facts

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
        {**ROW, "isic_id": "ISIC_7", "patient_id": ""},
    ]
    raw = tmp_path / "raw"
    table(raw / "metadata.csv", rows)
    for number in range(1, 6):
        image(raw / "images" / f"ISIC_{number}.jpg")
    table(raw / "attribution.csv", [{"isic_id": "ISIC_1", "attribution": "x"}])  # a table that is no metadata
    table(raw / "long.csv", [{"x" * 200_000: "isic_id"}])
    examples, ledger = converted(isic, raw, "archive")
    assert len(examples) + len(ledger) + 5 == 9 * 5  # one image comes twice, under the same ids
    assert Counter(row.rule for row in ledger) == {"unknown-value": 6, "empty": 5}
    assert examples["ISIC_6-site"].images == ("ISIC_6.jpg",)
    assert Dropped("metadata.csv:4 modality", "unknown-value", "image_type is 'RCM: macroscopic'") in ledger
    first = examples["ISIC_1-diagnosis"]
    assert first.facts == Facts(
        "clinical", "melanoma", "malignant", "II", 55.0, "female", "head or neck", kind="diagnosis"
    )
    assert (first.group, examples["ISIC_2-site"].group, examples["ISIC_3-site"].group) == ("IP_1", "IP_1", "ISIC_3")
    assert examples["ISIC_7-site"].group == "IL_1"
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
    examples, ledger = converted(isic, raw, "2019")
    assert len(examples) + len(ledger) == 2 * 4
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
    made = outcomes(isic, path, "archive")
    assert len(made) == 10
    assert [row.facts.malignancy for row in made if not isinstance(row, Dropped)] == ["benign"] * 5
    assert isic.rows(tmp_path, "archive") == 10


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("a.csv", "isic_id,sex\n1,male\n", "a CSV with the columns isic_id and diagnosis .*; found none"),
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


def test_a_metadata_file_without_diagnoses_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("isic_id,sex\n1,male\n")
    with pytest.raises(PrepError, match="no column diagnosis or diagnosis_1; found isic_id, sex"):
        list(isic.convert(path, "archive"))


def test_odd_lines_of_json(tmp_path: Path) -> None:
    record = json.dumps(
        {"isic_id": "ISIC_1", "lesion_id": "\ud800", "diagnosis": "nevus", "anatom_site_general": {"a": [1]}}
    ).encode()
    path = tmp_path / "a.jsonl"
    again = record.replace(b"_1", b"_2").replace(b": ", b":\r ")
    path.write_bytes(b"\xef\xbb\xbf" + record + b"\n \x0b\n" + again + b"\n")
    made = outcomes(isic, path, "archive")
    assert [row.group for row in made if isinstance(row, Example)] == ["?"] * 4  # diagnosis and malignancy
    assert all(row.facts.site is None for row in made if isinstance(row, Example))


def test_the_real_records(shared: Path) -> None:
    raw = shared / "isic"
    examples, ledger = converted(isic, raw, "archive")
    assert len(examples) + len(ledger) == 550 * 5
    placed = {path.stem for path in raw.rglob("*.jpg")}
    assert {row.facts.diagnosis for row in examples.values()} == {"nevus", "melanoma", None}
    assert {row.id.partition("-")[0] for row in examples.values() if (raw / row.images[0]).is_file()} == placed
    unknown = Counter(row.row.split()[-1] for row in ledger if row.rule == "unknown-value")
    assert unknown == {"site": 550, "skin_type": 550, "diagnosis": 2}
    assert {row.rule for row in ledger} == {"unknown-value"}
