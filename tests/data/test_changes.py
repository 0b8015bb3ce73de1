"""Images changed on purpose: of the size they had, the same every time, and never as they were."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from skinvl.data import changes
from skinvl.recipe.recipe import ImageChange


def drawn() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))


@pytest.mark.parametrize("change", get_args(ImageChange))
def test_a_change_keeps_the_size_and_is_the_same_again(change: ImageChange) -> None:
    plain = drawn()
    one, other = (changes.changed(drawn(), change) for _ in range(2))
    assert (one.size, one.mode) == (plain.size, "RGB")
    assert one.tobytes() == other.tobytes() != plain.tobytes()
    assert plain.tobytes() == drawn().tobytes()  # what was given stays
    assert changes.parameters(change)["change"] == change


def test_what_each_change_does() -> None:
    plain = np.asarray(drawn())
    made = {change: np.asarray(changes.changed(drawn(), change)) for change in get_args(ImageChange)}
    assert (made["blank"] == changes.GREY).all()
    assert (made["rotate"] == plain[::-1, ::-1]).all()
    assert np.abs(made["darken"] - plain * 0.5).max() <= 0.5
    # A crop shows the middle: what lies beyond it changes nothing.
    framed = plain.copy()
    framed[:1], framed[-1:], framed[:, :2], framed[:, -2:] = 0, 0, 255, 255
    assert (np.asarray(changes.changed(Image.fromarray(framed), "crop")) == made["crop"]).all()
    inside = plain.copy()
    inside[10:20, 20:30] = 0
    assert (np.asarray(changes.changed(Image.fromarray(inside), "crop")) != made["crop"]).any()
