"""Image files without what they tell beside the picture: where, when, by whom and with what it was taken."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

_PNG = b"\x89PNG\r\n\x1a\n"
# Pixels, transparency, and how colours and sizes are meant; frames of an animation after the first are not read.
_PNG_KEPT = frozenset(b"IHDR PLTE tRNS IDAT cHRM gAMA iCCP sBIT sRGB cICP pHYs".split())
_WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"})
_SCAN, _END = 0xDA, 0xD9
# Frame headers, Huffman and arithmetic tables, quantization, restart interval.
_JPEG_KEPT = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDD}) - {0xC8}
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # stuffed, restart and fill bytes are part of a scan


def stripped(data: bytes, kind: str, orientation: int) -> bytes | None:
    """The file with what its pixels and colours need and nothing else: equal to `data` where that is so already.

    None where that cannot be had without decoding: GIF, TIFF and BMP files have room for bytes that no reader shows,
    so that none of them is known to be clean. A profile of the colours (ICC) is kept.

    Args:
        data: a file that Pillow reads.
        kind: its format, as Pillow names it.
        orientation: 1 to 8; an EXIF block of this alone is kept or put in, unless it is 1.
    """
    if kind in ("JPEG", "MPO"):
        return _jpeg(data, orientation)
    if kind == "PNG":
        return _png(data, orientation)
    return data if kind == "WEBP" and _is_bare_webp(data) else None


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the chunks of a PNG file, up to the last whole header; the content is not read."""
    start = len(_PNG)
    while True:
        file.seek(start)
        header = file.read(8)
        if len(header) < 8:
            return
        end = start + 12 + int.from_bytes(header[:4])
        yield header[4:], start, end
        start = end


def _exif(orientation: int) -> bytes:
    """An EXIF block (a big-endian TIFF header and one directory) that holds the orientation alone."""
    entry = b"\x01\x12\x00\x03" + (1).to_bytes(4) + orientation.to_bytes(2) + bytes(2)
    return b"MM\x00\x2a" + (8).to_bytes(4) + (1).to_bytes(2) + entry + bytes(4)


def _png(data: bytes, orientation: int) -> bytes:
    """The chunks of `_PNG_KEPT` up to the end of the image; an orientation follows the header."""
    kept = [_PNG]
    for kind, start, end in chunks(BytesIO(data)):
        if kind == b"IEND" or end > len(data):
            break
        if kind in _PNG_KEPT:
            kept.append(data[start:end])
        if kind == b"IHDR" and orientation != 1:
            kept.append(_chunk(b"eXIf", _exif(orientation)))
    return b"".join([*kept, _chunk(b"IEND", b"")])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def _jpeg(data: bytes, orientation: int) -> bytes:
    """The segments up to the first end of image; a second one (motion photo, depth map) is not of the picture."""
    # Segment by segment from behind the start of the image; a scan goes on beyond the length that its header gives.
    kept = []
    start = 2
    while (start := data.find(b"\xff", start)) >= 0 and start + 4 <= len(data):
        marker = data[start + 1]
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        if marker == _END:
            break
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these have no length
            start += 2
            continue
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if marker == _SCAN:
            after = _AFTER_SCAN.search(data, end)
            end = after.start() if after else len(data)
        kept.append(_segment(data[start:end]))
        start = end

    # The orientation stands where readers look for it: first, or right behind JFIF's own segment.
    if orientation != 1:
        exif = b"Exif\0\0" + _exif(orientation)
        kept.insert(bool(kept and kept[0][:2] == b"\xff\xe0"), b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif)
    return b"".join([b"\xff\xd8", *kept, b"\xff\xd9"])


def _segment(segment: bytes) -> bytes:
    """The segment, or what is kept of it: JFIF without its thumbnail, Adobe's colour transform, colour profiles."""
    marker, content = segment[1], segment[4:]
    if marker == _SCAN or marker in _JPEG_KEPT:
        return segment
    if marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14:
        return b"\xff\xe0\x00\x10" + content[:12] + bytes(2)
    if marker == 0xE2 and content.startswith(b"ICC_PROFILE\0"):
        return segment
    if marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
        return b"\xff\xee\x00\x0e" + content[:12]
    return b""


def _is_bare_webp(data: bytes) -> bool:
    """Whether the file holds one frame, perhaps a colour profile, and nothing before, between or after."""
    start = 12
    while start + 8 <= len(data) and data[start : start + 4] in _WEBP_KEPT:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + size + size % 2
    return start == len(data) == 8 + int.from_bytes(data[4:8], "little")
