"""Ranks of a run on disk: written, read, scored with chance beside them, and compared with another run's, paired."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.pages import HOSTILE, Page, picture
from skinvl.data.example import Facts
from skinvl.score import report, retrieval, score, tables, untrained
from skinvl.score.compare import CompareError
from skinvl.score.predictions import PredictionError
from skinvl.score.retrieval import DIRECTIONS, RankedQuery, RetrievedSet

QUERIES, POOL = 60, 200


def retrieved(seed: int, best: int, pools: str = "a") -> RetrievedSet:
    """Queries of 20 patients whose ranks lie between 1 and `best`."""
    generator = np.random.default_rng(seed)
    rows = {
        direction: [
            RankedQuery(
                direction,
                f"{number}.png",
                "demo",
                f"patient-{number // 3}",
                rank,
                1,
                max(1.0, rank - 3),
                Facts(modality="clinical" if number < QUERIES // 2 else "dermoscopy", age=40.0),
            )
            for number, rank in enumerate(map(float, generator.integers(1, best + 1, QUERIES)))
        ]
        for direction in DIRECTIONS
    }
    numbers = {"R@1": 0.005, "R@5": 0.025, "R@10": 0.05, "R@50": 0.25, "R@100": 0.5, "median_rank": 100.0}
    orders = {direction: {"chance": numbers, "blind": numbers} for direction in DIRECTIONS}
    settings = {"set": "demo", "images": POOL, "texts": POOL, "pools": pools, "left_out": {}, "neighbours": {}}
    settings["orders"] = orders
    return RetrievedSet(settings, rows)


def run(folder: Path, name: str, ranks: RetrievedSet) -> Path:
    retrieval.write(folder / name / "eval" / "retrieval" / "demo.jsonl", ranks)
    text = f"name: tiny-clip\nbase: {{name: tiny}}\nobjective: {{name: clip}}\nrun: {name}\n"
    (folder / name / "recipe.yaml").write_text(text)
    return folder / name


def test_ranks_are_read_as_they_were_written(tmp_path: Path) -> None:
    ranks = retrieved(1, 40)
    path = run(tmp_path, "a", ranks) / "eval" / "retrieval" / "demo.jsonl"
    assert retrieval.read(path) == ranks
    path.write_text('{"direction": "image to text"}\n')
    with pytest.raises(PredictionError, match="not a file of ranks"):
        retrieval.read(path)


def test_scores_hold_both_directions_beside_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, "a", retrieved(1, 40))
    assert score.main([str(folder), "--resamples", "200", "--metrics", "rouge"]) == 0
    scores = json.loads((folder / "scores.json").read_text())
    directions = scores["sets"]["demo"]["retrieval"]["directions"]
    assert list(directions) == list(DIRECTIONS)
    block = directions["image to text"]
    assert (block["n"], block["pool"]) == (QUERIES, POOL)
    assert block["chance"]["R@10"] == block["blind"]["R@10"] == 0.05
    number = block["numbers"]["R@10"]
    assert number["low"] < number["value"] < number["high"]
    assert number["groups"] == 20
    assert block["same_group"]["R@10"]["value"] > number["value"]
    by_modality = block["slices"]["modality"]
    values = by_modality["values"]
    assert (by_modality["metric"], sorted(values)) == ("R@10", ["clinical", "dermoscopy"])
    assert sum(each["n"] * each["value"] for each in values.values()) == pytest.approx(QUERIES * number["value"])
    assert all(each["low"] < each["value"] < each["high"] and each["groups"] == 10 for each in values.values())
    assert list(block["slices"]["age"]["values"]) == ["40-59"]
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "demo, text to image, pool of 200" in printed
    assert "| R@10 |" in (folder / "scores.md").read_text()


def test_runs_are_compared_query_by_query(tmp_path: Path) -> None:
    ours, theirs = run(tmp_path, "a", retrieved(1, 40)), run(tmp_path, "b", retrieved(2, 200))
    score.main([str(ours), "--against", str(theirs), "--resamples", "200", "--metrics", "rouge"])
    tests = json.loads((ours / "scores.json").read_text())["comparison"]["tests"]
    (by_rank,) = (test for test in tests if (test["what"], test["metric"]) == ("image to text", "median_rank"))
    assert by_rank["difference"]["value"] < 0
    assert by_rank["p"] < 0.01
    kinds = {test["test"] for test in tests if test["metric"] == "R@10"}
    assert kinds == {"McNemar", "paired bootstrap"}

    other = run(tmp_path, "c", retrieved(2, 200, pools="b"))
    with pytest.raises(CompareError, match="the pools differ"):
        score.main([str(ours), "--against", str(other), "--resamples", "200", "--metrics", "rouge"])


def test_two_towers_that_are_worse_than_their_base_say_so_first(tmp_path: Path) -> None:
    trained, base = run(tmp_path, "a", retrieved(1, 150)), run(tmp_path, "tiny-clip--tiny--untrained", retrieved(2, 40))
    score.main([str(trained), "--resamples", "200", "--metrics", "rouge"])
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["untrained"]["against"] == base.name
    first = tables.markdown(scores).splitlines()[0]
    assert first.startswith("Worse than the base without training: demo, image to text: R@5 ")

    # A comparison with the base that was asked for is shown once.
    score.main([str(trained), "--against", str(base), "--resamples", "200", "--metrics", "rouge"])
    assert (trained / "scores.md").read_text().count(f"a against {base.name}:") == 1

    # The base has none beside it, and a run that is better says nothing.
    score.main([str(base), "--resamples", "200", "--metrics", "rouge"])
    assert json.loads((base / "scores.json").read_text())["untrained"] is None
    better = run(tmp_path, "d", retrieved(3, 8))
    score.main([str(better), "--resamples", "200", "--metrics", "rouge"])
    assert untrained.worse(json.loads((better / "scores.json").read_text())) == []


def test_replicates_have_the_ranks_of_both_directions(tmp_path: Path) -> None:
    runs = [run(tmp_path, name, retrieved(seed, 40)) for seed, name in enumerate("ab", start=4)]
    score.main([*map(str, runs), "--resamples", "200", "--metrics", "rouge"])
    spreads = json.loads((runs[0] / "scores.json").read_text())["replicates"]["sets"]["demo"]["retrieval"]
    assert spreads["image to text R@5"]["sd"] > 0


def test_the_report_shows_numbers_curves_and_neighbours_beside_the_base(tmp_path: Path) -> None:
    image = picture(tmp_path / "images" / "lesion.png", 1)
    shown = {"image": image, "text": None}
    hits = [{"image": None, "text": HOSTILE[0], "cosine": 0.51, "right": True}] * 2
    hits.append({"image": None, "text": "a red lesion", "cosine": 0.25, "right": False})
    ranks = retrieved(1, 150)
    ranks.settings["neighbours"] = {DIRECTIONS[0]: [{"query": shown, "rank": 1.5, "nearest": hits}], DIRECTIONS[1]: []}
    ranks.settings["left_out"] = {"trained-on: caption": 3}
    ranks.settings.update(aspect="caption", texts_cut=4)
    folder = run(tmp_path, "a", ranks)
    run(tmp_path, "tiny-clip--tiny--untrained", retrieved(2, 40))
    score.main([str(folder), "--resamples", "200", "--metrics", "rouge"])
    report.main([str(folder)])

    html = (folder / "report.html").read_text()
    page = Page(html)
    assert html.index("Worse than the base without training") < html.index("Retrieval: the nearest right one")
    for words in ("3 images left out, trained-on: caption", "✓ right, cosine 0.510", "✗ wrong, cosine 0.250",
                  "nearest right one at rank 1.5 of 200", "same group right too", "4 of them cut"):  # fmt: skip
        assert words in page.text, words
    assert HOSTILE[0] not in html
    assert html.count("data:image/jpeg;base64,") == 1
    assert "base without training" in page.text
