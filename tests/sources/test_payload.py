"""Images as requests carry them: what is seen of them, and nothing that the file says beside its pixels."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import pictures
from skinvl.data.pixels import ImageError, data_url
from skinvl.sources.asking import payload
from skinvl.sources.asking.payload import KEPT, QUALITY, Payloads


def sent(path: Path, side: int = 768) -> tuple[bytes, Image.Image]:
    """The bytes in a data: address, and the image that they are."""
    head, _, text = data_url(path, side, QUALITY).partition(",")
    assert head == "data:image/jpeg;base64"
    data = base64.b64decode(text, validate=True)
    return data, Image.open(io.BytesIO(data))


@pytest.mark.parametrize("kind", sorted(pictures.SAVED))
def test_nothing_but_pixels_is_sent(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(pictures.photograph(kind))
    assert any(secret in path.read_bytes() for secret in pictures.SECRETS)
    data, shown = sent(path)
    assert not any(secret in data for secret in pictures.SECRETS)
    assert not shown.getexif()
    assert set(shown.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_it_is_turned_upright(tmp_path: Path) -> None:
    tall = Image.new("RGB", (40, 80), "black")
    tall.paste("white", (0, 0, 40, 20))
    tall.save(tmp_path / "turned.jpg", exif=pictures.exif(6), quality=95)  # shown turned by 90° clockwise
    _, shown = sent(tmp_path / "turned.jpg")
    assert shown.size == (80, 40)
    pixels = np.asarray(shown.convert("L"))
    assert pixels[20, 75] > 200
    assert pixels[20, 5] < 50


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2000, 1000), (768, 384)), ((1000, 2000), (384, 768)), ((769, 3), (768, 3)), ((300, 200), (300, 200))],
)
def test_it_is_made_smaller_and_never_larger(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "one.png")
    assert sent(tmp_path / "one.png")[1].size == expected
    assert max(sent(tmp_path / "one.png", 100)[1].size) == 100


def test_quality_is_90(tmp_path: Path) -> None:
    pictures.NOISE.save(tmp_path / "one.png")
    pictures.NOISE.save(tmp_path / "known.jpg", quality=90)
    assert sent(tmp_path / "one.png")[1].quantization == Image.open(tmp_path / "known.jpg").quantization


def test_what_is_clear_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(sent(tmp_path / "clear.png")[1]).min() > 250


def test_requests_about_an_image_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(payload, "data_url", lambda path, side, _: made.append(path.name) or f"{path.name} {side}")

    async def go() -> None:
        with Payloads(tmp_path, 512) as payloads:
            first = payloads.start("a.jpg")
            assert payloads.start("a.jpg") is first
            assert await first == "a.jpg 512"
            for number in range(KEPT - 1):
                await payloads.start(f"{number}.jpg")
            assert await payloads.start("a.jpg") == "a.jpg 512"  # still there, and now the last to go
            for number in range(100, 100 + KEPT - 1):
                await payloads.start(f"{number}.jpg")
            await payloads.start("a.jpg")
            assert made.count("a.jpg") == 1
            await payloads.start("other.jpg")
            await payloads.start("100.jpg")
            assert made.count("100.jpg") == 2  # no more than KEPT are held

    asyncio.run(go())


def test_an_image_that_cannot_be_read_is_told_to_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")

    async def go() -> None:
        with Payloads(tmp_path) as payloads:
            for _ in range(2):
                with pytest.raises(ImageError) as caught:
                    await payloads.start("broken.jpg")
                assert caught.value.rule == "unreadable-image"
            with pytest.raises(ImageError, match="missing-image"):
                await payloads.start("none.jpg")
            left = payloads.start("gone.jpg")  # nobody asks for it any more
            await asyncio.wait([left])

    asyncio.run(go())
    assert not caplog.records
