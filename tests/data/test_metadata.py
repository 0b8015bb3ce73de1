"""What is placed tells nothing but pixels, and those are the original's."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from helpers.pictures import NOISE, SAVED, SECRETS, array, chunk, exif, looked, photograph, saved
from skinvl.data import metadata


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.mark.parametrize("kind", list(SAVED))
def test_nothing_but_pixels_is_placed(raw: Path, kind: str) -> None:
    data = photograph(kind)
    assert any(secret in data for secret in SECRETS)
    found, placed = looked(raw, "a.jpg", data)
    assert found.rule is None, found.detail
    written = placed.read_bytes()
    assert not [secret for secret in (*SECRETS, b"Ada", b"MPF", b"tIME", b"prVt", b"JFXX") if secret in written]
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert (raw / "a.jpg").read_bytes() == data
    assert (array(placed) == array(raw / "a.jpg")).all()
    with Image.open(placed) as image:
        image.load()
        assert image.format == (kind if kind in ("JPEG", "PNG") else "PNG")
        block = image.getexif()
        assert dict(block) == ({ExifTags.Base.Orientation: 6} if kind in ("JPEG", "PNG") else {})
        assert dict(block.get_ifd(ExifTags.IFD.GPSInfo)) == {}
        assert not {"xmp", "comment", "photoshop", "mp", "text", "XML:com.adobe.xmp"} & set(image.info)
    assert metadata.stripped(written, image.format, 6) == written or image.format == "PNG"
    again, _ = looked(raw, "a.jpg")  # as after a kill
    assert (again, placed.read_bytes()) == (found, written)
    assert not list(placed.parent.glob(".*"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_compressed_pixels_stay_as_they_are(kind: str) -> None:
    profile = b"\0" * 36 + b"acsp" + b"\0" * 90
    options = {"icc_profile": profile, **({"quality": 80} if kind == "JPEG" else {})}
    bare = saved(NOISE, kind, **options)
    assert metadata.stripped(bare, kind, 1) == bare
    noted = saved(NOISE, kind, exif=exif(1, private=True), **options)
    assert noted != bare
    assert metadata.stripped(noted, kind, 1) == bare
    turned = metadata.stripped(noted, kind, 8)
    assert turned is not None
    assert metadata.stripped(turned, kind, 8) == turned
    with Image.open(io.BytesIO(turned)) as image:
        assert image.info["icc_profile"] == profile
        assert dict(image.getexif()) == {ExifTags.Base.Orientation: 8}


def test_a_png_keeps_its_transparency_and_ends_at_its_end() -> None:
    data = saved(NOISE.quantize(8), "PNG", transparency=1)
    assert b"tRNS" in data
    for noted in (data, data + chunk(b"IDAT", b"Ada Patient"), data + data, data[:-12] + chunk(b"IEND", b"Ada")):
        assert metadata.stripped(noted, "PNG", 1) == data


def test_a_thumbnail_in_the_header_goes(raw: Path) -> None:
    data = saved(NOISE, "JPEG")
    assert data[2:4] == b"\xff\xe0"
    small = bytes(range(12))
    fat = data[:4] + (16 + 12).to_bytes(2) + data[6:18] + b"\2\2" + small + data[20:]
    _, placed = looked(raw, "a.jpg", fat)
    assert placed.read_bytes() == data


def test_the_second_picture_of_a_phone_goes(raw: Path) -> None:
    data = saved(NOISE, "MPO", save_all=True, append_images=[NOISE.rotate(180)])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    _, placed = looked(raw, "a.jpg", data)
    with Image.open(placed) as image:
        assert image.format == "JPEG"
    assert placed.stat().st_size < len(data) / 1.8
    assert (array(placed) == array(raw / "a.jpg")).all()


def test_an_adobe_marker_decides_the_colours_and_stays(raw: Path) -> None:
    rgb = saved(NOISE, "JPEG", keep_rgb=True, quality=95)
    note = b"\xff\xfe\x00\x0dAda Patient"
    _, placed = looked(raw, "a.jpg", rgb[:2] + note + rgb[2:])
    assert placed.read_bytes() == rgb
    _, placed = looked(raw, "b.jpg", saved(NOISE.convert("CMYK"), "JPEG", comment=b"Ada"))
    assert (array(placed) == array(raw / "b.jpg")).all()


def test_pixels_that_would_change_are_written_as_png(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photograph("JPEG")
    real: Callable[..., bytes | None] = metadata.stripped
    wrong = real(saved(NOISE.rotate(180), "JPEG", exif=exif(6), progressive=True, quality=95), "JPEG", 6)
    monkeypatch.setattr(metadata, "stripped", lambda one, kind, turn: real(one, kind, turn) if kind == "PNG" else wrong)
    _, placed = looked(raw, "a.jpg", data)
    assert placed.read_bytes().startswith(b"\x89PNG")
    assert (array(placed) == array(raw / "a.jpg")).all()
