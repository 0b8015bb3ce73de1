"""What an adapter forgot: multiple choice without images, asked of it and of its base, question by question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skinvl.recipe.files import read_json_lines
from skinvl.score import stats
from skinvl.score.compare import CompareError, Resampling
from skinvl.score.predictions import Classified, PredictionError, key, read
from skinvl.score.stats import Bootstrap, Mask

FOLDER = "text_sets"  # of RUN/eval
SIDES = ("adapter", "base")
HEAD = ("asked", "accuracy", "chance", "p", "n", "groups", "unscored")


@dataclass(frozen=True, slots=True)
class TextSet:
    """The rows of a set, of the adapter, of the base alone, or of both."""

    rows: Mapping[str, list[Classified]]  # by side
    settings: Mapping[str, Any]
    unread: Mapping[str, int]  # rule → rows of the file that were not asked


def read_all(run: Path) -> dict[str, TextSet]:
    """The text sets of a run, by name.

    Raises:
        PredictionError: a file is damaged, or a set was begun and not finished.
    """
    folder = run / "eval" / FOLDER
    if begun := sorted(folder.glob("*/.*.rank*.jsonl")):
        raise PredictionError(f"{begun[0]}: a set that was begun and not finished; go on with skinvl classify {run}")
    sets = {}
    for name in sorted({path.stem for side in SIDES for path in (folder / side).glob("*.jsonl")}):
        paths = {side: folder / side / f"{name}.jsonl" for side in SIDES}
        found = {side: read(path, Classified) for side, path in paths.items() if path.is_file()}
        ledger = folder / f"{name}.ledger.jsonl"
        lines = read_json_lines(ledger, "classify again", PredictionError, ("rule",)) if ledger.is_file() else ()
        unread = Counter(line["rule"] for line in lines)
        settings = next(iter(found.values()))[0]
        sets[name] = TextSet({side: rows for side, (_, rows) in found.items()}, settings, dict(sorted(unread.items())))
    return sets


def block(name: str, one: TextSet, resampling: Resampling) -> dict[str, Any]:
    """The Block of scores.json: the share right of each side, and the difference, adapter − base, of the pairs.

    Each question is a group of its own: nothing tells which belong together. p is McNemar's.

    Raises:
        CompareError: the sides were asked other questions.
    """
    first = next(iter(one.rows.values()))
    if any([key(row) for row in rows] != [key(row) for row in first] for rows in one.rows.values()):
        raise CompareError(f"{name}: adapter and base were asked other questions; remove eval/{FOLDER}, classify again")
    right = {side: np.array([_right(row, one) for row in rows], np.bool_) for side, rows in one.rows.items()}
    scored: Mask = np.logical_and.reduce(
        [np.array([row.scores is not None for row in rows], np.bool_) for rows in one.rows.values()]
    )
    draws = Bootstrap([key(row) for row in first], resampling.resamples, resampling.seed)
    missed = int((~scored).sum())
    shares = {side: draws.share(each, scored, missed) for side, each in right.items()}
    both = len(shares) == len(SIDES)
    return {
        "rows": len(first),
        "unread": dict(one.unread),
        "chance": 1 / len(one.settings["classes"]),
        "accuracy": {side: share.number() for side, share in shares.items()},
        "difference": shares["adapter"].minus(shares["base"]).number() if both else None,
        "p": stats.mcnemar(right["adapter"][scored], right["base"][scored]) if both else None,
        "settings": dict(one.settings),
    }


def table(block: Mapping[str, Any], number: Callable[[Mapping[str, Any] | None], str]) -> list[list[str]]:
    """A row of HEAD for each side, and one for the difference.

    Args:
        number: a Number as text.
    """
    rows = []
    for side, share in block["accuracy"].items():
        counts = [f"{share[count]:,}" for count in ("n", "groups", "unscored")]
        rows.append([side, number(share), f"{block['chance']:.3f}", "–", *counts])
    if (difference := block["difference"]) is not None:
        counts = [f"{difference[count]:,}" for count in ("n", "groups", "unscored")]
        rows.append(["adapter − base", number(difference), "–", f"{block['p']:.3f}", *counts])
    return rows


def _right(row: Classified, one: TextSet) -> bool:
    if row.scores is None:
        return False
    letters: list[str] = one.settings["classes"]
    return letters[int(np.argmax(row.scores))] == row.label
