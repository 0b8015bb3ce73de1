from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep import slice_3d
from helpers.converted import converted
from helpers.raws import image, prepared, table
from skinvl.data.example import Facts

ROW = {"isic_id": "ISIC_1", "target": "0", "patient_id": "IP_1", "age_approx": "60.0", "sex": "male"}
ROW |= {"anatom_site_general": "lower extremity", "clin_size_long_diam_mm": "3.04", "image_type": "TBP tile: close-up"}
ROW |= {"tbp_lv_A": "20.2", "attribution": "Clinic A", "copyright_license": "CC-BY", "lesion_id": ""}
ROW |= {"iddx_full": "Benign", "iddx_1": "Benign", "iddx_2": "", "iddx_3": "", "iddx_4": "", "iddx_5": ""}


def raw_folder(raw: Path, *rows: dict[str, str]) -> Path:
    """RAW with the metadata of these rows and an archive of their tiles."""
    rows = tuple({**ROW, **row} for row in rows)
    table(raw / slice_3d.METADATA, rows)
    image(raw.parent / "tile.jpg")
    tile = (raw.parent / "tile.jpg").read_bytes()
    with h5py.File(raw / slice_3d.ARCHIVE, "w") as file:
        for name in {row["isic_id"] for row in rows}:
            file[name] = np.void(tile)
    return raw


def test_tiles_of_the_archive(tmp_path: Path) -> None:
    cancer = {"target": "1", "lesion_id": "IL_9", "iddx_1": "Malignant", "iddx_3": "Melanoma, NOS"}
    raw = raw_folder(
        tmp_path / "raw",
        {},
        {"isic_id": "ISIC_2", "age_approx": "NA", "sex": "", "anatom_site_general": ""},
        {"isic_id": "ISIC_3", **cancer},
        {"isic_id": "ISIC_4", "patient_id": "IP_2", "copyright_license": "CC-0"},
    )
    total, examples, ledger = prepared("slice_3d", raw)
    assert (total, len(examples)) == (8, 7)
    assert Counter(row.rule for row in ledger) == {"unknown-value": 1}
    first = examples["ISIC_1-malignancy"]
    assert first.facts == Facts(
        *("clinical", None, "benign", None, 60.0, "male", "lower extremity", "malignancy"), institution="Clinic A"
    )
    assert first.images == ("images/train-image.hdf5/ISIC_1.jpg",)
    assert (first.group, examples["ISIC_3-site"].group) == ("IP_1", "IP_1")
    assert examples["ISIC_3-site"].facts.diagnosis == "melanoma"
    assert (first.licence, examples["ISIC_4-site"].licence) == ("CC-BY-4.0", "CC0-1.0")
    # What training alone knows of a tile is no question's words.
    words = [str(message) for row in examples.values() for message in row.messages]
    assert not any("3.04" in line or "tbp" in line for line in words)


def test_tiles_as_files(tmp_path: Path) -> None:
    table(tmp_path / "raw" / slice_3d.METADATA, [ROW])
    image(tmp_path / "raw" / "train-image" / "image" / "ISIC_1.jpg")
    examples, _ = converted(slice_3d, tmp_path / "raw", "tiles")
    assert examples["ISIC_1-site"].images == ("train-image/image/ISIC_1.jpg",)


def _no_value(file: h5py.File, elsewhere: Path) -> None:
    file["ISIC_1"] = np.zeros((2, 2))


def _a_folder(file: h5py.File, elsewhere: Path) -> None:
    file.create_group("ISIC_1")


def _a_link(file: h5py.File, elsewhere: Path) -> None:
    file["ISIC_1"] = h5py.ExternalLink(str(elsewhere / slice_3d.ARCHIVE), "ISIC_1")


def _external(file: h5py.File, elsewhere: Path) -> None:
    tile = elsewhere.parent / "tile.jpg"
    size = tile.stat().st_size
    file.create_dataset("ISIC_1", (1,), dtype=f"V{size}", external=[(str(tile), 0, size)])


@pytest.mark.parametrize("fault", [_no_value, _a_folder, _a_link, _external])
def test_nothing_but_a_value_in_the_archive_itself_is_an_image(tmp_path: Path, fault: Any) -> None:
    elsewhere = raw_folder(tmp_path / "elsewhere", {})
    raw = raw_folder(tmp_path / "raw", {})
    with h5py.File(raw / slice_3d.ARCHIVE, "w") as file:
        fault(file, elsewhere)
    _, examples, ledger = prepared("slice_3d", raw)
    assert not examples
    assert {row.rule for row in ledger} == {"unreadable-image"}


def test_a_tile_that_the_archive_lacks(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", {"isic_id": "ISIC_2"})
    table(raw / slice_3d.METADATA, [ROW])
    _, examples, ledger = prepared("slice_3d", raw)
    assert not examples
    assert {row.rule for row in ledger} == {"missing-image"}


def test_without_h5py_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skinvl.sources.prepare.images import look

    raw = raw_folder(tmp_path / "raw", {})
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'skinvl[hdf5]'" in look(raw, f"{slice_3d.ARCHIVE}#ISIC_1", tmp_path / "out").detail
