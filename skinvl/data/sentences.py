"""A text's sentences, where a full stop need not be an end: "2.5 cm", "e.g. a plaque", "S. aureus", "Fig. 3"."""

from __future__ import annotations

import re

# What may end a sentence, with the quotes and brackets that close after it.
_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』)]*|\n+")
# After these a full stop ends no sentence; after the second kind it does where a capital follows.
_SHORT = {
    *(
        "vs",
        "e.g",
        "i.e",
        "eg",
        "ie",
        "cf",
        "dr",
        "prof",
        "mr",
        "mrs",
        "ms",
        "st",
        "fig",
        "figs",
        "no",
        "nos",
        "approx",
    ),
    *("ca", "var", "resp", "incl", "viz", "ref", "refs", "vol", "ed", "eds", "dept"),
}
_PERHAPS = {"etc", "al", "spp", "sp", "subsp", "a.m", "p.m", "cm", "mm", "yr", "yrs", "mo", "wk", "wks"}
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[A-Z]")  # "S. aureus", "the U.S. Army"
_WORD_BEFORE = re.compile(r"[\w.]*\w$")
_OPENING = re.compile(r"[\s\"'“‘(\[*-]*(\S)")
_WORD = re.compile(r"[^\W_]")


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its own end; what holds no word stays with the sentence before it.

    >>> sentences("A nodule of 2.5 cm, e.g. a cyst. It grew S. aureus (see Fig. 3). Was it removed? Yes")
    ['A nodule of 2.5 cm, e.g. a cyst.', 'It grew S. aureus (see Fig. 3).', 'Was it removed?', 'Yes']
    >>> sentences("1. Scale vs. crust... 2. 发红。有鳞屑。")
    ['1. Scale vs. crust...', '2. 发红。', '有鳞屑。']
    """
    pieces, start = [], 0
    for match in _END.finditer(text):
        if _ends(text, start, match):
            pieces.append(text[start : match.end()])
            start = match.end()
    pieces.append(text[start:])

    whole: list[str] = []
    for piece in pieces:
        if _WORD.search(piece) or not whole:
            whole.append(" ".join(piece.split()))
        else:
            whole[-1] = f"{whole[-1]} {' '.join(piece.split())}".rstrip()
    return [sentence for sentence in whole if _WORD.search(sentence)]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether what may end the sentence that began at `start` does."""
    mark = match[0].rstrip("\"'”’)]")
    if not mark.startswith("."):
        return True
    following = _OPENING.match(text, match.end())
    if following is not None and following[1].islower():
        return False
    before = _WORD_BEFORE.search(text, start, match.start())
    word = before[0].casefold() if before else ""
    if word in _PERHAPS or mark != ".":
        return True
    initial = before is not None and _INITIALS.fullmatch(before[0]) is not None
    number = word.isdigit() and not _WORD.search(text[start : match.start() - len(word)])  # of a list
    return word not in _SHORT and not initial and not number
