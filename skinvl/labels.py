"""Diagnoses: one canonical name each, the spellings that datasets use for it, and its malignancy."""

from __future__ import annotations

import difflib
from typing import Literal

Malignancy = Literal["benign", "premalignant", "malignant"]

_MALIGNANCY: dict[str, Malignancy] = {
    "actinic keratosis": "premalignant",
    "basal cell carcinoma": "malignant",
    "dermatofibroma": "benign",
    "lentigo": "benign",
    "melanoma": "malignant",
    "melanoma metastasis": "malignant",
    "nevus": "benign",
    "scar": "benign",
    "seborrheic keratosis": "benign",
    "solar lentigo": "benign",
    "squamous cell carcinoma": "malignant",
    "vascular lesion": "benign",
}

# HAM10000 and ISIC 2019 put solar lentigo and lichen-planus-like keratosis into their "benign keratosis" too; most of
# it is seborrheic keratosis, and the benchmarks compare the three spellings as one class.
_SYNONYMS: dict[str, str] = {
    "actinic keratoses": "actinic keratosis",
    "benign keratosis": "seborrheic keratosis",
    "benign keratosis-like lesions": "seborrheic keratosis",
    "lentigo nos": "lentigo",
    "vascular lesions": "vascular lesion",
}

PAD_CODES: dict[str, str] = {
    "ACK": "actinic keratosis",
    "BCC": "basal cell carcinoma",
    "MEL": "melanoma",
    "NEV": "nevus",
    "SCC": "squamous cell carcinoma",
    "SEK": "seborrheic keratosis",
}


def canonical(name: str) -> str:
    """The canonical name of a diagnosis, whatever its case and spacing.

    >>> canonical("Benign  Keratosis-like Lesions")
    'seborrheic keratosis'

    Raises:
        ValueError: unknown; the message gives the nearest known names.
    """
    plain = " ".join(name.casefold().split())
    plain = _SYNONYMS.get(plain, plain)
    if plain not in _MALIGNANCY:
        near = difflib.get_close_matches(plain, [*_MALIGNANCY, *_SYNONYMS], n=3, cutoff=0.5) or sorted(_MALIGNANCY)
        raise ValueError(
            f"diagnosis {name!r}: unknown; the nearest known names are {', '.join(near)}. "
            "Correct it, or add the name or a synonym to skinvl/labels.py"
        )
    return plain


def malignancy(diagnosis: str) -> Malignancy:
    """Benign, premalignant or malignant.

    Raises:
        ValueError: an unknown diagnosis.
    """
    return _MALIGNANCY[canonical(diagnosis)]
