"""A recipe's YAML, the overrides over it and its base in it → the typed tree of its kind, or all faults at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from skinvl.recipe import strict
from skinvl.recipe.base import load_base
from skinvl.recipe.sections import RecipeKind
from skinvl.recipe.shipped import find, shipped
from skinvl.recipe.strict import Document, Fault, RecipeError, StrictModel

R = TypeVar("R", bound=StrictModel)

# Of each kind: what it is of, and the verbs that evaluate it.
_RUN: dict[RecipeKind, tuple[str, str]] = {
    "sft": ("a vision-language model", "eval, generate and classify"),
    "pretrain": ("two towers", "eval, zeroshot and retrieve"),
}
_WHY: dict[RecipeKind, str] = {"sft": "it has no key objective", "pretrain": "it has the key objective"}


def load(
    model: type[R],
    kind: RecipeKind,
    name_or_path: str,
    overrides: Sequence[str],
    check: Callable[[dict[str, Any]], list[Fault]],
) -> R:
    """The recipe of a shipped name or a YAML file, with `key=value` overrides laid over it.

    Args:
        check: the faults that pydantic does not see, of the values with their base.

    Raises:
        RecipeError: a recipe of the other kind, or every fault with its line, key and what was expected.
        FileNotFoundError: no such recipe.
    """
    # The YAML, the overrides over it, and the file of its base in it.
    document, faults = _read(name_or_path, overrides)
    data = document.data
    if (other := _kind(data)) != kind:
        what, verbs = _RUN[other]
        raise RecipeError(
            f"{document.name}: a recipe of {what} ({_WHY[other]}), which skinvl {other} trains and skinvl {verbs} "
            "evaluate"
        )
    faults += _lay_base(data, kind)

    # All faults at once: what pydantic does not see, then what it sees.
    faults += check(data)
    try:
        recipe = model.model_validate(data)
    except ValidationError as error:
        document.fail(faults + strict.faults(error, model))
        raise
    document.fail(faults)
    return recipe


def kind_of(name_or_path: str, overrides: Sequence[str] = ()) -> RecipeKind:
    """The verb that trains the recipe of a shipped name or a YAML file: one with the key `objective` is of two towers.

    Raises:
        RecipeError: no YAML.
        FileNotFoundError: no such recipe.
    """
    return _kind(_read(name_or_path, overrides)[0].data)


def recipes(kind: RecipeKind | None = None) -> list[str]:
    """The names of the shipped recipes, all or those of one kind."""
    names = sorted(path.stem for path in shipped("recipes").glob("*.yaml"))
    return [name for name in names if kind is None or kind_of(name) == kind]


def of_training(data: dict[str, Any], during: int) -> list[Fault]:
    """Faults of the settings of training and evaluation that hold only together, in recipes of both kinds.

    Args:
        during: what evaluate.during is where it is left out.
    """
    train, evaluate = (data.get(section) or {} for section in ("train", "evaluate"))
    if not isinstance(train, dict):
        return []
    evaluates = train.get("eval_strategy", "no") != "no"
    faults = []
    if evaluates and isinstance(data.get("data"), dict) and not data["data"].get("eval"):
        faults.append(Fault(("train", "eval_strategy"), "data.eval is empty; name a source there, or set it to no"))
    if isinstance(evaluate, dict) and evaluate.get("during", during) != during and not evaluates:
        faults.append(Fault(("evaluate", "during"), "the training evaluates nothing; set train.eval_strategy"))
    if data.get("early_stopping") is not None and (train.get("metric_for_best_model") is None or not evaluates):
        faults.append(
            Fault(("early_stopping",), "nothing to watch; set train.metric_for_best_model=loss and train.eval_strategy")
        )
    return faults


def _read(name_or_path: str, overrides: Sequence[str]) -> tuple[Document, list[Fault]]:
    of_run = Path(name_or_path).expanduser() / "recipe.yaml"
    if of_run.is_file():
        what, verbs = _RUN[_kind(strict.read(of_run).data)]
        raise RecipeError(
            f"{name_or_path}: the folder of a run of {what}, and no recipe; skinvl {verbs} evaluate it, and {of_run} "
            "is the recipe that it was trained by"
        )
    path = find(name_or_path, "recipes")
    document = strict.read(path)
    faults = strict.override(document, overrides)
    document.data.setdefault("name", path.stem)
    return document, faults


def _kind(data: dict[str, Any]) -> RecipeKind:
    return "pretrain" if "objective" in data else "sft"


def _lay_base(data: dict[str, Any], kind: RecipeKind) -> list[Fault]:
    """The faults of the base; what lies in its file, or what its id says, is laid where its name was."""
    wanted: Literal["vlm", "dual"] = "dual" if kind == "pretrain" else "vlm"
    base = data.get("base")
    faults = []
    if isinstance(base, str):
        try:
            data["base"] = load_base(base, wanted).model_dump()
        except FileNotFoundError as error:
            faults.append(Fault(("base",), str(error)))
            data["base"] = {"name": "unknown", "kind": wanted, "model": "unknown"}  # so that all others are found too
    elif isinstance(base, dict):
        base.setdefault("kind", wanted)
    base_kind = data["base"].get("kind") if isinstance(data.get("base"), dict) else None
    if base_kind == "dual" and kind == "sft":
        faults.append(Fault(("base",), "two towers, which skinvl pretrain trains; sft takes a vision-language model"))
    return faults
