"""An OpenAI-compatible server on loopback that fails as it is told, and notes what it was asked and answered."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-test-3f9a1c77d2e84b06a5"


@dataclass(frozen=True)
class Asked:
    """One request: its Idempotency-Key, how often that came before, its path, headers in lower case, and its body."""

    key: str
    before: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """One reply, and how it goes wrong."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before anything is sent
    cut: int | None = None  # bytes of the body after which the connection is closed
    drip: float = 0.0  # seconds between the bytes of the body
    form: str = "length"  # how its end is told: length, chunks, or close
    dropped: bool = False  # closed without a word


Plan = Callable[[Asked], Said]


def completion(text: str, finish: str = "stop", tokens: tuple[int, int] = (10, 5), **more: Any) -> Said:
    """A whole reply with a text."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    told = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub-1", "choices": [choice]}
    return Said(json.dumps({**told, "usage": usage}).encode(), **more)


def failure(status: int, message: str, **more: Any) -> Said:
    """An error as OpenAI words it."""
    code = more.pop("code", None)
    return Said(json.dumps({"error": {"message": message, "type": "x", "code": code}}).encode(), status, **more)


def answer(asked: Asked) -> Said:
    """A good reply, which names the request that it is to."""
    return completion(json.dumps({"answer": f"to {asked.key}"}))


class Faulty:
    """The server; `plan` says how each request is answered, and may be changed at any time.

    Attributes:
        asked: how often each Idempotency-Key came.
        answered: how often each was sent a whole reply of status 200: what has to be paid for.
        most: requests that were under way at once.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.requests: list[Asked] = []
        self.now = self.most = self.connections = 0
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self.one(reader, writer):
                    pass
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open behind one request."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        key = headers.get("idempotency-key", "")
        asked = Asked(key, self.asked[key], first.split()[1], headers, body)
        self.asked[key] += 1
        self.requests.append(asked)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.send(asked, self.plan(asked), writer)
        finally:
            self.now -= 1

    async def send(self, asked: Asked, said: Said, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(said.delay)
        if said.dropped:
            return False
        headers = {"Content-Type": "application/json", **said.headers}
        headers |= {"length": {"Content-Length": str(len(said.body))}, "chunks": {"Transfer-Encoding": "chunked"}}.get(
            said.form, {}
        )
        head = [f"HTTP/1.1 {said.status} so", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*head, "", ""]).encode())
        body = said.body if said.cut is None else said.body[: said.cut]
        size = 1 if said.drip else 7 if said.form == "chunks" else len(body) or 1
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            writer.write(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) if said.form == "chunks" else piece)
            if said.drip:
                await writer.drain()
                await asyncio.sleep(said.drip)
        if said.cut is not None:
            await writer.drain()
            return False
        if said.form == "chunks":
            writer.write(b"0\r\nX-Trailer: z\r\n\r\n")
        await writer.drain()
        if said.status == 200:
            self.answered[asked.key] += 1
        return said.form != "close"

    def open(self) -> None:
        """Has it listen, at the port that it had."""
        self.loop = asyncio.new_event_loop()
        starting = asyncio.start_server(self.serve, "127.0.0.1", self.port, limit=2**20, backlog=1024)
        self.server = self.loop.run_until_complete(starting)
        self.port = self.server.sockets[0].getsockname()[1]
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Has it listen no more; its connections are closed."""

        async def end() -> None:
            self.server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@contextmanager
def running(plan: Plan = answer) -> Iterator[Faulty]:
    """A server that answers until the block ends."""
    faulty = Faulty(plan)
    faulty.open()
    try:
        yield faulty
    finally:
        faulty.close()
