"""One of several right answers an epoch: by weight, the same on every rank and after an interruption."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from skinvl.data.example import Example, Reference, text, validate, words
from skinvl.data.mixture import NOTHING, Row
from skinvl.data.references import answered, drawable, only
from skinvl.data.sampler import MixtureSampler, row_of

REFERENCES = (
    Reference("Eczema.", 0.5),
    Reference("Atopic dermatitis.", 1.0),
    Reference("Scabies.", -1.0),
    Reference("A rash.", 0.25),
    Reference("No idea.", 0.0),
)


def row(name: str, references: tuple[Reference, ...] = REFERENCES, weight: float = 1.0) -> Row:
    messages = (text("user", "What is shown?"), text("assistant", "Eczema."))
    example = Example(name, "drawn", (), messages, name, "train", "CC0-1.0", references=references)
    return Row(example, Path("a"), weight)


ROWS = [row("a"), row("b", ()), *(row(f"c{number}") for number in range(6))]


def epoch(sampler: MixtureSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


def said(rows: list[Row], index: int) -> str:
    shown = row_of(rows, index)
    assert shown is not None
    return words(shown.example.messages[-1])


def test_epochs_draw_each_reference_as_often_as_its_weight_says() -> None:
    sampler = MixtureSampler(ROWS, seed=1, drawn=True)
    counts: Counter[str] = Counter()
    for number in range(400):
        shown = epoch(sampler, number)
        assert sorted(index % len(ROWS) for index in shown) == list(range(len(ROWS)))
        counts.update(said(ROWS, index) for index in shown if index % len(ROWS) != 1)
        assert [said(ROWS, index) for index in shown if index % len(ROWS) == 1] == ["Eczema."]
    assert counts.keys() == {"Eczema.", "Atopic dermatitis.", "A rash."}
    total = sum(counts.values())
    assert total == 2800
    for reference in (REFERENCES[0], REFERENCES[1], REFERENCES[3]):
        assert counts[reference.text] / total == pytest.approx(reference.weight / 1.75, abs=0.03)


def test_what_is_drawn_is_the_same_wherever_and_whenever_it_is_drawn() -> None:
    whole = [epoch(MixtureSampler(ROWS, seed=1, drawn=True), number) for number in range(3)]
    resumed = MixtureSampler(ROWS, seed=1, drawn=True)
    assert [epoch(resumed, number) for number in (2, 1)] == [whole[2], whole[1]]
    # A row's draw is its own: others may come or go.
    fewer = MixtureSampler(ROWS[:3], seed=1, drawn=True)
    alike = {index % 3: said(ROWS[:3], index) for index in epoch(fewer, 0)}
    assert alike.items() <= {index % len(ROWS): said(ROWS, index) for index in whole[0]}.items()
    # The twins: another epoch, another seed.
    other = epoch(MixtureSampler(ROWS, seed=2, drawn=True), 0)
    by_row = [{index % len(ROWS): said(ROWS, index) for index in shown} for shown in (*whole, other)]
    assert by_row[0] != by_row[1] != by_row[2]
    assert by_row[0] != by_row[3]


def test_the_order_of_an_epoch_is_what_it_is_with_one_answer() -> None:
    first = MixtureSampler(ROWS, seed=1, multiple=5, batch=2, step=4)
    drawn = MixtureSampler(ROWS, seed=1, multiple=5, batch=2, step=4, drawn=True)
    one, other = epoch(first, 3), epoch(drawn, 3)
    assert len(drawn) == len(first) == 10
    assert [index % len(ROWS) if index != NOTHING else NOTHING for index in other] == one
    assert row_of(ROWS, other[-1]) is None
    assert all(row_of(ROWS, index) is ROWS[index] for index in one if index != NOTHING)


def test_copies_of_a_row_draw_each_for_itself() -> None:
    rows = [row("a", weight=6.0)]
    drawn = [{said(rows, index) for index in epoch(MixtureSampler(rows, 1, drawn=True), number)} for number in range(4)]
    assert max(map(len, drawn)) > 1


def test_an_example_with_some_of_its_references() -> None:
    example = ROWS[0].example
    assert drawable(example) == [0, 1, 3]
    assert drawable(ROWS[1].example) == [0]
    assert answered(example, 0) is example
    fewer = only(example, [1, 3])
    assert words(fewer.messages[-1]) == "Atopic dermatitis."
    assert fewer.references == (REFERENCES[1], REFERENCES[3])
    assert only(example, [1]) == replace(answered(example, 1), references=())
    assert only(ROWS[1].example, [0]) == ROWS[1].example


def test_a_thought_stays_before_the_answer_that_it_led_to() -> None:
    example = replace(ROWS[0].example, thoughts=("It is dry and red.",))
    assert answered(example, 0).thoughts == ("It is dry and red.",)
    assert answered(example, 1).thoughts == ()
    earlier = (text("user", "Where?"), text("assistant", "At the elbow."), *example.messages)
    longer = replace(example, messages=earlier, thoughts=("A fold.", "It is dry and red."))
    assert answered(longer, 1).thoughts == ("A fold.", None)
    validate(replace(answered(longer, 1), references=()))
