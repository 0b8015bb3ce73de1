"""How fast many requests are asked, beside a server's own latency: `python benchmarks/synth.py [--images 100000]`.

A server in a process of its own answers each request after a fixed 200 ms, so that C requests at once make C / .2
requests/s and no more: the ideal. Everything else is as `skinvl synth` does it: the openai client, the journal with its
fsync, images made in threads. Beside it stands the client as its documentation uses it. Then twice as many requests as
there are images, for the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import openai
from PIL import Image

from skinvl.sources.asking.endpoint import Endpoint, Settings
from skinvl.sources.asking.inquiry import Counts, ask_all
from skinvl.sources.asking.journal import Journal
from skinvl.sources.asking.payload import Payloads
from skinvl.sources.asking.request import Request

LATENCY = 0.2  # seconds
CONCURRENCY = (8, 64, 256)
SECONDS = 20  # of each measurement, if all goes ideally
PHOTOS, SIDE = 64, 160  # different files, and their pixels
BODY = (
    b'{"id":"1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"{\\"answer\\": \\"A brown macule with an even border on the forearm.\\"}'
    b'"}}],"usage":{"prompt_tokens":300,"completion_tokens":20,"total_tokens":320}}'
)
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}


class Stub(asyncio.Protocol):
    """Answers each request on a connection after LATENCY."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.left, self.head = transport, 0, b""

    def data_received(self, data: bytes) -> None:
        if self.left == 0:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = self.head[:end].lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self.left, data, self.head = int(length), self.head[end + 4 :], b""
        self.left -= len(data)
        if self.left == 0:
            asyncio.get_running_loop().call_later(LATENCY, self.transport.write, REPLY)


def stub(told: Connection) -> None:
    """Runs the server, which tells its port, and never returns."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=1024)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def served() -> Iterator[str]:
    """The address of a stub server that runs until the block ends."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=stub, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.kill()
        process.join()


def requests(count: int, images: int) -> Iterator[Request]:
    """So many requests: of text alone, or two about each of so many images."""
    for number in range(count):
        image = f"images/{number // 2 % images:06}.jpg" if images else None
        yield Request(
            f"{number:032x}", str(number), image, "general", "overview", "You are an experienced dermatologist.",
            "Describe what the photograph shows, as to a colleague. " * 8, SCHEMA, "What does the image show?",
        )  # fmt: skip


async def ours(address: str, folder: Path, count: int, concurrency: int, images: int) -> None:
    """Asks until every request has its reply in a journal."""
    endpoint = Endpoint(address, Settings("stub"))
    with Journal(Path(tempfile.mkdtemp(dir=folder)) / "0-of-1.jsonl") as journal, Payloads(folder) as payloads:
        counts = await ask_all(
            requests(count, images), [endpoint], journal, payloads, concurrency=concurrency, say=grown
        )
    await endpoint.close()
    assert counts.answered == count, counts


async def documented(address: str, count: int, concurrency: int) -> None:
    """Asks the same by `client.chat.completions.create`, and keeps nothing."""
    client = openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0)
    rest = requests(count, 0)

    async def work() -> None:
        for one in rest:
            await client.chat.completions.create(
                model="stub", max_tokens=99, extra_headers={"Idempotency-Key": one.id},
                messages=[{"role": "system", "content": one.system}, {"role": "user", "content": one.prompt}],
                response_format={"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA}},
            )  # fmt: skip

    await asyncio.gather(*(work() for _ in range(concurrency)))
    await client.close()


def resident() -> float:
    """Memory of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def drawn(folder: Path, images: int) -> None:
    """Fills the folder with so many images, of PHOTOS different ones."""
    (folder / "images").mkdir()
    for number in range(images):
        path = folder / "images" / f"{number:06}.jpg"
        if number < PHOTOS:
            Image.effect_noise((SIDE, SIDE), 20 + number).convert("RGB").save(path, quality=80)
        else:
            path.hardlink_to(folder / "images" / f"{number % PHOTOS:06}.jpg")


_told: list[tuple[int, float]] = []


def grown(counts: Counts) -> None:
    """Notes the memory beside how far it is."""
    _told.append((counts.answered, resident()))


def measured(what: str, concurrency: int, count: int, work: Coroutine[Any, Any, None]) -> None:
    """Prints how fast so many requests were asked."""
    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(work)
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    ideal, rate = concurrency / LATENCY, count / seconds
    print(f"{what}, {concurrency}, {ideal:,.0f}, {rate:,.1f}, {rate / ideal:.3f}, {1e3 * used / count:.2f}", flush=True)


def main() -> None:
    """Prints the table and the memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    drawn(folder, max(given.images, PHOTOS))
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, openai {openai.__version__}")
    print("what, requests at once, ideal requests/s, requests/s, share of the ideal, ms of CPU for a request")
    with served() as address:
        for concurrency in CONCURRENCY:
            count = int(concurrency / LATENCY * SECONDS)
            for what, images in (("text alone", 0), (f"images of {SIDE} px", PHOTOS)):
                measured(what, concurrency, count, ours(address, folder, count, concurrency, images))
            measured("text alone, as documented", concurrency, count // 2, documented(address, count // 2, concurrency))
        if given.images:
            _told.clear()
            count = 2 * given.images
            measured(f"{given.images:,} images", 256, count, ours(address, folder, count, 256, given.images))
            step = max(1, len(_told) // 10)
            print("answered, resident MiB: " + "; ".join(f"{done:,} {mib:.0f}" for done, mib in _told[::step]))


if __name__ == "__main__":
    main()
