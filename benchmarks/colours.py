"""How far colours move where a profile is ignored, which photos have one, and what other readers of files would see.

`python benchmarks/colours.py FOLDER …`

The folders' images are counted by their profile. Then colours of skin and of lesions, and the photos themselves, are
encoded as a camera would in a wider space; read by their profile they are what they were, and ignored they are not. The
distance is CIEDE2000 (Sharma, Wu and Dalal 2005), the individual typology angle (ITA) that of Chardon et al. 1991:
atan((L* − 50) / b*), in degrees, of which a class of skin colour spans 10 to 40. At last photos are read by profile
and without, in turns; what is counted is this process's own time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skinvl.data import fingerprints, profiles
from skinvl.data.pixels import ImageError, decode, opened, upright
from skinvl.data.profiles import D65, SRGB, SRGB_CURVE

Float = NDArray[np.float64]
ROUNDS = 5

# The ten of the Monk Skin Tone scale (Monk 2019), then what lesions look like on skin.
SKIN = ["f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420"]
LESIONS = {"erythema": "c8645a", "naevus": "6e4632", "blue-white veil": "6e788c", "vascular": "96283c", "pen": "5a3c96"}
# Primaries, white and curve; a curve of one number is a power.
WIDER = {
    "Display P3": (profiles.DISPLAY_P3, D65, SRGB_CURVE),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, (563 / 256,)),
    "ProPhoto RGB": (((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105)), (0.3457, 0.3585), (1.8,)),
}
# CIELAB of solid inks on coated paper (ISO 12647-2:2004, white backing), beside what Pillow makes of them.
INKS = {"cyan": (55, -37, -50), "magenta": (48, 74, -3), "yellow": (89, -5, 93), "black": (16, 0, 0)}
PILLOW = {"cyan": (0, 255, 255), "magenta": (255, 0, 255), "yellow": (255, 255, 0), "black": (0, 0, 0)}


def main() -> None:
    """Prints the tables of docs/data.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of photos")
    options = parser.parse_args()
    files = {folder: sorted(path for path in folder.rglob("*") if path.is_file()) for folder in options.folders}
    for folder, paths in files.items():
        print(f"{folder}: {tagged(paths)}")
    photos = [path for paths in files.values() for path in paths if path.suffix.casefold() in (".jpg", ".jpeg")]

    drawn = np.array([list(bytes.fromhex(each)) for each in (*SKIN, *LESIONS.values())], np.uint8)[None]
    for space in WIDER:
        moved(space, drawn)
        on_photos(space, photos)
    for name, lab in INKS.items():
        print(f"{name} ink: {float(distance(lab_of(np.array(PILLOW[name])), np.array(lab, float))):.0f} in CIEDE2000")
    speed(photos)


def tagged(paths: Iterable[Path]) -> str:
    """How many of the images have which profile."""
    counts = Counter[str]()
    for path in paths:
        try:
            with opened(path, str(path)) as image:
                profile = profiles.profile_of(image)
                own = any(key in image.info for key in ("icc_profile", "srgb", "gamma"))
        except ImageError:
            continue
        counts["none" if not own else "sRGB" if profile is None else profile.name] += 1
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "no images"


def moved(space: str, drawn: NDArray[np.uint8]) -> None:
    """Prints what becomes of drawn colours that a camera stored in a space."""
    stored = as_stored(space, drawn)
    read = np.asarray(converted(space, Image.fromarray(stored)))
    for words, picture in (("by profile", read), ("ignored", stored)):
        apart, angle = distance(lab_of(drawn), lab_of(picture))[0], ita(picture)[0] - ita(drawn)[0]
        levels = np.abs(picture.astype(int) - drawn)[0].max(axis=0)
        skin = slice(len(SKIN))
        print(
            f"{space}, {words}: skin {apart[skin].mean():.2f} ({apart[skin].max():.2f}), ITA {angle[skin].mean():+.1f} "
            f"({angle[skin][np.abs(angle[skin]).argmax()]:+.1f}); lesions {apart[len(SKIN) :].mean():.2f} "
            f"({apart[len(SKIN) :].max():.2f}); red, green, blue by up to {', '.join(map(str, levels))}"
        )


def on_photos(space: str, photos: Iterable[Path]) -> None:
    """Prints how far photos move as a whole, and how many bits their hashes do."""
    apart, angles, bits = [], [], Counter[int]()
    for path in photos:
        true = upright(path)
        stored = Image.fromarray(as_stored(space, np.asarray(true)))
        read = converted(space, stored)
        small = [np.asarray(each.resize((64, 64), Image.Resampling.BOX)) for each in (true, stored)]
        apart.append(float(distance(*map(lab_of, small)).mean()))
        angles.append(float(np.median(ita(small[1]) - ita(small[0]))))
        one, other = (fingerprints.looks(each)["phash"] for each in (read, stored))
        if one is not None and other is not None:
            bits[(one ^ other).bit_count()] += 1
    shown = ", ".join(f"{count} of {number}" for number, count in sorted(bits.items()))
    print(
        f"{space}, {len(apart)} photos ignored: {np.mean(apart):.2f} (at most {max(apart):.2f}), ITA "
        f"{np.mean(angles):+.1f} ({min(angles):+.1f} to {max(angles):+.1f}); hashes apart, bits: {shown}"
    )


def as_stored(space: str, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8[…, 3] in a space, of the light that sRGB's values stand for."""
    primaries, white, curve = WIDER[space]
    to_d50 = adapted(D65, white)
    matrix = np.linalg.inv(to_xyz(primaries, white)) @ to_d50 @ to_xyz(SRGB, D65)
    light = np.clip(lit(picture) @ matrix.T, 0, 1)
    values = encoded(light) if len(curve) > 1 else light ** (1 / curve[0])
    return (values * 255).round().astype(np.uint8)


def converted(space: str, picture: Image.Image) -> Image.Image:
    """The picture as it is read by the profile of a space."""
    profile = profiles.read(profiles.matrix_profile(space, *WIDER[space]), "RGB")
    assert profile is not None
    return profile.applied(picture)


def lit(picture: NDArray[np.uint8]) -> Float:
    """Light from 0 to 1 of sRGB values."""
    values = picture / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: Float) -> Float:
    """Values from 0 to 1 by the curve of sRGB."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def to_xyz(primaries: Iterable[tuple[float, float]], white: tuple[float, float]) -> Float:
    """float64[3, 3], light of a space → XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return np.asarray(columns * np.linalg.solve(columns, xyz(white)))


def xyz(white: tuple[float, float]) -> Float:
    """XYZ of a white of Y = 1."""
    return np.array([white[0] / white[1], 1, (1 - sum(white)) / white[1]])


def adapted(source: tuple[float, float], target: tuple[float, float]) -> Float:
    """float64[3, 3], XYZ under one white → under another, by Bradford's cones."""
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    return np.asarray(np.linalg.inv(cones) @ np.diag((cones @ xyz(target)) / (cones @ xyz(source))) @ cones)


def lab_of(picture: NDArray[np.uint8]) -> Float:
    """float64[…, 3], CIELAB under D65 of sRGB."""
    relative = lit(picture) @ to_xyz(SRGB, D65).T / xyz(D65)
    cube = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / 3 / (6 / 29) ** 2 + 4 / 29)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ita(picture: NDArray[np.uint8]) -> Float:
    """float64[…], the individual typology angle in degrees."""
    lab = lab_of(picture)
    return np.degrees(np.arctan2(lab[..., 0] - 50, lab[..., 2]))


def distance(one: Float, other: Float) -> Float:
    """float64[…], CIEDE2000."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    mean7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    factor = 1.5 - 0.5 * np.sqrt(mean7 / (mean7 + 25.0**7))
    a1, a2 = factor * a1, factor * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + 180) % 360 - 180)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    hue = np.where(c1 * c2 == 0, h1 + h2, (h1 + turn / 2) % 360)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * cosine(hue - 30) + 0.24 * cosine(2 * hue) + 0.32 * cosine(3 * hue + 6) - 0.2 * cosine(4 * hue - 63)
    by_l = (l2 - l1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    by_c, by_h = (c2 - c1) / (1 + 0.045 * chroma), dh / (1 + 0.015 * chroma * t)
    rotation = (
        2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    )
    return np.asarray(np.sqrt(by_l**2 + by_c**2 + by_h**2 - rotation * by_c * by_h))


def cosine(degrees: Float) -> Float:
    """Of an angle in degrees."""
    return np.asarray(np.cos(np.radians(degrees)))


def speed(photos: list[Path]) -> None:
    """Prints images a second by profile and without, in turns: of files without a tag, then of tagged ones."""
    data = [path.read_bytes() for path in photos]
    icc = profiles.matrix_profile("Display P3", *WIDER["Display P3"])
    tags = []
    for content in data:
        file = BytesIO()
        with Image.open(BytesIO(content)) as image:
            image.save(file, "JPEG", quality=90, icc_profile=icc)
        tags.append(file.getvalue())
    for words, contents in (("without a tag", data), ("tagged with Display P3", tags)):
        seconds = {"srgb": 0.0, "ignore": 0.0}
        for turn in range(ROUNDS):
            for number, content in enumerate(contents):
                for reading in sorted(seconds, reverse=(turn + number) % 2 == 0):
                    started = time.process_time()
                    with opened(BytesIO(content), "photo") as image:
                        profile = profiles.profile_of(image) if reading == "srgb" else None
                        decode(image, "photo", profile).convert("RGB")
                    seconds[reading] += time.process_time() - started
        srgb, ignore = (ROUNDS * len(contents) / seconds[reading] for reading in ("srgb", "ignore"))
        print(f"{words}: {srgb:.0f} images a second by profile, {ignore:.0f} without; ratio {srgb / ignore:.3f}")


if __name__ == "__main__":
    sys.exit(main())
