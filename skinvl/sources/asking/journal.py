"""The replies that were paid for, one JSON line each, which outlive whatever kills the process that asks.

A line is handed to the system as soon as a reply arrives, so that a killed process loses none; `sync` takes many lines
to the disk at once, so that a power cut loses at most those since the last one. What was in flight at that moment has
no line and is asked again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from skinvl.recipe.files import sync
from skinvl.sources.asking.request import Failure, Outcome, Reply

WIDTH = 16  # bytes of an id
MERGED = 8_192  # ids that are kept as Python objects before they join the array


class JournalError(ValueError):
    """A journal that cannot be read, written or had for oneself."""


@dataclass(slots=True)
class Spent:
    """What replies have cost; tokens are 0 where a server tells none."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_most: int = 0  # of one request
    completion_most: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, reply: Reply) -> None:
        """Counts one more reply."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.prompt_most = max(self.prompt_most, reply.prompt_tokens)
        self.completion_most = max(self.completion_most, reply.completion_tokens)


class Ids:
    """A set of ids in 16 bytes each, exact; a set of strings takes ten times as much."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, f"S{WIDTH}")
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, id: str) -> bool:
        key = bytes.fromhex(id)
        if key in self._recent:
            return True
        index = int(np.searchsorted(self._sorted, np.bytes_(key)))
        # NumPy gives bytes without the zeros at their end; of one width, they stay apart all the same.
        return index < len(self._sorted) and self._sorted[index] == key.rstrip(b"\0")

    def add(self, id: str) -> None:
        """Adds an id, which the set does not hold yet."""
        self._recent.add(bytes.fromhex(id))
        if len(self._recent) >= MERGED:
            more = np.array(sorted(self._recent), f"S{WIDTH}")
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, more), more)
            self._recent.clear()


class Journal:
    """An append-only file of outcomes with one writer; also knows the ids in the other journals of its folder.

    Attributes:
        ids: what has an outcome, in any journal of the folder.
        spent: what the replies in this file have cost.

    Raises:
        JournalError: another process writes to it, or a line is not one of a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._claim()
            self.ids, self.spent = Ids(), Spent()
            for other in sorted(path.parent.glob("*.jsonl")):
                for id, outcome in _lines(other):
                    if id not in self.ids:  # as where the number of shards was changed while one was at work
                        self.ids.add(id)
                    if other == path and isinstance(outcome, Reply):
                        self.spent.add(outcome)
            self._cut()
            sync(path.parent)
        except ValueError:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.sync()
        os.close(self._file)

    def append(self, id: str, outcome: Outcome) -> None:
        """Writes the outcome, which then outlives this process, and after `sync` the machine.

        Raises:
            JournalError: the id has an outcome, or there is no room for the line, of which then nothing is left.
        """
        if id in self.ids:
            raise JournalError(f"{self.path}: {id} has an outcome already; expected one for each request")
        name = "reply" if isinstance(outcome, Reply) else "failure"
        line = orjson.dumps({"id": id, name: outcome}, option=orjson.OPT_APPEND_NEWLINE)
        size, rest = os.fstat(self._file).st_size, memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, size)
            raise JournalError(
                f"{self.path}: {error.strerror}; make room and run the same command again, which asks only what has "
                "no outcome in the journal"
            ) from error
        self.ids.add(id)
        if isinstance(outcome, Reply):
            self.spent.add(outcome)

    def sync(self) -> None:
        """Takes every line so far to the disk. May run in another thread than `append`.

        Raises:
            JournalError: the disk does not take it.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise JournalError(f"{self.path}: {error.strerror}; what was written last may be lost") from error

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(
                f"{self.path}: another skinvl synth writes to it; wait for it, or give each its own --shard"
            ) from None

    def _cut(self) -> None:
        """Cuts off a last line that a killed process left unfinished."""
        size = os.fstat(self._file).st_size
        whole = size
        step = 1 << 16
        while whole and os.pread(self._file, 1, whole - 1) != b"\n":
            start = max(0, whole - step)
            whole = start + os.pread(self._file, whole - start, start).rfind(b"\n") + 1
        if whole < size:
            os.ftruncate(self._file, whole)
            os.fsync(self._file)


def read(folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Each id with its outcome, from all journals of the folder; the first where two shards asked the same.

    Raises:
        JournalError: a line is not one of a journal.
    """
    seen = Ids()
    for path in sorted(folder.glob("*.jsonl")):
        for id, outcome in _lines(path):
            if id not in seen:
                seen.add(id)
                yield id, outcome


def _lines(path: Path) -> Iterator[tuple[str, Outcome]]:
    """The outcomes of a file, without a last line that is not finished.

    Not by `read_json_lines`: there may be millions, which orjson reads several times faster.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _outcome(orjson.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise JournalError(
                    f"{path}:{number} not a line of a journal ({type(error).__name__}: {error}); restore the file, or "
                    "delete the line to have its request asked and paid for again"
                ) from error


def _outcome(line: dict[str, Any]) -> tuple[str, Outcome]:
    id = line["id"]
    if len(bytes.fromhex(id)) != WIDTH:
        raise ValueError(f"id {id!r}; expected {2 * WIDTH} hexadecimal digits")
    return id, Reply(**line["reply"]) if "reply" in line else Failure(**line["failure"])
