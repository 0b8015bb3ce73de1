"""What other ways of asking change, told from answers that are written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from skinvl.data.example import Facts
from skinvl.data.workers import Workers
from skinvl.score import answers, metrics, robustness, score, tables
from skinvl.score.answers import Measured
from skinvl.score.compare import CompareError, Resampling
from skinvl.score.predictions import Answer

DRAWS = Resampling(200, 0)


def row(number: int, said: str | None, question: str = "Which colour?", reference: str = "Brown") -> Answer:
    return Answer(
        *(str(number), "s", f"g{number}", ("/a.png",), question, reference, Facts(), said),
        *("refused" if said is None else "stop", "" if said else "missing-image: /a.png", 2, 0),
    )


def measure(rows: Sequence[Answer], metric: str = "exact_match") -> Measured:
    with Workers(1) as pool:
        return answers.measure(rows, [metrics.load(metric)], pool)


def measured(said: Sequence[str | None]) -> Measured:
    return measure([row(number, words) for number, words in enumerate(said)])


def test_each_way_stands_beside_the_plain_answers_and_the_worst_is_named() -> None:
    plain = measured(["Brown"] * 16 + ["Red"] * 4)
    ways = {
        "blank": measured(["Brown"] * 8 + ["Red"] * 12),
        "crop": measured(["Brown"] * 14 + ["Red"] * 6),
        "rotate": measured(["Red"] * 4 + ["Brown"] * 14 + ["Red"] * 2),
    }
    block = robustness.block("s", plain, ways, DRAWS)
    each = {way: of["metrics"]["exact_match"]["difference"] for way, of in block["ways"].items()}
    assert {way: number["value"] for way, number in each.items()} == pytest.approx(
        {"blank": -0.4, "crop": -0.1, "rotate": -0.1}
    )
    assert each["blank"]["high"] < 0
    assert each["rotate"]["low"] < 0 < each["rotate"]["high"]
    assert block["ways"]["crop"]["same"]["value"] == 0.9

    # Blank is in no mean: 0.8 plain, 0.7 and 0.7 otherwise; half of what is right needs no image.
    overall = block["overall"]["exact_match"]
    assert (overall["plain"]["value"], overall["mean"]["value"]) == pytest.approx((0.8, 0.7))
    assert overall["difference"]["value"] == pytest.approx(-0.1)
    assert overall["difference"]["low"] < -0.1 < overall["difference"]["high"]
    assert overall["worst"]["way"] == "crop"  # the first of two that are equal
    assert overall["spread"]["values"] == pytest.approx([0.7, 0.7])
    left = block["blank"]["exact_match"]
    assert left["value"] == pytest.approx(0.5)
    assert left["low"] < 0.5 < left["high"]


def test_the_interval_of_the_mean_is_that_of_pairs() -> None:
    # Ways that answer as the plain do differ by nothing, however unsure the number itself is.
    plain = measured(["Brown", "Red"] * 20)
    same = robustness.block("s", plain, {"crop": plain, "rotate": plain}, DRAWS)["overall"]["exact_match"]
    assert (same["difference"]["value"], same["difference"]["method"]) == (0, "groups alike")
    assert same["mean"]["high"] - same["mean"]["low"] > 0.1
    other = measured(["Red", "Brown"] * 20)  # as often right, never on the same row
    apart = robustness.block("s", plain, {"crop": other}, DRAWS)["overall"]["exact_match"]
    assert apart["difference"]["value"] == 0
    assert apart["difference"]["high"] - apart["difference"]["low"] > 0.5


def test_rows_that_lack_an_answer_in_one_way_are_in_no_mean() -> None:
    plain = measured(["Brown"] * 12)
    ways = {"crop": measured([None] * 4 + ["Brown"] * 8), "rotate": measured(["Red"] * 12)}
    block = robustness.block("s", plain, ways, DRAWS)
    assert (block["ways"]["crop"]["unpaired"], block["ways"]["rotate"]["unpaired"]) == (4, 0)
    assert {block["overall"]["exact_match"][what]["n"] for what in ("plain", "mean", "difference")} == {8}
    assert block["overall"]["exact_match"]["worst"]["way"] == "rotate"


def test_options_are_read_from_the_questions_own_words() -> None:
    asked = "Which is it?\nA. Nevus\nB. Melanoma"
    plain = [row(number, "B", asked, "B. Melanoma") for number in range(12)]
    put = [replace(one, question=f"{asked}\nC. Think of it again.", answer="C") for one in plain]
    given, way = measure(plain, "multiple_choice"), measure(robustness.plainly(put, plain), "multiple_choice")
    number = robustness.block("s", given, {"paraphrase-a": way}, DRAWS)["ways"]["paraphrase-a"]["metrics"]
    assert number["multiple_choice"]["difference"]["value"] == -1
    assert way.rows[0].question == asked


def test_a_score_of_nothing_has_no_share() -> None:
    wrong = measured(["Red"] * 12)
    block = robustness.block("s", wrong, {"blank": wrong}, DRAWS)
    assert block["blank"]["exact_match"]["value"] is None
    assert block["overall"] == {}


def test_ways_without_plain_answers_and_of_other_questions_are_refused() -> None:
    way = {"crop": measured(["Brown"])}
    scored = score.Scored({}, {}, {}, {}, {}, {}, {"s": way})
    with pytest.raises(score.ScoreError, match=r"^s: was asked in other ways.*eval/robustness"):
        score.blocks(scored, DRAWS)
    other = measure([row(7, "Brown")])
    with pytest.raises(CompareError, match=r"1 of 1 questions were asked in another way alone \(s/7\)"):
        robustness.block("s", measured(["Brown"]), {"crop": other}, DRAWS)


def test_the_table_fits_a_terminal_and_shows_mean_worst_and_what_is_left() -> None:
    plain = measured(["Brown"] * 16 + ["Red"] * 4)
    ways = {"blank": measured(["Brown"] * 8 + ["Red"] * 12), "paraphrase-polite": measured(["Brown"] * 20)}
    block = robustness.block("s", plain, ways, DRAWS)
    rows = robustness.table(block, tables.number)
    assert {len(line) for line in rows} == {len(robustness.HEAD)}
    asked = [line[1] for line in rows]
    assert asked.count("blank, plain") == asked.count(robustness.MEAN) == asked.count(robustness.SHARE) == 1
    assert f"{robustness.WORST}: paraphrase-polite" in asked
    out = StringIO()
    tables.show_page(Console(file=out, width=80), [], [("s", robustness.HEAD, rows)])
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "blank / plain" in out.getvalue()
