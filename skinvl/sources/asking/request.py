"""What a language model is asked about an image, and what came of it: the records that `skinvl synth` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a model. Equal settings give equal ids in every process, so that an id is paid for once."""

    id: str  # 32 hexadecimal digits of all that decides what is sent
    unit: str  # what it is about: an image's path in the source, or the number of a task
    image: str | None  # its path relative to the source's folder
    slot: str  # which of a unit's questions
    kind: str  # Facts.kind of what is made of it
    system: str
    prompt: str  # the user turn; what the model alone may know stands in it
    schema: Mapping[str, Any]  # JSON schema of the reply
    question: str | None  # what the conversation asks; None where the model writes it
    context: Mapping[str, str] = field(default_factory=dict)  # what the model alone was told, by name


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said."""

    text: str
    model: str  # as the server names it
    finish: str  # why it ended: stop, length, content_filter
    prompt_tokens: int
    completion_tokens: int
    created: float  # seconds since 1970
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no reply and will be none; it becomes a row of the ledger."""

    rule: str  # request-refused, request-failed, unreadable-image, …
    detail: str
    attempts: int = 1


Outcome = Reply | Failure
