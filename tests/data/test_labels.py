from __future__ import annotations

import pytest

from skinvl.data import labels
from skinvl.data.match import match


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
        ("Melanoma, NOS", "melanoma"),
        ("Solar or actinic keratosis", "actinic keratosis"),
        *(("nevocytic nevus", "nevus"), ("Melanocytic naevi", "nevus"), ("Nevus, NOS", "nevus"), ("NEVI", "nevus")),
        *(
            ("malignant melanoma", "melanoma"),
            ("Melanomas", "melanoma"),
            ("mole", "nevus"),
            ("BCCs", "basal cell carcinoma"),
        ),
        *(("Seborrhoeic keratoses", "seborrheic keratosis"), ("naevus cell naevus", "nevus"), ("MEL", "melanoma")),
        *(("Squamous cell carcinoma, NOS", "squamous cell carcinoma"), ("Lentigines", "lentigo")),
        *(("Bowen\u2019s disease", "squamous cell carcinoma in situ"), ("Metastatic melanoma", "melanoma metastasis")),
        *(("melanoma_in_situ", "melanoma"), ("Melanoma metastases", "melanoma metastasis"), ("Scars", "scar")),
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
    assert {labels.canonical(name) for names in labels.SYNONYMS.values() for name in names} == {*labels.SYNONYMS}
    assert {*labels.SYNONYMS} <= set(labels._MALIGNANCY)
    assert {labels.canonical(name) for name in labels.PAD_CODES.values()} <= set(labels._MALIGNANCY)
    for codes in (labels.HAM_CODES, labels.ISIC_2019_CODES):
        assert {labels.canonical(name) for name in codes.values()} <= set(labels._MALIGNANCY)


def test_class_lists_are_those_of_the_benchmarks() -> None:
    sizes = {
        "bcn20000": 12,
        "ddi": 2,
        "derm12345": 40,
        "derm7pt": 14,
        "dermnet": 23,
        "fitzpatrick17k": 3,
        "ham10000": 7,
        "hiba": 2,
        "isic2019": 8,
        "milk10k": 11,
        "passion": 3,
        "derm7pt_5": 5,
        **{f"derm7pt_{name}": len(values) for name, values in labels.DERM7PT_CRITERIA.items()},
    }
    assert {name: len(set(names)) for name, names in labels.CLASSES.items()} == sizes | {"pad_ufes_20": 6, "patch16": 2}
    for codes, name in (
        (labels.HAM_CODES, "ham10000"),
        (labels.ISIC_2019_CODES, "isic2019"),
        (labels.PAD_CODES, "pad_ufes_20"),
    ):
        assert {labels.canonical(value) for value in codes.values()} == {
            labels.canonical(value) for value in labels.CLASSES[name]
        }
    assert {name for name in labels.CLASSES["bcn20000"] if not labels.is_known(name)} == {"other"}


def test_a_name_without_a_canonical_one_stays_as_it_is() -> None:
    assert labels.diagnosis(" Pityriasis  Rosea") == "pityriasis rosea"
    assert not labels.is_known("pityriasis rosea")
    assert labels.is_known("NEVUS")


def test_no_spelling_means_two_diagnoses() -> None:
    spelt = [labels._stems(name) for name in labels._MALIGNANCY]
    spelt += [labels._stems(name) for names in labels.SYNONYMS.values() for name in names]
    assert len(spelt) == len({*spelt})
    assert labels.diagnosis("Hemangioma") == "hemangioma"  # narrower than the class that an answer means by it


def test_the_matcher_asks_the_same_list() -> None:
    for name, synonyms in labels.SYNONYMS.items():
        others = [other for other in labels._MALIGNANCY if other != name and other not in name and name not in other]
        for spelling in synonyms:
            assert match(f"This is most likely {spelling}.", [name, *others]).choice == name


def test_all_spellings_of_an_unknown_name_share_a_key() -> None:
    assert len({labels.key(name) for name in ("Haemangioma", "hemangiomas", "Hemangioma, NOS")}) == 1
    assert labels.key("nevi") == labels.key("Nevocytic nevus") != labels.key("blue nevus")


def test_an_ontology_gives_only_ways_that_are_certain() -> None:
    below = {
        "root": ["A", "B", "lost"],
        "A": ["a", "both", "Twin"],
        "B": ["both", "b"],
        "b": ["b", "deep"],  # below itself, which says nothing
        "Twin": ["twin"],
        "ring": ["link"],
        "link": ["ring"],
    }
    ways = labels.ways(below, "root")
    assert ways["a"] == ["A", "a"]  # the class a has its own way, though A is spelt like it but for case
    assert ways["A"] == ["A"]
    assert ways["lost"] == ["lost"]
    assert ways["twin"] == ["A", "Twin", "twin"]
    assert ways["deep"] == ["B", "b", "deep"]
    assert not {"root", "both", "ring", "link"} & set(ways)  # two classes above, or a circle
    assert "both" not in labels.ways({**below, "root": ["BOTH"]}, "root")
    assert labels.ways({"root": ["Big"], "Big": ["Small One"]}, "root")["small one"] == ["Big", "Small One"]
