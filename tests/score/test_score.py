"""`skinvl score`: the files it writes, what it refuses, and mistakes that cannot be made any more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import printed
from skinvl.data.example import Facts
from skinvl.recipe.strict import RecipeError
from skinvl.score import compare, report, score, tables
from skinvl.score.compare import CompareError
from skinvl.score.metrics import MetricError
from skinvl.score.predictions import Answer, Classified, PredictionError
from skinvl.score.score import ScoreError
from skinvl.score.stats import EXPANDED, mcnemar

ROOT = Path(__file__).parents[2]
NUMBER = {"value", "low", "high", "method", "n", "groups", "unscored"}
BLOCK = {
    *("rows", "unscored", "reasons", "valid", "metrics", "majority", "by", "slices", "options", "fields", "settings"),
    "unsupported",
}
CLASSES = {
    *("rows", "unscored", "reasons", "classes", "benchmark", "headline", "variants", "spread", "valid", "outcomes"),
    *(
        "majority",
        "confusion",
        "reliability",
        "risk_coverage",
        "threshold",
        "operating",
        "decision",
        "calibration",
        "per_class",
    ),
    *("slices", "institutions", "settings"),
}


def answers(count: int = 60, right: Callable[[int], bool] = lambda place: place % 3 > 0) -> list[Answer]:
    """Closed and open questions in turn, two of a group; the closed ones are right as told, the open ones in part."""
    rows = []
    for place in range(count):
        closed = place % 2 == 0
        facts = Facts(modality="clinical", sex=["female", "male"][place % 4 // 2], kind=["site", "sign"][place % 2])
        reference = ("arm" if place % 6 else "leg") if closed else "It is a raised red lesion."
        said = reference if right(place) else "face"
        rows.append(
            Answer(f"r{place}", "s", f"g{place // 2}", (), "What?", reference, facts, said, "stop", "", len(said), 0)
        )
    return rows


def classified(count: int = 60, right: Callable[[int], bool] = lambda place: place % 4 > 0) -> list[Classified]:
    rows = []
    for place in range(count):
        true = ["benign", "malignant"][place % 5 == 0]
        sure = 2.0 + place % 7
        scores = (sure, 0.0) if (true == "benign") == right(place) else (0.0, sure)
        facts = Facts(sex=["female", "male"][place % 4 // 2])
        rows.append(Classified(f"r{place}", "s", f"g{place // 2}", (), facts, true, scores, ""))
    return rows


def put(path: Path, rows: Iterable[Answer | Classified], **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(settings))


def run(
    folder: Path,
    free: Sequence[Answer] = (),
    classes: Sequence[Classified] = (),
    permuted: Sequence[Answer] = (),
) -> Path:
    if free:
        put(folder / "eval/answers/s-test.jsonl", free, seed=0)
    if permuted:
        put(folder / "eval/permuted/s-test.jsonl", permuted, seed=0)
    if classes:
        names = ["benign", "malignant"]
        two = {"classes": names, "label_tokens": [1, 2], "prior": [-1.0, -2.0], "malignant": [False, True]}
        put(folder / "eval/classes/lesions.jsonl", classes, **two, benchmark=None, question="Which?")
    return folder


def scored(path: Path, *words: str) -> dict[str, Any]:
    assert score.main([str(path), "--resamples", "200", *words]) == 0
    found: dict[str, Any] = json.loads((path / "scores.json").read_text(), parse_constant=pytest.fail)
    return found


def numbers(found: Any) -> Iterable[dict[str, Any]]:
    """Every Number of a tree."""
    if isinstance(found, dict) and found.keys() == NUMBER:
        yield found
    elif isinstance(found, dict | list):
        for one in found.values() if isinstance(found, dict) else found:
            yield from numbers(one)


def test_scores_have_their_layout_and_repeat_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path / "one", answers(), classified(), answers(20, lambda place: False))
    found = scored(path)
    first = (path / "scores.json").read_bytes(), (path / "scores.md").read_bytes()
    assert scored(path) == found
    assert ((path / "scores.json").read_bytes(), (path / "scores.md").read_bytes()) == first
    assert {key: found[key] for key in ("run", "resamples", "seed", "level")} == {
        **{"run": "one", "resamples": 200},
        **{"seed": 0, "level": 0.95},
    }
    assert (found["replicates"], found["comparison"]) == (None, None)
    assert set(found["sets"]) == {"s-test", "lesions"}
    assert set(found["sets"]["s-test"]) == {"answers", "permuted"}
    block = found["sets"]["s-test"]["answers"]
    assert set(block) == BLOCK
    assert set(found["sets"]["lesions"]["classes"]) == CLASSES
    assert set(block["by"]) == {"kind", "modality", "source"}
    assert set(block["by"]["kind"]) == {"site", "sign"}
    assert block["by"]["kind"]["sign"]["closed_accuracy"]["n"] == 0
    assert block["slices"]["sex"]["metric"] == "closed_accuracy"
    assert len(block["metrics"]) >= 12
    assert len(list(numbers(found))) > 50
    for number in numbers(found):
        if number["low"] is not None:
            assert number["low"] <= number["high"]
            assert number["method"] in ("Wilson", "expanded percentile", "sandwich")
        elif number["value"] is not None:
            assert number["method"] in ("groups alike", f"too few groups ({number['groups']})")
    assert block["metrics"]["closed_accuracy"]["value"] == pytest.approx(20 / 30)
    other = scored(path, "--seed", "1")
    changed = other["sets"]["s-test"]["answers"]["metrics"]
    assert changed["closed_accuracy"] == block["metrics"]["closed_accuracy"]  # no resample is in it
    assert changed["bleu-4"]["value"] == block["metrics"]["bleu-4"]["value"]
    assert changed["bleu-4"] != block["metrics"]["bleu-4"]
    assert "sensitivity" in capsys.readouterr().out


def test_shares_have_wilsons_interval_and_other_numbers_expanded_percentiles(tmp_path: Path) -> None:
    path = run(tmp_path, answers(), classified())
    sets = scored(path)["sets"]
    block, classes = sets["s-test"]["answers"], sets["lesions"]["classes"]
    shares = {name for name, number in block["metrics"].items() if number["method"] == "Wilson"}
    assert {"closed_accuracy", "exact_match", "token_f1", "rouge-l"} <= shares
    assert not shares & {"bleu-1", "bleu-4"}
    assert (block["valid"]["method"], block["majority"]["method"]) == ("Wilson", "Wilson")
    methods = {name: number["method"] for name, number in classes["variants"]["sum"].items()}
    of_rows = {"accuracy", "sensitivity", "specificity"}
    assert {name for name, method in methods.items() if method == "Wilson"} == of_rows
    per_class = {name: number["method"] for name, number in classes["per_class"]["benign"].items()}
    expanded = "expanded percentile"
    assert per_class == {"precision": "Wilson", "recall": "Wilson", "f1": expanded, "auroc": expanded}
    assert classes["slices"]["sex"]["gap"]["method"] == expanded

    # A side of malignancy is of its own rows, and a number's groups are those of its rows.
    sides = [classes["variants"]["sum"][name] for name in ("accuracy", "sensitivity", "specificity")]
    assert [(side["n"], side["groups"]) for side in sides] == [(60, 30), (12, 12), (48, 30)]
    table = (path / "scores.md").read_text()
    assert table.count("| metric | value | majority | n | groups | unscored |") == 2
    assert "W | – | 12 | 12 | 0 |" in table


@pytest.mark.parametrize(("rows", "closed", "bleu"), [(8, "too few groups (4)", "too few groups (4)"),
                                                      (10, "Wilson", "too few groups (5)"),
                                                      (18, "Wilson", "too few groups (9)"),
                                                      (20, "Wilson", "expanded percentile")])  # fmt: skip
def test_few_groups_have_no_interval_and_say_so(tmp_path: Path, rows: int, closed: str, bleu: str) -> None:
    path = run(tmp_path, answers(rows))
    metrics = scored(path)["sets"]["s-test"]["answers"]["metrics"]
    assert (metrics["closed_accuracy"]["method"], metrics["bleu-4"]["method"]) == (closed, bleu)
    for number in (metrics["closed_accuracy"], metrics["bleu-4"]):
        assert (number["low"] is None) == number["method"].startswith("too few")
        assert number["groups"] == rows // 2
    assert (f"{metrics['bleu-4']['value']:.3f} {bleu} |" in (path / "scores.md").read_text()) == (rows < 20)


def test_what_failed_is_counted_with_its_reason_and_changes_no_number(tmp_path: Path) -> None:
    rows = answers()
    failed = [
        replace(row, answer=None, finish_reason="refused", detail=f"{len(row.images)} images") if place < 6 else row
        for place, row in enumerate(rows)
    ]
    failed[7] = replace(failed[7], reference="?!")
    failed[9] = replace(failed[9], answer="")
    failed[11] = replace(failed[11], finish_reason="length")
    found = scored(run(tmp_path, failed))["sets"]["s-test"]["answers"]
    assert (found["rows"], found["unscored"]) == (60, 7)
    assert found["reasons"] == {"0 images": 6, "the reference has no words": 1}
    assert found["valid"]["value"] == pytest.approx(52 / 54)
    assert (found["valid"]["n"], found["valid"]["unscored"]) == (54, 6)
    exact, closed = found["metrics"]["exact_match"], found["metrics"]["closed_accuracy"]
    assert (exact["n"], exact["unscored"]) == (53, 7)
    assert (closed["n"], closed["unscored"]) == (27, 3)
    kept = [row for row in failed if row.answer is not None and row.reference != "?!"]
    alone = scored(run(tmp_path / "kept", kept))["sets"]["s-test"]["answers"]
    assert alone["metrics"]["exact_match"]["value"] == exact["value"]
    assert alone["metrics"]["bleu-4"]["value"] == found["metrics"]["bleu-4"]["value"]


ASKED = [*[("site", "arm")] * 2, *[("site", "Leg.")] * 3, ("sign", "no"), (None, "a b c d")]


def test_the_majority_is_that_of_each_kind_of_closed_question(tmp_path: Path) -> None:
    rows = [
        replace(row, facts=Facts(kind=kind), reference=reference, answer="arm")
        for row, (kind, reference) in zip(
            answers(7),
            ASKED,
            strict=True,
        )
    ]
    found = scored(run(tmp_path, rows))["sets"]["s-test"]["answers"]
    assert found["majority"]["value"] == pytest.approx(4 / 6)
    assert found["majority"]["n"] == found["metrics"]["closed_accuracy"]["n"] == 6
    assert found["metrics"]["closed_accuracy"]["value"] == pytest.approx(2 / 6)
    opened = [replace(row, reference="It is on the left arm.") for row in rows]
    block = scored(run(tmp_path, opened))["sets"]["s-test"]["answers"]
    assert block["majority"] is None
    assert block["slices"]["source"]["metric"] != "closed_accuracy"


def test_the_metrics_are_those_of_the_recipe(tmp_path: Path) -> None:
    path = run(tmp_path, answers(8))
    (path / "recipe.yaml").write_text("name: x\nevaluate: {metrics: [tokens, tokens]}\n")
    assert set(scored(path)["sets"]["s-test"]["answers"]["metrics"]) == {"token_recall", "token_precision", "token_f1"}
    (path / "recipe.yaml").write_text("evaluate: {metrics: [blue]}\n")
    with pytest.raises(MetricError, match=r"'blue': no such metric; did you mean bleu\?"):
        score.main([str(path)])
    (path / "recipe.yaml").write_text("name: x\nevaluate:\n  metrik: [bleu]\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:3 evaluate\.metrik: unknown; did you mean metrics\?"):
        score.main([str(path)])


def test_what_cannot_be_scored_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=r"eval: no predictions to score; make them with: make eval RUN="):
        score.main([str(tmp_path)])
    path = run(tmp_path, answers(4))
    (path / "eval/answers/.other.rank0.jsonl").write_text("{}\n")
    with pytest.raises(ScoreError, match=r"begun and not finished; go on with skinvl generate, or with make eval"):
        score.main([str(path)])
    (path / "eval/answers/.other.rank0.jsonl").unlink()
    (path / "eval/answers/s-test.jsonl").write_text("")
    with pytest.raises(ScoreError, match="no rows"):
        score.main([str(path)])
    (path / "eval/answers/s-test.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(PredictionError, match="not a file of predictions"):
        score.main([str(path)])
    for words in (["--resamples", "10"], ["--seed", "-1"], ["--workers", "0"]):
        with pytest.raises(SystemExit):
            score.main([str(path), *words])


def test_replicates_give_mean_and_spread(tmp_path: Path) -> None:
    shares = [lambda place: place % 3 > 0, lambda place: place % 3 == 0, lambda place: True]
    paths = [run(tmp_path / f"seed{n}", answers(60, right), classified()) for n, right in enumerate(shares)]
    found = scored(paths[0], str(paths[1]), str(paths[2]))
    assert found["replicates"]["runs"] == ["seed0", "seed1", "seed2"]
    spread = found["replicates"]["sets"]["s-test"]["answers"]["closed_accuracy"]
    assert spread["values"] == pytest.approx([2 / 3, 1 / 3, 1])
    assert spread["mean"] == pytest.approx(2 / 3)
    assert spread["sd"] == pytest.approx(1 / 3)
    assert (spread["min"], spread["max"]) == pytest.approx((1 / 3, 1))
    assert found["replicates"]["sets"]["lesions"]["classes"]["accuracy"]["sd"] == 0
    assert found["replicates"]["sets"]["lesions"]["classes"]["accuracy"]["mean"] == 0.75
    assert not (paths[1] / "scores.json").exists()
    assert (
        "| s-test | answers | closed\\_accuracy | 0.667 | 0.333 | 0.333 | 1.000 |"
        in (paths[0] / "scores.md").read_text()
    )


def test_two_runs_are_tested_row_by_row(tmp_path: Path) -> None:
    def worse(place: int) -> bool:
        return place % 7 < 3 or place > 50

    free, others = answers(), answers(60, lambda place: place % 5 == 0)
    ours = run(tmp_path / "ours", free, classified())
    theirs = run(tmp_path / "theirs", others[::-1], classified(60, worse)[::-1])
    found = scored(ours, "--against", str(theirs))["comparison"]
    assert found["against"] == "theirs"
    tests = {(one["what"], one["metric"], one["test"]): one for one in found["tests"]}
    closed = tests["answers", "closed_accuracy", "McNemar"]
    assert (closed["n"], closed["groups"]) == (30, 30)
    assert closed["ours"] == pytest.approx(20 / 30)
    assert closed["theirs"] == pytest.approx(6 / 30)
    assert closed["difference"]["value"] == pytest.approx(closed["ours"] - closed["theirs"])
    sides = [np.array([row.answer == row.reference for row in rows[::2]]) for rows in (free, others)]
    assert closed["p"] == pytest.approx(mcnemar(*sides))
    paired = tests["answers", "closed_accuracy", "paired bootstrap"]
    assert paired["difference"] == closed["difference"]
    assert 0 < paired["p"] < 0.05
    assert ("answers", "bleu-4", "McNemar") not in tests
    accuracy = tests["classes", "accuracy", "McNemar"]
    assert (accuracy["ours"], accuracy["theirs"]) == pytest.approx((0.75, np.mean([worse(n) for n in range(60)])))
    right = (np.array([side(n) for n in range(60)]) for side in (lambda n: n % 4 > 0, worse))
    assert accuracy["p"] == pytest.approx(mcnemar(*right))
    assert {"sensitivity", "auroc"} <= {metric for what, metric, _ in tests if what == "classes"}
    alone = scored(theirs)["sets"]
    own = alone["s-test"]["answers"]["metrics"] | alone["lesions"]["classes"]["variants"]["sum"]
    assert all(one["theirs"] == pytest.approx(own[one["metric"]]["value"]) for one in found["tests"])
    known = [one for one in found["tests"] if one["p"] is not None]
    assert min(known, key=lambda one: one["p"])["p_holm"] == pytest.approx(
        min(1, len(known) * min(one["p"] for one in known))
    )
    assert all(one["p_holm"] >= one["p"] for one in known)


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("accuracy", -0.019, 0.05, "non-inferior"),
        ("accuracy", -0.02, 0.05, "not shown"),
        ("accuracy", -0.019, 0.019, "equivalent"),
        ("accuracy", -0.019, 0.02, "non-inferior"),
        ("accuracy", 0.03, 0.05, "non-inferior"),
        ("accuracy", -0.2, -0.021, "inferior"),
        ("accuracy", -0.2, -0.02, "not shown"),
        ("ece", -0.05, 0.019, "non-inferior"),
        ("ece", -0.019, 0.05, "not shown"),
        ("ece", 0.021, 0.05, "inferior"),
        ("accuracy", None, None, None),
    ],
)
def test_a_difference_is_judged_by_the_end_that_is_worse(
    metric: str, low: float | None, high: float | None, expected: str | None
) -> None:
    assert compare.verdict(metric, {"value": 0.0, "low": low, "high": high}, 0.02) == expected


def test_a_margin_judges_each_difference_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = run(tmp_path / "ours", answers(), classified())
    theirs = run(tmp_path / "theirs", answers(60, lambda place: place % 5 == 0), classified())
    found = scored(ours, "--against", str(theirs), "--margin", "0.2")["comparison"]
    assert found["margin"] == 0.2
    verdicts = {(one["metric"], one["test"]): one["verdict"] for one in found["tests"]}
    assert verdicts["closed_accuracy", "McNemar"] is None
    assert verdicts["closed_accuracy", "paired bootstrap"] == "non-inferior"
    assert "within 0.2 of theirs, non-inferior: " in " ".join(capsys.readouterr().out.split())
    assert "within 0.2 of theirs, non-inferior: s-test" in (ours / "scores.md").read_text().replace("\\", "")
    turned = scored(theirs, "--against", str(ours), "--margin", "0.05")["comparison"]["tests"]
    assert {one["verdict"] for one in turned if one["metric"] == "closed_accuracy"} == {None, "inferior"}
    report.main([str(theirs)])
    assert "inferior within 0.05" in (theirs / "report.html").read_text()
    assert "verdict" not in scored(ours, "--against", str(theirs))["comparison"]["tests"][0]
    for words in (["--margin", "0.02"], ["--against", str(theirs), "--margin", "0"]):
        with pytest.raises(SystemExit):
            score.main([str(ours), *words])


def test_a_pair_of_which_one_failed_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = answers()
    failed = [replace(rows[0], answer=None, finish_reason="refused", detail="no image"), *rows[1:]]
    ours, theirs = run(tmp_path / "ours", rows), run(tmp_path / "theirs", failed)
    tests = scored(ours, "--against", str(theirs))["comparison"]["tests"]
    assert {(one["n"], one["unpaired"], one["difference"]["value"]) for one in tests} >= {(59, 1, 0.0), (29, 1, 0.0)}
    assert {one["p"] for one in tests} == {1.0}


def test_runs_that_were_not_asked_the_same_are_not_compared(tmp_path: Path) -> None:
    def against(free: Sequence[Answer] = (), classes: Sequence[Classified] = ()) -> str:
        theirs = run(tmp_path / f"theirs{len(list(tmp_path.iterdir()))}", free, classes)
        with pytest.raises((CompareError, ScoreError)) as caught:
            score.main([str(ours), "--against", str(theirs)])
        assert not (ours / "scores.json").exists()
        return str(caught.value)

    ours = run(tmp_path / "ours", answers(), classified())
    assert "ours has 60 rows, theirs 59, and 59 of them are the same rows" in against(answers()[1:])
    renamed = [replace(answers()[0], id="new"), *answers()[1:]]
    assert "ours has 60 rows, theirs 60, and 59 of them" in against(renamed)
    changed = [replace(answers()[0], reference="knee"), *answers()[1:]]
    assert "1 of 60 rows have another reference in the other run (s/r0: 'leg' and 'knee')" in against(changed)
    relabelled = [replace(classified()[1], label="malignant"), *classified()[:1], *classified()[2:]]
    assert "1 of 60 rows have another label" in against(classes=relabelled)
    prompted = [replace(row, scores=None, outcome="matched", choice=row.label) for row in classified()]
    assert "ours was read by sum, theirs only by prompted" in against(classes=prompted)
    other = run(tmp_path / "other")
    put(other / "eval/answers/elsewhere.jsonl", answers())
    with pytest.raises(ScoreError, match="there is none that both were asked"):
        score.main([str(ours), "--against", str(other)])
    permuted = classified()
    reordered = run(tmp_path / "reordered", (), permuted)
    settings = json.loads((reordered / "eval/classes/lesions.json").read_text())
    settings["classes"].reverse()
    (reordered / "eval/classes/lesions.json").write_text(json.dumps(settings))
    with pytest.raises(CompareError, match="the classes of the runs differ"):
        score.main([str(ours), "--against", str(reordered)])


def test_two_towers_are_tested_against_a_model_that_answers(tmp_path: Path) -> None:
    """Prompts against likelihoods: the same rows, whatever the run; what either was trained on is not paired."""
    ours = run(tmp_path / "ours", (), classified())
    settings = json.loads((ours / "eval/classes/lesions.json").read_text())
    prompts = {**settings, "variant": "prompts", "label_tokens": None, "prior": None, "question": None}
    rows = [replace(row, varied=(0, 1, 0)) for row in classified(right=lambda place: place % 3 > 0)]
    rows[4] = replace(rows[4], label=None, scores=None, detail="trained-on: its group", varied=None)
    put(tmp_path / "towers/eval/classes/lesions.jsonl", rows[::-1], **prompts, variations={"templates": 3, "names": 0})
    for one, other, what in (
        ("towers", "ours", "classes, prompts against sum"),
        ("ours", "towers", "classes, sum against prompts"),
    ):
        found = scored(tmp_path / one, "--against", str(tmp_path / other))
        tests = found["comparison"]["tests"]
        assert {test["what"] for test in tests} == {what}
        assert {test["n"] for test in tests} - {11, 12, 47, 48} == {59}
        assert {test["unpaired"] for test in tests} == {1}
        assert what in (tmp_path / one / "scores.md").read_text()
    right = [[place % divisor > 0 for place in range(60) if place != 4] for divisor in (4, 3)]
    accuracy = next(test for test in tests if test["test"] == "McNemar")
    assert accuracy["ours"] == pytest.approx(np.mean(right[0]))
    assert accuracy["theirs"] == pytest.approx(np.mean(right[1]))
    assert accuracy["p"] == pytest.approx(mcnemar(*map(np.array, right)))
    found = scored(tmp_path / "towers")["sets"]["lesions"]["classes"]
    assert (found["headline"], list(found["variants"]), found["unscored"]) == ("prompts", ["prompts"], 1)
    shares = [47 / 59, 12 / 59, 47 / 59]
    spread = found["spread"]["templates"]["accuracy"]
    assert spread["values"] == pytest.approx(shares)
    assert spread["sd"] == pytest.approx(np.std(shares, ddof=1))
    assert found["spread"]["templates"]["balanced_accuracy"]["values"] == pytest.approx([0.5] * 3)
    assert "names" not in found["spread"]
    assert "over 3 templates | 0.203 to 0.797, sd 0.342" in (tmp_path / "towers/scores.md").read_text()


def test_a_corrected_family_counts_every_test() -> None:
    corrected = compare.family([{"p": 0.01}, {"p": None}, {"p": 0.04}])
    assert [one["p_holm"] for one in corrected] == [0.02, None, 0.04]


def test_sensitivity_stands_right_below_accuracy(tmp_path: Path) -> None:
    rows = [replace(row, scores=(3.0, 0.0)) for row in classified()]
    path = run(tmp_path, classes=rows)
    scored(path)
    lines = (path / "scores.md").read_text().splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("| accuracy"))
    assert lines[place].startswith("| accuracy | 0.800 \\[")
    assert lines[place + 1].startswith("| sensitivity | 0.000 \\[")
    settings = json.loads((path / "eval/classes/lesions.json").read_text())
    (path / "eval/classes/lesions.json").write_text(json.dumps(settings | {"malignant": None}))
    scored(path)
    assert "| sensitivity | not known which classes are malignant |" in (path / "scores.md").read_text()


def test_text_from_data_is_escaped_in_markdown(tmp_path: Path) -> None:
    path = run(tmp_path, answers(8))
    for end in ("jsonl", "json"):
        (path / f"eval/answers/s-test.{end}").rename(path / f"eval/answers/a|b_<i>*c*.{end}")
    scored(path)
    text = (path / "scores.md").read_text()
    assert "a\\|b\\_&lt;i&gt;\\*c\\*" in text
    assert "<i>" not in text
    assert tables.number({"value": None, "low": None, "method": None}) == "–"


def test_processes_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(tmp_path, answers(300))
    one = scored(path, "--workers", "1")
    monkeypatch.setattr(score, "SMALL_ROWS", 10)
    monkeypatch.setattr("skinvl.score.answers.PIECE", 70)
    assert scored(path, "--workers", "2") == one


def test_scoring_loads_no_torch(tmp_path: Path) -> None:
    path = run(tmp_path, answers(8), classified(8))
    code = (
        "import sys\nfrom skinvl.score import score\nscore.main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr


def number(value: float = -0.123, n: int = 27_000) -> dict[str, Any]:
    interval = {"low": -0.234, "high": -0.012, "method": EXPANDED}
    return {"value": value, **interval, "n": n, "groups": 4_321, "unscored": 1_203}


def test_the_printed_tables_fit_into_80_columns() -> None:
    plain = number(0.965) | {"low": 0.954, "high": 0.976}
    metrics = dict.fromkeys(("bleu-1", "token_precision", "closed_accuracy"), plain)
    free = {
        "answers": {"valid": plain, "metrics": metrics, "majority": plain},
        "permuted": {"valid": plain, "metrics": metrics},
    }
    variant = dict.fromkeys(("accuracy", "balanced_accuracy", "kappa"), number())
    varied = {"min": 0.123, "max": 0.965, "sd": 0.123, "values": [0.1] * 16}
    block = {"headline": "sum", "valid": plain, "majority": plain, "variants": {"sum": variant, "prompted": variant}}
    block |= {"spread": {"templates": {"accuracy": varied, "balanced_accuracy": varied}}}
    common = {
        "set": "mm_skin-test",
        "what": "answers",
        "ours": 0.965,
        "theirs": 0.123,
        "difference": number(),
        "n": 27_000,
        "groups": 4_321,
    }
    tests = [
        common | {"metric": metric, "p": 0.0001, "p_holm": 0.0001, "test": test}
        for metric in ("closed_accuracy", "balanced_accuracy")
        for test in ("paired bootstrap", "McNemar")
    ]
    scores = {
        "run": "skinvl-mm--qwen2.5-vl-7b",
        **{"level": 0.95, "resamples": 1_000, "seed": 0},
        "sets": {"mm_skin-test": free, "ham10000": {"classes": block}},
        "seeds": None,
        "replicates": {
            "runs": ["skinvl-mm--qwen2.5-vl-7b", "skinvl-mm--qwen2.5-vl-7b-again"],
            "sets": {
                "mm_skin-test": {"answers": {"balanced_accuracy": {"mean": 0.1, "sd": 0.2, "min": 0.1, "max": 0.1}}}
            },
        },
        "comparison": {"against": "another--qwen3-vl-8b", "tests": tests},
        "untrained": None,
    }
    shown = printed.unbroken(lambda console: tables.show(console, scores))
    rows = [line.split()[0] for line in shown if re.match(r"[a-z-]+[_-][a-z0-9]+ ", line)]
    assert rows.count("closed_accuracy") == 1 + 2
    assert rows.count("balanced_accuracy") == 2 + 2
    assert sum(bool(re.match(r"  always the same +0\.965 \[0\.954, 0\.976\]", line)) for line in shown) == 1 + 2
    assert sum(bool(re.match(r"  over 16 templates +0\.123 to 0\.965, sd 0\.123", line)) for line in shown) == 2
    assert "p by B: paired bootstrap, M: McNemar; Holm: p corrected for all of these tests" in shown
    both = tables.markdown(scores)
    cell = "0.965 \\[0.954, 0.976\\] E"
    assert f"| bleu-1 | {cell} | {cell} | – | 27,000 | 4,321 | 1,203 |" in both
