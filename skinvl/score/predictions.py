"""What a model said of each row of an eval set: JSON lines that a killed process goes on with, and that score reads.

A set's predictions are `<set>.jsonl`, one row for each question that was to be asked, in the set's order, with
`<set>.json` beside it: the settings they were made with. Rows are self-contained, so that scoring needs no source.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from skinvl.data.example import Facts, Reference, answers_of, facts_of
from skinvl.recipe.files import read_json, read_json_lines, whole_file, write_json

FOLDERS = ("answers", "permuted", "reversed", "classes", "retrieval")  # of RUN/eval/: what there may be for a set


class PredictionError(ValueError):
    """Predictions that cannot be read, or that were made with other settings."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A free answer to the last question of a conversation."""

    id: str  # the Example's id; with #2 for the second question of a conversation, and so on
    source: str  # the prepared one, by its folder
    group: str  # what an interval resamples whole: with the source, the patient, lesion or figure
    images: tuple[str, ...]  # that were shown, as absolute paths
    question: str
    reference: str
    facts: Facts
    answer: str | None  # None where the question could not be asked
    finish_reason: Literal["stop", "length", "refused"]  # its own end, max_new_tokens, or never asked
    detail: str  # why it was refused, else empty
    tokens: int  # generated, the end of turn included
    seed: int  # of this row's sampling; 0 where decoding was greedy
    references: tuple[Reference, ...] = ()  # this and the next three: of the Example, where this is its last question
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    schema: str | None = None
    thought: str | None = None  # what the model wrote before the answer, where its template sets thoughts apart


@dataclass(frozen=True, slots=True)
class Classified:
    """How likely each class is for a row; the classes are in the settings beside the file, in the order of `scores`."""

    id: str
    source: str
    group: str
    images: tuple[str, ...]
    facts: Facts
    label: str | None  # the true class; None where the row has none of the classes, and is not scored
    # Of each class, natural log, so that the softmax is probabilities: the log-likelihood of its name and end, or scale
    # × cosine of its prompts. None if refused.
    scores: tuple[float, ...] | None
    detail: str  # why the row has no label or no scores, else empty
    answer: str | None = None  # to the prompt that lists the classes, if it was asked
    outcome: Literal["matched", "none", "ambiguous"] | None = None  # what became of matching that answer
    choice: str | None = None  # the class that the answer names, where it was matched
    varied: tuple[int, ...] | None = None  # the class, by its number, of each variation of prompts; settings count them


T = TypeVar("T", Answer, Classified)


class Identified(Protocol):
    """A row of a prepared source, or what was predicted of it."""

    @property
    def source(self) -> str:
        """The prepared source."""

    @property
    def id(self) -> str:
        """What tells the row from the others of its source."""


def key(row: Identified) -> str:
    """What tells a row from the others of a file: its source and id."""
    return f"{row.source}/{row.id}"


def rule(detail: str) -> str:
    """The name of a reason, without what was found in the one row that it stands in."""
    return detail.partition(":")[0]


def unscored(rows: Iterable[Classified]) -> str:
    """How many rows are not scored and why, as the end of a sentence; empty where all are."""
    rest = Counter(rule(row.detail) for row in rows if row.detail)
    return "".join(f"; {count:,} not scored: {reason}" for reason, count in rest.items())


def read(path: Path, kind: type[T]) -> tuple[dict[str, Any], list[T]]:
    """The settings and rows of a set's predictions.

    Raises:
        PredictionError: a file is not there, damaged, or not of this kind.
    """
    settings = path.with_suffix(".json")
    if not path.is_file():
        raise PredictionError(f"{path}: no predictions; make them with skinvl {_verb(kind)}")
    again = f"make them again with skinvl {_verb(kind)}"
    try:
        rows = [_row(row, kind) for row in read_json_lines(path, again, PredictionError)]
    except (KeyError, TypeError) as error:
        raise PredictionError(
            f"{path}: not a file of predictions ({type(error).__name__}: {error}); {again}"
        ) from error
    return read_json(settings, again, PredictionError), rows


def begun(path: Path) -> dict[str, Any] | None:
    """The settings of predictions that were begun earlier; None where none were."""
    beside = path.with_suffix(".json")
    return read_json(beside, f"remove {path.parent} to predict anew", PredictionError) if beside.is_file() else None


class PredictionJournal:
    """The predictions of one set while they are made, by one process or several, each with a file of its own.

    Args:
        path: where the finished file will lie.
        settings: all that decides what is predicted; the same again goes on where it was stopped.

    Raises:
        PredictionError: what lies there was made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], kind: type[Answer] | type[Classified]) -> None:
        self.path, self.kind = path, kind
        self.settings = json.loads(json.dumps(settings))
        earlier = begun(path) or self.settings
        if changed := sorted(k for k in {**earlier, **self.settings} if earlier.get(k) != self.settings.get(k)):
            first = changed[0]
            then, now = json.dumps(earlier.get(first)), json.dumps(self.settings.get(first))
            raise PredictionError(
                f"{path}: begun with other settings: {', '.join(changed)} differ ({first} was {then} and is {now}); "
                f"remove {path.parent} to predict anew, or give the settings that it was begun with"
            )

    def begin(self) -> None:
        """Writes the settings beside the place of the predictions. Called by one process, before any writes rows."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path.with_suffix(".json"), self.settings)

    def done(self) -> dict[str, Any]:
        """The rows that were already predicted, by key; a line that a kill cut short is none."""
        files = [self.path] if self.path.is_file() else self._parts()
        return {key(row): row for file in files for row in self._whole(file)}

    def write(self, rows: Iterable[Answer] | Iterable[Classified], rank: int) -> None:
        """Appends the rows to the rank's own file."""
        part = self.path.with_name(f".{self.path.stem}.rank{rank}.jsonl")
        with part.open("a+b") as file:
            end = file.seek(0, 2)
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":  # what a kill cut short
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            for row in rows:
                file.write(json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n")

    def finish(self, order: Sequence[str]) -> None:
        """Writes the predictions into one file, in this order of keys. Called by one process, after all wrote.

        Raises:
            PredictionError: a row is missing.
        """
        rows = self.done()
        if missing := [name for name in order if name not in rows]:
            raise PredictionError(f"{self.path}: {len(missing)} of {len(order)} rows were not predicted ({missing[0]})")
        with whole_file(self.path) as partial, partial.open("w", encoding="utf-8") as file:
            for name in order:
                file.write(json.dumps(asdict(rows[name]), ensure_ascii=False) + "\n")
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f".{self.path.stem}.rank*.jsonl"))

    def _whole(self, file: Path) -> Iterator[Any]:
        hint = f"remove {self.path.parent} to predict anew"
        for row in read_json_lines(file, hint, PredictionError, unfinished=True):
            yield _row(row, self.kind)


def _row(plain: dict[str, Any], kind: Any) -> Any:
    """The row of a line, fields that came later at their defaults; a KeyError where others are missing."""
    values = {**plain, "facts": facts_of(plain["facts"]), "images": tuple(plain["images"]), **answers_of(plain)}
    if missing := {field.name for field in fields(kind) if field.default is MISSING} - values.keys():
        raise KeyError(f"no {', '.join(sorted(missing))}")
    for name in ("scores", "varied"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return kind(**values)


def _verb(kind: type[Answer] | type[Classified]) -> str:
    return "generate" if kind is Answer else "classify"
