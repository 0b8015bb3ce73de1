"""What each rule finds in a conversation: the words, after the turn that holds them, or nothing."""

from __future__ import annotations

import re
from typing import NamedTuple

from skinvl.data.example import Example
from skinvl.sources.rules.patterns import (
    AGE,
    ASKED,
    AT_TIMES,
    CAPTION,
    CONTROL_CHARACTER,
    EARLIER,
    EDGES,
    GOES_ON,
    HEDGED,
    INFORMATION,
    PERSONS,
    PLACEHOLDERS,
    REFUSED,
    REPLIED,
    TASK,
    UNGROUNDED,
    Look,
)

LONGEST_BARE = 160  # characters; a longer question may hold a case history, which an answer may well refer to
# What some base takes for a control token. Which of them matter is known where a base is chosen.
CONTROL_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|image|>", "<image>", "<s>", "</s>"),
)
# Signs that are no words: a turn that may be a placeholder, a colon, a bracket, a control character, known facts.
MISSING, COLON, BRACKET, CONTROL, FACTS = b"?", b":", b"<", b"^", b"#"


class Talk(NamedTuple):
    """A conversation as the rules read it."""

    example: Example
    turns: list[str]  # as written
    signs: set[bytes]
    pairs: list[tuple[str, str]]  # question and answer, in lower case and with straight apostrophes


def _first(talk: Talk, asked: Look | None, answered: Look | None) -> str:
    """What is found first in the questions and the answers."""
    looks = [
        (where, at, look)
        for where, at, look in (("question", 0, asked), ("answer", 1, answered))
        if look and not look.signs.isdisjoint(talk.signs)
    ]
    for pair in talk.pairs if looks else ():
        for where, at, look in looks:
            if match := look.pattern.search(pair[at]):
                return f"{where}: {match[0].strip()}"
    return ""


def sentinel(talk: Talk) -> str:
    for pair in talk.pairs:
        question, answer = (words.strip(EDGES) for words in pair)
        for where, words in (("question", question), ("answer", answer)):
            if not words or words in PLACEHOLDERS:
                return f"{where}: {words}"
        if answer in AT_TIMES and AT_TIMES[answer].match(question):
            return f"answer: {answer}"
    return ""


def refusal(talk: Talk) -> str:
    for _, answer in talk.pairs:
        match = REFUSED.pattern.search(answer)
        if match and not GOES_ON.search(answer, match.end()):
            return f"answer: {match[0].strip()}"
    return ""


def chatter(talk: Talk) -> str:
    return _first(talk, ASKED, REPLIED) or _first(talk, TASK, TASK)


def caption_leak(talk: Talk) -> str:
    if not talk.example.images:  # a text may well be about a text
        return ""
    bare = [pair for pair in talk.pairs if len(pair[0]) <= LONGEST_BARE]
    return (
        _first(talk, CAPTION, CAPTION)
        or _first(talk._replace(pairs=talk.pairs[:1]), EARLIER, EARLIER)
        or _first(talk._replace(pairs=bare), INFORMATION, INFORMATION)
    )


def ungrounded(talk: Talk) -> str:
    if not talk.example.images:
        return ""
    for _, answer in talk.pairs:
        match = UNGROUNDED.pattern.search(answer)
        if match and not (HEDGED.search(answer, 0, match.start()) or GOES_ON.search(answer, match.end())):
            return f"answer: {match[0].strip()}"
    return ""


def control_character(talk: Talk) -> str:
    for message, turn in zip(talk.example.messages, talk.turns, strict=True):
        if match := CONTROL_CHARACTER.search(turn):
            where = {"user": "question", "assistant": "answer"}.get(message["role"], message["role"])
            return f"{where}: {turn[max(0, match.start() - 20) : match.end() + 20]!r}"
    return ""


def special_token(talk: Talk) -> str:
    return ", ".join(token for token in CONTROL_TOKENS if any(token in turn for turn in talk.turns))


def label_conditioned(talk: Talk) -> str:
    facts = talk.example.facts
    years = f"{facts.age:.0f}" if facts.age is not None and facts.age.is_integer() else ""
    person = PERSONS.get(facts.sex or "")
    for question, answer in talk.pairs:
        for where, words in (("question", question), ("answer", answer)):
            ages = AGE.finditer(words) if years and years in words else ()
            if match := next((age for age in ages if years in age.groups()), None) or (person and person.search(words)):
                return f"{where}: {match[0]}"
        # what the question offers is chosen, and a few words are a yes or a no
        more = len(answer.split()) > 3 and answer.strip(EDGES) not in question
        name = facts.diagnosis
        if more and name and name in question and re.search(rf"\b{re.escape(name)}\b", question):
            return f"question: {name}"
    return ""
