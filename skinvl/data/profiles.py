"""The colours that an image file is tagged with, and its pixels converted to sRGB: lcms converts here and nowhere else.

Pixels without a tag are sRGB, as in every browser. Cameras and phones tag with profiles of three primaries and a curve
(Display P3, Adobe RGB, ProPhoto), which hold one way to convert: it is the same in all colour-managed viewers, whatever
the rendering intent. Tables, as printers (CMYK) and scanners have them, can hold several; of these the relative
colorimetric one is taken, with black-point compensation, as Photoshop and GIMP do by default.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from skinvl.data import metadata

Profiles = Literal["srgb", "ignore"]  # how pixels are read: converted to sRGB, or as they stand in the file
XY = tuple[float, float]  # chromaticity, CIE 1931

D50 = (0.9642, 1.0, 0.8249)  # XYZ, of the ICC's connection space
D65: XY = (0.3127, 0.3290)
SRGB: tuple[XY, XY, XY] = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # red, green, blue
DISPLAY_P3: tuple[XY, XY, XY] = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
BT_2020: tuple[XY, XY, XY] = ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046))
# ICC's parameters g, a, b, c, d of a curve that is (ax + b)^g from d on, and cx below.
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
VIDEO_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)  # of BT.709 and BT.2020

# Code points of PNG's cICP chunk (ITU-T H.273) for pictures of standard range.
_PRIMARIES = {1: ("sRGB", SRGB), 9: ("BT.2020", BT_2020), 12: ("Display P3", DISPLAY_P3)}
_CURVES = {13: SRGB_CURVE, **dict.fromkeys((1, 6, 14, 15), VIDEO_CURVE)}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

# Of 255: a profile that moves no colour by more is sRGB, whoever wrote it. Rounded curves and primaries move it by one.
EQUAL = 1
_GREY = frozenset({"L", "LA", "La", "1", "I;16", "I;16L", "I;16B", "I;16N"})
_STRETCHED = ("I", "F")  # see pixels: their values are no light
_INTENT, _FLAGS = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
_SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True, slots=True)
class Profile:
    """What an image file is tagged with, where that is not sRGB."""

    name: str  # as it calls itself
    icc: bytes
    fault: str = ""  # why it cannot be used: pixels are then read as they stand
    transform: Any = None  # lcms's, of RGB or CMYK pixels
    table: tuple[int, ...] = ()  # of grey pixels: the sRGB value of each of 256

    def applied(self, picture: Image.Image) -> Image.Image:
        """The picture in sRGB: an RGB or grey one, or one of CMYK where the profile is for that."""
        if self.fault:
            return picture
        if self.table:
            return picture.point(self.table * len(picture.getbands()))
        converted = ImageCms.applyTransform(picture, self.transform)
        assert converted is not None
        return converted


def profile_of(image: Any) -> Profile | None:
    """What an opened image is tagged with, None where that is sRGB or nothing; to be asked before it is decoded.

    A profile within the file (ICC), and in PNG files cICP before it, or gAMA with cHRM where there is neither of them
    nor sRGB: PNG's own order. gAMA alone is no tag, since it was written beside other colours than it says.
    """
    if image.mode in _STRETCHED:
        return None
    mode = "CMYK" if image.mode == "CMYK" else "L" if image.mode in _GREY else "RGB"
    if image.format == "PNG":
        codes = _cicp(image.fp)
        if codes is not None:
            return _coded(codes, mode)
    if "icc_profile" in image.info:
        return read(image.info["icc_profile"] or b"", mode)  # None where segments of it are missing
    if image.format == "PNG" and "srgb" not in image.info and {"gamma", "chromaticity"} <= image.info.keys():
        return _measured(image.info["gamma"], image.info["chromaticity"], mode)
    return None


@lru_cache(maxsize=16)  # a set has few; those of printers have half a megabyte
def read(icc: bytes, mode: str) -> Profile | None:
    """A profile for pixels of a mode, RGB, L or CMYK; None where it is sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        space, name = profile.profile.xcolor_space.strip(), _name(profile)
        if space != {"CMYK": "CMYK", "L": "GRAY", "RGB": "RGB"}[mode] and (mode, space) != ("L", "RGB"):
            return Profile(name, icc, f"it is for {space} pixels")
        source = "L" if space == "GRAY" else space
        transform = ImageCms.buildTransform(profile, _SRGB, source, "RGB", _INTENT, _FLAGS)
        if mode == "CMYK":
            return Profile(name, icc, transform=transform)

        # What it does to colours of the whole cube, or to all greys, tells sRGB's own profiles from others.
        probes = Image.linear_gradient("L").resize((1, 256)) if mode == "L" else _cube()
        converted = ImageCms.applyTransform(probes.convert(source), transform)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return Profile("a damaged profile", icc, "lcms cannot read it")
    assert converted is not None
    moved = np.abs(np.asarray(converted, np.int16) - np.asarray(probes.convert("RGB"), np.int16))
    if moved.max() <= EQUAL:
        return None
    table = tuple(np.asarray(converted.getchannel("G")).ravel().tolist()) if mode == "L" else ()
    return Profile(name, icc, transform=transform, table=table)


def matrix_profile(name: str, primaries: Sequence[XY], white: XY, curve: Sequence[float]) -> bytes:
    """An ICC profile (version 4.2) of an RGB space.

    Source: ICC.1:2010; the matrix after SMPTE RP 177, adapted to D50 by Bradford's cones.

    Args:
        primaries: of red, green and blue.
        curve: the five parameters of a curve, or the exponent alone.

    Raises:
        ValueError, ArithmeticError: no such space.
    """
    toward = np.array([_xyz(each) for each in primaries]).T
    matrix = toward * np.linalg.solve(toward, _xyz(white))
    cones = (_BRADFORD @ D50) / (_BRADFORD @ _xyz(white))
    matrix = np.linalg.inv(_BRADFORD) @ (cones[:, None] * (_BRADFORD @ matrix))

    shape = struct.pack(">HH", 3 if len(curve) > 1 else 0, 0) + _fixed(curve)
    words = name.encode("utf-16-be")
    text = struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(words), 28) + words
    tags = {b"desc": b"mluc\0\0\0\0" + text, b"wtpt": b"XYZ \0\0\0\0" + _fixed(D50)}
    for letter, column in zip("rgb", matrix.T, strict=True):
        tags[f"{letter}XYZ".encode()] = b"XYZ \0\0\0\0" + _fixed(column)
        tags[f"{letter}TRC".encode()] = b"para\0\0\0\0" + shape
    directory, content = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        directory += struct.pack(">4sII", tag, 128 + 4 + 12 * len(tags) + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) + len(content), b"", 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + _fixed(D50)
    return header.ljust(128, b"\0") + directory + content


def _fixed(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    """The values as ICC's s15Fixed16 numbers."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _xyz(chromaticity: XY) -> NDArray[np.float64]:
    """XYZ of a chromaticity, its Y being 1."""
    x, y = chromaticity
    if y <= 0:
        raise ValueError(f"chromaticity {x}, {y}")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _cube() -> Image.Image:
    """An RGB picture of 18 × 18 × 18 colours."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3))


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    words = " ".join("".join(filter(str.isprintable, ImageCms.getProfileDescription(profile))).split())
    return words[:60] or "a profile without a name"


def _cicp(file: BinaryIO) -> tuple[int, ...] | None:
    """The four numbers of a PNG file's cICP chunk, which stands before the pixels; None without it."""
    position = file.tell()
    try:
        for kind, start, end in metadata.chunks(file):
            if kind == b"IDAT":
                return None
            if kind == b"cICP" and end - start == 16:
                file.seek(start + 8)
                return tuple(file.read(4))
        return None
    finally:
        file.seek(position)


@lru_cache(maxsize=16)
def _coded(codes: tuple[int, ...], mode: str) -> Profile | None:
    """The profile of cICP's primaries, transfer function, matrix and range."""
    if len(codes) == 4 and codes[0] in _PRIMARIES and codes[1] in _CURVES and codes[2:] == (0, 1):
        name, primaries = _PRIMARIES[codes[0]]
        return read(matrix_profile(f"{name} (cICP)", primaries, D65, _CURVES[codes[1]]), mode)
    words = "/".join(map(str, codes))
    return Profile(f"cICP {words}", b"", "neither sRGB, Display P3 nor BT.2020 of standard range")


@lru_cache(maxsize=16)
def _measured(gamma: float, chromaticity: tuple[float, ...], mode: str) -> Profile | None:
    """The profile of gAMA and cHRM; those of sRGB stand for sRGB, though its curve is no power."""
    name = "gAMA and cHRM"
    if len(chromaticity) != 8:
        return Profile(name, b"", "cHRM is damaged")
    white, *primaries = zip(chromaticity[::2], chromaticity[1::2], strict=True)
    if abs(gamma - 0.45455) < 0.001 and np.allclose([white, *primaries], [D65, *SRGB], atol=0.001):
        return None
    try:
        with np.errstate(all="raise"):  # FloatingPointError is an ArithmeticError
            icc = matrix_profile(name, primaries, white, [1 / gamma])
    except (ValueError, ArithmeticError, struct.error):  # LinAlgError is a ValueError
        return Profile(name, b"", "no colour space has such numbers")
    return read(icc, mode)
