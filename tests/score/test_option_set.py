"""Questions of which several options are right: credit, the exact set, macro F1, and what no other metric counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skinvl.data.example import Facts
from skinvl.data.workers import Workers
from skinvl.score import answers, metrics
from skinvl.score.metrics import closed_accuracy, multiple_choice, option_f1, option_set
from skinvl.score.predictions import Answer

SITES = ("Face", "Arm", "Leg", "Not mentioned")
QUESTION = "Where is it?\nA. Face\nB. Arm\nC. Leg\nD. Not mentioned"


def row(answer: str | None, right: tuple[int, ...] = (0, 2), kind: str = "site", id: str = "1") -> Answer:
    how = "stop" if answer is not None else "refused"
    reference = ", ".join(SITES[number] for number in right)
    return Answer(
        id, "s", id, (), QUESTION, reference, Facts(kind=kind), answer, how, "", 3, 0, options=SITES, right=right
    )  # type: ignore[arg-type]


def of(name: str, *rows: Answer) -> dict[str, float]:
    return metrics.measure(rows, [metrics.load(name)])


@pytest.mark.parametrize(
    ("answer", "credit", "exact", "read"),
    [
        ("A, C", 1.0, 1.0, 1.0),
        ("Leg, face", 1.0, 1.0, 1.0),
        ("A", 1 / 2, 0.0, 1.0),
        ("A, B, C", 2 / 3, 0.0, 1.0),
        ("A, B, C, D", 2 / 4, 0.0, 1.0),
        ("B", 0.0, 0.0, 1.0),
        ("None of these.", 0.0, 0.0, 1.0),
        ("", 0.0, 0.0, 0.0),
        ("A or C", 0.0, 0.0, 0.0),
        ("It depends.", 0.0, 0.0, 0.0),
    ],
)
def test_credit_is_shared_over_the_longer_set(answer: str, credit: float, exact: float, read: float) -> None:
    assert option_set.statistics(answer, row(answer)) == pytest.approx((credit, exact, read, 1.0))


def test_only_questions_with_options_count_and_no_other_metric_of_right_and_wrong_counts_them() -> None:
    plain = Answer("1", "s", "1", (), "Where?", "arm", Facts(), "arm", "stop", "", 1, 0)
    assert not option_set.counts(plain)
    assert closed_accuracy.counts(plain)
    lettered = row("A", (0,))  # as a question of multiple choice would be
    assert option_set.counts(lettered)
    for metric in (closed_accuracy, multiple_choice):
        assert not metric.counts(lettered)
    assert not multiple_choice.unread(lettered)
    assert multiple_choice.counts(Answer("1", "s", "1", (), QUESTION, "A. Face", Facts(), "A", "stop", "", 1, 0))
    assert math.isnan(of("option_set", plain)["option_credit"])
    assert math.isnan(of("option_f1", plain)["option_f1"])


ROWS = [row("A, C"), row("A, B", (0,)), row("C", (1,)), row("Well.", (1, 2)), row("C, D", (3,), "onset")]


def test_macro_f1_is_the_mean_over_options_that_are_ever_right() -> None:
    # site: face 2 right, 2 said, both; arm 2 right, 1 said, none; leg 2 right, 2 said, 1. onset: not mentioned,
    # and the leg, which is said and never right.
    expected = np.mean([1.0, 0.0, 2 / 4, 1.0])
    assert of("option_f1", *ROWS)["option_f1"] == pytest.approx(expected)
    halves = [metrics.load("option_f1").table(ROWS)[part].sum(axis=0) for part in (slice(0, 2), slice(2, 5))]
    assert option_f1.value(halves[0] + halves[1]).tolist() == pytest.approx([expected])
    assert option_f1.value(np.stack(halves)).shape == (2, 1)
    assert np.isnan(option_f1.value(0 * halves[0])).all()


def test_an_option_of_another_kind_of_question_is_another_one() -> None:
    names = option_f1.options_of(ROWS)
    assert len(names) == 8
    assert {"site: Not mentioned", "onset: Not mentioned"} <= {*names}


def test_options_without_a_list_have_no_macro_f1() -> None:
    rows = [
        Answer(
            str(n), "s", "g", (), "?", "x", Facts(), f"x{n}", "stop", "", 1, 0, options=(f"x{n}", f"y{n}"), right=(0,)
        )
        for n in range(option_f1.MANY)
    ]
    assert math.isnan(of("option_f1", *rows)["option_f1"])
    assert of("option_set", *rows)["option_credit"] == 1.0
    assert of("option_f1", *rows[: option_f1.MANY // 2])["option_f1"] == 1.0


def test_scores_have_a_table_by_option() -> None:
    rows = [row(each.answer, each.right, each.facts.kind or "", str(number)) for number, each in enumerate(ROWS * 3)]
    rows.append(row(None, id="refused"))
    measured = answers.measure(rows, [metrics.load("option_set"), metrics.load("option_f1")], Workers(1))
    block = answers.block(measured, {}, answers.bootstrap(rows, 100, 0))
    assert [block["metrics"][name]["value"] for name in option_set.NAMES] == pytest.approx([2 / 5, 1 / 5, 4 / 5])
    assert block["metrics"]["option_f1"]["value"] == pytest.approx(0.625)
    assert {block["metrics"][name]["unscored"] for name in (*option_set.NAMES, "option_f1")} == {1}
    leg = block["options"]["site: Leg"]
    assert {name: (number["value"], number["n"]) for name, number in leg.items()} == {
        **{"precision": (0.5, 6), "recall": (0.5, 6), "f1": (0.5, 6)},
    }
    assert block["options"]["site: Not mentioned"]["f1"]["value"] is None
    assert block["fields"] == {}
