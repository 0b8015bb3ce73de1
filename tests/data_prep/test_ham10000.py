from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, ham10000
from helpers.converted import converted
from helpers.raws import image, said, table
from skinvl.data.example import Dropped, Facts

ROW = dict.fromkeys(ham10000.COLUMNS, "") | {"lesion_id": "HAM_1", "image_id": "ISIC_1", "dx": "bkl"}
ROW |= {"age": "80.0", "sex": "male", "localization": "scalp"}


def raw(folder: Path, *changes: dict[str, str]) -> Path:
    rows = [{**ROW, **change} for change in changes]
    table(folder / "raw" / ham10000.FILE, rows)
    for row in rows[:-1]:
        image(folder / "raw" / "part_1" / f"{row['image_id']}.jpg")
    return folder / "raw"


def test_the_account(tmp_path: Path) -> None:
    changes: tuple[dict[str, str], ...] = (
        {},
        {"image_id": "ISIC_2", "localization": "unknown", "sex": "unknown", "age": ""},
        {"image_id": "ISIC_3", "lesion_id": "HAM_2", "dx": "akiec"},
        {"image_id": "ISIC_3", "lesion_id": "HAM_2"},
        {"image_id": "ISIC_4", "lesion_id": ""},
        {"image_id": "ISIC_5"},
    )
    examples, ledger = converted(ham10000, raw(tmp_path, *changes))
    assert len(examples) + len(ledger) + 4 == 6 * 4  # one image comes twice, under the same ids
    assert Dropped("HAM10000_metadata.csv:3 site", "unknown-value", "localization is 'unknown'") in ledger
    assert sorted({(row.rule, row.row.split()[0]) for row in ledger if row.rule != "unknown-value"}) == [
        ("empty", "HAM10000_metadata.csv:6"),
    ]
    assert {row.group for row in examples.values()} == {"HAM_1", "HAM_2"}
    first = examples["ISIC_1-diagnosis"]
    assert first.images == ("part_1/ISIC_1.jpg",)
    assert first.identities == ("HAM_1", "ISIC_1")
    assert first.facts == Facts(
        "dermoscopy", "seborrheic keratosis", "benign", None, 80.0, "male", "scalp", kind="diagnosis"
    )
    second = examples["ISIC_2-diagnosis"].facts
    assert (second.sex, second.age, second.site) == (None, None, None)
    assert examples["ISIC_3-malignancy"].facts.malignancy == "premalignant"
    for name, word in (("diagnosis", "benign keratosis"), ("modality", "dermoscopic image"), ("site", "scalp")):
        assert word in said(examples[f"ISIC_1-{name}"])[1]


def test_a_question_does_not_depend_on_its_answer(tmp_path: Path) -> None:
    other = {"dx": "mel", "localization": "back"}
    for number in range(20):
        name = {"image_id": f"ISIC_{number}"}
        one, two = (list(ham10000.convert(raw(tmp_path, {**name, **change}, {}), "vqa"))[:4] for change in ({}, other))
        for left, right in zip(one, two, strict=True):
            assert not isinstance(left, Dropped)
            assert not isinstance(right, Dropped)
            assert left.messages[0] == right.messages[0]
            assert (left.messages[1] == right.messages[1]) is left.id.endswith("modality")


@pytest.mark.parametrize(("column", "value"), [("dx", "xyz"), ("localization", "tail"), ("sex", "x"), ("age", "old")])
def test_a_value_that_should_not_occur_is_named(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(PrepError, match=rf"csv:3 {column}: found '{value}'; expected "):
        list(ham10000.convert(raw(tmp_path, {}, {column: value}), "vqa"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    table(tmp_path / ham10000.FILE, [{"image_id": "ISIC_1", "dx": "nv"}])
    with pytest.raises(PrepError, match="no column lesion_id, age, sex, localization; found image_id, dx; expected "):
        list(ham10000.convert(tmp_path, "vqa"))
