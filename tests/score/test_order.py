"""What another order of the images changes, told from answers that are written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from skinvl.data.example import Facts
from skinvl.data.workers import Workers
from skinvl.score import answers, metrics, order, score
from skinvl.score.answers import Measured
from skinvl.score.compare import CompareError, Resampling
from skinvl.score.predictions import Answer

DRAWS = Resampling(200, 0)


def measured(said: Sequence[str | None], turned: bool = False, first: int = 0) -> Measured:
    images = ("/b.png", "/a.png") if turned else ("/a.png", "/b.png")
    rows = [
        Answer(
            *(str(first + number), "s", f"g{number}", images, "Which colour?", "Brown", Facts(), words),
            *("refused" if words is None else "stop", "" if words else "missing-image: /a.png", 2, 0),
        )
        for number, words in enumerate(said)
    ]
    with Workers(1) as pool:
        return answers.measure(rows, [metrics.load("exact_match")], pool)


def test_the_difference_is_that_of_the_pairs_with_an_interval() -> None:
    given = measured(["Brown", "Red"] * 12 + ["Brown"] * 4)
    turned = measured(["Brown", "Brown"] * 6 + ["Red", "Red"] * 6, turned=True)
    block = order.block("s", given, turned, DRAWS)
    numbers = block["metrics"]["exact_match"]
    assert (numbers["given"]["value"], numbers["reversed"]["value"]) == (0.5, 0.5)
    assert numbers["difference"]["value"] == 0
    assert numbers["difference"]["low"] < 0 < numbers["difference"]["high"]
    assert block["same"]["value"] == 0.5
    assert (block["rows"], block["unpaired"]) == (24, 0)
    # It is what the other order gains: here it loses.
    worse = order.block("s", given, measured(["Red"] * 24, turned=True), DRAWS)["metrics"]["exact_match"]
    assert worse["difference"]["value"] == -0.5
    assert worse["difference"]["high"] < 0


def test_what_was_not_answered_both_times_is_in_neither_number() -> None:
    block = order.block("s", measured(["Brown", None, "Red"] * 4), measured(["brown."] * 12, turned=True), DRAWS)
    numbers = block["metrics"]["exact_match"]
    assert (block["rows"], block["unpaired"]) == (12, 4)
    assert [numbers[what]["n"] for what in ("given", "reversed", "difference")] == [8, 8, 8]
    assert numbers["difference"]["value"] == 0.5
    assert block["same"]["value"] == 0.5


def test_questions_of_another_preparation_are_refused() -> None:
    with pytest.raises(CompareError, match=r"1 of 3 questions were asked .* alone \(s/3\)"):
        order.block("s", measured(["Brown"] * 3), measured(["Brown"] * 3, turned=True, first=1), DRAWS)


def test_an_order_without_the_other_is_refused() -> None:
    turned = {"s": measured(["Brown"], turned=True)}
    with pytest.raises(score.ScoreError, match=r"^s: .* no answers to their own order"):
        score.blocks(score.Scored({}, {}, turned, {}, {}, {}), DRAWS)
