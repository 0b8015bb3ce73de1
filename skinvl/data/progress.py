"""How far long work is: a bar on a terminal, and in a log file a line every 30 seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Shows, while its block runs, what is done of all, how fast that goes and how long the rest will take.

    Args:
        title: what is counted, and whose share it is where several processes work.
        done: units that were done before, by an earlier process.
        console: where it is shown (default: stdout); nothing is where it is quiet.
        every: seconds between two lines; they come from a thread of their own, so that one long step is no silence.
    """

    def __init__(
        self,
        title: str,
        total: int,
        console: Console | None = None,
        done: int = 0,
        every: float = LINE_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.done = title, total, done
        self._console = console or Console(highlight=False, markup=False)
        self._before, self._clock, self._begun = done, clock, clock()
        title_column = TextColumn("{task.description}", markup=False)
        columns = (title_column, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        silent = self._console.quiet or not self._console.is_terminal
        self._bar = Bar(*columns, console=self._console, disable=silent)
        self._task = self._bar.add_task(title, total=total, completed=done)
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, args=(every,), daemon=True)

    def __enter__(self) -> Self:
        self._bar.start()
        if self._bar.disable and not self._console.quiet:
            self._lines.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self._ended.set()
        if self._lines.ident is not None:
            self._lines.join()

    def advance(self, count: int) -> None:
        """So many more units are done."""
        self.show(self.done + count)

    def show(self, done: int) -> None:
        """So many units are done in all."""
        self.done = done
        self._bar.update(self._task, completed=done)

    def line(self) -> str:
        """What is done, of all, and, once anything is, the rate and the time left."""
        text = f"{self.title}: {self.done:,} of {self.total:,}"
        return f"{text}, {speed}" if (speed := self.speed()) else text

    def speed(self) -> str:
        """Units a second and the time left, as text; nothing before the first unit is done."""
        new, seconds = self.done - self._before, self._clock() - self._begun
        if new <= 0 or seconds <= 0:
            return ""
        left = max(0, self.total - self.done) * seconds / new
        return f"{_rate(new / seconds)}, {timedelta(seconds=round(left))} left"

    def _print_lines(self, every: float) -> None:
        while not self._ended.wait(every):
            self._console.print(self.line(), soft_wrap=True, markup=False, highlight=False)


def share(title: str, rank: int, ranks: int) -> str:
    """The title of one process's progress: where there are several, it says whose share that is."""
    return title if ranks == 1 else f"{title}, share of rank {rank} of {ranks}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed) if task.speed else "")


def _rate(units: float) -> str:
    return f"{units:,.0f}/s" if units >= 10 else f"{units:.2g}/s"
