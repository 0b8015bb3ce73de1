from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from skinvl.data.example import Dropped, Example, Facts, words
from skinvl.data.questions import DatasetRecord, Missing, choices, converse, diagnosis, malignancy, modality

KINDS = {"diagnosis": diagnosis("dx", {"n": "nevus", "m": "melanoma", "N": "nevus"}), "modality": modality()}
ORDERS = ("nevus or melanoma", "melanoma or nevus")


def case(number: int, answer: str | Missing = "nevus", **changes: str) -> DatasetRecord:
    fields = {"id": f"I{number}", "group": "g", **changes}
    answers = {"diagnosis": answer, "modality": "dermoscopic image"}
    facts = Facts("dermoscopy", "nevus", "benign", "II", 40.0, "male", "arm")
    return DatasetRecord(
        f"a.csv:{number}", fields["id"], ("a.jpg",), (fields["group"],), "train", "CC0-1.0", facts, answers
    )


def test_closed_and_open_questions_are_balanced_and_their_options_are_in_any_order() -> None:
    rows = [row for row in converse("x", KINDS, map(case, range(1_000))) if isinstance(row, Example)]
    asked = Counter(words(row.messages[0]) for row in rows if row.facts.kind == "diagnosis")
    closed = {question: count for question, count in asked.items() if "melanoma" in question}
    assert set(asked) - set(closed) == set(KINDS["diagnosis"].open)
    assert 440 < sum(closed.values()) < 560
    orders = [sum(count for question, count in closed.items() if order in question) for order in ORDERS]
    assert min(orders) > 180
    assert all(words(row.messages[1]) == "nevus" for row in rows if words(row.messages[0]) in closed)


def test_the_wording_is_seeded_by_source_image_and_kind_alone() -> None:
    whole = list(converse("x", KINDS, map(case, range(50))))
    assert [row for number in range(50) for row in converse("x", KINDS, [case(number)])] == whole
    one, other = (
        [row.messages for row in converse(source, KINDS, map(case, range(50))) if isinstance(row, Example)]
        for source in "xy"
    )
    assert sum(left != right for left, right in zip(one, other, strict=True)) > 50


def test_a_case_that_comes_again_is_said_again() -> None:
    first, again = list(converse("x", KINDS, [case(1)])), list(converse("x", KINDS, [case(1), case(1)]))
    assert again == first * 2


def test_every_fact_stays_and_the_kind_is_added() -> None:
    row = next(converse("x", KINDS, [case(1)]))
    assert isinstance(row, Example)
    assert row.facts == Facts("dermoscopy", "nevus", "benign", "II", 40.0, "male", "arm", "diagnosis")


def test_what_has_no_answer_or_name_goes_to_the_ledger() -> None:
    cases = [case(1, Missing("dx is ''")), case(2, id=""), case(3, group="")]
    assert [row for row in converse("x", KINDS, cases) if isinstance(row, Dropped)] == [
        Dropped("a.csv:1 diagnosis", "unknown-value", "dx is ''"),
        *(
            Dropped(f"a.csv:{number} {kind}", "empty", "no name of the image or its group")
            for number in (2, 3)
            for kind in KINDS
        ),
    ]


def test_all_of_a_case_comes_before_the_next_is_taken() -> None:
    taken: list[int] = []

    def cases() -> Iterator[DatasetRecord]:
        for number in range(3):
            taken.append(number)
            yield case(number)

    for count, _ in enumerate(converse("x", KINDS, cases())):
        assert len(taken) == count // len(KINDS) + 1


def test_options_are_each_named_once() -> None:
    assert KINDS["diagnosis"].options == ("melanoma", "nevus")
    assert malignancy().options == ("benign", "malignant", "premalignant")
    assert choices(("a", "b", "c")) == "a, b or c"
