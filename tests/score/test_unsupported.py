"""Findings that labels deny: what is stated, what is not, and rates held to counts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from skinvl.data.example import Facts
from skinvl.data.labels import SKINCON_CONCEPTS
from skinvl.score import tables, unsupported
from skinvl.score.predictions import Answer
from skinvl.score.stats import Bootstrap
from skinvl.score.unsupported import stated

DERM7PT = ("atypical pigment network", "blue-whitish veil", "irregular streaks", "regression structures")


def row(group: int, answer: str | None, present: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> Answer:
    facts = Facts(present=present, absent=absent)
    finish: Any = "stop" if answer is not None else "refused"
    return Answer(f"r{group}", "skincon", f"g{group}", ("a.jpg",), "Describe it.", "-", facts, answer, finish, "", 3, 0)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("An erythematous plaque with crusts and scale.", {"plaque", "crust", "scale"}),
        ("There is no scale, crust or erosion; papules are seen.", {"papule"}),
        ("A patch without ulceration. Is there a scar?", {"patch"}),
        ("Scale is absent. If there were pustules, one would think of acne.", set()),
        ("On a scale of 1 to 10 this is a 7; a patch test was done.", set()),
        ("Brown (hyperpigmentation) and telangiectasias.", {"brown (hyperpigmentation)", "telangiectasia"}),
        ("A brown spot.", set()),  # a colour alone is not said to be the concept
        ('{"answer": "A nodule, not an ulcer"}', {"nodule"}),
        ("", set()),
    ],
)
def test_what_an_answer_states(answer: str, found: set[str]) -> None:
    assert stated(answer, SKINCON_CONCEPTS) == found


def test_regular_structures_of_derm7pt_are_no_irregular_ones() -> None:
    assert stated("Regular streaks and a typical pigment network.", DERM7PT) == set()
    assert stated("Irregular streaks and a blue-white veil.", DERM7PT) == {"irregular streaks", "blue-whitish veil"}


def test_rates_are_those_of_counts_by_hand() -> None:
    rows = [
        row(0, "A papule with scale.", present=("papule",), absent=("scale",)),
        row(1, "A papule without scale.", present=("papule",), absent=("scale",)),
        row(2, "Scale and crust.", present=("scale",), absent=("papule",)),
        row(3, "A papule.", absent=("papule", "scale")),
        row(4, None, absent=("papule",)),
        row(5, "Scale.", present=("papule",)),
        row(6, "Scale."),
    ]
    block = unsupported.block(rows, Bootstrap([(each.source, each.group) for each in rows], 200))
    assert block is not None
    assert (block["answers"]["value"], block["answers"]["n"], block["answers"]["unscored"]) == (2 / 4, 4, 1)
    assert block["stated"] == {"denied": 2, "shown": 3, "not known": 1}
    assert block["findings"]["value"] == pytest.approx(2 / 5)
    assert block["by_concept"].keys() == {"papule", "scale"}
    assert block["by_concept"]["scale"]["denied"]["value"] == pytest.approx(1 / 3)
    assert block["by_concept"]["scale"]["shown"]["value"] == 1.0
    assert block["by_concept"]["papule"]["denied"]["value"] == 1 / 2
    assert block["by_concept"]["papule"]["denied"]["unscored"] == 1

    # Twin: with the denial taken for a statement, the rate is another.
    naive = [replace(each, answer=(each.answer or "").replace("without", "with") or None) for each in rows]
    other = unsupported.block(naive, Bootstrap([(each.source, each.group) for each in rows], 200))
    assert other is not None
    assert other["answers"]["value"] == 3 / 4

    titled = tables._unsupported({"answers": {"unsupported": block}, "permuted": {"unsupported": other}}, block)
    assert titled[0][:3] == ["in an answer", "0.500 too few groups (4)", "0.750 too few groups (4)"]
    assert [line[0] for line in titled] == ["in an answer", "of all findings", "papule", "scale"]


def test_a_set_without_concepts_has_no_such_numbers() -> None:
    rows = [row(0, "A papule.")]
    assert unsupported.block(rows, Bootstrap([0], 100)) is None


def test_intervals_take_groups_whole() -> None:
    rows = [row(number // 3, "Scale.", absent=("scale",)) for number in range(36)]
    rows += [row(12 + number, "Scale.", present=("scale",), absent=("crust",)) for number in range(12)]
    block = unsupported.block(rows, Bootstrap([each.group for each in rows], 500))
    assert block is not None
    assert block["findings"]["groups"] == 24
    assert block["findings"]["low"] < 36 / 48 < block["findings"]["high"]
    alone = unsupported.block(rows, Bootstrap(list(range(48)), 500))
    assert alone is not None
    assert alone["findings"]["high"] - alone["findings"]["low"] < block["findings"]["high"] - block["findings"]["low"]
