"""What training shows of an image: what may change, what may not, and that drafts of a JPEG lose nothing asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms import functional
from transformers import CLIPImageProcessor, SiglipImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from helpers import colours
from helpers.sources import photo
from skinvl.data import pixels
from skinvl.data.pixels import ImageError, cropped, upright
from skinvl.model import augment
from skinvl.model.augment import CHANGES, Changes
from skinvl.model.dual_inputs import PixelFormat

FORMAT = PixelFormat(64, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 300 × 420 pixels, soft ones as photos are."""
    folder = tmp_path_factory.mktemp("photos")
    picture = photo(1, 420).crop((0, 0, 300, 420))
    picture.save(folder / "a.png")
    picture.save(folder / "a.jpg", quality=95)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=turned)
    return folder


def apart(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures, in levels of 256."""
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean())


def at(*box: float) -> Callable[[int, int], Any]:
    return lambda height, width: box


def test_a_jpeg_is_decoded_smaller_only_where_the_crop_keeps_the_pixels_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    decode = pixels.decode

    def watched(image: Any, name: str, profile: Any) -> Image.Image:
        sizes.append(image.size)
        return decode(image, name)

    monkeypatch.setattr(pixels, "decode", watched)
    generator, shares = random.Random(0), set()
    for _ in range(300):
        left, top = generator.randrange(250), generator.randrange(370)
        right, bottom = generator.randrange(left + 10, 301), generator.randrange(top + 10, 421)
        side = generator.choice([16, 40, 64, 224])
        cropped(folder / "a.jpg", side, BICUBIC, at(left, top, right, bottom))
        width, height = sizes[-1]
        share = round(300 / width)
        shares.add(share)
        kept = min((right - left) * width / 300, (bottom - top) * height / 420)
        assert share == 1 or kept >= side
        # And no larger than it must be: at half of that it would be too few.
        assert share == 8 or min((right - left) / share / 2, (bottom - top) / share / 2) < side + 1
    assert shares == {1, 2, 4, 8}


def test_a_draft_shows_the_same_and_other_formats_are_decoded_whole(folder: Path) -> None:
    box = (12, 31, 288, 400)
    exact = upright(folder / "a.png").resize((64, 64), BICUBIC, box)
    assert apart(cropped(folder / "a.png", 64, BICUBIC, at(*box)), exact) == 0
    assert apart(cropped(folder / "a.jpg", 64, BICUBIC, at(*box)), exact) < 1.5
    assert apart(cropped(folder / "a.jpg", 64, BICUBIC, at(0, 0, 300, 420)), exact) > 3  # the twin: another box
    whole = upright(folder / "a.jpg").resize((224, 224), BICUBIC, box)
    assert apart(cropped(folder / "a.jpg", 224, BICUBIC, at(*box)), whole) == 0  # too few pixels for a draft


def test_a_turned_photo_is_cropped_as_one_sees_it(folder: Path) -> None:
    assert upright(folder / "turned.jpg").size == (300, 420)
    seen: list[tuple[int, int]] = []

    def choose(height: int, width: int) -> tuple[int, int, int, int]:
        seen.append((height, width))
        return (20, 200, 290, 410)

    crop = cropped(folder / "turned.jpg", 48, BICUBIC, choose)
    assert seen == [(420, 300)]
    assert apart(crop, upright(folder / "a.png").resize((48, 48), BICUBIC, (20, 200, 290, 410))) < 2


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_rectangle_lies_in_the_image_and_has_the_area_and_shape_that_may_be_drawn(changes: Changes) -> None:
    generator, shares = random.Random(0), []
    for _ in range(400):
        left, top, right, bottom = augment.rectangle(300, 320, changes, generator)
        assert 0 <= left < right <= 320
        assert 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / (300 * 320))
        assert changes.ratio[0] * 0.98 <= (right - left) / (bottom - top) <= changes.ratio[1] * 1.02
    assert changes.scale[0] * 0.98 <= min(shares) < changes.scale[0] + 0.1
    assert max(shares) > 0.95
    for size in ((1, 900), (900, 1), (1, 1), (40, 900)):
        left, top, right, bottom = augment.rectangle(*size, changes, generator)
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]


def test_mild_keeps_colours_and_sides_and_released_does_not(folder: Path) -> None:
    picture = Image.new("RGB", (80, 80), (200, 60, 60))
    picture.paste((60, 60, 200), (40, 0, 80, 80))
    picture.save(folder / "sides.png")

    def corners(name: Any, seed: int) -> tuple[Any, Any]:
        shown = np.asarray(augment.augmented(folder / "sides.png", FORMAT, name, random.Random(seed)), np.int64)
        return shown[32, 4], shown[32, -5]

    for seed in range(60):
        red, blue = corners("mild", seed)
        assert red[0] > red[1] + 80
        assert blue[2] > blue[1] + 80
        assert abs(red[1] - red[2]) <= 2
        assert abs(blue[0] - blue[1]) <= 2
    drawn = [corners("released", seed) for seed in range(300)]
    grey = sum(np.ptp(red) == 0 and np.ptp(blue) == 0 for red, blue in drawn)
    assert 40 <= grey <= 80  # a fifth
    assert any(abs(red[1] - red[2]) > 20 for red, _ in drawn)  # the hue
    assert all(red[0] > blue[0] - 20 for red, blue in drawn)  # no mirror images, there either


def test_colours_change_as_torchvision_changes_them() -> None:
    picture = photo(3, 96)
    assert apart(augment._turned(picture, 0.07), functional.adjust_hue(picture, 0.07)) == 0
    assert apart(augment._turned(picture, -0.05), functional.adjust_hue(picture, -0.05)) == 0
    for name, theirs in (
        ("brightness", functional.adjust_brightness),
        ("contrast", functional.adjust_contrast),
        ("saturation", functional.adjust_saturation),
    ):
        assert apart(augment.ENHANCERS[name](picture).enhance(1.2), theirs(picture, 1.2)) == 0


def test_all_chance_is_the_generators(folder: Path) -> None:
    def shown(seed: int) -> Image.Image:
        random.seed(random.random())
        return augment.augmented(folder / "a.jpg", FORMAT, "released", random.Random(seed))

    assert apart(shown(4), shown(4)) == 0
    assert apart(shown(4), shown(5)) > 1


def test_towers_are_given_the_colours_of_their_reading(folder: Path) -> None:
    with Image.open(folder / "a.jpg") as image:
        image.save(folder / "p3.jpg", quality=95, icc_profile=colours.ICC["Display P3"])
    ignoring = replace(FORMAT, profiles="ignore")
    read = upright(folder / "p3.jpg"), upright(folder / "p3.jpg", "ignore")
    for format, whole in zip((FORMAT, ignoring), read, strict=True):
        assert apart(format.whole(folder / "p3.jpg"), format.square(whole)) == 0
        drawn = augment.augmented(folder / "p3.jpg", format, "mild", random.Random(4))
        whole.save(folder / "read.png")
        assert apart(drawn, augment.augmented(folder / "read.png", format, "mild", random.Random(4))) < 1.5
    assert apart(*read) > 3  # the twin


def test_a_damaged_photo_is_told_as_everywhere(folder: Path) -> None:
    (folder / "half.jpg").write_bytes((folder / "a.jpg").read_bytes()[:3000])
    with pytest.raises(ImageError, match=r"half\.jpg"):
        augment.augmented(folder / "half.jpg", FORMAT, "mild", random.Random(0))
    with pytest.raises(ImageError, match="missing-image"):
        augment.augmented(folder / "none.jpg", FORMAT, "mild", random.Random(0))


@pytest.mark.parametrize("size", [(300, 420), (420, 300), (97, 64), (50, 40)])
def test_without_augmentation_pixels_are_those_of_the_image_processor(size: tuple[int, int]) -> None:
    """Bicubic in torchvision rounds otherwise than in Pillow: by a level of 256 or two, 0.03 where normalised."""
    picture = photo(5, 420).resize(size)
    mean, std = list(FORMAT.mean), list(FORMAT.std)
    ours = FORMAT.normalised(torch.from_numpy(np.array(FORMAT.square(picture))).permute(2, 0, 1)[None])
    settings: dict[str, Any] = {"image_mean": mean, "image_std": std, "return_tensors": "pt"}
    square = {"height": 64, "width": 64}
    for processor, tolerance in ((CLIPImageProcessorPil(), 1e-5), (CLIPImageProcessor(), 0.035)):
        theirs = processor(picture, size={"shortest_edge": 64}, crop_size=square, **settings)["pixel_values"]
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
        assert (ours.roll(1, 3) - theirs)[..., 1:].abs().max() > 0.2  # a pixel further it is another picture
    squeezed = PixelFormat(64, FORMAT.mean, FORMAT.std, crops=False)
    ours = FORMAT.normalised(torch.from_numpy(np.array(squeezed.square(picture))).permute(2, 0, 1)[None])
    theirs = SiglipImageProcessor()(picture, size=square, **settings)["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=0.035, rtol=0)
