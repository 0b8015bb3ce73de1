from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from data_prep import PrepError, mm_skin
from skinvl import prep
from skinvl.example import Dropped, Example, Facts, read, words

CAPTIONS = ("image", "caption", "modality", "sex", "age", "cleaned_caption")


def table(path: Path, *rows: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def questions(raw: Path, *rows: tuple[str, str, str]) -> list[Example | Dropped]:
    table(raw / "VQA.csv", ("image", "question", "answer"), *rows)
    found = list(mm_skin.convert(raw, "vqa"))
    assert mm_skin.rows(raw, "vqa") == len(rows) == len(found)
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
    assert found[2] == Dropped("VQA.csv:4", "duplicate", "the image and question of VQA.csv:2")
    assert isinstance(found[3], Example)


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
    found = list(mm_skin.convert(tmp_path, "caption"))
    assert found == list(mm_skin.convert(tmp_path, "caption"))
    assert mm_skin.rows(tmp_path, "caption") == len(found) == 41
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
    found = questions(tmp_path, *((f"dataset/{name}.png", "q", "a") for name in "abc"))
    images = [row.images[0] for row in found if isinstance(row, Example)]
    assert images == ["a.png", "dataset/b.png", "dataset/c.png"]


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


def test_the_released_test_file(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = shared / "mm_skin", tmp_path / "out"
    account = prep.prepare("mm_skin", raw, out, ["test"])
    assert (account.rows, account.kept) == (5452, 0)
    assert Counter(row.rule for row in account.ledger) == {"missing-image": 5449, "duplicate": 3}
    prep.main(["mm_skin", str(raw), str(out), "--part", "test", "--images", "optional"])
    assert "rows in 5,452 = Examples out 5,449 + ledger 3" in capsys.readouterr().out
    rows = read(out, "test")
    assert not any(row.images for row in rows)
    assert len({row.group for row in rows}) == 4391
    assert Counter(row.facts.kind for row in rows) == {"open": 4126, "closed": 1323}
