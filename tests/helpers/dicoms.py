"""DICOM files for tests: the pixels of a drawn patch in any photometric interpretation and transfer syntax."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    generate_uid,
)

DERMOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.7"
PHOTOGRAPHIC = "1.2.840.10008.5.1.4.1.1.77.1.4"


def patch(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """uint8[H, W, 3]: skin colours that differ at every pixel and in every channel."""
    down, across = np.mgrid[:height, :width]
    return np.stack([230 - 3 * down, 120 + 4 * across - 2 * down, 40 + 2 * down + across], -1).astype(np.uint8)


def dataset(photometric: str, samples: NDArray[Any], bits: int = 8, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """A Dermoscopic Photography object of one frame whose samples, uint8 or uint16, are not compressed."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = DERMOSCOPIC
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.StudyInstanceUID = generate_uid()
    made.Rows, made.Columns = samples.shape[:2]
    made.SamplesPerPixel = 3 if samples.ndim == 3 else 1
    made.PhotometricInterpretation = photometric
    if samples.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = samples.dtype.itemsize * 8
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, 0
    made.PixelData = samples.tobytes()
    made["PixelData"].VR = "OW" if made.BitsAllocated == 16 else "OB"
    return made


def compressed(kind: str, rgb: NDArray[np.uint8]) -> Dataset:
    """The patch as JPEG (YBR_FULL_422) or losslessly as JPEG 2000 (YBR_RCT), by Pillow's own encoders."""
    file = BytesIO()
    if kind == "JPEG":
        Image.fromarray(rgb).save(file, "JPEG", quality=95)
        made = dataset("YBR_FULL_422", rgb, syntax=JPEGBaseline8Bit)
    else:
        Image.fromarray(rgb).save(file, "JPEG2000", irreversible=False, no_jp2=True, mct=1)
        made = dataset("YBR_RCT", rgb, syntax=JPEG2000Lossless)
    made.PixelData = encapsulate([file.getvalue()])
    return made


def data(made: Dataset) -> bytes:
    """The bytes of the file."""
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write(path: Path, made: Dataset) -> Path:
    """The path, once the object lies there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data(made))
    return path
