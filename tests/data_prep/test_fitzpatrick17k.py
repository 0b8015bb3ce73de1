from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, fitzpatrick17k
from helpers.converted import converted
from helpers.raws import image, said, table
from skinvl.data.example import Dropped, Facts

ROW = {"md5hash": "aa", "fitzpatrick_scale": "5", "fitzpatrick_centaur": "4", "label": "Melanoma", "qc": ""}
ROW |= {"nine_partition_label": "malignant melanoma", "three_partition_label": "malignant", "url": "x"}


def raw(folder: Path, *changes: dict[str, str]) -> Path:
    rows = [{**ROW, **change} for change in changes]
    table(folder / "raw" / fitzpatrick17k.FILE, rows)
    for row in rows:
        image(folder / "raw" / "images" / f"{row['md5hash']}.jpg")
    return folder / "raw"


def test_the_account(tmp_path: Path) -> None:
    calm = {"label": "pityriasis  rosea", "nine_partition_label": "inflammatory"}
    changes: tuple[dict[str, str], ...] = (
        {},
        {**calm, "md5hash": "bb", "three_partition_label": "non-neoplastic", "fitzpatrick_scale": "-1"},
        {"md5hash": "cc", "qc": "3 Wrongly labelled"},
        {"md5hash": "dd", "label": ""},
        {},
    )
    folder = raw(tmp_path, *changes)
    (folder / "images" / "dd.jpg").unlink()
    examples, ledger = converted(fitzpatrick17k, folder)
    assert len(examples) + len(ledger) + 5 == 5 * 5  # one photo comes twice, under the same ids
    assert [(row.row.split()[-1], row.rule) for row in ledger] == [
        ("skin_type", "unknown-value"),
        ("diagnosis", "wrong-label"),
        ("category", "wrong-label"),
        ("malignancy", "wrong-label"),
        ("diagnosis", "unknown-value"),
    ]
    first, second = examples["aa-diagnosis"], examples["bb-malignancy"]
    assert first.facts == Facts("clinical", "melanoma", "malignant", "V", kind="diagnosis")
    assert first.group == "aa"
    assert second.facts == Facts("clinical", "pityriasis rosea", None, None, kind="malignancy")
    assert "non-neoplastic" in said(second)[1]
    assert examples["cc-skin_type"].facts.diagnosis is None


def test_a_partition_that_should_not_occur_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"csv:2 three_partition_label: found 'odd'; expected -1, benign, "):
        list(fitzpatrick17k.convert(raw(tmp_path, {"three_partition_label": "odd"}), "vqa"))


def test_about_a_seventh_of_the_photos_is_for_testing(tmp_path: Path) -> None:
    table(tmp_path / fitzpatrick17k.FILE, [{**ROW, "md5hash": f"{number:032x}"} for number in range(400)])
    made = [row for row in fitzpatrick17k.convert(tmp_path, "vqa") if not isinstance(row, Dropped)]
    assert 0.1 < sum(row.split == "test" for row in made) / len(made) < 0.2
