"""What an adapter forgot, from letters that are written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from skinvl.data.example import Facts
from skinvl.score import tables, text_sets
from skinvl.score.compare import CompareError, Resampling
from skinvl.score.predictions import Classified, PredictionError
from skinvl.score.text_sets import TextSet

DRAWS = Resampling(200, 0)
SETTINGS = {"classes": ["A", "B"]}


def rows(letters: str, first: int = 0) -> list[Classified]:
    """A row for each letter that is the likeliest, where A is right; `-` could not be asked."""
    scores = {"A": (-1.0, -2.0), "B": (-2.0, -1.0), "-": None}
    return [
        Classified(str(first + n), "m", str(first + n), (), Facts(), "A", scores[letter], "" if scores[letter] else "x")
        for n, letter in enumerate(letters)
    ]


def test_the_difference_is_that_of_the_pairs() -> None:
    block = text_sets.block(
        "m", TextSet({"adapter": rows("A" * 6 + "B" * 14), "base": rows("A" * 14 + "B" * 6)}, SETTINGS, {}), DRAWS
    )
    assert {side: number["value"] for side, number in block["accuracy"].items()} == {"adapter": 0.3, "base": 0.7}
    assert block["difference"]["value"] == pytest.approx(-0.4)
    assert block["difference"]["low"] < -0.4 < block["difference"]["high"] < 0
    assert block["p"] == pytest.approx(2 / 2**8)
    same = TextSet({"adapter": rows("AB" * 10), "base": rows("AB" * 10)}, SETTINGS, {})
    assert text_sets.block("m", same, DRAWS)["p"] == 1
    assert [line[0] for line in text_sets.table(block, tables.number)] == ["adapter", "base", "adapter − base"]


def test_what_one_side_was_not_asked_is_in_neither() -> None:
    one = TextSet({"adapter": rows("A" * 12), "base": rows("-" * 4 + "B" * 8)}, SETTINGS, {"no-json": 2})
    block = text_sets.block("m", one, DRAWS)
    assert {(number["n"], number["unscored"]) for number in block["accuracy"].values()} == {(8, 4)}
    assert block["difference"]["value"] == 1
    assert block["unread"] == {"no-json": 2}


def test_a_base_alone_and_other_questions() -> None:
    block = text_sets.block("m", TextSet({"base": rows("AB" * 6)}, SETTINGS, {}), DRAWS)
    assert (block["difference"], block["p"]) == (None, None)
    with pytest.raises(CompareError, match=r"m: adapter and base were asked other questions"):
        text_sets.block("m", TextSet({"adapter": rows("AB"), "base": rows("AB", first=1)}, SETTINGS, {}), DRAWS)


def test_a_set_that_was_begun_is_not_scored(tmp_path: Path) -> None:
    part = tmp_path / "eval" / "text_sets" / "base" / ".m.rank0.jsonl"
    part.parent.mkdir(parents=True)
    part.touch()
    with pytest.raises(PredictionError, match=r"begun and not finished; go on with skinvl classify"):
        text_sets.read_all(tmp_path)
