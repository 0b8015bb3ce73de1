"""Texts that are longer than the text tower reads: cut, split or left out, and counted."""

from __future__ import annotations

from pathlib import Path

from helpers.texted import Letters, image
from skinvl.data.texts import text_key
from skinvl.model.text_lengths import fitted

FOLDER = Path("photos")


def test_what_is_too_long_is_cut_split_or_left_out_and_counted() -> None:
    short, long = "one two three", "one two three four. Five six seven. Eight nine."
    endless = "a b c d e f g h i j"
    images = [image(FOLDER, 0, long, short), image(FOLDER, 1, endless), image(FOLDER, 2, short)]
    cut = fitted(images, Letters(), "cut")  # type: ignore[arg-type]
    assert (cut.images, cut.texts, cut.cut, cut.split, cut.ledger) == (images, 4, 2, 0, [])

    split = fitted(images, Letters(), "split")  # type: ignore[arg-type]
    assert [[text.text for text in each.texts] for each in split.images] == [
        ["one two three four.", "Five six seven. Eight nine.", short],
        [endless],
        [short],
    ]
    assert (split.texts, split.cut, split.split) == (5, 1, 1)
    assert split.images[0].texts[0].key == text_key("One two three four.")

    left = fitted(images, Letters(), "ledger")  # type: ignore[arg-type]
    assert [[text.text for text in each.texts] for each in left.images] == [[short], [short]]
    assert [(row.row, row.rule) for row in left.ledger] == [
        *(("drawn:0.png", "long-text"), ("drawn:1.png", "long-text"), ("drawn:1.png", "no-text"))
    ]
