"""What a text says of a known diagnosis, or of its grade: that it is this, that it is not, or that it is another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from skinvl.data import clauses, labels
from skinvl.data.clauses import SplitText
from skinvl.data.match import match
from skinvl.data.mentions import Mention, mentioned

# What an answer may take for the diagnosis instead; labels has the spellings of most.
_OTHERS = (
    *("actinic keratosis", "basal cell carcinoma", "dermatofibroma", "lentigo", "melanoma", "melanoma metastasis"),
    *("nevus", "seborrheic keratosis", "solar lentigo", "squamous cell carcinoma", "squamous cell carcinoma in situ"),
    *("vascular lesion", "lentigo maligna", "keratoacanthoma", "lichenoid keratosis", "Kaposi sarcoma"),
    *("Merkel cell carcinoma", "dermatofibrosarcoma protuberans", "acne", "rosacea", "eczema", "atopic dermatitis"),
    *("contact dermatitis", "seborrheic dermatitis", "psoriasis", "lichen planus", "pityriasis rosea", "urticaria"),
    *("vitiligo", "impetigo", "cellulitis", "herpes zoster", "herpes simplex", "wart", "molluscum contagiosum"),
    *("tinea", "scabies", "cutaneous lupus", "vasculitis", "alopecia areata", "hidradenitis suppurativa"),
    *("bullous pemphigoid", "pemphigus vulgaris", "epidermoid cyst", "lipoma", "keloid", "melasma", "sarcoidosis"),
)
# Diagnoses that a dataset or a writer may well call by the name of the other.
_KINDRED = (
    {"seborrheic keratosis", "solar lentigo", "lentigo", "lichenoid keratosis"},
    {"actinic keratosis", "squamous cell carcinoma in situ"},
    {"squamous cell carcinoma", "squamous cell carcinoma in situ", "keratoacanthoma"},
    {"melanoma", "melanoma metastasis", "lentigo maligna"},
    {"eczema", "atopic dermatitis", "contact dermatitis", "seborrheic dermatitis"},
)
_GRADES = (("benign",), ("premalignant", "precancerous"), ("malignant",))
# These are names, and potential is no grade.
_NO_GRADE = re.compile(r"\b(?:malignant (?=melanoma)|benign (?=keratos))", re.I)
_LIKE_IT = re.compile(r" like(?= (?:this|that|these|those|the one)\b)", re.I)  # not as in "melanoma-like"

_OUTWEIGHED = re.compile(r"\b(?:favou?r\w*|prefer\w*|likely|speaks?)\b[^,]* over (?:an? |the )?$")

_OFFERS = re.compile(r"\b(?:or|vs|versus|between)\b|/")
_APART = re.compile(
    r"\b(?:tells?|told|differ\w*|distinguish\w*|separat\w*|apart|besides|other than)\b(?:[^?]* from)?[^?]{0,16}$"
)
_POLAR = re.compile(r"(?:^|[.,;:!] ?)(?:is|are|was|could|can|might|may|does|do|would|should|will)\b[^.;!]*$")
_POINTED = re.compile(
    r"\b(?:this|that|these|those|the|his|her|their|patient)"
    r"(?: (?!(?:an?|is|are|was|be|may|could|has|have)\b)[\w-]+){0,2} $"
)
_ASKED_OF = re.compile(r"\b(?:is|are|was|could|can|would|may|might|does|do)(?: [\w-]+){1,3} $")  # "is this lesion …?"
_ARTICLE = re.compile(r"\b(?:an?|be|of|for|with|as|represent|suggest|indicate)(?: [\w-]+){0,2} $")
_YES_OR_NO = re.compile(r"\W*(?:is|are|could|can|might|may|does|do|would)\b", re.I)
_MODAL = re.compile(r"\b(?:could|can|may|might|would)\b")
_SUPPOSED = re.compile(r"\b(?:if|whether|unless|until|once|when|should)\b")
# Words before a name that make it no statement about this image.
_HEDGED = re.compile(
    r"\b(?:could|can|may|might|would|possibl[ey]|possibility|sometimes|rarely|risk|mimic\w*|resembl\w*|like|similar|"
    r"from|history|previous|prior|screen\w*|exclu\w+|consider\w*|includ\w+|such as|than|versus|vs|or|compared|"
    r"precursor|differential\w*|alternativ\w*|others?|progress\w*|develop\w*|evolv\w*|transform\w*|turns?|becom\w*|"
    r"prevent\w*|called|types?|forms?|kinds?|subtypes?)\b"
)
_FIRM = re.compile(r"\b(?:diagnosis|impression|most (?:likely|consistent|compatible|typical)|best fits?)\b")
_SAID = re.compile(
    r"\b(?:is|are|was|looks?|appears?|seems?|represents?|consistent|compatible|likely|suggests?|suggestive|"
    r"suspicious|indicat\w+|characteristic|typical|diagnostic|classified|identified|shows?|showing|depicts?|reveals?|"
    r"demonstrates?|favou?rs?|points? to|concerning|confirms?|with)\b"
)
_SAID_AFTER = re.compile(
    r"^ (?:is|are|seems|remains) (?:by far )?(?:the )?(?:most |more )?(?:likely|probable|favou?red|diagnosis)"
)
_OPENS = re.compile(r"^(?:[,;:.(]|$| (?:with|given|because|since|due)\b)")  # after a name that opens an answer
_BARE = 3  # words beside the name in an answer that is nothing but the name


@dataclass(frozen=True, slots=True)
class Known:
    """A fact of an image that texts name: its names, and those of what else it could be."""

    own: frozenset[int]
    names: tuple[str, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def diagnosis(*names: str) -> Known:
        """That of these diagnoses, any of which is known; what may be called by their names is none of the others."""
        plain = tuple(dict.fromkeys(map(labels.diagnosis, names)))
        others = (other for other in _OTHERS if not any(_akin(other, name) for name in plain))
        return Known(frozenset(range(len(plain))), (*plain, *others))

    @staticmethod
    @lru_cache(maxsize=1024)
    def grade(grade: str) -> Known | None:
        """That of benign, premalignant or malignant; None of anything else."""
        names = tuple(name for names in _GRADES for name in names)
        own = next((names for names in _GRADES if names[0] == grade), ())
        return Known(frozenset(map(names.index, own)), names) if own else None


def stated(text: str, known: Known) -> str | None:
    """The words of an answer that name what is known, as what it is or may be; None where it is not or only denied.

    >>> stated("Melanoma cannot be seen; a mole.", Known.diagnosis("nevus")), stated("A mole", Known.diagnosis("scar"))
    ('mole', None)
    """
    words, mentions = _read(text, known)
    return next((_spelling(words, mention) for mention in mentions if mention.counted & known.own), None)


def presupposed(question: str, known: Known) -> str | None:
    """The words of a question that take what is known for granted; None where it asks for it or offers it.

    >>> melanoma = Known.diagnosis("melanoma")
    >>> [presupposed(f"{asked}?", melanoma) for asked in ("Is this a melanoma", "Is the melanoma flat", "Mole or MEL")]
    [None, 'melanoma', None]
    """
    words, mentions = _read(question, known)
    for mention in mentions:
        # It is named as what it is, or pointed at as in "the melanoma".
        before, after = (part.casefold() for part in _sentence(words, mention))
        supposed = mention.denial == "open" and mention.classes & known.own and _POINTED.search(before)
        if mention.counted & known.own or supposed:
            # Unless it is one of several, asked for itself, or told apart from.
            offered = any(not other.classes & known.own for other in mentions) and _OFFERS.search(before + after)
            ends = re.match(r"^\W*$|^ (?:or|in|here|at)\b", after) and not re.search(r"\bto (?!be\b)", before)
            asks = _POLAR.search(before) and (ends or _ARTICLE.search(before)) and not _holds(before, bool(ends))
            if not (offered or asks or _APART.search(before)):
                return _spelling(words, mention)
    return None


def contradiction(question: str, answer: str, known: Known) -> str | None:
    """How an answer denies what is known, or concludes that it is something else; None where it does neither.

    A list of several is no conclusion, nor is what may become of it, or what it looks like.

    >>> nevus = Known.diagnosis("nevus")
    >>> contradiction("What is it?", "This is a melanoma.", nevus)
    'asserts melanoma'
    >>> contradiction("What is it?", "Melanoma and solar lentigo can look alike.", nevus) is None
    True
    """
    words, mentions = _read(answer, known)

    # A yes or no says what the question asks.
    if reply := re.match(r"\W*(yes|no)\b", answer, re.I):
        affirmed = reply[1].casefold() == "yes"
        asked = _asked(question, known, affirmed)
        own = bool(asked & known.own)
        if asked and own != affirmed and (own or not any(mention.counted & known.own for mention in mentions)):
            return f"{'denies' if own else 'asserts'} {known.names[min(asked)]}: {reply[1]}"

    # The known name is there, and every time only to be denied.
    own_mentions = [mention for mention in mentions if mention.classes & known.own and not words.asked(mention.last)]
    denied = [
        mention
        for mention in own_mentions
        if mention.denial == "denied" and not _SUPPOSED.search(_clause(words, mention))
    ]
    if denied and len(denied) == len(own_mentions):
        return f"denies {known.names[min(known.own)]}: {_spelling(words, denied[0])}"

    # Another name is the conclusion, unless several are or the known one is among them.
    counted = [mention for mention in mentions if mention.counted and not words.asked(mention.last)]
    classes = frozenset[int]().union(*(mention.counted for mention in counted))
    if len(classes) > 1 and (choice := match(answer, known.names).choice):
        classes = frozenset((known.names.index(choice),))
    if classes & known.own:
        return None
    concluded = any(mention.counted == classes and _concludes(words, mention) for mention in counted)
    return f"asserts {known.names[min(classes)]}" if concluded else None


def _asked(question: str, known: Known, affirmed: bool) -> frozenset[int]:
    """What the yes or no to a question says that it is, or is not: one thing; a yes to "could it be" says neither."""
    words, mentions = _read(question, known)
    classes = frozenset[int]().union(*(mention.classes for mention in mentions))
    if not (_YES_OR_NO.match(question) and (len(classes) == 1 or (classes and classes <= known.own))):
        return frozenset()
    before = _clause(words, mentions[0])
    return frozenset() if _HEDGED.search(before if affirmed else _MODAL.sub("", before)) else classes


@lru_cache(maxsize=8)  # a text is asked several things, one after the other
def _read(text: str, known: Known) -> tuple[SplitText, list[Mention]]:
    text = _LIKE_IT.sub(" as", _NO_GRADE.sub("", text) if "malignant" in known.names else text)
    words = SplitText.of(clauses.plain(text))
    mentions = mentioned(words, known.names, {})
    for mention in mentions:
        if mention.denial is None and _OUTWEIGHED.search(_sentence(words, mention)[0].casefold()):
            mention.denial = "denied"
    return words, mentions


def _spelling(words: SplitText, mention: Mention) -> str:
    return " ".join(words.written[mention.first : mention.last + 1])


def _sentence(words: SplitText, mention: Mention) -> tuple[str, str]:
    """What stands before and after a mention in its sentence."""
    start = next((at for at in range(mention.first, 0, -1) if words.stop(at)), 0)
    end = next((at for at in range(mention.last + 1, len(words.written)) if words.stop(at)), len(words.written))
    before = "".join(f"{words.written[at]}{words.between[at + 1]}" for at in range(start, mention.first))
    after = "".join(f"{words.between[at]}{words.written[at]}" for at in range(mention.last + 1, end))
    return before, after + words.between[end]


def _clause(words: SplitText, mention: Mention) -> str:
    return _sentence(words, mention)[0].casefold()


def _holds(before: str, ends: bool) -> bool:
    """Whether the words before a name point at it, as in "the melanoma"; "is this melanoma?" asks."""
    return _POINTED.search(before) is not None and not (ends and _ASKED_OF.search(before))


def _concludes(words: SplitText, mention: Mention) -> bool:
    # A hedge counts up to a firm word: "could be a nevus, but most likely melanoma" concludes.
    before, after = (part.casefold() for part in _sentence(words, mention))
    before = re.sub(r"\bdifferential diagnos[ei]s\b", "differential", before)
    firm = [sign.end() for sign in _FIRM.finditer(before)]
    if _HEDGED.search(before, firm[-1] if firm else 0):
        return False
    opens = mention.first <= 1 and _OPENS.search(after) is not None
    bare = opens or len(words.written) - (mention.last - mention.first + 1) <= _BARE
    return bare or bool(firm) or _SAID.search(before) is not None or _SAID_AFTER.search(after) is not None


def _akin(name: str, other: str) -> bool:
    """Whether a diagnosis may be called by the other's name: one holds the words of the other, or they are kindred."""
    words, others = set(_stems(name)), set(_stems(other))
    return words <= others or others <= words or any({name, other} <= kin for kin in _KINDRED)


@cache
def _stems(name: str) -> tuple[str, ...]:
    return tuple(SplitText.of(clauses.plain(name)).stems)


def named(text: str) -> list[str]:
    """The diagnoses of `_OTHERS` that a text names and does not deny."""
    known = Known(frozenset(), _OTHERS)
    _, mentions = _read(text, known)
    return list(dict.fromkeys(_OTHERS[index] for mention in mentions for index in sorted(mention.counted)))
