"""The questions and answers in what a model replied: JSON, also where it is fenced, framed by talk or a bit broken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

FAILURES = 500  # brackets that open no JSON, after which a reply is given up: each costs a look at all before it
_THOUGHT = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```[a-zA-Z]*\s*(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_STRING_OR_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])', re.DOTALL)
_BAD_ESCAPE = re.compile(r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|)')
_NUMBERED = re.compile(r"(question|answer)_?(\d+)")
_FORM = ("…", "...")
_DECODER = json.JSONDecoder(strict=False)  # models leave line breaks in strings
_ASKED, _SAID = ("question", "instruction", "task"), ("answer", "output", "solution", "response")


class QAPair(NamedTuple):
    """A question and its answer; either may be empty, which the rules then say."""

    question: str
    answer: str


def pairs(text: str, question: str | None) -> list[QAPair] | None:
    """The pairs of a reply, empty where it says that there are none; None where it cannot be read.

    What is cut off is not completed, since nobody knows how it went on.

    Args:
        question: what was asked, so that only the answer counts; None where the model wrote the questions.

    >>> pairs('Here you are: ```json {"answer": "A macule.",} ```', "What is it?")
    [Pair(question='What is it?', answer='A macule.')]
    >>> pairs('{"pairs": []}', None), pairs('{"answer": "A mac', "What is it?")
    ([], None)
    """
    found: list[QAPair] | None = None
    for one in _objects(text):
        read = _read(one)
        if read is not None:
            found = [*(found or []), *read]
    if found:
        found = [pair for pair in found if pair.answer not in _FORM] or None  # the form that was asked for, repeated
    if found is None or question is None:
        return found
    return [QAPair(question, found[-1].answer)] if found else None  # a model that corrects itself does so last


def verdict(text: str) -> Mapping[str, Any] | None:
    """The last JSON object of a reply; None where there is none."""
    found = [one for one in _objects(text) if isinstance(one, dict)]
    return found[-1] if found else None


def _objects(text: str) -> Iterator[Any]:
    """The JSON objects and lists of a reply: those in fences where there are any, else all, in order."""
    bare = _THOUGHT.sub("", text)
    parts = [list(_decoded(part)) for part in _FENCED.findall(bare)]
    found = [one for part in parts for one in part]
    yield from found or _decoded(bare)


def _decoded(text: str) -> Iterator[Any]:
    opening = _OPENING.search(text)
    mended = _mended(text[opening.start() :]) if opening else ""
    place = failed = 0
    while failed < FAILURES and (opening := _OPENING.search(mended, place)):
        try:
            found, place = _DECODER.raw_decode(mended, opening.start())
        except ValueError:
            place, failed = opening.end(), failed + 1
            continue
        except RecursionError:
            return
        yield found


def _mended(text: str) -> str:
    """The text with backslashes that JSON does not know doubled, and without commas before a closing bracket."""
    escaped = _BAD_ESCAPE.sub(lambda found: found[0] if found[1] else "\\\\", text)
    return _STRING_OR_COMMA.sub(lambda found: found[0] if found[0] != "," else "", escaped)


def _read(found: Any) -> list[QAPair] | None:
    """The pairs of a decoded reply; None where it has not the form of any."""
    if isinstance(found, list):
        read = [_read(one) for one in found]
        return None if any(one is None for one in read) else [pair for one in read for pair in one or ()]
    if not isinstance(found, dict):
        return None
    values = {str(key).casefold().strip(): value for key, value in found.items()}
    if said := next((name for name in _SAID if name in values), None):
        answer = _text(values[said])
        asked = [_text(values[name]) for name in _ASKED if name in values][:1]
        given = [_text(values["input"])] if "input" in values and asked else []
        question = "\n\n".join(one for one in (*asked, *given) if one)
        return None if answer is None else [QAPair(question, answer)]
    if numbered := {found.group(1, 2): value for key, value in values.items() if (found := _NUMBERED.fullmatch(key))}:
        numbers = dict.fromkeys(number for _, number in numbered)
        texts = [(_text(numbered.get(("question", one))), _text(numbered.get(("answer", one)))) for one in numbers]
        return [QAPair(asked, said) for asked, said in texts if asked is not None and said is not None] or None
    held = [value for value in values.values() if isinstance(value, list | dict)]
    return _read(held[0]) if len(held) == 1 else None


def _text(value: Any) -> str | None:
    """The text, or the lines of a list or object of texts; None where it is none of these."""
    if isinstance(value, str):
        return value.strip()
    lines = value if isinstance(value, list) else []
    if isinstance(value, dict):
        lines = [f"{key}: {inner}" if isinstance(inner, str) else inner for key, inner in value.items()]
    return "\n".join(lines).strip() if lines and all(isinstance(line, str) for line in lines) else None
