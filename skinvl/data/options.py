"""Which of a question's options an answer names, where several may be right: by letter, by number or by name.

A letter or number is an option's only where the question lists its options with letters or numbers. Nothing is guessed:
an answer that hedges, contradicts itself or names no option in so many words is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from string import ascii_uppercase

from skinvl.data import clauses
from skinvl.data.clauses import SplitText
from skinvl.data.match import unwrapped
from skinvl.data.mentions import mentioned, stems_of

NONE = frozenset[int]()
_CONTRADICTION = frozenset({-1})
# What may stand before a list of options, whole or at the end of a longer answer.
_LEAD = re.compile(
    r"^\W*(?:(?:the|my)\s+)?(?:(?:correct|right|best|final)\s+)*(?:answers?|options?|choices?|selections?)\b"
    r"\s*(?:is|are)?\s*[:=]?\s*(?:options?\b)?\s*(?=\S)",
    re.I,
)
_ANSWER = re.compile(r"\b(?:final|correct|my)?\s*(?:answers?|choices?|selections?)\s*(?:is|are)?\s*[:=]\s*", re.I)
_SEPARATORS = (re.compile(r"[\n;|]+"), re.compile(r"[,/&]|\band\b", re.I))
_EDGES = " \t\"'\u2018\u2019\u201c\u201d[]{}*_`.,:-\u2013\u2022"  # around an item: quotes, brackets, bullets
_MARKED = re.compile(
    r"[(\[]?\b(?P<mark>[A-Za-z]|\d{1,2})\b(?P<sign>[)\].:]*(?:\s*[-\u2013\u2014])?)\s*(?P<name>.*)", re.S
)
_NOTHING = re.compile(r"\W*(?:none|nothing)(?:\s+of\s+(?:the\s+above|these|them|the\s+options))?\W*", re.I)


@lru_cache(maxsize=1 << 14)
def chosen(answer: str, question: str, options: tuple[str, ...]) -> frozenset[int] | None:
    """The numbers from 0 of all options that the answer names; None where that cannot be told.

    An answer that says so names none of them; an empty one, as of a thought that was cut, says nothing.

    >>> sites = ("Face", "Arm", "Leg")
    >>> chosen("A, C", "Where? (A) Face (B) Arm (C) Leg", sites) == chosen("Face and leg.", "Where?", sites) == {0, 2}
    True
    >>> print(chosen("A, C", "Where?", sites), chosen("Arm or leg", "Where?", sites), chosen("", "Where?", sites))
    None None None
    """
    if not answer.strip():
        return None
    text = unwrapped(answer).strip()
    if not any(sign.isalnum() for sign in text):
        return None if any(sign.isalnum() for sign in answer) else NONE  # JSON in which no text is found is not read
    marks = _marks(question, options)
    listed = _listed(text, marks, options) or _listed(_LEAD.sub("", text), marks, options)
    if listed is None and (leads := list(_ANSWER.finditer(text))):
        listed = _listed(text[leads[-1].end() :], marks, options)
    if listed is None:
        listed = NONE if _NOTHING.fullmatch(text) else _mentioned(text, marks, options)
    return None if listed == _CONTRADICTION else listed


@lru_cache(maxsize=1 << 14)
def _marks(question: str, options: tuple[str, ...]) -> Mapping[str, int]:
    """Letter or number → option, where the question lists every option behind it; empty where it does not."""
    text = _folded(question)
    for marks in (ascii_uppercase, [str(number) for number in range(1, len(options) + 1)]):
        pairs = list(zip(marks, options, strict=False))
        patterns = [
            rf"(?<!\w)[(\[]?{mark.casefold()}(?:[)\].:]+|\s*[-\u2013\u2014])\s*{re.escape(_folded(name))}"
            for mark, name in pairs
        ]
        if len(pairs) == len(options) and all(re.search(pattern, text) for pattern in patterns):
            return {mark: number for number, (mark, _) in enumerate(pairs)}
    return {}


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _listed(text: str, marks: Mapping[str, int], options: tuple[str, ...]) -> frozenset[int] | None:
    """What a text names that is one option or a list of them and nothing else; None for any other text."""
    numbers = _single(text, marks, options)
    for separator in _SEPARATORS:
        parts = [part for part in separator.split(text) if part.strip(_EDGES)]
        if numbers is not None or len(parts) < 2:
            continue
        of_parts = [_listed(part, marks, options) for part in parts]
        known = [part for part in of_parts if part is not None]
        if len(known) == len(parts):
            numbers = _CONTRADICTION if _CONTRADICTION in known else NONE.union(*known)
    return numbers


def _single(text: str, marks: Mapping[str, int], options: tuple[str, ...]) -> frozenset[int] | None:
    """The option that a text names and nothing else, by its name, its mark, or both where they agree."""
    bare = text.strip(_EDGES)
    if (number := _named(bare, options)) is not None:
        return frozenset({number})
    marked = _MARKED.fullmatch(bare)
    if marked is None:
        # Letters without anything between them, as in "ACD".
        run = [marks.get(letter) for letter in bare]
        numbers = [number for number in run if number is not None]
        ascends = bare.isupper() and len(numbers) == len(run) > 1 and numbers == sorted({*numbers})
        return frozenset(numbers) if ascends else None

    by_mark, name = marks.get(marked["mark"].upper()), marked["name"].strip(_EDGES + ")")
    is_kind = marked["mark"].isalpha() == ("A" in marks) and bool(marks)  # a letter among letters, …
    if not name:
        return frozenset({by_mark}) if by_mark is not None else _CONTRADICTION if is_kind else None
    by_name = _named(name, options)
    is_article = not marked["sign"] and marked["mark"].casefold() == "a"
    if by_name is None or not (marked["sign"] or is_article or by_mark is not None):
        return None
    is_own = by_mark is None and not is_kind  # of a list that the answer makes
    return frozenset({by_name}) if by_mark == by_name or is_own or is_article else _CONTRADICTION


def _named(text: str, options: tuple[str, ...]) -> int | None:
    """The one option whose name the text is."""
    stems = stems_of(text)
    same = [number for number, name in enumerate(options) if stems and stems_of(name) == stems]
    exact = [number for number in same if options[number].casefold() == text.casefold()]
    same = exact or same
    return same[0] if len(same) == 1 else None


def _mentioned(text: str, marks: Mapping[str, int], options: tuple[str, ...]) -> frozenset[int] | None:
    """All options that a text in sentences names and does not deny; None where it names none, or offers a choice."""
    words = SplitText.of(clauses.plain(text))
    letters = {mark: number for mark, number in marks.items() if mark.isalpha()}
    affirmed = [mention for mention in mentioned(words, options, letters) if mention.counted]
    stated = [mention for mention in affirmed if mention.denial or not words.asked(mention.last)] or affirmed
    if any(len(mention.counted) > 1 or mention.link == "or" for mention in stated):
        return None
    for first, second in pairwise(stated):
        if second.link == "=" and first.counted != second.counted:  # a letter, and another option's words
            return None
    return NONE.union(*(mention.counted for mention in stated)) or None
