"""Worker processes with bounded queues, and how far they are: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
QUEUED = 4  # tasks for each worker that wait or run
LINE_EVERY = 30.0  # seconds between lines where there is no terminal

_advance: Callable[[int], None] = lambda count: None  # noqa: E731


def advance(count: int) -> None:
    """Nothing; so many more units are done. Called by the functions that Workers run."""
    _advance(count)


class Workers:
    """Runs functions in worker processes, or in this process where there is one worker.

    Workers come from a server process that has loaded little, so that they start fast and inherit no threads.

    Args:
        preload: modules that the server loads once for all of them.
    """

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        self.workers, self._preload = workers, preload
        self._pool: ProcessPoolExecutor | None = None
        self._done: Synchronized[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def each(self, title: str, total: int, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """The result of the function for each task, in the order in which they end.

        Raises:
            ValueError: a worker process died; what the function raises is raised as it is.
        """
        with _Bar(title, total) as bar:
            if self.workers == 1:
                yield from self._here(bar, function, tasks)
            else:
                yield from self._there(bar, function, tasks)

    def _here(self, bar: _Bar, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        global _advance
        before, _advance = _advance, bar.advance
        try:
            for task in tasks:
                yield function(*task)
        finally:
            _advance = before

    def _there(self, bar: _Bar, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        pool, done = self._started()
        done.value = 0
        rest = iter(tasks)
        running: set[Future[T]] = set()
        try:
            while True:
                for task in islice(rest, QUEUED * self.workers - len(running)):
                    running.add(pool.submit(function, *task))
                if not running:
                    break
                ended, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.show(done.value)
                for future in ended:
                    yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"{bar.title}: a worker process died, most often for want of memory; "
                "run the same command again to go on, with fewer --workers"
            ) from error
        bar.show(done.value)

    def _started(self) -> tuple[ProcessPoolExecutor, Synchronized[int]]:
        if self._pool is None or self._done is None:
            context = get_context("forkserver")
            context.set_forkserver_preload(list(self._preload))
            self._done = context.Value("q", 0)
            self._pool = ProcessPoolExecutor(self.workers, context, _begin, (self._done,))
        return self._pool, self._done


def _begin(done: Synchronized[int]) -> None:
    """What a worker does first: it counts for all, leaves Ctrl-C to its parent, and ends when that is gone."""
    global _advance

    def count(more: int) -> None:
        with done.get_lock():
            done.value += more

    def follow(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    _advance = count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class _Bar:
    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        console = Console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=total)
        self._console = None if console.is_terminal else console
        self._count = 0
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, count: int) -> None:
        self.show(self._count + count)

    def show(self, count: int) -> None:
        self._count = count
        self._bar.update(self._task, completed=count)
        now = time.monotonic()
        if self._console and now - self._said > LINE_EVERY:
            self._said = now
            rate = count / (now - self._begun)
            self._console.print(f"{self.title}: {count:,} of {self.total:,}, {rate:,.0f}/s", highlight=False)
