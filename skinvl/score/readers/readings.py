"""What readers filled in: each reader's CSV as numbers of choices, or one clear message of what is wrong in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from skinvl.score.readers.cases import Case, StudyError
from skinvl.score.readers.kappa import UNREAD
from skinvl.score.readers.study import HEAD
from skinvl.score.stats import Int


def read(study: Path, cases: Mapping[str, Case], readers: Sequence[str]) -> tuple[list[str], Int]:
    """The readers whose CSV has been filled in, and int[N, J]: the number of the choice of each, or UNREAD.

    A reader's CSV in which nothing is filled in is that of one who has not read.

    Raises:
        StudyError: a CSV says what it cannot say; or none has been filled in.
    """
    columns: dict[str, Int] = {}
    for reader in readers:
        path = study / reader / "readings.csv"
        column = _column(path, cases)
        if (column != UNREAD).any():
            columns[reader] = column
    if not columns:
        raise StudyError(f"{study}: none of {len(readers)} readers has filled in readings.csv ({', '.join(readers)})")
    return list(columns), np.stack(list(columns.values()), axis=1)


def _column(path: Path, cases: Mapping[str, Case]) -> Int:
    """int[N]: what one reader's CSV says of each case."""
    rows, faults = _rows(path), list[str]()
    places = {name: number for number, name in enumerate(cases)}
    column, lines = np.full(len(cases), UNREAD, np.int64), dict[str, int]()
    for line, cells in rows:
        name, reading = (cell.strip() for cell in cells)
        if name not in cases:
            faults.append(f"{path}:{line}: case {name!r}; expected one of the {len(cases):,} names of the study")
        elif name in lines:
            faults.append(f"{path}:{line}: case {name} again, after line {lines[name]}; expected each case once")
        else:
            lines[name] = line
            number = _number(reading, cases[name].choices)
            if number is None:
                choices = cases[name].choices
                faults.append(
                    f"{path}:{line}: reading {reading!r:.80} of case {name}; expected a number from 1 to "
                    f"{len(choices)}, the words of a choice such as {choices[0]!r:.60}, or nothing"
                )
            else:
                column[places[name]] = number
    if missing := [name for name in cases if name not in lines]:
        faults.append(f"{path}: no line for {len(missing):,} cases ({missing[0]}); expected each, read or not")
    if faults:
        more = f" (and {len(faults) - 1} more faults in this file)" if len(faults) > 1 else ""
        raise StudyError(faults[0] + more)
    return column


def _number(reading: str, choices: Sequence[str]) -> int | None:
    """The number from 0 of the choice that a reading is; UNREAD for an empty one, None for anything else."""
    if not reading:
        return UNREAD
    words = [" ".join(choice.casefold().split()) for choice in choices]
    plain = " ".join(reading.casefold().split())
    if words.count(plain) == 1:
        return words.index(plain)
    # A number is one of the list, unless a choice is spelt as a number itself, which then is meant by its words alone.
    if plain.isascii() and plain.isdigit() and not any(word.isdigit() for word in words):
        return int(plain) - 1 if 1 <= int(plain) <= len(choices) else None
    return None


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The lines below the head with their numbers, without empty ones; cells end at commas, semicolons or tabs."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file; expected a reader's CSV with the columns {', '.join(HEAD)}") from None
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 (byte {error.start}); expected a CSV that was saved as UTF-8") from error
    first = text.partition("\n")[0]
    separator = next((sign for sign in ",;\t" if sign in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise StudyError(f"{path}:{reader.line_num}: {error}; expected a CSV of two cells a line") from error
    if not rows or tuple(cell.strip().casefold() for cell in rows[0][1]) != HEAD:
        found = ", ".join(rows[0][1])[:80] if rows else "nothing"
        raise StudyError(f"{path}:1: {found!r}; expected the head {','.join(HEAD)}")
    for line, cells in rows[1:]:
        if len(cells) != len(HEAD):
            raise StudyError(f"{path}:{line}: {len(cells)} cells; expected {len(HEAD)}, {' and '.join(HEAD)}")
    return rows[1:]
