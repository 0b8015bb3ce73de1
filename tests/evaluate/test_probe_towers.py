"""The linear probe of two towers: by name what it learns from, its seeds, and test samples that training saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import sources, two_towers
from skinvl.data.example import read as read_split
from skinvl.data.example import write
from skinvl.evaluate import benchmarks, embed, probe, probe_features
from skinvl.evaluate.probe import ProbeError
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe import run
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import predictions, report, score
from skinvl.score.predictions import Classified
from skinvl.train import pretrain


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def found(out: Path, name: str) -> tuple[dict[str, Any], list[Classified]]:
    return predictions.read(out / "eval" / "classes" / f"lesions.{name}.jsonl", Classified)


def probed(tmp_path: Path, family: str = "clip", **asked: Any) -> PretrainRecipe:
    return two_towers.recipe(tmp_path, family, evaluate__probe=asked)


@pytest.mark.parametrize("family", ["clip", "siglip", "beit_bert"])
def test_the_features_are_what_the_head_is_given(tmp_path: Path, family: str) -> None:
    loaded = load_towers(two_towers.recipe(tmp_path, family), torch.device("cpu"))
    model: Any = loaded.model
    path = tmp_path / "lesions" / "images" / "test-0.png"
    (features,) = (block[path] for block in embed.streamed(loaded, [[path]], tower=True))
    assert not isinstance(features, str)
    width = model.config.image_and_text[0].hidden_size
    assert features.shape == (width,)

    # Through the projection alone they are the embedding; what is of length one was not taken for them.
    projection = model.image_head.projection
    with torch.no_grad():
        embedding = torch.nn.functional.normalize(projection(torch.from_numpy(features)), dim=-1)
    assert torch.allclose(embedding.double(), two_towers.image_alone(loaded, path), atol=1e-6)
    assert abs(float(np.linalg.norm(features)) - 1) > 1e-3


@pytest.mark.parametrize("features", ["tower", "embedding"])
def test_it_learns_from_what_is_named(tmp_path: Path, features: str) -> None:
    one = probed(tmp_path, features=features, shares=[100])
    probe.probe_sets(one, tmp_path / "out")
    settings, rows = found(tmp_path / "out", f"probe-{features}-100")
    assert settings["features"] == features

    # As scikit-learn has it from the same vectors, of the rows whose diagnosis is one of the classes.
    loaded = load_towers(one, torch.device("cpu"))
    vectors: dict[str, list[Any]] = {}
    for split in ("train", "test"):
        paths = [tmp_path / "lesions" / "images" / f"{split}-{number}.png" for number in range(5)]
        blocks = next(iter(embed.streamed(loaded, [paths], tower=features == "tower")))
        vectors[split] = [blocks[path] for path in paths]
    classes = settings["classes"]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=settings["C"], max_iter=2000))
    pipeline.fit(np.array(vectors["train"], np.float64), [two_towers.DIAGNOSES[number % 3] for number in range(5)])
    expected = pipeline.predict_log_proba(np.array(vectors["test"], np.float64))
    order = [list(pipeline.classes_).index(name) for name in classes]
    scored = [row.scores for row in rows if row.scores is not None]
    assert np.allclose(scored, expected[:, order], atol=1e-5)


def test_seeds_take_other_groups_and_their_spread_is_shown(tmp_path: Path) -> None:
    two_towers.source(tmp_path / "lesions", images=19)
    probe.probe_sets(probed(tmp_path, shares=[100, 1, 40], seeds=[0, 1]), tmp_path / "out")
    names = sorted(path.stem for path in (tmp_path / "out" / "eval" / "classes").glob("lesions*.jsonl"))
    shares = ("1", "100", "40")
    assert names == sorted(f"lesions.probe-tower-{share}{seed}" for share in shares for seed in ("", "-seed-1"))
    assert found(tmp_path / "out", "probe-tower-1")[0]["train"]["rows"] == 3  # of each class one group
    one, other = (found(tmp_path / "out", f"probe-tower-40{seed}") for seed in ("", "-seed-1"))
    assert one[0]["train"]["rows"] == other[0]["train"]["rows"] == 9
    assert [row.scores for row in one[1]] != [row.scores for row in other[1]]

    score.main(["out", "--workers", "1", "--resamples", "100"])
    report.main(["out"])
    scores = report.json.loads((tmp_path / "out" / "scores.json").read_text())
    values = [
        scores["sets"][f"lesions.probe-tower-40{seed}"]["classes"]["variants"]["sum"]["accuracy"]["value"]
        for seed in ("", "-seed-1")
    ]
    assert scores["seeds"]["runs"] == ["seed 0", "seed 1"]
    spread = scores["seeds"]["sets"]["lesions.probe-tower-40"]["classes"]["accuracy"]
    assert spread["values"] == values
    assert spread["mean"] == pytest.approx(np.mean(values))
    assert "Probes with seed 0, seed 1:" in (tmp_path / "out" / "scores.md").read_text()
    assert "Seeds of probes" in (tmp_path / "out" / "report.html").read_text()


def test_of_a_run_the_trained_tower_is_probed_and_what_it_saw_is_not_scored(tmp_path: Path) -> None:
    folder = two_towers.source(tmp_path / "lesions")
    rows = read_split(folder, "test")
    (folder / "images" / "test-0.png").write_bytes((folder / "images" / "train-1.png").read_bytes())
    write(folder, "test", rows)
    sources.fingerprint(folder, alike=False)
    changes = {"max_steps": 2, "learning_rate": 0.01, "save_strategy": "no", "bf16": False}
    one = two_towers.recipe(
        tmp_path, run="trained", train={**changes, "report_to": "none", "use_cpu": True}, data__allow_leak=True
    )
    pretrain.train(one)
    trained = ["evaluate.probe.shares=[100]", "data.allow_leak=false"]
    probe.main(["runs/trained", *trained])
    settings, scored = found(tmp_path / "runs" / "trained", "probe-tower-100")
    assert settings["leaking"] == 1
    assert [row.detail.partition(":")[0] for row in scored if row.scores is None] == [
        "trained-on",
        "'nevus' is none of the classes",
    ]
    assert settings["adapter"] is not None

    # The base gives other numbers from the same images.
    base, _ = run.evaluated_towers("towers.yaml", ["run=base", *trained])
    after, _ = run.evaluated_towers("runs/trained", trained)
    samples = benchmarks.load(base.evaluate.classify[0]).samples
    of_run, of_base = (
        probe_features.look_towers(one, samples, PartialState(), Console(quiet=True))[0] for one in (after, base)
    )
    path = folder / "images" / "test-1.png"
    ours, theirs = of_run[path].features, of_base[path].features
    assert ours is not None
    assert theirs is not None
    assert np.abs(ours - theirs).max() > 1e-3


def test_an_embedding_that_nothing_trained_is_refused(tmp_path: Path) -> None:
    objective = {"name": "latent", "teacher": str(two_towers.base("clip"))}
    one = two_towers.recipe(tmp_path, objective=objective, evaluate__probe={"features": "embedding"})
    with pytest.raises(ProbeError, match=r"the objective latent trains no head .* set it to tower"):
        probe.probe_sets(one, tmp_path / "out")
    assert not (tmp_path / "out").exists()
