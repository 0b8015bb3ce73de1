"""The door to a run: its kind, what is none, what has not ended, what cannot be read, and what it is asked with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import provenances
from skinvl.recipe import provenance, run
from skinvl.recipe.provenance import Conversion, PrecomputedFeatures, Provenance, TowersData, TrainedBase
from skinvl.recipe.run import RunError
from skinvl.recipe.strict import RecipeError

RECIPE = """\
name: small
base: {name: b, model: owner/name, revision: main}
data: {train: [{source: drawn, split: train}], image_tokens: 16, max_tokens: 64}
parts: {language: {train: lora}}
lora: {r: 4}
train: {learning_rate: 1e-3}
"""


def made(tmp_path: Path, **changes: Any) -> Path:
    """The folder of a run that has finished, without anything to load."""
    path = tmp_path / "one"
    (path / "adapter").mkdir(parents=True)
    (path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (path / "recipe.yaml").write_text(RECIPE)
    provenances.made(**changes).write(path)
    return path


def test_a_finished_run_is_opened(tmp_path: Path) -> None:
    path = made(tmp_path, base={"commit": "c" * 40})
    opened = run.finished(path)
    assert (opened.path, opened.recipe.name, opened.provenance.ranks) == (path, "small", 1)
    assert opened.weights == path / "adapter" / "adapter_model.safetensors"
    adapted = opened.adapted()
    assert (adapted.init_adapter, adapted.base.revision) == (str(path / "adapter"), "c" * 40)
    assert run.evaluated(str(path), []) == (adapted, path)


TOWERS = """\
name: small
base: {name: b, kind: dual, model: owner/name, revision: main}
data: {train: [{source: drawn, split: train}]}
objective: {name: clip}
batch: {images: 4}
"""
OF_TOWERS = TowersData(texts={"caption": 3}, distinct=2, text_length=77, too_long=0, conversion=None)


def made_towers(tmp_path: Path, recipe: str = TOWERS, trained: str = "model/model.safetensors") -> Path:
    """The folder of a run of two towers that has finished, without anything to load."""
    path = tmp_path / "two"
    (path / trained).parent.mkdir(parents=True)
    (path / trained).write_bytes(b"weights")
    (path / "recipe.yaml").write_text(recipe)
    provenances.made(towers=OF_TOWERS, base={"commit": "c" * 40}).write(path)
    return path


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        (TOWERS, "model/model.safetensors"),
        (TOWERS + "towers: {text: {train: lora}}\n", "adapter/adapter_model.safetensors"),
    ],
)
def test_a_finished_run_of_two_towers_is_opened(tmp_path: Path, recipe: str, trained: str) -> None:
    path = made_towers(tmp_path, recipe, trained)
    opened = run.finished_towers(path)
    assert (opened.recipe.objective.name, opened.provenance.towers, opened.weights) == (
        "clip", OF_TOWERS, path / trained,
    )  # fmt: skip
    adapted = opened.adapted()
    assert (adapted.init_adapter, adapted.base.revision) == (str((path / trained).parent), "c" * 40)
    assert run.evaluated_towers(str(path), []) == (adapted, path)
    assert run.evaluated_towers(str(path), ["evaluate.batch_size=2"])[0].evaluate.batch_size == 2
    with pytest.raises(RunError, match=r"towers.text.train=full: .*two was trained otherwise"):
        run.evaluated_towers(str(path), ["towers.text.train=full"])
    (path / trained).unlink()
    assert run.begun(path).recipe == opened.recipe
    with pytest.raises(RunError, match=f"two: no {trained.partition('/')[0]} yet; the run has not ended"):
        run.finished_towers(path)


def test_a_run_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    of_sft, of_towers = made(tmp_path), made_towers(tmp_path)
    assert (run.kind(of_sft), run.kind(str(of_towers))) == ("sft", "pretrain")
    assert (run.kind("tiny"), run.kind("tiny-clip")) == ("sft", "pretrain")
    with pytest.raises(RunError, match=r"two: a run of two towers, which .* answer nothing; use skinvl eval, zeroshot"):
        run.evaluated(str(of_towers), [])
    with pytest.raises(RunError, match=r"one: a run of a vision-language model, which answers and .* generate"):
        run.evaluated_towers(str(of_sft), [])
    (of_towers / "env.json").unlink()  # as of a base alone
    with pytest.raises(RecipeError, match=r"recipe.yaml: a recipe of two towers \(it has the key objective\), which"):
        run.evaluated(str(of_towers), [])
    with pytest.raises(RunError, match="none: no run, there is no such folder"):
        run.kind(str(tmp_path / "none"))


def test_the_folder_of_a_run_stands_for_its_recipe_and_what_lies_in_it_does_not(tmp_path: Path) -> None:
    path = made_towers(tmp_path)
    assert run.recipe_name(str(path)) == str(path / "recipe.yaml")
    assert (run.recipe_name("tiny"), run.recipe_name(f"{path}/recipe.yaml")) == ("tiny", f"{path}/recipe.yaml")
    (path / "model" / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"model: what a run has made, and not its folder; give .*two, or a recipe's"):
        run.recipe_name(str(path / "model"))
    with pytest.raises(RunError, match="none: no run, there is no such folder"):
        run.recipe_name(str(tmp_path / "none"))


def test_a_start_of_the_other_kind_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    of_sft, of_towers = made(tmp_path), made_towers(tmp_path)
    (of_sft / "adapter" / "adapter_config.json").write_text('{"auto_mapping": null}')
    (of_towers / "model" / "config.json").write_text('{"architectures": ["DualEncoder"]}')
    pair, vlm = run.begun(of_towers).recipe, run.begun(of_sft).recipe
    adapter = tmp_path / "adapter"  # away from its run
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"auto_mapping": {"base_model_class": "DualEncoder"}}')
    theirs, ours = (of_sft, of_sft / "adapter"), (of_towers, of_towers / "model", adapter)
    for path in theirs:
        run.require_kind_of_start(vlm.model_copy(update={"init_adapter": str(path)}))
        with pytest.raises(RunError, match=r"init_adapter .*: of a vision-language model, and skinvl sft goes on from"):
            run.require_kind_of_start(pair.model_copy(update={"init_adapter": str(path)}))
    for path in ours:
        run.require_kind_of_start(pair.model_copy(update={"init_adapter": str(path)}))
        with pytest.raises(RunError, match=r"init_adapter .*: of two towers, and skinvl pretrain goes on from them"):
            run.require_kind_of_start(vlm.model_copy(update={"init_adapter": str(path)}))
    for start in (None, "owner/name"):  # of the hub's nothing is known yet
        run.require_kind_of_start(pair.model_copy(update={"init_adapter": start}))


@pytest.mark.parametrize("load", [run.evaluated, run.evaluated_towers])
def test_a_base_alone_is_evaluated_in_a_folder_of_its_own(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, base = ("tiny", "tiny-qwen2_vl") if load is run.evaluated else ("tiny-clip", "tiny-clip")
    recipe, out = load(name, [])
    assert (out, recipe.init_adapter) == (Path(f"runs/{name}--{base}--untrained"), None)
    run.begin(out, recipe)
    assert load(str(out), []) == (recipe, out)


def test_trained_weights_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    (tmp_path / "model.safetensors").write_bytes(b"a")
    before = run.adapter_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"b")
    assert run.adapter_digest(tmp_path) != before


def test_of_a_local_base_the_revision_stays(tmp_path: Path) -> None:
    assert run.finished(made(tmp_path)).adapted().base.revision == "main"


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("recipe.yaml", r"one: no run, it has no recipe\.yaml: nothing was trained here; give the folder that"),
        ("env.json", r"one: no run, it has no env\.json: nothing was trained here; give the folder that"),
        ("adapter/adapter_model.safetensors", "one: no adapter yet; the run has not ended. Go on with it by resume="),
    ],
)
def test_what_is_no_finished_run_is_refused(tmp_path: Path, gone: str, message: str) -> None:
    path = made(tmp_path)
    (path / gone).unlink()
    with pytest.raises(RunError, match=message):
        run.finished(path)


def test_a_folder_that_is_not_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no run, there is no such folder"):
        run.finished(tmp_path / "nowhere")


def test_a_path_that_is_not_there_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none: no run, there is no such folder"):
        run.evaluated(str(tmp_path / "none"), [])
    with pytest.raises(FileNotFoundError, match=r"none.yaml: neither a name in recipes/"):
        run.evaluated(str(tmp_path / "none.yaml"), [])


def test_a_run_that_has_not_ended_has_begun(tmp_path: Path) -> None:
    path = made(tmp_path)
    (path / "adapter" / "adapter_model.safetensors").unlink()
    assert run.begun(path).recipe.name == "small"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": "two"}, r"env\.json: not as this version writes it .*ranks"),
        ({"rnaks": 2}, r"env\.json: not as this version writes it .*rnaks"),
        ({"base": {"model": "owner/name"}}, r"env\.json: not as this version writes it .*base\.commit"),
    ],
)
def test_records_are_read_strictly(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = made(tmp_path)
    values = json.loads((path / provenance.FILE).read_text())
    (path / provenance.FILE).write_text(json.dumps({**values, **changes}))
    with pytest.raises(RunError, match=message):
        run.begun(path)


def test_a_run_made_before_colours_were_read_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    for path, evaluated, made_by in (
        (made(tmp_path), run.evaluated, RECIPE),
        (made_towers(tmp_path), run.evaluated_towers, TOWERS),
    ):
        assert evaluated(str(path), [])[0].data.profiles == run.begun(path).recipe.data.profiles == "ignore"
        with pytest.raises(RunError, match=r"data.profiles=srgb: .* was trained otherwise"):
            evaluated(str(path), ["data.profiles=srgb"])
        (path / "recipe.yaml").write_text(made_by.replace("data: {", "data: {profiles: srgb, "))
        assert evaluated(str(path), [])[0].data.profiles == run.begun(path).recipe.data.profiles == "srgb"
        (path / "recipe.yaml").write_text(made_by)
        (path / "env.json").unlink()  # as of a base alone, whose predictions lie there
        assert evaluated(str(path), [])[0].data.profiles == "ignore"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    features = PrecomputedFeatures(folder="cache/vision/1", computed=11, seconds=1.5)
    changes = {"features": features, "quantization": {"load_in_4bit": True}, "data": {"a": "0" * 32}, "cpus": None}
    path = made(tmp_path, **changes)
    assert run.begun(path).provenance == provenances.made(**changes)


@pytest.mark.parametrize("kind", [Provenance, TrainedBase, PrecomputedFeatures, TowersData, Conversion])
def test_every_field_has_its_sentence(kind: Any) -> None:
    without = [name for name, field in kind.model_fields.items() if not (field.description or "").endswith(".")]
    assert without == []
