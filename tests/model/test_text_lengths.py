"""Texts that are longer than the text tower reads: cut, split or left out, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.texted import Letters, image
from skinvl.data.texts import text_key
from skinvl.model import text_lengths
from skinvl.model.text_lengths import fitted

FOLDER = Path("photos")


@pytest.mark.parametrize("together", [1, 10_000])
def test_what_is_too_long_is_cut_split_or_left_out_and_counted(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(text_lengths, "TOGETHER", together)
    whole, long = "one two three four five six", "one two three four. Five six seven. Eight nine."
    endless, again = "a b c d e f g h i j", "Ten eleven twelve thirteen. A b c d e f g h. Ten eleven twelve thirteen."
    images = [image(FOLDER, 0, long, whole), image(FOLDER, 1, endless), image(FOLDER, 2, whole)]
    cut = fitted(images, Letters(), "cut")  # type: ignore[arg-type]
    assert (cut.images, cut.texts, cut.cut, cut.split, cut.ledger) == (images, 4, 2, 0, [])

    split = fitted([*images, image(FOLDER, 3, again)], Letters(), "split")  # type: ignore[arg-type]
    assert [[text.text for text in each.texts] for each in split.images] == [
        ["one two three four.", "Five six seven. Eight nine.", whole],
        [endless],
        [whole],
        ["Ten eleven twelve thirteen.", "A b c d e f g h."],
    ]
    assert (split.texts, split.cut, split.split) == (7, 2, 2)
    assert split.images[0].texts[0].key == text_key("One two three four.")

    left = fitted(images, Letters(), "ledger")  # type: ignore[arg-type]
    assert [[text.text for text in each.texts] for each in left.images] == [[whole], [whole]]
    assert [(row.row, row.rule) for row in left.ledger] == [
        *(("drawn:0.png", "long-text"), ("drawn:1.png", "long-text"), ("drawn:1.png", "no-text"))
    ]
