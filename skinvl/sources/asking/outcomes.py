"""The outcome of every request by its id, from all journals of an OUT: on disk, so that memory stays flat."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Self

from skinvl.sources.asking.request import Failure, Outcome, Reply


class Outcomes:
    """What came of requests. A reply outlives a failure, and of several replies the first one counts."""

    def __init__(self, folder: Path, outcomes: Iterable[tuple[str, Outcome]]) -> None:
        path = folder / f".outcomes-{os.getpid()}"
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;"
            "CREATE TABLE outcome (id BLOB PRIMARY KEY, reply INTEGER, value TEXT) WITHOUT ROWID;"
        )
        path.unlink()  # it lives on until it is closed, and no longer if we are killed
        self._database.executemany(
            "INSERT INTO outcome VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET reply = excluded.reply, "
            "value = excluded.value WHERE reply = 0 AND excluded.reply = 1",
            ((bytes.fromhex(id), isinstance(outcome, Reply), json.dumps(asdict(outcome))) for id, outcome in outcomes),
        )
        self._database.execute("COMMIT")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM outcome").fetchone()[0])

    def get(self, id: str) -> Outcome | None:
        """What came of a request; None where nothing has yet."""
        row = self._database.execute("SELECT reply, value FROM outcome WHERE id = ?", (bytes.fromhex(id),)).fetchone()
        if row is None:
            return None
        return (Reply if row[0] else Failure)(**json.loads(row[1]))
