"""A recipe's YAML becomes a typed tree, or one line for each fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from skinvl.recipe import recipe, sections
from skinvl.recipe.recipe import Base, EarlyStopping, Parts, PartSpec, Recipe, RecipeError

GOOD = """\
# a comment, so that lines do not start at 1
base: tiny-qwen2_vl
data:
  train: [{source: demo, split: train}]
  eval: [{source: demo, split: test}]
  image_tokens: 16
  max_tokens: 256
parts:
  language: {train: lora}
lora: {r: 8}
train:
  learning_rate: 1e-4
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def made(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return made


def refused(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe.load(path, overrides)
    return str(caught.value).splitlines()


def test_the_values_arrive(write: Callable[[str], str]) -> None:
    made = recipe.load(write(GOOD))
    assert (made.name, made.base.name, made.base.random, made.base.location) == (
        "mine",
        "tiny-qwen2_vl",
        "qwen2_vl",
        "bases/tiny-qwen2_vl",
    )
    assert made.data.train[0].weight == 1.0
    assert made.data.budget == {"image_tokens": 16, "max_tokens": 256, "too_long": "ledger"}
    assert made.parts == Parts(language=PartSpec(train="lora"))
    assert made.train == {"learning_rate": 1e-4}  # YAML 1.1 would read text here
    assert made.attention == "auto"
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  learning_rate", "  lerning_rate", "mine.yaml:12 train.lerning_rate: unknown; did you mean learning_rate?"),
        ("image_tokens", "image_token", "mine.yaml:6 data.image_token: unknown; did you mean image_tokens?"),
        ("lora: {r", "laura: {r", "mine.yaml:10 laura: unknown; did you mean lora?"),
        ("split: test", "spilt: test", "mine.yaml:5 data.eval.0.spilt: unknown; did you mean split?"),
        ("  max_tokens: 256\n", "", "mine.yaml:3 data.max_tokens: missing; Longest conversation, in tokens"),
        ("256", "many", "mine.yaml:7 data.max_tokens: found 'many'; expected a valid integer"),
        ("256", "2.5", "mine.yaml:7 data.max_tokens: found 2.5; expected"),
        ("256", "true", "mine.yaml:7 data.max_tokens: found true; expected a valid integer"),
        ("256", "0", "mine.yaml:7 data.max_tokens: found 0; expected greater than 0"),
        ("train: lora", "train: half", "mine.yaml:9 parts.language.train: found 'half'; expected 'frozen', 'lora' or"),
        ("train: lora", "train: full", "mine.yaml:8 parts: no part trains with lora"),
        ("{train: lora}", "{train: frozen, learning_rate: 1.0}", "mine.yaml:9 parts.language: a frozen part has no"),
        ("1e-4", "fast", "mine.yaml:12 train.learning_rate: found 'fast'; expected a number"),
        ("1e-4", "1e-4\n  learning_rate: 2", "mine.yaml:13 train.learning_rate: given twice, first in line 12"),
        ("{r: 8}", "{r: 1_000}", "mine.yaml:10 lora.r: found '1_000'; expected an integer"),
        ("tiny-qwen2_vl", "tiny-qwen2", "mine.yaml:2 base: tiny-qwen2: neither a name in recipes/bases/"),
        ("tiny-qwen2_vl", "{name: x, model: a/b, random: mllama}", "mine.yaml:2 base: expected either model"),
        ("[{source: demo, split: train}]", "[]", "mine.yaml:4 data.train: found []; expected"),
        ("[{source: demo, split: train}]", "[{source: demo", "mine.yaml:5 column 7: not YAML (expected ',' or '}'"),
        ("lora: {r: 8}", "lora: &x {r: *x}", "mine.yaml:10 lora.r: an alias of what it lies in"),
        ("lora: {r: 8}", "lora: !!python/name:os.system", "mine.yaml:10 column 7: not YAML (could not determine"),
    ],
)
def test_a_fault_names_its_line(write: Callable[[str], str], old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = refused(write(GOOD.replace(old, new, 1)))
    assert any(line.startswith(expected) for line in found), found


def test_all_faults_are_listed_in_the_order_of_the_file(write: Callable[[str], str]) -> None:
    text = GOOD.replace("r: 8", "r: eight").replace("image_tokens: 16", "image_tokens: x").replace("1e-4", "y")
    found = refused(write(text), "attention=flash", "train.packing=true")
    assert [line.split(":")[1].split(" ")[0] for line in found[:3]] == ["6", "10", "12"]
    assert [line.split(":")[0] for line in found[3:]] == ["command line train.packing", "command line attention"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "only words"])
def test_a_recipe_is_a_mapping(write: Callable[[str], str], text: str) -> None:
    assert "expected a mapping of keys" in refused(write(text))[0]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(GOOD.encode() + b"# \xff")
    assert refused(str(tmp_path / "mine.yaml")) == [
        f"mine.yaml: byte {len(GOOD) + 2} is not UTF-8; save the file as UTF-8"
    ]


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.learning_rate=1e-4", lambda made: made.train["learning_rate"], 1e-4),
        ("train.eval_strategy=no", lambda made: made.train["eval_strategy"], "no"),  # false in YAML 1.1
        ("base=qwen3-vl-8b", lambda made: made.base.model, "Qwen/Qwen3-VL-8B-Instruct"),
        ("base=Owner/Some-Model", lambda made: (made.base.name, made.base.revision), ("some-model", None)),
        ("data.train.0.weight=0.5", lambda made: made.data.train[0].weight, 0.5),
        ("data.eval=[]", lambda made: made.data.eval, []),
        ("quantization.load_in_4bit=true", lambda made: made.quantization, {"load_in_4bit": True}),
        ("parts.projector={train: full, learning_rate: 2e-5}", lambda made: made.parts.projector.learning_rate, 2e-5),
        ("run=second", lambda made: made.run, "second"),
        ("train.run_name=a=b", lambda made: made.train["run_name"], "a=b"),
    ],
)
def test_an_override_is_laid_over(
    write: Callable[[str], str], override: str, read: Callable[[Recipe], object], value: object
) -> None:
    assert read(recipe.load(write(GOOD), ["train.learning_rate=7", override])) == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lerning_rate=1", "command line train.lerning_rate: unknown; did you mean learning_rate?"),
        (
            "base=qwen3-vl-8",
            "command line base: qwen3-vl-8: neither a name in recipes/bases/ nor a path to a .yaml file",
        ),
        ("base.revision=x", "command line base.revision: base has no keys of its own; override it as a whole"),
        ("data.train.3.weight=2", "command line data.train.3: the list has 1 items, counted from 0"),
        ("data.train=demo", "command line data.train: found 'demo'; expected a valid list"),
        ("data.balance=diagnose", "command line data.balance: unknown; did you mean diagnosis?"),
        ("train.run_name=[a", "command line train.run_name:1 column 3: not YAML"),
        ("dry-run", "command line 'dry-run': expected key=value"),
        ("=1", "command line '=1': expected key=value"),
        ("run=../elsewhere", "command line run: found '../elsewhere'; expected letters"),
        ("train.deepspeed=zero4", "command line train.deepspeed: zero4: neither a name in ds_configs/ nor a path"),
        ("data.eval=[]", "mine.yaml:13 train.eval_strategy: data.eval is empty"),
    ],
)
def test_an_override_with_a_fault(write: Callable[[str], str], override: str, expected: str) -> None:
    found = refused(write(GOOD + "  eval_strategy: epoch\n"), override)
    assert any(line.startswith(expected) for line in found), found


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.max_length=1024", "not taken: data.max_tokens decides"),
        ("train.output_dir=x", "not taken: runs/<run>/ holds all output; run decides"),
        ("train.fp16=1", "found 1"),
        ("train.bf16_full_eval=true", "not taken: bf16 and fp16 decide"),
        ("train.push_to_hub=true", "not taken: a run is published after it was evaluated"),
        ("train.warmup_ratio=0.1", "not taken: gone in transformers 5; warmup_steps below 1 is a ratio"),
        ("train.bf16=null", "found null; expected true or false"),
        ("train.eval_strategy=epochs", "found 'epochs'; expected no, steps or epoch"),
        ("train.num_train_epochs=true", "found true; expected a number"),
        ("train.report_to=[1]", "found [1]; expected null, text or a list of text"),
        ("lora.target_modules=all-linear", "not taken: parts decide, for every base alike"),
        ("lora.init_lora_weights=pissa_niter_4", "found 'pissa_niter_4'; expected true, gaussian, orthogonal or pissa"),
        ("lora.loftq_config={}", "unknown; expected one of init_lora_weights, lora_alpha"),
        ("quantization.load_in_8bit=true", "not taken: skinvl trains on bf16 or 4-bit bases; use load_in_4bit"),
        ("quantization.llm_int8_skip_modules=[a]", "not taken: parts decide"),
        ("quantization={bnb_4bit_quant_type: nf4}", "load_in_4bit is missing"),
        ("quantization={load_in_4bit: false}", "found false; expected true"),
        ("quantization={load_in_4bit: true, bnb_4bit_quant_type: int4}", "found 'int4'; expected nf4 or fp4"),
    ],
)
def test_the_sections_of_other_libraries(write: Callable[[str], str], override: str, reason: str) -> None:
    found = refused(write(GOOD), override)
    assert any(f": {reason}" in line for line in found), found


def test_the_old_name_of_a_setting_points_to_the_new_one(write: Callable[[str], str]) -> None:
    assert refused(write(GOOD), "train.gradient_checkpointing=true") == [
        "command line train.gradient_checkpointing: not taken: its new name is activation_checkpointing"
    ]


def test_every_owned_or_accepted_key_exists_in_the_installed_libraries() -> None:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainingArguments
    from trl.trainer.sft_config import SFTConfig

    gone = {"group_by_length", "warmup_ratio"}  # of transformers 4, named since recipes still hold them
    of_sft, of_towers = sections._OWNED["sft"], sections._OWNED["pretrain"]
    assert set(of_sft["train"]) - {field.name for field in fields(SFTConfig)} == gone
    assert set(of_towers["train"]) - {field.name for field in fields(TrainingArguments)} == gone
    assert {*of_sft["lora"], *of_towers["lora"], *sections._LORA} <= {field.name for field in fields(LoraConfig)}
    assert {*of_sft["quantization"], *sections._QUANTIZATION} <= set(signature(BitsAndBytesConfig).parameters)


def test_dump_and_load_are_inverse(write: Callable[[str], str]) -> None:
    overrides = [
        "name=renamed",
        "train.run_name='1e-4'",
        "train.eval_strategy=no",
        "train.learning_rate=1e-05",
        "data.eval=[{source: 'no', split: '010', weight: 0.3}]",
        "base={name: own, model: own/model, revision: '1e10', note: 'ä: #x'}",
        "quantization={load_in_4bit: true}",
        "resume=auto",
    ]
    made = recipe.load(write(GOOD), overrides)
    text = recipe.dump(made)
    assert recipe.load(write(text)) == made
    assert yaml.safe_load(text)["data"]["eval"][0]["source"] == "no"  # other readers see text as well


def test_a_base_may_be_a_folder_or_a_file(write: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "My-Model").mkdir()
    assert recipe.load_base(f"{tmp_path}/My-Model/") == Base(name="my-model", model=f"{tmp_path}/My-Model")
    (tmp_path / "own.yaml").write_text("model: a/b\nrevison: c\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"own\.yaml:2 revison: unknown; did you mean revision\?"):
        recipe.load_base(f"{tmp_path}/own.yaml")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match=r"tinny: neither a name in recipes/ .*did you mean tiny\?"):
        recipe.load("tinny")


def test_every_field_says_what_it_is() -> None:
    models: list[type[BaseModel]] = [Recipe, Base, recipe.Data, recipe.SourceSpec, Parts, PartSpec, EarlyStopping]
    bare = [
        f"{model.__name__}.{name}" for model in models for name, f in model.model_fields.items() if not f.description
    ]
    assert bare == []


def test_early_stopping_needs_something_to_watch(write: Callable[[str], str]) -> None:
    with pytest.raises(RecipeError, match=r"early_stopping: nothing to watch; set train.metric_for_best_model=loss"):
        recipe.load(write(GOOD), ["early_stopping={early_stopping_patience: 2}"])
