"""The folder of one training: refused when taken, opened when it has finished, named when it is evaluated."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import ValidationError

from skinvl.recipe import provenance, strict
from skinvl.recipe.files import digest, existing, read_json, write_text
from skinvl.recipe.provenance import Provenance
from skinvl.recipe.recipe import Recipe, RecipeError, dump, load

RECIPE = "recipe.yaml"  # in the folder of a run: the recipe, resolved
WEIGHTS = "adapter_model.safetensors"  # in the folder of an adapter
CONFIG = "adapter_config.json"


class RunError(ValueError):
    """A run folder that cannot be used."""


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a training, with what it says of itself."""

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
        recipe = recipe or self.recipe
        base = recipe.base.model_copy(update={"revision": self.provenance.base.commit or recipe.base.revision})
        return recipe.model_copy(update={"init_adapter": str(self.adapter), "base": base})


def adapter_digest(folder: Path) -> str:
    """What tells an adapter from any other: 32 hexadecimal digits, xxh3, of its config and weights.

    Where its base lies is left out, which differs from machine to machine.

    Raises:
        RunError: its config cannot be read.
    """
    config = read_json(folder / CONFIG, "put the adapter back as it was saved", RunError)
    settings = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")}
    return xxhash.xxh3_128_hexdigest(f"{json.dumps(settings, sort_keys=True)} {digest(folder / WEIGHTS)}".encode())


def begun(path: Path) -> Run:
    """The run in a folder, finished or not.

    Raises:
        RunError: no run, or one whose records are not as this version writes them.
    """
    lacks = [name for name in (RECIPE, provenance.FILE) if not (path / name).is_file()]
    if lacks:
        why = f"it has no {lacks[0]}" if path.is_dir() else "there is no such folder"
        raise RunError(f"{path}: no run, {why}: nothing was trained here; give the folder that skinvl sft has made")
    try:
        recipe = Recipe.model_validate(strict.read(path / RECIPE).data)
    except (RecipeError, ValidationError) as error:
        raise RunError(f"{path / RECIPE}: not a recipe of this version ({_line(error)})") from error
    values = read_json(path / provenance.FILE, "put back what skinvl sft wrote, or train again", RunError)
    try:
        return Run(path, recipe, Provenance.model_validate(values))
    except ValidationError as error:
        raise RunError(f"{path / provenance.FILE}: not as this version writes it ({_line(error)})") from error


def finished(path: Path) -> Run:
    """The run in a folder, with its adapter.

    Raises:
        RunError: no run, one that has not ended, or one whose records are not as this version writes them.
    """
    run = begun(path)
    if not run.weights.is_file():
        raise RunError(f"{path}: no adapter yet; the run has not ended. Go on with it by resume=auto")
    return run


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def folder(recipe: Recipe, runs: Path = Path("runs")) -> Path:
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
        RunError: a folder without a finished run, or an override of how it was trained.
    """
    path = Path(name)
    if "/" in name and path.suffix != ".yaml" and not path.expanduser().exists():
        finished(path)  # a run that is not there, and says so
    if not path.is_dir():
        recipe = load(name, overrides)
        own = folder(recipe)
        out = own if recipe.run else own.with_name(f"{own.name}--untrained")
        if (out / provenance.FILE).is_file():
            raise RunError(f"{out}: a training lies there; give this folder to evaluate it, or another name with run=")
        return recipe, out
    untrained = (path / RECIPE).is_file() and not (path / provenance.FILE).is_file()  # a base that was evaluated before
    run = None if untrained else finished(path)
    if other := [words for words in overrides if not words.startswith(ASKED)]:
        raise RunError(
            f"{other[0]}: {path} was trained otherwise, and is evaluated as it was; expected evaluate.…, data.eval or "
            "attention. To evaluate a base without this adapter give a recipe's name instead of the run"
        )
    recipe = load(str(path / RECIPE), overrides)
    return (recipe if run is None else run.adapted(recipe)), path


def begin(path: Path, recipe: Recipe) -> None:
    """Makes the folder of an evaluation, with the recipe of a base that no run has trained."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / RECIPE).is_file():
        write_text(path / RECIPE, dump(recipe))


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
