"""Share right of the multiple-choice questions: those that list lettered options, such as `B. Melanoma` or `(b) scar`.

An answer chooses by the option's letter or its words, as a reader would take it, never by its first character; one that
names none, or several, is wrong. Of a question whose options or right option cannot be read nothing can be said: it is
counted as not scored, here and in no other metric of right and wrong. Where there are several references, the option of
any of them is right. Questions of which several options are right are those of option_set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_letters

from skinvl.data.match import choice_letter
from skinvl.data.normal import unmarked
from skinvl.score.metrics import means as value
from skinvl.score.metrics import right_answers
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "counts", "statistics", "unread", "value"]

NAMES = ("multiple_choice",)
# What marks an option where a line begins, and, more strictly, in the middle of a line.
_LINE = re.compile(
    r"^[ \t>\u2022\u2013\u2014-]*[(\[]?([A-Za-z])(?:[)\].:]+|[ \t]*[\u2013\u2014]|[ \t]+-|-(?=[ \t]))[ \t]*(?=\S)", re.M
)
_INLINE = re.compile(
    r"(?<![^\s(\[,;:|/?.!])[(\[]?([A-Za-z])(?:[)\]][.:]?|[.:]|[ \t]+[\u2013\u2014-](?=[ \t]))[ \t]*(?=\S)"
)
_EMPHASIS = re.compile(r"\*+|__|`")
_SEPARATORS = re.compile(r"[\s,;|/]*(?:(?<![^\s,;|/])(?:or|and))?[\s,;|/(\[]*$", re.I)  # before the next option
# What may stand behind the last option: what to do, or the question, as after panels "(a) face, (b) arm. What is it?".
_INSTRUCTION = re.compile(r"[.?!;][ \t]+(?:please|answer|choose|select|pick|reply|respond|give|return)\b.*", re.I)
_QUESTION = re.compile(r"[.!;][ \t]+[A-Z][^?\n]*\?[ \t]*$")
# A reference that is an option, with its letter or number; "C. albicans" is a name.
_OPTION = re.compile(r"\W{0,3}(?:[A-Za-z][)\]:]\s*\S|[A-Za-z]\.\s*[A-Z]|\d{1,2}[.)]\s+[A-Za-z])")


def counts(row: Answer) -> bool:
    """Whether the question lists at least two options and a reference chooses one."""
    return not row.options and row.schema is None and bool(_rights(row))


def unread(row: Answer) -> bool:
    """Whether it is a question of multiple choice of which the options, or the right one, cannot be read."""
    if row.options or row.schema is not None:
        return False
    question, reference = _plain(row.question), _plain(row.reference)
    is_choice = options(row.question) and not _QUESTION.search(question)
    return not counts(row) and bool(is_choice or _OPTION.match(reference))


def statistics(answer: str, row: Answer) -> tuple[float, float]:
    """1 if the answer chooses the option that a reference chooses, else 0; and 1, the row."""
    return float(choice_letter(answer, options(row.question)).choice in _rights(row)), 1.0


@lru_cache(maxsize=1 << 16)
def options(question: str) -> dict[str, str]:
    """Letter → option of a question that lists them in the order of the alphabet; empty for any other.

    >>> options("Which is it?\\nA. Nevus\\nB. Melanoma"), options("Is it (a) a nevus, or (b) a melanoma?")
    ({'A': 'Nevus', 'B': 'Melanoma'}, {'A': 'a nevus', 'B': 'a melanoma'})
    """
    text = _plain(question)
    by_line = {mark.start(1): mark for mark in _LINE.finditer(text)}
    anywhere = {mark.start(1): mark for mark in _INLINE.finditer(text)} | by_line

    # Lines alone, unless there are more options within them: of "A. hepatitis B." the B is none.
    lines = _run(text, [by_line[start] for start in sorted(by_line)])
    spread = _run(text, [anywhere[start] for start in sorted(anywhere)])
    run = spread if len(spread) > len(lines) else lines
    starts = {mark.start(1) for mark in run}
    if not run or any(start not in starts for start in by_line if start > min(starts)):
        return {}  # lines that go on with another letter are no list in order
    return {mark[1].upper(): option for mark, option in zip(run, _texts(text, run), strict=True)}


def _plain(text: str) -> str:
    return _EMPHASIS.sub("", unmarked(text))


def _run(text: str, marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """The marks of the longest list that begins with A or a; nothing where it has one option alone, or an empty one."""
    runs: list[list[re.Match[str]]] = [[]]
    for first, mark in enumerate(marks):
        if mark[1] not in "Aa":
            continue

        # The marks that go on with the next letter; others are part of an option.
        run = [mark]
        for later in marks[first + 1 :]:
            if later[1] == ascii_letters[ascii_letters.index(run[-1][1]) + 1]:
                run.append(later)
        if len(run) > 1 and all(_texts(text, run)):
            runs.append(run)
    return max(reversed(runs), key=len)


def _texts(text: str, run: Sequence[re.Match[str]]) -> list[str]:
    """What each option says: its line, without what separates it from the next, and what stands behind the last."""
    ends = [*(mark.start() for mark in run[1:]), len(text)]
    lines = [text[mark.end() : end].strip().partition("\n")[0] for mark, end in zip(run, ends, strict=True)]
    lines[-1] = _INSTRUCTION.sub("", _QUESTION.sub("", lines[-1]))
    return [_SEPARATORS.sub("", line).rstrip(" ?") for line in lines]


def _rights(row: Answer) -> set[str]:
    """The letters of the options that its references choose."""
    if not options(row.question):
        return set()
    return {letter for text in right_answers(row) if (letter := _right(row.question, text)) is not None}


@lru_cache(maxsize=1 << 16)
def _right(question: str, reference: str) -> str | None:
    return choice_letter(reference, options(question)).choice
