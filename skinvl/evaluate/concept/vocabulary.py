"""Words to name units by: what SkinCon marks, diagnoses, sites, colours, and what is in a photo besides skin."""

from __future__ import annotations

import re

from data_prep import skincon
from skinvl.data import labels
from skinvl.evaluate import text_lists

SITES = (
    *("abdomen", "arm", "armpit", "back", "chest", "ear", "eyelid", "face", "finger", "fingernail", "foot", "forehead"),
    *("genital area", "groin", "hand", "knee", "leg", "lip", "mouth", "neck", "nose", "palm", "scalp", "shoulder"),
    *("sole", "thigh", "toe", "toenail"),
)
COLOURS = ("black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "tan", "white", "yellow")
# What a model may lean on that is not the skin.
ARTEFACTS = (
    *("air bubbles", "bandage", "black corners", "blurred photo", "clothing", "dermatoscope rim", "flash reflection"),
    *("glasses", "glove", "hair", "immersion gel", "ink marking", "jewellery", "ruler", "shadow", "skin marker"),
    *("sticker with a number", "tattoo"),
)
SIGHTS = (
    *("asymmetry", "blue-white veil", "dots and globules", "irregular border", "pigment network", "regression"),
    *("streaks", "smooth border", "annular lesion", "dermoscopic image", "clinical photograph", "dark skin"),
    *("light skin", "healthy skin", "wrinkled skin", "swelling", "rash", "blister", "blood vessels", "bleeding"),
)


def words(file: str | None) -> tuple[str, ...]:
    """The names that a unit may get, each once: those of a file, one on each line, or our own.

    Raises:
        TextListError: no such file, or not one of different texts.
    """
    if file is not None:
        return text_lists.read(file)
    concepts = [plain for name in skincon.CONCEPTS for plain in spelt(name)]
    every = (*concepts, *labels.SYNONYMS, *labels.CLASSES["derm7pt"], *SITES, *COLOURS, *ARTEFACTS, *SIGHTS)
    return tuple(dict.fromkeys(name for name in every if name != "miscellaneous"))


def spelt(name: str) -> list[str]:
    """What SkinCon's name of a concept says in words.

    >>> spelt("brown (hyperpigmentation)"), spelt("purpura/petechiae")
    (['brown', 'hyperpigmentation'], ['purpura', 'petechiae'])
    """
    return [part.strip() for part in re.split(r"[/()]", name) if part.strip()]
