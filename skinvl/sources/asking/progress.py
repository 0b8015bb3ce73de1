"""How far the asking is, what it has cost and is going to cost: a line that changes, or one a minute in a log."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

from skinvl.sources.asking.budget import Budget
from skinvl.sources.asking.inquiry import Counts

LINES = 60.0  # seconds between two lines where there is no terminal


class AskingProgress:
    """Says it while its block runs, and once more when it ends.

    Args:
        expected: requests in all, at most; None is not known.
    """

    def __init__(self, console: Console, expected: int | None, budget: Budget) -> None:
        self._console, self._expected, self._budget = console, expected, budget
        self._stack = ExitStack()
        self._status: Status | None = None
        self._began = self._printed = time.monotonic()
        self._last = Counts()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._stack.enter_context(self._console.status("asking"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._console.print(self.line(self._last))

    def say(self, counts: Counts) -> None:
        """Prints the line of these counts, or changes it."""
        self._last = counts
        if self._status is not None:
            self._status.update(Text(self.line(counts)))  # what a server says is no markup
        elif time.monotonic() - self._printed > LINES:
            self._printed = time.monotonic()
            self._console.print(self.line(counts))

    def line(self, counts: Counts) -> str:
        """Counts, speed, what is left, and what all of it is going to cost."""
        new, seconds = counts.answered + counts.failed, time.monotonic() - self._began
        done, rate = counts.before + new, new / max(seconds, 1e-9)
        left = max(0, self._expected - done) if self._expected is not None else 0
        words = [f"{done:,} of {self._expected:,} done" if self._expected is not None else f"{done:,} done"]
        words += [f"of these {counts.failed:,} failed now"] * bool(counts.failed)
        if new:
            words.append(f"{rate:,.1f} a second")
            words += [f"about {left / rate / 60:,.0f} min left"] * bool(left)
        words.append(f"spent {self._budget.in_words(counts.spent)}")
        if self._expected is not None and left and counts.spent.requests:
            words.append(f"in all about {self._budget.in_words(self._budget.forecast(counts.spent, self._expected))}")
        words += [f"last trouble: {counts.note}"] * bool(counts.note)
        return "; ".join(words)
