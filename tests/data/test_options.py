"""Which options an answer names: letters, numbers and names as a reader would take them, and never by a guess."""

from __future__ import annotations

import doctest

import pytest

from skinvl.data import options
from skinvl.data.options import chosen

SITES = ("Face", "Arm", "Leg", "Head and neck")
LETTERS = "Where is it?\nA. Face\nB. Arm\nC. Leg\nD. Head and neck"
NUMBERS = "Where is it? (1) face, (2) arm, (3) leg, (4) head and neck"
NAMES = "Where is it? Options: Face; Arm; Leg; Head and neck."


def read(answer: str, question: str) -> list[int] | None:
    numbers = chosen(answer, question, SITES)
    return None if numbers is None else sorted(numbers)


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("A, C", [0, 2]),
        ("(b)", [1]),
        ("a and c", [0, 2]),
        ("ACD", [0, 2, 3]),
        ("A/C", [0, 2]),
        ("**A**\n**C**", [0, 2]),
        ("The answer is A and C.", [0, 2]),
        ("A. Face\nC. Leg", [0, 2]),
        ("A - Face; C - Leg", [0, 2]),
        ("A is wrong, since it is not on the face. Answer: B, D", [1, 3]),
        ("Both A and C are affected.", [0, 2]),
        ('{"answer": "A, C"}', [0, 2]),
        ('{"answer": ["A", "C"], "reason": "B is spared"}', [0, 2]),
        ('{"answer": {"A": true}}', None),
        ("a leg", [2]),  # an article
        ("A. Arm", None),  # letter and name disagree
        ("B, A. Arm", None),
        ("The answer is (A) Leg, as far as I can see.", None),
        ("A or B", None),
        ("A, E", None),  # no such option
        ("CA", None),  # no run of letters
        ("1 and 3", None),  # the question has no numbers
    ],
)
def test_letters_are_options_where_the_question_lists_them_with_letters(answer: str, numbers: list[int] | None) -> None:
    assert read(answer, LETTERS) == numbers


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("1 and 3", [0, 2]),
        ("1, 3", [0, 2]),
        ('{"answer": [1, 3]}', [0, 2]),
        ("(4)", [3]),
        ("Answer: 1, 3.", [0, 2]),
        ("1. Face\n3) leg", [0, 2]),
        ("2 lesions on the arm", [1]),
        ("1. Leg\n2. Face", None),  # its own numbers, or the question's?
        ("1 or 3", None),
        ("5", None),
        ("13", None),
        ("A, C", None),
    ],
)
def test_numbers_are_options_where_the_question_lists_them_with_numbers(answer: str, numbers: list[int] | None) -> None:
    assert read(answer, NUMBERS) == numbers


@pytest.mark.parametrize("question", [LETTERS, NUMBERS, NAMES])
@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("Face, leg", [0, 2]),
        ("Head and neck and arm", [1, 3]),
        ("- Faces\n- Arms", [0, 1]),
        ('["Face", "Leg"]', [0, 2]),
        ("It is on the face and the arm, not on the leg.", [0, 1]),
        ("", None),  # as where a thought did not come to an end
        (" \n", None),
        ("[]", []),
        ("None of these.", []),
        ("Arm or leg", None),
        ("I cannot tell.", None),
        ("Trunk", None),
    ],
)
def test_names_are_options_however_they_are_listed(answer: str, numbers: list[int] | None, question: str) -> None:
    assert read(answer, question) == numbers


def test_neither_letters_nor_numbers_are_options_where_the_question_lists_none() -> None:
    for answer in ("A, C", "1", "1 and 3", "C"):
        assert read(answer, NAMES) is None
    assert read("1. Leg\n2. Face", NAMES) == read("a) leg, b) face", NAMES) == [0, 2]  # the answer's own list


def test_options_that_are_numbers_or_none_are_named_by_their_words() -> None:
    counts = ("None", "1", "2 to 5")
    question = "How many? A. None B. 1 C. 2 to 5"
    assert [sorted(chosen(answer, question, counts) or ()) for answer in ("None", "1", "2 to 5", "B")] == [
        *([0], [1], [2], [1]),
    ]


def test_two_options_of_one_name_are_not_told_apart_by_it() -> None:
    alike = ("nevus", "naevi", "scar")
    assert chosen("mole", "Which?", alike) is None
    assert chosen("nevus, scar", "Which?", alike) == {0, 2}  # as it is written


def test_its_example() -> None:
    assert doctest.testmod(options).failed == 0
