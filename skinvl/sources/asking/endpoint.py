"""One server that speaks OpenAI's API: what it is asked, and what it said.

The key goes into the Authorization header and nowhere else: whatever a server says is rid of it before it is shown.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import httpx2
import orjson

from skinvl.sources.asking import wire
from skinvl.sources.asking.refusals import Busy, EndpointError, Refused, Trouble, meaning
from skinvl.sources.asking.request import Reply, Request

SHOWN = 300  # characters of what a server said
SECRET = 8  # characters of a key that are secret together
KEYS = {"generativelanguage.googleapis.com": "GEMINI_API_KEY"}  # where the usual variable is another
USUAL_KEY = "OPENAI_API_KEY"
CHAT, EMBEDDINGS = "chat/completions", "embeddings"
NEWER_LIMIT = "max_completion_tokens"  # OpenAI's later name of max_tokens, which not every server knows
CUT = ("length", "content_filter", "refusal")  # ends after which the same would be said again
REPAIR = (
    "Your last reply cannot be read: {wrong}. Reply once more with the JSON object alone, without any text around it. "
    "It has to fit this JSON schema: {schema}"
)

Check = Callable[[Request, str], str | None]  # what is wrong with the form of a reply, or None


@dataclass(frozen=True, slots=True)
class Settings:
    """What every request of a server says beside its own words."""

    model: str  # as the server knows it
    max_tokens: int = 1024  # of a reply
    temperature: float | None = None  # None leaves it to the server
    timeout: float = 300.0  # seconds for a whole reply


def key(address: str, variable: str | None) -> str | None:
    """The key for a server, from the environment variable of that name, else from the usual one; None is no key.

    The usual one never goes over plain http, where every machine on the way can read it.

    Raises:
        EndpointError: the variable is not set, or holds what no key is.
    """
    url = _url(address)
    name = variable or KEYS.get(url.host, USUAL_KEY)
    if variable is None and url.scheme == "http":
        return None
    secret = os.environ.get(name, "").strip()
    if not secret:
        raise EndpointError(f"{address}: no key; set the environment variable {name}, or name another by --key-env")
    if not re.fullmatch(r"[!-~]+", secret):
        raise EndpointError(f"{name}: holds blanks or letters that no key has; expected the key alone")
    return secret


class Endpoint:
    """A server and how it has to be asked, as far as its answers have shown that.

    Args:
        address: up to /v1, or whatever stands before /chat/completions; a host alone gets /v1.
        key: None sends no key.

    Raises:
        EndpointError: no such address, or no openai package.
    """

    def __init__(self, address: str, settings: Settings, key: str | None = None) -> None:
        self.address, self.settings = address, settings
        self._key, self._url = key, _url(address)
        self._limit = "max_tokens"  # what the server calls it
        self._structured: dict[bytes, bool] = {}  # schema → whether the server takes it
        try:
            import openai
        except ImportError as error:
            raise EndpointError(f"{error}; the openai package asks servers: pip install 'skinvl[serve]'") from error
        self._openai = openai
        http = wire.Client() if self._url.scheme == "http" else stock(settings.timeout)
        self._client = openai.AsyncOpenAI(
            base_url=str(self._url), api_key=key or "none", max_retries=0, http_client=http
        )

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r}, {self.settings.model!r})"

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()

    async def ask(self, request: Request, image: str | None, check: Check | None = None) -> Reply:
        """What the server says to a request, which carries its id as Idempotency-Key.

        A reply that `check` finds fault with gets one more turn, in which the model hears what is wrong; where that
        brings nothing better, the first one stands. Tokens are those of both.

        Args:
            image: data: address of what the request is about.

        Raises:
            Refused, Trouble, Busy: no reply; see there.
            EndpointError: there will be none to any request.
        """
        body = self._body(request, image)
        first = await self._say(request, body)
        wrong = check(request, first.text) if check and first.finish not in CUT else None
        if check is None or wrong is None:
            return first

        # One more turn, in which the model hears what is wrong.
        again = REPAIR.format(wrong=wrong, schema=orjson.dumps(request.schema).decode())
        turns = [{"role": "assistant", "content": first.text}, {"role": "user", "content": again}]
        body["messages"] += turns
        try:
            second = self._reply(await self._post(f"{request.id}-repair", body))
        except (Refused, Trouble, Busy, EndpointError):
            return first  # which is paid for; a next request meets the same
        better = second if check(request, second.text) is None else first
        return replace(
            better,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
            attempts=2,
        )

    async def embed(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, by a model of the server for that.

        Raises:
            Refused: it has no such model, or none at all.
            Trouble, Busy, EndpointError: as for `ask`.
        """
        answer = await self._post("", {"model": model, "input": list(texts)}, EMBEDDINGS)
        try:
            rows = sorted(answer["data"], key=itemgetter("index"))
            return [row["embedding"] for row in rows]
        except (KeyError, TypeError) as error:
            raise Trouble(f"{self.address}: no embeddings in its answer ({error!r})") from None

    def _body(self, request: Request, image: str | None) -> dict[str, Any]:
        content: Any = request.prompt
        if image is not None:
            content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": request.prompt}]
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": content})
        body: dict[str, Any] = {"model": self.settings.model, "messages": messages}
        body |= {} if self.settings.temperature is None else {"temperature": self.settings.temperature}
        return body

    async def _say(self, request: Request, body: Mapping[str, Any]) -> Reply:
        """The reply, bound to the request's schema where the server does that."""
        schema = orjson.dumps(request.schema)
        if not request.schema or self._structured.get(schema) is False:
            return self._reply(await self._post(request.id, body))
        form = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": request.schema}}
        try:
            reply = self._reply(await self._post(request.id, {**body, "response_format": form}))
        except Refused:
            if self._structured.get(schema):
                raise
            # The request without the schema shows which of the two it refused.
            reply = self._reply(await self._post(request.id, body))
            self._structured[schema] = False
        else:
            self._structured.setdefault(schema, True)
        return reply

    async def _post(self, id: str, body: Mapping[str, Any], what: str = CHAT) -> Any:
        limit = self._limit
        sent = {**body, limit: self.settings.max_tokens} if what == CHAT else body
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": id} if id else {})}
        openai = self._openai

        # What goes wrong says whether this request, this server or all of them wait.
        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await self._client.post(
                    f"{self._url}/{what}",
                    cast_to=httpx2.Response,  # as it came: to build the client's own classes takes 2 ms
                    content=orjson.dumps(sent),
                    options={"headers": headers},
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Trouble(f"{self.address}: no whole answer within {self.settings.timeout:g} s") from None
        except openai.APIStatusError as error:
            if limit == "max_tokens" and error.status_code == 400 and NEWER_LIMIT in error.response.text:
                self._limit = NEWER_LIMIT
                return await self._post(id, body, what)
            detail = f"{self.address}: {error.status_code}: {self._message(error.response)}"
            raise meaning(error.response, detail, self.settings.model, what == EMBEDDINGS) from None
        except openai.APIConnectionError as error:
            detail = self._clean(f"{self.address}: {error.__cause__ or error}")
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise Busy(detail, reached=False) from None
            raise Trouble(detail) from None

        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise Trouble(f"{self.address}: its answer is no JSON: {self._message(response)}") from None

    def _reply(self, answer: Any) -> Reply:
        """The reply in a chat completion."""
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            message = choice["message"]
            text, finish = message.get("content"), choice.get("finish_reason") or ""
            if not text and message.get("refusal"):
                text, finish = message["refusal"], "refusal"
            if isinstance(text, list):
                text = "".join(part.get("text") or "" for part in text)
            tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            name = str(answer.get("model") or self.settings.model)
            return Reply(self._without_key(text or ""), name, str(finish), *tokens, time.time())
        except (LookupError, TypeError, ValueError, AttributeError):
            shown = self._clean(orjson.dumps(answer).decode())
            raise Trouble(f"{self.address}: its answer is no chat completion: {shown}") from None

    def _message(self, response: httpx2.Response) -> str:
        """The message of an error, in one line."""
        try:
            body = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            return self._clean(response.text)
        for name in ("error", "message", "detail"):
            body = body.get(name, body) if isinstance(body, dict) else body
        return self._clean(body if isinstance(body, str) else orjson.dumps(body).decode())

    def _clean(self, text: str) -> str:
        """The text in one short line without the key, or any part of it that would help to guess the rest."""
        text = " ".join(self._without_key(text).split())
        secret = self._key or ""
        for size in range(len(secret) - 1, SECRET - 1, -1):
            for start in range(len(secret) - size + 1):
                text = text.replace(secret[start : start + size], "[key]")
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def stock(timeout: float) -> httpx2.AsyncClient:
    """The openai client's own transport, as https needs it: a redirect would send key and images elsewhere."""
    import openai

    # As many connections as there are requests: how many there may be is decided elsewhere.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    spans = httpx2.Timeout(timeout, connect=wire.CONNECT)
    return openai.DefaultAsyncHttpxClient(limits=limits, timeout=spans, follow_redirects=False)


def _url(address: str) -> httpx2.URL:
    try:
        url = httpx2.URL(address.rstrip("/"))
    except httpx2.InvalidURL as error:
        raise EndpointError(f"--endpoint: {error}; expected an address such as http://localhost:8000/v1") from None
    if url.userinfo or url.query or url.fragment:
        raise EndpointError(f"--endpoint: {url.host}: expected an address without password, ? and #; see --key-env")
    if url.scheme not in ("http", "https") or not url.host:
        raise EndpointError(f"--endpoint {address}: expected an address such as http://localhost:8000/v1")
    return url.copy_with(path="/v1") if url.path in ("", "/") else url
