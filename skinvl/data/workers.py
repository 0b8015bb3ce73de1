"""Worker processes with bounded queues, which show together how far they are."""

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

from skinvl.data.progress import Progress

T = TypeVar("T")
QUEUED = 4  # tasks for each worker that wait or run

_advance: Callable[[int], None] = lambda count: None  # noqa: E731


def advance(count: int) -> None:
    """Counts so many more units as done. Called by the functions that Workers run."""
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
        with Progress(title, total) as progress:
            if self.workers == 1:
                yield from self._here(progress, function, tasks)
            else:
                yield from self._there(progress, function, tasks)

    def _here(self, progress: Progress, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        global _advance
        before, _advance = _advance, progress.advance
        try:
            for task in tasks:
                yield function(*task)
        finally:
            _advance = before

    def _there(self, progress: Progress, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
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
                progress.show(done.value)
                for future in ended:
                    yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"{progress.title}: a worker process died, most often for want of memory; "
                "run the same command again to go on, with fewer --workers"
            ) from error
        progress.show(done.value)

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
