"""What a server's refusals mean: for one request, for a while, or for all that would still be asked."""

from __future__ import annotations

import email.utils
import re
import time

import httpx2

NO_MONEY = "insufficient_quota"
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")


class EndpointError(ValueError):
    """What no request to this server will get past: its address, its key, its model, or the account."""


class Refused(Exception):
    """This request will never be answered."""


class Trouble(Exception):
    """No answer this time."""


class Busy(Exception):
    """The server takes no requests now; `wait` is for how many seconds, where it says so."""

    def __init__(self, detail: str, wait: float | None = None, reached: bool = True) -> None:
        super().__init__(detail)
        self.wait, self.reached = wait, reached


def meaning(response: httpx2.Response, detail: str, model: str, embeds: bool = False) -> Exception:
    """What a status other than 200 means for the requests to come.

    Args:
        detail: who answered what, as it may be shown.
        embeds: it was asked for embeddings, which not every server has.
    """
    status = response.status_code
    if status == 404 and embeds:
        return Refused(detail)

    # What no later request will get past.
    if status in (401, 402, 403):
        return EndpointError(f"{detail}; see that the key is right and the account may use {model}")
    if status < 400 or status in (404, 405):
        return EndpointError(f"{detail}; see that the address and the model ({model}) are right")
    if status == 429 and NO_MONEY in response.text:
        return EndpointError(f"{detail}; the account has nothing left")

    # What passes: all requests wait, or this one is asked again.
    if status in (429, 503, 529):
        return Busy(detail, wait(response.headers))
    return Trouble(detail) if status in (408, 409, 425) or status >= 500 else Refused(detail)


def wait(headers: httpx2.Headers) -> float | None:
    """Seconds that a server asks to wait, if it says so in a way that can be read."""
    milliseconds, seconds = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    if _NUMBER.fullmatch(seconds):
        return float(seconds)
    try:
        until = email.utils.parsedate_to_datetime(seconds)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())
