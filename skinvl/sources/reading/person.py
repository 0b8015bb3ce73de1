"""What a text states of a patient's age and sex: in figures, words, decades, nouns and pronouns, English."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from skinvl.data import clauses

Sex = Literal["female", "male"]

_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten",
    "eleven",
    "twelve",
    *(f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_COUNTS = dict(zip((*_UNITS, *_TEENS), range(1, 20), strict=True)) | {
    f"{ten}{unit and ' '}{unit}": 10 * tens + units
    for tens, ten in enumerate(_TENS, 2)
    for units, unit in enumerate(("", *_UNITS))
}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_DECADES = {f"{ten}s": ten for ten in range(20, 100, 10)}
_DECADES |= {f"{word[:-1]}ies": 10 * tens for tens, word in enumerate(_TENS, 2)}
# Ages, in years, that a word for a time of life fits; wide, since writers differ.
_LIVES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("newborn", "neonate"), (0, 1)),
    **dict.fromkeys(("infant", "baby"), (0, 3)),
    **dict.fromkeys(("toddler",), (1, 5)),
    **dict.fromkeys(("child", "kid", "boy", "girl", "schoolchild"), (0, 18)),
    **dict.fromkeys(("teenager", "adolescent", "teen", "teenage"), (10, 20)),
    **dict.fromkeys(("young",), (0, 40)),
    **dict.fromkeys(("middle-aged", "middle aged", "middle age"), (40, 66)),
    **dict.fromkeys(("elderly", "older", "old", "old age", "aged", "advanced", "senior", "octogenarian"), (60, 130)),
}
_FEMALE = {"woman", "girl", "lady", "female", "she", "her", "hers", "herself"}

_NUMBER = rf"(?P<n>\d{{1,3}}|(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_UNITS)}))?|{'|'.join((*_TEENS, *_UNITS))})"
_ABOUT = r"(?P<about>(?:about|around|approximately|roughly|nearly|almost|circa|some|~)[ -]?)?"
_ONE = r"(?:patient|person|individual|man|woman|male|female|boy|girl|child|lady|gentleman|subject|adult)"
_WHO = rf"(?:{_ONE}(?: (?:shown )?in th(?:e|is) (?:image|picture|photo(?:graph)?))?|he|she)"
_THE = r"(?:an?|the|this|that|our|your)"
_BARE = r"(?:newborn|neonate|infant|baby|toddler|child|kid|boy|girl|teenager|adolescent|octogenarian)"
_AGED = r"(?:young|middle[- ]aged|elderly|older|old|aged|senior|teenage|adolescent)"
_AGES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_ABOUT}\b{_NUMBER}[- ]?(?:(?:years?|yrs?)[- ]old|y\.?[/ ]?o\.?)(?![\w-])",
        rf"\baged?(?: of|:| is)? {_ABOUT}{_NUMBER}\b(?! ?(?:to|-|through|(?:and|or) (?:over|above|older|more))\b)",
        rf"{_ABOUT}\b{_NUMBER} (?:years?|yrs?) of age\b",
        rf"\b{_ONE} of {_ABOUT}{_NUMBER} (?:years?|yrs?)\b",
        rf"\b{_ONE} in (?P<life>middle age|old age)\b",
        rf"{_ABOUT}\b(?P<months>\d{{1,2}})[- ]months?[- ]old\b(?!s)",
        r"\b(?P<n>\d{1,2})[fm]\b(?!')",
        r"\b(?:age (?:group|range)|aged|ages?)(?: of)? (?P<from>\d{1,2})(?: ?- ?| to | and )(?P<to>\d{1,3})\b",
        rf"\bin (?:his|her|their|the) (?:(?:early|mid|late)[- ]?)?(?P<decade>{'|'.join(_DECADES)}|teens)\b",
        rf"\bin (?:his|her|their|the) (?P<ordinal>{'|'.join(_ORDINALS)}) decade\b",
        rf"\b{_THE} (?:[\w-]+ )??(?P<life>{_AGED})(?:[- ][\w-]+)?? {_ONE}\b",
        rf"(?<!of )\b{_THE} (?:[\w-]+ )?(?P<life>{_BARE})\b(?! (?:seat|care|health))",
        rf"\b{_WHO} (?:is|was|seems|appears|looks)(?: to be)?(?: an?)?(?: \w+)?? (?P<life>{_AGED}|{_BARE})\b(?! than)",
        rf"\b{_WHO} (?:is|was|seems|appears|looks)(?: to be)? of (?P<life>advanced) age\b",
    )
)
_ALONE = ("decade", "ordinal", "from")  # of these it must be said whose they are
_SINGULAR = re.compile(rf"\b{_THE} (?:[\w-]+ )*?{_ONE}\b|\b(?:he|she|his|her)\b")
_COMPARED = re.compile(r"\b(?:over|under|above|below|than|before|after|until|by|from|to|past|since)(?: the)? $")
_MANY = re.compile(
    r"\b(?:people|patients|persons|individuals|adults|children|infants|women|men|males|females|those|anyone|everyone|"
    r"incidence|prevalence|peaks?|common|commonly|often|usually|typically|generally|frequently|rarely?|affects?|cases)\b"
)

_EITHER = re.compile(
    r"\bs/he\b|\(s\)he\b|\b(?:he|she|him|her|his|hers|himself|herself)(?: or | and |/| / )(?:he|she|him|her|his|hers|"
    r"himself|herself)\b|\b(?:males?|men|man|boys?)(?: or | and |/)(?:females?|women|woman|girls?)\b"
    r"|\b(?:females?|women|woman|girls?)(?: or | and |/)(?:males?|men|man|boys?)\b"
)
_NOUN = rf"(?P<sex>woman|girl|lady|man|boy|gentleman|(?:fe)?male(?: {_ONE}| infant| adolescent| teenager)?)"
_FOLLOWS = r"(?=[.,;:!?)]|$| (?:with|who|whose|has|had|is|was|shows?|presents?|presenting|in|of|aged|should|and|on)\b)"
_PRONOUN = re.compile(r"\b(?P<sex>s?he|her|hers|herself|him|his|himself)\b(?!-?\d)")
_SEXES = (
    re.compile(rf"\b(?:{_THE}|old|year-old|years old)(?: [\w-]+){{0,3}}? (?<!-){_NOUN}\b(?:{_FOLLOWS}|(?<!male) )"),
    re.compile(r"\b(?:sex|gender)(?::| is)? (?P<sex>female|male)\b"),
    re.compile(rf"\b(?P<sex>female|male) {_ONE}\b"),
    re.compile(rf"\b{_ONE} (?:is|was) (?:an? )?(?:[\w-]+ )?(?P<sex>(?:fe)?male|woman|man|girl|boy)\b"),
    re.compile(r"\b\d{1,2}(?P<sex>[fm])\b(?!')"),
    _PRONOUN,
)
_SUPPOSED = re.compile(r"\b(?:if|whether|unless|for example)\b")
_DOCTOR = r"\b(?:doctor|dermatologist|physician|clinician|surgeon|pathologist|specialist|practitioner|nurse|gp)\b"
_SOMEBODY = re.compile(rf"{_DOCTOR}|\b(?:patient|person|woman|man|girl|boy|child|lady|gentleman)\b")
_SENTENCE = re.compile(r"[^.!?;\n]+(?:\.(?=\w)[^.!?;\n]+)*")


@dataclass(frozen=True, slots=True)
class Age:
    """An age in years that is stated of a patient: from `low`, up to but without `high`."""

    low: float
    high: float
    words: str


def ages(text: str) -> Iterator[Age]:
    """Every age that the text states of one patient; what is said of patients in general is none.

    >>> [(age.low, age.high) for age in ages("A man in his fifties. Women over 60 years of age are affected, too.")]
    [(50.0, 60.0)]
    """
    for sentence in _sentences(text):
        for pattern in _AGES:
            for match in pattern.finditer(sentence):
                if not _is_general(sentence, match):
                    yield _age(match)


def sexes(text: str) -> Iterator[tuple[Sex, str]]:
    """(sex, the words that state it) of one patient; "he or she" states none, nor does "her doctor … he".

    >>> list(sexes("Women get it more often than men. This man has it on his hand."))
    [('male', 'this man'), ('male', 'his')]
    """
    for sentence in _sentences(text):
        plain = _EITHER.sub(lambda match: " " * len(match[0]), sentence)
        stated: list[tuple[Sex, str]] = []
        for pattern in _SEXES:
            for match in pattern.finditer(plain):
                somebody = _SOMEBODY.findall(plain, 0, match.start())
                pronoun = pattern is _PRONOUN
                if pronoun and somebody and re.search(_DOCTOR, somebody[-1]):
                    continue  # it stands for whom was named last
                if not pronoun and _supposes(plain[: match.start()], match):
                    continue
                word = match["sex"].split()[0]
                stated.append(("female" if word in _FEMALE or word == "f" else "male", match[0].strip()))
        if len({sex for sex, _ in stated}) == 1:  # both are compared
            yield from stated


def _sentences(text: str) -> Iterator[str]:
    for match in _SENTENCE.finditer(clauses.plain(text).casefold()):
        yield match[0].strip()


def _is_general(sentence: str, match: re.Match[str]) -> bool:
    """Whether the age is one of people in general, or a limit that is compared with."""
    before = sentence[: match.start()]
    if _supposes(before, match):
        return True
    if "old" in match[0] and re.search(rf"\b{_THE} (?:[\w-]+ )?$", before):
        return False
    if any(match.groupdict().get(name) for name in _ALONE) and not re.search(r"\b(?:his|her)\b", match[0]):
        return _SINGULAR.search(sentence) is None or _MANY.search(before) is not None
    if match.groupdict().get("life"):
        return False
    return _COMPARED.search(before) is not None or _MANY.search(before) is not None


def _supposes(before: str, match: re.Match[str]) -> bool:
    """Whether it is only supposed, as in "if the patient is a child"; "whether the child …" tells that it is one."""
    if _SUPPOSED.search(before) is None:
        return False
    return re.match(r"\s*(?:the|this) (?!.*\b(?:an?|is|was)\b)", match[0]) is None


def _age(match: re.Match[str]) -> Age:
    groups, words = match.groupdict(), match[0].strip()
    if life := groups.get("life"):
        low, high = _LIVES[life]
    elif decade := groups.get("decade"):
        low = 13 if decade == "teens" else _DECADES[decade]
        high = 20 if decade == "teens" else low + 10
    elif groups.get("from"):
        low, high = float(groups["from"]), float(groups["to"]) + 1
    elif ordinal := groups.get("ordinal"):
        low = 10 * _ORDINALS.index(ordinal)
        high = low + 10
    else:
        number = groups.get("n") or groups["months"]
        low = float(number) if number.isdecimal() else float(_COUNTS[number.replace("-", " ")])
        low, high = (low / 12, low / 12 + 1) if groups.get("months") else (low, low + 1)
        if groups.get("about"):
            low, high = low - 3, high + 3
    return Age(float(low), float(high), words)
