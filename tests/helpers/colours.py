"""Colours for tests: profiles as others write them, and the CIE's own arithmetic beside which lcms is held."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from skinvl.data.profiles import BT_2020, D65, DISPLAY_P3, SRGB, SRGB_CURVE, VIDEO_CURVE, XY, matrix_profile

ADOBE_RGB: tuple[XY, XY, XY] = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PROPHOTO: tuple[XY, XY, XY] = ((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105))
# Primaries, white and curve of each space.
SPACES = {
    "Display P3": (DISPLAY_P3, D65, SRGB_CURVE),
    "Adobe RGB": (ADOBE_RGB, D65, (563 / 256,)),
    "ProPhoto RGB": (PROPHOTO, (0.3457, 0.3585), (1.8,)),
    "BT.2020": (BT_2020, D65, VIDEO_CURVE),
}
ICC = {name: matrix_profile(name, *space) for name, space in SPACES.items()}


def linear(name: str, values: np.ndarray) -> np.ndarray:
    """Light from 0 to 1 of values float64[…] from 0 to 1 in a space."""
    curve = SPACES[name][2]
    if len(curve) == 1:
        return values ** curve[0]
    g, a, b, c, d = curve
    return np.where(values >= d, (a * values + b) ** g, c * values)


def to_xyz(primaries: Sequence[XY], white: XY) -> np.ndarray:
    """float64[3, 3], light of a space → XYZ, its white's Y being 1."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, [white[0] / white[1], 1, (1 - sum(white)) / white[1]])


def srgb(name: str, pixels: np.ndarray) -> np.ndarray:
    """float64[…, 3] from 0 to 255, sRGB of uint8[…, 3] in a space whose white is D65: no adaptation is needed."""
    matrix = np.linalg.inv(to_xyz(SRGB, D65)) @ to_xyz(SPACES[name][0], D65)
    light = np.clip(linear(name, pixels / 255) @ matrix.T, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 with these tags beside its description, for pixels of a space of four letters."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 6) + b"drawn\0" + bytes(78), **tags}
    directory, content = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        directory += struct.pack(">4sII", tag, 132 + 12 * len(tags) + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    kind, connection = (b"prtr", b"Lab ") if space == b"CMYK" else (b"mntr", b"XYZ ")
    head = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) + len(content), b"", 0x02100000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + directory + content


def curve(values: np.ndarray) -> bytes:
    """A curve tag of values from 0 to 1 at even steps."""
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + (values * 65535).round().astype(">u2").tobytes()


def srgb_of_table(entries: int) -> bytes:
    """sRGB as HP wrote it in 1998: rounded primaries, and a curve of so many entries."""
    values = np.linspace(0, 1, entries)
    rounded = {b"r": (0.43607, 0.22249, 0.01392), b"g": (0.38515, 0.71687, 0.09708), b"b": (0.14307, 0.06061, 0.7141)}
    tags = {}
    for letter, column in rounded.items():
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in column))
        light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        tags[letter + b"TRC"] = curve(light)
    return profile(b"RGB ", tags)


def grey(gamma: float) -> bytes:
    """A grey profile with a power for its curve."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return profile(b"GRAY", {b"wtpt": white, b"kTRC": curve(np.linspace(0, 1, 256) ** gamma)})


def ink(darkest: float) -> bytes:
    """A CMYK profile: L* falls from 100 to `darkest` by whichever ink there is most of, and cyan alone has a colour."""
    inks = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    lightness = 100 - (100 - darkest) * inks.max(axis=1)
    lab = np.stack([lightness / 100 * 255, 128 - 60 * inks[:, 0], np.full(16, 128.0)], axis=1)
    back = np.repeat([[0, 0, 0, 255], [0, 0, 0, 0]], 4, axis=0)  # of L* 0 and 100, whatever a* and b* are
    tags = {b"A2B0": _table(4, lab), b"B2A0": _table(3, back)}
    return profile(b"CMYK", tags | {b"A2B1": tags[b"A2B0"], b"B2A1": tags[b"B2A0"]})


def _table(channels: int, values: np.ndarray) -> bytes:
    """A table tag of two steps a channel: the values uint8[2^channels, out] at its corners."""
    even = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if number % 4 == 0 else 0 for number in range(9)))
    head = b"mft1\0\0\0\0" + bytes([channels, values.shape[1], 2, 0]) + matrix
    return head + even * channels + values.round().astype(np.uint8).tobytes() + even * values.shape[1]
