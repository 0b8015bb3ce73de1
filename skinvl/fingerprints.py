"""What tells that two files show one image: their bytes, the ISIC archive's id, a perceptual hash; and the clusters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

import faiss
import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Kind = Literal["sha256", "archive", "phash"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Pairs = NDArray[np.int64]  # [P, 2]

# Bits. At 4 every JPEG of quality 30 or more, every half- or quarter-size copy and every brightness within 10 % of 245
# real photos is found, and 94 % of those cropped by 1 % a side. Among 400,000 images an estimated 9,000 pairs of
# strangers lie this near; at 6 it is 55,000, and at 8 300,000, enough to chain a large part into one cluster.
THRESHOLD = 4
# Grey levels between the darkest and the brightest of 32 × 32 cells. Real photos have 45 or more; with less than 12 a
# JPEG's own rounding turns more bits than THRESHOLD.
FLAT = 12
THIN = 160  # pixels a side that are looked at; a multiple of 32, so that the cells lie on every copy alike
BATCH = 8_192  # hashes that are searched for at once

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

    Source: DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), as
    computed by the ImageHash library.
    """
    if min(picture.size) > THIN:
        small = picture.resize((THIN, THIN), Image.Resampling.NEAREST).reduce(THIN // 32)
    else:
        small = picture.resize((32, 32), Image.Resampling.LANCZOS)
    grey = small.convert("L")
    low, high = cast(tuple[int, int], grey.getextrema())
    if high - low < FLAT:
        return None
    return int.from_bytes(np.packbits(imagehash.phash(grey).hash.ravel()).tobytes(), "big")


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


def near(hashes: NDArray[np.uint64], threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], the places of hashes at most `threshold` bits apart, each pair once and the lower place first.

    Exact. Equal hashes are linked as a chain, each with the next, and only the first of them with other hashes: so
    100,000 equal ones cost nothing, and clusters are the same as if every pair were given.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    same = inverse[order[1:]] == inverse[order[:-1]]
    chains = np.stack([order[:-1][same], order[1:][same]], axis=1)
    found = [np.sort(first[pairs], axis=1) for pairs in _search(unique, threshold)]
    return np.concatenate([chains.astype(np.int64), *found])


def _search(unique: NDArray[np.uint64], threshold: int) -> Iterator[Pairs]:
    """The pairs of different hashes, batch by batch: each batch against itself and what follows."""
    codes = np.ascontiguousarray(unique).view(np.uint8).reshape(-1, 8)
    for start in range(0, len(codes), BATCH):
        index = faiss.IndexBinaryFlat(64)
        index.add(codes[start:])
        count = min(BATCH, len(codes) - start)
        limits, _, found = index.range_search(codes[start : start + count], threshold + 1)  # faiss looks below it
        asked = np.repeat(np.arange(count), np.diff(limits).astype(np.int64))
        later = found > asked  # each pair once
        pairs: Pairs = np.stack([asked[later], found[later]], axis=1).astype(np.int64)
        yield pairs + start


def shared(table: pa.Table, kind: Kind, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of SCHEMA that are one image by one kind of evidence; equal ones as a chain."""
    column = table[kind].combine_chunks()
    places = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    known = column.drop_null()
    if kind == "phash":
        return np.asarray(places[near(known.to_numpy(), threshold)], np.int64)
    codes = pc.dictionary_encode(known).indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    return np.asarray(places[np.stack([order[:-1][same], order[1:][same]], axis=1)], np.int64)


def links(table: pa.Table, *, alike: bool = True, threshold: int = THRESHOLD) -> Pairs:
    """int64[P, 2], rows of a table of SCHEMA that are one image by any evidence, by the perceptual hash if `alike`."""
    return np.concatenate([shared(table, kind, threshold) for kind in KINDS if alike or kind != "phash"])


def clusters(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """int64[count], the lowest member of the cluster of each one, where pairs link."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return np.asarray(first[label], np.int64)
