from __future__ import annotations

import pytest

from skinvl.sources.reading.english import foreign

ENGLISH = [
    "The lesion is a brown macule with an irregular border.",
    "Melanoma.",
    "Asymmetric brown macule, irregular border, pigment network, 6 mm.",
    "A papule à la carte, as described by Spitz, Bowen and Kaposi.",
    "β-HPV and α-MSH in the dermis of 5 µm thickness.",
    "Yes",
    "café-au-lait macules, naïve nævus",
    "Lichen planus, lentigo maligna, pityriasis rosea, acne vulgaris, tinea pedis et corporis",
    "",
    "6 × 5 mm, 30 %",
]
OTHERS = [
    ("Spanish", "La lesión es una mácula marrón con un borde irregular."),
    ("Portuguese", "A lesão é uma mácula marrom com borda irregular e não há sangramento."),
    ("French", "La lésion est une macule brune avec un bord irrégulier."),
    ("German", "Die Läsion ist ein brauner Fleck mit einem unregelmäßigen Rand."),
    ("Italian", "La lesione è una macchia marrone con un bordo irregolare."),
    ("Dutch", "Het is een bruine vlek met een onregelmatige rand."),
    ("Turkish", "Bu lezyon düzensiz bir kenar ile kahverengi bir lekedir."),
    ("not Latin", "这是一个边界不规则的褐色斑疹。"),
    ("not Latin", "Это коричневое пятно с неровным краем."),
    ("not Latin", "The lesion is 色素性病変 with an irregular border です。これは黒色腫です。"),
    ("no function word", " ".join(["ruskea läiskä epäsäännöllinen reuna"] * 8)),
]


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_english(text: str) -> None:
    assert foreign(text) == ""


@pytest.mark.parametrize(("what", "text"), OTHERS)
def test_other_languages_are_known(what: str, text: str) -> None:
    assert what in foreign(text)
