"""Whether a text is English, by its letters and its function words: no model, and no guess about a few words."""

from __future__ import annotations

import re
import unicodedata

_ENGLISH = (
    "the and of is are was with this that it in on for from as by not which be an or at may can should has have its "
    "there no what does to a your you if these such when where how would could"
)
_OWN = frozenset(_ENGLISH.split())
# Function words that are no English words, nor Latin ones that anatomy uses; by their language.
_OTHERS = {
    "Spanish": "el los las una del con por que es está para se como más pero sin sobre muy puede esta este su y qué",
    "Portuguese": "uma não com por que é está para se como mais mas sem sobre muito pode esta este seu os às ao e",
    "French": "le les une des du est avec pour que dans sur pas plus mais sans cette ce sont peut il elle et qui être",
    "German": "der das und ist mit eine einer nicht auf für von den dem ein sich auch oder bei wird sind zu kann im",
    "Italian": "il lo gli una del della con per che è non sono più ma senza questa questo può nella si e di anche",
    "Dutch": "het een van met niet zijn voor door maar ook wordt naar deze bij aan kan geen is dat op te",
    "Turkish": "bir ve bu ile için olan gibi daha çok değil olarak üzerinde var en da de",
    "Polish": "jest nie się na z do że oraz lub może które są przez jak po w o dla tym",
    "Indonesian": "yang dan ini dengan pada untuk dari adalah tidak dapat oleh atau di akan bisa",
    "Vietnamese": "là của và có không một được trong cho với này các những",
}
_FOREIGN = {name: frozenset(words.split()) - _OWN for name, words in _OTHERS.items()}
_WORD = re.compile(r"[^\W\d_]+")
LEAST = 30  # words that no English text has without one function word
STRANGE = 0.2  # share of letters of other scripts; Greek letters stand in terms


def foreign(text: str) -> str:
    """What makes the text no English one, in words; nothing where it is English or too short to tell.

    >>> foreign("La lesión es una mácula con borde irregular."), foreign("Asymmetric brown macule, 6 mm.")
    ('reads as Spanish', '')
    """
    letters = [char for char in text if char.isalpha()]
    strange = [char for char in letters if not char.isascii() and not _is_usual(char)]
    if letters and len(strange) >= STRANGE * len(letters):
        return f"{len(strange)} of {len(letters)} letters are not Latin, such as {strange[0]}"
    words = [word.casefold() for word in _WORD.findall(text)]
    own = sum(word in _OWN for word in words)
    counts = {name: sum(word in known for word in words) for name, known in _FOREIGN.items()}
    likeliest = max(counts, key=lambda name: counts[name])
    if counts[likeliest] > max(own, 1):
        return f"reads as {likeliest}"
    if not own and len(words) >= LEAST:
        return f"{len(words)} words, and no function word of English"
    return ""


def _is_usual(char: str) -> bool:
    name = unicodedata.name(char, "")
    return name.startswith(("LATIN", "MICRO", "FEMININE", "MASCULINE"))
