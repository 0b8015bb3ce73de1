"""Answers in the logs of other evaluations: each form a module of this folder, named as the library that has it.

A module has

- `content(name, settings, rows, when) -> str`, the file of a set's answers, made at a time in UTC;
- `read(path) -> Logged`, what a file of the library says of each of its samples.

What is read is held against a set that skinvl was asked: its questions, references, facts and groups stay, the answers
are the log's, so that numbers and intervals of both can be compared.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from skinvl.recipe.files import write_text
from skinvl.score.metrics import words
from skinvl.score.predictions import Answer, PredictionJournal, key, read


class ExchangeError(ValueError):
    """A form that there is not, or a log that is not of a set's questions."""


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """What a log says of one sample."""

    where: str  # file and place, for messages
    target: str | None  # its reference, the first of several; None where the log has none
    answer: str | None  # None where the log has an error instead
    finish_reason: Literal["stop", "length", "refused"]
    detail: str = ""
    tokens: int = 0  # that were generated; 0 is not known
    thought: str | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """The samples of a log, by what tells them from one another: an id, or a number from 0 in the set's order."""

    model: str
    samples: Mapping[str | int, LoggedAnswer]


def names() -> list[str]:
    """The names of the forms."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def export(form: str, where: Path, out: Path) -> str:
    """Writes the answers of a run, or of the file of one set, in a form; what is in it, in words.

    Raises:
        ExchangeError, PredictionError: what a user can mend.
    """
    module, path = _module(form), _answers(where)
    settings, rows = read(path, Answer)
    when = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, module.content(path.stem, settings, rows, when), "backslashreplace")
    answered = sum(row.answer is not None for row in rows)
    return f"{out}: {answered:,} answers of {len(rows):,} rows of {path} in the form of {form}"


def take(form: str, where: Path, log: Path, out: Path) -> str:
    """Writes a log's answers to the questions of a run's set as a run of its own, `out`; what is in it, in words.

    Raises:
        ExchangeError, PredictionError: what a user can mend.
    """
    module, path = _module(form), _answers(where)
    _, rows = read(path, Answer)
    logged: Logged = module.read(log)
    answered = _paired(path, rows, log, logged)
    target = out / "eval" / "answers" / path.name
    if target.exists():
        raise ExchangeError(f"{target}: is there already; name another folder, or remove it")
    settings = {"set": path.stem, "rows": len(rows), "engine": form, "model": logged.model, "log": log.name}
    journal = PredictionJournal(target, settings, Answer)
    journal.begin()
    journal.write(answered, 0)
    journal.finish([key(row) for row in rows])
    without = sum(row.answer is None for row in answered)
    more = f", {without:,} of them without an answer" if without else ""
    return f"{target}: {len(rows):,} rows{more}; score them with skinvl score {out} --against RUN"


def _paired(path: Path, rows: Sequence[Answer], log: Path, logged: Logged) -> list[Answer]:
    """The rows with the log's answers, each by its id or, where the log has numbers, by its place."""
    by_id: dict[str | int, int] = {key(row): number for number, row in enumerate(rows)}
    ids = Counter(row.id for row in rows)
    by_id |= {row.id: number for number, row in enumerate(rows) if ids[row.id] == 1}
    by_id |= {number: number for number in range(len(rows))}
    unknown = [name for name in logged.samples if name not in by_id]
    if unknown:
        raise ExchangeError(
            f"{logged.samples[unknown[0]].where}: sample {unknown[0]!r} is none of the {len(rows):,} rows of {path}; "
            "expected a log of the same questions"
        )
    places = {by_id[name]: answer for name, answer in logged.samples.items()}
    if len(places) < len(logged.samples):
        raise ExchangeError(f"{log}: two samples are of one row of {path}; expected one answer for each question")
    found = []
    for number, row in enumerate(rows):
        of = places.get(number)
        if of is None:
            none: dict[str, Any] = {"answer": None, "finish_reason": "refused", "detail": f"not-in-log: {log.name}"}
            found.append(replace(row, **none, tokens=0, seed=0, thought=None))
            continue
        if of.target is not None and words(of.target) != words(row.reference):
            raise ExchangeError(
                f"{of.where}: the target is {of.target!r:.120}, but {key(row)} has the reference "
                f"{row.reference!r:.120}; expected a log of the same questions in the same order"
            )
        taken = {name: value for name, value in asdict(of).items() if name not in ("where", "target")}
        found.append(replace(row, **taken, seed=0))
    return found


def _answers(where: Path) -> Path:
    """The one file of answers of a run, or the file itself."""
    paths = [where] if where.is_file() else sorted((where / "eval/answers").glob("[!.]*.jsonl"))
    if len(paths) != 1:
        found = f"{len(paths)} sets of answers ({', '.join(path.name for path in paths)})" if paths else "no answers"
        raise ExchangeError(f"{where}: {found}; name a run that has one, or the file of one set's answers")
    return paths[0]


def _module(form: str) -> Any:
    if form not in names():
        near = get_close_matches(form, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names())}"
        raise ExchangeError(f"{form}: no form of logs; {hint}")
    return importlib.import_module(f"{__name__}.{form}")
