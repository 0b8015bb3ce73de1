"""Columns and files that RAW need not hold: said once where they are not there, with what is."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import PrepError, absent, derm1m, derm12345, mm_skin, names, slice_3d
from helpers.raws import table
from skinvl.sources import prep


def test_a_converter_without_optional_columns_says_nothing(tmp_path: Path) -> None:
    assert absent("ham10000", tmp_path, "vqa") == []
    assert {"isic", "derm12345", "slice_3d", "mm_skin", "derm1m"} <= {*names()}


def test_a_table_without_the_lesion(tmp_path: Path) -> None:
    table(tmp_path / slice_3d.METADATA, [dict.fromkeys(slice_3d.COLUMNS, "")])
    sentence, files = absent("slice_3d", tmp_path, "tiles")
    assert files == "no file train-image.hdf5, so that each tile is looked for as a JPEG file"
    (tmp_path / slice_3d.ARCHIVE).touch()
    assert absent("slice_3d", tmp_path, "tiles") == [sentence]
    assert sentence.startswith("train-metadata.csv: no column attribution, copyright_license, lesion_id, iddx_5 or ")
    for name in derm12345.FILES:
        table(tmp_path / name, [dict.fromkeys(derm12345.COLUMNS, "")])
    assert [sentence.partition(":")[0] for sentence in absent("derm12345", tmp_path, "vqa")] == [*derm12345.FILES]


def test_classification_files_without_a_set_are_named_together(tmp_path: Path) -> None:
    plain, more = {"image": "a", "categories": "['b']"}, {"image": "a", "categories": "['b']", "set": "train"}
    for name, row in (("a", plain), ("b", plain), ("c", more)):
        table(tmp_path / "classification" / f"{name}.csv", [row])
    assert mm_skin.absent(tmp_path, "classification") == [
        "a.csv, b.csv: no column set, so that every row is of the split test; found image, categories"
    ]


def test_files_beside_the_tables(tmp_path: Path) -> None:
    table(tmp_path / "Derm1M_v2.csv", [dict.fromkeys(derm1m.COLUMNS, "")])
    assert derm1m.absent(tmp_path, "caption") == []
    assert derm1m.absent(tmp_path, "hierarchy") == [
        f"no file ontology.json in {tmp_path}, so that the column hierarchical_disease_label alone says it"
    ]
    (tmp_path / "concept.csv").touch()
    assert derm1m.absent(tmp_path, "concept") == []
    assert mm_skin.absent(tmp_path, "vqa") == ["no file caption.csv, so that modality, age and sex are unknown"]


def test_a_file_or_other_separators_for_what_is_expected_are_named(tmp_path: Path) -> None:
    (tmp_path / slice_3d.METADATA).write_text(";".join(slice_3d.COLUMNS) + "\n")
    with pytest.raises(PrepError, match="its fields are parted by ';': save it with commas"):
        list(slice_3d.convert(tmp_path, "tiles"))
    with pytest.raises(PrepError, match=r"a file; expected the folder that holds train-metadata\.csv"):
        slice_3d.rows(tmp_path / slice_3d.METADATA, "tiles")


def test_prep_says_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"isic_id": f"ISIC_{number}", "diagnosis": "nevus", "skin": "II"} for number in range(3)]
    table(tmp_path / "raw" / "metadata.csv", rows)
    assert prep.main(["isic", str(tmp_path / "raw"), str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("fitzpatrick_skin_type") == shown.count("found isic_id, diagnosis, skin") == 1
