from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep import PrepError, dermnet
from helpers.converted import converted
from helpers.raws import image, said
from skinvl.data.example import Example, inside


def test_the_account(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for path in ("train/Eczema Photos/a.jpg", "train/Urticaria  Hives/a.jpg", "test/Eczema Photos/a.jpg"):
        image(raw / "dermnet" / path)
    (raw / "dermnet" / "train" / "Eczema Photos" / "broken.jpg").write_bytes(b"no image")
    (raw / "dermnet" / "train" / "Eczema Photos" / "notes.txt").touch()
    (raw / "dermnet" / "train" / "stray.jpg").touch()
    examples, ledger = converted(dermnet, raw)
    assert not ledger
    made = {row.images[0]: row for row in examples.values()}
    assert {path: row.split for path, row in made.items()} == {
        "dermnet/test/Eczema Photos/a.jpg": "test",
        "dermnet/train/Eczema Photos/a.jpg": "train",
        "dermnet/train/Eczema Photos/broken.jpg": "train",
        "dermnet/train/Urticaria  Hives/a.jpg": "train",
    }
    assert len({row.group for row in made.values()}) == 4
    assert "Urticaria Hives" in said(made["dermnet/train/Urticaria  Hives/a.jpg"])[1]


def test_a_folder_that_is_no_class_is_named(tmp_path: Path) -> None:
    image(tmp_path / "test" / "Cats" / "a.jpg")
    with pytest.raises(PrepError, match="Cats: found a folder of photos called 'Cats'; expected one of the 23 classes"):
        list(dermnet.convert(tmp_path, "vqa"))


def test_a_folder_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"no folder train or test in it or below it\. How to get DermNet"):
        list(dermnet.convert(tmp_path, "vqa"))


def test_a_name_that_is_no_text_becomes_a_path_that_prep_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "Eczema Photos"
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"\xff.jpg")).touch()
    (row,) = (row for row in dermnet.convert(tmp_path, "vqa") if isinstance(row, Example))
    assert not inside(row.images[0])
    assert row.images[0].encode()
