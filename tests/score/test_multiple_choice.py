"""Multiple-choice answers are read as a reader would, not by their first character."""

from __future__ import annotations

import doctest

import pytest

from skinvl.data.example import Facts
from skinvl.score.metrics import closed_accuracy, load, multiple_choice
from skinvl.score.predictions import Answer

QUESTION = "What is most likely?\nA. Nevus\nB. Basal cell carcinoma\nC. Melanoma"


def row(answer: str, question: str = QUESTION, reference: str = "B. Basal cell carcinoma") -> Answer:
    return Answer("1", "x", "g", (), question, reference, Facts(), answer, "stop", "", 3, 0)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", 1),
        ("The answer is B", 1),  # its first character is T
        ("B. Basal cell carcinoma", 1),
        ("basal cell carcinoma", 1),
        ("(b)", 1),
        ("BCC", 1),
        ("C", 0),
        ("Melanoma", 0),
        ("Both A and B are possible.", 0),
        ("B. Melanoma", 0),  # letter and words disagree
        ("", 0),
        ("Basically I cannot tell.", 0),  # begins with B
        ("A. Nevus\nB. Basal cell carcinoma\nC. Melanoma", 0),  # the list again
    ],
)
def test_an_option_is_chosen_by_letter_or_words(answer: str, right: int) -> None:
    assert multiple_choice.statistics(answer, row(answer)) == (right, 1.0)


def test_only_questions_with_options_count() -> None:
    assert multiple_choice.counts(row(""))
    assert not multiple_choice.counts(row("", question="What is it?"))
    assert not multiple_choice.counts(row("", question="Stage?\nA. Nevus"))  # one option
    assert not multiple_choice.counts(row("", question="x\nB. Nevus\nA. Scar"))  # no list in order
    assert not multiple_choice.counts(row("", reference="Something else"))
    assert not closed_accuracy.counts(row("", reference="C. Melanoma"))  # "C" is right there and would be wrong here
    assert closed_accuracy.counts(row("", question="What is it?", reference="Melanoma"))


def test_it_is_a_metric_of_the_folder() -> None:
    metric = load("multiple_choice")
    table = metric.table([row("B"), row("C"), row("The answer is B.")])
    assert metric.value(table.sum(0)).tolist() == pytest.approx([2 / 3])


def test_its_example() -> None:
    assert doctest.testmod(multiple_choice).failed == 0
