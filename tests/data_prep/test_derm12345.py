from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, derm12345
from helpers.converted import converted
from helpers.raws import image, said, table
from skinvl.data.example import Dropped, Facts

ROW = {"image_id": "DERM_1", "patient_id": "PID_1", "image_type": "dermoscopic", "copyright-license": "CC-BY"}
ROW |= {"split": "train", "super_class": "melanocytic", "malignancy": "malignant", "main_class_1": "melanoma"}
ROW |= {"main_class_2": "melanoma", "sub_class": "acral_lentiginious", "label": "alm"}
ARCHIVE = {"isic_id": "ISIC_1", "patient_id": "IP_1", "copyright_license": "CC-BY", "diagnosis_1": "Benign"}
ARCHIVE |= {"diagnosis_3": "Nevus", "image_type": "dermoscopic"}


def raw(folder: Path, *changes: dict[str, str]) -> Path:
    rows = [{**ROW, **change} for change in changes]
    for name, split in zip(derm12345.FILES, ("train", "test"), strict=True):
        mine = [row for row in rows if row["split"] == split]
        table(folder / name, mine or [{**ROW, "image_id": "DERM_0", "patient_id": "PID_0", "split": split}])
    return folder


def test_the_account(tmp_path: Path) -> None:
    keratosis = {"super_class": "nonmelanocytic", "malignancy": "indeterminate", "main_class_1": "keratinocytic"}
    changes: tuple[dict[str, str], ...] = (
        {},
        {"image_id": "DERM_2", **keratosis, "sub_class": "actinic_keratosis", "label": "ak"},
        {"image_id": "DERM_3", "malignancy": "benign", "main_class_1": "banal", "sub_class": "blue", "label": "bdb"},
        {"image_id": "DERM_4", "main_class_1": "new_class", "sub_class": "Odd_Thing", "label": "odd", "malignancy": ""},
        {"image_id": "DERM_5", "patient_id": "PID_2", "split": "test"},
        {"image_id": "DERM_6", "patient_id": "", "split": "test"},
    )
    folder = raw(tmp_path / "raw", *changes)
    image(folder / "derm12345_train_part_1" / "alm" / "DERM_1.jpg")
    examples, ledger = converted(derm12345, folder)
    assert len(examples) + len(ledger) == 6 * 5
    name = "derm12345_metadata_train.csv:5"
    assert ledger == [
        Dropped(f"{name} category", "unknown-value", "super_class is 'melanocytic'"),
        Dropped(f"{name} malignancy", "unknown-value", "malignancy is ''"),
        *(
            Dropped(f"derm12345_metadata_test.csv:3 {kind}", "empty", "no name of the image or its group")
            for kind in derm12345.KINDS
        ),
    ]
    first = examples["DERM_1-diagnosis"]
    assert first.facts == Facts("dermoscopy", "melanoma", "malignant", kind="diagnosis")
    assert (first.images, first.group, first.split) == (
        ("derm12345_train_part_1/alm/DERM_1.jpg",),
        "PID_1",
        "train",
    )
    assert (first.source, first.licence) == ("derm12345", "CC-BY-4.0")
    assert "acral lentiginous melanoma" in said(first)[1]
    assert "malignant melanocytic" in said(examples["DERM_1-category"])[1]
    assert "keratinocytic lesion" in said(examples["DERM_2-class"])[1]
    assert "indeterminate" in said(examples["DERM_2-malignancy"])[1]
    facts = examples["DERM_2-malignancy"].facts
    assert (facts.diagnosis, facts.malignancy) == ("actinic keratosis", "premalignant")
    assert examples["DERM_3-class"].facts.diagnosis == "nevus"
    assert "blue nevus" in said(examples["DERM_3-diagnosis"])[1]
    assert "odd thing" in said(examples["DERM_4-diagnosis"])[1]
    assert "new class" in said(examples["DERM_4-class"])[1]
    assert examples["DERM_5-modality"].split == "test"
    assert derm12345.CARD.released == "sound"


def test_lists_of_choices_are_short(tmp_path: Path) -> None:
    folder = raw(tmp_path, *({"image_id": f"DERM_{number}"} for number in range(60)))
    examples, _ = converted(derm12345, folder)
    for kind, options in (("class", derm12345.MAIN_CLASSES), ("category", derm12345.SUPERCLASSES)):
        closed = {said(row)[0] for name, row in examples.items() if name.endswith(f"-{kind}") and ":" in said(row)[0]}
        assert closed
        assert 4 <= len(options) <= 8
        assert all(option in question for question in closed for option in options.values())


@pytest.mark.parametrize("split", ["dev", ""])
def test_a_split_that_should_not_occur_is_named(tmp_path: Path, split: str) -> None:
    for name in derm12345.FILES:
        table(tmp_path / name, [{**ROW, "split": split}])
    with pytest.raises(PrepError, match=rf"train\.csv:2 split: found '{split}'; expected test or train"):
        list(derm12345.convert(tmp_path, "vqa"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"no file derm12345_metadata_train\.csv .* How to get DERM12345"):
        list(derm12345.convert(tmp_path, "vqa"))
    for name in derm12345.FILES:
        table(tmp_path / name, [{"image_id": "DERM_1", "label": "bcc"}])
    with pytest.raises(PrepError, match=r"no column patient_id, split, .*; found image_id, label; expected image_id, "):
        list(derm12345.convert(tmp_path, "vqa"))


def test_the_archive_form_has_the_split_of_its_supplement(tmp_path: Path) -> None:
    rows = [{**ARCHIVE, "isic_id": f"ISIC_{number}", "patient_id": f"IP_{number}"} for number in range(40)]
    table(tmp_path / "derm12345.csv", rows)
    drawn, ledger = converted(derm12345, tmp_path, "archive")
    assert len(drawn) + len(ledger) == 40 * 5
    assert {row.split for row in drawn.values()} == {"train", "test"}
    first = drawn["ISIC_0-diagnosis"]
    assert (first.source, first.group, first.licence) == ("derm12345", "IP_0", "CC-BY-4.0")
    assert first.facts.diagnosis == "nevus"
    splits = [
        {"isic_id": row["isic_id"], "split": "Test" if number < 3 else "train"} for number, row in enumerate(rows)
    ]
    table(tmp_path / "derm12345_supplemental.csv", splits)
    given, _ = converted(derm12345, tmp_path, "archive")
    assert {row.group for row in given.values() if row.split == "test"} == {"IP_0", "IP_1", "IP_2"}
    table(tmp_path / "derm12345_supplemental.csv", splits[1:])
    with pytest.raises(PrepError, match=r"derm12345\.csv:2: image 'ISIC_0' has no row in the supplement"):
        list(derm12345.convert(tmp_path, "archive"))
    table(tmp_path / "derm12345_supplemental.csv", [{"isic_id": "ISIC_0", "fold": "1"}])
    with pytest.raises(PrepError, match="no column split; found isic_id, fold; expected isic_id, split"):
        list(derm12345.convert(tmp_path, "archive"))
    table(tmp_path / "more" / "supplement.csv", splits)
    with pytest.raises(PrepError, match="found 2 supplements"):
        list(derm12345.convert(tmp_path, "archive"))
