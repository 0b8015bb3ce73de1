"""One server: what it is asked, what its answers and refusals become, and where its key never stands."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from helpers import faulty
from helpers.faulty import KEY, Asked, Faulty, Said, completion, failure
from skinvl.sources.asking import endpoint, refusals, wire
from skinvl.sources.asking.endpoint import Check, Endpoint, Settings
from skinvl.sources.asking.refusals import Busy, EndpointError, Refused, Trouble
from skinvl.sources.asking.request import Reply, Request

NOW = 1_790_000_000.0  # seconds since 1970

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
ANSWER = '{"answer": "a naevus"}'
IMAGE = "data:image/jpeg;base64,AAAA"


def request(number: int = 1, **changed: Any) -> Request:
    given = {"id": f"{number:032x}", "unit": "a.jpg", "image": "a.jpg", "slot": "general", "kind": "overview"}
    words = {"system": "Be brief.", "prompt": "What is it?", "schema": SCHEMA, "question": None}
    return Request(**{**given, **words, **changed})


@pytest.fixture(params=["wire", "stock"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """A server; asked by our transport, and by the client's own as every https:// address is."""
    if request.param == "stock":
        monkeypatch.setattr(wire, "Client", lambda: endpoint.stock(9.0))
    with faulty.running() as one:
        yield one


def asked(
    server: Faulty,
    *requests: Request,
    key: str | None = None,
    check: Check | None = None,
    image: str | None = None,
    **settings: Any,
) -> list[Reply]:
    """The replies to the requests, one after another, of one endpoint."""

    async def go() -> list[Reply]:
        one = Endpoint(server.address, Settings("tiny", **{"timeout": 5.0, **settings}), key)
        try:
            return [await one.ask(request, image, check) for request in requests]
        finally:
            await one.close()

    return asyncio.run(go())


def said(*replies: Said) -> Callable[[Asked], Said]:
    """A plan that gives these replies in order, and the last one ever after."""
    rest = list(replies)
    return lambda asked: rest.pop(0) if len(rest) > 1 else rest[0]


# What is asked


def test_a_request_as_it_is_sent(server: Faulty) -> None:
    (reply,) = asked(server, request(), image=IMAGE, key=KEY, temperature=0.5, max_tokens=99)
    (one,) = server.requests
    assert one.path == "/v1/chat/completions"
    assert one.headers["idempotency-key"] == one.key == f"{1:032x}"
    assert one.headers["authorization"] == f"Bearer {KEY}"
    assert one.headers["content-type"] == "application/json"
    assert one.body == {
        "model": "tiny",
        "max_tokens": 99,
        "temperature": 0.5,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": IMAGE}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA}},
    }
    assert reply.text == json.dumps({"answer": f"to {1:032x}"})
    assert (reply.model, reply.finish, reply.prompt_tokens, reply.completion_tokens) == ("stub-1", "stop", 10, 5)
    assert abs(reply.created - time.time()) < 60
    assert reply.attempts == 1


def test_a_request_of_text_alone(server: Faulty) -> None:
    asked(server, request(image=None, system="", schema={}))
    (one,) = server.requests
    assert one.body == {"model": "tiny", "max_tokens": 1024, "messages": [{"role": "user", "content": "What is it?"}]}
    assert KEY not in str(one)


def test_connections_are_kept(server: Faulty) -> None:
    asked(server, *(request(number) for number in range(5)))
    assert server.connections == 1


@pytest.mark.parametrize("form", ["length", "chunks", "close"])
def test_every_way_to_end_a_reply(server: Faulty, form: str) -> None:
    server.plan = lambda asked: completion(
        ANSWER, form=form, headers={"Connection": "close"} if form == "close" else {}
    )
    replies = asked(server, request(1), request(2))
    assert [reply.text for reply in replies] == [ANSWER, ANSWER]
    assert server.connections == (2 if form == "close" else 1)


def test_a_connection_that_the_server_has_closed_is_not_used(server: Faulty) -> None:
    server.plan = lambda asked: completion(ANSWER, cut=10_000)  # all of it, and then the connection is closed

    async def go() -> None:
        one = Endpoint(server.address, Settings("tiny"))
        for number in range(3):
            assert (await one.ask(request(number), None)).text == ANSWER
            await asyncio.sleep(0.05)
        await one.close()

    asyncio.run(go())
    assert server.connections == 3


# The form of replies


def test_a_schema_that_is_refused_is_not_sent_again(server: Faulty) -> None:
    def plan(asked: Asked) -> Said:
        if "response_format" in asked.body:
            return failure(422, "unexpected fields: {'response_format'}")
        return completion(ANSWER)

    server.plan = plan
    asked(server, request(1), request(2), request(3, schema={"type": "array"}))
    sent = ["response_format" in one.body for one in server.requests]
    assert sent == [True, False, False, True, False]  # another schema may be taken
    assert {one.key for one in server.requests[:2]} == {f"{1:032x}"}


def test_a_request_that_is_refused_itself(server: Faulty) -> None:
    server.plan = said(completion(ANSWER), failure(400, "maximum context length is 2048 tokens"))

    with pytest.raises(Refused, match="400: maximum context length is 2048 tokens"):
        asked(server, request(1), request(2))
    assert len(server.requests) == 2  # the schema is known to be taken


def test_a_first_request_that_is_refused_itself(server: Faulty) -> None:
    server.plan = said(*[failure(400, "too long")] * 2, completion(ANSWER))

    async def go() -> None:
        one = Endpoint(server.address, Settings("tiny"))
        with pytest.raises(Refused):
            await one.ask(request(1), None)
        await one.ask(request(2), None)
        await one.close()

    asyncio.run(go())
    assert ["response_format" in one.body for one in server.requests] == [True, False, True]


def test_the_newer_name_of_the_limit(server: Faulty) -> None:
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )

    server.plan = lambda asked: failure(400, message) if "max_tokens" in asked.body else completion(ANSWER)
    asked(server, request(1), request(2), max_tokens=77)
    assert [one.body.get("max_completion_tokens") for one in server.requests] == [None, 77, 77]
    assert len(server.answered) == 2


def unreadable(request: Request, text: str) -> str | None:
    return None if text.startswith("{") else "it is no JSON"


def test_one_turn_more_for_a_reply_that_cannot_be_read(server: Faulty) -> None:
    server.plan = said(completion("Sure! A naevus."), completion(ANSWER, tokens=(30, 7)))
    (reply,) = asked(server, request(), check=unreadable, image=IMAGE)
    assert reply.text == ANSWER
    assert (reply.prompt_tokens, reply.completion_tokens, reply.attempts) == (40, 12, 2)
    first, second = server.requests
    assert second.key == f"{first.key}-repair"  # or a server that knows keys would say the same again
    assert second.body["messages"][:2] == first.body["messages"]
    turn, repair = second.body["messages"][2:]
    assert turn == {"role": "assistant", "content": "Sure! A naevus."}
    assert repair["role"] == "user"
    assert "it is no JSON" in repair["content"]
    assert json.dumps(SCHEMA, separators=(",", ":")) in repair["content"]


@pytest.mark.parametrize(
    "second",
    [completion("No JSON again.", tokens=(30, 7)), failure(500, "broke"), failure(400, "no"), failure(401, "no"),
     failure(429, "slow"), completion("", dropped=True)],
)  # fmt: skip
def test_a_repair_that_brings_nothing_loses_nothing(server: Faulty, second: Said) -> None:
    server.plan = said(completion("Sure! A naevus."), second)
    (reply,) = asked(server, request(), check=unreadable)
    assert reply.text == "Sure! A naevus."
    assert reply.prompt_tokens == (40 if second.status == 200 and not second.dropped else 10)
    assert len(server.requests) == 2


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_no_turn_more_where_it_would_end_the_same(server: Faulty, finish: str) -> None:
    server.plan = said(completion("A naevus", finish))
    (reply,) = asked(server, request(), check=unreadable)
    assert reply.finish == finish
    assert len(server.requests) == 1


def message(**of: Any) -> Said:
    choice = {"message": {"role": "assistant", **of}, "finish_reason": "stop"}
    return Said(json.dumps({"model": "m", "choices": [choice]}).encode())


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (message(content=None), "", "stop"),
        (message(content=None, refusal="I cannot help."), "I cannot help.", "refusal"),
        (message(content=[{"type": "text", "text": "a "}, {"type": "text", "text": "naevus"}]), "a naevus", "stop"),
        (message(content="ü – 😀"), "ü – 😀", "stop"),
        (Said(b'{"choices":[{"message":{"content":"x"},"finish_reason":null}],"usage":null}'), "x", ""),
    ],
)
def test_replies_of_other_forms(server: Faulty, reply: Said, text: str, finish: str) -> None:
    server.plan = said(reply)
    (found,) = asked(server, request())
    assert (found.text, found.finish, found.prompt_tokens) == (text, finish, 0)
    assert found.model in ("m", "tiny")


# What goes wrong


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (failure(400, "bad image"), Refused, "400: bad image"),
        (failure(413, "too large"), Refused, "413"),
        (failure(422, "bad field"), Refused, "422: bad field"),
        (failure(401, "Incorrect API key"), EndpointError, "401: Incorrect API key; see that the key is right"),
        (failure(402, "pay"), EndpointError, "402"),
        (failure(403, "not allowed"), EndpointError, "403: not allowed; see that the key"),
        (failure(404, "no model tiny"), EndpointError, r"404: no model tiny; see that the address and the"),
        (failure(307, "", headers={"Location": "http://127.0.0.1:9/"}), EndpointError, "307.*address"),
        (failure(429, "You exceeded your current quota", code="insufficient_quota"), EndpointError, "nothing left"),
        (failure(429, "slow down"), Busy, "429: slow down"),
        (failure(503, "loading"), Busy, "503"),
        (failure(529, "overloaded"), Busy, "529"),
        (failure(500, "broke"), Trouble, "500: broke"),
        (failure(502, "x"), Trouble, "502"),
        (failure(408, "x"), Trouble, "408"),
        (Said(b"<html>\n<h1>Bad gateway</h1>", 502), Trouble, "502: <html> <h1>Bad gateway</h1>"),
        (Said(json.dumps({"detail": "nope"}).encode(), 400), Refused, "400: nope"),
        (Said(b'{"message": "flat"}', 400), Refused, "400: flat"),
        (Said(b'["odd"]', 400), Refused, r'400: \["odd"\]'),
        (Said(b"not JSON"), Trouble, "its answer is no JSON: not JSON"),
        (Said(b'{"error": {"message": "upstream"}}'), Trouble, "no chat completion: .*upstream"),
        (Said(b"[]"), Trouble, "no chat completion"),
        (Said(b'{"choices": []}'), Trouble, "no chat completion"),
        (Said(b'{"choices": [{"message": "x"}]}'), Trouble, "no chat completion"),
        (completion(ANSWER, cut=20), Trouble, "/v1: ."),
        (completion(ANSWER, cut=20, form="chunks"), Trouble, "/v1: ."),
        (completion(ANSWER, cut=0), Trouble, "/v1: ."),
        (completion(ANSWER, dropped=True), Trouble, "/v1: ."),
        (Said(b"x" * 400, 500), Trouble, "x" * 200 + ".*…$"),
    ],
)  # fmt: skip
def test_what_a_failure_means(server: Faulty, reply: Said, kind: type[Exception], words: str) -> None:
    server.plan = said(reply)
    with pytest.raises(kind, match=words) as caught:
        asked(server, request(schema={}))
    assert type(caught.value) is kind
    assert str(caught.value).startswith(server.address)
    assert len(server.requests) == 1  # the client asks no more than it is told to
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("reply", [completion(ANSWER, drip=0.05), completion(ANSWER, delay=9)])
def test_a_reply_that_takes_too_long(server: Faulty, reply: Said) -> None:
    server.plan = said(reply, completion(ANSWER))
    began = time.monotonic()
    with pytest.raises(Trouble, match=r"no whole answer within 0.3 s"):
        asked(server, request(schema={}), timeout=0.3)
    assert time.monotonic() - began < 3


def test_after_a_failure_the_next_is_answered(server: Faulty) -> None:
    bad = [completion("", cut=5), Said(b"junk"), completion(ANSWER, dropped=True), completion(ANSWER, delay=9)]
    server.plan = said(*bad, completion(ANSWER))

    async def go() -> None:
        one = Endpoint(server.address, Settings("tiny", timeout=0.3))
        for number in range(len(bad)):
            with pytest.raises(Trouble):
                await one.ask(request(number, schema={}), None)
        assert (await one.ask(request(9, schema={}), None)).text == ANSWER
        await one.close()

    asyncio.run(go())


def test_nobody_listens(server: Faulty) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.port = free.getsockname()[1]
    with pytest.raises(Busy, match=f"^http://127.0.0.1:{server.port}/v1: .") as caught:
        asked(server, request())
    assert not caught.value.reached


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "9", "Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After": formatdate(NOW + 100, usegmt=True)}, 100.0),
        ({"Retry-After": formatdate(NOW - 100, usegmt=True)}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(
    headers: dict[str, str], wait: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "time", SimpleNamespace(time=lambda: NOW))
    assert refusals.wait(httpx2.Headers(headers)) == wait


# Embeddings


def test_embeddings_come_in_the_order_of_the_texts(server: Faulty) -> None:
    rows = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}]
    server.plan = said(Said(json.dumps({"data": rows}).encode()), failure(404, "no such model"), Said(b"{}"))

    async def go() -> None:
        one = Endpoint(server.address, Settings("tiny"))
        assert await one.embed("vectors", ["a", "b"]) == [[1.0, 0.0], [0.0, 1.0]]
        with pytest.raises(Refused, match="no such model"):
            await one.embed("vectors", ["a"])
        with pytest.raises(Trouble, match="no embeddings"):
            await one.embed("vectors", ["a"])
        await one.close()

    asyncio.run(go())
    first = server.requests[0]
    assert first.path == "/v1/embeddings"
    assert first.body == {"model": "vectors", "input": ["a", "b"]}


# Keys and addresses

GOOGLE = "https://generativelanguage.googleapis.com/v1beta/openai"


@pytest.mark.parametrize(
    ("address", "variable", "expected"),
    [
        ("https://api.example.org/v1", None, "usual"),
        (GOOGLE, None, "gemini"),
        (GOOGLE, "MINE", "own"),
        ("http://localhost:8000/v1", None, None),  # never the usual key in the clear
        ("http://localhost:8000/v1", "MINE", "own"),
    ],
)
def test_which_key_is_used(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: str | None, expected: str | None
) -> None:
    for name, value in (("OPENAI_API_KEY", "usual\n"), ("GEMINI_API_KEY", "gemini"), ("MINE", "own")):
        monkeypatch.setenv(name, value)
    assert endpoint.key(address, variable) == expected


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="set the environment variable GEMINI_API_KEY, or name another"):
        endpoint.key(GOOGLE, None)
    monkeypatch.setenv("MINE", f"{KEY} or so")
    with pytest.raises(EndpointError, match="MINE: holds blanks") as caught:
        endpoint.key(GOOGLE, "MINE")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        (f"{GOOGLE}/", GOOGLE),
    ],
)
def test_addresses(address: str, expected: str) -> None:
    assert str(endpoint._url(address)) == expected


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "ftp://x/", "http://", "x", f"https://me:{KEY}@x/v1", f"https://x?k={KEY}"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(EndpointError, match="expected an address") as caught:
        endpoint._url(address)
    assert KEY not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(EndpointError, match=r"pip install 'skinvl\[serve\]'"):
        Endpoint("http://localhost:1", Settings("tiny"))


def test_https_goes_by_the_clients_own_transport() -> None:
    one = Endpoint("https://localhost:1/v1", Settings("tiny", timeout=77.0))
    assert not isinstance(one._client._client, wire.Client)
    assert one._client._client.timeout == httpx2.Timeout(77.0, connect=wire.CONNECT)
    assert isinstance(Endpoint("http://localhost:1/v1", Settings("tiny"))._client._client, wire.Client)


@pytest.mark.parametrize(
    "reply",
    [
        failure(401, f"Incorrect API key provided: {KEY}. See your account."),
        failure(403, f"Incorrect API key provided: {KEY[:12]}***. See your account."),
        failure(429, f"{KEY[3:]} is over its limit"),
        failure(500, "x" * 292 + KEY),  # where the message is cut short
        Said(f"Bearer {KEY}".encode(), 500),
        Said(f'{{"echo": "Bearer {KEY}"}}'.encode()),
        completion(f"Your key is {KEY}, is it not?"),
        completion(ANSWER, dropped=True),
        completion(ANSWER, delay=9),
    ],
)
def test_the_key_is_in_nothing_that_is_shown(server: Faulty, caplog: pytest.LogCaptureFixture, reply: Said) -> None:
    caplog.set_level(logging.DEBUG)
    server.plan = said(reply)
    shown = ""
    try:
        (told,) = asked(server, request(schema={}), key=KEY, timeout=0.3)
        shown += told.text
        assert "Your key is [key], is it not?" in shown
    except (Refused, Trouble, Busy, EndpointError) as error:
        shown += f"{error} {error!r} {error.args} {error.__cause__!r}"
    shown += repr(Endpoint(server.address, Settings("tiny"), KEY)) + caplog.text
    shown += "".join(f"{record.__dict__}" for record in caplog.records)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    for start in range(len(KEY) - 7):
        assert KEY[start : start + 8] not in shown


# The transport by itself


class Pipe(asyncio.Transport):
    """Takes what is written and does nothing."""

    closed = False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def fed(pieces: list[bytes], end: bool = False) -> tuple[Any, wire._Line]:
    """What a connection makes of bytes that arrive in these pieces."""

    async def go() -> tuple[Any, wire._Line]:
        line = wire._Line()
        line.connection_made(Pipe())
        reply = line.ask(b"")
        for piece in pieces:
            line.data_received(piece)
        if end:
            line.connection_lost(None)
        if not reply.done():
            return None, line
        return reply.exception() or reply.result(), line

    return asyncio.run(go())


BODY = b'{"a": 1}\r\n\r\n'
FORMS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX: a:b\r\n\r\n" + BODY,
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:12\r\n\r\n" + BODY,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\n"
    + BODY[:5] + b"\r\n07\r\n" + BODY[5:] + b"\r\n0\r\nTrailer: x\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_reply_in_any_pieces(form: str) -> None:
    whole, draw = FORMS[form], random.Random(1)
    cuts = [range(1, len(whole)), [], *(sorted(draw.sample(range(1, len(whole)), 4)) for _ in range(40))]
    for places in cuts:
        edges = [0, *places, len(whole)]
        (status, headers, body), line = fed([whole[a:b] for a, b in pairwise(edges)])
        assert (status, body) == (200, BODY)
        assert line.reusable
        if form == "length":
            assert headers == [(b"Content-Length", b"12"), (b"X", b"a:b")]
    for end in range(len(whole) - 1):  # and never before it is whole
        assert fed([whole[:end]])[0] is None
        error, line = fed([whole[:end]], end=True)
        assert isinstance(error, httpx2.ReadError)
        assert not line.reusable


def test_a_reply_that_ends_with_its_connection() -> None:
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    assert fed([head, b"ab", b"c"])[0] is None
    (_, _, body), line = fed([head, b"ab", b"c"], end=True)
    assert body == b"abc"
    assert not line.reusable


@pytest.mark.parametrize(
    "more",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n",
    ],
)
def test_connections_that_are_not_used_again(more: bytes) -> None:
    (status, _, body), line = fed([more])
    assert (status, body) == (200, b"")
    assert not line.reusable
    assert line._transport.closed


@pytest.mark.parametrize(
    "bad",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * wire.HEAD,
    ],
)
def test_bytes_that_are_no_reply(bad: bytes) -> None:
    error, line = fed([bad])
    assert isinstance(error, httpx2.RemoteProtocolError)
    assert not line.reusable
    assert line._transport.closed


def test_a_body_without_end() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    error, _ = fed([head, *[bytes(2**24)] * 5])
    assert isinstance(error, httpx2.RemoteProtocolError)
