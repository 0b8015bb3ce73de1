from __future__ import annotations

from pathlib import Path

import pytest
from raws import image, prepared, said

from data_prep import PrepError, dermnet


def test_the_account(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for path in ("train/Eczema Photos/a.jpg", "train/Urticaria  Hives/a.jpg", "test/Eczema Photos/a.jpg"):
        image(raw / "dermnet" / path)
    (raw / "dermnet" / "train" / "Eczema Photos" / "broken.jpg").write_bytes(b"no image")
    (raw / "dermnet" / "train" / "Eczema Photos" / "notes.txt").touch()
    (raw / "dermnet" / "train" / "stray.jpg").touch()
    rows, examples, ledger = prepared("dermnet", raw)
    assert rows == 4
    assert [row.rule for row in ledger] == ["unreadable-image"]
    made = {row.images[0]: row for row in examples.values()}
    assert {path: row.split for path, row in made.items()} == {
        "images/dermnet/test/Eczema Photos/a.jpg": "test",
        "images/dermnet/train/Eczema Photos/a.jpg": "train",
        "images/dermnet/train/Urticaria  Hives/a.jpg": "train",
    }
    assert len({row.group for row in made.values()}) == 3
    assert "Urticaria Hives" in said(made["images/dermnet/train/Urticaria  Hives/a.jpg"])[1]


def test_a_folder_that_is_no_class_is_named(tmp_path: Path) -> None:
    image(tmp_path / "test" / "Cats" / "a.jpg")
    with pytest.raises(PrepError, match="Cats: found a folder of photos called 'Cats'; expected one of the 23 classes"):
        list(dermnet.convert(tmp_path, "vqa"))


def test_a_folder_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrepError, match=r"no folder train or test in it or below it\. How to get DermNet"):
        list(dermnet.convert(tmp_path, "vqa"))
