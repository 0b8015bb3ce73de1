"""Pixels of every format, mode and orientation are the same for every reader; damage is refused by name."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from helpers.pictures import NOISE, SAVED, array, chunk, exif, looked, photograph, saved
from skinvl.data import metadata
from skinvl.data.pixels import ImageError, size, upright


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def shown(raw: Path, data: bytes) -> np.ndarray:
    (raw / "x").write_bytes(data)
    picture = upright(raw / "x")
    assert (picture.mode, picture.info) == ("RGB", {})
    assert size(raw / "x") == (picture.height, picture.width)
    return np.asarray(picture)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_lose_the_lower_eight(raw: Path, kind: str) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    found = shown(raw, saved(Image.fromarray(values), kind))
    assert (found == (values >> 8)[..., None]).all()
    with Image.open(raw / "x") as image:
        assert image.mode == "I;16"
        assert np.asarray(image.convert("RGB")).mean() > 250  # what Pillow alone makes of it: nearly all white


def test_integers_and_floats_are_stretched(raw: Path) -> None:
    ramp = np.array([[-1000, 0], [500, 1000]], np.int32)
    expected = [[0, 128], [191, 255]]
    assert shown(raw, saved(Image.fromarray(ramp), "TIFF"))[..., 0].tolist() == expected
    assert shown(raw, saved(Image.fromarray(ramp.astype(np.float32) / 7), "TIFF"))[..., 2].tolist() == expected
    flat = np.full((2, 2), np.nan, np.float32)
    assert shown(raw, saved(Image.fromarray(flat), "TIFF")).max() == 0
    flat[1] = 1, 2
    assert shown(raw, saved(Image.fromarray(flat), "TIFF"))[..., 0].tolist() == [[0, 0], [128, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1"])
def test_transparency_is_shown_on_white(raw: Path, mode: str) -> None:
    grey = Image.new("L", (2, 1), 0)
    if mode in ("RGBA", "LA"):
        picture: Image.Image = grey.convert(mode)
        picture.putpixel((0, 0), (0, 0, 0, 51) if mode == "RGBA" else (0, 51))
        data, expected = saved(picture, "PNG"), 204
    else:
        other = {"P": 1, "RGB": (9, 9, 9), "L": 9, "1": 255}[mode]
        picture = Image.new(mode, (2, 1), 0)
        if mode == "P":
            picture.putpalette([0, 0, 0, 0, 0, 0])
        data, expected = saved(picture, "PNG", transparency=other), 255
        picture.putpixel((0, 0), other)
        data = saved(picture, "PNG", transparency=other)
    found = shown(raw, data)
    assert found[0].tolist() == [[expected] * 3, [0, 0, 0]]


def test_opaque_alpha_and_palettes_and_cmyk_are_what_pillow_shows(raw: Path) -> None:
    assert (shown(raw, saved(NOISE.convert("RGBA"), "PNG")) == np.asarray(NOISE)).all()
    for few in (NOISE.quantize(8), NOISE.convert("1"), NOISE.convert("L")):
        assert (shown(raw, saved(few, "PNG")) == np.asarray(few.convert("RGB"))).all()
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(shown(raw, saved(cmyk, kind)).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_of_every_format(raw: Path, kind: str, turn: int) -> None:
    data = saved(NOISE, kind, exif=exif(turn), **SAVED[kind])
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert (expected.shape[0] == 24) == (turn <= 4)
    assert (shown(raw, data) == expected).all()
    found, placed = looked(raw, "x")
    assert (found.height, found.width) == size(placed) == expected.shape[:2]
    assert (array(placed) == expected).all()
    assert upright(placed).getexif() == {}  # or the next reader would turn it again


def test_jpeg_inside_a_tiff_is_refused(raw: Path) -> None:
    """A damaged one decodes without an error, to whatever stood in memory: otherwise at every reading."""
    (raw / "x").write_bytes(saved(NOISE, "TIFF", compression="jpeg"))
    for read in (upright, size):
        with pytest.raises(ImageError, match=r"unreadable-image: .*/x: JPEG inside a TIFF is not read; save it as"):
            read(raw / "x")


def test_exif_behind_the_pixels_of_a_png_counts(raw: Path) -> None:
    data = saved(NOISE, "PNG", exif=exif(6))
    parts = {kind: data[start:end] for kind, start, end in metadata.chunks(io.BytesIO(data))}
    late = data[:8] + parts[b"IHDR"] + parts[b"IDAT"] + parts[b"eXIf"] + parts[b"IEND"]
    assert shown(raw, late).shape == (40, 24, 3)
    _, placed = looked(raw, "x")
    assert size(placed) == (40, 24)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(raw: Path, kind: str) -> None:
    red, blue = (Image.new("RGB", (9, 5), colour) for colour in ("red", "blue"))
    data = saved(red, kind, save_all=True, append_images=[blue, red], **SAVED[kind])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert (shown(raw, data) == (255, 0, 0)).all()
    _, placed = looked(raw, "x")
    assert (array(placed) == (255, 0, 0)).all()
    with Image.open(placed) as image:
        assert getattr(image, "n_frames", 1) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("kind", list(SAVED))
def test_small_and_elongated_images_are_images(raw: Path, kind: str, shape: tuple[int, int]) -> None:
    found, placed = looked(raw, "x", saved(Image.new("RGB", shape, "white"), kind, **SAVED[kind]))
    assert (found.width, found.height, found.phash) == (*shape, None)
    assert (array(placed) == 255).all()


def bomb(kind: str) -> bytes:
    """A small file that says it holds more than MAX_PIXELS."""
    data = bytearray(saved(Image.new("L", (64, 64)), kind))
    side = 9_000
    if kind == "PNG":
        data[16:24] = side.to_bytes(4) * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    elif kind == "GIF":
        data[6:10] = side.to_bytes(2, "little") * 2
    elif kind == "BMP":
        data[18:26] = side.to_bytes(4, "little") * 2
    else:
        place = data.index(b"\xff\xc0")
        data[place + 5 : place + 9] = side.to_bytes(2) * 2
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG"])
def test_bombs_are_refused_before_they_are_decoded(raw: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (raw / "x").write_bytes(bomb(kind))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for read in (upright, size):
        with pytest.raises(ImageError, match=r"unreadable-image: .*/x: 9000 × 9000 pixels; at most 80,000,000"):
            read(raw / "x")
    found, _ = looked(raw, "x")
    assert found.rule == "unreadable-image"


def test_a_huge_tile_of_a_small_tiff_is_refused(raw: Path) -> None:
    packed = zlib.compress(bytes(10_000 * 10_000))  # 100 kB
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 10_000, 323: 10_000, 324: 8, 325: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    found, _ = looked(raw, "x", b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory)
    assert found.detail == "x: 10000 × 10000 pixels; at most 80,000,000 are read"


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_chunk_that_swells_is_refused(raw: Path, kind: bytes) -> None:
    swollen = zlib.compress(bytes(80 * 2**20))
    data = saved(NOISE, "PNG")
    packed = b"a\0\1\0\0\0" + swollen if kind == b"iTXt" else b"a\0\0" + swollen
    found, _ = looked(raw, "x", data[:33] + chunk(kind, packed) + data[33:])
    assert found.rule == "unreadable-image"


def test_a_break_between_two_chunks_is_refused(raw: Path) -> None:
    data = saved(NOISE, "PNG")
    parts = {kind: data[start:end] for kind, start, end in metadata.chunks(io.BytesIO(data))}
    half = chunk(b"IDAT", parts[b"IDAT"][8:500])
    found, _ = looked(raw, "x", data[:8] + parts[b"IHDR"] + half + chunk(b"ID\x18T", b"") + parts[b"IEND"])
    assert "broken PNG" in found.detail


@pytest.mark.parametrize("kind", list(SAVED))
def test_cut_files_are_refused(raw: Path, kind: str) -> None:
    data = saved(NOISE, kind, **SAVED[kind])
    for length in (1, 30, len(data) // 2, len(data) * 9 // 10):
        found, _ = looked(raw, "x", data[:length])
        assert found.rule == "unreadable-image", length
        with pytest.raises(ImageError, match="unreadable-image"):
            upright(raw / "x")


@pytest.mark.parametrize(
    "head",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
        b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x08\0\0\0\x08\0\x08\0\3" + bytes(300),
        b"SIMPLE  =                    T" + bytes(3000),
        b"P6 2 2 255 " + bytes(12),
        b"<svg/>",
        b"",
        b"not an image",
    ],
)
def test_other_formats_never_reach_a_decoder(raw: Path, head: bytes) -> None:
    found, _ = looked(raw, "x.png", head)
    assert found.rule == "unreadable-image"
    assert found.detail.startswith("x.png: no image that can be read; expected one of JPEG, PNG")
    assert features.check("webp")


def sources() -> list[bytes]:
    animated = saved(NOISE.quantize(16), "GIF", save_all=True, append_images=[NOISE.rotate(90).quantize(16)])
    squeezed = [saved(NOISE, "TIFF", compression=how) for how in ("tiff_lzw", "tiff_deflate")]
    deep = saved(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG")
    return [*map(photograph, SAVED), animated, *squeezed, deep, saved(NOISE.quantize(8), "PNG", transparency=1)]


def damaged(data: bytes, rnd: random.Random) -> bytes:
    """The file with some bytes changed, often in its header, and sometimes cut."""
    broken = bytearray(data)
    for _ in range(rnd.choice([1, 1, 2, 8])):
        broken[rnd.randrange(len(broken) if rnd.random() < 0.5 else min(len(broken), 120))] = rnd.randrange(256)
    return bytes(broken[: rnd.randrange(1, len(broken))] if rnd.random() < 0.1 else broken)


@pytest.mark.parametrize("cases", [600, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_an_image_or_a_rule(raw: Path, cases: int) -> None:
    rnd, originals, rules = random.Random(cases), sources(), {}
    for number in range(cases):
        data = damaged(originals[number % len(originals)], rnd)
        found, placed = looked(raw, "x", data)
        rules[found.rule] = rules.get(found.rule, 0) + 1
        if found.rule:
            with pytest.raises(ImageError, match="unreadable-image"):
                upright(raw / "x")
            continue
        picture = upright(raw / "x")
        assert size(raw / "x") == (picture.height, picture.width) == (found.height, found.width) == size(placed)
        assert (array(placed) == np.asarray(picture)).all()
    assert set(rules) <= {None, "unreadable-image"}
    assert min(rules.values()) > cases / 10
