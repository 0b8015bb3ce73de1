"""The images of a raw download: each verified, hashed and placed in the source without its metadata."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from skinvl.data import dicom_pixels, fingerprints, metadata
from skinvl.data.example import inside
from skinvl.data.pixels import LFS_POINTER, MAX_BYTES, ImageError, decode, opened, orientation
from skinvl.data.profiles import Profile, Profiles, profile_of
from skinvl.data.workers import advance
from skinvl.recipe.files import write_bytes

_CELL = re.compile(r"(.+\.parquet)#([0-9]{1,18})", re.DOTALL)
_KEY = re.compile(r"(.+\.hdf5)#([\w-]{1,100})", re.DOTALL | re.ASCII)
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and halves of surrogate pairs


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of one image of a raw download; with a `rule`, the image was refused and nothing was placed."""

    path: str  # as the Example named it: relative to RAW
    placed: str = ""  # relative to OUT: images/…
    rule: str | None = None
    detail: str = ""
    sha256: str = ""  # of the original file's bytes
    phash: int | None = None  # this and the next two: see fingerprints.Looks
    turned: list[int] | None = None
    signs: bytes | None = None
    archive: str | None = None
    width: int = 0  # pixels, upright
    height: int = 0
    profile: str | None = None  # of its colours, where it is tagged with another than sRGB
    fault: str | None = None  # why that cannot be used, where it was to be


def look_at(raw: Path, paths: Sequence[str], out: Path, profiles: Profiles) -> list[Looked]:
    """Each of some images of a raw download; see `look`."""
    looked = [look(raw, path, out, profiles) for path in paths]
    advance(len(looked))
    return looked


def look(raw: Path, path: str, out: Path, profiles: Profiles = "srgb") -> Looked:
    """One image of a raw download, verified, hashed, and placed in `out/images/` if it can be read.

    The placed file holds no metadata: where the original has none it is a hard link to it (a copy where that fails),
    else a file of equal pixels without it. A JPEG or PNG keeps its compressed pixels, and EXIF of nothing but its
    orientation; others become PNG files, upright, whatever their name says. Colours are not converted there, and their
    profile stays (but ink becomes sRGB in a PNG). The file appears whole or not at all, and one that a killed run left
    is replaced.

    Args:
        path: relative to `raw`; `<file>.parquet#<row>` is the image in the `bytes` of the first column of images,
            `<file>.hdf5#<key>` the one under a key, and either is placed at `images/<file>/<row or key>.<ending>`. A
            DICOM file, whose path can name a patient, is placed and told by a digest of its bytes.
        profiles: how its colours are read for the hashes.
    """
    try:
        # The bytes, from a file of their own, a cell of a table or a key of an archive.
        cell, key = _CELL.fullmatch(path), _KEY.fullmatch(path)
        inner = cell or key
        source = _real(raw, inner[1] if inner else path)
        data = _cell(source, int(cell[2]), path) if cell else _value(source, key[2]) if key else _bytes(source, path)
        if data.startswith(LFS_POINTER):
            raise ImageError("lfs-pointer", f"{path}: a Git LFS pointer, not the image")
        digest = hashlib.sha256(data).hexdigest()

        # The pixels, which prove that it can be read, and the same file without metadata.
        clean: bytes | None
        if is_dicom := dicom_pixels.is_dicom(data):
            picture = dicom_pixels.picture(data, f"DICOM file {digest[:20]}")
            kind, clean = _bare(None, "DICOM", 1, picture, f"DICOM file {digest[:20]}")
            seen, profile = picture, profile_of(picture)
        else:
            with opened(BytesIO(data), path) as image:
                kind, turn, inks = image.format, orientation(image), image.mode == "CMYK"
                clean = metadata.stripped(data, kind, turn)
                profile = profile_of(image)
                if clean == data and kind in ("JPEG", "MPO") and (profile is None or profiles == "ignore"):
                    image.draft("L", None)  # the hash needs no more, and all that is compressed is still read
                picture = decode(image, path)
            seen = picture
            if profile and not profile.fault:
                if not inks:
                    picture.info["icc_profile"] = profile.icc  # for a PNG
                elif profiles == "srgb":  # the picture is ink no longer
                    seen = _of_ink(data, profile, path)
            if clean != data:
                kind, clean = _bare(clean, kind, turn, picture if clean else seen, path)
    except ImageError as error:
        return Looked(path, rule=error.rule, detail=error.detail)

    # A file that had no metadata is linked, which costs no room.
    name = PurePosixPath(path)
    if is_dicom:
        name = PurePosixPath(f"{digest[:20]}.png")
    elif inner:
        name = PurePosixPath(f"{PurePosixPath(inner[1])}/{int(cell[2]) if cell else inner[2]}.{_ENDINGS[kind]}")
    placed = f"images/{name}"
    applied = profile if profiles == "srgb" and seen is picture else None
    _place(None if inner or clean != data else source, clean, out / placed)
    return Looked(
        path,
        placed,
        sha256=digest,
        **fingerprints.looks(seen if applied or seen.mode == "L" else seen.convert("L"), applied),
        archive=fingerprints.archive_id(path),
        width=picture.width,
        height=picture.height,
        profile=profile.name if profile else None,
        fault=profile.fault or None if profile and profiles == "srgb" else None,
    )


def _of_ink(data: bytes, profile: Profile, path: str) -> Image.Image:
    """The pixels of a CMYK file in sRGB, decoded once more."""
    with opened(BytesIO(data), path) as image:
        return decode(image, path, profile)


def _bare(clean: bytes | None, kind: str, turn: int, picture: Image.Image, name: str) -> tuple[str, bytes]:
    """The format and bytes of a file without metadata, which was read again and shows the same: `clean`, or a PNG."""
    if clean and _shows(clean, kind, turn, picture):
        return kind, clean
    file = BytesIO()
    picture.save(file, "PNG")
    if not _shows(file.getvalue(), "PNG", 1, picture):
        raise ImageError("unreadable-image", f"{name}: no copy without metadata shows the same pixels")
    return "PNG", file.getvalue()


def _shows(data: bytes, kind: str, turn: int, picture: Image.Image) -> bool:
    """Whether a file holds no metadata and shows the picture."""
    if metadata.stripped(data, kind, turn) != data:
        return False
    try:
        with opened(BytesIO(data), kind) as image:
            same = orientation(image) == turn
            again = decode(image, kind)
    except ImageError:
        return False
    return same and again.size == picture.size and again.mode == picture.mode and again.tobytes() == picture.tobytes()


def _real(raw: Path, path: str) -> Path:
    """Where the file of RAW lies once links are followed: in RAW, which may itself be a link.

    Links are followed as long as they stay there, since large collections are often linked.
    """
    if not inside(path) or _UNPRINTED.search(path) or len(path) > 1024 or max(map(_length, path.split("/"))) > 255:
        raise ImageError("unsafe-path", f"{path[:200]!r}; expected a path inside RAW, in printed characters")
    folder, _, name = f"{raw}/{path}".rstrip("/").rpartition("/")
    real = f"{_folder(folder).rstrip('/')}/{name}"
    if os.path.islink(real):  # noqa: PTH114 — a Path is made of it once, below
        real = os.path.realpath(real)
    if not real.startswith(f"{_folder(str(raw)).rstrip('/')}/"):
        raise ImageError("unsafe-path", f"{path}: a link that leads out of RAW")
    return Path(real)


def _length(name: str) -> int:
    return len(name.encode())


@lru_cache(maxsize=4096)
def _folder(path: str) -> str:
    return os.path.realpath(path)


def _bytes(source: Path, path: str) -> bytes:
    """The bytes of a regular file."""
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # a folder, or a pipe that would be waited for
            raise ImageError("missing-image", f"{path}: not a file")
        if status.st_size > MAX_BYTES:
            raise ImageError("unreadable-image", f"{path}: {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        return source.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing-image", f"{path}: no such file") from None
    except OSError as error:
        raise ImageError("unreadable-image", f"{path}: {error.strerror}") from error


def _cell(source: Path, row: int, path: str) -> bytes:
    """The bytes of the image in one row of a Parquet file."""
    try:
        _, column, starts = _table(source)
        group = bisect_right(starts, row) - 1
        if row >= starts[-1]:
            raise ImageError("missing-image", f"{path}: the file has {starts[-1]} rows")
        cell = _group(source, group)[row - starts[group]].as_py()
    except FileNotFoundError:
        raise ImageError("missing-image", f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise ImageError("unreadable-image", f"{path}: {error}") from error
    if not cell or cell["bytes"] is None:
        raise ImageError("missing-image", f"{path}: {column} holds no bytes")
    return bytes(cell["bytes"])


def _value(source: Path, key: str) -> bytes:
    """The bytes under a key of an HDF5 file.

    Raises:
        ImageError: the file cannot be read, or holds no bytes there.
    """
    name = f"{source.name}#{key}"
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ImageError(
            "no-decoder", f"{name}: needs h5py, which is not installed; install it with: pip install 'skinvl[hdf5]'"
        ) from error
    try:
        file = _archive(source)
        link = file.get(key, getlink=True)
        if link is None:
            raise ImageError("missing-image", f"{name}: no such key")
        # What lies elsewhere, by a link, an external or a virtual dataset, could be any file of the machine.
        value = file[key] if isinstance(link, h5py.HardLink) else None
        if not isinstance(value, h5py.Dataset) or value.external or value.is_virtual or value.size != 1:
            raise ImageError("unreadable-image", f"{name}: not one value in this file; expected the bytes of an image")
        if value.nbytes > MAX_BYTES:
            raise ImageError("unreadable-image", f"{name}: {value.nbytes:,} bytes; at most {MAX_BYTES:,} are read")
        return np.asarray(value[()]).tobytes()
    except FileNotFoundError:
        raise ImageError("missing-image", f"{name}: no such file") from None
    except ImageError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ImageError("unreadable-image", f"{name}: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=2)
def _archive(source: Path) -> Any:
    """The opened HDF5 file."""
    import h5py

    return h5py.File(source, "r")


@lru_cache(maxsize=4)
def _table(source: Path) -> tuple[pq.ParquetFile, str, list[int]]:
    """(the file, its column of images, the first row of each row group and the number of rows)."""
    file = pq.ParquetFile(source)
    for field in file.schema_arrow:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            return file, field.name, [0, *accumulate(sizes)]
    raise ImageError("unreadable-image", f"{source.name}: no column of images; expected one with `bytes`")


@lru_cache(maxsize=2)  # rows are asked for in order, and a row group can be large
def _group(source: Path, group: int) -> pa.ChunkedArray:
    file, column, _ = _table(source)
    return file.read_row_group(group, columns=[f"{column}.bytes"], use_threads=False)[column]


def _place(source: Path | None, data: bytes, target: Path) -> None:
    """Links the target to the source, or writes the data there where there is no source or links fail."""
    if source is not None:
        try:
            _link(source, target)
            return
        except OSError:  # another file system, one without hard links, or a file of another user
            if target.exists() and target.samefile(source):
                return
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, data)  # another shard may place the same image now


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:  # the first image of its folder
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source)
