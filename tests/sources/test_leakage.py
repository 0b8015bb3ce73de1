"""What texts state of a patient, on a corpus labelled by hand, and what is done about it.

What the rules found when they were first run on texts that they had not been written for, by facts in these texts:
precision .99 and recall .98 on those written before the code, .91 and .97 on LATER, .96 and .92 on LAST. They were
corrected on each in turn, so that the tests here only hold what was reached.
"""

from __future__ import annotations

import pytest

from helpers import stated
from helpers.stated import PATIENTS, Said
from skinvl.data.example import Facts
from skinvl.sources.reading import leakage

IN_WORDS = {"diagnosis": "label", "malignancy": "grade"}
ANSWERS = [*stated.ANSWERS_FIRST, *stated.ANSWERS_LATER, *stated.ANSWERS_LAST]
QUESTIONS = [*stated.QUESTIONS_FIRST, *stated.QUESTIONS_LATER, *stated.QUESTIONS_LAST]


def found(patient: str, text: str, question: bool = False) -> set[str]:
    known = leakage.disclosed(PATIENTS[patient], {})
    return {
        IN_WORDS.get(statement.fact, statement.fact)
        for statement in leakage.stated(text, known, question)
        if statement.disclosed
    }


@pytest.mark.parametrize("said", ANSWERS, ids=lambda said: said[1][:50])
def test_what_an_answer_states(said: Said) -> None:
    assert found(*said[:2]) == set(said[2].split())


@pytest.mark.parametrize("said", QUESTIONS, ids=lambda said: said[1][:50])
def test_what_a_question_states(said: Said) -> None:
    assert found(*said[:2], question=True) == set(said[2].split())


def test_the_corpus_is_large_and_has_both_sides() -> None:
    everything = [*ANSWERS, *QUESTIONS]
    assert len(everything) > 390
    assert len({said[1] for said in everything}) == len(everything)
    for fact in ("age", "sex", "site", "label", "grade"):
        with_it = sum(fact in said[2].split() for said in everything)
        assert with_it >= 10, fact
    assert sum(not said[2] for said in everything) > 150


def test_what_nobody_told_is_known_as_such() -> None:
    known = leakage.disclosed(Facts(age=54.0, sex="female", site="forearm"), {})
    say = [
        (statement.fact, statement.disclosed)
        for statement in leakage.stated("A 30-year-old man with a spot on the leg.", known)
    ]
    assert say == [("age", False), ("sex", False)]  # the leg may be seen
    both = leakage.stated("A 30-year-old man beside a 54-year-old.", known)
    assert [(statement.fact, statement.words, statement.disclosed) for statement in both] == [
        ("age", "54-year-old", True),
        ("sex", "a 30-year-old man", False),
    ]
    nothing = leakage.disclosed(Facts(), {})
    assert [
        statement.disclosed for statement in leakage.stated("This woman is 30 years old and has melanoma.", nothing)
    ] == [
        False,
        False,
    ]


def test_a_caption_tells_too() -> None:
    caption = "Figure 3. A 40-year-old woman with lichen planus of the wrist; a wart was ruled out."
    known = leakage.disclosed(Facts(modality="clinical"), {"modality": "clinical", "caption": caption})
    text = "This forty-year-old woman has lichen planus on the wrist."
    assert [(statement.fact, statement.disclosed) for statement in leakage.stated(text, known)] == [
        *(("age", True), ("sex", True), ("site", True), ("diagnosis", True)),
    ]
    assert leakage.stated("A wart.", known) == []
    known = leakage.disclosed(Facts(diagnosis="psoriasis"), {"caption": caption})  # what is known beats what is read
    assert leakage.stated("Lichen planus.", known) == []


def test_the_values_of_facts_are_no_free_text() -> None:
    known = leakage.disclosed(Facts(), {"site": "forearm", "sex": "female", "diagnosis": "melanoma"})
    assert leakage.stated("A melanoma of the forearm.", known) == []


@pytest.mark.parametrize(
    ("site", "answer"),
    [
        *(
            ("perianal region", "It lies beside the anus."),
            ("ala nasi", "A papule of the nose."),
            ("concha", "An ear."),
        ),
        *(("clavicle", "A patch on the chest."), ("thenar eminence", "It is on the palm."), ("palate", "A mouth.")),
        *(("achilles region", "At the ankle."), ("conjunctiva", "A lesion of the face."), ("mons pubis", "The groin.")),
    ],
)
def test_the_finer_sites_of_the_archive_are_known(site: str, answer: str) -> None:
    known = leakage.disclosed(Facts(site=site), {"site": site})
    assert [(statement.fact, statement.disclosed) for statement in leakage.stated(answer, known)] == [("site", True)]


@pytest.mark.parametrize(
    ("fact", "kind", "clinical", "other"),
    [
        *(("age", kind, "drop", "drop") for kind in ("overview", "diagnosis", "open", "anatomy")),
        *(("sex", kind, "drop", "drop") for kind in ("overview", "diagnosis", "open", "anatomy")),
        *(
            ("diagnosis", kind, "tag", "tag")
            for kind in ("diagnosis", "differential", "malignancy", "overview", "open")
        ),
        *(("diagnosis", kind, "drop", "drop") for kind in ("features", "anatomy", "quality")),
        *(("malignancy", kind, "tag", "tag") for kind in ("malignancy", "features")),
        *(("site", kind, "keep", "tag") for kind in ("anatomy", "overview", "of your own")),
        *(("site", kind, "tag", "drop") for kind in ("diagnosis", "features")),
    ],
)
def test_what_is_done_with_what_an_answer_states(fact: leakage.Name, kind: str, clinical: str, other: str) -> None:
    assert leakage.deal(fact, kind, "clinical") == clinical
    assert {leakage.deal(fact, kind, modality) for modality in ("dermoscopy", "pathology", None)} == {other}


@pytest.mark.parametrize("fact", leakage.DEALS)
def test_a_question_may_state_nothing_but_a_site_that_is_seen(fact: leakage.Name) -> None:
    assert leakage.deal(fact, "overview", "dermoscopy", question=True) == "drop"
    assert leakage.deal(fact, "overview", "clinical", question=True) == ("tag" if fact == "site" else "drop")
