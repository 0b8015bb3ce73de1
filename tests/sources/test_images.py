"""Images of a raw download are placed whole or refused by name, and no path leaves the download."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers import colours, sources
from helpers.pictures import NOISE, SAVED, array, chunk, exif, looked, photograph, saved
from skinvl.data import fingerprints, pixels
from skinvl.data.pixels import ImageError, size, upright
from skinvl.sources.prepare import images
from skinvl.sources.prepare.images import look


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


OUTSIDE = [
    "../a.png",
    "in/../../a.png",
    "in/../a.png",
    "/etc/hosts",
    "",
    "..",
    "a\0.png",
    "a\n.png",
    "a\x85.png",
    "in\\a.png",
]
OUTSIDE += [
    "\ud800.png",
    "n" * 252 + ".png",
    "ü" * 130,
    "d/" * 600 + "a.png",
    "out.png",
    "away/a.png",
    "away/deep/a.png",
]


@pytest.mark.parametrize("path", [*OUTSIDE, "../x.parquet#0", "/x.parquet#0", "gone.png"], ids=ascii)
def test_paths_that_leave_are_refused(raw: Path, path: str) -> None:
    data = saved(NOISE, "PNG")
    (raw.parent / "a.png").write_bytes(data)
    (raw / "in").mkdir()
    (raw / "a.png").write_bytes(data)
    (raw.parent / "away" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/a.png"):
        (raw.parent / "away" / name).write_bytes(data)
    (raw / "out.png").symlink_to(raw.parent / "a.png")
    (raw / "away").symlink_to("../away")
    (raw / "gone.png").symlink_to("../gone.png")  # a link that leads to nothing leads out all the same
    found, _ = looked(raw, path)
    assert found.rule == "unsafe-path"
    assert found.path == path
    assert not (raw.parent / "out").exists()
    assert found.detail.isprintable()


def test_a_neighbour_whose_name_begins_alike_is_outside(raw: Path) -> None:
    (raw.parent / "raw-private").mkdir()
    (raw.parent / "raw-private" / "a.png").write_bytes(saved(NOISE, "PNG"))
    (raw / "a.png").symlink_to("../raw-private/a.png")
    assert looked(raw, "a.png")[0].rule == "unsafe-path"


def test_links_within_are_followed(raw: Path) -> None:
    found, placed = looked(raw, "store/é è.png", saved(NOISE, "PNG"))
    (raw / "a.png").symlink_to("store/é è.png")
    (raw / "b").symlink_to(raw / "store")
    link = raw.parent / "link"
    link.symlink_to(raw)
    for root, name in ((raw, "a.png"), (raw, "b/é è.png"), (link, "a.png"), (link, "./b//é è.png")):
        again = look(root, name, raw.parent / "out")
        assert (again.rule, again.sha256, again.phash) == (None, found.sha256, found.phash)
        assert not (raw.parent / "out" / again.placed).is_symlink()
        assert (raw.parent / "out" / again.placed).samefile(placed)
    assert again.placed == "images/b/é è.png"


def test_what_is_no_file_is_missing(raw: Path) -> None:
    (raw / "folder.png").mkdir()
    (raw / "a.png").write_bytes(b"")
    os.mkfifo(raw / "pipe.png")
    (raw / "circle.png").symlink_to("circle.png")
    for name in ("gone.png", "gone/a.png", "a.png/b.png", "folder.png", "folder.png/", "pipe.png"):
        assert looked(raw, name)[0].rule == "missing-image", name
    assert looked(raw, "circle.png")[0].rule in ("missing-image", "unreadable-image")
    for name in ("gone.png", "a.png/b.png"):
        with pytest.raises(ImageError, match="missing-image"):
            upright(raw / name)


def test_a_pointer_is_named(raw: Path) -> None:
    found, _ = looked(raw, "a.png", pixels.LFS_POINTER + b"\noid sha256:" + b"0" * 64 + b"\nsize 133\n")
    assert found.rule == "lfs-pointer"
    for read in (upright, size):
        with pytest.raises(ImageError, match="lfs-pointer"):
            read(raw / "a.png")


def test_a_file_that_is_too_long_is_not_read(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    found, _ = looked(raw, "a.png", saved(NOISE, "PNG"))
    assert (found.rule, "at most 100" in found.detail) == ("unreadable-image", True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_bare_file_is_linked(raw: Path, kind: str) -> None:
    found, placed = looked(raw, "d/a.jpg", saved(NOISE, kind))
    assert found.placed == "images/d/a.jpg"
    assert placed.samefile(raw / "d" / "a.jpg")
    assert looked(raw, "d/a.jpg")[0] == found


def test_it_is_copied_where_links_fail(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    data = saved(NOISE, "PNG")
    found, placed = looked(raw, "a.png", data)
    assert placed.read_bytes() == data
    assert not placed.samefile(raw / "a.png")
    assert looked(raw, "a.png")[0] == found


def test_a_half_file_never_stands_under_the_name(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    data = photograph("JPEG")
    (raw / "a.jpg").write_bytes(data)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        look(raw, "a.jpg", raw.parent / "out")
    assert not [file for file in (raw.parent / "out").rglob("*") if file.is_file()]


def test_an_older_file_is_replaced_and_not_written_through(raw: Path) -> None:
    data = saved(NOISE, "PNG")
    _, placed = looked(raw, "a.png", data)
    (raw / "a.png").unlink()
    newer = saved(NOISE.rotate(180), "PNG")
    _, placed = looked(raw, "a.png", newer)
    assert placed.read_bytes() == newer
    noted = newer[:33] + chunk(b"tEXt", b"a\0b") + newer[33:]
    (raw / "a.png").write_bytes(noted)  # through the link: OUT's file is RAW's
    _, placed = looked(raw, "a.png")
    assert (placed.read_bytes(), (raw / "a.png").read_bytes()) == (newer, noted)


def test_what_is_said_of_an_image(raw: Path) -> None:
    smooth = NOISE.resize((320, 200), Image.Resampling.BICUBIC)
    found, placed = looked(raw, "d/ISIC_0024306.jpg", saved(smooth, "JPEG", quality=95))
    png, _ = looked(raw, "ISIC_0024306.png", saved(upright(placed), "PNG"))
    assert (found.width, found.height, found.archive, found.rule) == (320, 200, "ISIC_0024306", None)
    assert found.phash is not None
    assert png.phash is not None
    assert (found.phash ^ png.phash).bit_count() <= 2
    assert fingerprints.looks(upright(placed).convert("L")) == {
        name: getattr(found, name) for name in fingerprints.LOOKS
    }
    turned, _ = looked(raw, "turned.jpg", saved(smooth.rotate(90, expand=True), "JPEG", exif=exif(6), quality=95))
    assert turned.phash is not None
    assert (found.phash ^ turned.phash).bit_count() <= 4
    assert (turned.width, turned.height) == (320, 200)
    pa.Table.from_pylist([asdict(found)], pa.schema([("phash", pa.uint64()), ("rule", pa.string())]))


@pytest.fixture
def table(raw: Path) -> Path:
    cells = [saved(NOISE.rotate(angle), kind) for angle, kind in ((0, "JPEG"), (90, "PNG"), (0, "GIF"))]
    rows = [{"n": 0, "image": {"bytes": cell, "path": "x"}} for cell in (*cells, photograph("JPEG"), None, b"junk")]
    rows.append({"n": 1, "image": None})
    (raw / "d").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), raw / "d" / "a.parquet", row_group_size=2)
    return raw / "d" / "a.parquet"


def test_images_in_parquet_files(raw: Path, table: Path) -> None:
    column = pq.read_table(table)["image"].to_pylist()
    for row, ending in ((0, "jpg"), (1, "png"), (2, "png"), (3, "jpg")):
        found, placed = looked(raw, f"d/a.parquet#{row}")
        assert found.placed == f"images/d/a.parquet/{row}.{ending}"
        (raw / "x").write_bytes(column[row]["bytes"])
        assert (array(placed) == array(raw / "x")).all()
        assert found.sha256 == hashlib.sha256(column[row]["bytes"]).hexdigest()
        assert b"Ada" not in placed.read_bytes()
        if row < 2:
            assert placed.read_bytes() == column[row]["bytes"]


def test_cells_that_hold_no_image(raw: Path, table: Path) -> None:
    (raw / "bad.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"a": [1]}), raw / "bare.parquet")
    expected = {
        4: "missing-image",
        5: "unreadable-image",
        6: "missing-image",
        7: "missing-image",
        10**17: "missing-image",
    }
    for row, rule in expected.items():
        assert looked(raw, f"d/a.parquet#{row}")[0].rule == rule, row
    assert looked(raw, "gone.parquet#0")[0].rule == "missing-image"
    assert looked(raw, "d#0")[0].rule == "missing-image"
    assert looked(raw, "bad.parquet#0")[0].rule == "unreadable-image"
    assert "no column of images" in looked(raw, "bare.parquet#0")[0].detail


def test_only_the_row_group_is_read(raw: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[str]]] = []
    real = pq.ParquetFile.read_row_group

    def read(self: Any, group: int, columns: list[str], **options: Any) -> Any:
        asked.append((group, columns))
        return real(self, group, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)
    for row in (2, 3, 2):
        looked(raw, f"d/a.parquet#{row}")
    assert asked == [(1, ["image.bytes"])]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_placed_files_keep_the_profile_of_their_colours(raw: Path, kind: str) -> None:
    """So that anybody reads them right, and either reading stays open; the hashes are of what models see."""
    picture = sources.photo(3, 200)
    data = saved(picture, kind, icc_profile=colours.ICC["Adobe RGB"], exif=exif(6, private=True), **SAVED[kind])
    found, placed = looked(raw, "x", data)
    assert (found.profile, found.fault) == ("Adobe RGB", None)
    for reading in ("srgb", "ignore"):
        known = look(raw, "x", raw.parent / "other", reading)
        assert (np.asarray(upright(placed, reading)) == np.asarray(upright(raw / "x", reading))).all()
        assert known.signs == fingerprints.looks(upright(placed, reading).convert("L"))["signs"]
    assert (array(placed) != np.asarray(upright(placed, "ignore"))).any()
    again, _ = looked(placed.parent, "x")
    assert again.profile == "Adobe RGB"


def test_ink_in_a_file_that_is_not_kept_becomes_srgb(raw: Path) -> None:
    picture = NOISE.convert("CMYK")
    found, placed = looked(raw, "x", saved(picture, "TIFF", icc_profile=colours.ink(10)))
    assert found.profile == "drawn"
    with Image.open(placed) as image:
        assert (image.format, "icc_profile" in image.info) == ("PNG", False)
    assert (array(placed) == array(raw / "x")).all()
    kept, placed = looked(raw, "y", saved(picture, "JPEG", icc_profile=colours.ink(10)))
    assert placed.samefile(raw / "y")
    assert kept.signs == fingerprints.looks(upright(placed).convert("L"))["signs"]


def test_a_profile_that_cannot_be_used_is_named(raw: Path) -> None:
    data = saved(NOISE, "JPEG", icc_profile=b"broken")
    found, placed = looked(raw, "x", data)
    assert (found.profile, found.fault) == ("a damaged profile", "lcms cannot read it")
    assert (array(placed) == np.asarray(upright(placed, "ignore"))).all()
    assert look(raw, "x", raw.parent / "out", "ignore").fault is None  # it was not to be used


def test_real_photos_are_linked_and_read(shared: Path, tmp_path: Path) -> None:
    raw = shared / "pad_ufes_20"
    for file in sorted((raw / "img").iterdir())[:12]:
        found = look(raw, f"img/{file.name}", tmp_path)
        assert found.rule is None
        assert found.phash is not None
        assert (array(tmp_path / found.placed) == array(file)).all()
