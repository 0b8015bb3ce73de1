"""Where a text names which of some classes, by every spelling or by a letter, and whether it denies or doubts it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
# What stands between the members of a list, and between a class and what is said of it.
ARTICLES = {"a", "an", "the", "any", "either", "neither", "both"}
_OR = {"or", "nor", "vs", "versus"}
LINKS = {"is", "are", "was", "be", "would", "should", "seems", "appears", "remains", "looks", "being"}
BETWEEN = {*LINKS, "the", "a", "as", "by", "far", "my", "to", "therefore", "one", "also", "correct", "right"}
# Letters: what stands before an option, and before a letter that is none; what follows an option A.
_CUES = {"answer", "option", "options", "choice", "letter", "choose", "select", "pick", "selected", "chose", "picked"}
_NO_OPTION = {"vitamin", "hepatitis", "type", "grade", "stage", "group", "figure", "panel", "patient", "fig", "part"}
_CELLS = {"cell", "cells", "lymphocyte", "lymphocytes", "symptoms", "complex"}
_AFTER_A = {"is", "because", "as", "since", "fits", "seems", "would", "and", "or", "but", "for", "matches", "was"}


@dataclass(slots=True)
class Mention:
    """Words that name a class, or several classes alike; `opposite` is the class that their denial names, if any."""

    first: int  # the index of its first word in the text, and of its last
    last: int
    classes: frozenset[int]
    opposite: int | None = None
    letter: bool = False
    link: str = ""  # what ties it to the mention before: or, and, a comma, or = where both name the same
    denial: Denial | None = None

    @property
    def counted(self) -> frozenset[int]:
        """What the mention says that the answer is."""
        if self.denial is None:
            return self.classes
        return frozenset() if self.denial == "open" or self.opposite is None else frozenset({self.opposite})


def mentioned(text: SplitText, names: tuple[str, ...], letters: Mapping[str, int]) -> list[Mention]:
    """What the text names of some classes, in order, and whether it is denied or left open.

    Args:
        letters: number of a class by the letter that may stand for it.
    """
    mentions = _mentions(text, _lexicon(names), letters)
    _note_denials(text, mentions)
    return mentions


@lru_cache(maxsize=256)
def _lexicon(names: tuple[str, ...]) -> Lexicon:
    """First stem → (the stems of a name, its classes, the class that its denial names), the longest name first."""
    # By its own name a class is meant alone; a synonym stands for every class that has it.
    exact: dict[Stems, set[int]] = defaultdict(set)
    other: dict[Stems, set[int]] = defaultdict(set)
    for number, name in enumerate(names):
        exact[stems_of(name)].add(number)
        for spelling in labels.spellings(name):
            other[stems_of(spelling)].add(number)
    meant = {stems: frozenset[int]() for stems in map(stems_of, _DECOYS)} | {
        stems: frozenset(exact.get(stems) or numbers) for stems, numbers in (other | exact).items() if stems
    }

    # "nontumor" is what the denial of "tumor" names, whether tumor is a class of its own or not.
    opposites: dict[int, int] = {}
    bases: dict[Stems, int] = {}  # no class by themselves
    for stems, numbers in exact.items():
        if len(stems) == 1 and len(numbers) == 1 and stems[0].startswith("non") and len(stems[0]) > 4:
            (number,) = numbers
            base = (stems[0][3:],)
            opposites |= dict.fromkeys(exact.get(base, ()), number)
            if base not in meant:
                bases[base] = number

    lexicon: Lexicon = defaultdict(list)
    for stems, classes in meant.items():
        lexicon[stems[0]].append((stems, classes, opposites.get(min(classes)) if len(classes) == 1 else None))
    for stems, number in bases.items():
        lexicon[stems[0]].append((stems, frozenset(), number))
    for entries in lexicon.values():
        entries.sort(key=lambda entry: (-len(entry[0]), entry[0]))
    return dict(lexicon)


@lru_cache(maxsize=4096)
def stems_of(name: str) -> Stems:
    """The stems of a name, by which texts are searched for it."""
    return tuple(SplitText.of(clauses.plain(name)).stems)


def _mentions(text: SplitText, lexicon: Lexicon, letters: Mapping[str, int]) -> list[Mention]:
    """What the answer names, in order; decoys are left out."""
    mentions: list[Mention] = []
    index = 0
    while index < len(text.written):
        mention = _named(text, index, lexicon)
        if mention is None and len(text.written[index]) == 1 and text.written[index].upper() in letters:
            letter_before = mentions[-1].last if mentions and mentions[-1].letter else None
            if _is_option(text, index, letter_before):
                mention = Mention(index, index, frozenset({letters[text.written[index].upper()]}), letter=True)
        if mention is not None and (mention.classes or mention.opposite is not None):
            mentions.append(mention)
        index = mention.last + 1 if mention else index + 1
    return mentions


def _named(text: SplitText, index: int, lexicon: Lexicon) -> Mention | None:
    """The longest name that begins at this word."""
    for stems, classes, opposite in lexicon.get(text.stems[index], ()):
        last = index + len(stems) - 1
        if tuple(text.stems[index : last + 1]) != stems:
            continue
        if not all(_WITHIN.fullmatch(gap) for gap in text.between[index + 1 : last + 1]):
            continue
        if stems in _VAGUE and not _alone(text, index):
            continue
        like = text.lower[last + 1 : last + 2] == ["like"] and text.between[last + 1] in ("-", " ")
        return Mention(index, last, frozenset()) if like else Mention(index, last, classes, opposite)
    return None


def _alone(text: SplitText, index: int) -> bool:
    """Whether a common word is the name of a class: nothing that it could belong to follows."""
    if index and text.lower[index - 1] in _NOT_VAGUE and not re.search(r"[\"']$", text.between[index]):
        return False
    if index + 1 == len(text.written) or text.lower[index + 1] in ("class", "category"):
        return True
    return re.search(r"[^\w\s]|\n", text.between[index + 1]) is not None


def _is_option(text: SplitText, index: int, letter_before: int | None) -> bool:
    """Whether a single letter is an option: not an article, and no part of a name such as vitamin D."""
    letter = text.written[index]
    left, right = text.between[index], text.between[index + 1]
    before = text.lower[index - 1] if index else ""
    after = text.lower[index + 1] if index + 1 < len(text.written) else ""

    # How it stands: alone, in brackets, or as "A)" where an item of a list begins.
    if len(text.written) == 1 or (re.search(r"[(\[{]$", left) and re.match(r"[)\]}]", right)):
        return True
    begins = index == 0 or re.search(r"[\n,;:.|!?-]", left) is not None
    if begins and right.startswith(")"):
        return True

    # What stands around it: a cue such as "option" before it, or a name that the letter belongs to.
    closed = after == "" or re.match(r"[.,;:)!?\]}\"\n]|['-] ", right) is not None
    cues = [word for word in text.lower[max(0, index - 4) : index] if word not in (*BETWEEN, "it")]
    cued = bool(cues) and cues[-1] in _CUES and not text.stop(index)
    if letter.islower():
        return cued and closed
    if before in _NO_OPTION or after in _CELLS:
        return False

    # It goes on with a list of letters: "A or B", "A, B", "A/B".
    if letter_before is not None and (
        (letter_before == index - 2 and before in (*_OR, "and")) or (letter_before == index - 1 and set(left) & {*",/"})
    ):
        return True
    if letter == "I":  # the pronoun, unless it was asked for or stands as an item of a list
        return closed and (cued or begins)
    return closed or letter != "A" or after in _AFTER_A


def _note_denials(text: SplitText, mentions: list[Mention]) -> None:
    """Writes into each mention what ties it to the one before, and whether it is denied."""
    # What the words around each mention say of it alone.
    named = {index for mention in mentions for index in range(mention.first, mention.last + 1)}
    before: list[Denial | None] = []
    for number, mention in enumerate(mentions):
        mention.link = _link(text, mentions[number - 1], mention) if number else ""
        before.append(text.before(mention.first, named))
    after = [text.after(mention.last, named) for mention in mentions]

    # A denial before a list holds for all of it ("no a or b"), and so does one after it ("a or b is unlikely").
    for number in range(1, len(mentions)):
        if before[number] is None and _shares(mentions, number):
            before[number] = before[number - 1]
    for number in range(len(mentions) - 1, 0, -1):
        last = mentions[number].last
        plural = {*text.lower[last + 1 : last + 3]} & {"are", "were"}
        if after[number - 1] is None and _shares(mentions, number) and (mentions[number].link != "and" or plural):
            after[number - 1] = after[number]

    for mention, earlier, later in zip(mentions, before, after, strict=True):
        mention.denial = earlier or later


def _shares(mentions: Sequence[Mention], number: int) -> bool:
    """Whether what is denied of the mention before is denied of this one: they stand in one list."""
    if mentions[number].link != ",":
        return bool(mentions[number].link)
    for later in mentions[number + 1 :]:  # only "no a, b or c" goes on over its commas
        if later.link in ("or", ""):
            return later.link == "or"
    return False


def _link(text: SplitText, left: Mention, right: Mention) -> str:
    """What ties a mention to the one on its left, as `Mention.link` has it; empty where nothing does."""
    # A letter and its words: "B) nevus", "nevus (B)".
    gaps = text.between[left.last + 1 : right.first + 1]
    if len(gaps) == 1 and "\n" not in gaps[0]:
        if left.letter and not right.letter and re.fullmatch(r"[ ).:\-\]}]{1,4}", gaps[0]):
            return "="
        if right.letter and not left.letter and re.fullmatch(r" ?[(\[]", gaps[0]):
            return "="

    # Else a list, with nothing but articles and conjunctions between its members.
    between = text.lower[left.last + 1 : right.first]
    if not {*between} <= {*ARTICLES, *_OR, "and"} or any(
        text.stop(index) for index in range(left.last + 1, right.first + 1)
    ):
        return ""
    if any(set(gap) & {*"():[]"} for gap in gaps):
        return ""
    if {*between} & _OR or "/" in gaps[0]:
        return "or"
    return "and" if "and" in between and "," not in gaps[0] else ","
