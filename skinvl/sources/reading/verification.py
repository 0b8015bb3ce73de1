"""A second look at what a model wrote: another model is shown the image, question and answer, and says what it sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from skinvl.sources.asking.request import Reply, Request
from skinvl.sources.reading import replies
from skinvl.sources.reading.replies import QAPair

VERSION = 1  # counted up with every change of what is asked below
KIND = "verification"
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"supported": {"type": "string", "enum": ["yes", "no", "unsure"]}, "reason": {"type": "string"}},
    "required": ["supported", "reason"],
    "additionalProperties": False,
}
_SYSTEM = (
    "You check statements about images of skin for a dataset. You see the image and judge by it alone; you do not try "
    "to please, and you do not answer the question yourself."
)
_IMAGE = (
    "Someone was asked about the image above:\n{question}\n\nThe answer was:\n{answer}\n\n"
    "Is everything that the answer says of this image visible in it, and is the rest sound? Answer `no` where the "
    "image contradicts a statement or where a statement about the patient cannot be seen, `unsure` where the image "
    "does not settle it. Give the reason in one sentence that names the statement."
)
_TEXT = (
    "A task:\n{question}\n\nA solution:\n{answer}\n\n"
    "Does the solution do what the task asks, and is all that it says sound dermatology? Answer `no` where a statement "
    "is wrong or the task is missed, `unsure` where that is disputed. Give the reason in one sentence that names the "
    "statement."
)
_FORM = '\n\nReply with one JSON object and nothing else: {"supported": "yes, no or unsure", "reason": "…"}'


Supported = Literal["yes", "no", "unsure"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the second model sees what was answered; unreadable where its reply was no verdict."""

    supported: Supported | Literal["unreadable"]
    reason: str


def verification(request: Request, pair: QAPair, model: str) -> Request:
    """What a model is asked about a question and answer that came of a request; the hidden context is not shown to it.

    The same for the same request, pair and model, so that a verdict is paid for once.

    Args:
        model: the one that checks, as its endpoint knows it.
    """
    prompt = (_IMAGE if request.image else _TEXT).format(question=pair.question, answer=pair.answer) + _FORM
    sent = json.dumps([KIND, VERSION, request.id, model, _SYSTEM, prompt, SCHEMA], ensure_ascii=False)
    return Request(
        id=hashlib.blake2b(sent.encode(errors="surrogatepass"), digest_size=16).hexdigest(),
        unit=request.unit,
        image=request.image,
        slot=f"{request.slot}-{KIND}",
        kind=KIND,
        system=_SYSTEM,
        prompt=prompt,
        schema=SCHEMA,
        question=None,
    )


def verdict(reply: Reply) -> Verdict:
    """What the reply to a verification says; see `read`."""
    return read(reply.text)


def read(text: str) -> Verdict:
    """The verdict in a text; one that is none of the three words is unreadable.

    >>> read('{"supported": "No", "reason": "No ulcer is seen."}')
    Verdict(supported='no', reason='No ulcer is seen.')
    """
    fields = replies.verdict(text) or {}
    supported, reason = fields.get("supported"), fields.get("reason")
    why = reason.strip() if isinstance(reason, str) else ""
    plain = supported.strip(" .").casefold() if isinstance(supported, str) else supported
    if plain in get_args(Supported):
        return Verdict(cast(Supported, plain), why)
    return Verdict("unreadable", " ".join(text.split())[:120])
