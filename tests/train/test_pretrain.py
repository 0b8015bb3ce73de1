"""Whole runs of two towers: what lies in the run folder, that it reloads, resumes, and refuses what it must."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console

from helpers import texted, two_towers
from skinvl.data import texts
from skinvl.data.draws import BatchError
from skinvl.data.permuted_texts import permuted
from skinvl.model import towers_adapter
from skinvl.model.dual import DualEncoder
from skinvl.model.dual_batch import DualCollator
from skinvl.model.towers_loaded import load_towers
from skinvl.plan.texts import checked_texts
from skinvl.recipe import run
from skinvl.recipe.towers import PretrainRecipe
from skinvl.train import pretrain
from skinvl.train.callbacks import TrainingError
from skinvl.train.dual_trainer import DualTrainer, recall_at_1

LORA = {"towers": {"image": {"train": "lora"}, "text": {"train": "lora"}}, "lora": {"r": 2, "lora_dropout": 0.1}}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(tmp_path: Path, family: str = "clip", **changes: Any) -> PretrainRecipe:
    """A recipe of four steps over ten images, three of a batch of four in memory at a time."""
    if not (tmp_path / "lesions").is_dir():
        two_towers.source(tmp_path / "lesions", images=10)
    settings = {
        "batch__at_once": 3,
        "train__max_steps": 4,
        "train__learning_rate": 1e-3,
        "train__logging_steps": 1,
        "train__save_strategy": "no",
        "train__disable_tqdm": True,
        **changes,
    }
    return two_towers.recipe(tmp_path, family, **settings)


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_model_that_transformers_alone_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make(tmp_path, train__eval_strategy="steps", train__eval_steps=2, negatives__same_diagnosis="ignore")
    pretrain.train(one)
    path = run.folder(one)
    expected = {"model", "checkpoints", "env.json", "ledger.jsonl", "log.jsonl", "loss.png", "recipe.yaml"}
    assert expected | {"summary.json"} == {file.name for file in path.iterdir()}
    assert {file.suffix for file in (path / "model").iterdir()} == {".json", ".safetensors"}

    # The same embeddings, whoever reads it.
    finished = run.finished_towers(path)
    loaded = load_towers(finished.adapted(), CPU)
    alone = DualEncoder.from_pretrained(path / "model").eval()
    base = DualEncoder.from_pretrained(two_towers.base("clip")).eval()
    sets = texts.load(one.data, one.objective)
    collate = DualCollator(loaded.tokenizer, loaded.pixels)
    batch = collate([(image, None) for image in sets.evaluation["lesions"]])
    with torch.no_grad():
        first, second, untrained = (
            model.encode_images(batch.normalised()).embeddings for model in (loaded.model, alone, base)
        )
    assert torch.equal(first, second)
    assert not torch.allclose(first, untrained, atol=1e-3)

    # The summary is of this model, and says of how many images.
    summary = json.loads((path / "summary.json").read_text())
    trainer = pretrain.prepare(
        finished.adapted(), pretrain.arguments(one, tmp_path / "again"), path, Console(quiet=True), {}
    )
    trainer.state.max_steps, trainer.state.global_step = 4, 4
    again = trainer.evaluate()
    for name in ("eval_lesions_loss", "eval_lesions_R@1", "eval_loss"):
        assert again[name] == summary[name]
    assert summary["eval_lesions_images"] == 10
    entries = [entry for entry in log_of(path) if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert all(entry["scale"] > 1 and entry["same_diagnosis_ignore"] > 0 for entry in entries)
    mean = sum(entry["same_diagnosis_ignore"] for entry in entries) / 4
    assert summary["pairs"]["same_diagnosis_ignore"] == round(2 * mean)  # two steps an epoch
    assert 0 < summary["speed"]["computed"] < 2
    said = " ".join(capsys.readouterr().out.split())
    assert "each epoch leaves out 2 images" in said
    assert "pairs of an epoch: same diagnosis ignore" in said
    environment = json.loads((path / "env.json").read_text())
    assert environment["rows"] == {"train": 10, "lesions": 10}
    assert environment["towers"]["texts"] == {"caption": 10}


def test_a_lora_run_leaves_an_adapter_that_peft_alone_loads(tmp_path: Path) -> None:
    one = make(tmp_path, "siglip", **LORA)
    pretrain.train(one)
    path = run.folder(one)
    loaded = load_towers(run.finished_towers(path).adapted(), CPU)
    base = DualEncoder.from_pretrained(two_towers.base("siglip"))
    alone: Any = PeftModel.from_pretrained(base, str(path / "adapter")).eval()
    batch = DualCollator(loaded.tokenizer, loaded.pixels)(
        [(image, None) for image in texts.load(one.data, one.objective).train]
    )
    ids = loaded.tokenizer.pad(batch.texts)
    with torch.no_grad():
        for first, second in (
            (
                loaded.model.encode_images(batch.normalised()).embeddings,
                alone.encode_images(batch.normalised()).embeddings,
            ),
            (loaded.model.encode_texts(*ids), alone.encode_texts(*ids)),
            (loaded.model.scale.value(), alone.scale.value()),
            (loaded.model.scale.bias, alone.scale.bias),
        ):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-6)  # other orders of the same sums
        with alone.disable_adapter():
            assert not torch.allclose(loaded.model.encode_texts(*ids), alone.encode_texts(*ids), atol=1e-3)
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(two_towers.base("siglip"))


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, augmentation and a worker that loads ahead, in the middle of an epoch."""
    settings = {"train__save_strategy": "steps", "train__save_steps": 1, "train__max_steps": 5}
    one = make(tmp_path, **LORA, **settings, data__augmentation="mild", train__dataloader_num_workers=1)
    pretrain.train(one.model_copy(update={"run": "whole"}))
    cut = one.model_copy(update={"run": "cut"})
    two_towers.interrupt(cut, 3, monkeypatch)
    pretrain.train(cut.model_copy(update={"resume": "auto"}))
    first, second = (tmp_path / "runs" / name for name in ("whole", "cut"))
    weights = [(path / "adapter" / "adapter_model.safetensors").read_bytes() for path in (first, second)]
    assert weights[0] == weights[1]
    timed = ("runtime", "per_second", "flos")
    logs = [
        [
            {key: value for key, value in entry.items() if not any(word in key for word in timed)}
            for entry in log_of(path)
        ]
        for path in (first, second)
    ]
    assert logs[0] == logs[1]


def trainer(one: PretrainRecipe, tmp_path: Path) -> DualTrainer:
    args = pretrain.arguments(one, tmp_path / "run")
    (tmp_path / "run").mkdir(exist_ok=True)
    return pretrain.prepare(one, args, tmp_path / "run", Console(quiet=True), {})


def test_every_part_and_decay_has_its_group(tmp_path: Path) -> None:
    rates = {"towers__image": {"learning_rate": 1e-4}, "towers__text": {"learning_rate": 1e-5}}
    made = trainer(make(tmp_path, **rates, train__weight_decay=0.2), tmp_path)
    names = {id(weight): name for name, weight in made.model.named_parameters()}
    rates_of = {"image_tower": 1e-4, "text_tower": 1e-5, "image_head": 1e-3, "text_head": 1e-3, "scale": 1e-3}
    seen = set()
    for group in made.create_optimizer().param_groups:
        for weight in group["params"]:
            name = names[id(weight)]
            assert group["lr"] == rates_of[name.partition(".")[0]], name
            assert group["weight_decay"] == (0.2 if weight.dim() > 1 else 0.0), name
            seen.add(name)
    assert seen == {name for name, weight in made.model.named_parameters() if weight.requires_grad}


def test_the_scale_stays_within_its_limits(tmp_path: Path) -> None:
    one = make(tmp_path, train__max_steps=1, train__learning_rate=50.0, train__lr_scheduler_type="constant")
    made = trainer(one, tmp_path)
    made.train()
    log = float(made.cached.model.scale.log.detach())
    assert log in (0.0, pytest.approx(math.log(100)))
    frozen = trainer(make(tmp_path, towers__heads={"train": "frozen"}, train__max_steps=1), tmp_path)
    with torch.no_grad():
        frozen.cached.model.scale.log.fill_(5.0)
    frozen.train()
    assert float(frozen.cached.model.scale.log) == 5.0  # of a base that has it so


def test_a_tower_that_nothing_reaches_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = DualEncoder.encode_texts
    monkeypatch.setattr(DualEncoder, "encode_texts", lambda self, *ids: encode(self, *ids).detach())
    with pytest.raises(
        TrainingError, match=r"towers\.text: every gradient is zero in step 2; nothing reaches this part"
    ):
        pretrain.train(make(tmp_path))


def test_a_dead_lora_layer_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers_adapter, "dead_pairs", lambda model: ["image_tower.layer"])
    with pytest.raises(TrainingError, match=r"towers: LoRA on image_tower\.layer has no gradient in step 2"):
        pretrain.train(make(tmp_path, **LORA))


def test_a_loss_that_is_no_number_names_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(tmp_path, train__save_strategy="steps", train__save_steps=1)
    step = DualTrainer.training_step

    def broken(self: DualTrainer, *args: Any) -> Any:
        if self.state.global_step == 2:
            with torch.no_grad():
                self.cached.model.image_head.projection.weight.fill_(torch.nan)
        return step(self, *args)

    monkeypatch.setattr(DualTrainer, "training_step", broken)
    with pytest.raises(
        TrainingError,
        match=r"step 3: the loss is not a finite number, in the batch of lesions:images/train-\d.*checkpoint-2;",
    ):
        pretrain.train(one)


def test_the_control_gives_each_image_the_texts_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make(tmp_path, data__permuted=True, train__max_steps=1)
    images = texts.load(one.data, one.objective).train
    swapped = permuted(images, 0)
    assert [image.path for image in swapped] == [image.path for image in images]
    assert {image.texts for image in swapped} == {image.texts for image in images}
    assert all(image.texts != own.texts for image, own in zip(swapped, images, strict=True))
    assert permuted(images, 0) == swapped != permuted(images, 1)
    with pytest.raises(ValueError, match=r"data\.permuted: .*lesions has one image with texts, and no other"):
        permuted(images[:1], 0)
    pretrain.train(one)
    assert "what is measured of this run is chance" in " ".join(capsys.readouterr().out.split())
    assert run.finished_towers(run.folder(one)).recipe.data.permuted


def test_the_model_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    steps = {"train__eval_strategy": "steps", "train__eval_steps": 1, "train__save_strategy": "steps"}
    one = make(
        tmp_path, **steps, train__save_steps=1, train__metric_for_best_model="loss", train__greater_is_better=True
    )
    pretrain.train(one)
    path = run.folder(one)
    losses = {entry["step"]: entry["eval_loss"] for entry in log_of(path)[:-1] if "eval_loss" in entry}
    best = max(losses, key=lambda step: losses[step])
    kept = path / "checkpoints" / f"checkpoint-{best}" / "model.safetensors"
    assert (path / "model" / "model.safetensors").read_bytes() == kept.read_bytes()
    with pytest.raises(
        ValueError, match=r"found bleu; expected loss or lesions_loss or lesions_R@1, which a run computes"
    ):
        pretrain.arguments(make(tmp_path, **steps, train__metric_for_best_model="bleu"), path)


def test_bf16_trains_with_checkpointing_and_workers_that_stay(tmp_path: Path) -> None:
    workers = {"train__dataloader_num_workers": 1, "train__dataloader_persistent_workers": True}
    settings = {"train__bf16": True, "train__activation_checkpointing": True, "objective": {"name": "clip"}}
    pretrain.train(make(tmp_path, run="one", **settings, **workers))
    pretrain.train(make(tmp_path, run="two", train__bf16=True))
    one, two = (log_of(tmp_path / "runs" / name) for name in ("one", "two"))
    assert [entry.get("loss") for entry in one] == [entry.get("loss") for entry in two]
    assert run.finished_towers(tmp_path / "runs" / "one").provenance.precision == "bf16"


def test_a_batch_without_a_negative_names_its_images(tmp_path: Path) -> None:
    one = make(tmp_path, negatives={"same_diagnosis": "positive"}, data__texts={"description": "a {answer}"})
    images = texts.load(one.data, one.objective).train[:10:3]  # all melanomas but the last, of no class
    made = trainer(one, tmp_path)
    batch = made.data_collator([(image, None) for image in images[:3]])
    with pytest.raises(
        BatchError,
        match=r"step 1, with lesions:images/train-0\.png, .*: 3 images .* no negative.*; raise batch\.images",
    ):
        made.training_step(made.model, batch)


def test_an_eval_set_without_a_negative_is_refused_before_the_first_step(tmp_path: Path) -> None:
    two_towers.source(tmp_path / "alone", images=1)
    one = make(tmp_path, data__eval=[{"source": str(tmp_path / "alone"), "split": "test"}])
    with pytest.raises(
        BatchError, match=r"^data\.eval, alone: 1 images with 1 texts have no negative.*; raise evaluate\.during, name"
    ):
        pretrain.train(one)
    assert not (run.folder(one) / "log.jsonl").exists()


def test_texts_that_the_released_make_has_no_place_for_are_in_the_ledger(tmp_path: Path) -> None:
    every = ["caption", "ontology", "concepts", "sentences"]
    one = make(tmp_path, objective={"name": "make", "aspects": every, "released": True})
    images = [texted.image(tmp_path, number, f"red {number}", f"scar {number}") for number in range(3)]
    sets = texts.TextedSets(images[:2], {"test": images[2:]}, [], 4)
    letters: Any = texted.Letters()
    checked = checked_texts(sets, letters, one, 0, Console(quiet=True))
    assert [[text.text for text in image.texts] for image in checked.train] == [["red 0"], ["red 1"]]
    assert [(row.rule, row.detail) for row in checked.ledger] == [
        ("no-place", f"caption: 'scar {number}'") for number in range(3)
    ]


def test_a_batch_that_no_epoch_fills_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BatchError, match=r"batch\.images: found 11, and an epoch has 10 images; set batch\.images to 10"
    ):
        pretrain.train(make(tmp_path, batch__images=11))


def test_recall_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    made = trainer(make(tmp_path), tmp_path)
    whole = made.cached.evaluated(made._share("lesions"), 0.0)
    identity = torch.eye(10, whole.features.images.shape[1])
    features = whole.features.__class__(identity, identity, whole.features.scale)
    perfect = whole.__class__(whole.loss, features, whole.pairing, whole.tally)
    assert recall_at_1(perfect) == 1.0
    rolled = whole.__class__(
        whole.loss, features.__class__(identity, identity.roll(1, 0), features.scale), whole.pairing, whole.tally
    )
    assert recall_at_1(rolled) == 0.0
    ignored = whole.pairing.relation.clone()
    ignored[ignored == -1] = 0
    ignored[0, 2] = -1
    ignored[5, 1] = -1
    pairing = whole.pairing.__class__(whole.pairing.owner, whole.pairing.aspect, ignored)
    assert recall_at_1(whole.__class__(whole.loss, rolled.features, pairing, whole.tally)) > 0.7
