"""The pixels of an image file as every model sees them; Pillow opens files here and nowhere else.

Files are told by their content, never by the ending of their name.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from skinvl.data import metadata, profiles
from skinvl.data.profiles import Profile, Profiles

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # no other decoder runs: EPS, say, would start Ghostscript
MAX_BYTES = 512 * 2**20  # of one file
MAX_PIXELS = 80_000_000  # of one frame; three times what a clinical camera takes, and below Pillow's own warning
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
# What Pillow raises on damaged files: the first four in a fuzz of 400,000, the others by its decoders' own code.
DAMAGED = (
    OSError,  # UnidentifiedImageError is one
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)
# Where such a file is damaged, libtiff gives what stood in memory, other pixels at every reading, and no error.
_JPEG_IN_TIFF = (6, 7)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that cannot be had; `rule` is missing-image, unreadable-image, lfs-pointer or unsafe-path."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule, self.detail = rule, detail


def upright(path: Path, profiles: Profiles = "srgb") -> Image.Image:
    """The RGB pixels of the first frame, turned as EXIF says: what every reader of pixels uses.

    Transparency is shown on white, as the processors of Mllama and Qwen-VL show it: dropping the alpha would show
    whatever colour lies under it. Grey of 16 bits loses its lower 8, and integer or float grey is stretched from its
    own least to its greatest value, where Pillow would clip both at 255.

    Args:
        profiles: srgb converts what the file is tagged with, which `profiles` says; ignore leaves the values as they
            stand in the file.

    Raises:
        ImageError: no such file, a Git LFS pointer, damaged, too large, or of none of FORMATS.
    """
    with opened(path, str(path)) as image:
        return decode(image, str(path), _applied(image, profiles)).convert("RGB")


def cropped(
    path: Path,
    side: int,
    resample: Image.Resampling,
    choose: Callable[[int, int], tuple[float, float, float, float]],
    profiles: Profiles = "srgb",
) -> Image.Image:
    """A rectangle of what `upright` gives, as RGB of `side` by `side` pixels.

    A JPEG is decoded at a half, a quarter or an eighth of its sides where the rectangle has at least `side` pixels a
    side then too: what is resampled anyway need not be decoded whole.

    Args:
        choose: height and width of the upright image → left, top, right and bottom of the rectangle in it.
        profiles: as of `upright`.

    Raises:
        ImageError: as `upright`.
    """
    with opened(path, str(path)) as image:
        if is_jpeg := image.format in ("JPEG", "MPO"):
            turned = orientation(image) > 4
            width, height = image.size[::-1] if turned else image.size
            left, top, right, bottom = choose(height, width)
            # Pillow takes the smallest fraction that is not below what is asked for.
            least = ceil(width * side / (right - left)), ceil(height * side / (bottom - top))
            image.draft(None, least[::-1] if turned else least)
        picture = decode(image, str(path), _applied(image, profiles))
    if is_jpeg:
        across, down = picture.width / width, picture.height / height
        box = left * across, top * down, min(right * across, picture.width), min(bottom * down, picture.height)
    else:
        box = choose(picture.height, picture.width)
    return picture.convert("RGB").resize((side, side), resample, box)


def data_url(path: Path, side: int, quality: int, profiles: Profiles = "srgb") -> str:
    """The image as a data: address of a JPEG file whose longest side is at most `side` pixels; never enlarged.

    It is encoded anew whatever it was, so that nothing but pixels is left of the file.

    Args:
        quality: of JPEG, 1 to 95.
        profiles: as of `upright`.

    Raises:
        ImageError: it cannot be read.
    """
    image = upright(path, profiles)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getbuffer()).decode()}"


def size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of what `upright` gives, from the header alone.

    Raises:
        ImageError: as `upright` does, where the header shows it.
    """
    with opened(path, str(path)) as image:
        width, height = image.size
        turned = orientation(image) > 4 and not (image.format == "TIFF" and _tag(image) in _TURNS)
    return (width, height) if turned else (height, width)  # Pillow gives a turned TIFF's size upright


def opened(source: Path | BinaryIO, name: str) -> Any:
    """The opened image, a context manager, of which only the header was read."""
    try:
        image = Image.open(source, formats=FORMATS)
        width, height = image.size
        if image.format == "TIFF":  # a tile is decoded whole, however small the image is
            tiles = (_tag(image, ExifTags.Base.TileWidth), _tag(image, ExifTags.Base.TileLength))
            width, height = (max(side, tile) for side, tile in zip((width, height), tiles, strict=True))
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing-image", f"{name}: no such file") from None
    except DAMAGED as error:
        if isinstance(source, Path) and _is_pointer(source):
            raise ImageError("lfs-pointer", f"{name}: a Git LFS pointer, not the image") from error
        raise _unreadable(name, error) from error
    if image.format == "TIFF" and _tag(image, ExifTags.Base.Compression) in _JPEG_IN_TIFF:
        image.close()
        raise ImageError("unreadable-image", f"{name}: JPEG inside a TIFF is not read; save it as JPEG or PNG")
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError("unreadable-image", f"{name}: {width} × {height} pixels; at most {MAX_PIXELS:,} are read")
    return image


def _unreadable(name: str, error: BaseException) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        return ImageError(
            "unreadable-image", f"{name}: no image that can be read; expected one of {', '.join(FORMATS)}"
        )
    return ImageError("unreadable-image", f"{name}: {type(error).__name__}: {error}")


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except (OSError, ValueError):
        return False


def _tag(image: Any, tag: int = ExifTags.Base.Orientation) -> int:
    """A tag of a TIFF file; 0 where there is none, or no number."""
    value = image.tag_v2.get(tag)
    return value if isinstance(value, int) else 0


def orientation(image: Any) -> int:
    """1 to 8 as EXIF (in PNG files wherever it stands) or else XMP says; to be asked before the pixels are decoded."""
    try:
        if image.format == "PNG" and "exif" not in image.info:
            image.info |= _late_exif(image.fp)
        # PNG's own method would decode the pixels first.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except DAMAGED:
        return 1  # the pixels can be good all the same
    return value if isinstance(value, int) and value in _TURNS else 1


def _late_exif(file: BinaryIO) -> dict[str, bytes]:
    position = file.tell()
    try:
        for kind, start, end in metadata.chunks(file):
            if kind == b"eXIf":
                file.seek(start + 8)
                return {"exif": b"Exif\0\0" + file.read(min(end - start - 12, 2**16))}
        return {}
    finally:
        file.seek(position)


def _applied(image: Any, reading: Profiles) -> Profile | None:
    """The profile that an opened image is to be converted by."""
    return profiles.profile_of(image) if reading == "srgb" else None


def decode(image: Any, name: str, profile: Profile | None = None) -> Image.Image:
    """The upright pixels, RGB or 8-bit grey (L).

    Args:
        profile: what they are converted to sRGB by; None leaves them as they stand.

    Raises:
        ImageError: the file is damaged.
    """
    turn = orientation(image)
    try:
        image.load()
        # Ink becomes light by its own profile; by none it becomes Pillow's red, green and blue.
        inks = profile is not None and not profile.fault and image.mode == "CMYK"
        picture = image if inks else _shown(image)
        if profile is not None:
            picture = profile.applied(picture)
    except DAMAGED as error:
        raise _unreadable(name, error) from error
    if turn != 1 and image.format != "TIFF":  # Pillow turns a TIFF while it loads
        picture = picture.transpose(_TURNS[turn])
    picture.info = {}  # or a reader that knows of EXIF would turn it once more
    return picture


def _shown(image: Image.Image) -> Image.Image:
    """RGB, or L where there is no more to show."""
    if image.mode in ("RGB", "L") and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        grey = np.nan_to_num(np.asarray(image, np.float64))
        grey -= grey.min()
        return Image.fromarray((grey * (255 / (grey.max() or 1))).round().astype(np.uint8))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        alpha = shown.getchannel("A")
        if alpha.getextrema() != (255, 255):
            white = Image.new("RGB", image.size, "white")
            white.paste(shown, mask=alpha)
            return white
        return shown.convert("RGB")
    return image.convert("RGB")
