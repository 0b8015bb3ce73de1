"""Whole runs through a generative base's own tower: what they leave, that they resume, and what goes on from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from peft.utils import load_peft_weights

from helpers import runs, tiny, two_towers
from skinvl.evaluate import classify, concepts, eval, generate, probe, retrieve, zeroshot
from skinvl.model.hub import BaseError
from skinvl.plan import plan, show
from skinvl.recipe import recipe as sft_recipe
from skinvl.recipe import run, towers
from skinvl.recipe.files import write_json
from skinvl.recipe.run import RunError
from skinvl.recipe.towers import PretrainRecipe
from skinvl.release import merge, publish, record
from skinvl.train import pretrain, sft

LORA = {"image": {"train": "lora"}, "text": {"train": "lora"}}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def make(tmp_path: Path, modes: dict[str, Any], family: str = "llava", **changes: Any) -> PretrainRecipe:
    """A recipe of four steps over ten images, three of a batch of four in memory at a time."""
    data = tmp_path / "lesions"
    if not data.is_dir():
        two_towers.source(data, images=10)
        write_json(data / "card.json", {"title": "lesions", "licence": "CC0-1.0"})
    train = {"bf16": False, "report_to": "none", "use_cpu": True, "max_steps": 4, "learning_rate": 1e-3}
    tree: dict[str, Any] = {
        "base": {"name": family, "kind": "vlm", "model": str(tiny.base(family))},
        "text_base": str(two_towers.base("clip")),
        "data": {
            "train": [{"source": str(data), "split": "train"}],
            "eval": [{"source": str(data), "split": "test"}],
            "image_tokens": 16,
        },
        "objective": {"name": "clip"},
        "batch": {"images": 4, "at_once": 3},
        "towers": modes,
        "train": {**train, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, **changes},
        "evaluate": {"classify": [{"source": str(data), "classes": list(two_towers.DIAGNOSES)}]},
    }
    if "lora" in (spec["train"] for spec in modes.values()):
        tree["lora"] = {"r": 2, "lora_dropout": 0.1}
    Path("through.yaml").write_text(yaml.safe_dump(tree))
    return towers.load("through.yaml")


def test_sft_goes_on_from_a_run_and_no_verb_takes_it_for_two_towers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make(tmp_path, {"image": {"train": "lora"}, "text": {"train": "frozen"}})
    pretrain.train(one)
    path = run.folder(one)
    assert {file.name for file in (path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "complete.json",
    }
    environment = json.loads((path / "env.json").read_text())
    assert environment["base"]["model_type"] == "llava"
    assert environment["towers"]["text_base"]

    # PEFT alone lays it on the base; at the weights that the training left.
    weights = load_peft_weights(str(path / "adapter"), device="cpu")
    alone: Any = PeftModel.from_pretrained(tiny.model("llava", prepared=False), str(path / "adapter"))
    state = {name.replace(".default", ""): value for name, value in alone.state_dict().items() if "lora_" in name}
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)

    # sft starts from them, in the language model from nothing; and they are part of what it is made of.
    after = runs.make(
        tmp_path / "after",
        "llava",
        parts__vision={"train": "lora"},
        parts__projector={"train": "frozen"},
        lora={"r": 2, "lora_dropout": 0.1},
        init_adapter=str(path / "adapter"),
        train__learning_rate=1e-9,
    )
    write_json(tmp_path / "after/drawn/card.json", {"title": "drawn", "licence": "CC0-1.0"})
    sft.train(after)
    trained = load_peft_weights(str(run.folder(after) / "adapter"), device="cpu")
    assert set(weights) < set(trained)
    for name, value in weights.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-6)
    terms = record.read(run.folder(after), {"clip": "MIT"}).terms
    assert {"lesions", "drawn", "clip"} == set(terms)

    # Its folder is none of an adapter; and each verb says what does its job.
    with pytest.raises(BaseError, match=r"the folder has no adapter_config\.json; give .*/adapter, which the run has"):
        sft.train(after.model_copy(update={"run": "again", "init_adapter": str(path)}))
    verbs: tuple[Callable[[list[str]], int], ...] = (
        *(eval.main, zeroshot.main, retrieve.main, generate.main, classify.main, probe.main),
        *(merge.main, publish.main, lambda words: concepts.main(["fit", *words])),
    )
    for verb in verbs:
        words = [str(path), "owner/name"] if verb is publish.main else [str(path)]
        with pytest.raises(RunError, match="go on with skinvl sft … base=llava init_adapter=RUN/adapter, and give"):
            verb(words)
    for verb in (eval.main, zeroshot.main, retrieve.main):
        with pytest.raises(RunError, match="of the vision tower of llava, of which no head"):
            verb(["through.yaml"])
    with pytest.raises(ValueError, match=r"its steps are not counted; skinvl pretrain --dry-run says what would train"):
        plan.main([str(path), "--gpu", "a100-80gb"])
    capsys.readouterr()
    assert show.main([str(path), "-n", "1"]) == 0
    assert "Number 0: a melanoma metastasis of train." in capsys.readouterr().out


@pytest.mark.parametrize(
    "modes",
    [
        {"image": {"train": "full"}, "text": {"train": "lora"}},
        pytest.param(LORA, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_adapter(
    modes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(tmp_path, modes, save_strategy="steps", save_steps=1)
    pretrain.train(one.model_copy(update={"run": "whole"}))
    cut = one.model_copy(update={"run": "cut"})
    two_towers.interrupt(cut, 2, monkeypatch)
    pretrain.train(cut.model_copy(update={"resume": "auto"}))
    whole, again = (load_peft_weights(str(Path("runs") / name / "adapter"), device="cpu") for name in ("whole", "cut"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)

    # A checkpoint is the pair's, and nothing that sft could take.
    vlm = sft_recipe.Recipe.model_construct(init_adapter="runs/whole/checkpoints/checkpoint-4")
    if modes:
        with pytest.raises(RunError, match="of two towers, and skinvl pretrain goes on from them"):
            run.require_kind_of_start(vlm)


def test_a_dry_run_says_what_would_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, {"image": {"train": "lora"}, "text": {"train": "frozen"}}, "qwen3_vl")
    assert pretrain.main(["through.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert r"image: image_tower\.model\.visual\.blocks\.\d+\.attn\.qkv ×4" in said
    assert "merger" not in said
    assert "the vision tower of qwen3_vl, images of 16 tokens at most, and clip_text_model of" in said


def test_a_too_elongated_image_is_a_row_of_the_ledger(tmp_path: Path) -> None:
    one = make(tmp_path, {"image": {"train": "lora"}, "text": {"train": "frozen"}}, "qwen3_vl")
    tiny.picture(3, (8, 4000)).save(tmp_path / "lesions/images/train-0.png")
    pretrain.train(one)
    rows = [json.loads(line) for line in (run.folder(one) / "ledger.jsonl").read_text().splitlines()]
    assert [row["rule"] for row in rows if row["rule"] != "kind-without-text"] == ["image-too-elongated"]
