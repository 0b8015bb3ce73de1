"""The words of an answer, and whether what it names is asserted, denied, or left open: English, by rules on clauses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from skinvl.data.normal import unmarked

Denial = Literal["denied", "open"]  # open: named, but said neither to be nor not to be there

FAR = 12  # words before a name among which a negation of it is looked for
_WORD = re.compile(r"[^\W_]+")
_STOP = re.compile(r"[.!?](?=[\s\"')\]}]|$)|[;\n—]| - ")
_INSISTENT = re.compile(
    r"\b(?:no|without(?: an?y?)?) (?:doubt|question)\b|\bnot only\b|\b(?:nothing|none|no) but\b", re.I
)
_IRREGULAR = {"nevi": "nevus", "nevuses": "nevus", "lentigines": "lentigo", "metastases": "metastasis"}
_SHORT = {"vs", "eg", "ie", "e", "i", "g", "dr"}  # a dot after these ends no sentence
# Part of the word that follows, so that "non-tumor" is no tumor; the first two also where a space is between.
_APART = {"non", "pre"}
_PREFIXES = {*_APART, "anti", "para", "peri", "post", "pseudo", "semi", "sub", "un"}
_HYPHEN = re.compile(r"\s?-\s?")

_NEGATORS = {
    *("not", "no", "never", "without", "neither", "nor", "none", "nothing", "unlike", "against", "lack", "lacks"),
    *("lacking", "absence", "absent", "negative", "denies", "except", "isnt", "doesnt", "cant", "hardly", "barely"),
    *("distinguish", "distinguished", "differentiate", "differentiated", "differs"),
}
_DOUBTS = {"unlikely", "doubt", "doubtful", "improbable", "impossible"}
_DENYING_PAIRS = {
    *(("instead", "of"), ("free", "of"), ("opposed", "to"), ("less", "likely"), ("least", "likely")),
    *(("low", noun) for noun in ("suspicion", "likelihood", "probability", "risk")),
}
_OPEN = {"if", "whether", "mimic", "mimics", "mimicking", "simulating", "simulates"}
_EXCLUDE = {"exclude", "excludes", "excluding", "excluded", "exclusion"}
_RULE = {"rule", "rules", "ruled", "ruling"}
_ENDS = {  # a negation before one of these says nothing of what follows it
    *("but", "however", "so", "therefore", "thus", "hence", "because", "since", "which", "although", "though"),
    *("while", "whereas", "and", "yet", "rather", "instead"),
}
_VERBS = {
    *("is", "are", "was", "were", "suggest", "suggests", "suggesting", "indicate", "indicates", "indicating"),
    *("represent", "represents", "show", "shows", "showing", "support", "supports", "favor", "favors", "favour"),
    *("favours", "makes", "points", "means"),
}
_BELIEFS = {  # a negation of these reaches over a verb: "I do not think that this is …"
    *("think", "believe", "appear", "appears", "seem", "seems", "evidence", "sign", "signs", "sure", "certain"),
    *("clear", "convinced", "possible", "likely", "suspect", "case", "indication", "reason", "feature", "features"),
    *("finding", "findings", "that", "say", "tell", "determine", "know", "criteria", "suspicion"),
}
_AUXILIARIES = {
    *("is", "are", "was", "were", "be", "been", "being", "seem", "seems", "appear", "appears", "look", "looks"),
    *("has", "have", "had", "can", "could", "may", "might", "should", "would", "to", "as", "considered", "deemed"),
    *("do", "does", "did", "remains", "therefore", "thus", "also", "very", "highly", "much", "more", "quite"),
    *("safely", "clinically", "effectively", "practically", "largely", "completely", "definitely", "clearly"),
}
_BE = {"is", "are", "was", "were", "be", "seem", "seems", "appear", "appears", "does", "do", "can", "could", "would"}
_DENIED_AFTER = {
    *("unlikely", "improbable", "absent", "negative", "wrong", "incorrect", "doubtful", "false", "impossible"),
    *("eliminated", "discarded", "rejected", "excluded", "dismissed"),
}
_DENYING_PAIRS_AFTER = {("ruled", "out"), ("less", "likely"), ("least", "likely")}
_NOT_AFTER = {  # "melanoma is not …" of these denies it; "melanoma is not ulcerated" does not
    *("present", "seen", "likely", "identified", "visible", "evident", "detected", "suspected", "favored"),
    *("favoured", "supported", "consistent", "possible", "found", "probable", "correct", "indicated", "suggested"),
    *("shown", "applicable", "right", "fit", "match", "apply", "explain", "expected", "the", "a", "an", "my", "it"),
}
_NO = {"no", "none", "absent", "negative", "false"}


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """A word in lower case, in the singular and in American spelling: one form for all of its spellings.

    >>> [stem(word) for word in ("Naevi", "keratoses", "Tumours", "carcinomata", "psoriasis", "BCCs")]
    ['nevus', 'keratosis', 'tumor', 'carcinoma', 'psoriasis', 'bcc']
    """
    plain = word.casefold().replace("ae", "e").replace("oe", "e")
    if plain in _IRREGULAR:
        return _IRREGULAR[plain]
    if plain.endswith("omata"):
        plain = plain[:-2]
    elif plain.endswith("oses"):
        plain = f"{plain[:-2]}is"
    elif plain.endswith("ies") and len(plain) > 4:
        plain = f"{plain[:-3]}y"
    elif plain.endswith("sses"):
        plain = plain[:-2]
    elif plain.endswith("s") and not plain.endswith(("ss", "us", "is")) and len(plain) > 2:
        plain = plain[:-1]
    return f"{plain[:-3]}or" if plain.endswith("our") else plain


def plain(text: str) -> str:
    """The text with one kind of dash, quote and space, without accents, Markdown and contractions; its lines stay."""
    text = re.sub("[\u2018\u2019\u02bc\u00b4`]", "'", text)  # before NFKC, which takes some of them apart
    text = unmarked(text.replace("\u2014", " \u2014 ").replace("\u2015", " \u2014 "))
    text = re.sub("[\u2010-\u2013\u2212\u00ad\u2043]", "-", text)
    text = re.sub("[*`~]+|^\\s*[#>]+", "", text, flags=re.M).replace("_", " ").replace("&", " and ")
    text = re.sub(r"n't\b", " not", text, flags=re.I)
    text = re.sub(r"\bcannot\b", "can not", text, flags=re.I)
    text = re.sub(r"'s\b", "", text, flags=re.I)
    return _INSISTENT.sub(" ", re.sub(r"[^\S\n]+", " ", text))


@dataclass(frozen=True, slots=True)
class SplitText:
    """The words of a plain text; between[i] stands before word i, and between[-1] after the last."""

    written: list[str]
    lower: list[str]
    stems: list[str]
    between: list[str]

    @staticmethod
    def of(text: str) -> SplitText:
        """The words, where a prefix such as `non` belongs to the word that follows it."""
        written: list[str] = []
        between: list[str] = []
        last = 0
        for match in _WORD.finditer(text):
            gap = text[last : match.start()]
            last = match.end()
            prefix = written[-1].casefold() if written else ""
            if (prefix in _PREFIXES and _HYPHEN.fullmatch(gap)) or (prefix in _APART and gap.isspace()):
                written[-1] += match[0]
            else:
                written.append(match[0])
                between.append(gap)
        between.append(text[last:])
        lower = [word.casefold() for word in written]
        return SplitText(written, lower, [stem(word) for word in lower], between)

    def stop(self, index: int) -> bool:
        """Whether a sentence, or what is as good as one, ends before this word."""
        gap = self.between[index]
        if not gap or (gap.isspace() and "\n" not in gap):
            return False
        if index and ((self.lower[index - 1] in _SHORT and gap.startswith(".")) or gap.startswith(",")):
            return False
        return _STOP.search(gap) is not None

    def asked(self, index: int) -> bool:
        """Whether the sentence of this word is a question."""
        ends = (at for at in range(index + 1, len(self.written) + 1) if self.stop(at) or at == len(self.written))
        return "?" in self.between[next(ends)]

    def before(self, first: int, named: set[int]) -> Denial | None:
        """What is said of the thing that begins at this word by what stands before it, such as "no evidence of".

        Args:
            named: the indices of all words that name something.
        """
        verb: int | None = None
        for index in range(first - 1, max(-1, first - FAR), -1):
            if self.stop(index + 1) or any(sign in self.between[index + 1] for sign in ",:()[]"):
                return None
            if index in named or self.lower[index] in _ENDS:
                return None

            # A denial of what follows, at whatever distance.
            word, pair = self.lower[index], (self.lower[index - 1] if index else "", self.lower[index])
            if word in _EXCLUDE or (word == "out" and pair[0] in _RULE):
                earlier = self.lower[max(0, index - 5) : index]
                return "open" if {"not", "to", "rule"} & {*earlier} else "denied"
            if word == "than" or pair in _DENYING_PAIRS or word in _DOUBTS:
                return "denied"
            if word in _OPEN:
                return "open"

            # A negation reaches as far as the next verb: "not dark and suggests melanoma" denies no melanoma.
            if word in _VERBS:
                verb = index
            if word in _NEGATORS:
                reaches = verb is None or verb == index + 1 or _BELIEFS & {*self.lower[index + 1 : index + 4]}
                return "denied" if reaches else None
        return None

    def after(self, last: int, named: set[int]) -> Denial | None:
        """What is said of the thing that ends at this word by what follows it, such as "is unlikely"."""
        # The next words, up to eight of them and to the end of the clause.
        rest: list[str] = []
        for index in range(last + 1, min(len(self.written), last + 9)):
            gap = self.between[index]
            if index > last + 1 and (self.stop(index) or re.search(r"[,:()]", gap)):
                break
            rest.append(self.lower[index])

        # What answers it right away ("melanoma: no"), and what a bracket, a colon or a comma keeps away from it.
        gap = self.between[last + 1] if rest else ""
        ends = len(rest) == 1 or (bool(rest) and self.stop(last + 2))
        if rest and rest[0] in _NO and ends and re.search(r"[:=?]| - |\(", gap):
            return "denied"
        if "(" in gap:
            rest = rest if {*rest[:1]} <= {*_DENIED_AFTER, "less", "ruled"} else []
        elif self.stop(last + 1) or ":" in gap or ("," in gap and rest[:1] != ["which"]):
            rest = rest if " - " in gap and rest[0] in {*_DENIED_AFTER, "less"} else []
        skipped = rest[:1] in (["which"], ["that"])
        rest = rest[skipped:]

        # Auxiliaries, perhaps negated, up to a word that denies: "is not likely", "can be ruled out".
        be, negated = False, False
        for number, word in enumerate(rest):
            following = rest[number + 1] if number + 1 < len(rest) else ""
            if word in _DENIED_AFTER or (word, following) in _DENYING_PAIRS_AFTER:
                return "open" if negated else "denied"
            if word in ("not", "never"):
                begins = last + 1 + skipped
                following_two = range(begins + number + 1, begins + min(number + 3, len(rest)))
                if named & {*following_two}:  # "a nevus that is not a melanoma"
                    return None
                if be and (following == "" or following in _NOT_AFTER):
                    return "denied"
                negated = True
            elif word not in _AUXILIARIES:
                return None
            be = be or word in _BE
        return None
