"""Which file a table means by a name: several that differ stop prep, and one that ends otherwise is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import data_prep
from data_prep import Photos, PrepError, Shard, ddi, derm12345, ham10000, pad_ufes_20, patch16, scin
from skinvl.data.example import read
from skinvl.sources.prepare.steps import prepare
from skinvl.sources.prepare.writer import Account

# A row of each table that names its images, by dataset: part, file, header, row, and the image's name there.
TILE = "tumor_skin_melanoma_melanoma"
TABLES = {
    "ddi": ("vqa", "ddi_metadata.csv", ddi.COLUMNS, "000001.png,56,True,melanoma", "000001.png"),
    "ham10000": ("vqa", ham10000.FILE, ham10000.COLUMNS, "HAM_1,ISIC_0000001,nv,80,male,back", "ISIC_0000001.jpg"),
    "pad_ufes_20": (
        *("vqa", "metadata.csv", pad_ufes_20.COLUMNS),
        *("PAT_9,55,FEMALE,PAT_9_1_2.png,NEV,ARM,True,UNK,False,False,False,2.0,True", "PAT_9_1_2.png"),
    ),
    "fitzpatrick17k": (
        *("vqa", "fitzpatrick17k.csv"),
        ("md5hash", "fitzpatrick_scale", "label", "nine_partition_label", "three_partition_label", "qc"),
        *("0a1b,2,melanoma,malignant melanoma,malignant,", "0a1b.jpg"),
    ),
    "patch16": ("vqa", "tiles-v2.csv", patch16.COLUMNS, f"tile_1.jpg,{TILE},Test,tumor", "tile_1.jpg"),
    "isic": (
        *("archive", "metadata.csv", ("isic_id", "diagnosis", "benign_malignant")),
        *("ISIC_0000001,melanoma,malignant", "ISIC_0000001.jpg"),
    ),
    "derm12345": (
        *("vqa", derm12345.FILES[0], derm12345.COLUMNS),
        *("DERM_1,PID_7,train,melanocytic,benign,banal,blue,bdb", "DERM_1.jpg"),
    ),
}


def picture(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


def download(raw: Path, name: str) -> tuple[str, str]:
    """The part to convert, and the image's name; RAW holds the table."""
    part, file, columns, row, image = TABLES[name]
    raw.mkdir(parents=True)
    (raw / file).write_text(",".join(columns) + f"\n{row}\n")
    if name == "derm12345":
        (raw / derm12345.FILES[1]).write_text(",".join(columns) + "\n")
    return part, image


@pytest.mark.parametrize("name", sorted(TABLES))
def test_files_of_one_name_that_differ_stop_prep_and_a_folder_is_picked(name: str, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    part, image = download(raw, name)
    picture(raw / "masks" / image, "white")
    picture(raw / "photos" / image, "tan")
    with pytest.raises(PrepError) as stopped:
        prepare(name, raw, out, [part])
    assert f"{image} may be masks/{image} or photos/{image}, which differ" in str(stopped.value)
    assert "--images masks or --images photos" in str(stopped.value)
    assert not out.exists()
    assert prepare(name, raw, out, [part], images="photos") is not None
    assert {row.images for split in ("train", "test") for row in rows(out, split)} == {(f"images/photos/{image}",)}


def rows(out: Path, split: str) -> list[data_prep.Example]:
    return read(out, split) if (out / f"{split}.parquet").exists() else []


def test_scin_and_dermasynth_stop_too(tmp_path: Path) -> None:
    row = dict.fromkeys(scin.COLUMNS, "") | {"case_id": "-7", "image_1_path": "dataset/images/1.png"}
    for folder in ("a", "b"):
        picture(tmp_path / "scin" / folder / "1.png", "tan" if folder == "a" else "white")
    (tmp_path / "scin" / scin.CASES).write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    (tmp_path / "scin" / scin.LABELS).write_text("case_id,weighted_skin_condition_label\n-7,{'Eczema': 1.0}\n")
    with pytest.raises(PrepError, match=r"may be a/1\.png or b/1\.png, which differ"):
        list(scin.convert(tmp_path / "scin", "vqa"))
    picture(tmp_path / "scin" / "images" / "1.png", "red")  # its path says more
    (made, *_) = scin.convert(tmp_path / "scin", "vqa")
    assert made.images == ("images/1.png",)  # type: ignore[union-attr]

    entry = {"image_id": "1", "image_path": "/home/x/set/1.jpg", "q1_general_question": "Which?"}
    entry["q1_general_response"] = json.dumps({"answer": "Red."})
    for folder in ("a", "b"):
        picture(tmp_path / "derma" / folder / "1.jpg", "tan" if folder == "a" else "white")
    (tmp_path / "derma" / "1.json").write_text(json.dumps(entry))
    with pytest.raises(PrepError, match=r"set/1\.jpg may be a/1\.jpg or b/1\.jpg"):
        list(data_prep.load("dermasynth").convert(tmp_path / "derma", "response"))


def test_equal_bytes_pass_and_so_does_one_of_two_stems(tmp_path: Path) -> None:
    for folder in ("part_1", "part_2"):
        picture(tmp_path / folder / "x.png", "tan")
    picture(tmp_path / "x.bmp", "white")  # another ending, where the very name is there
    assert Photos(tmp_path, None).shown("x.png") == (("part_1/x.png",), ())


def test_another_ending_stands_in_only_where_it_is_the_one_file(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png", "tan")
    assert Photos(tmp_path, None).shown("x.jpg", "y.jpg") == (("a/x.png", "y.jpg"), ("other-ending",))
    picture(tmp_path / "b" / "x.bmp", "tan")
    with pytest.raises(PrepError, match=r"x\.jpg may be a/x\.png or b/x\.bmp, which differ"):
        Photos(tmp_path, None).shown("x.jpg")
    assert Photos(tmp_path, Shard(images="b")).shown("x.jpg") == (("b/x.bmp",), ("other-ending",))


def test_the_folders_of_a_name_tell_files_apart_from_the_innermost_outwards(tmp_path: Path) -> None:
    for number, path in enumerate(("a/u/x.png", "b/u/x.png", "b/v/x.png", "x.png")):
        picture(tmp_path / path, ("tan", "red", "white", "black")[number])
    photos = Photos(tmp_path, None)
    assert photos.shown("/home/b/u/x.png")[0] == ("b/u/x.png",)
    assert photos.shown("a/w/x.png")[0] == ("a/u/x.png",)
    for name in ("x.png", "c/x.png", "c/u/x.png"):
        with pytest.raises(PrepError, match="which differ"):
            photos.shown(name)


def test_the_account_counts_what_stands_in_and_it_can_be_dropped(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    part, image = download(raw, "isic")
    picture((raw / image).with_suffix(".png"), "tan")
    account = prepare("isic", raw, out, [part])
    assert isinstance(account, Account)
    assert account.tags == {"other-ending": account.examples.total()}
    dropped = prepare("isic", raw, out, [part], drop=["other-ending"])
    assert isinstance(dropped, Account)
    assert dropped.ledger["other-ending"] == account.examples.total()
    assert "it shows ISIC_0000001.png" in (out / "ledger.jsonl").read_text()


def test_a_folder_of_images_that_means_nothing_is_refused(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    part, _ = download(raw, "isic")
    for folder in ("photos", "../raw", str(raw)):
        with pytest.raises(PrepError, match="no such folder in"):
            prepare("isic", raw, out, [part], images=folder)
    with pytest.raises(PrepError, match="llava says where its images lie"):
        prepare("llava", raw, out, images="photos")
    (raw / "mcq").mkdir()
    (raw / "mcq" / "a.json").write_text("[]")
    with pytest.raises(PrepError, match="mcq names no images to look for"):
        prepare("dermasynth", raw, out, ["mcq"], images="mcq")
