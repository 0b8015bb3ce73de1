"""What an answer names: spellings, denials, letters, echoed lists; and that nothing is ever guessed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinvl.data.clauses import stem
from skinvl.data.labels import CLASSES
from skinvl.data.match import Match, choice_letter, match

HAM, BCN, PAD, ISIC = (CLASSES[name] for name in ("ham10000", "bcn20000", "pad_ufes_20", "isic2019"))
DDI, HIBA, FITZ, PATCH = (CLASSES[name] for name in ("ddi", "hiba", "fitzpatrick17k", "patch16"))
DERMNET, DERM12345 = CLASSES["dermnet"], CLASSES["derm12345"]
COLOURS = ("black", "blue", "brown", "red")
NONE, AMBIGUOUS = "(none)", "(ambiguous)"

NAMES = [
    # spellings, plurals, case and punctuation
    (HAM, "Melanoma", "Melanoma"),
    (HAM, "MELANOMA.", "Melanoma"),
    (HAM, "  melanomas ", "Melanoma"),
    (HAM, "**Melanoma**", "Melanoma"),
    (HAM, "__Melanoma__", "Melanoma"),
    (HAM, "“Melanoma”", "Melanoma"),
    (HAM, "`nevus`", "Nevus"),
    (HAM, "### Diagnosis: nevus", "Nevus"),
    (HAM, "The lesions are nevi.", "Nevus"),
    (HAM, "naevi", "Nevus"),
    (HAM, "A benign melanocytic naevus", "Nevus"),
    (HAM, "It is a common mole.", "Nevus"),
    (HAM, "moles", "Nevus"),
    (HAM, "molecule", NONE),
    (HAM, "actinic keratosis", "Actinic Keratoses"),
    (HAM, "actinic keratoses", "Actinic Keratoses"),
    (HAM, "Solar keratosis", "Actinic Keratoses"),
    (HAM, "AK", "Actinic Keratoses"),
    (HAM, "AKIEC", "Actinic Keratoses"),
    (HAM, "BCC", "Basal Cell Carcinoma"),
    (HAM, "BCCs", "Basal Cell Carcinoma"),
    (HAM, "basal-cell carcinoma", "Basal Cell Carcinoma"),
    (HAM, "basal\u2010cell\u2011carcinomas", "Basal Cell Carcinoma"),
    (HAM, "basal  cell\u00a0 carcinoma", "Basal Cell Carcinoma"),
    (HAM, "pigmented basal cell carcinoma (BCC)", "Basal Cell Carcinoma"),
    (HAM, "seborrheic keratosis", "Benign Keratosis"),
    (HAM, "seborrhoeic keratoses", "Benign Keratosis"),
    (HAM, "Benign keratosis-like lesion", "Benign Keratosis"),
    (HAM, "vascular lesion", "Vascular lesions"),
    (HAM, "a cherry haemangioma", "Vascular lesions"),
    (HAM, "dermatofibromas", "Dermatofibroma"),
    (HAM, "malignant melanoma in situ", "Melanoma"),
    (HAM, "keratosis", NONE),
    (HAM, "carcinoma", NONE),
    (HAM, "vascular", NONE),
    (HAM, "melanomatous", NONE),
    (HAM, "nonmelanoma skin cancer", NONE),
    (HAM, "non-melanoma skin cancer", NONE),
    (HAM, "a melanoma-like lesion", NONE),
    (HAM, "", NONE),
    (HAM, "\u2014 ? \u2026", NONE),
    (HAM, "I cannot tell.", NONE),
    (HAM, "psoriasis", NONE),
    (ISIC, "SCC", "Squamous Cell Carcinoma"),
    (ISIC, "benign keratosis", "Benign Keratosis-like Lesions"),
    (ISIC, "squamous cell carcinoma, invasive", "Squamous Cell Carcinoma"),
    (PAD, "SEK", "Seborrheic Keratosis"),
    # the longest name
    (BCN, "melanoma metastasis", "melanoma metastasis"),
    (BCN, "Melanoma metastases.", "melanoma metastasis"),
    (BCN, "metastatic melanoma", "melanoma metastasis"),
    (BCN, "melanoma", "melanoma"),
    (BCN, "solar lentigines", "solar lentigo"),
    (BCN, "lentigo maligna", NONE),
    (
        ("squamous cell carcinoma", "squamous cell carcinoma in situ"),
        "Squamous cell carcinoma (in situ)",
        "squamous cell carcinoma in situ",
    ),
    (
        ("squamous cell carcinoma", "squamous cell carcinoma in situ"),
        "Bowen’s disease",
        "squamous cell carcinoma in situ",
    ),
    (("melanoma", "melanoma in situ"), "melanoma in situ", "melanoma in situ"),
    (DERM12345, "congenital compound naevus", "congenital compound nevus"),
    (DERM12345, "lentigo maligna melanoma", "lentigo maligna melanoma"),
    (DERM12345, "Kaposi's sarcoma", "Kaposi sarcoma"),
    (DERM12345, "nevus", NONE),
    (DERMNET, "This fits the class Urticaria  Hives.", "Urticaria Hives"),
    (DERMNET, "Psoriasis", "Psoriasis pictures Lichen Planus and related diseases"),
    (DERMNET, "Psoriasis, lichen planus & related diseases", "Psoriasis pictures Lichen Planus and related diseases"),
    (DERMNET, "tinea corporis", "Tinea Ringworm Candidiasis and other Fungal Infections"),
    (DERMNET, "Eczema or psoriasis", AMBIGUOUS),
    # a class that is a common word
    (BCN, "other", "other"),
    (BCN, "Answer: Other.", "other"),
    (BCN, "The class is other", "other"),
    (BCN, "nevus; no other lesions", "nevus"),
    (BCN, "On the other hand, a scar", "scar"),
    (BCN, "scar-like tissue", NONE),
    # non- and its like
    (PATCH, "tumor", "tumor"),
    (PATCH, "tumour", "tumor"),
    (PATCH, "non-tumor", "nontumor"),
    (PATCH, "nontumor", "nontumor"),
    (PATCH, "Non tumor", "nontumor"),
    (PATCH, "non\u2011tumour tissue", "nontumor"),
    (PATCH, "no tumor", "nontumor"),
    (PATCH, "There is no tumor in it.", "nontumor"),
    (PATCH, "No evidence of a tumor is seen.", "nontumor"),
    (PATCH, "The tile shows no tumor.", "nontumor"),
    (PATCH, "It is tumor tissue.", "tumor"),
    (PATCH, "tumor: no", "nontumor"),
    (PATCH, "Tumor? No.", "nontumor"),
    (PATCH, "a tumor cannot be excluded", NONE),
    (PATCH, "tumor or nontumor", AMBIGUOUS),
    (DDI, "Non-Malignant", "Non-Malignant"),
    (DDI, "NONMALIGNANT", "Non-Malignant"),
    (DDI, "Malignant", "Malignant"),
    (DDI, "not malignant", "Non-Malignant"),
    (DDI, "Non - Malignant", "Non-Malignant"),
    (DDI, "Malignancy is unlikely", "Non-Malignant"),
    (PATCH, "an anti-tumor drug", NONE),
    (DDI, "No signs of malignancy.", "Non-Malignant"),
    (DDI, "benign", "Non-Malignant"),
    (DDI, "This lesion isn’t malignant", "Non-Malignant"),
    (DDI, "Malignancy cannot be ruled out", NONE),
    (DDI, "malignant rather than non-malignant", "Malignant"),
    (HIBA, "non-malignant", NONE),
    (HIBA, "premalignant", NONE),
    (HIBA, "pre-malignant", NONE),
    (HIBA, "not malignant", NONE),
    (HIBA, "benign, not malignant", "benign"),
    (HIBA, "Is the finding benign or malignant? It is malignant.", "malignant"),
    (FITZ, "non-neoplastic", "non-neoplastic"),
    (FITZ, "The finding is not neoplastic.", "non-neoplastic"),
    (FITZ, "neoplastic", NONE),
    (FITZ, "malignant melanoma", "malignant"),
]

ACCENTED = ("behcets disease", "dariers disease", "sjögren syndrome", "黑色素瘤", "色素痣")
ACCENTS = [
    (ACCENTED, "Behçet's disease", "behcets disease"),
    (ACCENTED, "This is Behc\u0327et’s disease.", "behcets disease"),
    (ACCENTED, "Darier´s disease", "dariers disease"),
    (ACCENTED, "most likely Sjogren syndrome", "sjögren syndrome"),
    (ACCENTED, "SJÖGREN SYNDROME", "sjögren syndrome"),
    (ACCENTED, "黑色素瘤。", "黑色素瘤"),
    (ACCENTED, "不是黑色素瘤", NONE),  # denials are read in English alone, and a name within other words is not
    (HAM, "nævus", "Nevus"),
    (HAM, "mélanome", NONE),
    (HAM, "Mélanoma", "Melanoma"),
]

DENIALS = [
    (HAM, "not melanoma", NONE),
    (HAM, "This is not a melanoma.", NONE),
    (HAM, "melanoma, not nevus", "Melanoma"),
    (HAM, "not melanoma but nevus", "Nevus"),
    (HAM, "Not melanoma; nevus.", "Nevus"),
    (HAM, "It is not melanoma, it is a nevus", "Nevus"),
    (HAM, "no evidence of melanoma", NONE),
    (HAM, "No evidence of melanoma; findings fit a nevus.", "Nevus"),
    (HAM, "nevus rather than melanoma", "Nevus"),
    (HAM, "nevus instead of a melanoma", "Nevus"),
    (HAM, "Melanoma is unlikely. Nevus.", "Nevus"),
    (HAM, "Nevus (melanoma unlikely)", "Nevus"),
    (HAM, "a nevus; melanoma was ruled out", "Nevus"),
    (HAM, "melanoma can be excluded", NONE),
    (HAM, "melanoma cannot be excluded", NONE),
    (HAM, "We cannot rule out melanoma", NONE),
    (HAM, "no melanoma, basal cell carcinoma or dermatofibroma, but a nevus", "Nevus"),
    (HAM, "neither melanoma nor nevus", NONE),
    (HAM, "Without signs of melanoma or BCC, this is a nevus.", "Nevus"),
    (HAM, "Melanoma and BCC are unlikely; this is a nevus", "Nevus"),
    (HAM, "This is a nevus, and melanoma is unlikely.", "Nevus"),
    (HAM, "I do not think that this is a melanoma", NONE),
    (HAM, "The border is not irregular, suggesting a nevus", "Nevus"),
    (HAM, "It does not bleed so it is a nevus", "Nevus"),
    (HAM, "Without a biopsy it is a melanoma", "Melanoma"),
    (HAM, "no doubt a melanoma", "Melanoma"),
    (HAM, "melanoma (not nevus)", "Melanoma"),
    (HAM, "Melanoma is not present, nevus is", "Nevus"),
    (HAM, "The melanoma is not ulcerated", "Melanoma"),
    (HAM, "nevus is more likely than melanoma", "Nevus"),
    (HAM, "unlike melanoma, a nevus is regular; this is a nevus", "Nevus"),
    (HAM, "The features argue against melanoma", NONE),
    (HAM, "negative for melanoma", NONE),
    (HAM, "A nevus that mimics melanoma", "Nevus"),
    (HAM, "Whether it is a melanoma or a nevus is unclear", NONE),
    (HAM, "melanoma, which is unlikely, or nevus", "Nevus"),
    (HAM, "a nevus that is not a melanoma", "Nevus"),
    (HAM, "The lesion does not appear to be a melanoma or a BCC; rather, it appears to be a mole.", "Nevus"),
    (HAM, "consistent with BCC. There are no features of melanoma, nevus, or dermatofibroma.", "Basal Cell Carcinoma"),
    (HAM, "This is a Benign Keratosis, as it lacks the features of melanoma.", "Benign Keratosis"),
    (HAM, "Nevus. A biopsy is needed to rule out melanoma.", "Nevus"),
    (HAM, "As an AI, I cannot diagnose melanoma", NONE),
    (HAM, "No, it is melanoma", "Melanoma"),
]

CONCLUSIONS = [
    (HAM, "melanoma or nevus", AMBIGUOUS),
    (HAM, "Melanoma/nevus", AMBIGUOUS),
    (HAM, "Melanoma. Nevi look different.", AMBIGUOUS),
    (HAM, ", ".join(HAM), AMBIGUOUS),
    (HAM, "\n".join(f"- {name}" for name in HAM), AMBIGUOUS),
    (HAM, f"The classes are {', '.join(HAM)}. Answer: Dermatofibroma", "Dermatofibroma"),
    (HAM, f"Options: {', '.join(HAM)}.\nMelanoma", "Melanoma"),
    (HAM, f"Which is it: {', '.join(HAM)}? Nevus.", "Nevus"),
    (HAM, f"Among {', '.join(HAM)} I choose nevus.", "Nevus"),
    (HAM, "Melanoma and nevus are possible. Final answer: nevus", "Nevus"),
    (HAM, "Melanoma and nevus are possible.\n\n**Final Answer:**\n\n**Melanoma**", "Melanoma"),
    (HAM, "Melanoma is possible, but it is most likely a nevus.", "Nevus"),
    (HAM, "Compared to melanoma, nevus is the most likely diagnosis.", "Nevus"),
    (HAM, "most likely melanoma, with nevus as a differential", "Melanoma"),
    (HAM, "Most likely melanoma or nevus", AMBIGUOUS),
    (HAM, f"Of the options ({', '.join(HAM)}) it most closely resembles a Melanoma.", "Melanoma"),
    (HAM, "While melanoma is a concern, the lesion is more consistent with a nevus.", "Nevus"),
    (HAM, "Nevus or melanoma? I would say melanoma.", "Melanoma"),
    (HAM, "Melanoma: 80%, Nevus: 20%", AMBIGUOUS),
    (HAM, "Most likely melanoma. Final answer: nevus.", "Nevus"),
    (HAM, "Answer: melanoma. Answer: nevus.", AMBIGUOUS),
    (HAM, "Answer: melanoma, nevus", AMBIGUOUS),
    (HAM, "Differential diagnosis: melanoma, nevus", AMBIGUOUS),
    (HAM, "Differential diagnosis: melanoma, BCC. Diagnosis: nevus", "Nevus"),
    (HAM, "Both melanoma and nevus fit. Therefore, although melanoma is possible, a nevus.", AMBIGUOUS),
    (HAM, "This shows a nevus.\nMelanoma", AMBIGUOUS),
    (HAM, '{"answer": "melanoma"}', "Melanoma"),
    (HAM, '```json\n{"diagnosis": "nevus", "differential": "melanoma"}\n```', "Nevus"),
    (HAM, '{"diagnosis": ["nevus"], "probability": 0.9}', "Nevus"),
    (HAM, '{"first": "nevus", "second": "melanoma"}', AMBIGUOUS),
    (HAM, '{"answer": "unknown"}', NONE),
    (HAM, '{"answer": melanoma', "Melanoma"),
    # a list goes on from what was concluded, and from nowhere else
    (HAM, "The diagnosis is melanoma because nevus, BCC and dermatofibroma do not show asymmetry.", "Melanoma"),
    (HAM, "Most likely melanoma since nevus, BCC and dermatofibroma are symmetric.", "Melanoma"),
    (HAM, "Melanoma, because nevi, BCC and dermatofibroma are symmetric.", "Melanoma"),
    (HAM, "Melanoma or nevus because BCC has other vessels.", AMBIGUOUS),
    (HAM, "Answer: melanoma or nevus because BCC and dermatofibroma are symmetric.", AMBIGUOUS),
    # a first line that is a class alone
    (HAM, "Melanoma\n\nA nevus or a BCC would be symmetric.", "Melanoma"),
    (HAM, "**Melanoma**\nOverall, it differs in colour from what a nevus shows.", "Melanoma"),
    (HAM, "Melanoma\nNevus", AMBIGUOUS),
    (HAM, "- Melanoma\n- Nevus\n- BCC", AMBIGUOUS),
    (HAM, "Melanoma or nevus\nA BCC has other vessels.", AMBIGUOUS),
    (HAM, "Melanoma: irregular\nNevus: regular", AMBIGUOUS),
    (HAM, "Melanoma\nFinal answer: nevus", "Nevus"),
    (HAM, "Melanoma?\nNo, it is a nevus.", "Nevus"),
    # other verbs that conclude
    (HAM, "I would go with nevus, although melanoma is possible.", "Nevus"),
    (HAM, "Melanoma is possible, but I'd go with a nevus over a BCC.", "Nevus"),
    (HAM, "I would not go with melanoma but with nevus or BCC.", AMBIGUOUS),
    (HAM, "I favour nevus over melanoma.", "Nevus"),
    (HAM, "The features favor a nevus; melanoma is possible.", "Nevus"),
    (HAM, "Nevus is favoured over melanoma.", "Nevus"),
    (HAM, "Melanoma favored over nevus.", AMBIGUOUS),  # no verb says so
    (HAM, "I lean towards BCC, but nevus is possible.", "Basal Cell Carcinoma"),
    (HAM, "Leaning toward nevus or melanoma; BCC is possible.", AMBIGUOUS),
    (HAM, "This does not favour melanoma, but nevus.", "Nevus"),
    (COLOURS, "The colour is red.", "red"),
    (COLOURS, "reddish", NONE),
    (COLOURS, "brown and black", AMBIGUOUS),
]

LETTERS = [  # of HAM: A Nevus, B Benign Keratosis, C Melanoma, D Basal Cell Carcinoma, E, F, G
    ("B", "Benign Keratosis"),
    ("b", "Benign Keratosis"),
    ("a", "Nevus"),
    ("(B)", "Benign Keratosis"),
    ("(b)", "Benign Keratosis"),
    ("B.", "Benign Keratosis"),
    ("B)", "Benign Keratosis"),
    ("**C**", "Melanoma"),
    ("Answer: B", "Benign Keratosis"),
    ("answer: b", "Benign Keratosis"),
    ("The answer is B", "Benign Keratosis"),
    ("The answer is B.", "Benign Keratosis"),
    ("The correct answer is (C).", "Melanoma"),
    ("option B", "Benign Keratosis"),
    ("Option C is correct", "Melanoma"),
    ("I choose C because of the network", "Melanoma"),
    ("It's A.", "Nevus"),
    ("A is correct", "Nevus"),
    ("C. Melanoma", "Melanoma"),
    ("C) Melanoma", "Melanoma"),
    ("(C) Melanoma", "Melanoma"),
    ("Melanoma (C)", "Melanoma"),
    ("C: Nevus", AMBIGUOUS),
    ("Answer: C) Nevus", AMBIGUOUS),
    ("A lesion with a dark network", NONE),
    ("A nevus is seen", "Nevus"),
    ("A melanoma is seen", "Melanoma"),
    ("The answer is a melanoma", "Melanoma"),
    ("The answer is A melanoma", "Melanoma"),
    ("T", NONE),
    ("The skin", NONE),
    ("vitamin D deficiency", NONE),
    ("T-cell or B cell lymphoma", NONE),
    ("A or B", AMBIGUOUS),
    ("Options B and C", AMBIGUOUS),
    ("Option A is wrong; option C is right", "Melanoma"),
    ("not B but C", "Melanoma"),
    ("\n".join(f"{letter}. {name}" for letter, name in zip("ABCDEFG", HAM, strict=True)), AMBIGUOUS),
    (
        "\n".join(f"{letter}) {name}" for letter, name in zip("ABCDEFG", HAM, strict=True)) + "\nAnswer: B",
        "Benign Keratosis",
    ),
    (
        " ".join(f"({letter}) {name}" for letter, name in zip("ABCDEFG", HAM, strict=True)) + ". The answer is C.",
        "Melanoma",
    ),
    (", ".join(f"{letter}: {name}" for letter, name in zip("ABCDEFG", HAM, strict=True)) + ".\nC", "Melanoma"),
    ('{"answer": "C"}', "Melanoma"),
    ("The answer is D because A, B and C do not show asymmetry.", "Basal Cell Carcinoma"),
    ("The correct option is D since A, B and C do not show it.", "Basal Cell Carcinoma"),
    ("D, because A, B and C do not show asymmetry.", "Basal Cell Carcinoma"),
    ("The answer is A or B because C and D do not show it.", AMBIGUOUS),
    ("D\n\nA, B and C do not show asymmetry.", "Basal Cell Carcinoma"),
    ("D. Basal cell carcinoma\nA. Nevus: no vessels\nC. Melanoma: no network", "Basal Cell Carcinoma"),
    ("**(D)**\nOption A is symmetric, and option B has no vessels.", "Basal Cell Carcinoma"),
    ("A. Nevus\nB. Benign keratosis: scaly\nC. Melanoma: dark", AMBIGUOUS),  # the list again, with remarks
    ("D\nA\nB", AMBIGUOUS),
    ("I'd go with D over A.", "Basal Cell Carcinoma"),
    ("A and B are possible, but I favour D.", "Basal Cell Carcinoma"),
    ("I am leaning towards C; A is less typical.", "Melanoma"),
    ("Final answer: \\boxed{C}", "Melanoma"),
]


def expected(choice: str) -> Match:
    return {NONE: Match("none"), AMBIGUOUS: Match("ambiguous")}.get(choice, Match("matched", choice))


@pytest.mark.parametrize(("classes", "answer", "choice"), NAMES)
def test_a_class_is_known_by_its_spellings(classes: tuple[str, ...], answer: str, choice: str) -> None:
    assert match(answer, classes) == expected(choice)


@pytest.mark.parametrize(("classes", "answer", "choice"), ACCENTS)
def test_accents_and_forms_of_letters_change_nothing(classes: tuple[str, ...], answer: str, choice: str) -> None:
    assert match(answer, classes) == expected(choice)


@pytest.mark.parametrize(("classes", "answer", "choice"), DENIALS)
def test_what_is_denied_is_not_named(classes: tuple[str, ...], answer: str, choice: str) -> None:
    assert match(answer, classes) == expected(choice)


@pytest.mark.parametrize(("classes", "answer", "choice"), CONCLUSIONS)
def test_of_several_classes_only_a_conclusion_chooses(classes: tuple[str, ...], answer: str, choice: str) -> None:
    assert match(answer, classes) == expected(choice)


@pytest.mark.parametrize(("answer", "choice"), LETTERS)
def test_a_letter_is_an_option_where_options_were_listed(answer: str, choice: str) -> None:
    assert match(answer, HAM, letters=True) == expected(choice)


def test_letters_mean_nothing_where_none_were_listed() -> None:
    assert match("The answer is B", HAM) == Match("none")
    assert match("(C)", HAM) == Match("none")


MCQ = {"A": "Nevus", "B": "Melanoma", "C": "Scar", "T": "Seborrheic keratosis"}


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("The answer is B", "B"),  # whose first character is T
        ("The answer is T.", "T"),
        ("B", "B"),
        ("b) melanoma", "B"),
        ("Melanoma", "B"),
        ("Because of its network, melanoma.", "B"),  # begins with B, and C would be wrong
        ("Clearly melanoma", "B"),
        ("C. Scar", "C"),
        ("C. Melanoma", AMBIGUOUS),
        ("A scar", "C"),
        ("Not A", NONE),
        ("It could be A or B", AMBIGUOUS),
        ("A: Nevus\nB: Melanoma\nC: Scar\nT: Seborrheic keratosis\nAnswer: C", "C"),
        ("", NONE),
        ("Biopsy first", NONE),
    ],
)
def test_multiple_choice_reads_the_letter_and_never_the_first_character(answer: str, choice: str) -> None:
    assert choice_letter(answer, MCQ) == expected(choice)


def test_options_may_be_in_lower_case_or_long() -> None:
    options = {"a": "It is round. And flat.", "b": "It has two colours: brown and black"}
    assert choice_letter("(B)", options) == Match("matched", "b")
    assert choice_letter("it has two colors: brown and black", options) == Match("matched", "b")


EVERY = [(name, one) for name, classes in CLASSES.items() for one in classes]


def ways(one: str) -> list[str]:
    plain = [one, one.upper(), one.lower(), one.title(), f"{one}.", f'"{one}"', f"'{one}'", f"**{one}**", f" {one}\n"]
    dashed = [one.replace("-", "\u2011"), one.replace(" ", "  "), one.replace(" ", "\u00a0")]
    said = [f"This is a {one}.", f"Answer: {one}", f"The image shows {one}", f"The photo belongs to the class {one}."]
    plural = [] if one.endswith("s") or " and " in one or one in ("other", *DDI, *HIBA, *FITZ) else [f"{one}s"]
    return [*plain, *dashed, *said, *plural]


@pytest.mark.parametrize(("name", "one"), EVERY)
def test_every_class_of_every_benchmark_is_its_own_name(name: str, one: str) -> None:
    for way in ways(one):
        assert match(way, CLASSES[name]) == Match("matched", one), way
        assert match(way, CLASSES[name], letters=len(CLASSES[name]) <= 26) == Match("matched", one), way


@pytest.mark.parametrize(("name", "one"), EVERY)
def test_every_class_can_be_denied(name: str, one: str) -> None:
    for way in (f"not {one}", f"This is not {one}.", f"no evidence of {one}"):
        assert match(way, CLASSES[name]).choice != one, way


def test_every_class_of_the_released_zero_shot_lists_is_its_own_name(shared: Path) -> None:
    lists = json.loads((shared / "zeroshot" / "released_protocol.json").read_text(encoding="utf-8"))["classes"]
    for names in (tuple(dict.fromkeys(names)) for names in lists.values()):
        for name in names:
            for way in (name, f"{name.upper()}.", f"This is a case of {name}.", f"I would go with {name}."):
                assert match(way, names) == Match("matched", name), way


IDLE = ("the", "skin", "is", "with", "lesion", "of", "dark", "a", "border", "A", "irregular", "not", "no", "or", "and")


@given(st.lists(st.sampled_from(IDLE), max_size=20), st.sampled_from([" ", ", ", ". ", "\n", " - "]))
def test_a_text_of_other_words_names_none(words: list[str], between: str) -> None:
    for classes in CLASSES.values():
        if not {*classes} & {*IDLE}:  # streaks are irregular, or not
            assert match(between.join(words), classes) == Match("none")


PIECES = (*IDLE, *HAM, "naevi", "BCC", "rather than", "most likely", "Final answer:", "unlikely", "but", "?", ".", ",")


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.permutations(HAM))
def test_the_order_of_the_classes_changes_nothing(pieces: list[str], order: list[str]) -> None:
    answer = " ".join(pieces)
    assert match(answer, order) == match(answer, HAM)


@settings(max_examples=300)
@given(st.text(max_size=80), st.booleans())
def test_any_text_has_an_outcome(answer: str, letters: bool) -> None:
    found = match(answer, BCN, letters)
    assert (found.choice in BCN) == (found.outcome == "matched")


@given(st.permutations(HAM), st.integers(2, 7))
def test_an_echoed_list_is_never_its_first_class(order: list[str], count: int) -> None:
    for answer in (", ".join(order[:count]), "\n".join(order[:count]), " or ".join(order[:count])):
        assert match(answer, HAM) == Match("ambiguous")


def test_a_stem_is_the_same_for_its_plural() -> None:
    pairs = ("nevus nevi", "keratosis keratoses", "metastasis metastases", "lentigo lentigines", "body bodies")
    for one, many in map(str.split, pairs):
        assert stem(one) == stem(many)


def test_answers_are_matched_in_seconds() -> None:
    words = "The lesion has an irregular border and is most consistent with {}, although a scar was considered. "
    answers = [words.format(DERMNET[number % 23]) + f"Case {number}." for number in range(28_000)]
    started = time.process_time()
    found = [match(answer, DERMNET).choice for answer in answers]
    assert found == [DERMNET[number % 23] for number in range(28_000)]
    assert time.process_time() - started < 30
