"""Colours mean light: tagged pixels become the sRGB that the CIE's arithmetic gives, sRGB's own stay bit for bit."""

from __future__ import annotations

import ast
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from helpers import colours
from helpers.colours import ICC
from helpers.pictures import NOISE, exif, saved
from skinvl.data import profiles
from skinvl.data.pixels import cropped, data_url, opened, upright
from skinvl.data.profiles import D65, SRGB, SRGB_CURVE, Profile, matrix_profile, profile_of

SKINVL = Path(__file__).parents[2] / "skinvl"
STEPS = np.arange(0, 256, 17, dtype=np.uint8)
CUBE = np.stack(np.meshgrid(STEPS, STEPS, STEPS), axis=-1).reshape(64, 64, 3)
COLOURS = Image.fromarray(CUBE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x"


def shown(file: Path, data: bytes, reading: profiles.Profiles = "srgb") -> np.ndarray:
    file.write_bytes(data)
    picture = upright(file, reading)
    assert (picture.mode, picture.info) == ("RGB", {})
    return np.asarray(picture).astype(int)


def told(data: bytes) -> Profile | None:
    with opened(io.BytesIO(data), "x") as image:
        return profile_of(image)


def png(*chunks: tuple[bytes, bytes], picture: Image.Image = COLOURS, **options: object) -> bytes:
    more = PngImagePlugin.PngInfo()
    for name, content in chunks:
        more.add(name, content)
    return saved(picture, "PNG", pnginfo=more, **options)


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB", "BT.2020"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_tagged_picture_is_what_the_arithmetic_gives(file: Path, name: str, kind: str) -> None:
    data = saved(COLOURS, kind, icc_profile=ICC[name], **({"lossless": True} if kind == "WEBP" else {}))
    expected = colours.srgb(name, CUBE)
    assert np.abs(shown(file, data) - expected).max() <= 1
    assert (shown(file, data, "ignore") == CUBE).all()  # the twin: as it was read before
    assert np.abs(CUBE - expected).max() > 20
    profile = told(data)
    assert profile is not None
    assert (profile.name, profile.fault) == (name, "")


def test_white_stays_white_whatever_the_white_of_the_space(file: Path) -> None:
    greys = Image.fromarray(np.repeat(STEPS[:, None, None], 3, axis=2))
    found = shown(file, saved(greys, "PNG", icc_profile=ICC["ProPhoto RGB"]))  # its white is D50
    assert np.ptp(found, axis=2).max() <= 1  # neutral
    light = (STEPS / 255) ** 1.8
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(found[:, 0, 1] - expected).max() <= 1
    assert found[-1].tolist() == [[255, 255, 255]]


@pytest.mark.parametrize("entries", [26, 256, 1024, 4096])
def test_srgb_as_others_write_it_is_left_bit_for_bit(file: Path, entries: int) -> None:
    for icc in (colours.srgb_of_table(entries), matrix_profile("another name", SRGB, D65, SRGB_CURVE)):
        data = saved(NOISE, "PNG", icc_profile=icc)
        assert told(data) is None
        assert (shown(file, data) == np.asarray(NOISE)).all()
    power = matrix_profile("sRGB", SRGB, D65, (2.2,))  # whatever it is called, its curve is another
    assert np.abs(shown(file, png(icc_profile=power)) - CUBE).max() > 5


def test_a_photo_from_a_phone_is_turned_and_converted(file: Path) -> None:
    """In JPEG a long profile lies in several segments; the other image of an MPO file is not read."""
    tall = NOISE.resize((120, 72))
    long = matrix_profile("P3 " + "x" * 40_000, *colours.SPACES["Display P3"])  # 80 kB
    plain = shown(file, saved(tall, "JPEG", quality=95, exif=exif(6))).astype(np.uint8)
    expected = colours.srgb("Display P3", plain)
    assert plain.shape == (120, 72, 3)
    for icc, kind in ((ICC["Display P3"], "JPEG"), (long, "JPEG"), (ICC["Display P3"], "MPO")):
        more = {"save_all": True, "append_images": [tall]} if kind == "MPO" else {}
        data = saved(tall, kind, quality=95, exif=exif(6), icc_profile=icc, **more)
        assert data.count(b"ICC_PROFILE\0") == (1 if icc is not long and kind == "JPEG" else 2)
        assert np.abs(shown(file, data) - expected).max() <= 1
    cut = saved(tall, "JPEG", quality=95, exif=exif(6), icc_profile=long)
    start = cut.rindex(b"ICC_PROFILE\0") - 4  # the second of its segments is gone
    cut = cut[:start] + cut[start + 2 + int.from_bytes(cut[start + 2 : start + 4]) :]
    profile = told(cut)
    assert profile is not None
    assert profile.fault == "lcms cannot read it"
    assert (shown(file, cut) == plain).all()


def test_a_crop_is_converted_as_the_whole_is(file: Path) -> None:
    for data in (png(icc_profile=ICC["Display P3"]), saved(COLOURS, "JPEG", quality=95, icc_profile=ICC["Display P3"])):
        whole = shown(file, data)
        crop = cropped(file, 64, Image.Resampling.BICUBIC, lambda height, width: (0, 0, width, height))
        assert (np.asarray(crop) == whole).all()
        as_it_is = cropped(file, 64, Image.Resampling.BICUBIC, lambda height, width: (0, 0, width, height), "ignore")
        assert np.abs(np.asarray(as_it_is) - whole).max() > 20
        assert data_url(file, 64, 90) != data_url(file, 64, 90, "ignore")


def test_what_png_says_otherwise_goes_by_its_own_order(file: Path) -> None:
    p3, srgb, bt2020 = ((b"cICP", bytes([primaries, 13, 0, 1])) for primaries in (12, 1, 9))
    expected = colours.srgb("Display P3", CUBE)
    assert np.abs(shown(file, png(p3)) - expected).max() <= 1
    assert np.abs(shown(file, png(p3, icc_profile=ICC["Adobe RGB"])) - expected).max() <= 1  # cICP before ICC
    assert (shown(file, png(srgb, icc_profile=ICC["Adobe RGB"])) == CUBE).all()
    assert told(png(bt2020)).name == "BT.2020 (cICP)"  # type: ignore[union-attr]
    for codes in (bytes([9, 16, 0, 1]), bytes([12, 13, 0, 0]), bytes([250, 13, 0, 1])):  # PQ, narrow range, unknown
        profile = told(png((b"cICP", codes)))
        assert profile is not None
        assert "of standard range" in profile.fault
        assert (shown(file, png((b"cICP", codes), icc_profile=ICC["Display P3"])) == CUBE).all()

    # gAMA with cHRM, unless there is something better; the numbers of sRGB mean sRGB, and either alone means nothing.
    gamma = (b"gAMA", struct.pack(">I", 45455))
    of = {
        name: (b"cHRM", struct.pack(">8I", *(round(100_000 * value) for xy in (D65, *primaries) for value in xy)))
        for name, primaries in (("sRGB", SRGB), ("Adobe RGB", colours.ADOBE_RGB))
    }
    assert np.abs(shown(file, png(gamma, of["Adobe RGB"])) - colours.srgb("Adobe RGB", CUBE)).max() <= 1.5
    for chunks in ([gamma, of["sRGB"]], [gamma], [of["Adobe RGB"]], [gamma, of["Adobe RGB"], (b"sRGB", b"\0")]):
        assert (shown(file, png(*chunks)) == CUBE).all()
    profile = told(png(gamma, (b"cHRM", bytes(32))))
    assert profile is not None
    assert profile.fault


@pytest.mark.parametrize(
    ("mode", "icc", "fault"),
    [
        ("RGB", b"", "lcms cannot read it"),
        ("RGB", ICC["Display P3"][:200], "lcms cannot read it"),
        ("RGB", ICC["Display P3"][:250] + bytes(202), "lcms cannot read it"),
        ("RGB", colours.ink(10), "it is for CMYK pixels"),
        ("RGB", colours.grey(1.8), "it is for GRAY pixels"),
        ("CMYK", ICC["Display P3"], "it is for RGB pixels"),
    ],
)
def test_a_profile_that_cannot_be_used_changes_nothing(file: Path, mode: str, icc: bytes, fault: str) -> None:
    picture = NOISE.convert(mode)
    data = saved(picture, "TIFF", icc_profile=icc or b"no profile")
    profile = told(data)
    assert profile is not None
    assert profile.fault == fault
    assert (shown(file, data) == shown(file, saved(picture, "TIFF"))).all()


def test_grey_is_read_by_its_own_profile_or_by_that_of_colours(file: Path) -> None:
    ramp = Image.linear_gradient("L")
    plain = np.asarray(ramp).astype(int)
    light = (plain / 255) ** 1.8
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    found = shown(file, saved(ramp, "JPEG", quality=100, icc_profile=colours.grey(1.8)))
    assert np.ptp(found, axis=2).max() == 0
    assert np.abs(found[..., 0] - expected).max() <= 2  # JPEG's own rounding
    deep = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 256)
    for picture in (ramp, deep, ramp.convert("LA")):
        assert np.abs(shown(file, saved(picture, "PNG", icc_profile=colours.grey(1.8)))[..., 2] - expected).max() < 1.5
    as_colours = shown(file, saved(ramp, "PNG", icc_profile=ICC["Adobe RGB"]))
    assert 2 < np.abs(as_colours[..., 0] - plain).max() < 20
    stretched = Image.fromarray(np.asarray(ramp).astype(np.int32))
    assert told(saved(stretched, "TIFF", icc_profile=ICC["Adobe RGB"])) is None  # its values are no light


def test_ink_becomes_light_by_its_profile_and_its_darkest_is_black(file: Path) -> None:
    inks = {"white": (0, 0, 0, 0), "black": (0, 0, 0, 255), "cyan": (255, 0, 0, 0)}
    drawn = {name: Image.new("CMYK", (8, 8), each) for name, each in inks.items()}
    for kind in ("TIFF", "JPEG"):
        read = {
            name: shown(file, saved(picture, kind, icc_profile=colours.ink(20)))[0, 0].tolist()
            for name, picture in drawn.items()
        }
        assert read["white"] == [255, 255, 255]
        assert max(read["black"]) <= 3  # L* 20 is 48 in every channel without compensation
        assert read["cyan"][0] < read["cyan"][1] < 120
        assert shown(file, saved(drawn["cyan"], kind))[0, 0, 1] > 250  # Pillow's own cyan


def test_clear_parts_are_white_and_the_rest_is_converted(file: Path) -> None:
    picture = COLOURS.convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((64, 64)).point(lambda value: 255 * (value > 127)))
    found = shown(file, saved(picture, "PNG", icc_profile=ICC["Display P3"]))
    clear = np.asarray(picture)[..., 3] == 0
    assert (found[clear] == 255).all()
    assert np.abs(found - colours.srgb("Display P3", CUBE))[~clear].max() <= 1
    few = COLOURS.quantize(64)
    expected = colours.srgb("Display P3", np.asarray(few.convert("RGB")))
    assert np.abs(shown(file, saved(few, "PNG", icc_profile=ICC["Display P3"])) - expected).max() <= 1


def test_the_gamma_and_primaries_of_a_real_file_are_those_of_srgb(shared: Path) -> None:
    path = shared / "pad_ufes_20" / "full_size" / "PAT_164_255_119.png"
    with Image.open(path) as image:
        assert {"gamma", "chromaticity"} <= image.info.keys()
        assert (np.asarray(upright(path)) == np.asarray(image.convert("RGB"))).all()


# Who asks only whether a file can be read, or shows it to a person.
ANY_READING = {"row.py", "search.py", "page.py", "open_clip_fit.py"}


def test_what_a_model_sees_names_its_reading() -> None:
    """Who reads pixels for a model and names no reading would ask a run made before in other colours."""
    unnamed = []
    for wing in ("model", "plan", "evaluate", "train", "release", "serve"):
        for path in sorted((SKINVL / wing).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    owner = getattr(
                        getattr(node.func, "value", None),
                        "attr",
                        getattr(getattr(node.func, "value", None), "id", "pixels"),
                    )
                    least = {"upright": 2, "cropped": 5}.get(name, 0)
                    if owner == "pixels" and len(node.args) < least and path.name not in ANY_READING:
                        unnamed.append(f"{path.name}:{node.lineno}")
    assert unnamed == []
