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


def archived(tmp_path: Path, *rows: dict[str, str]) -> tuple[dict[str, Example], list[Dropped]]:
    """What becomes of rows of the archive's metadata, all with the same columns."""
    columns = dict.fromkeys(name for row in rows for name in row)
    table(tmp_path / "metadata.csv", [{**dict.fromkeys(columns, ""), **row} for row in rows])
    return converted(isic, tmp_path, "archive")


def test_sites_by_the_newer_and_the_older_names(tmp_path: Path) -> None:
    names = {
        "1": {"anatom_site_1": "Head and neck", "anatom_site_2": "Head", "anatom_site_3": "Face"},
        "2": {"anatom_site_1": "Trunk", "anatom_site_2": "Anterior trunk"},
        "3": {"anatom_site_1": "Head and neck", "anatom_site_general": "head/neck"},
        "4": {"anatom_site_special": "acral palms or soles", "anatom_site_1": "Upper extremity"},
        "5": {"anatom_site_general": "oral/genital"},
        "6": {"anatom_site_1": "Lower extremity", "anatom_site_4": "Heel", "anatom_site_special": "acral NOS"},
        "7": {},
    }
    rows = [{"isic_id": number, "diagnosis_1": "Benign", **site} for number, site in names.items()]
    examples, ledger = archived(tmp_path, *rows)
    assert {row.id: row.facts.site for row in examples.values() if row.id.endswith("site")} == {
        "1-site": "face",
        "2-site": "anterior torso",
        "3-site": "head or neck",
        "4-site": "palms or soles",
        "5-site": "oral or genital area",
        "6-site": "heel",
    }
    assert "heel" in said(examples["6-site"])[1]
    assert [row.detail for row in ledger if row.row.endswith("site")] == ["anatom_site_4 is ''"]


def test_what_is_indeterminate_is_set_aside_by_name_but_for_actinic_keratosis(tmp_path: Path) -> None:
    melanocytic, epidermal = "Indeterminate melanocytic proliferations", "Indeterminate epidermal proliferations"
    keratosis = "Solar or actinic keratosis"
    levels = [
        *((), (epidermal,), (melanocytic,), (epidermal, "Solar or actinic cheilitis"), (epidermal, keratosis)),
        (epidermal, keratosis, "Actinic keratosis, Bowenoid"),
        *((melanocytic, "Atypical Spitz tumor"), (melanocytic, "Atypical Spitz tumor", "Atypical Spitz tumor, Dermal")),
        (melanocytic, "Melanocytic tumor of uncertain malignant potential"),
    ]
    rows = [
        {f"diagnosis_{level}": value for level, value in enumerate(("Indeterminate", *more), 1)} | {"isic_id": str(at)}
        for at, more in enumerate(levels)
    ]
    rows.append({"isic_id": "old", "benign_malignant": "indeterminate/malignant"})
    examples, ledger = archived(tmp_path, *rows)
    graded = {row.id: row.facts.malignancy for row in examples.values() if row.id.endswith("malignancy")}
    assert graded == {"4-malignancy": "premalignant", "5-malignancy": "premalignant"}
    aside = [row for row in ledger if row.row.endswith("malignancy")]
    assert [row.rule for row in aside] == ["indeterminate"] * 8
    assert aside[0].detail == "diagnosis_1 is 'Indeterminate'"
    assert aside[-1].detail == "benign_malignant is 'indeterminate/malignant'"
    assert examples["7-diagnosis"].facts.diagnosis == "atypical spitz tumor, dermal"


@pytest.mark.parametrize(
    ("grade", "group"),
    [
        *(("Benign", "Benign - Other"), ("Benign", "Cysts"), ("Malignant", "Malignant epidermal proliferations")),
        ("Malignant", "Malignant melanocytic proliferations (Melanoma)"),
        ("Benign", "Benign soft tissue proliferations - Vascular"),
    ],
)
def test_a_group_is_no_diagnosis(tmp_path: Path, grade: str, group: str) -> None:
    examples, ledger = archived(tmp_path, {"isic_id": "1", "diagnosis_1": grade, "diagnosis_2": group, "sex": "male"})
    assert "1-diagnosis" not in examples
    assert (
        Dropped("metadata.csv:2 diagnosis", "unknown-value", f"diagnosis_2 is {group!r}, a group of diagnoses")
        in ledger
    )
    # The group of vascular lesions is a class of the challenges by itself; what is finer is said as it is.
    known = "vascular lesion" if group.endswith("Vascular") else None
    assert examples["1-malignancy"].facts.diagnosis == known
    row = {"isic_id": "1", "diagnosis_1": grade, "diagnosis_2": group, "diagnosis_3": "Angiokeratoma"}
    examples, _ = archived(tmp_path, row)
    assert examples["1-diagnosis"].facts.diagnosis == (known or "angiokeratoma")
    assert "angiokeratoma" in said(examples["1-diagnosis"])[1]


def test_synthetic_images_have_a_rule_of_their_own(tmp_path: Path) -> None:
    row = {"isic_id": "1", "diagnosis": "nevus", "image_type": "dermoscopic"}
    kept = [
        {**row, "isic_id": str(number), "image_manipulation": value} for number, value in enumerate(("", "altered"))
    ]
    examples, ledger = archived(tmp_path, *kept, {**row, "isic_id": "3", "image_manipulation": "synthetic"})
    assert {row.id.partition("-")[0] for row in examples.values()} == {"0", "1"}
    assert [(row.rule, row.detail) for row in ledger if row.row.startswith("metadata.csv:4")] == [
        ("synthetic-image", "image_manipulation is 'synthetic'")
    ] * 5


def test_columns_that_are_not_there_are_named_once_with_those_that_are(tmp_path: Path) -> None:
    row = {"isic_id": "1", "diagnosis": "nevus", "sex": "male", "localization": "arm", "lesion_id": "IL_1"}
    _, ledger = archived(tmp_path, row)
    (sentence,) = isic.absent(tmp_path, "archive")
    assert sentence.startswith("metadata.csv: no column age_approx, anatom_site_5 or anatom_site_4 or ")
    assert "anatom_site_general, benign_malignant or diagnosis_1, image_type, fitzpatrick_skin_type" in sentence
    assert sentence.endswith("image_manipulation, so that what they would say is unknown; found " + ", ".join(row))
    details = {row.row.split()[1]: row.detail for row in ledger}
    assert details["modality"] == "no column image_type"
    assert details["site"].startswith("no column anatom_site_5 or ")
    full = {name: "" for names in isic.OPTIONAL for name in names}
    archived(tmp_path, {**full, **row})
    assert isic.absent(tmp_path, "archive") == []
    (tmp_path / "metadata.csv").unlink()
    records = [{"isic_id": "1", "metadata": {"clinical": {"diagnosis": "nevus"}}}]
    records.append({"isic_id": "2", "metadata": {"clinical": {"anatom_site_1": "Trunk"}}})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (sentence,) = isic.absent(tmp_path, "archive")
    assert "anatom_site" not in sentence.partition("; found ")[0]
    assert sentence.endswith("; found isic_id, diagnosis, anatom_site_1")


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
