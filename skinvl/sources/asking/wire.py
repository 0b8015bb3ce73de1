"""HTTP/1.1 to one server at an http:// address, at a quarter of what the usual transport takes.

A local server may answer a thousand times a second. Of 2 cores, the openai client with its own transport takes 2.2 ms
for a request, with this one .6 ms (benchmarks/synth.py). There is no proxy, no redirect and no TLS here.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx2

CONNECT = 10.0  # seconds
HEAD, BODY = 2**16, 2**26  # bytes that a reply may have
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: |$)")
_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")
_LENGTH = re.compile(rb"\d{1,10}")


class Wire(httpx2.AsyncBaseTransport):
    """Connections to one server, kept open between requests."""

    def __init__(self) -> None:
        self._idle: list[_Line] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The whole reply.

        Raises:
            httpx2.TransportError: no connection, or a reply that breaks off or is no HTTP.
        """
        line = await self._line(request.url)
        head = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
        head += [b"%s: %s" % pair for pair in request.headers.raw]
        try:
            status, headers, body = await line.ask(b"\r\n".join([*head, b"", request.content]))
        finally:
            if line.reusable:
                self._idle.append(line)
            else:
                line.close()
        return httpx2.Response(status, headers=headers, content=body, request=request)

    async def aclose(self) -> None:
        """Closes the connections."""
        while self._idle:
            self._idle.pop().close()

    async def _line(self, url: httpx2.URL) -> _Line:
        while self._idle:
            line = self._idle.pop()
            if line.reusable:  # the server may have closed it since
                return line
        try:
            async with asyncio.timeout(CONNECT):
                _, line = await asyncio.get_running_loop().create_connection(_Line, url.host, url.port or 80)
        except TimeoutError:
            raise httpx2.ConnectTimeout(f"no connection within {CONNECT:g} s") from None
        except OSError as error:
            raise httpx2.ConnectError(error.strerror or str(error)) from error
        return line


class Client(httpx2.AsyncClient):
    """An HTTP client for openai's client: sends what that has built, by a Wire, and adds nothing."""

    def __init__(self) -> None:
        self._wire = Wire()
        self._urls: dict[httpx2.URL | str, httpx2.URL] = {}  # the few that there are, since reading one takes a while
        super().__init__(transport=self._wire, trust_env=False)

    def build_request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Request:
        """The request with the headers and content of the options, and none besides."""
        known = self._urls.get(url)
        if known is None:
            known = self._urls[url] = httpx2.URL(url)
        return httpx2.Request(method, known, headers=options["headers"], content=options["content"])

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The whole reply."""
        return await self._wire.handle_async_request(request)


_Reply = tuple[int, list[tuple[bytes, bytes]], bytes]


class _Line(asyncio.Protocol):
    """A connection, on which one request at a time is asked."""

    def __init__(self) -> None:
        self._open = True
        self._reply: asyncio.Future[_Reply] | None = None
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._buffer, self._chunks, self._position = bytearray(), bytearray(), 0

    @property
    def reusable(self) -> bool:
        """Whether it stands open with nothing under way."""
        return self._open and self._reply is None

    def ask(self, request: bytes) -> asyncio.Future[_Reply]:
        """The reply, once it is whole."""
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._reply

    def close(self) -> None:
        self._open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        if self._head is not None and self._until_end:
            self._answer(bytes(self._buffer))
        elif self._reply is not None and not self._reply.done():
            self._reply.set_exception(httpx2.ReadError("the connection was closed before the reply was whole"))

    def data_received(self, data: bytes) -> None:
        if self._reply is None or self._reply.done():  # nobody asked
            self.close()
            return
        self._buffer += data
        try:
            self._read()
        except ValueError as error:
            self._reply.set_exception(httpx2.RemoteProtocolError(f"no HTTP reply ({error})"))
            self.close()

    def _answer(self, body: bytes) -> None:
        assert self._head is not None
        assert self._reply is not None
        reply, head = self._reply, self._head
        self._reply = self._head = None
        self._buffer, self._chunks, self._position = bytearray(), bytearray(), 0
        if not reply.done():
            reply.set_result((*head, body))

    def _read(self) -> None:
        """Reads what has arrived as far as it goes.

        Raises:
            ValueError: it is no reply, or larger than any should be.
        """
        while self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end > HEAD or (end < 0 and len(self._buffer) > HEAD):
                raise ValueError(f"a head of more than {HEAD:,} bytes")
            if end < 0:
                return
            self._begin(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]

        if len(self._buffer) > BODY:
            raise ValueError(f"a body of more than {BODY:,} bytes")
        if self._chunked:
            self._read_chunks()
        elif not self._until_end and len(self._buffer) >= self._length:
            self._finish(self._length, bytes(self._buffer[: self._length]))

    def _begin(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        status_line = _STATUS.match(first)
        if status_line is None:
            raise ValueError(f"it begins {first[:40]!r}")
        status = int(status_line[2])
        if status < 200:  # an interim reply; the real one follows
            return

        headers = []
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise ValueError(f"header {line[:40]!r}")
            headers.append((name, value.strip()))

        # How the end of the body is known: by chunks, by a length, or when the server closes the connection.
        known = {name.lower(): value.lower() for name, value in headers}
        self._chunked = known.get(b"transfer-encoding", b"identity") != b"identity"
        length = known.get(b"content-length")
        if length is not None and not _LENGTH.fullmatch(length):
            raise ValueError(f"length {length[:40]!r}")
        self._length = int(length or 0)
        if self._length > BODY:
            raise ValueError(f"a body of more than {BODY:,} bytes")
        self._until_end = not self._chunked and length is None and status not in (204, 304)
        self._last = status_line[1] == b"0" or known.get(b"connection") == b"close"
        self._head = status, headers

    def _read_chunks(self) -> None:
        while (end := self._buffer.find(b"\r\n", self._position)) >= 0:
            size_text = bytes(self._buffer[self._position : end]).partition(b";")[0].strip()
            if not _SIZE.fullmatch(size_text):
                raise ValueError(f"a chunk of {size_text[:40]!r} bytes")
            size = int(size_text, 16)
            if size == 0:
                after = self._buffer.find(b"\r\n\r\n", end)  # behind trailers, if there are any
                if after >= 0:
                    self._finish(after + 4, bytes(self._chunks))
                return
            if len(self._buffer) < end + size + 4:
                return
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            self._position = end + size + 4

    def _finish(self, read: int, body: bytes) -> None:
        """Gives the reply, which is whole after so many bytes."""
        more = len(self._buffer) > read
        if self._last or more:  # what nobody asked for belongs to no next reply
            self.close()
        self._answer(body)
