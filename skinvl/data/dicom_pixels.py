"""The pixels of a DICOM file (dermoscopic and photographic objects) as RGB; needs pydicom, of the extra `dicom`.

Compressed pixels are decoded by Pillow and pydicom's own code, so that JPEG baseline, 8-bit JPEG extended, JPEG 2000,
RLE and what is not compressed can be read; lossless JPEG and JPEG-LS cannot.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skinvl.data.pixels import DAMAGED, MAX_PIXELS, ImageError
from skinvl.data.pixels import MAX_BYTES as MAX_BYTES

MAGIC = (128, b"DICM")  # where a file says what it is, and how
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
GREYS = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
MISSING = "skinvl reads DICOM with pydicom, which is not installed; install it with: pip install 'skinvl[dicom]'"


def is_dicom(data: bytes) -> bool:
    """Whether the first 132 bytes of a file are those of a DICOM file."""
    start, magic = MAGIC
    return data[start : start + len(magic)] == magic


def picture(data: bytes, name: str) -> Image.Image:
    """The one frame of a DICOM file as 8-bit RGB or grey (L), with the colour profile that it names in its `info`.

    Samples of more than 8 bits lose their lower ones. Grey is shown as its window or lookup table says, else by the
    bits that are stored (signed or rescaled values from the least to the greatest); MONOCHROME1 is turned round.

    Args:
        name: what messages call the file.

    Raises:
        ImageError: pydicom is absent (no-decoder); no pixels, several frames, too many pixels, a photometric
            interpretation that is none of a photograph, a transfer syntax without a decoder, or damaged.
    """
    with _reading(name) as dcmread:
        dataset = dcmread(BytesIO(data))
        _refuse(dataset, name)
        shown = _shown(dataset)
        profile = dataset.get("ICCProfile")
    image = Image.fromarray(np.ascontiguousarray(shown))
    if isinstance(profile, bytes) and profile:
        image.info["icc_profile"] = profile
    return image


def header(path: Path, tags: Sequence[str]) -> Any:
    """The dataset of these tags alone, those that the file has; None where it is damaged.

    Raises:
        ImageError: pydicom is absent (no-decoder).
    """
    try:
        with _reading(path.name) as dcmread:
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
            for element in dataset:  # they are parsed when they are asked for
                str(element.value)
    except ImageError as error:
        if error.rule == "no-decoder":
            raise
        return None
    return dataset


@contextmanager
def _reading(name: str) -> Iterator[Callable[..., Any]]:
    """pydicom's `dcmread`, in silence: what it warns and says of values can hold a patient's name.

    Raises:
        ImageError: pydicom is absent (no-decoder), or what is read within is damaged (unreadable-image).
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ModuleNotFoundError as error:
        raise ImageError("no-decoder", f"{name}: {MISSING}") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield dcmread
        except ImageError:
            raise
        except (
            *DAMAGED,
            AttributeError,
            NotImplementedError,
            RuntimeError,
            BytesLengthException,
            InvalidDicomError,
        ) as error:
            raise ImageError("unreadable-image", f"{name}: damaged DICOM ({type(error).__name__})") from error


def _refuse(dataset: Any, name: str) -> None:
    """Refuses what is no photograph of one frame, from the header alone."""
    from pydicom.pixels import get_decoder

    if "PixelData" not in dataset:
        raise ImageError("unreadable-image", f"{name}: a DICOM object without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError("unreadable-image", f"{name}: {frames} frames; expected one")
    size = dataset.Rows * dataset.Columns
    if not 0 < size <= MAX_PIXELS:
        raise ImageError(
            "unreadable-image", f"{name}: {dataset.Columns} × {dataset.Rows} pixels; at most {MAX_PIXELS:,} are read"
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        raise ImageError(
            "unreadable-image",
            f"{name}: compressed as {syntax.name}, which has no decoder here; decompress it, such as with dcmdjpeg, "
            "dcmdjpls or gdcmconv --raw",
        )
    if dataset.PhotometricInterpretation not in (*COLOURS, *GREYS, PALETTE):
        raise ImageError(
            "unreadable-image",
            # not the value itself, since that could be any text
            f"{name}: another photometric interpretation than {', '.join((*COLOURS, *GREYS))} or {PALETTE}",
        )


def _shown(dataset: Any) -> NDArray[np.uint8]:
    """uint8[H, W, 3] or uint8[H, W]."""
    from pydicom.pixels import apply_color_lut, pixel_array

    # pydicom turns YBR into RGB here, but for what JPEG 2000 turns itself.
    stored = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation in GREYS:
        return _grey(dataset, stored)
    if dataset.PhotometricInterpretation == PALETTE:
        colours = apply_color_lut(stored, dataset)
        return _eight(colours, colours.dtype.itemsize * 8)
    return _eight(stored, dataset.BitsStored)


def _grey(dataset: Any, stored: NDArray[Any]) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

    values = apply_modality_lut(stored, dataset)
    has_window = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    if dataset.get("VOILUTSequence"):
        values = apply_voi_lut(values, dataset).astype(np.float64)
        low, high = 0.0, float(2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
    elif has_window:
        values = apply_windowing(values, dataset)
        low, high = apply_windowing(np.array([-1e12, 1e12]), dataset)  # what lies beyond the window on either side
    elif values is stored and not dataset.PixelRepresentation:
        low, high = 0.0, float(2**dataset.BitsStored - 1)
    else:
        low, high = float(values.min()), float(values.max())
    grey = (np.asarray(values, np.float64) - low) * (255 / ((high - low) or 1))
    shown = np.clip(grey, 0, 255).round().astype(np.uint8)
    return np.asarray(255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown)


def _eight(samples: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The samples with no more than their upper 8 bits."""
    return (samples >> max(bits - 8, 0)).astype(np.uint8)
