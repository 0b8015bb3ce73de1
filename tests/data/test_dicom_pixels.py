from __future__ import annotations

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from helpers import dicoms
from skinvl.data import dicom_pixels
from skinvl.data.pixels import ImageError

RGB = dicoms.patch()


def shown(made: Dataset) -> np.ndarray:
    return np.asarray(dicom_pixels.picture(dicoms.data(made), "x"))


def to_ybr(rgb: np.ndarray) -> np.ndarray:
    """YCbCr of full range as ITU-T T.871 has it, whose formulas PS3.3 C.7.6.3.1.2 takes."""
    matrix = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    return (rgb @ np.transpose(matrix) + [0, 128, 128]).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, dicoms.ExplicitVRLittleEndian])
def test_uncompressed_colour(syntax: str) -> None:
    assert (shown(dicoms.dataset("RGB", RGB, syntax=syntax)) == RGB).all()


def test_samples_by_plane() -> None:
    made = dicoms.dataset("RGB", RGB)
    made.PlanarConfiguration = 1
    made.PixelData = RGB.transpose(2, 0, 1).tobytes()
    assert (shown(made) == RGB).all()


def test_ybr_is_turned_into_rgb_and_rgb_is_not() -> None:
    ybr = to_ybr(RGB)
    assert np.abs(shown(dicoms.dataset("YBR_FULL", ybr)).astype(int) - RGB).max() <= 1
    assert (shown(dicoms.dataset("RGB", ybr)) == ybr).all()
    assert np.abs(ybr.astype(int) - RGB).max() > 20  # the two readings are far apart


def test_ybr_422_shares_its_colour_between_neighbours() -> None:
    ybr = to_ybr(RGB)
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]
    pairs = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    made = dicoms.dataset("YBR_FULL_422", RGB)
    made.PixelData = pairs.tobytes()
    assert (shown(made) == shown(dicoms.dataset("YBR_FULL", ybr))).all()


def test_what_is_compressed() -> None:
    assert (shown(dicoms.compressed("JPEG 2000", RGB)) == RGB).all()
    rle = dicoms.dataset("RGB", RGB)
    rle.compress(RLELossless)
    assert (shown(rle) == RGB).all()
    jpeg = dicoms.compressed("JPEG", RGB)
    (frame,) = generate_frames(jpeg.PixelData, number_of_frames=1)
    with Image.open(BytesIO(frame)) as image:
        pillow = np.asarray(image.convert("RGB")).astype(int)
    # pydicom turns YCbCr into RGB itself, with other rounding than libjpeg.
    assert np.abs(shown(jpeg) - pillow).max() <= 2


def test_sixteen_bits_lose_the_lower_eight() -> None:
    wide = RGB.astype(np.uint16) * 256 + 77
    assert (shown(dicoms.dataset("RGB", wide, bits=16)) == RGB).all()


def test_grey_of_any_depth_and_sense() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (shown(dicoms.dataset("MONOCHROME2", grey)) == grey).all()
    assert (shown(dicoms.dataset("MONOCHROME1", grey)) == 255 - grey).all()
    twelve = (grey * (4095 / 255)).round().astype(np.uint16)
    assert (shown(dicoms.dataset("MONOCHROME2", twelve, bits=12)) == grey).all()


def test_a_window_and_a_table_say_how_grey_is_shown() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    made = dicoms.dataset("MONOCHROME2", grey)
    made.WindowCenter, made.WindowWidth = 100.5, 101  # PS3.3 C.11.2.1.2.1: from 50 to 150, in a straight line
    expected = ((np.clip(grey, 50, 150) - 50.0) / 100 * 255).round()
    assert np.abs(shown(made) - expected).max() <= 1
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], [257 * (255 - value) for value in range(256)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    made.VOILUTSequence = Sequence([table])
    assert (shown(made) == 255 - grey).all()


def test_signed_values_are_stretched() -> None:
    values = np.array([[-100, 0], [50, 100]], np.int16)
    made = dicoms.dataset("MONOCHROME2", values, bits=16)
    made.PixelRepresentation = 1
    assert shown(made).tolist() == [[0, 127], [191, 255]]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_palette(depth: int) -> None:
    colours = RGB.reshape(-1, 3)[:256]
    made = dicoms.dataset("PALETTE COLOR", np.arange(256, dtype=np.uint8).reshape(16, 16))
    for channel, name in enumerate(("Red", "Green", "Blue")):
        values = colours[:, channel].astype(np.uint16) * (257 if depth == 16 else 1)
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, depth])
        made[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(made, f"{name}PaletteColorLookupTableData", values.astype(f"u{depth // 8}").tobytes())
    assert (shown(made).reshape(-1, 3) == colours).all()


def test_its_colour_profile_goes_with_it() -> None:
    made = dicoms.dataset("RGB", RGB)
    assert "icc_profile" not in dicom_pixels.picture(dicoms.data(made), "x").info
    made.ICCProfile = b"profile."
    assert dicom_pixels.picture(dicoms.data(made), "x").info["icc_profile"] == b"profile."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NumberOfFrames": 3}, "3 frames; expected one"),
        ({"Rows": 40_000, "Columns": 40_000}, "40000 × 40000 pixels; at most"),
        ({"PhotometricInterpretation": "CMYK"}, "another photometric interpretation than RGB"),
        ({"PixelData": b"\0\0"}, r"damaged DICOM \(ValueError\)"),
    ],
)
def test_what_cannot_be_shown_says_why(change: dict[str, object], message: str) -> None:
    made = dicoms.dataset("RGB", RGB)
    for name, value in change.items():
        setattr(made, name, value)
    with pytest.raises(ImageError, match=message):
        shown(made)


def test_a_syntax_without_a_decoder_says_what_to_do() -> None:
    made = dicoms.compressed("JPEG", RGB)
    made.file_meta.TransferSyntaxUID = JPEGLSLossless
    with pytest.raises(ImageError, match=r"compressed as JPEG-LS Lossless .* decompress it"):
        shown(made)


def test_without_pydicom_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    file = dicoms.data(dicoms.dataset("RGB", RGB))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"pip install 'skinvl\[dicom\]'"):
        dicom_pixels.picture(file, "x")
