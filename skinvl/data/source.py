"""A prepared source as others read it: its folder, its card, and the table of its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skinvl.data.example import have, splits
from skinvl.data.fingerprints import LOOKS
from skinvl.recipe.files import read_json

# One row per image of a prepared source.
IMAGES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # as Example.images has it
        ("sha256", pa.string()),  # hexadecimal, of the original file
        ("phash", pa.uint64()),  # null where the picture is too flat to tell
        ("turned", pa.list_(pa.uint64(), 7)),  # the phash of each of its other positions, mirrored or turned
        ("signs", pa.binary(32)),  # of its 16 × 16 lowest frequencies, a longer hash
        ("archive", pa.string()),  # the ISIC archive's id, null where the name has none
        ("width", pa.int32()),  # pixels, upright
        ("height", pa.int32()),
    ]
)
_ARCHIVE = "archive "  # before the name of one
_AGAIN = "prepare the source again with: skinvl prep DATASET RAW OUT (skinvl prep --list)"


def source_folder(source: str, data: Path = Path("data")) -> Path:
    """Where a prepared source lies: a path, which has a slash, as given; a bare name under `data/`."""
    return Path(source) if "/" in source else data / source


def source_splits(name: str) -> list[tuple[Path, str]]:
    """The (source, split) pairs that a word of the command line names: SOURCE or SOURCE:SPLIT.

    Raises:
        FileNotFoundError: there is no such source or split.
    """
    root, split = source_folder(name), ""
    if not root.is_dir() and ":" in name:
        source, _, split = name.rpartition(":")
        root = source_folder(source)
    names = splits(root)
    if not names or (split and split not in names):
        raise FileNotFoundError(f"{name}: no such set in {root}; {have(root)}")
    return [(root, split_name) for split_name in ([split] if split else names)]


def read_card(source: Path) -> dict[str, Any]:
    """What the card of a prepared source says; nothing where it has none.

    Raises:
        ValueError: the card cannot be read.
    """
    path = source / "card.json"
    if not path.is_file():
        return {}
    return read_json(path, _AGAIN)


def source_name(source: Path) -> str:
    """What a prepared source is called: its folder."""
    return source.name or source.resolve().name


def namespace(source: Path) -> str:
    """Where the names of a source's groups hold: in the archive that its card names, else in this source alone.

    Raises:
        ValueError: the card cannot be read.
    """
    archive = read_card(source).get("archive")
    return f"{_ARCHIVE}{archive}" if archive else f"source {source.resolve()}"


def full_name(space: str, name: str) -> str:
    """The name of a group with where it holds; one that names an archive itself holds there, whatever the source.

    >>> full_name("source /data/a", "7"), full_name("source /data/a", "archive ddi: 000001.png")
    ('source /data/a: 7', 'archive ddi: 000001.png')
    """
    return name if name.startswith(_ARCHIVE) else f"{space}: {name}"


def full_names(space: str, names: pa.Array) -> pa.Array:
    """`full_name` of each."""
    whole = pc.binary_join_element_wise(space, names, ": ")
    return pc.if_else(pc.starts_with(names, _ARCHIVE), names, whole)


def read_images(folder: Path) -> pa.Table:
    """The images of a prepared source: a table of IMAGES_SCHEMA.

    Raises:
        FileNotFoundError: the source has no such table.
        ValueError: the file is not one.
    """
    path = folder / "images.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is needed to find shared images; {_AGAIN}")
    try:
        names = pq.read_schema(path).names
        if missing := [name for name in IMAGES_SCHEMA.names if name not in names]:
            raise ValueError(f"no column {', '.join(missing)}")
        return pq.read_table(path, columns=IMAGES_SCHEMA.names, partitioning=None).cast(IMAGES_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: not a table of images ({error}); {_AGAIN}") from error


def used_images(source: Path, paths: pa.Array) -> tuple[pa.Table, NDArray[np.int64]]:
    """The named images of a prepared source, each once, as a table of IMAGES_SCHEMA, and int64[N], the place of each.

    They have no perceptual hashes where the card says that images which look alike are not the same.

    Raises:
        FileNotFoundError, ValueError: see `read_images`; or an image that the table does not have.
    """
    if len(paths) == 0:
        return IMAGES_SCHEMA.empty_table(), np.empty(0, np.int64)
    images = read_images(source)
    positions = pc.index_in(paths, value_set=images["path"].combine_chunks())
    if positions.null_count:
        absent = pc.filter(paths, pc.is_null(positions))[0].as_py()
        raise ValueError(f"{source / 'images.parquet'}: has no row of {absent}, which a conversation shows; {_AGAIN}")
    used, inverse = np.unique(positions.to_numpy(), return_inverse=True)
    images = images.take(used)
    if not read_card(source).get("alike", True):
        for name in LOOKS:
            field = IMAGES_SCHEMA.field(name)
            images = images.set_column(IMAGES_SCHEMA.get_field_index(name), field, pa.nulls(len(images), field.type))
    return images, np.asarray(inverse, np.int64)
