"""The questions and answers in what a model replied as JSON, in any of the forms that models give it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from skinvl.data import reply_json

_NUMBERED = re.compile(r"(question|answer)_?(\d+)")
_FORM = ("…", "...")
_ASKED, _ANSWERED = ("question", "instruction", "task"), ("answer", "output", "solution", "response")


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
    [QAPair(question='What is it?', answer='A macule.')]
    >>> pairs('{"pairs": []}', None), pairs('{"answer": "A mac', "What is it?")
    ([], None)
    """
    qa_pairs: list[QAPair] | None = None
    for value in reply_json.values(text):
        read = _read(value)
        if read is not None:
            qa_pairs = [*(qa_pairs or []), *read]
    if qa_pairs:
        qa_pairs = [
            pair for pair in qa_pairs if pair.answer not in _FORM
        ] or None  # the form that was asked for, repeated
    if qa_pairs is None or question is None:
        return qa_pairs
    return [QAPair(question, qa_pairs[-1].answer)] if qa_pairs else None  # a model that corrects itself does so last


def verdict(text: str) -> Mapping[str, Any] | None:
    """The last JSON object of a reply; None where there is none."""
    return reply_json.last_object(text)


def _read(decoded: Any) -> list[QAPair] | None:
    """The pairs of a decoded reply; None where it has not the form of any."""
    # A list of pairs, all of which have to be readable.
    if isinstance(decoded, list):
        read = [_read(element) for element in decoded]
        return None if any(pairs is None for pairs in read) else [pair for pairs in read for pair in pairs or ()]
    if not isinstance(decoded, dict):
        return None
    values = {str(key).casefold().strip(): value for key, value in decoded.items()}

    # One pair, under any of the usual names; an instruction may come with an input.
    if answer_key := next((name for name in _ANSWERED if name in values), None):
        answer = _text(values[answer_key])
        asked = [_text(values[name]) for name in _ASKED if name in values][:1]
        inputs = [_text(values["input"])] if "input" in values and asked else []
        question = "\n\n".join(part for part in (*asked, *inputs) if part)
        return None if answer is None else [QAPair(question, answer)]

    # Several pairs as question_1, answer_1 and so on.
    if numbered := {match.group(1, 2): value for key, value in values.items() if (match := _NUMBERED.fullmatch(key))}:
        numbers = dict.fromkeys(number for _, number in numbered)
        texts = [(_text(numbered.get(("question", key))), _text(numbered.get(("answer", key)))) for key in numbers]
        return [
            QAPair(question, answer) for question, answer in texts if question is not None and answer is not None
        ] or None

    # Whatever else wraps a single list or object.
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
