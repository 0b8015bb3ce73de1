"""What of a model's reply is kept, and why the rest is not: its pairs, and the first rule that each of them breaks.

The rules of `skinvl.sources.rules` judge what a model wrote as they judge what others did. The rules here know more:
what the model was asked, and what the context disclosed to it alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from skinvl.data.example import Example, Facts, text
from skinvl.sources import rules
from skinvl.sources.asking.request import Reply, Request
from skinvl.sources.reading import diagnoses, english, leakage, replies, verification
from skinvl.sources.reading.leakage import Disclosed
from skinvl.sources.reading.replies import QAPair
from skinvl.sources.rules import LONGEST_DETAIL, RULES, Rule, patterns

LABEL_CONDITIONED, SITE_CONDITIONED = "label-conditioned", "site-conditioned"
# Fewest words of an answer by the kind of its question, and of one of any other kind.
LEAST = {
    **{"overview": 15, "explanation": 15, "next_steps": 10, "differential": 8, "features": 8, "diagnosis": 4},
    **{"malignancy": 4, "anatomy": 4, "quality": 4, "lesion": 4, "task": 1},
}
LEAST_OTHER = 3
LEAST_QUESTION = 3
# Most words of an answer and of a question; an answer of 400 words is longer than any that was asked for.
MOST, MOST_QUESTION = 400, 120
MOST_TASK = 800
GRADED = "malignancy"  # the kind of question whose answer is held against the grade
# What an honest answer to these says: whether the image can tell at all.
MAY_NOT_TELL = ("anatomy", "quality")
# Of `skinvl.sources.rules`: what is left out here, and why. The first three have rules of their own below.
_NOT_JUDGED = ("label-conditioned", "near-duplicate", "missing-image")
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Screened:
    """A question and answer of a reply: kept with its tags, or dropped by a rule."""

    pair: QAPair  # empty words where the reply has none
    rule: str | None = None  # the rule that drops it
    detail: str = ""  # what was found, of at most 120 characters
    tags: tuple[str, ...] = ()  # of a kept one


_LISTED = (
    Rule(
        "unparsable",
        True,
        "The reply holds no JSON object with an answer, or was cut off within it; what is cut off is not completed.",
        None,
    ),
    Rule("no-pairs", True, "The model says, in the form that was asked for, that it has no question to offer.", None),
    *(RULES[name] for name in ("oversized", "control-character", "sentinel", "refusal", "chatter", "caption-leak")),
    RULES["ungrounded"],
    Rule(
        "special-token",
        True,
        "A text holds a control token of some base: no person writes one, and training refuses those of its own base.",
        None,
    ),
    Rule("too-short", True, "The answer or the question has fewer words than its kind needs (LEAST).", None),
    Rule("too-long", True, f"The answer has more than {MOST} words, or the question more than {MOST_QUESTION}.", None),
    Rule("language", True, "The text is not English, by its letters and function words.", None),
    Rule(
        "leaks-context",
        True,
        "About an image, a text states the age, sex, body site, diagnosis or grade that the hidden context had, where "
        "the image does not show it and it was not asked for; see leakage.DEALS.",
        None,
    ),
    Rule(
        "invents-context",
        True,
        "About an image, a text states an age or a sex of the patient that nobody told, and that no image shows.",
        None,
    ),
    Rule(
        "contradicts-label",
        True,
        "The answer denies the known diagnosis, or concludes that it is another; of a question about malignancy, the "
        "same of the grade.",
        None,
    ),
    Rule(
        LABEL_CONDITIONED,
        False,
        "The answer states the diagnosis or its grade, which was asked for: right, but the context told it.",
        None,
    ),
    Rule(
        SITE_CONDITIONED,
        False,
        "A text states the body site, which the context told and which the image may not show.",
        None,
    ),
    RULES["near-duplicate"],
)
SCREENS = {rule.name: rule for rule in _LISTED}  # in the order in which they are judged


def screen(request: Request, reply: Reply, facts: Facts) -> list[Screened]:
    """What came of a reply, at least one entry: its pairs in order, or why there is none.

    Whether a pair says the same as one of another reply is not judged here; see `skinvl.sources.reading.likeness`.

    Args:
        facts: all that is known of the image, whether or not it was disclosed to the model.
    """
    if reply.finish == "content_filter":
        return [Screened(QAPair("", ""), "refusal", "finish reason: content_filter")]
    pairs = replies.pairs(reply.text, request.question)
    if pairs is None:
        return [Screened(QAPair(request.question or "", ""), *_unread(reply))]
    if not pairs:
        return [Screened(QAPair("", ""), "no-pairs", "an empty list")]
    disclosed = leakage.disclosed(facts, request.context)
    several = request.question is None and "pairs" in request.schema.get("properties", ())
    return [_screened(request, pair, facts, disclosed) for pair in (pairs if several else pairs[-1:])]


def fault(request: Request, reply: str) -> str | None:
    """What keeps a reply from being read, in words for the model that gave it; None where it can be read.

    A refusal is none: to ask for its form again would only pay for it twice.
    """
    if request.kind == verification.KIND:
        supported = verification.read(reply).supported
        return "no JSON object in which supported is yes, no or unsure" if supported == "unreadable" else None
    if replies.pairs(reply, request.question) is not None or _refused(reply):
        return None
    return "no JSON object of the form that was asked for, or one that is cut off"


def _refused(reply: str) -> str:
    """The words of a reply without any JSON that decline; nothing where it does not."""
    match = patterns.REFUSED.pattern.search(reply.lower().replace("’", "'"))
    return match[0].strip() if match and "{" not in reply else ""


def _unread(reply: Reply) -> tuple[str, str]:
    """The rule that an unreadable reply breaks, and what was found."""
    words = " ".join(reply.text.split())
    if refused := _refused(words):
        return "refusal", f"answer: {refused}"[:LONGEST_DETAIL]
    cut = f"cut off after {reply.completion_tokens:,} tokens: " if reply.finish == "length" else ""
    return "unparsable", (cut + (words or "an empty reply"))[:LONGEST_DETAIL]


def _screened(request: Request, pair: QAPair, facts: Facts, disclosed: Disclosed) -> Screened:
    tags: list[str] = []
    for rule, detail in _breaches(request, pair, facts, disclosed):
        if SCREENS[rule].drops:
            return Screened(pair, rule, detail[:LONGEST_DETAIL])
        tags.append(rule)
    return Screened(pair, tags=tuple(dict.fromkeys(tags)))


def _breaches(request: Request, pair: QAPair, facts: Facts, disclosed: Disclosed) -> Iterator[tuple[str, str]]:
    """(rule, what was found) of every rule that the pair breaks, in the order of SCREENS."""
    if _HALF.search(pair.question + pair.answer):
        yield "unparsable", "half of a surrogate pair, which no file can hold"
        return
    if not (pair.question and pair.answer):
        yield "sentinel", "answer: " if pair.question else "question: "
        return
    yield from _broken(request, pair)
    yield from _measured(request, pair)
    for where, words in (("question", pair.question), ("answer", pair.answer)):
        if (where == "answer" or request.question is None) and (why := english.foreign(words)):
            yield "language", f"{where}: {why}"

    if request.image is None:  # a task may tell of any patient
        return
    yield from _leaks(request, pair, facts, disclosed)
    yield from _contradictions(request, pair, facts)


def _broken(request: Request, pair: QAPair) -> Iterator[tuple[str, str]]:
    """What `skinvl.sources.rules` finds in the pair as a conversation."""
    images = (request.image,) if request.image else ()
    turns = text("user", pair.question, images=len(images)), text("assistant", pair.answer)
    example = Example(request.id, "synth", images, turns, request.unit, "train", "unknown")
    for rule, detail in rules.broken(example):
        if rule not in _NOT_JUDGED and not (rule == "ungrounded" and request.kind in MAY_NOT_TELL):
            yield rule, detail


def _measured(request: Request, pair: QAPair) -> Iterator[tuple[str, str]]:
    question_words, answer_words = len(pair.question.split()), len(pair.answer.split())
    least = LEAST.get(request.kind, LEAST_OTHER)
    most, most_question = (MOST, MOST_QUESTION) if request.image else (MOST_TASK, MOST_TASK)
    if answer_words < least:
        yield "too-short", f"answer: {answer_words} of {least} words"
    if request.question is None and question_words < LEAST_QUESTION:
        yield "too-short", f"question: {question_words} of {LEAST_QUESTION} words"
    if answer_words > most:
        yield "too-long", f"answer: {answer_words} words, at most {most}"
    if question_words > most_question:
        yield "too-long", f"question: {question_words} words, at most {most_question}"


def _leaks(request: Request, pair: QAPair, facts: Facts, disclosed: Disclosed) -> Iterator[tuple[str, str]]:
    programme_asked = request.question is not None  # such a question knows no facts
    for where, words in (("question", "" if programme_asked else pair.question), ("answer", pair.answer)):
        question = where == "question"
        for statement in leakage.stated(words, disclosed, question):
            deal = leakage.deal(statement.fact, request.kind, facts.modality, question)
            if deal == "drop":
                rule = "leaks-context" if statement.disclosed else "invents-context"
                yield rule, f"{where}: {statement.fact}: {statement.words}"
            elif deal == "tag":
                yield SITE_CONDITIONED if statement.fact == "site" else LABEL_CONDITIONED, ""


def _contradictions(request: Request, pair: QAPair, facts: Facts) -> Iterator[tuple[str, str]]:
    diagnosis = diagnoses.Known.diagnosis(facts.diagnosis) if facts.diagnosis else None
    grade = diagnoses.Known.grade(facts.malignancy or "") if request.kind == GRADED else None
    for known in (diagnosis, grade):
        if known and (why := diagnoses.contradiction(pair.question, pair.answer, known)):
            yield "contradicts-label", f"answer {why}"
