from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from data_prep import PrepError, pad_ufes_20
from helpers.converted import converted, outcomes
from skinvl.data.example import Dropped, Example, Facts, words

ROW = {
    **dict.fromkeys(pad_ufes_20.COLUMNS, "True"),
    **{"patient_id": "PAT_9", "img_id": "PAT_9_1_2.png", "age": "55", "gender": "FEMALE"},
    **{"diagnostic": "BCC", "region": "NOSE", "fitspatrick": "2.0"},
}


def convert(raw: Path, *changes: dict[str, str]) -> list[Example | Dropped]:
    raw.mkdir(exist_ok=True)
    with (raw / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, pad_ufes_20.COLUMNS)
        writer.writeheader()
        writer.writerows({**ROW, **change} for change in changes)
    rows = outcomes(pad_ufes_20, raw)
    assert len(rows) == len(changes) * len(pad_ufes_20.KINDS)
    return rows


def examples(rows: list[Example | Dropped]) -> list[Example]:
    assert all(isinstance(row, Example) for row in rows)
    return [row for row in rows if isinstance(row, Example)]


def test_facts_are_filled(tmp_path: Path) -> None:
    first = examples(convert(tmp_path, {}))[0]
    assert first.facts == Facts(
        modality="clinical",
        diagnosis="basal cell carcinoma",
        malignancy="malignant",
        skin_type="II",
        age=55.0,
        sex="female",
        site="nose",
        kind="diagnosis",
    )
    assert (first.group, first.identities) == ("PAT_9", ("PAT_9", "PAT_9_1_2.png"))


def test_a_number_of_a_lesion_joins_no_patients(tmp_path: Path) -> None:
    other = {**ROW, "patient_id": "PAT_8", "img_id": "PAT_8_880_3.png"}
    lines = [",".join((*pad_ufes_20.COLUMNS, "lesion_id")), *(",".join((*row.values(), "880")) for row in (ROW, other))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    identities = {row.identities for row in examples(outcomes(pad_ufes_20, tmp_path))}
    assert identities == {("PAT_9", "PAT_9_1_2.png"), ("PAT_8", "PAT_8_880_3.png")}


def test_unknown_values_go_to_the_ledger(tmp_path: Path) -> None:
    rows = convert(tmp_path, {"itch": "UNK", "fitspatrick": "", "gender": ""})
    assert [row for row in rows if isinstance(row, Dropped)] == [
        Dropped("metadata.csv:2 itch", "unknown-value", "itch is 'UNK'"),
        Dropped("metadata.csv:2 skin_type", "unknown-value", "fitspatrick is ''"),
    ]
    assert next(row for row in rows if isinstance(row, Example)).facts.sex is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("diagnostic", "XYZ"),
        ("itch", "maybe"),
        ("region", "TAIL"),
        ("fitspatrick", "7.0"),
        ("gender", "X"),
        ("age", "old"),
    ],
)
def test_a_value_that_should_not_occur_is_named(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(PrepError, match=rf"metadata\.csv:3 {column}: found '{value}'; expected "):
        convert(tmp_path, {}, {column: value})


def test_a_question_does_not_depend_on_its_answer(tmp_path: Path) -> None:
    other = {"diagnostic": "NEV", "region": "LIP", "fitspatrick": "5.0"}
    for number in range(30):
        name = {"img_id": f"PAT_9_1_{number}.png"}
        no = {kind.column: "False" for kind in pad_ufes_20.KINDS.values() if kind.values is pad_ufes_20.YES_NO}
        one, two = (examples(convert(tmp_path, {**name, **change})) for change in ({}, {**other, **no}))
        for left, right in zip(one, two, strict=True):
            assert left.messages[0] == right.messages[0]
            assert left.messages[1] != right.messages[1]


def test_wording_varies_and_is_seeded(tmp_path: Path) -> None:
    changes = [{"img_id": f"PAT_9_1_{number}.png"} for number in range(200)]
    rows = examples(convert(tmp_path, *changes))
    assert rows == examples(convert(tmp_path, *changes))
    for name, kind in pad_ufes_20.KINDS.items():
        mine = [row for row in rows if row.id.endswith(f"-{name}")]
        asked = {words(row.messages[0]) for row in mine}
        assert set(kind.open) <= asked
        answers = Counter(words(row.messages[1]) for row in mine)
        assert len(answers) == 3 if name != "diagnosis" else 4  # the bare value and each sentence
        assert not any("{" in word for word in asked | set(answers))


def test_photos_are_found_by_name_then_by_stem(tmp_path: Path) -> None:
    for path in ("z/PAT_1_1_1.png", "a/PAT_1_1_1.jpg", "b/PAT_1_1_2.jpg", "c/PAT_1_1_2.jpeg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    rows = examples(convert(tmp_path, *({"img_id": f"PAT_1_1_{number}.png"} for number in (1, 2, 3))))
    assert [row.images for row in rows[:: len(pad_ufes_20.KINDS)]] == [
        ("z/PAT_1_1_1.png",),
        ("b/PAT_1_1_2.jpg",),
        ("PAT_1_1_3.png",),
    ]


def test_the_real_photos(shared: Path) -> None:
    raw = shared / "pad_ufes_20"
    rows, ledger = converted(pad_ufes_20, raw)
    assert len(rows) + len(ledger) == 2298 * 10
    assert {row.rule for row in ledger} == {"unknown-value"}
    there = [row for row in rows.values() if (raw / row.images[0]).is_file()]
    assert len({row.images for row in there}) == 240
    groups = {split: {row.group for row in there if row.split == split} for split in ("train", "test")}
    assert not groups["train"] & groups["test"]
    assert len(groups["train"] | groups["test"]) == 222
    assert 0.08 < len(groups["test"]) / 222 < 0.22
