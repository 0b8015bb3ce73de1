"""One form of a text for all that compares texts: marks off letters, one shape of each, and blanks where none are."""

from __future__ import annotations

import re
import unicodedata

APOSTROPHES = dict.fromkeys(map(ord, "'’`´ʼ"))  # to leave out, before `unmarked`, which takes some of them apart
# Letters that have a mark or a ligature which Unicode does not take apart.
_WHOLE = str.maketrans({"æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "ı": "i"})
# Thai, Lao, Burmese and Khmer letters with the marks that belong to them; kana, and Han.
UNSPACED = re.compile(
    "[\u0e01-\u0e30\u0e32\u0e33\u0e3f-\u0e46\u0e4f-\u0e5b][\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*"
    "|[\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0ed0-\u0edf][\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece]*"
    "|[\u1000-\u102a\u103f-\u109f][\u102b-\u103e]*"
    "|[\u1780-\u17b3\u17d7-\u17f9][\u17b4-\u17d3\u17dd]*"
    "|[\u3005-\u3007\u3041-\u3096\u309d-\u30fa\u30fc-\u30ff\u31f0-\u31ff]"
    "|[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def unmarked(text: str) -> str:
    """The text in compatibility form (NFKC) and without the marks that a writer may leave off a letter; case stays.

    Those are accents and the points of Hebrew and Arabic. Marks that make another letter, as in kana, Thai and the
    scripts of India, stay.

    >>> unmarked("Behçet’s ﬁndings in nævi: Ménière, 5 ㎜")
    'Behcet’s findings in naevi: Meniere, 5 mm'
    """
    if text.isascii():
        return text
    kept: list[str] = []
    on_letter = False  # what strikes a sign through is no accent: ≠ is no =
    for sign in unicodedata.normalize("NFKD", text.translate(_WHOLE)):
        if unicodedata.combining(sign) and on_letter and _may_lack(sign):
            continue
        on_letter = sign.isalpha() or (on_letter and unicodedata.combining(sign) > 0)
        kept.append(sign)
    return unicodedata.normalize("NFKC", "".join(kept))


def _may_lack(sign: str) -> bool:
    place = unicodedata.combining(sign)  # 10 to 36: points of Hebrew, Arabic and Syriac; from 200: above, below, across
    return place == 1 or 10 <= place <= 36 or place >= 200


def spaced(text: str) -> str:
    """The text with blanks around each letter of the scripts that write none between words.

    >>> spaced("Nevus 色素痣, 良性").split()
    ['Nevus', '色', '素', '痣', ',', '良', '性']
    """
    return text if text.isascii() else UNSPACED.sub(r" \g<0> ", text)
