"""Which one class a free answer names; where it names none, or more than one, it says so and never guesses."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase
from typing import Literal

from skinvl.data import clauses, labels
from skinvl.data.clauses import Denial, SplitText

Stems = tuple[str, ...]
Lexicon = dict[str, list[tuple[Stems, frozenset[int], int | None]]]

_WITHIN = re.compile(r"[ \-,/'(]{0,3}")  # what may stand between the words of one name
# What holds the name of a class and is something else.
_DECOYS = (
    *("lentigo maligna", "nevus sebaceous", "sebaceous nevus", "nevus flammeus", "nevus depigmentosus"),
    *("keratosis pilaris", "malignant potential", "malignant transformation", "basal cell nevus"),
)
_VAGUE = {("other",), ("unknown",), ("none",), ("normal",)}  # classes that are common words: named only on their own
_NOT_VAGUE = {"no", "any", "each", "many", "some", "the", "every", "among", "most", "several", "all", "these"}
_JSON_KEYS = ("final_answer", "answer", "choice", "option", "class", "label", "prediction", "diagnosis")
_ARTICLES = {"a", "an", "the", "any", "either", "neither", "both"}
_OR = {"or", "nor", "vs", "versus"}
# Conclusions, the surest first: a surer one overrules the others.
_FINAL = {"answer", "diagnosis", "choice", "classification", "decision", "conclusion", "verdict", "prediction"}
_CHOSEN = {"say", "choose", "chose", "select", "selected", "pick", "picked"}
_ANSWERS = {"answer", "choice", "selection", "pick", "verdict"}
_LIKELY = {
    "likely",
    "closely",
    "probable",
    "consistent",
    "compatible",
    "suggestive",
    "typical",
    "plausible",
    "appropriate",
}
_BEST = {"fit", "fits", "match", "matches", "described", "classified", "answer", "option", "choice", "diagnosis"}
_SUMS_UP = {"therefore", "thus", "hence", "conclude", "conclusion", "overall", "summary"}
_NAMES = {"diagnosis", "prediction", "impression", "category", "class", "label", "classification"}
_OTHERS = {"differential", "differentials", "alternative", "other", "second", "secondary", "next", "third", "possible"}
_LINKS = {"is", "are", "was", "be", "would", "should", "seems", "appears", "remains", "looks", "being"}
_BETWEEN = {*_LINKS, "the", "a", "as", "by", "far", "my", "to", "therefore", "one", "also", "correct", "right"}
# Letters: what stands before one that is an option, or before one that is something else; what follows an option A.
_CUES = {"answer", "option", "options", "choice", "letter", "choose", "select", "pick", "selected", "chose", "picked"}
_NO_OPTION = {"vitamin", "hepatitis", "type", "grade", "stage", "group", "figure", "panel", "patient", "fig", "part"}
_CELLS = {"cell", "cells", "lymphocyte", "lymphocytes", "symptoms", "complex"}
_AFTER_A = {"is", "because", "as", "since", "fits", "seems", "would", "and", "or", "but", "for", "matches", "was"}


@dataclass(frozen=True, slots=True)
class Match:
    """The class that an answer names, if it names exactly one."""

    outcome: Literal["matched", "none", "ambiguous"]
    choice: str | None = None


@dataclass(slots=True)
class Mention:
    """Words that name a class, or several classes alike; `flips` is the class that their denial names, if any."""

    first: int
    last: int
    classes: frozenset[int]
    flips: int | None = None
    letter: bool = False
    link: str = ""  # what ties it to the mention before: or, and, a comma, or = where both name the same
    denial: Denial | None = None

    @property
    def counted(self) -> frozenset[int]:
        """What the mention says that the answer is."""
        if self.denial is None:
            return self.classes
        return frozenset() if self.denial == "open" or self.flips is None else frozenset({self.flips})


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
    return _match(answer, names, {key: place for place, key in enumerate(keys)}, names)


def choice_letter(answer: str, options: Mapping[str, str]) -> Match:
    """The letter of the one option that the answer names, by its letter, by its words, or by both where they agree.

    Args:
        options: letter → what the option says.

    >>> choice_letter("The answer is B", {"A": "Nevus", "B": "Melanoma", "T": "Scar"}).choice
    'B'
    """
    keys = tuple(options)
    return _match(answer, tuple(options.values()), {key.upper(): place for place, key in enumerate(keys)}, keys)


def _match(answer: str, names: tuple[str, ...], letters: Mapping[str, int], choices: Sequence[str]) -> Match:
    words = SplitText.of(clauses.plain(_unwrapped(answer)))
    if len(whole := [place for place, name in enumerate(names) if _stems(name) == tuple(words.stems)]) == 1:
        return Match("matched", choices[whole[0]])
    mentions = mentioned(words, names, letters)
    sure = [one for one in mentions if one.counted and (one.denial or not words.asked(one.last))]
    counted = sure or [one for one in mentions if one.counted]
    found = frozenset[int]().union(*(one.counted for one in counted))
    if len(found) > 1:
        found = _conclusion(words, mentions, counted) or found
    if not found:
        return Match("none")
    return Match("matched", choices[min(found)]) if len(found) == 1 else Match("ambiguous")


def mentioned(words: SplitText, names: tuple[str, ...], letters: Mapping[str, int]) -> list[Mention]:
    """What the words name of some classes, in order, and whether it is denied or left open.

    Args:
        letters: place of a class by the letter that may stand for it.
    """
    mentions = _mentions(words, _lexicon(names), letters)
    _judge(words, mentions)
    return mentions


def _unwrapped(answer: str) -> str:
    """What an answer in JSON says under the key of its answer, or in all of its texts; else the answer itself."""
    bare = re.sub(r"^```\w*\s*|\s*```$", "", answer.strip())
    if not bare.startswith("{"):
        return answer
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        return answer
    texts = {str(key).casefold().replace(" ", "_"): one for key, one in found.items() if isinstance(one, str)}
    return next((texts[key] for key in _JSON_KEYS if key in texts), "\n".join(texts.values()))


@lru_cache(maxsize=256)
def _lexicon(names: tuple[str, ...]) -> Lexicon:
    """First stem → (the stems of a name, its classes, the class that its denial names), the longest name first."""
    exact: dict[Stems, set[int]] = defaultdict(set)
    other: dict[Stems, set[int]] = defaultdict(set)
    for place, name in enumerate(names):
        exact[_stems(name)].add(place)
        for spelling in labels.spellings(name):
            other[_stems(spelling)].add(place)
    meant = {stems: frozenset[int]() for stems in map(_stems, _DECOYS)} | {
        stems: frozenset(exact.get(stems) or some) for stems, some in (other | exact).items() if stems
    }
    flips: dict[int, int] = {}
    hidden: dict[Stems, int] = {}
    for stems, places in exact.items():
        if len(stems) == 1 and len(places) == 1 and stems[0].startswith("non") and len(stems[0]) > 4:
            (place,) = places
            base = (stems[0][3:],)
            flips |= dict.fromkeys(exact.get(base, ()), place)
            if base not in meant:
                hidden[base] = place
    found: Lexicon = defaultdict(list)
    for stems, some in meant.items():
        found[stems[0]].append((stems, some, flips.get(min(some)) if len(some) == 1 else None))
    for stems, place in hidden.items():
        found[stems[0]].append((stems, frozenset(), place))
    for entries in found.values():
        entries.sort(key=lambda entry: (-len(entry[0]), entry[0]))
    return dict(found)


@lru_cache(maxsize=4096)
def _stems(name: str) -> Stems:
    return tuple(SplitText.of(clauses.plain(name)).stems)


def _mentions(words: SplitText, lexicon: Lexicon, letters: Mapping[str, int]) -> list[Mention]:
    """What the answer names, in order; decoys are left out."""
    found: list[Mention] = []
    place = 0
    while place < len(words.said):
        mention = _named(words, place, lexicon)
        if mention is None and len(words.said[place]) == 1 and words.said[place].upper() in letters:
            before = found[-1].last if found and found[-1].letter else None
            if _is_option(words, place, before):
                mention = Mention(place, place, frozenset({letters[words.said[place].upper()]}), letter=True)
        if mention is not None and (mention.classes or mention.flips is not None):
            found.append(mention)
        place = mention.last + 1 if mention else place + 1
    return found


def _named(words: SplitText, place: int, lexicon: Lexicon) -> Mention | None:
    """The longest name that begins at this word."""
    for stems, classes, flips in lexicon.get(words.stems[place], ()):
        last = place + len(stems) - 1
        if tuple(words.stems[place : last + 1]) != stems:
            continue
        if not all(_WITHIN.fullmatch(gap) for gap in words.between[place + 1 : last + 1]):
            continue
        if stems in _VAGUE and not _alone(words, place):
            continue
        like = words.lower[last + 1 : last + 2] == ["like"] and words.between[last + 1] in ("-", " ")
        return Mention(place, last, frozenset()) if like else Mention(place, last, classes, flips)
    return None


def _alone(words: SplitText, place: int) -> bool:
    """Whether a common word is the name of a class: nothing that it could belong to follows."""
    if place and words.lower[place - 1] in _NOT_VAGUE and not re.search(r"[\"']$", words.between[place]):
        return False
    if place + 1 == len(words.said) or words.lower[place + 1] in ("class", "category"):
        return True
    return re.search(r"[^\w\s]|\n", words.between[place + 1]) is not None


def _is_option(words: SplitText, place: int, letter_before: int | None) -> bool:
    """Whether a single letter is an option: not an article, and no part of a name such as vitamin D."""
    said = words.said[place]
    left, right = words.between[place], words.between[place + 1]
    before = words.lower[place - 1] if place else ""
    after = words.lower[place + 1] if place + 1 < len(words.said) else ""
    if len(words.said) == 1 or (re.search(r"[(\[{]$", left) and re.match(r"[)\]}]", right)):
        return True
    begins = place == 0 or re.search(r"[\n,;:.|!?-]", left) is not None
    if begins and right.startswith(")"):
        return True
    closed = after == "" or re.match(r"[.,;:)!?\]}\"\n]|['-] ", right) is not None
    cues = [word for word in words.lower[max(0, place - 4) : place] if word not in (*_BETWEEN, "it")]
    cued = bool(cues) and cues[-1] in _CUES and not words.stop(place)
    if said.islower():
        return cued and closed
    if before in _NO_OPTION or after in _CELLS:
        return False
    if letter_before is not None and (
        (letter_before == place - 2 and before in (*_OR, "and")) or (letter_before == place - 1 and set(left) & {*",/"})
    ):
        return True
    if said == "I":  # the pronoun, unless it was asked for or stands as an item of a list
        return closed and (cued or begins)
    return closed or said != "A" or after in _AFTER_A


def _judge(words: SplitText, mentions: list[Mention]) -> None:
    """Nothing; each mention then knows what ties it to the one before, and whether it is denied."""
    named = {place for one in mentions for place in range(one.first, one.last + 1)}
    before: list[Denial | None] = []
    for number, one in enumerate(mentions):
        one.link = _link(words, mentions[number - 1], one) if number else ""
        before.append(words.before(one.first, named))
    after = [words.after(one.last, named) for one in mentions]
    for number in range(1, len(mentions)):
        if before[number] is None and _shares(mentions, number):
            before[number] = before[number - 1]
    for number in range(len(mentions) - 1, 0, -1):
        last = mentions[number].last
        plural = {*words.lower[last + 1 : last + 3]} & {"are", "were"}
        if after[number - 1] is None and _shares(mentions, number) and (mentions[number].link != "and" or plural):
            after[number - 1] = after[number]
    for one, earlier, later in zip(mentions, before, after, strict=True):
        one.denial = earlier or later


def _shares(mentions: Sequence[Mention], number: int) -> bool:
    """Whether what is denied of the mention before is denied of this one: they stand in one list."""
    if mentions[number].link != ",":
        return bool(mentions[number].link)
    for one in mentions[number + 1 :]:  # only "no a, b or c" goes on over its commas
        if one.link in ("or", ""):
            return one.link == "or"
    return False


def _link(words: SplitText, one: Mention, other: Mention) -> str:
    gaps = words.between[one.last + 1 : other.first + 1]
    if len(gaps) == 1 and "\n" not in gaps[0]:
        if one.letter and not other.letter and re.fullmatch(r"[ ).:\-\]}]{1,4}", gaps[0]):
            return "="
        if other.letter and not one.letter and re.fullmatch(r" ?[(\[]", gaps[0]):
            return "="
    between = words.lower[one.last + 1 : other.first]
    if not {*between} <= {*_ARTICLES, *_OR, "and"} or any(
        words.stop(at) for at in range(one.last + 1, other.first + 1)
    ):
        return ""
    if any(set(gap) & {*"():[]"} for gap in gaps):
        return ""
    if {*between} & _OR or "/" in gaps[0]:
        return "or"
    return "and" if "and" in between and "," not in gaps[0] else ","


def _conclusion(words: SplitText, mentions: list[Mention], counted: list[Mention]) -> frozenset[int]:
    """What the surest statements conclude, all of them taken together; nothing where there is none."""
    tiers: dict[int, set[int]] = defaultdict(set)
    kept = {id(one) for one in counted}
    for place in range(len(words.said)):
        if marker := _marker(words, place, {one.first for one in counted}):
            tier, end, whole = marker
            tiers[tier] |= _stated(words, mentions, kept, place, end, tier, whole)
    start = max((place for place in range(1, len(words.said)) if words.stop(place)), default=0)
    last = [one for one in counted if one.first >= start]
    spoken = {place for one in last for place in range(one.first, one.last + 1)}
    if start and last and all(at in spoken or words.lower[at] in _ARTICLES for at in range(start, len(words.said))):
        # A last line of a class alone, which was listed before; the last item of a list was not.
        earlier = frozenset[int]().union(*(one.counted for one in counted if one.first < start))
        said = frozenset[int]().union(*(one.counted for one in last))
        if said <= earlier and last[0].link != "=":
            tiers[2 if last[0].letter else 4] |= said
    return next((frozenset(tiers[tier]) for tier in sorted(tiers) if tiers[tier]), frozenset())


def _marker(words: SplitText, place: int, starts: set[int]) -> tuple[int, int, bool] | None:
    """(how sure, the word after it, whether it covers its whole sentence) of a conclusion that begins at this word."""
    word = words.lower[place]
    before = words.lower[place - 1] if place else ""
    after = words.lower[place + 1] if place + 1 < len(words.said) else ""
    leads = after in _LINKS or place + 1 in starts or re.search(r"[:=\n]", words.between[place + 1]) is not None
    if (word == "final" and after in _FINAL) or word == "boxed":
        return 1, place + (1 if word == "boxed" else 2), False
    if before in _OTHERS:
        return None
    if word in _CHOSEN and before in ("i", "would", "will", "d", "ll", "therefore", "must"):
        return 2, place + 1, False
    if (word in _ANSWERS and (leads or before in ("the", "my", "correct"))) or word in ("correct", "right"):
        return 2, place + 1 if leads else len(words.said), False
    if (word in ("most", "more") and after in _LIKELY) or (word == "best" and after in _BEST):
        return 3, place + 2, False
    if word in _SUMS_UP:
        return 3, place + 1, True
    if (word in _NAMES and leads) or (word == "classified" and after == "as"):
        return 3, place + 1, False
    return None


def _stated(
    words: SplitText, mentions: list[Mention], kept: set[int], place: int, end: int, tier: int, whole: bool
) -> frozenset[int]:
    """The classes of one conclusion: of what it is said of ("nevus is most likely"), else of what follows it."""
    said = frozenset[int]()
    for number in range(len(mentions) - 1, -1, -1):
        one = mentions[number]
        between = words.lower[one.last + 1 : place]
        if one.last < place:
            stopped = any(words.stop(at) for at in range(one.last + 1, place + 1))
            if {*between} & _LINKS and {*between} <= _BETWEEN and not stopped and id(one) in kept:
                said = one.counted
                while mentions[number].link in ("or", "and", "=") and id(mentions[number - 1]) in kept:
                    number -= 1
                    said |= mentions[number].counted
                return said
            break
    for number, one in enumerate(mentions):
        if one.first < end or (said and not whole and not (one.link and id(mentions[number - 1]) in kept)):
            continue
        leap = tier < 3 or re.search(r"[:\n]", words.between[end]) is not None
        if any(words.stop(at) for at in range(end + (1 if leap else 0), one.first + 1)) and one.link != "=":
            break
        said |= one.counted if id(one) in kept else frozenset()
    return said
