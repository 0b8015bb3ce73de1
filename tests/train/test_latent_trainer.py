"""Whole runs of the objective latent: what they leave, how they go on, and that what asks for texts refuses them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import two_towers
from skinvl.__main__ import main
from skinvl.data.example import read, splits, write
from skinvl.model.dual import DualEncoder
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe import run
from skinvl.recipe.files import write_json
from skinvl.recipe.run import RunError
from skinvl.recipe.strict import RecipeError
from skinvl.recipe.towers import PretrainRecipe, load
from skinvl.release import publish, record
from skinvl.train import pretrain
from skinvl.train.checkpoint import CheckpointError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(tmp_path: Path, **changes: Any) -> PretrainRecipe:
    """A recipe of four steps over ten images, three of a batch of four in memory at a time."""
    if not (tmp_path / "lesions").is_dir():
        two_towers.source(tmp_path / "lesions", images=10)
    settings = {
        "objective": {"name": "latent", "teacher": str(two_towers.base("clip")), "regressor_layers": 1},
        "batch__at_once": 3,
        "train__max_steps": 4,
        "train__learning_rate": 1e-3,
        "train__logging_steps": 1,
        "train__save_strategy": "steps",
        "train__save_steps": 2,
        "train__eval_strategy": "steps",
        "train__eval_steps": 2,
        "train__disable_tqdm": True,
        **changes,
    }
    return two_towers.recipe(tmp_path, "siglip", **settings)


def test_a_run_leaves_a_base_for_the_objective_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(tmp_path)
    pretrain.train(one)
    path = run.folder(one)
    assert "objective latent; 50% of the patches masked; teacher " in " ".join(capsys.readouterr().out.split())
    summary = json.loads((path / "summary.json").read_text())
    assert {"train_loss", "eval_loss", "eval_lesions_masked", "eval_lesions_visible", "eval_lesions_cls"} <= set(
        summary
    )
    assert summary["eval_loss"] < summary["train_loss"]
    env = json.loads((path / "env.json").read_text())
    assert env["rows"] == {"train": 10, "lesions": 10}
    assert len(env["towers"]["teacher"]) > 8

    # The model is the base but for its image tower, without the regressor, which checkpoints have.
    model = load_file(path / "model" / "model.safetensors")
    before = load_file(two_towers.base("siglip") / "model.safetensors")
    assert model.keys() == before.keys()
    changed = {name.split(".")[0] for name in model if not torch.equal(model[name], before[name].float())}
    assert changed == {"image_tower"}
    assert torch.equal(model["image_tower.head.probe"], before["image_tower.head.probe"].float())
    state = load_file(path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert any(name.startswith("regressor.") for name in state)
    DualEncoder.from_pretrained(path / "model")

    # What compares with texts refuses it; contrastive training goes on from it.
    for verb in ("zeroshot", "retrieve", "eval"):
        with pytest.raises(RunError, match="the objective latent compares no image with a text; measure it with"):
            run.evaluated_towers(str(path), ())
        assert main([verb, str(path)]) == 2
    two_towers.recipe(tmp_path, "siglip", init_adapter=str(path / "model"), train__max_steps=1, batch__at_once=2)
    clip = load(str(tmp_path / "towers.yaml"), ["run=clip"])
    pretrain.train(clip)
    assert (run.folder(clip) / "model").is_dir()

    # It began with what the masked latents left, which is not the base's.
    started, base = (
        load_towers(one, torch.device("cpu")).model.state_dict()
        for one in (clip, clip.model_copy(update={"init_adapter": None}))
    )
    left = load_file(path / "model" / "model.safetensors")
    assert all(torch.equal(started[name], value) for name, value in left.items())
    assert any(not torch.equal(base[name], value) for name, value in left.items() if name.startswith("image_tower."))


def test_an_interrupted_run_goes_on_to_the_same_weights_with_the_same_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(tmp_path)
    pretrain.train(one)
    whole = load_file(run.folder(one) / "model" / "model.safetensors")
    resumed = one.model_copy(update={"run": "resumed", "resume": "auto"})
    shutil.copytree(run.folder(one), run.folder(resumed))
    shutil.rmtree(run.folder(resumed) / "checkpoints" / "checkpoint-4")
    shutil.rmtree(run.folder(resumed) / "model")
    pretrain.train(resumed)
    again = load_file(run.folder(resumed) / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())

    # One that has other weights by now would teach something else.
    env = run.folder(resumed) / "env.json"
    facts = json.loads(env.read_text())
    facts["towers"]["teacher"] = "0" * 32
    env.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"objective.teacher, .*, has other weights than when the run began"):
        pretrain.train(resumed)


def test_what_the_teacher_was_trained_on_counts_where_it_is_published(tmp_path: Path) -> None:
    one = make(tmp_path)
    taught = two_towers.source(tmp_path / "forbidden", images=4)
    for folder, licence in ((tmp_path / "lesions", "CC0-1.0"), (taught, "CC-BY-NC-ND-4.0")):
        write_json(folder / "card.json", {"title": folder.name, "licence": licence})
        for split in splits(folder):
            rows = [replace(row, licence=licence) for row in read(folder, split)]
            write(folder, split, rows)
    sources = [{"source": str(taught), "split": "train"}]
    teacher = two_towers.recipe(tmp_path, "clip", data__train=sources, data__eval=[], train__max_steps=1)
    pretrain.train(teacher.model_copy(update={"run": "teacher"}))
    objective = one.objective.model_copy(update={"teacher": "runs/teacher"})
    short = {**one.train, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    pretrain.train(one.model_copy(update={"objective": objective, "train": short, "run": "pupil"}))
    terms = record.read(Path("runs/pupil")).terms
    assert {name: each.derivatives for name, each in terms.items()} == {
        "forbidden": False,
        "lesions": True,
        "clip": True,
    }
    with pytest.raises(publish.PublishError, match=r"permit no derivatives.*forbidden \(CC-BY-NC-ND-4.0\)"):
        publish.main(["runs/pupil", "ada/pupil", "--dry-run"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.teacher=null", "objective.teacher: latent needs one"),
        ("objective.masked_share=1", "masked_share"),
        ("objective.aspects=[concepts]", "objective.aspects: latent reads no texts"),
        ("objective.local=0.1", "objective.local: latent reads no texts"),
        ("negatives.same_group=keep", "negatives.same_group: latent reads no texts"),
        ("data.too_long=split", "data.too_long: latent reads no texts"),
        ("towers.text.train=full", "towers.text.train: latent trains the image tower alone; set it to frozen"),
        ("towers.image.train=lora", "towers.image.train: latent trains the image tower alone; set it to full"),
        ("objective.name=clip", "objective.teacher: clip has none; set objective.name to latent"),
    ],
)
def test_what_has_no_effect_is_refused(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load("tiny-latent", [override])


def test_plan_and_show_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny-latent", "--gpu", "t4"]) == 2
    assert "its steps are not counted; plan the recipe with objective.name=clip" in capsys.readouterr().err
    assert main(["show", "tiny-latent"]) == 2
    assert "objective latent reads no texts" in capsys.readouterr().err


def test_a_dry_run_tells_what_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    assert main(["pretrain", str(tmp_path / "towers.yaml"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "an epoch: 2 steps of 4 images" in told
    assert not (tmp_path / "runs").exists()
