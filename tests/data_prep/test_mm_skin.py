from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep import PrepError, Shard, mm_skin
from helpers.converted import outcomes
from skinvl.data.example import Dropped, Example, Facts, words

CAPTIONS, COLUMNS = (
    ("image", "caption", "modality", "sex", "age", "cleaned_caption"),
    ("image", "atributes", "categories"),
)


def table(path: Path, *rows: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def questions(raw: Path, *rows: tuple[str, str, str]) -> list[Example | Dropped]:
    table(raw / "VQA.csv", ("image", "question", "answer"), *rows)
    found = outcomes(mm_skin, raw, "vqa")
    assert len(rows) == len(found)
    return found


def test_empty_and_repeated_rows_go_to_the_ledger(tmp_path: Path) -> None:
    rows = [
        ("a.png", "What?", "A nevus."),
        ("a.png", " ", "Yes."),
        ("a.png", "What?", "A mole."),
        ("b.png", "What?", "x"),
    ]
    found = questions(tmp_path, *rows)
    assert found[1] == Dropped("VQA.csv:3", "empty", "no question")
    one, again, other = (row for row in found if isinstance(row, Example))
    assert (one.id == again.id, one.id == other.id) == (True, False)
    assert words(again.messages[1]) == "A mole."


def test_yes_no_questions_are_closed(tmp_path: Path) -> None:
    answers = ("Yes, it is.", "No.", "Nodules are seen.", "A yes.")
    found = questions(tmp_path, *((f"{answer}.png", "Is it?", answer) for answer in answers))
    assert [row.facts.kind for row in found if isinstance(row, Example)] == ["closed", "closed", "open", "open"]


def test_what_the_caption_file_knows_is_joined(tmp_path: Path) -> None:
    table(
        tmp_path / "deep" / "caption.csv",
        CAPTIONS,
        ("dataset/a.png", "c", "Skin", "F", "45", ""),
        ("dataset/b.png", "c", "pathology", "", "infant", ""),
    )
    found = questions(tmp_path, ("dataset/a.png", "q", "a"), ("b.png", "q", "a"), ("dataset/c.png", "q", "a"))
    assert [row.facts for row in found if isinstance(row, Example)] == [
        Facts(modality="clinical", sex="female", age=45.0, kind="open"),
        Facts(modality="pathology", kind="open"),
        Facts(kind="open"),
    ]


def test_captions_prefer_the_cleaned_text_and_vary_the_wording(tmp_path: Path) -> None:
    rows = [(f"dataset/{number}.png", f"raw {number}", "skin", "", "", "clean" * (number % 2)) for number in range(40)]
    table(tmp_path / "caption.csv", CAPTIONS, *rows, ("dataset/x.png", "", "skin", "", "", ""))
    found = outcomes(mm_skin, tmp_path, "caption")
    assert found == list(mm_skin.convert(tmp_path, "caption"))
    assert len(found) == 41
    made = [row for row in found if isinstance(row, Example)]
    assert [words(row.messages[1]) for row in made[:3]] == ["raw 0", "clean", "raw 2"]
    assert len({words(row.messages[0]) for row in made}) == len(mm_skin.INSTRUCTIONS)
    assert found[-1] == Dropped("caption.csv:42", "empty", "no caption")


def test_an_unknown_modality_is_named(tmp_path: Path) -> None:
    table(tmp_path / "caption.csv", CAPTIONS, ("a.png", "c", "skin", "", "", ""), ("b.png", "c", "X-ray", "", "", ""))
    with pytest.raises(PrepError, match=r"caption\.csv:3 modality: found 'X-ray'; expected one of clinical"):
        list(mm_skin.convert(tmp_path, "caption"))


def test_the_folder_that_the_tables_name_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "b.png").touch()
    (tmp_path / "b.png").touch()
    found = questions(tmp_path, *((f"dataset/{name}.png", "q", "a") for name in "abc"), ("a.png", "q", "a"))
    images = [row.images[0] for row in found if isinstance(row, Example)]
    assert images == ["a.png", "dataset/b.png", "dataset/c.png", "a.png"]


def test_panels_of_one_figure_are_one_group(tmp_path: Path) -> None:
    table(
        tmp_path / "caption.csv",
        CAPTIONS,
        ("bk2_3_8_a.png", "c", "skin", "", "", ""),
        ("bk2_3_8_b.png", "c", "pathology", "", "", ""),
    )
    names = ("bk2_3_8_a", "bk2_3_8_b", "bk2_3_8", "bk3_c5_3_q", "bk3_c5_3", "bk2_3", "ab_c", "bk_a")
    found = [
        row for row in questions(tmp_path, *((f"{name}.png", "q", "a") for name in names)) if isinstance(row, Example)
    ]
    assert [row.group for row in found] == [*["bk2_3_8"] * 3, *["bk3_c5_3"] * 2, "bk2_3", "ab_c", "bk_a"]
    assert [row.facts.modality for row in found[:3]] == ["clinical", "pathology", None]


def test_files_are_found_by_name_and_must_be_the_data(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"no file VQA\.csv in it or below it\. How to get MM-Skin"):
        mm_skin.rows(tmp_path, "vqa")
    for folder in ("a", "b"):
        table(tmp_path / folder / "VQA.csv", ("image", "question", "answer"))
    with pytest.raises(PrepError, match=r"2 files are called VQA\.csv \(a/VQA\.csv, b/VQA\.csv\)"):
        mm_skin.rows(tmp_path, "vqa")
    (tmp_path / "MM-Skin_test.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(PrepError, match="Git LFS pointer of 63 bytes"):
        mm_skin.rows(tmp_path, "test")


def test_the_released_test_file(shared: Path) -> None:
    found = outcomes(mm_skin, shared / "mm_skin", "test")
    rows = {row.id: row for row in found if isinstance(row, Example)}
    assert (len(found), len(rows)) == (5452, 5452 - 3)
    assert {row.split for row in rows.values()} == {"test"}
    assert len({row.images for row in rows.values()}) == 4391
    assert len({row.group for row in rows.values()}) == 4318
    assert Counter(row.facts.kind for row in rows.values()) == {"open": 4126, "closed": 1323}


def talk(*turns: str, **entry: object) -> dict[str, object]:
    said = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(turns)]
    return {**entry, "conversations": said}


def test_llava_lists_are_read_together(tmp_path: Path) -> None:
    table(tmp_path / "caption.csv", CAPTIONS, ("dataset/a.png", "c", "pathology", "", "", ""))
    one = talk("<image>\nIs it raised?", "Yes.", id="7", image="a.png")
    pair = talk("<image><image> Compare.", "Alike.", "Sure?", "No.", image=["dataset/a.png", "b.png"])
    lists = {
        "vqa_MM.json": [one, pair, talk("What is acne?", "A disease.")],
        "vqa_PubMM.json": [pair, talk("<image> x", "y"), one],
        "deep/vqa_test.json": [one],
    }
    for name, entries in lists.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(entries))
    found = outcomes(mm_skin, tmp_path, "json")
    assert len(found) == 7
    assert found.pop(5) == Dropped("vqa_PubMM.json[1]", "image-count", "1 placeholders and 0 images")
    test, first, two, plain, two_again, first_again = (row for row in found if isinstance(row, Example))
    assert (two_again, first_again) == (two, first)
    assert (test.split, test.group, test.facts.kind) == ("test", "a", "closed")
    assert (first.split, first.images, first.facts) == ("train", ("a.png",), Facts(modality="pathology", kind="closed"))
    assert (two.images, two.group, len(two.messages)) == (("dataset/a.png", "b.png"), "a + b", 4)
    assert (plain.images, plain.group) == ((), plain.id)


def test_a_llava_list_in_lfs_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"no file vqa_\*\.json in it or below it\. How to get MM-Skin"):
        mm_skin.rows(tmp_path, "json")
    (tmp_path / "vqa_MM.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(PrepError, match=r"vqa_MM\.json: a Git LFS pointer of 63 bytes"):
        mm_skin.rows(tmp_path, "json")


def classes(raw: Path, name: str, columns: tuple[str, ...], *rows: tuple[str, ...]) -> list[Example | Dropped]:
    table(raw / "classification" / name, columns, *rows)
    return outcomes(mm_skin, raw, "classification")


def test_classes_are_asked_with_the_list_of_their_file(tmp_path: Path) -> None:
    rows = [
        (f"BCN20000/ISIC_{number:07}.jpg", "[]", f"['{'nevus' if number % 2 else 'other'}']") for number in range(30)
    ]
    found = classes(tmp_path, "BCN20000_test.csv", COLUMNS, *rows)
    made = [row for row in found if isinstance(row, Example)]
    assert [words(row.messages[1]) for row in made] == ["other", "nevus"] * 15
    asked = {words(row.messages[0]) for row in made}
    assert asked == {
        question.format(options=options)
        for question in mm_skin.QUESTIONS
        for options in ("nevus or other", "other or nevus")
    }
    assert made[0].group == "ISIC_0000000"
    assert [row.facts for row in made[:2]] == [
        Facts(modality="dermoscopy", kind="diagnosis"),
        Facts(modality="dermoscopy", diagnosis="nevus", malignancy="benign", kind="diagnosis"),
    ]
    table(tmp_path / "classification" / "BCN20000_test.csv", COLUMNS, *((*row[:2], "['scar']") for row in rows))
    with pytest.raises(PrepError, match=r"BCN20000_test\.csv categories: only the class 'scar' occurs"):
        list(mm_skin.convert(tmp_path, "classification"))


def test_a_question_of_classes_does_not_depend_on_its_answer(tmp_path: Path) -> None:
    labels = ("nevus", "other")
    rest = [(f"{label}.jpg", "[]", f"['{label}']") for label in labels]
    for number in range(20):
        tables = [((f"{number}.jpg", "[]", f"['{label}']"), *rest) for label in labels]
        made = (classes(tmp_path, "ISIC_test.csv", COLUMNS, *rows)[0] for rows in tables)
        one, two = (row.messages for row in made if isinstance(row, Example))
        assert one[0] == two[0]
        assert one[1] != two[1]


def test_a_shard_asks_with_the_classes_of_all(tmp_path: Path) -> None:
    labels = ("nevus", "melanoma", "scar")
    classes(tmp_path, "ISIC_test.csv", COLUMNS, *((f"{label}.jpg", "[]", f"['{label}']") for label in labels))
    (row,) = mm_skin.convert(tmp_path, "classification", Shard(2, 3, block=1))
    assert isinstance(row, Example)
    assert all(label in words(row.messages[0]) for label in labels)


def test_fields_of_classes_are_parsed_and_never_run(tmp_path: Path) -> None:
    path = "Dermnet/Light Diseases and Disorders of Pigmentation/a b.jpg"
    found = classes(
        tmp_path,
        "Dermnet_test.csv",
        COLUMNS,
        (path, "[]", "['Urticaria  Hives']"),
        ("b.jpg", "[]", "[]"),
        ("c.jpg", "[]", "['scar', 'nevus']"),
        ("d.jpg", "[]", "[__import__('os').remove('x')]"),
        ("e.jpg", "[]", "[" * 900),
        ("f.jpg", "[]", "['\\ud800']"),
        (" ", "[]", "['nevus']"),
        (path, "[]", "['nevus']"),
    )
    assert isinstance(found[0], Example)
    assert (found[0].images, words(found[0].messages[1])) == ((path,), "Urticaria Hives")
    rules = [(row.row, row.rule) for row in found if isinstance(row, Dropped)]
    assert rules == [
        ("Dermnet_test.csv:3", "unknown-value"),
        ("Dermnet_test.csv:4", "several-classes"),
        ("Dermnet_test.csv:5", "malformed"),
        ("Dermnet_test.csv:6", "malformed"),
        ("Dermnet_test.csv:7", "malformed"),
        ("Dermnet_test.csv:8", "empty"),
    ]
    assert isinstance(found[-1], Example)
    assert found[-1].id == found[0].id


def test_patch16_gives_its_sets_and_slides(tmp_path: Path) -> None:
    columns = ("image", "attributes", "categories", "set")
    tiles = [f"Patch16/{kind}_skin/{kind}_skin_ws_92_{number}.jpg" for number, kind in enumerate(("tumor", "nontumor"))]
    rows = [(tiles[0], "[]", "['tumor']", "Validation"), (tiles[1], "[]", "['nontumor']", "Test")]
    found = classes(tmp_path, "Patch16_2class_val.csv", columns, *rows)
    assert [(row.split, row.group, row.facts.modality) for row in found if isinstance(row, Example)] == [
        ("validation", "Patch16/ws_92", "pathology"),
        ("test", "Patch16/ws_92", "pathology"),
    ]
    with pytest.raises(PrepError, match=r"Patch16_2class_val\.csv:2 set: found 'Third'; expected test, train"):
        classes(tmp_path, "Patch16_2class_val.csv", columns, (tiles[0], "[]", "['tumor']", "Third"), *rows)


def test_the_released_classification_files(shared: Path) -> None:
    found = outcomes(mm_skin, shared / "mm_skin", "classification")
    rows = list({row.id: row for row in found if isinstance(row, Example)}.values())
    assert len(found) == len(rows) == 3790 + 132 + 1511
    assert {row.split for row in rows} == {"test"}
    assert Counter(words(row.messages[1]) for row in rows if row.facts.kind == "malignancy") == {
        "Non-Malignant": 98,
        "Malignant": 34,
    }
    assert Counter(row.facts.diagnosis for row in rows)["nevus"] == 1170 + 908
    assert Counter(row.facts.modality for row in rows) == {"dermoscopy": 5301, "clinical": 132}
