"""The servers that are asked together: which has room, which is left alone for a while, and how much each can bear."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from skinvl.sources.asking.endpoint import Endpoint
from skinvl.sources.asking.refusals import Busy


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to try, in seconds."""

    attempts: int = 6  # of one request, before it is given up
    first: float = 1.0  # the first wait; each further one is twice as long
    longest: float = 60.0
    patience: float = 900.0  # without an answer to any request, before all is given up

    def wait(self, before: int, draw: random.Random) -> float:
        """Seconds until the next attempt, after so many; drawn, so that not all come back at once."""
        longest: float = min(self.longest, self.first * 2.0 ** (before - 1))
        return longest * draw.uniform(0.5, 1.0)


@dataclass(slots=True)
class Lane:
    """One server in the pool.

    Its window opens at the first answer, so that a wrong key or address is met by one request and not by all. It halves
    whenever the server is busy, and widens by one with every windowful of answers: additive increase, multiplicative
    decrease, as TCP does (Chiu and Jain 1989).
    """

    endpoint: Endpoint
    share: int  # requests at once
    window: float = 1.0
    running: int = 0
    until: float = 0.0  # it is left alone, on the clock of the event loop
    pauses: int = 0  # since its last answer
    answered: bool = False

    def free(self, now: float) -> bool:
        """Whether it may be asked."""
        return self.running < int(self.window) and self.until <= now

    def succeeded(self) -> None:
        """Widens the window, since the server has answered."""
        self.window = min(self.share, self.window + 1 / self.window) if self.answered else self.share
        self.answered, self.pauses = True, 0

    def rest(self, busy: Busy, now: float, retry: RetryPolicy, draw: random.Random) -> float:
        """Seconds for which it is left alone."""
        if self.until <= now:  # else this was asked before the pause, and says nothing new
            self.pauses += 1
            self.window = max(1.0, self.window / 2)
        wait = retry.wait(self.pauses, draw)
        if busy.wait is not None:
            wait = busy.wait + wait * 0.1  # never earlier than it asked for, and not all clients at once
        self.until = max(self.until, now + wait)
        return self.until - now


class Pool:
    """Lanes, of which the emptiest is asked first."""

    def __init__(self, endpoints: Sequence[Endpoint], concurrency: int) -> None:
        share = -(-concurrency // len(endpoints))
        self.lanes = [Lane(endpoint, share) for endpoint in endpoints]

    def free(self, now: float) -> Lane | None:
        """The lane to ask next, if there is one."""
        lanes = [lane for lane in self.lanes if lane.free(now)]
        return min(lanes, key=lambda lane: lane.running / lane.window, default=None)

    def next_free(self, now: float) -> float | None:
        """When the first pause ends, if any lane is left alone."""
        return min((lane.until for lane in self.lanes if lane.until > now), default=None)
