"""The closed questions of MEDIQA-MAGIC 2025: for each encounter the number of an option under each of 27 ids, as JSON.

Nine questions, of which some may be answered several times: what an answer names fills the ids of its question in the
order of the options, and "Not mentioned", the last option, fills the others; it gives way to whatever else is named. An
encounter and its question stand in a row's id: ENC00863-CQID011. An answer that cannot be read names nothing.

The organisers' score counts "Not mentioned" in places that are left as an option like others, on both sides, so that it
is above option_credit, which leaves it out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skinvl.score.metrics.option_set import picked
from skinvl.score.predictions import Answer, key
from skinvl.score.submissions import SubmissionError

FOLDER, KIND = "answers", Answer
MAKE = "answer the closed questions first: skinvl generate RUN 'data.eval=[{source: dermavqa_das, split: test}]'"
PLACES = {  # how often each question may be answered
    **{"CQID010": 1, "CQID011": 6, "CQID012": 6, "CQID015": 1, "CQID020": 9},
    **{"CQID025": 1, "CQID034": 1, "CQID035": 1, "CQID036": 1},
}
IDS = tuple(f"{question}-{place:03d}" for question, places in PLACES.items() for place in range(1, places + 1))
NOT_MENTIONED = "not mentioned"
_ROW = re.compile(r"([^-]+)-(CQID\d{3})")


@dataclass(frozen=True, slots=True)
class Entry:
    """What fills the ids of one question of an encounter."""

    numbers: tuple[int, ...]  # of the options named, without "Not mentioned", at most as many as there are places
    last: int  # the number of "Not mentioned"
    is_read: bool
    left_out: int  # options named for which there was no place


def fits(settings: Mapping[str, Any], rows: Sequence[Answer]) -> bool:
    """Whether any row is a closed question of an encounter."""
    return any(row.options and _ROW.fullmatch(row.id) for row in rows)


def content(rows: Sequence[Answer]) -> tuple[str, str]:
    """The JSON, and how many encounters are in it, and what of their answers is not.

    Raises:
        SubmissionError: an encounter has not each question once, or a question not "Not mentioned" as its last option.
    """
    encounters = _encounters(rows)
    whole = []
    for name, entries in encounters.items():
        filled: dict[str, str | int] = {"encounter_id": name}
        for question, entry in entries.items():
            padded = [*entry.numbers, *[entry.last] * (PLACES[question] - len(entry.numbers))]
            filled |= {f"{question}-{place:03d}": number for place, number in enumerate(padded, 1)}
        whole.append(filled)
    every = [entry for entries in encounters.values() for entry in entries.values()]
    unread, cut = sum(not entry.is_read for entry in every), sum(entry.left_out for entry in every)
    what = f"{len(whole):,} encounters, {len(every):,} questions, {unread:,} answers unread"
    return json.dumps(whole, indent=1) + "\n", what + (f", {cut:,} options too many left out" if cut else "")


def check(text: str, rows: Sequence[Answer]) -> None:
    """Reads the JSON back.

    Raises:
        SubmissionError: it has not each encounter once, with all ids and what the answers name.
    """
    encounters = _encounters(rows)
    whole = json.loads(text)
    if [filled["encounter_id"] for filled in whole] != [*encounters]:
        raise SubmissionError(f"the file does not have each of {len(encounters)} encounters once")
    for filled in whole:
        name = filled.pop("encounter_id")
        if [*filled] != [*IDS]:
            raise SubmissionError(f"the file has {', '.join(filled)} of {name}; expected {', '.join(IDS)}")
        for question, entry in encounters[name].items():
            numbers = {number for place, number in filled.items() if place.startswith(question)}
            if numbers - {entry.last} != {*entry.numbers}:
                raise SubmissionError(f"the file has {sorted(numbers)} of {name} {question}, not {entry.numbers}")


def _encounters(rows: Sequence[Answer]) -> dict[str, dict[str, Entry]]:
    """Encounter → question → what fills its ids, in the order of PLACES."""
    encounters: dict[str, dict[str, Entry]] = {}
    for row in rows:
        match = _ROW.fullmatch(row.id)
        if match is None or match[2] not in PLACES:
            raise SubmissionError(f"{key(row)}: no closed question of an encounter; expected such as ENC00863-CQID011")
        if not row.options or row.options[-1].casefold() != NOT_MENTIONED:
            raise SubmissionError(f"{key(row)}: its options are {list(row.options)}; expected 'Not mentioned' the last")
        if match[2] in encounters.setdefault(match[1], {}):
            raise SubmissionError(f"{key(row)}: answered twice; name the file of one set")
        encounters[match[1]][match[2]] = _entry(row, PLACES[match[2]])
    for name, entries in encounters.items():
        if missing := [question for question in PLACES if question not in entries]:
            raise SubmissionError(
                f"{name}: no answer to {', '.join(missing)}; every encounter needs all of {', '.join(PLACES)}: prepare "
                "the part das of the whole split, and generate again"
            )
    return {name: {question: entries[question] for question in PLACES} for name, entries in encounters.items()}


def _entry(row: Answer, places: int) -> Entry:
    last = len(row.options) - 1
    numbers = picked(row.answer, row) if row.answer is not None else None
    named = sorted((numbers or frozenset()) - {last})
    return Entry(tuple(named[:places]), last, numbers is not None, len(named[places:]))
