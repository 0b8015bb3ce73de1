"""Many requests at once: none lost, none twice, whatever servers, budgets, signals and kills do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers import faulty
from helpers.faulty import KEY, Asked, Faulty, Said, answer, completion, failure
from skinvl.sources.asking import inquiry
from skinvl.sources.asking.budget import Budget, BudgetError
from skinvl.sources.asking.endpoint import Check, Endpoint, Settings
from skinvl.sources.asking.inquiry import AHEAD, Counts, ask_all
from skinvl.sources.asking.journal import Journal, JournalError, Spent, read
from skinvl.sources.asking.payload import Payloads
from skinvl.sources.asking.pool import Pool, RetryPolicy
from skinvl.sources.asking.refusals import Busy, EndpointError
from skinvl.sources.asking.request import Failure, Outcome, Reply, Request

QUICK = RetryPolicy(attempts=3, first=0.01, longest=0.04, patience=20.0)
HERE = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # where a child finds tests and helpers


def request(number: int, image: str | None = None) -> Request:
    return Request(f"{number:032x}", str(number), image, "general", "overview", "", "What is it?", {}, None)


def requests(numbers: Iterable[int]) -> Iterator[Request]:
    return (request(number) for number in numbers)


def ask(
    folder: Path,
    servers: Faulty | list[Faulty],
    asked: Iterable[Request],
    *,
    key: str | None = None,
    timeout: float = 5.0,
    concurrency: int = 8,
    retry: RetryPolicy = QUICK,
    **more: Any,
) -> Counts:
    """What became of the requests, with the folder as the source and its journals in `journal`."""

    async def go() -> Counts:
        found = servers if isinstance(servers, list) else [servers]
        endpoints = [Endpoint(one.address, Settings("tiny", timeout=timeout), key) for one in found]
        with Journal(folder / "journal" / "0-of-1.jsonl") as journal, Payloads(folder) as payloads:
            try:
                return await ask_all(
                    iter(asked), endpoints, journal, payloads, concurrency=concurrency, retry=retry, **more
                )
            finally:
                for one in endpoints:
                    await one.close()

    return asyncio.run(go())


def outcomes(folder: Path) -> dict[int, Outcome]:
    """What the journal has, by number; each once."""
    lines = b"".join(path.read_bytes() for path in (folder / "journal").glob("*.jsonl")).splitlines()
    found = {int(id, 16): outcome for id, outcome in read(folder / "journal")}
    assert len(found) == len(lines)
    return found


def is_its_own(folder: Path) -> bool:
    """Whether each reply is to the request under whose id it stands."""
    replies = [(id, outcome) for id, outcome in read(folder / "journal") if isinstance(outcome, Reply)]
    return all(json.loads(outcome.text)["answer"] == f"to {id}" for id, outcome in replies)


def numbered(server: Faulty) -> Counter[int]:
    """How often each request came, by number."""
    return Counter({int(key, 16): times for key, times in server.asked.items()})


def test_every_request_is_asked_once(tmp_path: Path) -> None:
    with faulty.running(lambda asked: Said(answer(asked).body, delay=0.02)) as server:
        counts = ask(tmp_path, server, requests(range(200)), concurrency=16)
        assert server.most == 16
        assert server.connections <= 16
    assert counts == Counts(answered=200, spent=Spent(200, 2000, 1000, 10, 5))
    assert numbered(server) == Counter(range(200))
    assert sorted(outcomes(tmp_path)) == list(range(200))
    assert is_its_own(tmp_path)


def test_what_has_an_outcome_is_not_asked_again(tmp_path: Path) -> None:
    with faulty.running() as server:
        ask(tmp_path, server, requests(range(0, 30, 2)))
        counts = ask(tmp_path, server, requests(range(30)))
        assert (counts.before, counts.answered) == (15, 15)
        assert counts.spent.requests == 30
        again = ask(tmp_path, server, requests(range(30)))
        assert (again.before, again.answered) == (30, 0)
    assert numbered(server) == Counter(range(30))


def test_an_id_that_comes_twice_is_asked_once(tmp_path: Path) -> None:
    with faulty.running() as server:
        ask(tmp_path, server, requests([1, 1, 2, 3, 3, 2, 1]), concurrency=1)
        ask(tmp_path, server, requests([4, 4, 4, 4]), concurrency=4)
    assert numbered(server) == Counter([1, 2, 3, 4])


def test_requests_are_taken_as_they_can_be_asked(tmp_path: Path) -> None:
    taken = 0

    def some() -> Iterator[Request]:
        nonlocal taken
        for number in range(300):
            taken += 1
            yield request(number)

    most = 0

    def plan(asked: Asked) -> Said:
        nonlocal most
        most = max(most, taken - sum(server.answered.values()))
        return answer(asked)

    with faulty.running(plan) as server:
        ask(tmp_path, server, some(), concurrency=4)
    assert taken == 300
    assert most <= 4 + AHEAD + 1 + 4  # an answer that was sent may not have been read yet


# Servers that fail

PASSING: list[Callable[[Asked], Said]] = [
    lambda asked: failure(429, "slow down"),
    lambda asked: failure(429, "slow down", headers={"Retry-After": "0.05"}),
    lambda asked: failure(503, "loading"),
    lambda asked: failure(500, "broke"),
    lambda asked: Said(answer(asked).body, cut=30),
    lambda asked: Said(answer(asked).body, cut=30, form="chunks"),
    lambda asked: Said(answer(asked).body, dropped=True),
    lambda asked: Said(b"<html>not JSON"),
    lambda asked: Said(b'{"choices": []}'),
    lambda asked: Said(answer(asked).body, delay=3.0),
    lambda asked: Said(answer(asked).body, drip=0.02),
]


def test_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    def plan(asked: Asked) -> Said:
        number = int(asked.key, 16)
        if number >= len(PASSING) or asked.before > number % 2:  # fails once or twice, then answers
            return answer(asked)
        return PASSING[number](asked)

    with faulty.running(plan) as server:
        counts = ask(tmp_path, server, requests(range(40, -1, -1)), timeout=0.5)
    assert (counts.answered, counts.failed, counts.stop) == (41, 0, "")
    assert sorted(outcomes(tmp_path)) == list(range(41))
    assert is_its_own(tmp_path)
    tries = numbered(server)
    assert {number: tries[number] for number in range(len(PASSING))} == {
        number: 2 + number % 2 for number in range(len(PASSING))
    }
    assert all(tries[number] == 1 for number in range(len(PASSING), 41))
    found = outcomes(tmp_path)
    assert found[3].attempts == 3
    assert found[20].attempts == 1
    assert counts.pauses >= 3
    assert counts.repeats == sum(1 + number % 2 for number in range(3, len(PASSING)))


def test_what_fails_for_good_is_given_up_and_never_asked_again(tmp_path: Path) -> None:
    def plan(asked: Asked) -> Said:
        return failure(500, "broke") if int(asked.key, 16) == 5 else answer(asked)

    with faulty.running(plan) as server:
        counts = ask(tmp_path, server, requests(range(20)))
        assert (counts.answered, counts.failed, counts.repeats) == (19, 1, 2)
        assert "500: broke" in counts.note
        again = ask(tmp_path, server, requests(range(20)))
        assert (again.before, again.answered, again.failed) == (20, 0, 0)
    assert server.asked[f"{5:032x}"] == QUICK.attempts
    assert outcomes(tmp_path)[5] == Failure(
        "request-failed", f"{server.address}: 500: broke (attempt 3 of 3)", QUICK.attempts
    )


def test_what_is_refused_is_asked_once(tmp_path: Path) -> None:
    def plan(asked: Asked) -> Said:
        return failure(400, "maximum context length is 2048 tokens") if int(asked.key, 16) % 3 == 1 else answer(asked)

    with faulty.running(plan) as server:
        counts = ask(tmp_path, server, requests(range(90)))
    assert (counts.answered, counts.failed) == (60, 30)
    assert numbered(server) == Counter(range(90))
    refused = outcomes(tmp_path)[7]
    assert refused == Failure("request-refused", f"{server.address}: 400: maximum context length is 2048 tokens", 1)


def test_a_few_that_are_all_refused(tmp_path: Path) -> None:
    with faulty.running(lambda asked: failure(400, "too long")) as server:
        counts = ask(tmp_path, server, requests(range(3)))
    assert (counts.answered, counts.failed) == (0, 3)
    assert len(outcomes(tmp_path)) == 3


def test_settings_that_the_server_always_refuses(tmp_path: Path) -> None:
    with faulty.running(lambda asked: failure(400, "temperature must be 1")) as server:
        with pytest.raises(EndpointError, match=r"none of the first 16 requests was answered.*temperature must be 1"):
            ask(tmp_path, server, requests(range(200)))
        assert sum(server.asked.values()) == 16
        assert outcomes(tmp_path) == {}
        server.plan = answer
        assert ask(tmp_path, server, requests(range(200))).answered == 200


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (failure(401, "Incorrect API key"), "401: Incorrect API key; see that the key"),
        (failure(404, "no such model"), "404: no such model; see that the address and the model"),
        (failure(429, "x", code="insufficient_quota"), "the account has nothing left"),
        (
            failure(429, "daily limit", headers={"Retry-After": "3600"}),
            "it asks to wait for 3,600 s. After that run the",
        ),
    ],
)
def test_what_is_wrong_for_all_is_told_once(tmp_path: Path, reply: Said, words: str) -> None:
    with faulty.running(lambda asked: reply) as server:
        with pytest.raises(EndpointError, match=words):
            ask(tmp_path, server, requests(range(500)), concurrency=64)
        assert sum(server.asked.values()) == 1  # the first goes alone
    assert outcomes(tmp_path) == {}


def test_a_key_that_ends_in_between_loses_no_answer(tmp_path: Path) -> None:
    def plan(asked: Asked) -> Said:
        number = int(asked.key, 16)
        return failure(401, "expired") if number == 20 else Said(answer(asked).body, delay=0.3 if number > 15 else 0)

    with faulty.running(plan) as server, pytest.raises(EndpointError, match="expired"):
        ask(tmp_path, server, requests(range(100)))
    assert len(outcomes(tmp_path)) == sum(server.answered.values())
    assert 20 not in outcomes(tmp_path)
    assert len(numbered(server)) < 40


def test_no_server(tmp_path: Path) -> None:
    with faulty.running() as server:
        pass
    began = time.monotonic()
    with pytest.raises(EndpointError, match=f"^{server.address}: .*; see that the server runs, and that the address"):
        ask(tmp_path, server, requests(range(9)))
    assert time.monotonic() - began < 5


def test_where_all_fails_nothing_new_is_begun(tmp_path: Path) -> None:
    with faulty.running(lambda asked: failure(500, "broke") if int(asked.key, 16) else answer(asked)) as server:
        retry = RetryPolicy(attempts=1_000, first=0.01, longest=0.01, patience=1.0)
        with pytest.raises(EndpointError, match="no answer to any request"):
            ask(tmp_path, server, requests(range(300)), retry=retry)
    assert len(server.asked) <= 1 + 8 + 8  # those that wait, and those under way when they were so many


def test_of_several_servers_the_emptiest_is_asked() -> None:
    pool = Pool([Endpoint(f"http://127.0.0.1:{port}", Settings("tiny")) for port in (1, 2)], 8)
    busy, idle = pool.lanes
    busy.window = idle.window = 4.0
    busy.running, idle.running = 2, 1
    assert pool.free(0.0) is idle
    busy.running, idle.running = 2, 3
    assert pool.free(0.0) is busy
    busy.running = 4
    assert pool.free(0.0) is idle
    idle.running = 4
    assert pool.free(0.0) is None


def test_several_servers_share_what_runs_at_once(tmp_path: Path) -> None:
    with faulty.running(lambda asked: Said(answer(asked).body, delay=0.01)) as server:
        ask(tmp_path, [server, server], requests(range(60)), concurrency=3)
        assert server.most == 3


def test_patience_begins_anew_with_every_answer(tmp_path: Path) -> None:
    def plan(asked: Asked) -> Said:
        return failure(500, "broke") if int(asked.key, 16) == 39 else Said(answer(asked).body, delay=0.02)

    with faulty.running(plan) as server:  # .8 s in all
        retry = RetryPolicy(attempts=2, first=0.01, longest=0.01, patience=0.4)
        counts = ask(tmp_path, server, requests(range(40)), concurrency=1, retry=retry)
    assert (counts.answered, counts.failed) == (39, 1)


def test_patience_ends(tmp_path: Path) -> None:
    broken = False

    def plan(asked: Asked) -> Said:
        return failure(500, "broke") if broken else answer(asked)

    with faulty.running(plan) as server:
        ask(tmp_path, server, requests(range(5)))
        broken = True
        retry = RetryPolicy(attempts=2, first=0.01, longest=0.01, patience=0.5)
        with pytest.raises(EndpointError, match=r"no answer to any request for \d s, the last time: .*: broke. Later"):
            ask(tmp_path, server, requests(range(100_000)), retry=retry)
        assert len(outcomes(tmp_path)) == 5  # what failed may be no fault of its own
        broken = False
        assert ask(tmp_path, server, requests(range(60))).answered == 55


def test_a_server_that_is_gone_for_a_while(tmp_path: Path) -> None:
    """Connections are refused in between, which costs no request one of its attempts."""
    with faulty.running() as server:
        gone = threading.Event()

        def plan(asked: Asked) -> Said:
            if sum(server.answered.values()) > 30:
                gone.set()
            return Said(answer(asked).body, delay=0.01)

        server.plan = plan
        waiting = threading.Thread(target=_gap, args=(server, gone))
        waiting.start()
        counts = ask(tmp_path, server, requests(range(150)))
        waiting.join()
    assert (counts.answered, counts.failed) == (150, 0)
    assert counts.pauses > 0
    assert is_its_own(tmp_path)


def _gap(server: Faulty, gone: threading.Event) -> None:
    gone.wait(10)
    server.close()
    time.sleep(0.5)
    server.open()


def test_retry_after_is_kept(tmp_path: Path) -> None:
    times: list[float] = []

    def plan(asked: Asked) -> Said:
        times.append(time.monotonic())
        if len(times) == 21:
            return failure(429, "slow down", headers={"Retry-After": "1"})
        return answer(asked)

    with faulty.running(plan) as server:
        counts = ask(tmp_path, server, requests(range(60)), concurrency=4)
    assert counts.answered == 60
    assert counts.pauses == 1
    gaps = [b - a for a, b in pairwise(times[20:])]
    assert max(gaps) >= 0.95
    assert sum(gap > 0.5 for gap in gaps) == 1  # nobody asks in between
    assert len([one for one in times[21:] if one < times[20] + 0.95]) <= 3  # that were under way


def test_a_server_with_a_limit_is_found_out(tmp_path: Path) -> None:
    """One that bears 4 requests at once gets few more, and all are answered."""

    def plan(asked: Asked) -> Said:
        return failure(429, "slow down") if server.now > 4 else Said(answer(asked).body, delay=0.02)

    with faulty.running(plan) as server:
        counts = ask(tmp_path, server, requests(range(200)), concurrency=64)
    assert (counts.answered, counts.failed) == (200, 0)
    assert sum(server.asked.values()) < 2.2 * 200
    assert set(server.answered.values()) == {1}


def test_an_image_that_cannot_be_read_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "good.jpg")
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no image")
    names = ["good", "bad", "none", "good"]
    with faulty.running() as server:
        counts = ask(tmp_path, server, [request(number, f"images/{name}.jpg") for number, name in enumerate(names)])
    assert (counts.answered, counts.failed) == (2, 2)
    assert numbered(server) == Counter([0, 3])
    found = outcomes(tmp_path)
    assert isinstance(found[1], Failure)
    assert isinstance(found[2], Failure)
    assert (found[1].rule, found[1].attempts) == ("unreadable-image", 0)
    assert found[2].rule == "missing-image"
    sent = server.requests[0].body["messages"][0]["content"][0]["image_url"]["url"]
    assert sent.startswith("data:image/jpeg;base64,")


def test_a_check_is_passed_on(tmp_path: Path) -> None:
    check: Check = lambda request, text: None if text.startswith("[") else "no list"  # noqa: E731
    with faulty.running(lambda asked: completion("[]" if asked.key.endswith("-repair") else "well")) as server:
        ask(tmp_path, server, requests(range(3)), check=check)
    found = outcomes(tmp_path)
    assert {(one.text, one.attempts) for one in found.values() if isinstance(one, Reply)} == {("[]", 2)}


# Several servers


def test_servers_share_the_work(tmp_path: Path) -> None:
    slow = lambda asked: Said(answer(asked).body, delay=0.02)  # noqa: E731
    with faulty.running(slow) as one, faulty.running(slow) as other:
        counts = ask(tmp_path, [one, other], requests(range(200)), concurrency=8)
    assert counts.answered == 200
    assert not set(one.asked) & set(other.asked)
    assert 60 < len(one.asked) < 140
    assert one.most <= 4
    assert other.most <= 4


def test_one_server_goes_on_where_another_pauses(tmp_path: Path) -> None:
    def limited(asked: Asked) -> Said:
        if sum(one.asked.values()) > 10:
            return failure(429, "slow down", headers={"Retry-After": "15"})
        return answer(asked)

    with faulty.running(limited) as one, faulty.running() as other:
        began = time.monotonic()
        counts = ask(tmp_path, [one, other], requests(range(200)))
        assert time.monotonic() - began < 10
    assert counts.answered == 200
    assert len(one.answered) == 10
    assert set((one.answered + other.answered).values()) == {1}


def test_how_long_to_wait() -> None:
    retry, draw = RetryPolicy(first=1.0, longest=20.0), random.Random(3)
    waits = [[retry.wait(before, draw) for _ in range(200)] for before in (1, 2, 3, 9)]
    for some, most in zip(waits, (1, 2, 4, 20), strict=True):
        assert most / 2 <= min(some) < 0.6 * most
        assert 0.9 * most < max(some) <= most
    assert [retry.wait(1, random.Random(3)) for _ in range(3)] == [retry.wait(1, random.Random(3)) for _ in range(3)]


def test_a_window_opens_narrows_and_widens() -> None:
    draw = random.Random(0)
    (lane,) = Pool([Endpoint("http://localhost:1", Settings("tiny"))], 64).lanes
    assert lane.window == 1
    lane.succeeded()
    assert lane.window == 64
    assert lane.rest(Busy("", 5.0), 100.0, QUICK, draw) >= 5.0
    assert lane.window == 32
    lane.rest(Busy("", 9.0), 101.0, QUICK, draw)  # asked before the pause
    assert lane.window == 32
    assert lane.until >= 110.0
    assert not lane.free(109.9)
    assert lane.free(112.0)
    for _ in range(33):
        lane.succeeded()
    assert 32.9 < lane.window < 33.1
    assert lane.pauses == 0
    for _ in range(9):
        lane.rest(Busy(""), lane.until, QUICK, draw)
    assert lane.window == 1
    for _ in range(10_000):
        lane.succeeded()
    assert lane.window == 64


# Budgets


def test_a_budget_in_requests(tmp_path: Path) -> None:
    with faulty.running() as server:
        counts = ask(tmp_path, server, requests(range(50)), budget=Budget(requests=20))
        assert counts.answered == 20 == sum(server.asked.values())
        assert counts.stop == (
            "the budget is spent (20 requests, 300 tokens); give a larger one and run the same command again to go on: "
            "what has an outcome in the journal is not asked again"
        )
        assert ask(tmp_path, server, requests(range(50)), budget=Budget(requests=20)).answered == 0
        assert ask(tmp_path, server, requests(range(50)), budget=Budget(requests=50)).stop == ""
    assert numbered(server) == Counter(range(50))


@pytest.mark.parametrize(
    ("budget", "most"),
    [
        (Budget(tokens=1_000), 66),
        (Budget(money=1.0, prompt_price=500.0, completion_price=1_000.0), 100),  # .01 for a request
    ],
)
def test_a_budget_in_tokens_or_money(tmp_path: Path, budget: Budget, most: int) -> None:
    with faulty.running(lambda asked: Said(answer(asked).body, delay=0.01)) as server:
        counts = ask(tmp_path, server, requests(range(500)), budget=budget, concurrency=32)
    assert counts.answered == most  # 15 tokens each: no more, and no fewer
    assert "the budget is spent" in counts.stop
    assert budget.forecast(counts.spent, 500).tokens == 7_500


def test_a_budget_bounds_what_runs_at_once(tmp_path: Path) -> None:
    """Replies of very different size: it is overdrawn by no more than one that is dearer than all before it."""
    sizes = random.Random(4)
    plan = lambda asked: completion("x", tokens=(10, sizes.randint(1, 40)), delay=0.01)  # noqa: E731
    with faulty.running(plan) as server:
        counts = ask(tmp_path, server, requests(range(500)), budget=Budget(tokens=2_000), concurrency=32)
    assert 2_000 - 50 < counts.spent.tokens <= 2_000


def test_before_the_first_answer_one_runs_alone() -> None:
    for budget in (Budget(tokens=10_000), Budget(money=9.0, prompt_price=1.0)):
        assert budget.allows(Spent(), 0)
        assert not budget.allows(Spent(), 1)
    assert Budget(requests=2).allows(Spent(), 1)


def test_a_budget_that_cannot_be_kept(tmp_path: Path) -> None:
    with faulty.running(lambda asked: completion("x", tokens=(0, 0))) as server:
        with pytest.raises(BudgetError, match="tells no token counts"):
            ask(tmp_path, server, requests(range(500)), budget=Budget(tokens=10), concurrency=32)
        assert sum(server.asked.values()) == 1
    with pytest.raises(BudgetError, match="needs the prices"):
        Budget(money=3.0)


def test_what_was_spent_in_words() -> None:
    spent = Spent(1_000, 2_000_000, 100_000, 9, 9)
    assert Budget().in_words(spent) == "1,000 requests, 2,100,000 tokens"
    priced = Budget(prompt_price=1.5, completion_price=6.0)
    assert priced.in_words(spent) == "1,000 requests, 2,100,000 tokens, 3.60 in money"
    assert priced.cost(priced.forecast(spent, 5_000)) == pytest.approx(18.0)
    assert priced.forecast(Spent(), 5_000).tokens == 0


# What ends it


def stopping(server: Faulty, after: int, times: int) -> Callable[[Asked], Said]:
    """A plan that interrupts this process so many times once so many requests came; answers take .4 s."""

    def plan(asked: Asked) -> Said:
        came = sum(server.asked.values())
        if after <= came < after + times:
            threading.Timer(0.1 * (came - after), os.kill, (os.getpid(), signal.SIGINT)).start()
        return Said(answer(asked).body, delay=0.4 if came > 1 else 0.0)

    return plan


def test_an_interrupt_waits_for_what_is_under_way(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with faulty.running() as server:
        server.plan = stopping(server, 6, 1)
        counts = ask(tmp_path, server, requests(range(500)))
        came = sum(server.asked.values())
        assert counts.stop.startswith("stopped; run the same command again")
        assert counts.given_up == 0
        assert came < 20
        assert counts.answered == came == len(outcomes(tmp_path))
        server.plan = answer
        assert ask(tmp_path, server, requests(range(40))).answered == 40 - came
    assert set(server.asked.values()) == {1}
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_waits_for_nothing(tmp_path: Path) -> None:
    with faulty.running() as server:
        server.plan = stopping(server, 6, 2)
        began = time.monotonic()
        counts = ask(tmp_path, server, requests(range(500)), timeout=60.0)
        assert time.monotonic() - began < 3
        assert counts.given_up > 0
        assert counts.answered + counts.given_up == sum(server.asked.values())
        assert counts.answered == len(outcomes(tmp_path))


def test_grace_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "GRACE", 0.3)

    def plan(asked: Asked) -> Said:
        if asked.key == f"{3:032x}":
            os.kill(os.getpid(), signal.SIGTERM)
        return Said(answer(asked).body, delay=60.0 if int(asked.key, 16) > 1 else 0.0)

    with faulty.running(plan) as server:
        began = time.monotonic()
        counts = ask(tmp_path, server, requests(range(500)))
        assert 0.3 < time.monotonic() - began < 5
    assert counts.given_up in (7, 8)  # one was answered before the signal, and another may have taken its place
    assert counts.answered == 2 == len(outcomes(tmp_path))


def test_a_full_disk_ends_it_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, left = Journal.append, [25]

    def full(self: Journal, id: str, outcome: Outcome) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise JournalError("no room")
        append(self, id, outcome)

    monkeypatch.setattr(Journal, "append", full)
    with faulty.running() as server, pytest.raises(JournalError, match=r"^no room$"):
        ask(tmp_path, server, requests(range(500)))
    assert len(outcomes(tmp_path)) == 25
    assert sum(server.asked.values()) < 25 + 3 * 8  # what cannot be kept is not asked


def test_an_error_of_the_requests_themselves_loses_no_answer(tmp_path: Path) -> None:
    def some() -> Iterator[Request]:
        yield from requests(range(40))
        raise ValueError("row 41 is broken")

    with faulty.running(lambda asked: Said(answer(asked).body, delay=0.05)) as server:
        with pytest.raises(ValueError, match="row 41 is broken"):
            ask(tmp_path, server, some())
        assert len(outcomes(tmp_path)) == sum(server.answered.values()) > 20


def test_only_what_is_on_the_disk_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "REPORTED", 0.0)
    sync, kept, told = Journal.sync, [0], []

    def slow(self: Journal) -> None:
        here = self.path.read_bytes().count(b"\n")
        time.sleep(0.1)
        sync(self)
        kept[0] = max(kept[0], here)

    monkeypatch.setattr(Journal, "sync", slow)
    with faulty.running() as server:
        ask(tmp_path, server, requests(range(3_000)), say=lambda counts: told.append((counts.answered, kept[0])))
    assert len(told) > 2
    assert all(answered <= on_disk for answered, on_disk in told)
    assert told[-1] == (3_000, 3_000)


def test_the_key_stands_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    bad = [failure(400, f"Bearer {KEY}"), failure(500, f"key {KEY[2:]}"), completion(f"my key is {KEY}")]

    def plan(asked: Asked) -> Said:
        number = int(asked.key, 16)
        return answer(asked) if number == 0 else bad[number % 3]

    told: list[Counts] = []
    with faulty.running(plan) as server:
        counts = ask(tmp_path, server, requests(range(30)), key=KEY, say=told.append)
        assert counts.failed == 20 - 1
        server.plan = lambda asked: failure(401, f"wrong key {KEY}")
        with pytest.raises(EndpointError) as caught:
            ask(tmp_path, server, requests(range(99)), key=KEY, say=told.append)
    assert all(one.headers["authorization"] == f"Bearer {KEY}" for one in server.requests)
    shown = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    shown += repr(told) + repr(caught.value) + str(caught.value) + caplog.text + repr(caught.value.__dict__)
    shown += "".join(f"{record.__dict__}" for record in caplog.records) + "".join(capfd.readouterr())
    assert "[key]" in shown
    for start in range(len(KEY) - 7):
        assert KEY[start : start + 8] not in shown


# Kills and size

CHILD = """
import asyncio
import sys
from pathlib import Path
sys.path[:0] = {here}
from test_inquiry import QUICK, requests
from skinvl.sources.asking.endpoint import Endpoint, Settings
from skinvl.sources.asking.inquiry import ask_all
from skinvl.sources.asking.journal import Journal
from skinvl.sources.asking.payload import Payloads

async def go():
    endpoint = Endpoint({address!r}, Settings("tiny"))
    folder = Path({folder!r})
    with Journal(folder / "journal" / "0-of-1.jsonl") as journal, Payloads(folder) as payloads:
        print("asking", flush=True)
        counts = await ask_all(requests(range({count})), [endpoint], journal, payloads, concurrency=16, retry=QUICK)
    print(counts.before, counts.answered, counts.failed, flush=True)

asyncio.run(go())
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """What has an outcome on the disk at a kill is never asked again; what was under way may be, under its own key."""
    count, draw = 1_500, random.Random(11)

    def plan(asked: Asked) -> Said:
        number = int(asked.key, 16)
        if number % 50 == 7:
            return failure(400, "refused")
        if number % 20 == 3 and asked.before == 0:
            return failure(500, "broke")
        return Said(answer(asked).body, delay=0.005 + 0.02 * (number % 3))

    kills = under_way = 0
    with faulty.running(plan) as server:
        code = CHILD.format(here=HERE, address=server.address, folder=str(tmp_path), count=count)
        while True:
            known = set(outcomes_so_far(tmp_path))
            asked_before = Counter(server.asked)
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == "asking\n"
                try:
                    child.wait(draw.uniform(0.0, 0.4))
                except subprocess.TimeoutExpired:
                    child.kill()
            asked_now = set((server.asked - asked_before).keys())
            assert not asked_now & {f"{number:032x}" for number in known}
            if child.returncode == 0:
                break
            assert child.returncode == -signal.SIGKILL
            kills += 1
            under_way += 16
    assert kills >= 5
    found = outcomes(tmp_path)  # each once
    assert sorted(found) == list(range(count))
    assert is_its_own(tmp_path)
    assert sum(isinstance(one, Failure) for one in found.values()) == count // 50
    assert sum(server.answered.values()) - len(server.answered) <= under_way
    print(f"{kills} kills; {sum(server.answered.values()) - len(server.answered)} answers were given twice")


def outcomes_so_far(folder: Path) -> list[int]:
    """The numbers of whole lines, as a killed process left them."""
    return [int(id, 16) for id, _ in read(folder / "journal")] if (folder / "journal").is_dir() else []


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4_000):
        path = tmp_path / "images" / f"{number}.jpg"
        if number < 8:
            Image.effect_noise((96, 96), 60).convert("RGB").save(path)
        else:
            path.hardlink_to(tmp_path / "images" / f"{number % 8}.jpg")
    code = f"""
import resource
import sys
sys.path[:0] = {HERE}
from pathlib import Path
from test_inquiry import ask, request
class Server: address = sys.argv[1]
told = []
def say(counts):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    told.append((counts.answered, pages * resource.getpagesize() / 2**20))
some = (request(number, f"images/{{number // 2}}.jpg") for number in range(8_000))
assert ask(Path({str(tmp_path)!r}), [Server], some, concurrency=64, say=say, timeout=300.0).answered == 8_000
early = next(size for done, size in told if done > 1_500)
print(told[-1][1] - early)
"""
    with faulty.running() as server:
        server.requests = Forgetful()
        said = subprocess.run(
            [sys.executable, "-c", code, server.address], capture_output=True, text=True, check=True
        ).stdout
    assert float(said) < 6  # MiB, for 6,500 requests; their ids take .1


class Forgetful(list[Asked]):
    """A list that stays empty."""

    def append(self, one: Asked) -> None:
        pass
