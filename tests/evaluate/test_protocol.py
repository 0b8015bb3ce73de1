"""Protocols: sets that are there are asked, the rest named, and ours stand beside the figures that were published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers import runs, sources, tiny, two_towers
from skinvl.data import example
from skinvl.data.example import Example, Facts, text
from skinvl.evaluate import eval as evaluation
from skinvl.evaluate.protocol import ProtocolError
from skinvl.recipe import protocol
from skinvl.recipe.strict import RecipeError
from skinvl.score import retrieval, score

OUT = Path("runs/towers--clip--untrained")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, **tree: Any) -> str:
    """The path of a protocol."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    return str(tmp_path / "mine.yaml")


def asked(path: str, *words: str) -> tuple[dict[str, Any], str]:
    """What the base of the recipe in towers.yaml came to, as JSON and as a table."""
    assert evaluation.main(["towers.yaml", *words, "--protocol", path]) == 0
    folder = OUT / "protocols"
    return json.loads((folder / "mine.json").read_text()), (folder / "mine.md").read_text()


def lesions(**more: Any) -> dict[str, Any]:
    return {"at": [{"source": "./lesions", "classes": list(two_towers.DIAGNOSES), **more}], "metric": "accuracy"}


def test_shipped_protocols_are_whole() -> None:
    shipped = {name: protocol.load(name) for name in protocol.protocols()}
    verbs = {name: (one.verb, len(one.sets)) for name, one in shipped.items()}
    assert verbs == {
        "concepts-dermfm": ("concepts", 2),
        "probe-dermfm": ("probe", 4),
        "retrieval-dermfm": ("retrieve", 2),
        "zeroshot-dermfm": ("zeroshot", 7),
    }
    assert shipped["zeroshot-dermfm"].sets["ham10000"].figures["DermFM-Zero"] == 0.7957
    assert shipped["retrieval-dermfm"].sets["derm1m"].of("MONET") == [0.171, 0.159]
    for name, one in shipped.items():
        assert one.figures_from.keys() == {model for part in one.sets.values() for model in part.figures}, name


def test_what_is_here_is_asked_and_what_is_not_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_towers.recipe(tmp_path)
    csv = ["image_path,label,diag", *(f"images/test-{n}.png,{n % 2},{('scar', 'nevus')[n % 2]}" for n in range(5))]
    (tmp_path / "lesions" / "released.csv").write_text("\n".join(csv))
    path = write(
        tmp_path,
        verb="zeroshot",
        figures_from={"Model A": "its paper_1"},
        sets={
            "first": {**lesions(), "n": 400, "figures": {"Model A": 0.5}},
            "released": {**lesions(), "at": [{"source": "lesions/released.csv"}, {"source": "elsewhere"}]},
            "ph2": {"at": [{"source": "data/ph2.csv"}, {"source": "ph2"}], "metric": "auroc"},
        },
    )
    record, table = asked(path)
    first, released = record["numbers"]
    assert (first["set"], first["source"], first["ours"]["n"], first["rows"]) == ("first", "./lesions", 5, 400)
    assert (released["source"], released["ours"]["n"], released["figures"]) == ("lesions/released.csv", 5, {})
    assert record["not_here"] == ["ph2 (data/ph2.csv or data/ph2, split test)"]

    # The numbers are those that score gives the same predictions.
    assert score.main([str(OUT)]) == 0
    sets = json.loads((OUT / "scores.json").read_text())["sets"]
    accuracy = sets["lesions"]["classes"]["variants"]["prompts"]["accuracy"]
    assert {name: pytest.approx(value) for name, value in first["ours"].items()} == accuracy
    assert "| first | – | ./lesions | accuracy |" in table
    assert "| 5 | 400 | 0.5 |" in table
    assert r"Model A: its paper\_1" in table
    said = capsys.readouterr().out
    assert "not here: ph2" in said
    assert max(map(len, said[said.index("set ") :].splitlines()[:6])) <= 80


def test_a_probe_has_a_line_for_each_share_and_seed(tmp_path: Path) -> None:
    two_towers.recipe(tmp_path, evaluate__probe={"features": "embedding"})
    path = write(tmp_path, verb="probe", probe={"shares": [100, 50], "seeds": [0, 3]}, sets={"lesions": lesions()})
    record, _ = asked(path)
    lines = [line["what"] for line in record["numbers"]]
    assert lines == ["50 %, seed 0", "50 %, seed 3", "100 %, seed 0", "100 %, seed 3"]
    assert (OUT / "eval" / "classes" / "lesions.probe-embedding-50-seed-3.jsonl").is_file()

    # Where there is nothing to learn from, a set is not there.
    (tmp_path / "lesions" / "train.parquet").rename(tmp_path / "train.parquet")
    with pytest.raises(ProtocolError, match=r"none of its sets is here: lesions \(lesions, splits train and test\)"):
        asked(path)


def test_retrieval_is_the_mean_recall_of_both_directions(tmp_path: Path) -> None:
    two_towers.source(tmp_path / "lesions", images=12)
    two_towers.recipe(tmp_path)
    figures = {"figures_from": {"A": "a"}}
    one = {"at": [{"source": "./lesions"}], "metric": "mean_recall", "figures": {"A": [0.1, 0.2]}}
    record, _ = asked(write(tmp_path, verb="retrieve", depths=[1, 5, 10], sets={"lesions": one}, **figures))
    found = retrieval.read(OUT / "eval" / "retrieval" / "lesions.jsonl")
    for line, (direction, rows), figure in zip(record["numbers"], found.rows.items(), (0.1, 0.2), strict=True):
        ranks = np.array([row.rank for row in rows])
        assert line["what"] == direction
        assert line["ours"]["value"] == pytest.approx(np.mean([(ranks <= k).mean() for k in (1, 5, 10)]))
        assert line["ours"]["low"] < line["ours"]["value"] < line["ours"]["high"]
        assert line["figures"] == {"A": figure}
    with pytest.raises(ProtocolError, match=r"a pool of 12, in which R@50 leaves nothing out"):
        asked(write(tmp_path, verb="retrieve", depths=[5, 50], sets={"lesions": one}, **figures))


def test_concepts_have_the_mean_of_their_areas(tmp_path: Path) -> None:
    (tmp_path / "stated" / "images").mkdir(parents=True)
    rows = []
    for number in range(24):
        name = f"images/{number}.png"
        tiny.picture(number, (40, 30)).save(tmp_path / "stated" / name)
        facts = Facts(**{("present", "absent")[number % 2]: ("scale",)})
        turns = (text("user", "What is it?", 1), text("assistant", f"Number {number}."))
        rows.append(Example(f"{number}", "stated", (name,), turns, f"{number}", "test", "CC0-1.0", facts))
    example.write(tmp_path / "stated", "test", rows)
    sources.fingerprint(tmp_path / "stated", alike=False)
    two_towers.recipe(tmp_path)
    sets = {"stated": {"at": [{"source": "./stated"}], "metric": "macro_auroc"}}
    record, _ = asked(write(tmp_path, verb="concepts", sets=sets))
    (line,) = record["numbers"]  # without a dictionary there are no units
    written = json.loads((OUT / "concepts" / "scores" / "stated.json").read_text())
    assert (line["what"], line["ours"]) == ("by prompts, 1 of 1 concepts", written["concepts"][0]["prompts"])


def test_a_vision_language_model_classifies_the_same_rows_by_likelihood(tmp_path: Path) -> None:
    two_towers.source(tmp_path / "lesions", images=4)
    recipe = runs.make(tmp_path, "qwen2_vl", evaluate__prompted=False)
    (tmp_path / "vlm.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    path = write(tmp_path, verb="zeroshot", sets={"lesions": lesions()})
    assert evaluation.main(["vlm.yaml", "run=base", "--protocol", path]) == 0
    record = json.loads((tmp_path / "runs" / "base" / "protocols" / "mine.json").read_text())
    assert record["numbers"][0]["ours"]["n"] == 3
    one = {"lesions": {"at": [{"source": "./lesions"}], "metric": "mean_recall"}}
    path = write(tmp_path, verb="retrieve", depths=[1], sets=one)
    with pytest.raises(ProtocolError, match=r"retrieve compares images with texts, and .* is of a vision-language"):
        evaluation.main(["vlm.yaml", "run=base", "--protocol", path])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probe": {"shares": [5]}}, "probe belongs to the verb probe"),
        ({"verb": "retrieve"}, "depths belong to the verb retrieve"),
        (
            {"verb": "probe", "probe": {}, "sets": {"a": {**lesions(), "metric": "mean_recall"}}},
            r"sets\.a\.metric: found",
        ),
        ({"sets": {"a": {**lesions(), "figures": {"B": 0.5}}}}, "B is not in figures_from"),
        ({"figures_from": {"B": "b"}, "sets": {"a": {**lesions(), "figures": {"B": [0.1, 0.2]}}}}, "two of each model"),
        ({"seeds": 3}, "seeds: unknown; did you mean sets"),
    ],
)
def test_a_protocol_that_does_not_hold_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    tree = {"verb": "zeroshot", "sets": {"a": lesions()}, **change}
    with pytest.raises(RecipeError, match=said):
        protocol.load(write(tmp_path, **tree))
    with pytest.raises(FileNotFoundError, match="did you mean zeroshot-dermfm"):
        protocol.load("zeroshot-derm")
