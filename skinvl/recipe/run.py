"""The folder of one training: refused when taken, and the records in it that make a score reproducible."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skinvl.recipe.files import write_text
from skinvl.recipe.recipe import Recipe, dump, load

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed", "skinvl")


class RunError(ValueError):
    """A run folder that cannot be used."""


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
    if not path.is_dir():
        found = load(name, overrides)
        own = folder(found)
        out = own if found.run else own.with_name(f"{own.name}--untrained")
        if (out / "env.json").is_file():
            raise RunError(f"{out}: a training lies there; give this folder to evaluate it, or another name with run=")
        return found, out
    if not (path / "recipe.yaml").is_file():
        raise RunError(f"{path}: no run, it has no recipe.yaml; give the folder of a run or the name of a recipe")
    if other := [one for one in overrides if not one.startswith(ASKED)]:
        raise RunError(
            f"{other[0]}: {path} was trained otherwise, and is evaluated as it was; expected evaluate.…, data.eval or "
            "attention. To evaluate a base without this adapter give a recipe's name instead of the run"
        )
    found = load(str(path / "recipe.yaml"), overrides)
    if not (path / "env.json").is_file():  # the folder of an earlier evaluation of a base without an adapter
        return found, path
    if not (path / "adapter").is_dir():
        raise RunError(f"{path}: no adapter yet; the run has not ended. Go on with it by resume=auto")
    commit = json.loads((path / "env.json").read_text(encoding="utf-8"))["base"]["commit"]
    base = found.base.model_copy(update={"revision": commit or found.base.revision})
    return found.model_copy(update={"init_adapter": str(path / "adapter"), "base": base}), path


def begin(path: Path, recipe: Recipe) -> None:
    """Nothing; the folder of an evaluation exists, and holds the recipe of a base that no run has trained."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "recipe.yaml").is_file():
        write_text(path / "recipe.yaml", dump(recipe))


def claim(path: Path, resume: bool) -> None:
    """Nothing; the folder exists and may be written to.

    Raises:
        RunError: it holds an earlier run and `resume` is false, or it cannot be written to.
    """
    if not resume and path.is_dir() and any(path.iterdir()):
        raise RunError(
            f"{path}: not empty; continue that run with resume=auto, start another with run=NAME, or remove the folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be created ({error.strerror}); run from a folder you may write to") from error
    if not os.access(path, os.W_OK):
        raise RunError(f"{path}: not writable; change its permissions or start from a folder you may write to")


def environment(facts: dict[str, Any]) -> dict[str, Any]:
    """The versions and the machine a run had, with the facts of the run itself."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "command": sys.argv[1:],
        **facts,
    }
