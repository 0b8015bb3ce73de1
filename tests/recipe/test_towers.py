"""A recipe of two towers becomes a typed tree, or one line for each fault; the other kind of recipe is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from skinvl.recipe import loading, recipe, towers
from skinvl.recipe.recipe import Base, RecipeError

GOOD = """\
base: tiny-clip
data:
  train: [{source: demo, split: train}]
  eval: [{source: demo, split: test}]
  texts: {colour: a lesion that is {answer}}
objective: {name: make, aspects: [caption, ontology, concepts, sentences]}
batch: {images: 8}
towers: {image: {train: lora}}
lora: {r: 4}
train:
  learning_rate: 1e-3
""".replace("a lesion that is {answer}", "'a lesion that is {answer}'")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def made(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return made


def refused(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        towers.load(path, overrides)
    return str(caught.value).splitlines()


def test_the_values_arrive_and_are_written_out(write: Callable[[str], str]) -> None:
    made = towers.load(write(GOOD), ["objective.local=0", "evaluate.during=64", "train.eval_strategy=epoch"])
    assert (made.name, made.base.kind, made.base.random, made.makes_adapter) == ("mine", "dual", "clip", True)
    assert (made.objective.local, made.objective.sentences, made.negatives.same_text) == (0, 8, "positive")
    assert towers.load(write(towers.dump(made))) == made
    assert not towers.load(write(GOOD), ["towers={}", "lora={}"]).makes_adapter


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batch.image=8", "batch.image: unknown; did you mean images?"),
        ("batch.images=1", "batch.images: found 1; expected greater than 1"),
        ("objective.name=clap", "objective.name: found 'clap'; expected 'clip', 'siglip', 'make', 'make-ont"),
        ("objective.aspects=[caption, captions]", "objective.aspects.1: found 'captions'; expected 'caption', 'ont"),
        ("objective.aspects=[caption, caption]", "objective.aspects: an aspect is named twice; keep each once"),
        ("objective.soft=0.2", "objective.soft: make has no soft targets; set objective.name to make-ontology"),
        ("objective={name: clip, local: 0.1}", "objective.local: clip has none; set objective.name to make or"),
        ("objective={name: siglip, weights: none}", "objective.weights: siglip has none; set objective.name to make"),
        ("objective={name: clip, sentences: 4}", "objective.sentences: no sentences are trained on; add them to"),
        ("objective={name: make}", "objective: captions are not aligned with patches; set local to 0, or add to"),
        ("objective={name: make, local: 0, sigma: 0.3}", "objective.sigma: objective.local is 0, so that no patch"),
        ("data.texts={colour: a lesion}", "data.texts: colour: found 'a lesion'; expected a template with {answer}"),
        ("data.texts={colour: '{answer} {x}'}", "data.texts: colour: found '{answer} {x}'; expected a template"),
        ("data.texts={colour: '{answer'}", "data.texts: colour: found '{answer'; expected a template"),
        ("towers.image={train: full}", "lora: no tower trains with it; set towers.image.train=lora, or leave lora"),
        ("towers.heads={train: lora}", "towers: the heads are two small layers; set towers.heads.train to full or"),
        ("towers.text={train: frozen, learning_rate: 1.0}", "towers.text: a frozen part has no learning_rate"),
        ("lora.target_modules=x", "lora.target_modules: not taken: towers decide, for every base alike"),
        ("train.per_device_train_batch_size=8", "train.per_device_train_batch_size: not taken: batch.images are"),
        ("train.gradient_accumulation_steps=8", "train.gradient_accumulation_steps: not taken: batch.images are"),
        ("train.deepspeed=zero2", "train.deepspeed: not taken: two towers fit one GPU with batch.at_once; ranks by to"),
        ("train.fsdp=x", "train.fsdp: not taken: two towers fit one GPU with batch.at_once; ranks by torchrun"),
        ("train.torch_compile=true", "train.torch_compile: not taken: a step runs in chunks of many lengths, each"),
        ("train.ddp_bucket_cap_mb=8", "train.ddp_bucket_cap_mb: not taken: skinvl sums the gradients of the ranks"),
        ("train.packing=true", "train.packing: unknown; "),
        ("train.lr_scheduler_type=cosin", "train.lr_scheduler_type: found 'cosin'; expected linear, cosine"),
        ("train.eval_strategy=epochs", "train.eval_strategy: found 'epochs'; expected no, steps or epoch"),
        ("evaluate.during=64", "evaluate.during: the training evaluates nothing; set train.eval_strategy"),
        ("early_stopping.early_stopping_patience=2", "early_stopping: nothing to watch; set train.metric_for_best"),
        ("text_base=clip-b16", "text_base: of a generative base alone, and this is one of two towers; leave it out"),
        ("data.image_tokens=64", "data.image_tokens: of a generative base alone, and this is one of two towers; leave"),
        ("base=tiny-clap", "base: tiny-clap: neither a name in recipes/bases/ nor a path to a .yaml file; did you"),
        ("quantization={load_in_4bit: true}", "quantization: unknown; "),
    ],
)
def test_a_fault_names_its_key(write: Callable[[str], str], override: str, expected: str) -> None:
    faults = refused(write(GOOD), override)
    assert any(line.partition(" ")[2].removeprefix("line ").startswith(expected) for line in faults), faults


def test_all_faults_are_listed_with_their_lines(write: Callable[[str], str]) -> None:
    faults = refused(write(GOOD.replace("1e-3", "fast").replace("images: 8", "images: x")), "attention=flash")
    assert [line.split(" ")[0] for line in faults] == ["mine.yaml:7", "mine.yaml:11", "command"]


def test_what_the_released_code_cannot_have_is_refused(write: Callable[[str], str]) -> None:
    made = towers.load(write(GOOD), ["objective.released=true"])
    assert set(made.negatives.model_dump().values()) == {"keep"}
    assert towers.load(write(towers.dump(made))) == made
    faults = refused(write(GOOD), "objective.released=true", "negatives.same_text=positive")
    assert faults == ["command line negatives.same_text: objective.released keeps all negatives; set it to keep"]
    faults = refused(write(GOOD), "objective.released=true", "objective.sentences=4")
    assert faults[0].startswith("command line objective.released: the released code has a caption, an ontology text")


def test_the_wrong_kind_of_recipe_names_its_verb(write: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load(write(GOOD))
    assert str(caught.value) == (
        "mine.yaml: a recipe of two towers (it has the key objective), which skinvl pretrain trains and skinvl eval, "
        "zeroshot and retrieve evaluate"
    )
    with pytest.raises(RecipeError, match=r"tiny.yaml: a recipe of a vision-language model \(.*\), which skinvl sft"):
        towers.load("tiny")
    with pytest.raises(RecipeError, match=r"the folder of a run of two towers, and no recipe; skinvl eval,"):
        recipe.load(str(Path(write(GOOD)).rename(tmp_path / "recipe.yaml").parent))
    with pytest.raises(RecipeError, match="command line base: two towers, which skinvl pretrain trains; sft takes"):
        recipe.load("tiny", ["base=tiny-clip"])


def test_a_base_of_two_towers() -> None:
    assert recipe.load_base("owner/Name", "dual") == Base(name="name", kind="dual", model="owner/Name")
    assert towers.load("tiny-clip", ["base=owner/Name"]).base.kind == "dual"
    assert towers.load("tiny-clip", ["base={name: a, model: b/c}"]).base.kind == "dual"
    assert set(recipe.bases("dual")) | set(recipe.bases("vlm")) == set(recipe.bases())
    assert "tiny-clip" in set(loading.recipes("pretrain")) - set(loading.recipes("sft"))
    assert towers.load("tiny-clip", ["base={name: a, model: b/c, quick_gelu: true}"]).base.quick_gelu
    faults = refused("tiny-clip", "base={name: a, random: clip, quick_gelu: true}")
    assert faults[0].startswith("command line base: quick_gelu is asked of checkpoints of open_clip alone")


def test_every_field_says_what_it_is() -> None:
    models: list[type[BaseModel]] = [
        value for value in vars(towers).values() if isinstance(value, type) and issubclass(value, BaseModel)
    ]
    bare = [
        f"{model.__name__}.{name}" for model in models for name, f in model.model_fields.items() if not f.description
    ]
    assert bare == []


def test_a_generative_base_has_a_text_side_and_a_budget_of_its_own(write: Callable[[str], str]) -> None:
    one = towers.load(write(GOOD), ["base=tiny-llava"])
    assert (one.text_base, one.data.image_tokens, one.generative, one.leaves_adapter) == ("tiny-clip", 256, True, True)
    assert towers.load(write(GOOD), ["base=qwen3-vl-4b"]).text_base == "clip-b16"
    pair = towers.load(write(GOOD), [])
    assert (pair.text_base, pair.data.image_tokens, pair.generative) == (None, None, False)
    again = write(towers.dump(one))
    assert towers.load(again) == one


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "towers.image.train=frozen",
            "towers.image.train: all that a run on a generative base leaves, so that it cannot",
        ),
        ("towers.heads.train=frozen", "towers.heads.train: new on a generative base, so that it cannot be frozen; set"),
        (
            "objective.released=true",
            "objective.released: that code reads images of one size; give a base of two towers",
        ),
        ("init_adapter=runs/x/adapter", "init_adapter: a run on a generative base starts from it as it is published"),
        ("text_base=tiny-llava", "text_base: a vision-language model; give two towers, such as clip-b16"),
        ("text_base=tiny-clap", "text_base: tiny-clap: neither a name in recipes/bases/ nor a path to a .yaml file"),
    ],
)
def test_what_a_generative_base_cannot_do_is_refused(write: Callable[[str], str], override: str, expected: str) -> None:
    faults = refused(write(GOOD), "base=tiny-llava", override)
    assert any(line.partition(" ")[2].removeprefix("line ").startswith(expected) for line in faults), faults
