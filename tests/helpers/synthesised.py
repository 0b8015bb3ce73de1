"""A prepared source to ask about, and what a model that does as it is told would say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers import sources
from skinvl.data.example import Example, Facts, text, write
from skinvl.sources.asking.request import Reply

SAID = (
    "There is a brown patch with an uneven border and two shades of colour in the middle of the picture, "
    "and the skin around it looks calm; more cannot be told from a picture alone."
)
KNOWN = Facts("clinical", "melanoma", "malignant", "II", 63.0, "female", "back")


def reply(said: Any = SAID, finish: str = "stop") -> Reply:
    words = json.dumps({"answer": said} if isinstance(said, str) else said)
    return Reply(words, "m-2026", finish, 900, 80, 1_760_000_000.5)


def prepared(folder: Path, count: int = 4, tasks: Sequence[str] = ()) -> Path:
    """Photos of as many patients, the last of which is of the test split; and tasks of text alone."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        image = f"images/{number}.jpg"
        sources.photo(number, 64).save(folder / image)
        split = "test" if number == count - 1 else "train"
        turns = text("user", "What is it?", images=1), text("assistant", "A mole.")
        rows.append(Example(f"row-{number}", "drawn", (image,), turns, f"p-{number}", split, "CC-BY-4.0", KNOWN))
    turns_of = [(text("user", task), text("assistant", "Yes.")) for task in tasks]
    rows += [
        Example(f"task-{n}", "drawn", (), turns, f"t-{n}", "train", "CC-BY-NC-4.0") for n, turns in enumerate(turns_of)
    ]
    for split in {row.split for row in rows}:
        write(folder, split, [row for row in rows if row.split == split])
    sources.fingerprint(folder)
    card = {"split": "group", "alike": True, "title": "Drawn", "licence": "CC-BY-4.0", "citation": "Nobody 2026"}
    (folder / "card.json").write_text(json.dumps(card))
    return folder
