from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from data_prep import PrepError, skincon
from helpers.converted import converted
from helpers.raws import said
from skinvl.data.example import Example
from skinvl.data.options import chosen

COLUMNS = [concept.capitalize() for concept in skincon.CONCEPTS]
COLUMNS[COLUMNS.index("Brown (hyperpigmentation)")] = "Brown(Hyperpigmentation)"
COLUMNS[COLUMNS.index("Wheal")] = " Wheal "  # with stray blanks, as some names are published
COLUMNS[COLUMNS.index("Flat topped")] = "Flat topped\u00a0"


def put(path: Path, *rows: dict[str, str]) -> Path:
    """A file as published: an unnamed column of numbers, then the name of the photo, the concepts and the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", "ImageID", *COLUMNS, "Do not consider this image"])
        for number, row in enumerate(rows):
            flags = [row.get(concept, "0") for concept in skincon.CONCEPTS]
            writer.writerow([number, row["image"], *flags, row.get("ignore", "0")])
    return path


def raw(folder: Path, *rows: dict[str, str], part: str = "fitzpatrick17k") -> Path:
    put(folder / "raw" / f"annotations_{part}.csv", *rows)
    return folder / "raw"


def photo(number: int, *present: str, **more: str) -> dict[str, str]:
    return {"image": f"{number:032x}.jpg", **dict.fromkeys(present, "1"), **more}


def test_there_are_48_concepts() -> None:
    assert len({*skincon.CONCEPTS}) == len(skincon.CONCEPTS) == 48


def test_four_questions_about_what_a_photo_shows(tmp_path: Path) -> None:
    folder = raw(tmp_path, photo(1, "scale", "plaque", "wheal", scar="", nodule="x"))
    examples, ledger = converted(skincon, folder, "fitzpatrick17k")
    assert ledger == []
    name = f"{1:032x}"
    every, one, yes, no = (examples[f"{name}-{kind}"] for kind in skincon.KINDS)
    assert every.facts.present == ("plaque", "wheal", "scale")
    assert {"scar", "nodule"}.isdisjoint((*every.facts.present, *every.facts.absent))  # what is neither is not known
    assert len(every.facts.absent) == 43
    assert {every.options[number] for number in every.right} == {"plaque", "wheal", "scale"}
    assert len(every.options) == 46
    assert len(one.options) == 4
    assert [option in every.facts.present for option in one.options].count(True) == len(one.right) == 1
    for row in (every, one):
        question, answer = said(row)
        assert chosen(answer, question, row.options) == frozenset(row.right)
    assert any(f": {concept}?" in said(yes)[0] for concept in every.facts.present)
    assert any(f": {concept}?" in said(no)[0] for concept in every.facts.absent)
    assert (said(yes)[1], said(no)[1]) == ("Yes.", "No.")
    assert {row.facts.kind for row in examples.values()} == {"concept"}


def test_wrong_options_are_first_of_the_family(tmp_path: Path) -> None:
    examples, _ = converted(skincon, raw(tmp_path, photo(1, "erythema")), "fitzpatrick17k")
    options = {*examples[f"{1:032x}-choice"].options}
    assert {"erythema", "telangiectasia", "purpura/petechiae"} < options


def test_what_should_not_be_considered_and_what_shows_nothing(tmp_path: Path) -> None:
    rows = photo(1, "scale", ignore="1"), photo(2), photo(3, *skincon.CONCEPTS), {"image": "", "scale": "1"}
    examples, ledger = converted(skincon, raw(tmp_path, *rows), "fitzpatrick17k")
    assert examples == {}
    assert Counter(row.rule for row in ledger) == {"not-considered": 4, "unknown-value": 8, "empty": 4}
    with pytest.raises(PrepError, match=r"csv:2 Do not consider this image: found 'maybe'; expected 0, 0.0, 1, "):
        list(skincon.convert(raw(tmp_path, photo(1, ignore="maybe")), "fitzpatrick17k"))


def test_both_tables_and_the_other_name_of_the_column(tmp_path: Path) -> None:
    folder = raw(tmp_path, {"image": "000001.png", "scale": "1.0"}, part="ddi")
    path = folder / "annotations_ddi.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("ImageID", "DDI_file"), encoding="utf-8")
    examples, _ = converted(skincon, folder, "ddi")
    assert examples["000001-list"].images == ("000001.png",)
    path.write_text(path.read_text(encoding="utf-8").replace("Wheal", "Weal"), encoding="utf-8")
    with pytest.raises(PrepError, match="no column wheal; found , DDI_file, Macule, "):
        list(skincon.convert(folder, "ddi"))
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(PrepError, match="no column ImageID or DDI_file, Do not consider this image, macule, "):
        list(skincon.convert(folder, "ddi"))


def test_no_concept_is_known_by_its_answer(tmp_path: Path) -> None:
    """Each is asked for a no about as often as for a yes, though few are in most photos."""
    rows = [photo(number, "erythema" if number % 3 else "papule", "scale") for number in range(600)]
    made = [row for row in skincon.convert(raw(tmp_path, *rows), "fitzpatrick17k") if isinstance(row, Example)]
    asked: dict[str, Counter[str]] = {"Yes.": Counter(), "No.": Counter()}
    for row in made:
        question, answer = said(row)
        if answer in asked:
            asked[answer][next(name for name in skincon.CONCEPTS if f": {name}?" in question)] += 1
    assert asked["Yes."].total() == asked["No."].total() == 600
    assert {*asked["No."]} == {"erythema", "papule"}  # what all photos show can be lacked by none
    assert asked["No."]["papule"] > asked["Yes."]["papule"] > 50
    unweighted = 600 / 46  # how many a concept would get of an even draw, which no photo shows
    assert asked["No."]["erythema"] > 5 * unweighted
