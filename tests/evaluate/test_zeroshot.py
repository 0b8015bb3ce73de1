"""Classes by prompts: the scores by hand, the rows of classify, and what was trained on, stopped or broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers import runs, tiny, two_towers
from helpers.two_towers import DIAGNOSES
from skinvl.evaluate import benchmarks, embed, eval, prompts, zeroshot
from skinvl.evaluate.prompts import PromptError
from skinvl.model import dual_inputs
from skinvl.model.towers_loaded import LoadedTowers, load_towers
from skinvl.recipe.strict import RecipeError
from skinvl.score import predictions, report, score
from skinvl.score.predictions import Classified, PredictionError, PredictionJournal


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(out: Path, name: str = "lesions") -> tuple[dict[str, Any], list[Classified]]:
    return predictions.read(out / "eval" / "classes" / f"{name}.jsonl", Classified)


def by_hand(towers: LoadedTowers, image: Path, names: list[list[str]], templates: list[str]) -> list[float]:
    """scale × cosine of each class, everything encoded alone."""
    model: Any = towers.model
    own = two_towers.image_alone(towers, image)
    scores = []
    for called in names:
        each = [[two_towers.text_alone(towers, t.replace("{c}", name)) for t in templates] for name in called]
        mean = torch.stack([torch.stack(row).mean(0) for row in each]).mean(0)
        scores.append(float(model.scale.log.detach().exp() * torch.dot(own, mean / mean.norm())))
    return scores


def lines(tmp_path: Path, *templates: str) -> str:
    (tmp_path / "templates.txt").write_text("\n".join(templates))
    return str(tmp_path / "templates.txt")


@pytest.mark.parametrize("family", ["clip", "siglip", "beit_bert"])
def test_scores_are_scale_times_cosine_of_what_the_prompts_come_to(tmp_path: Path, family: str) -> None:
    templates = ["{c}", "skin with {c}"]
    spec = {"source": str(tmp_path / "lesions"), "classes": list(DIAGNOSES), "validation": "validation"}
    one = two_towers.recipe(
        tmp_path,
        family,
        evaluate__classify=[spec],
        evaluate__prompts=lines(tmp_path, *templates),
        evaluate__synonyms=True,
    )
    zeroshot.zeroshot_sets(one, tmp_path / "out")
    settings, rows = read(tmp_path / "out")
    assert settings["variant"] == "prompts"
    assert (settings["classes"], settings["malignant"]) == (list(DIAGNOSES), [True, False, False])
    assert settings["templates"] == templates
    assert settings["names"][1] == ["scar", "scar tissue", "cicatrix"]
    assert (settings["label_tokens"], settings["prior"], settings["prompted"]) == (None, None, False)
    assert [row.label for row in rows] == [*(DIAGNOSES * 2)[:5], None]
    assert "nevus" in rows[-1].detail
    assert (rows[-1].scores, rows[-1].varied) == (None, None)
    towers, image = load_towers(one, torch.device("cpu")), Path(rows[4].images[0])
    expected = by_hand(towers, image, settings["names"], templates)
    assert rows[4].scores == pytest.approx(expected, abs=2e-4)
    assert len({round(value, 3) for value in expected}) == 3
    assert rows[3].scores != pytest.approx(expected, abs=1e-2)  # of another image

    # What each template alone gives, and each class by its own name alone, which is the first choice of names.
    assert settings["variations"] == {"templates": 2, "names": prompts.CHOICES}
    assert rows[4].varied is not None
    assert len(rows[4].varied) == 2 + prompts.CHOICES
    assert rows[4].varied[1] == int(np.argmax(by_hand(towers, image, settings["names"], templates[1:])))
    assert rows[4].varied[2] == int(np.argmax(by_hand(towers, image, [[name] for name in DIAGNOSES], templates)))
    other, validation = read(tmp_path / "out", "lesions.validation")
    assert (other["split"], len(validation)) == ("validation", 6)


def test_rows_are_those_of_classify_and_are_scored_and_reported(tmp_path: Path) -> None:
    one = two_towers.recipe(tmp_path, evaluate__prompts=lines(tmp_path, "{c}", "skin: {c}"))
    zeroshot.zeroshot_sets(one, tmp_path / "out")
    _, rows = read(tmp_path / "out")
    asked = benchmarks.load(one.evaluate.classify[0]).samples
    assert [predictions.key(row) for row in rows] == [sample.key for sample in asked]
    assert [row.images for row in rows] == [sample.record(None).images for sample in asked]
    assert score.main([str(tmp_path / "out"), "--resamples", "100"]) == 0
    block = json.loads((tmp_path / "out" / "scores.json").read_text())["sets"]["lesions"]["classes"]
    assert (block["headline"], list(block["variants"]), block["unscored"]) == ("prompts", ["prompts"], 1)
    assert block["spread"]["templates"]["accuracy"]["values"] == pytest.approx(
        [np.mean([row.varied[place] == DIAGNOSES.index(row.label) for row in rows[:-1]]) for place in (0, 1)]
    )
    assert "over 2 templates" in (tmp_path / "out" / "scores.md").read_text()
    assert report.main([str(tmp_path / "out")]) == 0
    assert "Accuracy over 2 templates of prompts" in (tmp_path / "out" / "report.html").read_text()


def test_an_image_of_several_sets_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        {"source": str(tmp_path / "lesions"), "classes": list(DIAGNOSES)},
        {
            "source": str(tmp_path / "lesions"),
            "label": "answer",
            "classes": ["brown", "black"],
            "where": {"kind": "colour"},
        },
    ]
    one = two_towers.recipe(tmp_path, evaluate__classify=both)
    read_files = []
    upright = dual_inputs.upright
    monkeypatch.setattr(dual_inputs, "upright", lambda path, _: (read_files.append(path), upright(path))[1])
    zeroshot.zeroshot_sets(one, tmp_path / "out")
    assert len(read_files) == len({*read_files}) == 6  # the one that is no class of the first set is of the second
    settings, rows = read(tmp_path / "out", "lesions-colour")
    assert settings["classes"] == ["brown", "black"]
    assert settings["names"] == [["brown"], ["black"]]
    assert settings["variations"]["names"] == 0
    assert [row.label for row in rows] == ["brown"] * 6


def test_what_was_stopped_goes_on_and_scores_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = two_towers.recipe(tmp_path)
    zeroshot.zeroshot_sets(one, tmp_path / "whole")
    whole = (tmp_path / "whole" / "eval" / "classes" / "lesions.jsonl").read_bytes()
    written = 0
    write = PredictionJournal.write

    def stopping(self: PredictionJournal, rows: Any, rank: int) -> None:
        nonlocal written
        if written == 1:
            raise KeyboardInterrupt
        written += 1
        write(self, rows, rank)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionJournal, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            zeroshot.zeroshot_sets(one, tmp_path / "cut")
    read_files = []
    upright = dual_inputs.upright
    monkeypatch.setattr(dual_inputs, "upright", lambda path, _: (read_files.append(path), upright(path))[1])
    zeroshot.zeroshot_sets(one, tmp_path / "cut")
    assert (tmp_path / "cut" / "eval" / "classes" / "lesions.jsonl").read_bytes() == whole
    assert len(read_files) == 3  # of six one is no class, and two were scored before
    with pytest.raises(PredictionError, match="templates"):
        zeroshot.zeroshot_sets(two_towers.recipe(tmp_path, evaluate__prompts=lines(tmp_path, "{c}")), tmp_path / "cut")


def test_an_image_that_breaks_off_refuses_its_own_row(tmp_path: Path) -> None:
    one = two_towers.recipe(tmp_path)
    cut = tmp_path / "lesions" / "images" / "test-1.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    zeroshot.zeroshot_sets(one, tmp_path / "out")
    _, rows = read(tmp_path / "out")
    assert [row.scores is None for row in rows] == [False, True, False, False, False, True]
    assert rows[1].detail.startswith("unreadable-image")


def test_a_blind_set_is_embedded_without_labels(tmp_path: Path) -> None:
    one = two_towers.recipe(tmp_path)
    (spec,) = one.evaluate.classify
    blind = one.evaluate.model_copy(update={"classify": [spec.model_copy(update={"blind": True})]})
    zeroshot.zeroshot_sets(one.model_copy(update={"evaluate": blind}), tmp_path / "out")
    _, rows = read(tmp_path / "out")
    assert rows[5].label is None
    assert rows[5].scores is not None
    assert rows[5].detail


def test_what_was_trained_on_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is not scored on its train rows; a base alone has none that are known."""
    spec = {"source": str(tmp_path / "lesions"), "split": "train", "classes": list(DIAGNOSES)}
    one = two_towers.recipe(tmp_path, evaluate__classify=[spec])
    zeroshot.zeroshot_sets(one, tmp_path / "untrained")
    assert read(tmp_path / "untrained", "lesions-train")[0]["leaking"] == 0

    # The folder of a whole base stands for what a run has trained.
    shutil.copytree(two_towers.base("clip"), tmp_path / "model")
    trained = one.model_copy(update={"init_adapter": str(tmp_path / "model")})
    zeroshot.zeroshot_sets(trained, tmp_path / "run")
    settings, rows = read(tmp_path / "run", "lesions-train")
    assert settings["leaking"] == 6
    assert all(row.scores is None for row in rows)
    assert rows[0].detail.startswith("trained-on: its group")
    allowed = trained.model_copy(update={"data": trained.data.model_copy(update={"allow_leak": True})})
    zeroshot.zeroshot_sets(allowed, tmp_path / "allowed")
    settings, rows = read(tmp_path / "allowed", "lesions-train")
    assert (settings["leaking"], sum(row.scores is not None for row in rows)) == (6, 5)


def test_a_zero_shot_csv_is_read_as_it_is(tmp_path: Path, shared: Path) -> None:
    """The released list of classes in the order of its labels, and the released templates, both of a user's file."""
    protocol = shared / "zeroshot" / "released_protocol.json"
    classes = json.loads(protocol.read_text())["classes"]["ham10000_7"]
    for number in range(3):
        tiny.picture(number).save(tmp_path / f"ISIC_{number:07}.jpg", format="JPEG")
    rows = [f"ISIC_{number:07}.jpg,{number},{classes[number]}" for number in range(7)]
    table = tmp_path / "HAM10000.csv"
    table.write_text("\n".join(["image_path,label,diag", *rows]))
    spec = {"source": str(table), "class_file": f"{protocol}#classes.ham10000_7"}
    one = two_towers.recipe(
        tmp_path, evaluate__classify=[spec], evaluate__prompts=str(protocol), evaluate__synonyms=False
    )
    zeroshot.zeroshot_sets(one, tmp_path / "out")
    settings, scored = read(tmp_path / "out", "HAM10000")
    assert settings["classes"] == classes
    assert len(settings["templates"]) == 8
    assert [row.label for row in scored] == classes
    assert [row.detail.partition(":")[0] for row in scored] == [""] * 3 + ["missing-image"] * 4
    towers = load_towers(one, torch.device("cpu"))
    expected = by_hand(towers, Path(scored[2].images[0]), [[name] for name in classes], settings["templates"])
    assert scored[2].scores == pytest.approx(expected, abs=2e-4)


def test_what_cannot_be_asked_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(zeroshot.ZeroshotError, match=r"evaluate\.classify: names no set"):
        zeroshot.zeroshot_sets(two_towers.recipe(tmp_path, evaluate__classify=[]), tmp_path / "out")
    twins = {"source": str(tmp_path / "lesions"), "classes": [*DIAGNOSES, "nevus", "cicatrix"]}
    with pytest.raises(PromptError, match=r"'scar' and 'cicatrix'"):
        zeroshot.zeroshot_sets(
            two_towers.recipe(tmp_path, evaluate__classify=[twins], evaluate__synonyms=True), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
    answering = tmp_path / "answering.yaml"
    answering.write_text(yaml.safe_dump({"base": "tiny-qwen2_vl", "data": {"train": []}}))
    with pytest.raises(RecipeError, match="a recipe of a vision-language model"):
        zeroshot.main([str(answering)])


@pytest.mark.slow
def test_eval_looks_at_what_it_is_given_and_tests_it_against_the_other_kind(tmp_path: Path) -> None:
    """Two towers classify and retrieve, a vision-language model is asked the same classes, and both are on one page."""
    two_towers.recipe(tmp_path)
    classify = [{"source": str(tmp_path / "lesions"), "classes": list(DIAGNOSES)}]
    runs.make(tmp_path, "qwen2_vl", evaluate__classify=classify, evaluate__prompted=False, data__eval=[])
    assert eval.main(["small.yaml", "run=answering"]) == 0
    assert not Path("runs/answering/eval/retrieval").exists()
    assert eval.main(["towers.yaml", "run=comparing", "--against", "runs/answering"]) == 0
    scores = json.loads(Path("runs/comparing/scores.json").read_text())
    assert {*scores["sets"]["lesions"]} == {"classes", "retrieval"}
    tests = [test for test in scores["comparison"]["tests"] if test["metric"] == "accuracy"]
    assert {(test["what"], test["n"]) for test in tests} == {("classes, prompts against sum", 5)}
    page = Path("runs/comparing/report.html").read_text()
    assert "Comparison with answering" in page
    assert "classes, prompts against sum" in page
    assert eval.main(["small.yaml", "run=answering", "--against", "runs/comparing"]) == 0


SHARED_WORK = """
import numpy as np
from pathlib import Path
from skinvl.evaluate import distributed, embed, zeroshot
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe import towers

zeroshot.main(["towers.yaml", "run=two"])
state = distributed.ranks()
loaded = load_towers(towers.load("towers.yaml"), state.device)
shown = [(Path("lesions"), f"images/test-{number}.png") for number in (1, 0, 2, 1, 3, 4)]
np.save(f"images{state.process_index}.npy", embed.images(loaded, shown, state))
np.save(f"lone{state.process_index}.npy", embed.images(loaded, shown[2:3], state))
np.save(f"texts{state.process_index}.npy", embed.texts(loaded, ["a nevus", "a", "a nevus", "two"], state))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_ranks_share_samples_images_and_texts(tmp_path: Path) -> None:
    """Two ranks write what one writes, and each has all embeddings: of more images than ranks, of one, of none read."""
    one = two_towers.recipe(tmp_path)
    cut = tmp_path / "lesions" / "images" / "test-2.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    zeroshot.zeroshot_sets(one, tmp_path / "one")
    (tmp_path / "work.py").write_text(SHARED_WORK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "work.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    file = Path("eval", "classes", "lesions.jsonl")
    assert (tmp_path / "runs" / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    loaded = load_towers(one, torch.device("cpu"))
    shown = [(tmp_path / "lesions", f"images/test-{number}.png") for number in (1, 0, 2, 1, 3, 4)]
    for rank in (0, 1):
        images = np.load(tmp_path / f"images{rank}.npy")
        np.testing.assert_allclose(images, embed.images(loaded, shown), atol=2e-6)
        assert np.isnan(images).any(axis=1).tolist() == [False, False, True, False, False, False]
        assert np.load(tmp_path / f"lone{rank}.npy").shape[0] == 1
        texts = embed.texts(loaded, ["a nevus", "a", "a nevus", "two"])
        np.testing.assert_allclose(np.load(tmp_path / f"texts{rank}.npy"), texts, atol=2e-6)
