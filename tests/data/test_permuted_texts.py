"""The control: what belongs to an image's texts goes with them to another image of its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from helpers.texted import image
from skinvl.data.permuted_texts import permuted


def test_texts_go_with_their_diagnosis_to_another_image_of_the_source_and_the_image_keeps_the_rest() -> None:
    images = [
        replace(image(Path("photos"), number, f"text {number}"), diagnosis=f"d{number}", path_of_diagnosis=("a", "b"))
        for number in range(12)
    ]
    images = [replace(one, root=Path("other")) if number % 2 else one for number, one in enumerate(images)]
    swapped = permuted(images, 0)
    assert swapped == permuted(images, 0) != permuted(images, 1)
    for own, other in zip(images, swapped, strict=True):
        giver = next(one for one in images if one.texts == other.texts)
        assert giver != own
        assert giver.root == own.root
        assert other == replace(own, texts=giver.texts, diagnosis=giver.diagnosis)
