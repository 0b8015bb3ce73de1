"""Table 1: each patient once, what is not known counted, and how far two sets differ by published formulas."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skinvl.data import table1
from skinvl.data.example import Example, Facts, text
from skinvl.data.table1 import Fact, Table1


def row(group: str, image: str = "", split: str = "train", source: str = "s", **facts: object) -> Example:
    messages = (text("user", "What?"), text("assistant", "That."))
    return Example(
        f"{group}-{image}", source, (image,) * bool(image), messages, group, split, "CC0-1.0", Facts(**facts)  # type: ignore[arg-type]
    )  # fmt: skip


TRAIN = [
    row("a", "1.png", sex="female", age=40.0, diagnosis="nevus", skin_type="II"),
    row("a", "1.png", sex="female", age=40.0, diagnosis="nevus"),
    row("a", "2.png", sex="female", age=40.0, diagnosis="melanoma", skin_type="II"),
    row("b", "3.png", sex="male", age=60.0, diagnosis="nevus", skin_type="IV"),
    row("c", "4.png", diagnosis="nevus"),
    row("d", "5.png", sex="male", age=50.0, diagnosis="nevus", skin_type="I-II"),
]
TEST = [
    row("e", "6.png", sex="male", age=70.0, diagnosis="melanoma", skin_type="II"),
    row("f", "7.png", sex="female", age=50.0, diagnosis="nevus", skin_type="VI"),
    row("f", "7.png", sex="male", age=51.0, diagnosis="nevus", skin_type="VI"),
]


def counted(unit: table1.Unit = "groups", **sets: list[Example]) -> Table1:
    return table1.table(table1.columns(sets or {"train": TRAIN, "test": TEST}), unit)


def fact(table: Table1, name: str) -> Fact:
    return next(fact for fact in table.facts if fact.name == name)


def lines(table: Table1, name: str) -> dict[str, tuple[int, ...]]:
    return {line.value: line.counts for line in fact(table, name).lines}


def test_a_patient_counts_once_with_the_one_value_of_its_rows() -> None:
    table = counted()
    assert (table.columns, table.totals) == (("train", "test", "all"), (4, 2, 6))
    assert lines(table, "sex") == {
        "male": (2, 1, 3),
        "female": (1, 0, 1),
        "several values": (0, 1, 1),
        "not known": (1, 0, 1),
    }
    assert lines(table, "diagnosis") == {
        "nevus": (3, 1, 4),
        "melanoma": (0, 1, 1),
        "several values": (1, 0, 1),
        "not known": (0, 0, 0),
    }
    assert table.unknown == ("tone", "site", "institution", "modality", "views", "malignancy", "confirmed")


@pytest.mark.parametrize("unit", table1.UNITS)
def test_the_lines_of_a_fact_add_up_to_all(unit: table1.Unit) -> None:
    table = counted(unit)
    assert table.totals == {"groups": (4, 2, 6), "images": (5, 2, 7), "conversations": (6, 3, 9)}[unit]
    for each in table.facts:
        if not each.spreads:
            assert (
                tuple(sum(column) for column in zip(*(line.counts for line in each.lines), strict=True)) == table.totals
            )


def test_an_image_and_a_conversation_have_their_own_values() -> None:
    assert lines(counted("images"), "diagnosis")["melanoma"] == (1, 1, 2)
    assert lines(counted("conversations"), "diagnosis") == {
        "nevus": (5, 2, 7),
        "melanoma": (1, 1, 2),
        "not known": (0, 0, 0),
    }


def test_ages_are_those_of_patients_who_have_one() -> None:
    age = fact(counted(), "age")
    train, test, _ = age.spreads
    assert train is not None
    assert test is not None
    assert (train.mean, train.sd, train.quartiles) == (50.0, 10.0, (45.0, 50.0, 55.0))
    assert test.mean == 70.0  # f has two ages
    assert math.isnan(test.sd)
    assert {line.value: line.counts for line in age.lines} == {"several values": (0, 1, 1), "not known": (1, 0, 1)}


def test_skin_types_and_tones_stand_in_their_own_order() -> None:
    assert list(lines(counted(), "skin_type")) == ["I-II", "II", "IV", "VI", "not known"]
    tones = [row(str(number), tone=tone) for number, tone in enumerate(("Monk 10", "Monk 9", "Monk 9", "MILK 3"))]
    assert list(lines(counted(train=tones), "tone")) == ["MILK 3", "Monk 9", "Monk 10", "not known"]


def test_rare_values_share_a_line() -> None:
    rows = [row(str(number), diagnosis=f"disease {number % 40:02}") for number in range(70)]
    shown = lines(counted(train=rows), "diagnosis")
    assert len(shown) == table1.MOST + 2
    assert next(iter(shown)) == "disease 00"  # of those that are twice there, by name
    assert shown["15 rarer values"] == (20,)


def test_a_group_of_two_sets_counts_in_both_and_once_in_all() -> None:
    table = counted(train=TRAIN, test=[*TEST, row("a", "1.png", sex="female")])
    assert table.totals == (4, 3, 6)
    assert counted(train=TRAIN, test=[row("a", source="another")]).totals == (4, 1, 5)  # names hold in their source


def test_one_set_stands_alone() -> None:
    table = counted(train=TRAIN)
    assert table.columns == ("train",)
    assert all(each.smd is None for each in table.facts)
    assert table1.table(table1.columns({"train": TRAIN, "test": TEST}), "groups", [1]).columns == ("test",)


def test_distances_of_two_shares_and_of_two_means_are_as_published() -> None:
    """Of two values: |p − q| / √((p (1 − p) + q (1 − q)) / 2), which Austin (2009) gives."""
    p, q = 0.3, 0.55
    known = abs(p - q) / math.sqrt((p * (1 - p) + q * (1 - q)) / 2)
    assert table1._distance(np.array([30.0, 70.0]), np.array([55.0, 45.0])) == pytest.approx(known)
    three = table1._distance(np.array([30.0, 50.0, 20.0]), np.array([30.0, 30.0, 40.0]))
    assert three == pytest.approx(table1._distance(np.array([20.0, 30.0, 50.0]), np.array([40.0, 30.0, 30.0])))
    assert table1._distance(np.array([30.0, 70.0, 0.0]), np.array([55.0, 45.0, 0.0])) == pytest.approx(known)
    assert table1._distance(np.array([5.0]), np.array([9.0])) == 0.0
    assert table1._distance(np.array([5.0, 0.0]), np.array([0.0, 9.0])) == math.inf
    men, women = table1.Spread(50.0, 10.0, (0, 0, 0)), table1.Spread(55.0, 12.0, (0, 0, 0))
    assert table1._apart(men, women) == pytest.approx(5 / math.sqrt((100 + 144) / 2))
    assert table1._apart(replace(men, sd=0.0), replace(men, sd=0.0)) == 0.0
    assert fact(counted(), "age").smd is None  # the test set has one age


def test_the_largest_distance_is_that_of_any_two_sets() -> None:
    def set_of(women: int) -> list[Example]:
        return [row(f"{women} {number}", sex="female" if number < women else "male") for number in range(10)]

    three = fact(counted(a=set_of(5), b=set_of(6), c=set_of(2)), "sex").smd
    assert three == pytest.approx(table1._distance(np.array([6.0, 4.0]), np.array([2.0, 8.0])))


def test_nothing_is_known_of_no_rows() -> None:
    table = counted(train=[])
    assert (table.totals, table.facts) == ((0,), ())
    several = counted(train=[row("a", sex="male"), row("a", sex="female")])
    assert lines(several, "sex") == {"several values": (1,), "not known": (0,)}


def test_the_csv_has_every_number(tmp_path: Path) -> None:
    columns = table1.columns({"train": TRAIN, "test": TEST})
    table1.write_csv(tmp_path / "t.csv", [table1.table(columns, unit) for unit in table1.UNITS])
    head, *rows = csv.reader((tmp_path / "t.csv").open(encoding="utf-8", newline=""))
    assert head == [
        *("unit", "characteristic", "value"),
        *("train", "train %", "test", "test %", "all", "all %", "largest SMD of two sets"),
    ]
    assert ["groups", "n", "", "4", "", "2", "", "6", "", ""] in rows
    assert ["groups", "age", "SD", "10.00", "", "", "", "12.91", "", ""] in rows
    (women,) = [cells for cells in rows if cells[:3] == ["images", "sex", "female"]]
    assert women[3:9] == ["2", "40.00", "0", "0.00", "2", "28.57"]
    assert {cells[0] for cells in rows} == {*table1.UNITS}
