"""Long work shows how far it is: a bar on a terminal, and in a log a line every so often, even in one long step."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from rich.console import Console

from skinvl.data import workers
from skinvl.data.progress import Progress, share
from skinvl.data.workers import Workers


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=False, width=80), file


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_line_says_done_all_rate_and_time_left() -> None:
    clock = Clock()
    progress = Progress("answers/demo", 1_500, log()[0], clock=clock)
    assert progress.line() == "answers/demo: 0 of 1,500"
    clock.now += 30
    assert progress.line() == "answers/demo: 0 of 1,500"  # of nothing there is no rate
    progress.advance(400)
    progress.advance(200)
    assert progress.line() == "answers/demo: 600 of 1,500, 20/s, 0:00:45 left"
    clock.now += 5_970
    assert progress.line() == "answers/demo: 600 of 1,500, 0.1/s, 2:30:00 left"
    progress.show(1_500)
    assert progress.line() == "answers/demo: 1,500 of 1,500, 0.25/s, 0:00:00 left"


def test_what_was_done_before_is_no_speed() -> None:
    clock = Clock()
    progress = Progress("steps", 400, log()[0], done=200, clock=clock)
    clock.now += 10
    assert progress.line() == "steps: 200 of 400"
    progress.show(300)
    assert progress.line() == "steps: 300 of 400, 10/s, 0:00:10 left"


def test_a_log_gets_lines_while_nothing_ends() -> None:
    console, file = log()
    with Progress("steps [1]", 7, console, every=0.01) as progress:
        until(lambda: file.getvalue().count("steps [1]: 0 of 7\n") >= 3)
        progress.advance(7)
        until(lambda: "steps [1]: 7 of 7, " in file.getvalue())
    said = file.getvalue()
    time.sleep(0.05)
    assert file.getvalue() == said  # nothing after its end
    assert "\r" not in said


def test_short_work_says_nothing_in_a_log() -> None:
    console, file = log()
    with Progress("steps", 7, console) as progress:
        progress.advance(7)
    assert file.getvalue() == ""


def test_a_quiet_console_shows_nothing() -> None:
    file = io.StringIO()
    for terminal in (False, True):
        with Progress("x", 7, Console(file=file, quiet=True, force_terminal=terminal), every=0.001) as progress:
            progress.advance(7)
            time.sleep(0.02)
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress("steps [1]", 1_234, console, every=0.001) as progress:
        progress.advance(1_234)
        time.sleep(0.02)
    said = file.getvalue()
    assert "steps [1]" in said
    assert "1234/1234" in said
    assert " of " not in said


def test_a_rank_says_that_it_counts_its_own_share() -> None:
    assert share("answers/demo", 0, 1) == "answers/demo"
    assert share("answers/demo", 0, 2) == "answers/demo, share of rank 0 of 2"


def test_workers_count_for_all_of_them() -> None:
    shown = []

    def counted(count: int) -> int:
        workers.advance(count)
        return count

    class Spy(Progress):
        def show(self, done: int) -> None:
            shown.append(done)
            super().show(done)

    with Workers(1) as pool:
        before, workers.Progress = workers.Progress, Spy  # type: ignore[misc]
        try:
            assert list(pool.each("rows", 6, counted, [(1,), (2,), (3,)])) == [1, 2, 3]
        finally:
            workers.Progress = before  # type: ignore[misc]
    assert shown == [1, 3, 6]
