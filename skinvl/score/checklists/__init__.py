"""Reporting checklists, each a module of this folder: items in our own words, with what a run's folder knows of them.

A module has `TITLE`, `CITATION` and `ITEMS`: for each item its number, its section, what it asks, and the names of the
functions of `trained` or `evaluated` whose texts answer it, none where no run can know.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from skinvl.data.pages import short
from skinvl.recipe.files import write_text
from skinvl.score import tables
from skinvl.score.checklists import evaluated, known, trained
from skinvl.score.checklists.known import Known

Item = tuple[str, str, str, tuple[str, ...]]
EMPTY = "☐"


class ChecklistError(ValueError):
    """A checklist that there is not."""


def names() -> list[str]:
    """The names of the checklists."""
    own = {"__init__", "known", "trained", "evaluated"}
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in own)


def fact(name: str) -> Callable[[Known], str | None]:
    """The function of this name, which says what a run knows of one thing."""
    found: Callable[[Known], str | None] = getattr(trained, name, None) or getattr(evaluated, name)
    return found


def write(name: str, run: Path, scores: Mapping[str, Any]) -> str:
    """Writes RUN/<name>.md; how much of it the run fills, in words.

    Raises:
        ChecklistError: there is no checklist of the name.
        PredictionError, RecipeError: a file of the run cannot be read.
    """
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names())}"
        raise ChecklistError(f"--checklist {name}: no such checklist; {hint}")
    module = importlib.import_module(f"{__name__}.{name}")
    files = known.read(run, scores)
    answers = [[fact(one)(files) for one in of] for _, _, _, of in module.ITEMS]
    filled = [" ".join(text for text in texts if text) for texts in answers]

    count = sum(map(bool, filled))
    intro = (
        f"{module.TITLE} for {scores['run']}. Items in our own words; the checklist itself is in {module.CITATION}. "
        f"The run's files fill {count} of {len(filled)} items, as far as they know; {EMPTY} is yours to write, and so "
        "is whatever a filled item asks beyond that."
    )
    titled = [
        (section, ("item", "asks", "from the run"),
         [[number, asks, short(text) or EMPTY] for (number, of, asks, _), text in zip(module.ITEMS, filled, strict=True)
          if of == section])
        for section in dict.fromkeys(item[1] for item in module.ITEMS)
    ]  # fmt: skip
    path = run / f"{name}.md"
    write_text(path, tables.page([intro], titled), "backslashreplace")
    return f"{path}: {count} of {len(filled)} items filled from the run, the others left empty ({EMPTY})"
