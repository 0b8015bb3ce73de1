from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, scin
from helpers.converted import converted
from helpers.raws import image, prepared, said, table
from skinvl.data.example import Facts

ROW = dict.fromkeys(scin.COLUMNS, "") | {
    "case_id": "1",
    "image_1_path": "dataset/images/a.png",
    "sex_at_birth": "FEMALE",
}
ROW |= {"fitzpatrick_skin_type": "FST4", "body_parts_arm": "YES", "body_parts_leg": "YES", "textures_flat": "YES"}
ROW |= {"condition_symptoms_itching": "YES", "condition_symptoms_pain": "YES", "image_2_path": "dataset/images/b.png"}


def raw(folder: Path, labels: dict[str, str], *changes: dict[str, str]) -> Path:
    table(folder / "raw" / scin.CASES, [{**ROW, **change} for change in changes])
    named = [{"case_id": case, "weighted_skin_condition_label": label} for case, label in labels.items()]
    table(folder / "raw" / scin.LABELS, named)
    for name in "ab":
        image(folder / "raw" / "images" / f"{name}.png")
    return folder / "raw"


def test_the_account(tmp_path: Path) -> None:
    labels = {
        "1": "{'Basal Cell Carcinoma': 0.6, 'Eczema': 0.4}",
        "2": "{'Eczema': 0.5, 'Psoriasis': 0.5}",
        "3": "{Eczema: 1}",
        "4": "[1]",
        "5": "{'Eczema': 1.0}",
    }
    bare = dict.fromkeys((*scin.SITES, *scin.TEXTURES, *scin.SYMPTOMS), "")
    changes: tuple[dict[str, str], ...] = (
        {},
        {**bare, "case_id": "2", "image_2_path": "", "fitzpatrick_skin_type": "NONE_SELECTED", "sex_at_birth": ""},
        {"case_id": "3"},
        {"case_id": "4"},
        {"case_id": "5", "image_1_path": "", "image_2_path": ""},
        {"case_id": "6", "image_2_path": "dataset/images/lost.png"},
    )
    examples, ledger = converted(scin, raw(tmp_path, labels, *changes))
    assert len(examples) + len(ledger) == 6 * 6
    assert [(row.row.split()[0], row.rule) for row in ledger] == [
        *[("scin_cases.csv:3", "unknown-value")] * 5,
        ("scin_cases.csv:4", "malformed"),
        ("scin_cases.csv:5", "malformed"),
        *[("scin_cases.csv:6", "missing-image")] * 6,
        ("scin_cases.csv:7", "unknown-value"),
    ]
    first = examples["1-diagnosis"]
    assert first.images == ("images/a.png", "images/b.png")
    assert [part["type"] for part in first.messages[0]["content"]] == ["image", "image", "text"]
    assert first.group == "1"
    assert first.facts == Facts(
        "clinical", "basal cell carcinoma", "malignant", "IV", None, "female", "arm and leg", kind="diagnosis"
    )
    assert "basal cell carcinoma" in said(first)[1]
    assert "itching and pain" in said(examples["1-symptom"])[1]
    assert "flat" in said(examples["1-texture"])[1]


def test_a_case_keeps_the_photos_that_are_there(tmp_path: Path) -> None:
    folder = raw(tmp_path, {"1": "{'Eczema': 1.0}"}, {"image_2_path": "dataset/images/lost.png"})
    _, examples, _ = prepared("scin", folder)
    case = examples["1-diagnosis"]
    assert (case.images, case.tags) == (("images/images/a.png",), ("fewer-images",))
    assert [part["type"] for part in case.messages[0]["content"]] == ["image", "text"]


@pytest.mark.parametrize(
    ("column", "value"), [("textures_flat", "x"), ("sex_at_birth", "x"), ("fitzpatrick_skin_type", "7")]
)
def test_a_value_that_should_not_occur_is_named(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(PrepError, match=rf"scin_cases\.csv:2 {column}: found '{value}'; expected "):
        list(scin.convert(raw(tmp_path, {"1": ""}, {column: value}), "vqa"))


@pytest.mark.parametrize(
    ("label", "rule"),
    [
        ("{'': 1.0}", "malformed"),
        ("{'Ec\\ud800zema': 1.0}", "malformed"),
        (str({f"Condition {number}": 1 / (number + 1) for number in range(600)}), "malformed"),
        ("(" * 5_000, "malformed"),
        ("", "unknown-value"),
    ],
)
def test_a_label_that_names_no_condition_goes_to_the_ledger(tmp_path: Path, label: str, rule: str) -> None:
    _, ledger = converted(scin, raw(tmp_path, {"1": label}, {}))
    assert [(row.row, row.rule) for row in ledger] == [("scin_cases.csv:2 diagnosis", rule)]
