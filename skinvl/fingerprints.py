"""What tells that two files show one image: their bytes, the ISIC archive's id, a perceptual hash."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

# Grey levels between the darkest and the brightest of 32 × 32 cells. Real photos have 45 or more; with less than 12 a
# JPEG's own rounding turns more bits than THRESHOLD.
FLAT = 12
THIN = 160  # pixels a side that are looked at; a multiple of 32, so that the cells lie on every copy alike

_COSINES = np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))  # [8, 32], DCT-II of low frequency

# One row per image of a prepared source.
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # as Example.images has it
        ("sha256", pa.string()),  # hexadecimal, of the original file
        ("phash", pa.uint64()),  # null where the picture is too flat to tell
        ("archive", pa.string()),  # the ISIC archive's id, null where the name has none
        ("width", pa.int32()),  # pixels, upright
        ("height", pa.int32()),
    ]
)
_AGAIN = "Prepare the source again with: skinvl prep DATASET RAW OUT (skinvl prep --list)"
_ARCHIVE = re.compile(r"(?<![A-Za-z0-9])ISIC_(\d{7})(?!\d)", re.IGNORECASE)


def phash(picture: Image.Image) -> int | None:
    """The 64-bit perceptual hash of an RGB or grey picture, None where it is too flat to tell.

    Source: DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010). On the
    32 × 32 cells it gives the bits of the ImageHash library's `phash`, in a sixth of its time.
    """
    if min(picture.size) > THIN:
        small = picture.resize((THIN, THIN), Image.Resampling.NEAREST).reduce(THIN // 32)
    else:
        small = picture.resize((32, 32), Image.Resampling.LANCZOS)
    grey = small.convert("L")
    low, high = cast(tuple[int, int], grey.getextrema())
    if high - low < FLAT:
        return None
    low = _COSINES @ np.frombuffer(grey.tobytes(), np.uint8).reshape(32, 32) @ _COSINES.T
    ordered = np.sort(low, axis=None)
    return int.from_bytes(np.packbits(low > (ordered[31] + ordered[32]) / 2).tobytes(), "big")


def sha256(path: Path) -> str:
    """64 hexadecimal digits of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def archive_id(path: str) -> str | None:
    """The ISIC archive's id in a file's name, such as ISIC_0024306; None where it has none."""
    found = _ARCHIVE.search(path.replace("\\", "/").rsplit("/", 1)[-1])
    return f"ISIC_{found[1]}" if found else None


def read(folder: Path) -> pa.Table:
    """The images of a prepared source: a table of SCHEMA.

    Raises:
        FileNotFoundError: the source has no such table.
        ValueError: the file is not one.
    """
    path = folder / "images.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is needed to find shared images. {_AGAIN}")
    try:
        names = pq.read_schema(path).names
        if missing := [name for name in SCHEMA.names if name not in names]:
            raise ValueError(f"no column {', '.join(missing)}")
        return pq.read_table(path, columns=SCHEMA.names, partitioning=None).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: not a table of images ({error}). {_AGAIN}") from error


def folder(source: str, data: Path = Path("data")) -> Path:
    """Where a prepared source lies: a path, which has a slash, as given; a bare name under `data/`."""
    return Path(source) if "/" in source else data / source


def card(source: Path) -> dict[str, Any]:
    """What the card of a prepared source says; nothing where it has none.

    Raises:
        ValueError: the card cannot be read.
    """
    path = source / "card.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a card ({error}). {_AGAIN}") from error


def used(source: Path, paths: pa.Array) -> tuple[pa.Table, NDArray[np.int64]]:
    """The named images of a prepared source, each once, as a table of SCHEMA, and int64[N], the place of each name.

    They have no perceptual hash where the card says that images which look alike are not the same.

    Raises:
        FileNotFoundError, ValueError: see `read`; or an image that the table does not have.
    """
    if len(paths) == 0:
        return SCHEMA.empty_table(), np.empty(0, np.int64)
    images = read(source)
    found = pc.index_in(paths, value_set=images["path"].combine_chunks())
    if found.null_count:
        absent = pc.filter(paths, pc.is_null(found))[0].as_py()
        raise ValueError(f"{source / 'images.parquet'}: has no row of {absent}, which a conversation shows. {_AGAIN}")
    places, inverse = np.unique(found.to_numpy(), return_inverse=True)
    images = images.take(places)
    if not card(source).get("alike", True):
        images = images.set_column(
            SCHEMA.get_field_index("phash"), SCHEMA.field("phash"), pa.nulls(len(images), pa.uint64())
        )
    return images, np.asarray(inverse, np.int64)
