"""What challenges take, made of a run's predictions: each a module of this folder, found by its name.

A module has

- `FOLDER`, where its predictions lie in RUN/eval, and `KIND`, the class of their rows;
- `fits(settings, rows) -> bool`, whether predictions are of this challenge;
- `content(rows) -> (str, str)`, the text of the file, and in words what is in it;
- `check(text, rows)`, which raises a SubmissionError unless the text, as it is read back, says what the rows say.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from skinvl.recipe.files import whole_file
from skinvl.score.predictions import read


class SubmissionError(ValueError):
    """A challenge that there is not, or predictions that do not make a file for it."""


def names() -> list[str]:
    """The names of the challenges: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def write(name: str, where: Path, out: Path) -> str:
    """Writes the file of a challenge, whole and checked, or nothing; what is in it, in words.

    Args:
        where: the folder of a run, or the file of one set's predictions in it.

    Raises:
        SubmissionError, PredictionError: what a user can mend.
    """
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names())}"
        raise SubmissionError(f"--submission {name}: no such challenge; {hint}")
    module = importlib.import_module(f"{__name__}.{name}")
    path, rows = _predictions(module, where)
    text, what = module.content(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
        module.check(partial.read_bytes().decode("utf-8"), rows)
    return f"{out}: {what}, of {path}"


def _predictions(module: Any, where: Path) -> tuple[Path, list[Any]]:
    """The one file of predictions that is of the challenge: of several the one whose rows have no label."""
    folder = where / "eval" / module.FOLDER
    paths = sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith("."))
    sets = {path: read(path, module.KIND) for path in ([where] if where.is_file() else paths)}
    fitting = {path: rows for path, (settings, rows) in sets.items() if module.fits(settings, rows)}
    blind = [path for path, rows in fitting.items() if all(getattr(row, "label", "") is None for row in rows)]
    candidates = blind or [*fitting]
    if not candidates:
        raise SubmissionError(
            f"{where}: no predictions for {module.__name__.rpartition('.')[2]} among {len(sets)} sets in "
            f"{folder}; {module.MAKE}"
        )
    if len(candidates) > 1:
        listed = ", ".join(path.name for path in candidates)
        raise SubmissionError(
            f"{where}: {len(candidates)} sets could be submitted ({listed}); name the file of one instead of the run: "
            f"skinvl score {candidates[0]} --submission …"
        )
    return candidates[0], fitting[candidates[0]]
