"""parts.vision.init: a base's vision tower starts as that of a run of two towers, is trained and asked; or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import runs, tiny, two_towers
from skinvl.model import adapter, tower_init
from skinvl.model.adapter import AdapterError
from skinvl.model.base import load_base, read_config
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.loaded import load_model
from skinvl.recipe import run
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.strict import RecipeError
from skinvl.release import merge, record
from skinvl.train import pretrain, sft
from skinvl.train.checkpoint import CheckpointError

PARTS = {"language": {"train": "lora"}, "projector": {"train": "full"}}
TOWERS = {"llava": "clip", "gemma3": "siglip"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def towers(tmp_path: Path, family: str, image_size: int | None = None, **changes: Any) -> Path:
    """A folder of two towers whose image tower is of the architecture of the base's, with other weights."""
    folder = tmp_path / "towers"
    if not folder.exists():
        shutil.copytree(two_towers.base(TOWERS[family]), folder)
    own = read_config(tiny.base(family))[0].vision_config.to_dict()
    size = own["image_size"] if image_size is None else image_size
    kept = json.loads((folder / "config.json").read_text())
    fields = {**kept, "image_config": {**own, "vision_use_head": True, "image_size": size, **changes}}
    torch.manual_seed(7)
    DualEncoder(DualEncoderConfig(**fields)).save_pretrained(folder)
    return folder


def made(tmp_path: Path, family: str, folder: Path, **changes: Any) -> Recipe:
    vision = {"train": "full", "learning_rate": 1e-4, "init": str(folder)}
    return runs.make(tmp_path, family, parts={**PARTS, "vision": vision}, **changes)


def started(one: Recipe) -> tuple[Any, tower_init.ImageTower]:
    """The model of a recipe as its training starts it, and the tower that it starts as."""
    path = Path(one.base.location)
    config, family = read_config(path)
    model = adapter.attach(load_base(path, family, one), family, one)
    tower = tower_init.of_recipe(one, config)
    assert tower is not None
    tower.copy_into(model, family)
    return model, tower


@pytest.mark.parametrize("family", TOWERS)
def test_the_tower_is_that_of_the_run_and_nothing_else_changes(tmp_path: Path, family: str) -> None:
    folder = towers(tmp_path, family)
    model, tower = started(made(tmp_path, family, folder))
    assert tower.digest == run.adapter_digest(folder)
    image_tower = DualEncoder.from_pretrained(folder).image_tower.eval()
    ours = model.get_base_model().get_submodule("model.vision_tower").modules_to_save["default"].eval()
    pixels = torch.randn(2, 3, tower.side, tower.side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (part(pixels).last_hidden_state for part in (image_tower, ours))
    assert torch.equal(found, expected)
    plain = load_base(tiny.base(family), read_config(tiny.base(family))[1], runs.make(tmp_path, family))
    with torch.no_grad():
        published = plain.get_submodule("model.vision_tower")(pixels).last_hidden_state
    assert not torch.allclose(published, expected, atol=0.1)
    others = {name: value for name, value in plain.state_dict().items() if ".vision_tower." not in name}
    kept = {name.replace(".base_layer", "").replace(".original_module", ""): value
            for name, value in model.get_base_model().state_dict().items()}  # fmt: skip
    assert all(torch.equal(kept[name], value) for name, value in others.items())


@pytest.mark.parametrize("family", TOWERS)
def test_positions_of_another_size_are_interpolated_as_transformers_does(tmp_path: Path, family: str) -> None:
    own = read_config(tiny.base(family))[0].vision_config
    folder = towers(tmp_path, family, own.image_size - 2 * own.patch_size)
    model, tower = started(made(tmp_path, family, folder))
    (line,) = tower.lines(read_config(tiny.base(family))[1])
    grids = [f"{side} × {side}" for side in (own.image_size // own.patch_size - 2, own.image_size // own.patch_size)]
    assert f"interpolated from {grids[0]} to {grids[1]} patches" in line
    assert ("layer -2" in line) == (family == "llava")
    embeddings = DualEncoder.from_pretrained(folder).image_tower.embeddings
    ours = model.get_base_model().get_submodule("model.vision_tower").modules_to_save["default"].embeddings
    pixels = torch.randn(1, 3, own.image_size, own.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(pixels), embeddings(pixels, interpolate_pos_encoding=True), atol=1e-6)


def test_a_run_saves_it_and_is_asked_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The run of two towers, in whose folder the model lies.
    folder = towers(tmp_path, "llava")
    pair = two_towers.recipe(tmp_path, base=str(folder), train__max_steps=1, train__learning_rate=1e-3)
    pretrain.train(pair.model_copy(update={"run": "pair"}))
    one = made(tmp_path, "llava", Path("runs/pair"), train__max_steps=1, train__save_strategy="steps",
               train__save_steps=1)  # fmt: skip
    sft.train(one.model_copy(update={"run": "vlm"}))
    assert "the vision tower starts as the image tower of runs/pair/model; LLaVA reads layer -2" in " ".join(
        capsys.readouterr().out.split()
    )
    env = json.loads(Path("runs/vlm/env.json").read_text())
    assert env["vision_init"] == run.adapter_digest(Path("runs/pair/model"))

    # What evaluates the run has the tower of the run of two, a step of training further; a base alone has its own.
    name = "embeddings.patch_embedding.weight"
    trained = DualEncoder.from_pretrained("runs/pair/model").image_tower.state_dict()[name]
    asked: Any = load_model(run.evaluated("runs/vlm", [])[0], torch.device("cpu")).model
    own = asked.get_base_model().get_submodule("model.vision_tower").modules_to_save["default"].state_dict()[name]
    published = load_base(tiny.base("llava"), read_config(tiny.base("llava"))[1], one).state_dict()
    assert 0 < (own - trained).abs().max() < 1e-3
    assert (own - published[f"model.vision_tower.{name}"]).abs().max() > 0.01

    # So has the merged model, in which no adapter is left.
    assert merge.main(["runs/vlm"]) == 0
    (merged,) = (
        weight.float()
        for file in Path("runs/vlm/merged").glob("*.safetensors")
        for key, weight in load_file(file).items()
        if "vision_tower." in key and key.endswith(name)
    )
    assert torch.equal(merged, own.to(torch.bfloat16).float())

    # What the pair was trained on counts, and its base; a run goes on with the tower that it began with alone.
    known = record.read(Path("runs/vlm"), {"towers": "MIT"})
    assert {"lesions", "drawn", "towers"} <= {*known.terms}
    again = one.model_copy(update={"run": "vlm", "resume": "auto"})
    Path("runs/pair/model/config.json").write_text(
        Path("runs/pair/model/config.json").read_text().replace('"text_length"', '"more": 1, "text_length"')
    )
    with pytest.raises(CheckpointError, match=r"parts\.vision\.init, runs/pair, has other weights than when the run"):
        sft.train(again)


def test_what_cannot_start_a_tower_is_refused(tmp_path: Path) -> None:
    folder = towers(tmp_path, "llava", hidden_act="gelu")
    one = made(tmp_path, "llava", folder)
    with pytest.raises(AdapterError, match=r"hidden_act=gelu, and the vision tower of .* has quick_gelu; give a run"):
        sft.train(one)
    towers(tmp_path, "llava")
    processor = folder / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("0.48145466", "0.5"))
    with pytest.raises(AdapterError, match=r"it learnt from pixels with mean \(0\.5, .* those of .* have"):
        sft.train(made(tmp_path, "llava", folder))
    with pytest.raises(AdapterError, match=r"neither a run of skinvl pretrain nor a folder of two towers"):
        sft.train(made(tmp_path, "llava", tmp_path / "drawn"))
    lora = {"image": {"train": "lora"}, "text": {"train": "frozen"}}
    pair = two_towers.recipe(
        tmp_path, base=str(two_towers.base("clip")), towers=lora, train__max_steps=1, lora={"r": 2}
    )
    pretrain.train(pair.model_copy(update={"run": "pair"}))
    with pytest.raises(AdapterError, match=r"a run with LoRA, .* merge it with skinvl merge runs/pair, and give"):
        sft.train(made(tmp_path, "llava", Path("runs/pair")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision": {"train": "frozen", "init": "runs/x"}}, r"parts\.vision\.train: an adapter holds a tower whole"),
        ({"vision": {"train": "lora", "init": "runs/x"}}, r"parts\.vision\.train: an adapter holds a tower whole"),
        ({"projector": {"train": "frozen"}}, r"parts\.projector\.train: fitted to the tower that .* replaces"),
    ],
)
def test_a_recipe_that_would_lose_it_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    parts = {**PARTS, "vision": {"train": "full", "init": "runs/x"}, **change}
    with pytest.raises(RecipeError, match=said):
        runs.make(tmp_path, "llava", parts=parts)
    with pytest.raises(RecipeError, match="init_adapter has a tower of its own"):
        runs.make(
            tmp_path, "llava", parts={**PARTS, "vision": {"train": "full", "init": "runs/x"}}, init_adapter="runs/y"
        )
    assert yaml.safe_load((tmp_path / "small.yaml").read_text())["init_adapter"] == "runs/y"
