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


# A diagnosis that was asked for is right, but was disclosed and not seen, as its tag says; age and sex are never seen.
DEALS: dict[str, Deals] = {
    "age": Deals("drop", "drop", "drop"),
    "sex": Deals("drop", "drop", "drop"),
    "diagnosis": Deals("tag", "drop", "drop"),
    "malignancy": Deals("tag", "tag", "drop"),
    "site": Deals("tag", "drop", "drop"),
}
# A clinical photograph may well show where on the body it was taken; a dermoscopic image or a section does not.
DEALS_CLINICAL: dict[str, Deals] = {**DEALS, "site": Deals("keep", "tag", "tag")}
_VALUES = {fact.name for fact in fields(Facts)}


class Stated(NamedTuple):
    """A fact of the patient that a text states, the words that do, and whether the context had it."""

    fact: Name
    words: str
    disclosed: bool


@dataclass(frozen=True, slots=True)
class Disclosed:
    """All that the context discloses of an image to the model, as texts are compared with it."""

    ages: tuple[float, ...]
    sexes: frozenset[Sex]
    sites: frozenset[str]
    diagnosis: Known | None
    malignancy: Known | None


def disclosed(facts: Facts, context: Mapping[str, str]) -> Disclosed:
    """What the facts and the free texts of the context, such as a caption, disclose."""
    texts = tuple(value for name, value in context.items() if name not in _VALUES)
    return _disclosed(facts.age, facts.sex, facts.site, facts.diagnosis, facts.malignancy, texts)


@lru_cache(maxsize=1024)
def _disclosed(
    age: float | None,
    sex: str | None,
    site: str | None,
    diagnosis: str | None,
    malignancy: str | None,
    texts: tuple[str, ...],
) -> Disclosed:
    ages = [() if age is None else (age,), *(tuple(mention.low for mention in person.ages(text)) for text in texts)]
    sexes = {sex, *(named_sex for text in texts for named_sex, _ in person.sexes(text))} & {"female", "male"}
    named = [diagnosis] if diagnosis else [name for text in texts for name in diagnoses.named(text)]
    return Disclosed(
        tuple(low for lows in ages for low in lows),
        frozenset(value for value in ("female", "male") if value in sexes),
        frozenset[str]().union(sites.named(site or ""), *map(sites.named, texts)),
        Known.diagnosis(*named) if named else None,
        Known.grade(malignancy or ""),
    )


def stated(text: str, known: Disclosed, question: bool = False) -> list[Stated]:
    """What the text states of the patient, each fact once, those that the context had first.

    An age or a sex that the context had not is stated all the same; a site or diagnosis is not, since it may be seen.

    >>> her = disclosed(Facts(age=54, sex="female", site="forearm", diagnosis="melanoma"), {})
    >>> [(fact, had) for fact, _, had in stated("A melanoma on the arm of a 54-year-old man.", her)]
    [('age', True), ('sex', False), ('site', True), ('diagnosis', True)]
    """
    statements: list[Stated] = []
    # No image shows an age or a sex: whatever the text states of them counts, once.
    ages = [
        Stated("age", mention.words, any(mention.low <= age < mention.high for age in known.ages))
        for mention in person.ages(text)
    ]
    sexes = [Stated("sex", words, sex in known.sexes) for sex, words in person.sexes(text)]
    for of_fact in (ages, sexes):
        statements += sorted(of_fact, key=lambda statement: not statement.disclosed)[:1]

    # Of the rest only what the context disclosed.
    if words := sites.stated(text, known.sites):
        statements.append(Stated("site", words, True))
    look = diagnoses.presupposed if question else diagnoses.stated
    if known.diagnosis and (words := look(text, known.diagnosis)):
        statements.append(Stated("diagnosis", words, True))
    if known.malignancy and (words := look(text, known.malignancy)):
        statements.append(Stated("malignancy", words, True))
    return statements


def deal(fact: Name, kind: str, modality: str | None, question: bool = False) -> Deal:
    """What is done where a question, or the answer to one of this kind, states a fact.

    >>> deal("site", "anatomy", "clinical"), deal("site", "anatomy", "dermoscopy"), deal("site", "features", None)
    ('keep', 'tag', 'drop')
    """
    deals = (DEALS_CLINICAL if modality == "clinical" else DEALS)[fact]
    if question:
        return deals.question
    return deals.asked if fact in ASKS.get(kind, fact).split() else deals.unasked
