"""The words of a text and their weights, whose sum is a key and tells whether any word is marked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container

KNOWN_WORDS = 1 << 17  # how many words are remembered, about 20 MB; then all are forgotten
BITS = 52  # of a weight
MARK = 1 << 60  # what a marked word weighs more; 256 others weigh less, and Python still adds them as machine integers
# Words that may come and go without a change of what is said. What asks, denies or chooses is none of them.
FUNCTION_WORDS = frozenset(
    b"a an the this that these those of in on at to for from by with and as it its there here is are was were be been "
    b"being do does did you me please".split()
)
# Anything but letters and figures parts words, save what tells <5 from >5, or CD30+ from CD30.
SPACED = bytes(byte if chr(byte).isalnum() or byte in b"+%<>" else 32 for byte in bytes(range(128)).lower())
SPACED += bytes(range(128, 256))
CURLY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', **dict.fromkeys("‐‑–—\xa0", " ")})
_NUMBER = re.compile(rb"\d+(?:[.,/]\d+)+")
_FIGURES_ALIKE = bytes(48 if byte in b"0123456789" else byte for byte in range(256))


class WordWeights(dict[bytes, int]):
    """The weight of each word: the same for words that count as one, none for function words, more for marked ones."""

    def __init__(self, marked: Container[bytes]) -> None:
        self.marked = marked

    def __missing__(self, word: bytes) -> int:
        if len(self) >= KNOWN_WORDS:
            self.clear()
        figures = any(byte in b"0123456789" for byte in word)
        self[word] = weight = _weight(word) + (MARK if figures or word in self.marked else 0)
        return weight


def _weight(word: bytes) -> int:
    if word in FUNCTION_WORDS:
        return 0
    if len(word) > 3 and word.endswith(b"s") and not word.endswith((b"ss", b"us", b"is")):
        word = re.sub(rb"ie$", b"y", re.sub(rb"(?<=[cs]h)e$|(?<=ss|.x)e$", b"", word[:-1]))
    return int.from_bytes(hashlib.blake2b(word, digest_size=8).digest()) >> 64 - BITS


def encoded(text: str) -> bytes:
    """UTF-8 with straight quotes and dashes, in lower case where it is not ASCII.

    Raises:
        UnicodeEncodeError: half of a surrogate pair, which no file can hold.
    """
    return text.encode() if text.isascii() else text.casefold().translate(CURLY).encode()


def numbers(text: bytes) -> list[bytes]:
    """The numbers of several parts, as 0.5 and 1/2, whose parts in another order are another number."""
    alike = text.translate(_FIGURES_ALIKE)  # most texts have none, which this tells in a quarter of the time
    if b"0.0" in alike or b"0,0" in alike or b"0/0" in alike:
        return _NUMBER.findall(text)
    return []


def split(text: bytes) -> list[bytes]:
    """The words of an encoded text in lower case; an apostrophe parts no word and is left out."""
    return text.translate(SPACED, b"'").split()
