"""What a text states of a patient that no image shows, since only the hidden context had it; and what is done then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, NamedTuple

from skinvl.data.example import Facts
from skinvl.sources.reading import diagnoses, person, sites
from skinvl.sources.reading.diagnoses import Known
from skinvl.sources.reading.person import Sex

Deal = Literal["keep", "tag", "drop"]
Name = Literal["age", "sex", "site", "diagnosis", "malignancy"]

# Kind of question → the facts that an answer to it is asked for. A kind that is not here, such as one of a programme
# of your own, counts as asking for all of them, so that what its answers state is tagged rather than dropped.
ASKS: dict[str, str] = {
    "overview": "diagnosis malignancy site",
    "explanation": "diagnosis malignancy",
    "next_steps": "diagnosis malignancy",
    "lesion": "diagnosis malignancy",
    "diagnosis": "diagnosis malignancy",
    "differential": "diagnosis malignancy",
    "malignancy": "diagnosis malignancy",
    "anatomy": "site",
    "site": "site",
    "skin_type": "",
    "features": "",
    "quality": "",
}


class Deals(NamedTuple):
    """What is done with a statement: of an answer, asked for it or not, and of a question that a model wrote."""

    asked: Deal
    unasked: Deal
    question: Deal


# A diagnosis that was asked for is right, but was told and not seen, as its tag says; age and sex are never seen.
DEALS: dict[str, Deals] = {
    "age": Deals("drop", "drop", "drop"),
    "sex": Deals("drop", "drop", "drop"),
    "diagnosis": Deals("tag", "drop", "drop"),
    "malignancy": Deals("tag", "tag", "drop"),
    "site": Deals("tag", "drop", "drop"),
}
# A clinical photograph may well show where on the body it was taken; a dermoscopic image or a section does not.
DEALS_CLINICAL: dict[str, Deals] = {**DEALS, "site": Deals("keep", "tag", "tag")}
_VALUES = {one.name for one in fields(Facts)}


class Stated(NamedTuple):
    """A fact of the patient that a text states, the words that do, and whether the context had it."""

    fact: Name
    words: str
    told: bool


@dataclass(frozen=True, slots=True)
class Disclosed:
    """All that the model was told of an image, as texts are compared with it."""

    ages: tuple[float, ...]
    sexes: frozenset[Sex]
    sites: frozenset[str]
    diagnosis: Known | None
    malignancy: Known | None


def told(facts: Facts, context: Mapping[str, str]) -> Disclosed:
    """What the facts and the free texts of the context, such as a caption, tell."""
    texts = tuple(value for name, value in context.items() if name not in _VALUES)
    return _told(facts.age, facts.sex, facts.site, facts.diagnosis, facts.malignancy, texts)


@lru_cache(maxsize=1024)
def _told(
    age: float | None,
    sex: str | None,
    site: str | None,
    diagnosis: str | None,
    malignancy: str | None,
    texts: tuple[str, ...],
) -> Disclosed:
    ages = [() if age is None else (age,), *(tuple(one.low for one in person.ages(text)) for text in texts)]
    sexes = {sex, *(one for text in texts for one, _ in person.sexes(text))} & {"female", "male"}
    named = [diagnosis] if diagnosis else [name for text in texts for name in diagnoses.named(text)]
    return Disclosed(
        tuple(one for some in ages for one in some),
        frozenset(one for one in ("female", "male") if one in sexes),
        frozenset[str]().union(sites.named(site or ""), *map(sites.named, texts)),
        Known.diagnosis(*named) if named else None,
        Known.grade(malignancy or ""),
    )


def stated(text: str, known: Disclosed, question: bool = False) -> list[Stated]:
    """What the text states of the patient, each fact once, those that the context had first.

    An age or a sex that the context had not is stated all the same; a site or diagnosis is not, since it may be seen.

    >>> her = told(Facts(age=54, sex="female", site="forearm", diagnosis="melanoma"), {})
    >>> [(one.fact, one.told) for one in stated("A melanoma on the arm of a 54-year-old man.", her)]
    [('age', True), ('sex', False), ('site', True), ('diagnosis', True)]
    """
    found: list[Stated] = []
    ages = [Stated("age", one.words, any(one.low <= age < one.high for age in known.ages)) for one in person.ages(text)]
    sexes = [Stated("sex", words, sex in known.sexes) for sex, words in person.sexes(text)]
    for some in (ages, sexes):
        found += sorted(some, key=lambda one: not one.told)[:1]
    if words := sites.stated(text, known.sites):
        found.append(Stated("site", words, True))
    look = diagnoses.presupposed if question else diagnoses.stated
    if known.diagnosis and (words := look(text, known.diagnosis)):
        found.append(Stated("diagnosis", words, True))
    if known.malignancy and (words := look(text, known.malignancy)):
        found.append(Stated("malignancy", words, True))
    return found


def deal(fact: Name, kind: str, modality: str | None, question: bool = False) -> Deal:
    """What is done where a question, or the answer to one of this kind, states a fact.

    >>> deal("site", "anatomy", "clinical"), deal("site", "anatomy", "dermoscopy"), deal("site", "features", None)
    ('keep', 'tag', 'drop')
    """
    deals = (DEALS_CLINICAL if modality == "clinical" else DEALS)[fact]
    if question:
        return deals.question
    return deals.asked if fact in ASKS.get(kind, fact).split() else deals.unasked
