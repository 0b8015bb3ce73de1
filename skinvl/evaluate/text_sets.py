"""Multiple choice without images, from a file of the user's: rows of MedQA's JSON lines or of MMLU's CSV → a task.

What an adapter forgot of its base is asked by such sets: each letter's likelihood behind the question and its options.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from skinvl.data.example import Example, text
from skinvl.evaluate.benchmarks import Sample, Task

FEWEST, MOST = 2, 10  # options of a question
CSV_HEAD = ("question", "A", "B", "C", "D", "answer")
ASKED = "Answer with the letter alone."


class TextSetError(ValueError):
    """A file of which no question can be read."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A row that is not asked, and why."""

    row: str  # FILE:LINE
    rule: str  # no-json, no-question, no-options, no-answer, other-options
    detail: str


def read(name: str, path: Path) -> tuple[Task, list[Unread]]:
    """The task of a file, and the rows of it that are not asked.

    A file ending in .csv has rows question,A,B,C,D,answer as MMLU's, with that head or without; any other has JSON
    lines with question, options (letter → text) and answer_idx as MedQA's. Rows have as many options as most of them.

    Raises:
        TextSetError: no such file, or none of its rows can be read.
    """
    if not path.is_file():
        raise TextSetError(f"evaluate.text_sets.{name}: {path}: no such file; expected MedQA's .jsonl or MMLU's .csv")
    try:
        lines = list((_csv if path.suffix.casefold() == ".csv" else _json_lines)(path))
    except UnicodeDecodeError as error:
        raise TextSetError(f"evaluate.text_sets.{name}: {path}: no UTF-8 ({error}); save it as UTF-8") from None
    rows: list[tuple[int, str, list[str], int]] = []
    unread = []
    for number, plain in lines:
        try:
            rows.append((number, *_row(plain)))
        except _Unread as fault:
            unread.append(Unread(f"{path.name}:{number}", fault.rule, fault.detail))
    if not rows:
        why = f"{unread[0].row} {unread[0].rule}: {unread[0].detail}" if unread else "it is empty"
        raise TextSetError(
            f"evaluate.text_sets.{name}: {path}: no question to ask ({why}); expected rows with question, options and "
            "answer_idx in JSON lines, or question,A,B,C,D,answer in a .csv"
        )

    # A letter that a question does not offer cannot be held against those that it does.
    most = Counter(len(options) for _, _, options, _ in rows).most_common(1)[0][0]
    letters = tuple(ascii_uppercase[:most])
    samples = []
    for number, question, options, right in rows:
        if len(options) == most:
            samples.append(_sample(name, number, question, options, letters[right]))
        else:
            detail = f"{len(options)} options, and most rows have {most}"
            unread.append(Unread(f"{path.name}:{number}", "other-options", detail))
    unread.sort(key=lambda one: int(one.row.rpartition(":")[2]))
    return Task(name, letters, None, None, None, samples), unread


class _Unread(Exception):
    """Why a row cannot be read."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(rule)
        self.rule, self.detail = rule, detail


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    yield number, _Unread("no-json", str(error))


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        for cells in reader:
            if reader.line_num == 1 and [cell.strip().casefold() for cell in cells] == [*map(str.casefold, CSV_HEAD)]:
                continue
            if cells:
                number = reader.line_num
                if len(cells) != len(CSV_HEAD):
                    yield number, _Unread("no-options", f"{len(cells)} columns; expected {','.join(CSV_HEAD)}")
                else:
                    question, *options, answer = cells
                    named = dict(zip(CSV_HEAD[1:-1], options, strict=True))
                    yield number, {"question": question, "options": named, "answer_idx": answer}


def _row(plain: Any) -> tuple[str, list[str], int]:
    """The question, its options in the order of their letters, and the number of the right one."""
    if isinstance(plain, _Unread):
        raise plain
    if not isinstance(plain, dict) or not isinstance(plain.get("question"), str) or not plain["question"].strip():
        raise _Unread("no-question", "no text at question")
    options = plain.get("options")
    if not isinstance(options, dict) or not FEWEST <= len(options) <= MOST:
        raise _Unread("no-options", f"{FEWEST} to {MOST} options by their letters expected")
    letters = list(ascii_uppercase[: len(options)])
    if sorted(options) != letters:
        raise _Unread("no-options", f"options {', '.join(map(str, options))}; expected {', '.join(letters)}")
    texts = [options[letter] for letter in letters]
    if not all(isinstance(option, str) and option.strip() for option in texts):
        raise _Unread("no-options", "an option without text")
    right = plain.get("answer_idx")
    if not isinstance(right, str) or right.strip().upper() not in letters:
        raise _Unread("no-answer", f"answer {right!r}; expected one of {', '.join(letters)}")
    return plain["question"].strip(), [option.strip() for option in texts], letters.index(right.strip().upper())


def _sample(name: str, number: int, question: str, options: list[str], right: str) -> Sample:
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    messages = (text("user", f"{question}\n{listed}\n{ASKED}"), text("assistant", right))
    example = Example(str(number), name, (), messages, str(number), "test", "not stated")
    return Sample(example, Path(), right, "")
