"""derm7pt: official splits by row number, criteria by their vocabularies, a score that adds up, terms for publish."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, derm7pt
from data_prep.derm7pt import CRITERIA
from helpers import finished
from helpers.converted import converted
from helpers.raws import photo, prepared, said, table
from skinvl.data import licences
from skinvl.data.example import Dropped, Example, words
from skinvl.data.labels import CLASSES, DERM7PT_NAMES
from skinvl.release import publish
from skinvl.release.publish import PublishError

ROW = dict.fromkeys(derm7pt.COLUMNS, "absent") | {"diagnosis": "clark nevus", "management": "excision"}
ROW |= {"elevation": "flat", "location": "back", "sex": "female", "seven_point_score": "0"}


def case(number: int, **more: str) -> dict[str, str]:
    return {**ROW, "case_num": f"{number}", "clinic": f"C/c{number}.jpg", "derm": f"D/d{number}.jpg", **more}


def put(raw: Path, cases: list[dict[str, str]], splits: dict[str, list[int]] | None = None) -> Path:
    """RAW in the published layout; without `splits` all cases are of the first."""
    table(raw / "meta" / "meta.csv", cases)
    splits = {"train": [*range(len(cases))]} if splits is None else splits
    for name in ("train", "valid", "test"):
        lines = ["indexes", *map(str, splits.get(name, ()))]
        (raw / "meta" / f"{name}_indexes.csv").write_text("\n".join(lines) + "\n")
    for row in cases:
        for column in ("clinic", "derm"):
            if row[column]:
                photo(raw / "images" / row[column])
    return raw


def test_row_numbers_begin_with_zero(tmp_path: Path) -> None:
    raw = put(tmp_path, [case(number) for number in range(1, 6)], {"train": [0, 3], "valid": [1], "test": [4]})
    examples, ledger = converted(derm7pt, raw)
    splits = {row.id.partition("-")[0]: row.split for row in examples.values()}
    assert splits == {"1": "train", "2": "validation", "4": "train", "5": "test"}
    assert len(ledger) == len(derm7pt.KINDS)  # all of row 2
    assert {(row.row.split()[0], row.rule) for row in ledger} == {("meta.csv:4", "no-split")}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [1, 2]}, r"train_indexes\.csv:3 indexes: found '2'; expected a row of meta\.csv, from 0 to 1"),
        ({"train": [-1]}, "found '-1'"),
        ({"train": [0], "test": [0]}, r"test_indexes\.csv:2 indexes: row 0 is in train too"),
    ],
)
def test_numbers_of_no_row_or_of_two_splits_are_named(
    tmp_path: Path, splits: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(PrepError, match=message):
        converted(derm7pt, put(tmp_path, [case(1), case(2)], splits))


def test_each_question_shows_what_answers_it(tmp_path: Path) -> None:
    examples, ledger = converted(derm7pt, put(tmp_path, [case(1)]))
    assert ledger == []
    shown = {
        name.partition("-")[2]: (row.images, row.facts.views, row.facts.modality) for name, row in examples.items()
    }
    clinic, derm = "images/C/c1.jpg", "images/D/d1.jpg"
    both = ((clinic, derm), ("clinical close-up", "dermoscopic"), None)
    assert shown.pop("diagnosis") == shown.pop("management") == both
    assert shown.pop("elevation") == shown.pop("site") == ((clinic,), ("clinical close-up",), "clinical")
    assert {*shown} == {*CRITERIA, "score"}
    assert {*shown.values()} == {((derm,), ("dermoscopic",), "dermoscopy")}
    assert "back" in said(examples["1-site"])[1]


def test_every_criterion_is_chosen_from_its_own_vocabulary(tmp_path: Path) -> None:
    values = [(name, value) for name, points in CRITERIA.items() for value in points]
    cases = [
        case(number, **{name: value.replace(" ", "_")}, seven_point_score=f"{CRITERIA[name][value]}")
        for number, (name, value) in enumerate(values)
    ]
    examples, ledger = converted(derm7pt, put(tmp_path, cases))
    assert ledger == []
    for number, (name, value) in enumerate(values):
        question, answer = said(examples[f"{number}-{name}"])
        assert answer == value
        listed = question.rpartition(": ")[2].rstrip("?.").replace(" or ", ", ").split(", ")
        assert sorted(listed) == sorted(CRITERIA[name])
        assert examples[f"{number}-{name}"].facts.kind == name.replace("e_w", "e-w").replace("_", " ")
    spaced = converted(derm7pt, put(tmp_path / "b", [{**row, name: row[name].replace("_", " ")} for row in cases
                                                     for name in ["vascular_structures"]]))[0]  # fmt: skip
    assert {name: said(row)[1] for name, row in spaced.items()} == {
        name: said(row)[1] for name, row in examples.items()
    }
    with pytest.raises(PrepError, match=r"meta\.csv:2 streaks: found 'odd'; expected absent, irregular, regular"):
        converted(derm7pt, put(tmp_path / "c", [case(1, streaks="odd")]))


def test_points_are_those_of_the_checklist() -> None:
    counted = {name: {value: count for value, count in points.items() if count} for name, points in CRITERIA.items()}
    assert counted == {
        "pigment_network": {"atypical": 2},
        "blue_whitish_veil": {"present": 2},
        "vascular_structures": {"dotted": 2, "linear irregular": 2},
        "pigmentation": {"diffuse irregular": 1, "localized irregular": 1},
        "streaks": {"irregular": 1},
        "dots_and_globules": {"irregular": 1},
        "regression_structures": {"blue areas": 1, "white areas": 1, "combinations": 1},
    }


def test_the_score_adds_up_what_it_names(tmp_path: Path) -> None:
    high = {"pigment_network": "atypical", "vascular_structures": "dotted", "regression_structures": "blue areas"}
    cases = [
        *(
            case(1, seven_point_score="5", **high),
            case(2),
            case(3, blue_whitish_veil="present", seven_point_score="2.0"),
        ),
        *(case(4, seven_point_score="4", **high), case(5, streaks="", seven_point_score="0")),
    ]
    examples, ledger = converted(derm7pt, put(tmp_path, cases))
    assert [said(examples[f"{number}-score"])[1] for number in (1, 2, 3)] == [
        "Atypical pigment network 2, atypical vessels 2, regression structures 1: 2 + 2 + 1 = 5.",
        "None of the seven criteria counts: the score is 0.",
        "Blue-whitish veil 2: the score is 2.",
    ]
    detail = "seven_point_score is '4', and the criteria make 5"
    assert Dropped("meta.csv:5 score", "inconsistent-score", detail) in ledger
    assert Dropped("meta.csv:6 score", "unknown-value", "streaks is ''") in ledger
    facts = examples["1-diagnosis"].facts
    assert facts.present == ("atypical pigment network", "atypical vessels", "regression structures")
    assert len(facts.absent) == 4
    assert "irregular streaks" not in {*examples["5-site"].facts.present, *examples["5-site"].facts.absent}


def test_twenty_names_of_diagnoses_make_fifteen_classes(tmp_path: Path) -> None:
    names = [*DERM7PT_NAMES, "miscellaneous"]
    assert (len(names), len({*DERM7PT_NAMES.values()})) == (20, 14)  # and miscellaneous
    cases = [case(number, diagnosis=name.replace(" ", "_")) for number, name in enumerate(names)]
    examples, ledger = converted(derm7pt, put(tmp_path, cases))
    assert [(row.row.split()[1], row.detail) for row in ledger] == [("diagnosis", "diagnosis is 'miscellaneous'")]
    said_of = [said(examples[f"{number}-diagnosis"])[1] for number in range(19)]
    assert all(name in answer for name, answer in zip(DERM7PT_NAMES.values(), said_of, strict=True))
    assert {*DERM7PT_NAMES.values()} == {*CLASSES["derm7pt"]}
    facts = {name: examples[f"{number}-site"].facts for number, name in enumerate(names)}
    assert {facts[name].diagnosis for name in names if name.startswith("melanoma")} == {"melanoma"}
    assert {facts[name].diagnosis for name in names if name.endswith("nevus")} == {"nevus"}
    assert (facts["miscellaneous"].diagnosis, facts["basal cell carcinoma"].malignancy) == (None, "malignant")


def test_files_differ_in_case_are_shared_or_missing(tmp_path: Path) -> None:
    cases = [
        *(case(1), case(2, clinic="C/c1.jpg"), case(3, derm="d/D3.JPG"), case(4, derm="C/c4.jpg"), case(5, clinic="")),
        case(6),
    ]
    raw = put(tmp_path / "raw", cases, {"train": [0, 2, 3, 4, 5], "test": [1]})
    (raw / "images" / "d" / "D3.JPG").unlink()
    photo(raw / "images" / "D" / "d3.jpg")
    (raw / "images" / "D" / "d6.jpg").unlink()
    photo(raw / "images" / "other" / "d6.jpg")  # of another case
    _, examples, ledger = prepared("derm7pt", raw)
    assert examples["1-site"].group == examples["2-streaks"].group
    assert examples["2-streaks"].split == "train"  # it shares a photo with a case to train on
    assert [path.partition("/")[2] for path in examples["3-diagnosis"].images] == ["images/C/c3.jpg", "images/D/d3.jpg"]
    assert [row.rule for row in ledger if row.row.startswith("meta.csv:5")] == ["shared-image"] * len(derm7pt.KINDS)
    assert [row.row.split()[1] for row in ledger if row.row.startswith("meta.csv:6")] == ["elevation", "site"]
    assert examples["5-diagnosis"].facts.views == ("dermoscopic",)
    pair = examples["6-diagnosis"]
    assert (pair.tags, pair.facts.views) == (("fewer-images",), ("clinical close-up",))
    assert not any(name in examples for name in ("6-streaks", "6-score"))  # no criterion of a clinical photo


def test_no_derivatives_reach_publish(tmp_path: Path) -> None:
    _, examples, _ = prepared("derm7pt", put(tmp_path / "raw", [case(1)]))
    terms = licences.of_source(tmp_path / "raw-out")
    assert (terms.derivatives, terms.commercial) == (False, False)
    licence = licences.chosen(licences.read("Apache-2.0"), {"derm7pt": terms})
    assert licence.private == ("derm7pt allows no derivatives (CC-BY-NC-ND-4.0)",)
    assert {row.licence for row in examples.values()} == {"CC-BY-NC-ND-4.0"}
    free = licences.chosen(licences.read("Apache-2.0"), {"derm7pt": licences.read("CC-BY-NC-4.0")})
    assert free.private == ()
    run = finished.run(tmp_path / "run", licence=derm7pt.CARD.licence)
    with pytest.raises(PublishError, match=r"no derivatives.*ham \(CC-BY-NC-ND-4.0\)"):
        publish.main([str(run), "ada/skin"])


def test_raw_is_the_folder_above_meta(tmp_path: Path) -> None:
    put(tmp_path, [case(1)])
    with pytest.raises(PrepError, match="expected images/ and meta/ side by side in RAW"):
        converted(derm7pt, tmp_path / "meta")
    put(tmp_path / "deep" / "release_v0", [case(1)])
    (tmp_path / "meta" / "meta.csv").unlink()
    for name in derm7pt.SPLITS:
        (tmp_path / "meta" / name).unlink()
    examples, _ = converted(derm7pt, tmp_path)
    assert examples["1-site"].images == ("deep/release_v0/images/C/c1.jpg",)


def test_questions_hold_no_answer(tmp_path: Path) -> None:
    cases = [case(number, diagnosis="melanosis", elevation="nodular", location="chest") for number in range(30)]
    examples, _ = converted(derm7pt, put(tmp_path, cases))

    def asked(kind: str) -> set[str]:
        rows: list[Example] = [row for name, row in examples.items() if name.endswith(f"-{kind}")]
        return {words(row.messages[0]) for row in rows}

    assert len(asked("diagnosis")) > 5
    assert not any("chest" in question for question in asked("site"))
    assert not any("3" in question or "0" in question for question in asked("score"))
