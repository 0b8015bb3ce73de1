"""Two towers beside the base that they started from: contrastive tuning forgets, and where it did is said first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skinvl.recipe import strict
from skinvl.score.ranking import MEDIAN

SAID = ("R@", MEDIAN, "accuracy", "balanced_accuracy", "auroc")  # beginnings of the numbers that say most
LOWER = (MEDIAN,)  # of which less is better


def folder(run: Path) -> Path | None:
    """Where the base of a run of two towers was evaluated as it is; None where it was not, and of any other run."""
    path = run / "recipe.yaml"
    data = strict.read(path).data if path.is_file() else {}
    if "objective" not in data or not isinstance(data.get("base"), Mapping):
        return None
    beside = run.resolve().parent / f"{data.get('name')}--{data['base'].get('name')}--untrained"
    return beside if (beside / "eval").is_dir() else None


def block(name: str, tests: Sequence[Mapping[str, Any]], why: str | None = None) -> dict[str, Any]:
    """The `untrained` of scores.json: tests as those of a comparison, or why there are none."""
    return {"against": name, "tests": list(tests), "why": why}


def worse(scores: Mapping[str, Any]) -> list[str]:
    """What the run is worse in than its base, a line for each set and what was asked of it."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for test in (scores["untrained"] or {"tests": []})["tests"]:
        metric, difference = test["metric"], test["difference"]["value"]
        if metric.startswith(SAID) and difference and (difference > 0) == (metric in LOWER):
            numbers = f"{metric.replace('_', ' ')} {test['ours']:.3f} instead of {test['theirs']:.3f}"
            lines.setdefault((test["set"], test["what"]), {})[metric] = numbers
    return [f"{name}, {what}: {', '.join(numbers.values())}" for (name, what), numbers in lines.items()]
