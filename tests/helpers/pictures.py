"""Image files for tests: of every format, full of what nobody should learn, and what is made of them."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from skinvl.data.pixels import upright
from skinvl.sources.prepare.images import Looked, look

RNG = np.random.default_rng(7)
NOISE = Image.fromarray(RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8))
SECRETS = (b"Ada Patient", b"Canon 5D", b"2021:03:04", b"hospital")
SAVED = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "GIF": {}, "BMP": {}}


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def exif(turn: int = 1, private: bool = False) -> Image.Exif:
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = turn
    if private:
        block[ExifTags.Base.Artist] = SECRETS[0].decode()
        block[ExifTags.Base.Model] = SECRETS[1].decode()
        block[ExifTags.Base.DateTime] = SECRETS[2].decode()
        block.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    return block


def looked(raw: Path, name: str, data: bytes | None = None) -> tuple[Looked, Path]:
    """What is said of an image, and where it lies; the file is written first if its bytes are given."""
    if data is not None:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(data)
    out = raw.parent / "out"
    found = look(raw, name, out)
    assert (found.rule is None) == bool(found.placed) == bool(found.sha256) == bool(found.width)
    assert bool(found.detail) == bool(found.rule)
    return found, out / found.placed


def array(path: Path) -> np.ndarray:
    return np.asarray(upright(path))


def photograph(kind: str) -> bytes:
    """A file full of what nobody should learn from a training set."""
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + SECRETS[3] + b"</x:xmpmeta>"
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Author", SECRETS[0].decode())
        texts.add_text("Comment", SECRETS[1].decode() * 9, zip=True)
        texts.add_itxt("Ort", SECRETS[3].decode())
        texts.add(b"tIME", bytes([7, 229, 3, 4, 1, 1, 1]))
        texts.add(b"prVt", SECRETS[0])
        return saved(NOISE, kind, exif=exif(6, private=True), pnginfo=texts) + SECRETS[1]
    if kind == "GIF":
        return saved(NOISE, kind, comment=SECRETS[0]) + SECRETS[1]
    if kind == "BMP":
        return saved(NOISE, kind) + SECRETS[1]
    if kind == "TIFF":
        return saved(NOISE, kind, exif=exif(6, private=True), compression="tiff_lzw") + SECRETS[3]
    if kind == "WEBP":
        return saved(NOISE, kind, exif=exif(6, private=True), xmp=xmp, lossless=True)
    data = saved(NOISE, "JPEG", exif=exif(6, private=True), xmp=xmp, comment=SECRETS[1], progressive=True, quality=95)
    place = data.index(b"\xff\xdb")
    thumbnail = b"\xff\xe0" + (22).to_bytes(2) + b"JFXX\0\x13" + b"Ada Patient\0\0\0"
    photoshop = b"\xff\xed" + (2 + 14 + 22).to_bytes(2) + b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\x0aAda Patien"
    maps = b"\xff\xe2" + (2 + 4 + 11).to_bytes(2) + b"MPF\0" + b"Ada Patient"
    second = saved(Image.new("RGB", (8, 8)), "JPEG", comment=SECRETS[0])
    scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    between = b"\xff\xfe\x00\x0dAda Patient"
    return data[:place] + thumbnail + photoshop + maps + data[place:scan] + between + data[scan:] + second + b"hospital"


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)
