"""One form of a text: what is left off, and what is not."""

from __future__ import annotations

import doctest

import pytest

from skinvl.data import normal
from skinvl.data.normal import spaced, unmarked


def test_its_examples() -> None:
    assert doctest.testmod(normal).failed == 0


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Behc\u0327et", "Behcet"),
        ("Ångström Łódź Øre Œdème", "Angstrom Lodz Ore Oedeme"),
        ("Việt", "Viet"),
        ("ёж", "еж"),
        ("שָׁלוֹם", "שלום"),
        ("كَتَبَ", "كتب"),
    ],
)
def test_what_a_writer_may_leave_off_is_left_off(text: str, plain: str) -> None:
    assert unmarked(text) == unmarked(plain) == plain


def test_what_makes_another_letter_or_sign_stays() -> None:
    for text in ("がぱ", "हिन्दी", "ที่นี่", "한국", "≠≮", "5 ≥ 4"):
        assert unmarked(text) == text


def test_letters_keep_their_marks_where_blanks_are_put_between_them() -> None:
    assert spaced("ดีมาก").split() == ["ดี", "ม", "า", "ก"]
    assert spaced("カルテ").split() == ["カ", "ル", "テ"]
    assert spaced("한국 nevus") == "한국 nevus"
