"""Multiple-choice answers are read as a reader would, not by their first character."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from skinvl.data.example import Facts
from skinvl.data.workers import Workers
from skinvl.score import answers
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


WAYS = [
    "Which is it?\nA. Nevus\nB. Melanoma\nC. Scar",
    "Which is it? A. Nevus B. Melanoma C. Scar",
    "Which is it? A) Nevus, B) Melanoma, C) Scar",
    "Is it (A) nevus, (B) melanoma, or (C) scar?",
    "Is it [a] nevus; [b] melanoma; [c] scar?",
    "Which is it?\na) nevus\nb) melanoma\nc) scar",
    "Which is it? a. nevus b. melanoma c. scar",
    "Which is it?\nA.Nevus\nB.Melanoma\nC.Scar",
    "Which is it?\nA - Nevus\nB - Melanoma\nC - Scar",
    "Which is it?\nA \u2013 Nevus\nB \u2013 Melanoma\nC \u2013 Scar",
    "Which is it?\n- A) Nevus\n- B) Melanoma\n- C) Scar",
    "Which is it?\n**A.** Nevus\n**B.** Melanoma\n**C.** Scar",
    "Which is it?\n**A**: Nevus\n**B**: Melanoma\n**C**: Scar",
    "Which is it?\nA. Nevus  B. Melanoma\nC. Scar",
    "Options: A: nevus, B: melanoma, C: scar. Answer with the letter.",
    "A. Nevus B. Melanoma C. Scar. Which is it?",
    "Ａ．Nevus\nＢ．Melanoma\nＣ．Scar",
]


@pytest.mark.parametrize("question", WAYS)
def test_options_are_options_however_they_are_written(question: str) -> None:
    listed = multiple_choice.options(question)
    assert {letter: option.lower() for letter, option in listed.items()} == {"A": "nevus", "B": "melanoma", "C": "scar"}
    for reference in ("B. Melanoma", "B", "b) melanoma", "Melanoma"):
        asked = row("B", question, reference)
        assert multiple_choice.counts(asked)
        assert not closed_accuracy.counts(asked)
        for answer, right in (
            ("B", 1),
            ("(b) Melanoma", 1),
            ("The answer is B because A and C are flat.", 1),
            ("C", 0),
        ):
            assert multiple_choice.statistics(answer, row(answer, question, reference)) == (right, 1.0)


@pytest.mark.parametrize(
    "question",
    [
        "What is it?",
        "The patient A. B. Smith has what?",
        "Vitamin A. B cells?",
        "What do (a) and (b) show?",
        "Is it hepatitis A: yes or no?",
        "A. x\nB. y\nA. z",
    ],
)
def test_letters_are_not_options_where_nothing_is_listed(question: str) -> None:
    assert multiple_choice.options(question) == {}


def test_a_letter_within_an_option_begins_none() -> None:
    question = "Which is it?\nA. Hepatitis B. virus\nB. C. albicans\nC. Scar"
    assert multiple_choice.options(question) == {"A": "Hepatitis B. virus", "B": "C. albicans", "C": "Scar"}


def test_a_question_of_choice_never_becomes_one_of_another_metric() -> None:
    numbered = "Which is it?\n1. Nevus\n2. Melanoma"
    lost = [row("Melanoma", numbered, "2. Melanoma"), row("B", "Nevus or melanoma?", "B. Melanoma")]
    lost += [row("B", QUESTION, "None of them"), row("B", "What is it?", "d) scar")]
    for asked in lost:
        assert multiple_choice.unread(asked)
        assert not multiple_choice.counts(asked)
        assert not closed_accuracy.counts(asked)
    # Names with an initial, ratios, and the panels of a figure are none.
    panels = "The figure shows (a) the face, (b) the arm. What is it?"
    for question, reference in (("Which yeast?", "C. albicans"), ("Which ratio?", "3:1"), (panels, "Melanoma")):
        asked = row("", question, reference)
        assert closed_accuracy.counts(asked)
        assert not multiple_choice.unread(asked)


def test_what_cannot_be_read_is_counted_as_not_scored() -> None:
    rows = [row("B"), row("A"), row("C", "What is it?", "C. Scar"), row("No", "Is it flat?", "No")]
    measured = answers.measure(rows, [load("multiple_choice"), load("closed_accuracy")], Workers(1))
    numbers = answers.estimates(measured, answers.bootstrap(rows, 10, 0), np.ones(4, np.bool_))
    assert (numbers["multiple_choice"].n, numbers["multiple_choice"].unscored) == (2, 1)
    assert numbers["multiple_choice"].value == 0.5
    assert (numbers["closed_accuracy"].n, numbers["closed_accuracy"].unscored) == (1, 0)


def test_it_is_a_metric_of_the_folder() -> None:
    metric = load("multiple_choice")
    table = metric.table([row("B"), row("C"), row("The answer is B.")])
    assert metric.value(table.sum(0)).tolist() == pytest.approx([2 / 3])


def test_its_example() -> None:
    assert doctest.testmod(multiple_choice).failed == 0
