"""Which one class a free answer names; where it names none, or more than one, it says so and never guesses."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase
from typing import Literal

from skinvl.data import clauses
from skinvl.data.clauses import SplitText
from skinvl.data.mentions import ARTICLES, BETWEEN, LINKS, Mention, mentioned, stems_of

_JSON_KEYS = ("final_answer", "answer", "choice", "option", "class", "label", "prediction", "diagnosis")
# Conclusions, the surest first: a surer one overrules the others.
_FINAL = {"answer", "diagnosis", "choice", "classification", "decision", "conclusion", "verdict", "prediction"}
_CHOSEN = {"say", "choose", "chose", "select", "selected", "pick", "picked"}
_CHOOSERS = {"i", "we", "would", "will", "d", "ll", "therefore", "must"}  # right before one of the words above
_GO = {"go", "goes", "going", "went", "gone"}  # … with X
_LEAN = {"lean", "leans", "leaning", "leaned", "leant"}  # … towards X
_FAVORS = {"favor", "favors", "favoring", "favour", "favours", "favouring"}
_FAVORED = {"favored", "favoured"}  # of what stands before: "nevus is favoured over melanoma"
_TOWARDS = {"toward", "towards", "to"}
_ANSWERS = {"answer", "choice", "selection", "pick", "verdict"}
_LIKELY = {
    *("likely", "closely", "probable", "consistent", "compatible", "suggestive", "typical", "plausible"),
    "appropriate",
}
_BEST = {"fit", "fits", "match", "matches", "described", "classified", "answer", "option", "choice", "diagnosis"}
_SUMS_UP = {"therefore", "thus", "hence", "conclude", "conclusion", "overall", "summary"}
_NAMES = {"diagnosis", "prediction", "impression", "category", "class", "label", "classification"}
_OTHERS = {"differential", "differentials", "alternative", "other", "second", "secondary", "next", "third", "possible"}


@dataclass(frozen=True, slots=True)
class Match:
    """The class that an answer names, if it names exactly one."""

    outcome: Literal["matched", "none", "ambiguous"]
    choice: str | None = None


def match(answer: str, classes: Sequence[str], letters: bool = False) -> Match:
    """The one of the classes that the answer names.

    Classes are found as whole words, the longest name first, by every spelling that `labels` knows, plurals too. A
    mention that is denied ("not melanoma", "nevus rather than melanoma") does not count, nor does a question. Where
    several classes are left, a stated conclusion decides ("Final answer: nevus"), and without one nothing does.

    Args:
        letters: whether the prompt listed the classes as A, B, C, …, so that an answer may name one by its letter.

    >>> match("No evidence of melanoma; most consistent with naevi.", ("Melanoma", "Nevus"))
    Match(outcome='matched', choice='Nevus')
    >>> match("This is not a tumor.", ("nontumor", "tumor")).choice, match("Melanoma or nevus.", ("Melanoma", "Nevus"))
    ('nontumor', Match(outcome='ambiguous', choice=None))
    """
    names = tuple(classes)
    keys = ascii_uppercase[: len(names)] if letters else ""
    return _match(answer, names, {key: number for number, key in enumerate(keys)}, names)


def choice_letter(answer: str, options: Mapping[str, str]) -> Match:
    """The letter of the one option that the answer names, by its letter, by its words, or by both where they agree.

    Args:
        options: letter → what the option says.

    >>> choice_letter("The answer is B", {"A": "Nevus", "B": "Melanoma", "T": "Scar"}).choice
    'B'
    """
    keys = tuple(options)
    return _match(answer, tuple(options.values()), {key.upper(): number for number, key in enumerate(keys)}, keys)


def _match(answer: str, names: tuple[str, ...], letters: Mapping[str, int], choices: Sequence[str]) -> Match:
    # An answer that is one name and nothing else needs no reading.
    text = SplitText.of(clauses.plain(unwrapped(answer)))
    exact = [number for number, name in enumerate(names) if stems_of(name) == tuple(text.stems)]
    if len(exact) == 1:
        return Match("matched", choices[exact[0]])

    # What is asked about counts only where nothing is asserted.
    mentions = mentioned(text, names, letters)
    affirmed = [mention for mention in mentions if mention.counted]
    asserted = [mention for mention in affirmed if mention.denial or not text.asked(mention.last)]
    counted = asserted or affirmed

    classes = _classes(counted)
    if len(classes) > 1:
        classes = _conclusion(text, mentions, counted) or classes
    if not classes:
        return Match("none")
    return Match("matched", choices[min(classes)]) if len(classes) == 1 else Match("ambiguous")


def _classes(mentions: Iterable[Mention]) -> frozenset[int]:
    """All that the mentions say that the answer is."""
    return frozenset[int]().union(*(mention.counted for mention in mentions))


def unwrapped(answer: str) -> str:
    """What an answer in JSON says under the key of its answer, or in all of its texts; else the answer itself.

    A list of texts or numbers is what it lists, one after the other.
    """
    bare = re.sub(r"^```\w*\s*|\s*```$", "", answer.strip())
    if not bare.startswith("{"):
        return answer
    try:
        values = json.loads(bare)
    except (ValueError, RecursionError):
        return answer
    listed = {key: ", ".join(map(str, value)) for key, value in values.items() if _is_list(value)}
    texts = {
        key.casefold().replace(" ", "_"): value for key, value in (values | listed).items() if isinstance(value, str)
    }
    return next((texts[key] for key in _JSON_KEYS if key in texts), "\n".join(texts.values()))


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) or type(part) is int for part in value)


def _conclusion(text: SplitText, mentions: list[Mention], counted: list[Mention]) -> frozenset[int]:
    """What the surest statements conclude, all of them taken together; nothing where there is none."""
    # Every statement that marks itself as a conclusion, by how sure it is.
    tiers: dict[int, set[int]] = defaultdict(set)
    kept = {id(mention) for mention in counted}
    for index in range(len(text.written)):
        if marker := _marker(text, index, {mention.first for mention in counted}):
            tier, end, whole = marker
            tiers[tier] |= _stated(text, mentions, kept, index, end, tier, whole)

    # What a reason is given for, right after it: "D, because A and B are symmetric".
    for number, mention in enumerate(mentions):
        after = mention.last + 1
        if id(mention) in kept and text.lower[after : after + 1] == ["because"] and not text.stop(after):
            tiers[3] |= _listed(mentions, kept, number)

    # A first line of a class alone is the answer, unless it begins a list.
    if opening := _opening(text, mentions, kept):
        tiers[2] |= opening

    # A last line of a class alone, which was listed before; the last item of a list was not.
    start = max((index for index in range(1, len(text.written)) if text.stop(index)), default=0)
    last = [mention for mention in counted if mention.first >= start]
    if start and last and _is_bare(text, last, start, len(text.written)):
        earlier = _classes(mention for mention in counted if mention.first < start)
        repeated = _classes(last)
        if repeated <= earlier and last[0].link != "=":
            tiers[2 if last[0].letter else 4] |= repeated
    return next((frozenset(tiers[tier]) for tier in sorted(tiers) if tiers[tier]), frozenset())


def _marker(text: SplitText, index: int, starts: set[int]) -> tuple[int, int, bool] | None:
    """(how sure, the word after it, whether it covers its whole sentence) of a conclusion that begins at this word."""
    word = text.lower[index]
    before = text.lower[index - 1] if index else ""
    after = text.lower[index + 1] if index + 1 < len(text.written) else ""
    leads = after in LINKS or index + 1 in starts or re.search(r"[:=\n]", text.between[index + 1]) is not None
    if (word == "final" and after in _FINAL) or word == "boxed":
        return 1, index + (1 if word == "boxed" else 2), False
    if before in _OTHERS:
        return None
    if word in _CHOSEN and before in _CHOOSERS:
        return 2, index + 1, False
    if (word in _GO and after == "with") or (word in _LEAN and after in _TOWARDS):
        return 2, index + 2, False
    if word in _FAVORS:
        return 2 if before in _CHOOSERS else 3, index + 1, False
    if word in _FAVORED:
        return 3, len(text.written), False
    if (word in _ANSWERS and (leads or before in ("the", "my", "correct"))) or word in ("correct", "right"):
        return 2, index + 1 if leads else len(text.written), False
    if word == "option" and leads and before in ("correct", "right", "best", "likely", "appropriate", "my"):
        return 2, index + 1, False
    if (word in ("most", "more") and after in _LIKELY) or (word == "best" and after in _BEST):
        return 3, index + 2, False
    if word in _SUMS_UP:
        return 3, index + 1, True
    if (word in _NAMES and leads) or (word == "classified" and after == "as"):
        return 3, index + 1, False
    return None


def _stated(
    text: SplitText, mentions: list[Mention], kept: set[int], index: int, end: int, tier: int, whole: bool
) -> frozenset[int]:
    """The classes of one conclusion: of what it is said of ("nevus is most likely"), else of what follows it."""
    # The nearest mention before the marker, with those of its list, where a verb ties it to the marker.
    classes = frozenset[int]()
    for number in range(len(mentions) - 1, -1, -1):
        mention = mentions[number]
        between = text.lower[mention.last + 1 : index]
        if mention.last < index:
            stopped = any(text.stop(stop) for stop in range(mention.last + 1, index + 1))
            if {*between} & LINKS and {*between} <= BETWEEN and not stopped and id(mention) in kept:
                return _listed(mentions, kept, number)
            break

    # Else what follows up to the end of the sentence: the first mention and its list, or all of it if `whole`.
    concluded: int | None = None  # the last mention taken: a list goes on from there, and from nowhere else
    for number, mention in enumerate(mentions):
        if mention.first < end or (classes and not whole and not (mention.link and concluded == number - 1)):
            continue
        leap = tier < 3 or re.search(r"[:\n]", text.between[end]) is not None
        if any(text.stop(stop) for stop in range(end + (1 if leap else 0), mention.first + 1)) and mention.link != "=":
            break
        if id(mention) in kept:
            classes |= mention.counted
            concluded = number
    return classes


def _listed(mentions: list[Mention], kept: set[int], number: int) -> frozenset[int]:
    """What a mention names, and those of the list that it ends."""
    classes = mentions[number].counted
    while mentions[number].link in ("or", "and", "=") and id(mentions[number - 1]) in kept:
        number -= 1
        classes |= mentions[number].counted
    return classes


def _opening(text: SplitText, mentions: list[Mention], kept: set[int]) -> frozenset[int]:
    """What the first line names and nothing else, where others explain it; nothing where it begins a list."""
    # The words of each line, and what they name.
    breaks = [index for index in range(1, len(text.written)) if "\n" in text.between[index]]
    lines = list(pairwise([0, *breaks, len(text.written)]))
    named = [[mention for mention in mentions if first <= mention.first < end] for first, end in lines]
    if len(lines) < 2 or not named[0] or not _is_bare(text, named[0], *lines[0]):
        return frozenset()
    opening = _classes(mention for mention in named[0] if id(mention) in kept)
    if len(opening) != 1:
        return frozenset()

    # A list: another line is an option alone, or begins with the option that comes next, as in "A. nevus⏎B. scar: no".
    for (first, end), in_line in zip(lines[1:], named[1:], strict=True):
        if not in_line or _classes(in_line) == opening:
            continue
        item = in_line[0].letter and in_line[0].first == first and re.match(r"[.):]", text.between[first + 1])
        if _is_bare(text, in_line, first, end) or (item and in_line[0].classes == {min(opening) + 1}):
            return frozenset()
    return opening


def _is_bare(text: SplitText, mentions: list[Mention], first: int, end: int) -> bool:
    """Whether the words from the first up to the end are those of the mentions, and articles."""
    spoken = {index for mention in mentions for index in range(mention.first, mention.last + 1)}
    return all(index in spoken or text.lower[index] in ARTICLES for index in range(first, end))
