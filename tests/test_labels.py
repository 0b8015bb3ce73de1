from __future__ import annotations

import pytest

from skinvl import labels


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Nevus", "nevus"),
        ("Actinic Keratoses", "actinic keratosis"),
        ("Actinic Keratosis", "actinic keratosis"),
        ("Benign Keratosis", "seborrheic keratosis"),
        ("Benign Keratosis-like Lesions", "seborrheic keratosis"),
        ("Vascular lesions", "vascular lesion"),
        ("  Basal  Cell Carcinoma ", "basal cell carcinoma"),
        ("lentigo NOS", "lentigo"),
    ],
)
def test_spellings_of_the_benchmarks_have_one_name(spelling: str, name: str) -> None:
    assert labels.canonical(spelling) == name


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'Melanomma': unknown; the nearest known names are melanoma\b"):
        labels.canonical("Melanomma")


def test_malignancy_knows_every_name_and_synonym() -> None:
    assert [labels.malignancy(name) for name in ("MELANOMA", "actinic keratoses", "scar")] == [
        "malignant",
        "premalignant",
        "benign",
    ]
    assert {labels.canonical(name) for name in labels._SYNONYMS} <= set(labels._MALIGNANCY)
    assert {labels.canonical(name) for name in labels.PAD_CODES.values()} <= set(labels._MALIGNANCY)
