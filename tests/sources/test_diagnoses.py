"""Whether an answer contradicts what is known.

On first sight of the texts: precision and recall .92 on CONTRADICTIONS, 1 and .8 on CONTRADICTIONS_LAST.
"""

from __future__ import annotations

import pytest

from helpers.stated import CONTRADICTIONS, CONTRADICTIONS_LAST
from skinvl.data.labels import CLASSES
from skinvl.sources.reading import diagnoses
from skinvl.sources.reading.diagnoses import Known


@pytest.mark.parametrize(
    ("known", "question", "answer", "wrong"), [*CONTRADICTIONS, *CONTRADICTIONS_LAST], ids=lambda one: str(one)[:40]
)
def test_contradictions(known: str, question: str, answer: str, wrong: bool) -> None:
    fact = Known.grade(known) or Known.diagnosis(known)
    assert (diagnoses.contradiction(question, answer, fact) is not None) == wrong


def test_it_says_what_it_found() -> None:
    nevus = Known.diagnosis("Melanocytic nevi")
    assert diagnoses.contradiction("What is it?", "Not a mole.", nevus) == "denies nevus: mole"
    assert diagnoses.contradiction("Is it an SCC?", "Yes!", nevus) == "asserts squamous cell carcinoma: Yes"
    assert diagnoses.contradiction("What is it?", "A BCC.", nevus) == "asserts basal cell carcinoma"


@pytest.mark.parametrize(
    "name", sorted({*CLASSES["pad_ufes_20"], *CLASSES["isic2019"], *CLASSES["bcn20000"]} - {"other"})
)
def test_no_diagnosis_contradicts_itself(name: str) -> None:
    known = Known.diagnosis(name)
    for answer in (name, f"The diagnosis is {name.lower()}.", f"Most likely {name}."):
        assert diagnoses.contradiction("What is it?", answer, known) is None
        assert diagnoses.stated(answer, known)
    assert diagnoses.contradiction("What is it?", f"This is not {name}.", known)


def test_every_other_diagnosis_of_a_benchmark_contradicts() -> None:
    names = [name.lower() for name in CLASSES["pad_ufes_20"]]
    for own in names:
        for other in names:
            why = diagnoses.contradiction("What is it?", f"The most likely diagnosis is {other}.", Known.diagnosis(own))
            assert (why is not None) == (own != other), (own, other)


def test_a_grade_is_one_of_three() -> None:
    assert Known.grade("indeterminate") is None
    assert diagnoses.named("A melanoma, not a nevus; or BCC.") == ["melanoma", "basal cell carcinoma"]
