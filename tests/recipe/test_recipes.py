"""Every shipped recipe and base keeps the promises of its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import tiny
from skinvl.recipe import loading, recipe, towers
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.towers import PretrainRecipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"), key=lambda path: path.stem)
BASES = sorted((ROOT / "recipes" / "bases").glob("*.yaml"), key=lambda path: path.stem)
ENGINES = sorted((ROOT / "ds_configs").glob("*.json"))
MODEL = ROOT / "skinvl" / "model"
FAMILIES = sorted(path.stem for path in (MODEL / "families").glob("*.py") if not path.stem.startswith("_"))
TOWERS = ("clip", "siglip")  # families of which a tiny base is shipped


def stem(path: Path) -> str:
    return path.stem


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def test_the_folders_are_the_lists() -> None:
    assert recipe.recipes() == [path.stem for path in RECIPES]
    assert recipe.bases() == [path.stem for path in BASES]
    assert {"tiny", "skinvl-mm", "skinvl-pub", "skinvl-pubmm", "dermatollama"} <= set(recipe.recipes())
    two_stages = {"dermfm-latent", "dermfm"}
    others = {"tiny-clip", "tiny-latent", "dermlip", "make", "make-ontology"}
    assert others | two_stages == set(recipe.recipes("pretrain"))
    assert {f"tiny-{family}" for family in FAMILIES} <= set(recipe.bases("vlm"))
    assert {f"tiny-{family}" for family in TOWERS} <= set(recipe.bases("dual"))


def load(name: str, *overrides: str) -> Recipe | PretrainRecipe:
    """The shipped recipe, of whichever kind it is."""
    return (towers if loading.kind_of(name) == "pretrain" else recipe).load(name, overrides)


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_every_recipe_goes_with_every_base(path: Path) -> None:
    for base in recipe.bases("dual" if loading.kind_of(path.stem) == "pretrain" else "vlm"):
        made = load(path.stem, f"base={base}")
        assert made.base == recipe.load_base(base)
        assert made.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_a_recipe_opens_with_how_to_run_it(path: Path) -> None:
    text = header(path)
    assert re.search(rf"^# run: +make {loading.kind_of(path.stem)} RECIPE={re.escape(path.stem)}\b", text, re.MULTILINE)
    assert re.search("^# needs: ", text, re.MULTILINE)
    assert "GPU" in text


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_a_recipe_says_nothing_that_its_base_says(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8"))["base"], str)


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_the_libraries_take_the_values(path: Path, tmp_path: Path) -> None:
    from peft import LoraConfig
    from transformers import TrainingArguments
    from trl.trainer.sft_config import SFTConfig

    made = load(path.stem)
    config = SFTConfig if isinstance(made, Recipe) else TrainingArguments
    arguments = config(**made.train, output_dir=str(tmp_path), use_cpu=True)
    assert arguments.learning_rate == made.train["learning_rate"]
    if isinstance(made, Recipe):
        assert 0 < arguments.get_warmup_steps(1000) < 500  # a ratio, and not a count
        assert LoraConfig(**made.lora, target_modules="x").r == made.lora["r"]


def test_the_published_values() -> None:
    for name in ("skinvl-mm", "skinvl-pub", "skinvl-pubmm"):
        made = recipe.load(name)
        assert made.lora == {"r": 128, "lora_alpha": 64, "lora_dropout": 0.05}
        published = {
            "learning_rate": 5e-5,
            "weight_decay": 0.01,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.02,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 16,
        }
        assert published.items() <= made.train.items()
        assert made.data.max_tokens == 2048
        assert made.parts.language.train == "lora"
        assert (made.parts.projector.train, made.parts.projector.learning_rate) == ("full", 2e-5)
        assert made.parts.vision.train == "frozen"
    trained = {
        name: {spec.source for spec in recipe.load(f"skinvl-{name}").data.train} for name in ("mm", "pub", "pubmm")
    }
    assert len(trained["pub"]) == 11
    assert trained["pubmm"] == trained["mm"] | trained["pub"]


def test_the_published_values_of_two_towers() -> None:
    shared = {"learning_rate": 1e-4, "weight_decay": 0.1, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "max_grad_norm": 0}
    for name, images, epochs, warmup in (
        ("dermlip", 4096, 30, 1000),
        ("make", 2048, 15, 1500),
        ("make-ontology", 2048, 15, 1500),
    ):
        made = towers.load(name)
        assert (shared | {"num_train_epochs": epochs, "warmup_steps": warmup}).items() <= made.train.items()
        assert (made.batch.images, made.base.name, made.data.augmentation) == (images, "clip-b16", "released")
        assert (made.data.train[0].source, made.objective.name) == ("derm1m", "clip" if name == "dermlip" else name)
    assert (made.objective.local, made.objective.sigma, made.objective.soft, made.objective.sentences) == (
        0.7,
        0,
        0.5,
        8,
    )


def test_the_qlora_lines_in_the_comment_work(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "skinvl-mm.yaml").read_text(encoding="utf-8")
    found = re.search(r"^#   (quantization:\n(?:#     .*\n)+)", text, re.MULTILINE)
    assert found
    block = found[1].replace("#   ", "")
    path = tmp_path / "qlora.yaml"
    path.write_text(text.replace("quantization: null\n", block), encoding="utf-8")
    made = recipe.load(str(path))
    assert made.quantization == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }


def overrides(text: str) -> list[str]:
    quoted = re.findall(r'"([a-z_.]+=[^"]+)"', text)
    return quoted + re.findall(r"(?<![\w\"./])([a-z_]+\.[a-z_.]+=[^\s\",;)]+)", text)


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_overrides_that_a_comment_recommends_work(path: Path) -> None:
    load(path.stem, *overrides(header(path)))


@pytest.mark.parametrize("path", BASES, ids=stem)
def test_a_base_says_where_from_and_what_may_be_done(path: Path) -> None:
    base = recipe.load_base(path.stem)
    assert base.licence
    assert ("# Template: " if base.kind == "vlm" else "# Text: ") in header(path)
    assert "# Memory: " in header(path)
    if base.random is not None:
        assert (base.random, base.location) == (path.stem.removeprefix("tiny-"), f"bases/{path.stem}")
        assert base.random in (FAMILIES if base.kind == "vlm" else TOWERS)
    else:
        assert base.location.count("/") == 1
        pinned = re.fullmatch("[0-9a-f]{40}", base.revision or "")
        assert pinned or (base.revision is None and "# Revision: not pinned; " in header(path)), "no commit, and no why"
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(data) <= {"model", "random", "revision", "licence", "gated", "note", "kind", "quick_gelu"}


def test_a_hub_base_is_found_among_the_shared_configs(shared: Path) -> None:
    models = [base for name in recipe.bases("vlm") if (base := recipe.load_base(name)).model is not None]
    folders = {base.name: shared / "configs" / base.location.rpartition("/")[2].lower() for base in models}
    found = {name for name, folder in folders.items() if (folder / "config.json").is_file()}
    assert found == set(folders) - tiny.UNSEEN
    assert len(found) == 7


@pytest.mark.parametrize("path", ENGINES, ids=stem)
def test_an_engine_leaves_to_the_recipe_what_the_recipe_says(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {key: config[key] for key in auto} == dict.fromkeys(auto, "auto")
    assert config["bf16"] == {"enabled": "auto"}
    assert not {"optimizer", "scheduler", "fp16"} & set(config)  # an optimizer section bypasses per-part learning rates
    zero = config["zero_optimization"]
    assert zero["stage"] == int(path.stem[4])
    assert ("offload_optimizer" in zero) == path.stem.endswith("_offload")
    assert recipe.deepspeed_config(path.stem) == path.resolve()
