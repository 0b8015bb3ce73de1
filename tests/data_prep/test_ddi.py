from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, ddi
from helpers.converted import converted
from helpers.raws import image, said, table
from skinvl.data.example import Facts

ROW = {"DDI_file": "1.png", "skin_tone": "56", "malignant": "True", "disease": "melanoma-in-situ"}


def raw(folder: Path, *changes: dict[str, str]) -> Path:
    rows = [{**ROW, **change} for change in changes]
    table(folder / "raw" / ddi.FILE, rows)
    image(folder / "raw" / "ddidiversedermatologyimages" / "1.png")
    image(folder / "raw" / "ddidiversedermatologyimages" / "2.png")
    image(folder / "raw" / "ddidiversedermatologyimages" / "3.png")
    return folder / "raw"


def test_the_account(tmp_path: Path) -> None:
    changes: tuple[dict[str, str], ...] = (
        {},
        {"DDI_file": "2.png", "malignant": "False", "disease": "actinic-keratosis", "skin_tone": "12"},
        {"DDI_file": "3.png", "malignant": "False", "disease": "", "skin_tone": ""},
        {"DDI_file": "4.png"},
        {"DDI_file": "1.png"},
    )
    examples, ledger = converted(ddi, raw(tmp_path, *changes))
    assert len(examples) + len(ledger) + 4 == 5 * 4  # one photo comes twice, under the same ids
    assert [row.rule for row in ledger] == ["unknown-value"] * 2
    assert examples["4-diagnosis"].images == ("4.png",)
    assert examples["1-diagnosis"].images == ("ddidiversedermatologyimages/1.png",)
    assert examples["1-diagnosis"].facts == Facts("clinical", "melanoma", "malignant", "V-VI", kind="diagnosis")
    assert examples["1-diagnosis"].group == "1.png"
    assert examples["2-malignancy"].facts.malignancy == "premalignant"
    assert examples["3-malignancy"].facts.malignancy == "benign"
    assert "non-malignant" in said(examples["2-malignancy"])[1]
    assert "I-II" in said(examples["2-skin_type"])[1]


@pytest.mark.parametrize(("column", "value"), [("skin_tone", "7"), ("malignant", "maybe")])
def test_a_value_that_should_not_occur_is_named(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(PrepError, match=rf"ddi_metadata\.csv:2 {column}: found '{value}'; expected "):
        list(ddi.convert(raw(tmp_path, {column: value}), "vqa"))


def test_the_terms_name_the_agreement() -> None:
    assert "agreement" in ddi.CARD.licence
    assert "never redistribute" in ddi.CARD.terms
