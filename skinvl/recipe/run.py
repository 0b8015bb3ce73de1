"""The folder of one training: refused when taken, opened when it has finished, named when it is evaluated."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import xxhash
from pydantic import ValidationError

from skinvl.recipe import loading, provenance, strict, towers
from skinvl.recipe.files import digest, existing, read_json, write_text
from skinvl.recipe.provenance import Provenance
from skinvl.recipe.recipe import Recipe, RecipeError, dump, load
from skinvl.recipe.sections import RecipeKind
from skinvl.recipe.towers import PretrainRecipe

RECIPE = "recipe.yaml"  # in the folder of a run: the recipe, resolved
WEIGHTS = "adapter_model.safetensors"  # in the folder of an adapter
CONFIG = "adapter_config.json"
MODEL_WEIGHTS = "model.safetensors"  # in the folder of a whole model
MODEL_CONFIG = "config.json"
AnyRecipe = TypeVar("AnyRecipe", Recipe, PretrainRecipe)


class RunError(ValueError):
    """A run folder that cannot be used."""


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a training of skinvl sft, with what it says of itself."""

    path: Path
    recipe: Recipe
    provenance: Provenance

    @property
    def adapter(self) -> Path:
        """The folder of its adapter, which appears when the training ends."""
        return self.path / "adapter"

    @property
    def weights(self) -> Path:
        """The file of its adapter's weights."""
        return self.adapter / WEIGHTS

    def adapted(self, recipe: Recipe | None = None) -> Recipe:
        """The recipe of its adapter on the base it was trained on; one that was given anew may differ in the rest."""
        return _trained(recipe or self.recipe, self.adapter, self.provenance)


@dataclass(frozen=True, slots=True)
class TowersRun:
    """The folder of a training of skinvl pretrain, with what it says of itself."""

    path: Path
    recipe: PretrainRecipe
    provenance: Provenance

    @property
    def trained(self) -> Path:
        """The folder of what it trained, which appears when the training ends: an adapter, or the whole model."""
        return self.path / ("adapter" if self.recipe.leaves_adapter else "model")

    @property
    def weights(self) -> Path:
        """The file of the weights that it trained."""
        return self.trained / (WEIGHTS if self.recipe.leaves_adapter else MODEL_WEIGHTS)

    def adapted(self, recipe: PretrainRecipe | None = None) -> PretrainRecipe:
        """The recipe of what it trained, on its base; one that was given anew may differ in the rest."""
        return _trained(recipe or self.recipe, self.trained, self.provenance)


def kind(name: str | Path, overrides: Sequence[str] = ()) -> RecipeKind:
    """The verb that trains a recipe, or has trained the run in a folder: it decides what evaluates it.

    Raises:
        RunError: a folder without a recipe, or one that is not there.
        RecipeError, FileNotFoundError: no recipe.
    """
    path = recipe_name(str(name))
    return loading.kind_of(path, overrides if path == str(name) else ())


def recipe_name(name: str) -> str:
    """What a recipe is loaded by: of the folder of a run the file of its recipe, else the name itself.

    Raises:
        RunError: a folder without a recipe, or one that is not there.
    """
    path = Path(name).expanduser()
    if path.is_dir() or ("/" in name and path.suffix != ".yaml"):
        if not (path / RECIPE).is_file():
            _no_run(path, RECIPE)
        return str(path / RECIPE)
    return name


def require_answers(name: str) -> None:
    """Refuses a run, or the name of a recipe, of two towers, before what it is asked is looked at.

    Raises:
        RunError, RecipeError: it is of two towers; or there is no such run or recipe.
    """
    is_model = Path(name).is_dir() and not (Path(name) / RECIPE).is_file()
    if not is_model and kind(name) == "pretrain":
        evaluated(name, [])


def require_kind_of_start(recipe: Recipe | PretrainRecipe) -> None:
    """Refuses an `init_adapter` on this machine that a training of the other kind has made.

    Raises:
        RunError: it has.
    """
    wanted: RecipeKind = "pretrain" if isinstance(recipe, PretrainRecipe) else "sft"
    made_by = None if recipe.init_adapter is None else _kind_of_start(Path(recipe.init_adapter))
    if made_by in (None, wanted):
        return
    what, other = ("two towers", "skinvl pretrain goes on from them")
    expected = "an adapter that skinvl sft has made"
    if made_by == "sft":
        what, other = ("a vision-language model", "skinvl sft goes on from it")
        expected = "an adapter or a model that skinvl pretrain has made"
    raise RunError(f"init_adapter {recipe.init_adapter}: of {what}, and {other}; give {expected}, or leave it out")


def _kind_of_start(path: Path) -> RecipeKind | None:
    """The verb that made what lies in the folder of a run, of an adapter or of a model; None where nothing says it."""
    if (path / RECIPE).is_file():
        kind_of_run = loading.kind_of(str(path / RECIPE))
        # What is trained of a generative base's tower is an adapter of it, and sft goes on from that.
        base = strict.read(path / RECIPE).data.get("base")
        return "sft" if isinstance(base, dict) and base.get("kind") == "vlm" else kind_of_run
    for name in (CONFIG, MODEL_CONFIG):
        if (path / name).is_file():
            config = read_json(path / name, "put it back as it was saved", RunError)
            made_of = (config.get("auto_mapping") or {}).get("base_model_class"), *(config.get("architectures") or ())
            return "pretrain" if {"DualEncoder", "GenerativeDual"} & {*made_of} else "sft" if name == CONFIG else None
    return None


def adapter_digest(folder: Path) -> str:
    """What tells trained weights from any other: 32 hexadecimal digits, xxh3, of an adapter's or model's files.

    Where its base lies is left out, which differs from machine to machine.

    Raises:
        RunError: its config cannot be read.
    """
    whole = not (folder / CONFIG).is_file() and (folder / MODEL_CONFIG).is_file()
    config_name, weights = (MODEL_CONFIG, MODEL_WEIGHTS) if whole else (CONFIG, WEIGHTS)
    config = read_json(folder / config_name, "put it back as it was saved", RunError)
    settings = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")}
    return xxhash.xxh3_128_hexdigest(f"{json.dumps(settings, sort_keys=True)} {digest(folder / weights)}".encode())


def begun(path: Path) -> Run | TowersRun:
    """The run in a folder, finished or not, of sft or of pretrain.

    Raises:
        RunError: no run, or one whose records are not as this version writes them.
    """
    lacks = [name for name in (RECIPE, provenance.FILE) if not (path / name).is_file()]
    if lacks:
        _no_run(path, lacks[0])
    try:
        document = strict.read(path / RECIPE)
        strict.override(document, _earlier(document.data))
        data = document.data
        recipe = PretrainRecipe.model_validate(data) if "objective" in data else Recipe.model_validate(data)
    except (RecipeError, ValidationError) as error:
        raise RunError(f"{path / RECIPE}: not a recipe of this version ({_line(error)})") from error
    values = read_json(path / provenance.FILE, "put back what the training wrote, or train again", RunError)
    try:
        of_run = Provenance.model_validate(values)
    except ValidationError as error:
        raise RunError(f"{path / provenance.FILE}: not as this version writes it ({_line(error)})") from error
    return TowersRun(path, recipe, of_run) if isinstance(recipe, PretrainRecipe) else Run(path, recipe, of_run)


def finished(path: Path) -> Run:
    """The run of sft in a folder, with its adapter.

    Raises:
        RunError: no run, one of two towers, one that has not ended, or records not as this version writes them.
    """
    run = begun(path)
    if isinstance(run, TowersRun):
        _require_heads(str(path), run.recipe)
        raise RunError(
            f"{path}: a run of two towers, which embed images and texts and answer nothing; use skinvl eval, zeroshot "
            "or retrieve"
        )
    _require_ended(run, "adapter")
    return run


def finished_towers(path: Path) -> TowersRun:
    """The run of pretrain in a folder, with what it trained.

    Raises:
        RunError: no run, one of sft, one that has not ended, or records not as this version writes them.
    """
    run = begun(path)
    if isinstance(run, Run):
        raise RunError(
            f"{path}: a run of a vision-language model, which answers and embeds no texts; use skinvl eval, generate "
            "or classify"
        )
    _require_ended(run, run.trained.name)
    _require_heads(str(path), run.recipe)
    return run


def _require_heads(name: str, recipe: PretrainRecipe) -> None:
    if recipe.generative:
        raise RunError(
            f"{name}: of the vision tower of {recipe.base.name}, of which no head or text tower is kept; go on with "
            f"skinvl sft … base={recipe.base.name} init_adapter=RUN/adapter, and give eval, merge or publish that run"
        )


def _require_ended(run: Run | TowersRun, trained: str) -> None:
    if not run.weights.is_file():
        raise RunError(f"{run.path}: no {trained} yet; the run has not ended. Go on with it by resume=auto")


def _no_run(path: Path, lacks: str) -> NoReturn:
    why = f"it has no {lacks}" if path.is_dir() else "there is no such folder"
    above = path.absolute().parent
    if path.is_dir() and (above / RECIPE).is_file():
        base = f", or a recipe's name and base={path}" if (path / MODEL_CONFIG).is_file() else ""
        raise RunError(f"{path}: what a run has made, and not its folder; give {path.parent}{base}")
    raise RunError(
        f"{path}: no run, {why}: nothing was trained here; give the folder that skinvl sft or pretrain has made"
    )


def _trained(recipe: AnyRecipe, trained: Path, of_run: Provenance) -> AnyRecipe:
    """The recipe on the very base that was trained on, with what was trained."""
    base = recipe.base.model_copy(update={"revision": of_run.base.commit or recipe.base.revision})
    return recipe.model_copy(update={"init_adapter": str(trained), "base": base})


def _earlier(recipe: dict[str, Any]) -> list[str]:
    """The overrides by which a run's recipe says what the run did, if it was made before there was a key for that."""
    data = recipe.get("data")
    return [] if isinstance(data, dict) and "profiles" in data else ["data.profiles=ignore"]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def folder(recipe: Recipe | PretrainRecipe, runs: Path = Path("runs")) -> Path:
    """Where a recipe's run lies: `runs/<recipe>--<base>`, or under the name that `run=` gives."""
    name = recipe.run or f"{recipe.name}--{recipe.base.name}"
    if Path(name).name != name:
        raise RunError(f"run={name}: a run is named without folders; it lies in {runs}/")
    return runs / name


# Of a run's recipe, what may be given anew when it is evaluated; the rest is how it was trained.
ASKED = ("evaluate.", "evaluate=", "data.eval", "data.allow_leak", "attention=", "train.dataloader_num")


def evaluated(name: str, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """The recipe to evaluate with, and the folder of its results.

    The folder of a run stands for its adapter on the base that it was trained on. The name of a recipe stands for its
    base as it is, or with its `init_adapter`; the results then lie in `runs/<recipe>--<base>--untrained`, or under the
    name that `run=` gives.

    Raises:
        RunError: a folder without a finished run of sft, or an override of how it was trained.
        RecipeError: a recipe of two towers, or one with faults.
    """
    return _evaluated(name, overrides, load, lambda path, recipe: finished(path).adapted(recipe))


def evaluated_towers(name: str, overrides: Sequence[str], *, images_alone: bool = False) -> tuple[PretrainRecipe, Path]:
    """As `evaluated`, of two towers: the folder of a run stands for what it trained.

    Args:
        images_alone: whether texts do not matter.

    Raises:
        RunError: a folder without a finished run of pretrain, or an override of how it was trained.
        RecipeError: a recipe of a vision-language model, or one with faults.
    """
    recipe, out = _evaluated(name, overrides, towers.load, lambda path, recipe: finished_towers(path).adapted(recipe))
    _require_heads(name, recipe)
    if not recipe.reads_texts and not images_alone:
        raise RunError(
            f"{name}: the objective {recipe.objective.name} compares no image with a text; measure it with skinvl "
            "probe, or train the objective clip from it with init_adapter=RUN/model"
        )
    return recipe, out


def _evaluated(
    name: str,
    overrides: Sequence[str],
    load: Callable[[str, Sequence[str]], AnyRecipe],
    trained: Callable[[Path, AnyRecipe | None], AnyRecipe],
) -> tuple[AnyRecipe, Path]:
    path = Path(name)
    if "/" in name and path.suffix != ".yaml" and not path.expanduser().exists():
        _no_run(path, RECIPE)
    if not path.is_dir():
        recipe = load(name, overrides)
        require_kind_of_start(recipe)
        own = folder(recipe)
        out = own if recipe.run else own.with_name(f"{own.name}--untrained")
        if (out / provenance.FILE).is_file():
            raise RunError(f"{out}: a training lies there; give this folder to evaluate it, or another name with run=")
        return recipe, out

    # What was trained is evaluated as it was; a folder without records of a training holds a base evaluated before.
    untrained = (path / RECIPE).is_file() and not (path / provenance.FILE).is_file()
    if not untrained:
        trained(path, None)
    if other := [words for words in overrides if not words.startswith(ASKED)]:
        raise RunError(
            f"{other[0]}: {path} was trained otherwise, and is evaluated as it was; expected evaluate.…, data.eval or "
            "attention. To evaluate a base without this training give a recipe's name instead of the run"
        )
    recipe = load(str(path / RECIPE), _earlier(strict.read(path / RECIPE).data) + list(overrides))
    return (recipe if untrained else trained(path, recipe)), path


def begin(path: Path, recipe: Recipe | PretrainRecipe) -> None:
    """Makes the folder of an evaluation, with the recipe of a base that no run has trained."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / RECIPE).is_file():
        write_text(path / RECIPE, towers.dump(recipe) if isinstance(recipe, PretrainRecipe) else dump(recipe))


def require_free(path: Path, resume: bool) -> None:
    """Checks that a training may begin in the folder, or go on there, and makes nothing.

    Raises:
        RunError: it holds an earlier run and `resume` is false, or it cannot be written to.
    """
    if not resume and path.is_dir() and any(path.iterdir()):
        raise RunError(
            f"{path}: not empty; continue that run with resume=auto, start another with run=NAME, or remove the folder"
        )
    above = existing(path)
    if not above.is_dir():
        raise RunError(f"{path}: cannot be created ({above} is no folder); run from a folder you may write to")
    if not os.access(above, os.W_OK):
        raise RunError(f"{above}: not writable; change its permissions or start from a folder you may write to")


def claim(path: Path, resume: bool) -> None:
    """Makes the folder of a run, unless another training is to be kept there.

    Raises:
        RunError: it holds an earlier run and `resume` is false, or it cannot be written to.
    """
    require_free(path, resume)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be created ({error.strerror}); run from a folder you may write to") from error
