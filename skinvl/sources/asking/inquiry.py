"""Asks servers many requests at once, until every one has an outcome in the journal.

What can be lost is known: a request that was under way when the process was killed has no outcome, and is asked again
by the next run with the same Idempotency-Key; a server that knows it answers from what it has, another one is paid
twice for it. Nothing else is asked twice.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count

from skinvl.data.pixels import ImageError
from skinvl.sources.asking.budget import Budget
from skinvl.sources.asking.endpoint import Check, Endpoint
from skinvl.sources.asking.journal import Journal, JournalError, Spent
from skinvl.sources.asking.payload import Payloads
from skinvl.sources.asking.pool import Lane, Pool, RetryPolicy
from skinvl.sources.asking.refusals import Busy, EndpointError, Refused, Trouble
from skinvl.sources.asking.request import Failure, Outcome, Reply, Request

AHEAD = 16  # requests whose images are being made before it is their turn
GRACE = 20.0  # seconds that what is under way has when all is stopped
SYNCED = 0.05  # seconds between two calls to the disk
REPORTED = 0.5  # seconds between two words on how far it is
SKIPPED = 500  # requests that are looked at before what has arrived meanwhile is seen to
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REFUSED_AT_ONCE = 16  # first requests that a server refuses before it is taken for a fault of the settings
AGAIN = "run the same command again to go on: what has an outcome in the journal is not asked again"


@dataclass(slots=True)
class Counts:
    """What became of the requests; only what is on the disk counts."""

    before: int = 0  # had an outcome when it began
    answered: int = 0
    failed: int = 0
    repeats: int = 0  # attempts beyond the first
    pauses: int = 0  # times that a server was left alone
    given_up: int = 0  # under way when it was stopped: they are asked again by the next run
    spent: Spent = field(default_factory=Spent)  # by the journal in all, runs before this one included
    note: str = ""  # the last thing that went wrong
    stop: str = ""  # why it ended before all was asked, and how to go on


@dataclass(order=True, slots=True)
class _Task:
    """A request and how it fared; in the order in which those that failed are due."""

    due: float
    number: int
    request: Request = field(compare=False)
    image: asyncio.Future[str] | None = field(compare=False)
    attempts: int = field(default=0, compare=False)


async def ask_all(
    requests: Iterator[Request],
    endpoints: Sequence[Endpoint],
    journal: Journal,
    payloads: Payloads,
    *,
    concurrency: int,
    budget: Budget | None = None,
    check: Check | None = None,
    retry: RetryPolicy | None = None,
    seed: int = 0,
    say: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """What became of the requests that had no outcome in the journal; now they have one, unless `stop` says why not.

    A request that a server refuses, that failed too often or whose image cannot be read becomes a Failure, and is never
    asked again. SIGINT and SIGTERM stop it: what is under way gets some seconds, and a second signal ends that too.

    Args:
        requests: taken as they can be asked, never all at once.
        concurrency: requests under way at once, of all endpoints together.
        check: finds fault with the form of a reply, which then gets one more turn.
        say: is called with the counts every half second or so.

    Raises:
        EndpointError: an address, key, model or account is wrong, or nothing was answered for too long. All that
            arrived is in the journal, and requests that failed since the last answer are asked again.
        JournalError: the journal cannot be written.
        BudgetError: the server does not tell what the budget is in.
    """
    inquiry = _Inquiry(
        requests, Pool(endpoints, concurrency), journal, payloads, concurrency, budget or Budget(), check,
        retry or RetryPolicy(), random.Random(seed), say,
    )  # fmt: skip
    with _signals(inquiry.interrupt):
        return await inquiry.run()


class _Inquiry:
    """The loop that starts requests, and what becomes of each."""

    def __init__(
        self, requests: Iterator[Request], pool: Pool, journal: Journal, payloads: Payloads, concurrency: int,
        budget: Budget, check: Check | None, retry: RetryPolicy, draw: random.Random, say: Callable[[Counts], None],
    ) -> None:  # fmt: skip
        self.requests, self.pool, self.journal, self.payloads = requests, pool, journal, payloads
        self.concurrency, self.budget, self.check, self.retry, self.draw = concurrency, budget, check, retry, draw
        self.say, self.counts, self.reported = say, Counts(), 0.0
        self.loop = asyncio.get_running_loop()
        self.changed, self.dirty = asyncio.Event(), asyncio.Event()
        self.ahead: deque[_Task] = deque()
        self.waiting: list[_Task] = []  # a heap of those that are asked again
        self.running: set[asyncio.Task[None]] = set()
        self.taken: set[str] = set()  # ids that need not be taken again though the journal has them not
        self.held: list[tuple[str, Failure]] = []  # may be the fault of a server, until one answers
        self.numbers = count()
        self.exhausted = self.stopped = self.hurried = self.answers = False
        self.error: BaseException | None = None
        self.since = self.loop.time()  # the last answer

    async def run(self) -> Counts:
        syncing = asyncio.create_task(self._sync_always())
        syncing.add_done_callback(self._ended)
        try:
            while not self.stopped:
                now = self.loop.time()
                self._start(now)
                if not (self.running or self.waiting or self.ahead) and self.exhausted:
                    self._record_held()
                    break
                await self._change(now)
        finally:
            await self._drain()
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)
            self.journal.sync()
            self.say(self._counted())
        if self.error is not None:
            raise self.error
        return self._counted()

    def interrupt(self) -> None:
        """Asks no more; when called again, gives up what is under way."""
        self.hurried = self.stopped
        self._stop(f"stopped; {AGAIN}")

    def _stop(self, why: str) -> None:
        self.stopped, self.counts.stop = True, self.counts.stop or why
        self.changed.set()

    def _start(self, now: float) -> None:
        """Asks as much as servers and budget allow."""
        self._take()
        while not self.stopped and len(self.running) < self.concurrency and (lane := self.pool.free(now)):
            again = bool(self.waiting) and self.waiting[0].due <= now
            # Those that wait are bounded too: where all fails, nothing new is begun.
            if not again and (not self.ahead or len(self.waiting) >= self.concurrency):
                return

            # What runs may still cost as much as the dearest so far.
            if not self.budget.allows(self.journal.spent, len(self.running)):
                if not self.running:
                    spent = self.budget.in_words(self.journal.spent)
                    self._stop(f"the budget is spent ({spent}); give a larger one and {AGAIN}")
                return

            task = heapq.heappop(self.waiting) if again else self.ahead.popleft()
            lane.running += 1
            asking = self.loop.create_task(self._ask(task, lane))
            self.running.add(asking)
            asking.add_done_callback(self._ended)
            self._take()

    def _take(self) -> None:
        """Takes the next requests from the programme, and has their images made."""
        for _ in range(SKIPPED):
            if self.exhausted or len(self.ahead) >= AHEAD:
                return
            request = next(self.requests, None)
            if request is None:
                self.exhausted = True
            elif request.id in self.journal.ids:
                self.counts.before += 1
            elif request.id not in self.taken:
                self.taken.add(request.id)
                image = self.payloads.start(request.image) if request.image else None
                self.ahead.append(_Task(0.0, next(self.numbers), request, image))
        self.changed.set()  # to go on soon, when what has arrived meanwhile is seen to

    async def _change(self, now: float) -> None:
        """Waits until there may be something to start that there was not at the time `now`."""
        times = [self.pool.next_free(now), *(task.due for task in self.waiting[:1])]
        await self._wait(min((moment for moment in times if moment is not None and moment > now), default=None))

    async def _wait(self, until: float | None) -> None:
        await asyncio.sleep(0)  # an event that is set is not waited for
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self.changed.wait()
        self.changed.clear()

    async def _drain(self) -> None:
        """Waits for what is under way, and gives it up after a while."""
        end = self.loop.time() + GRACE
        while self.running and not self.hurried and self.loop.time() < end:
            await self._wait(end)
        self.counts.given_up = len(self.running)
        left = list(self.running)
        for asking in left:
            asking.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _ended(self, asking: asyncio.Task[None]) -> None:
        self.running.discard(asking)
        self.changed.set()
        if not asking.cancelled() and (error := asking.exception()):
            self.error = self.error or error
            self._stop("")
            self.hurried = self.hurried or isinstance(self.error, JournalError)  # no answer could be kept

    async def _ask(self, task: _Task, lane: Lane) -> None:
        try:
            image = await task.image if task.image else None
            reply = await lane.endpoint.ask(task.request, image, self.check)
        except ImageError as error:
            self._record(task.request.id, Failure(error.rule, error.detail, task.attempts))
        except Refused as error:
            self._refused(task, str(error))
        except Trouble as error:
            self._failed(task, str(error))
        except Busy as error:
            self._rest(task, lane, error)
        else:
            lane.succeeded()
            self.since, self.answers = self.loop.time(), True
            self._record_held()
            self._record(task.request.id, replace(reply, attempts=reply.attempts + task.attempts))
        finally:
            lane.running -= 1

    def _refused(self, task: _Task, detail: str) -> None:
        failure = Failure("request-refused", detail, task.attempts + 1)
        self.counts.note = detail
        if self.answers:
            self.since = self.loop.time()
            self._record(task.request.id, failure)
            return
        self.held.append((task.request.id, failure))
        if len(self.held) >= REFUSED_AT_ONCE:
            raise EndpointError(
                f"none of the first {REFUSED_AT_ONCE} requests was answered, the last one for this reason: {detail}. "
                "None is in the journal; see what the model can do, and run the command again"
            )

    def _failed(self, task: _Task, detail: str) -> None:
        task.attempts += 1
        self.counts.note = detail
        self._patience(detail)
        if task.attempts >= self.retry.attempts:
            detail = f"{detail} (attempt {task.attempts} of {self.retry.attempts})"
            self.held.append((task.request.id, Failure("request-failed", detail, task.attempts)))
            return
        self.counts.repeats += 1
        self._again(task, self.loop.time() + self.retry.wait(task.attempts, self.draw))

    def _rest(self, task: _Task, lane: Lane, busy: Busy) -> None:
        now = self.loop.time()
        if not (busy.reached or lane.answered):
            raise EndpointError(f"{busy}; see that the server runs, and that the address is right")
        if busy.wait is not None and busy.wait > self.retry.patience:
            raise EndpointError(f"{busy}; it asks to wait for {busy.wait:,.0f} s. After that {AGAIN}")
        self._patience(str(busy))
        wait = lane.rest(busy, now, self.retry, self.draw)
        self.counts.pauses += 1
        self.counts.note = f"{busy}; left alone for {wait:.0f} s"
        self._again(task, now)

    def _again(self, task: _Task, due: float) -> None:
        task.due = due
        heapq.heappush(self.waiting, task)

    def _patience(self, detail: str) -> None:
        silence = self.loop.time() - self.since
        if silence > self.retry.patience:
            raise EndpointError(
                f"no answer to any request for {silence:,.0f} s, the last time: {detail}. Later {AGAIN}"
            )

    def _record_held(self) -> None:
        """Records what failed, since a server has answered others."""
        while self.held:
            self._record(*self.held.pop())

    def _record(self, id: str, outcome: Outcome) -> None:
        self.journal.append(id, outcome)
        self.taken.discard(id)
        if isinstance(outcome, Reply):
            self.counts.answered += 1
        else:
            self.counts.failed += 1
        self.dirty.set()

    async def _sync_always(self) -> None:
        """Takes what arrives to the disk, without end, and reports it once it is there."""
        while True:
            await self.dirty.wait()
            self.dirty.clear()
            counts = self._counted()
            await asyncio.to_thread(self.journal.sync)
            if self.loop.time() - self.reported > REPORTED:
                self.reported = self.loop.time()
                self.say(counts)
            await asyncio.sleep(SYNCED)

    def _counted(self) -> Counts:
        return replace(self.counts, spent=replace(self.journal.spent))


@contextmanager
def _signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """What ends a process calls this while the block runs; elsewhere than in the main thread nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in ENDS:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in ENDS:
            loop.remove_signal_handler(number)
