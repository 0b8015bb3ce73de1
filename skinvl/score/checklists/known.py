"""What lies in the folder of a run, for what a checklist asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinvl.data import table1
from skinvl.data.table1 import Table1
from skinvl.recipe import strict
from skinvl.recipe.files import read_json, read_json_lines
from skinvl.score import samples
from skinvl.score.predictions import PredictionError

AGAIN = "make it again with the verb that wrote it"


@dataclass(frozen=True, slots=True)
class Known:
    """The files of a run, empty where there is none."""

    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    scores: Mapping[str, Any]
    readers: Mapping[str, Any]
    ledger: Mapping[str, int]  # rule → rows that it left out
    rows: Mapping[str, Sequence[Any]]  # set → what was predicted of its rows
    table: Table1 | None  # of these rows by group


def read(run: Path, scores: Mapping[str, Any]) -> Known:
    """What lies in the folder of a run.

    Raises:
        PredictionError, RecipeError: a file cannot be read.
    """
    recipe, ledger = run / "recipe.yaml", run / "ledger.jsonl"
    rules: Counter[str] = Counter()
    if ledger.is_file():
        lines = read_json_lines(ledger, "mend or remove the line", PredictionError, ("rule",), unfinished=True)
        rules.update(str(line["rule"]) for line in lines)
    rows = {each.name: each.rows for each in samples.scored(run / "eval", scores["sets"])}
    return Known(
        strict.read(recipe).data if recipe.is_file() else {},
        _object(run / "env.json"),
        scores,
        _object(run / "readers.json"),
        dict(rules.most_common()),
        rows,
        table1.table(table1.columns(rows), "groups") if any(rows.values()) else None,
    )


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, AGAIN, PredictionError) if path.is_file() else {}
