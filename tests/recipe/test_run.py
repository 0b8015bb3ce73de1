"""The door to a run: what is none, what has not ended, what cannot be read, and what it is asked with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import provenances
from skinvl.recipe import provenance, run
from skinvl.recipe.provenance import PrecomputedFeatures, Provenance, TrainedBase
from skinvl.recipe.run import RunError

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


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    features = PrecomputedFeatures(folder="cache/vision/1", computed=11, seconds=1.5)
    changes = {"features": features, "quantization": {"load_in_4bit": True}, "data": {"a": "0" * 32}, "cpus": None}
    path = made(tmp_path, **changes)
    assert run.begun(path).provenance == provenances.made(**changes)


@pytest.mark.parametrize("kind", [Provenance, TrainedBase, PrecomputedFeatures])
def test_every_field_has_its_sentence(kind: Any) -> None:
    without = [name for name, field in kind.model_fields.items() if not (field.description or "").endswith(".")]
    assert without == []
