"""What is asked about an image whose facts are known: wording of our own, varied and drawn anew for every row."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from skinvl.data.example import Dropped, Example, Facts, Message, text


@dataclass(frozen=True, slots=True)
class Kind:
    """One question about an image: the open forms ask for a sentence, the closed ones for the bare value."""

    fact: str  # Facts.kind
    column: str  # where the answer stands; empty where no single column holds it
    values: Mapping[str, str]  # what the column says → the answer; empty where the answers are no list
    open: tuple[str, ...]
    closed: tuple[str, ...]  # `{options}` becomes the values in a drawn order
    sentences: tuple[str, ...] | Mapping[str, tuple[str, ...]]  # answers to open questions, of `{value}` or by value
    options: tuple[str, ...] = field(init=False)  # the answers, each once

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(sorted(set(self.values.values()))))


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a question has no answer; it becomes a row of the ledger."""

    detail: str
    rule: str = "unknown-value"


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """What a dataset knows about one image, or about several that belong together."""

    where: str  # file and line
    id: str
    images: tuple[str, ...]
    identities: tuple[str, ...]  # patient, lesion, …, at least one; the first names its group
    split: str
    licence: str
    facts: Facts
    # By the name of the kind: what is answered, or the whole conversation where that is no question and answer.
    answers: Mapping[str, str | Missing | tuple[Message, ...]] = field(default_factory=dict)
    tags: tuple[str, ...] = ()  # rules that it breaks


# Answers of Derm1M about the classes of a disease, the disease at their end, and visible features.
LEVEL_ANSWERS = ("{value}.", "It is {value}.", "This belongs to: {value}.")
LAST_ANSWERS = ("{value}.", "It is {value}.", "The diagnosis is {value}.")
CONCEPT_ANSWERS = ("{value}.", "Visible features: {value}.", "I note: {value}.")
PICTURES = {"clinical": "clinical photograph", "dermoscopy": "dermoscopic image", "pathology": "histopathology image"}


def diagnosis(column: str = "", values: Mapping[str, str] | None = None) -> Kind:
    """The kind that asks for a diagnosis, from a list where there is one."""
    return Kind(
        "diagnosis",
        column,
        values or {},
        (
            "What is the most likely diagnosis?",
            "Which skin condition does this image show?",
            "How would you diagnose what you see here?",
        ),
        ("Which diagnosis fits the image best: {options}?", "Choose the diagnosis: {options}."),
        ("The image shows {value}.", "This is most consistent with {value}.", "The diagnosis is {value}."),
    )


def malignancy(column: str = "", values: Mapping[str, str] | None = None) -> Kind:
    """The kind that asks whether a lesion is malignant."""
    return Kind(
        "malignancy",
        column,
        values or {name: name for name in ("benign", "malignant", "premalignant")},
        ("How dangerous is this kind of finding?", "How would you grade its potential to be a cancer?"),
        ("Is the finding {options}?", "Classify the finding as {options}."),
        ("The finding is {value}.", "It is {value}."),
    )


def modality(column: str = "") -> Kind:
    """The kind that asks how the image was made; its answers are those of PICTURES."""
    return Kind(
        "modality",
        column,
        {name: name for name in PICTURES.values()},
        ("What kind of medical image is this?", "How was this image taken?"),
        ("Which kind of image is it: {options}?", "Name the imaging modality: {options}."),
        ("This is a {value}.", "It is a {value}."),
    )


def site(column: str = "", values: Mapping[str, str] | None = None) -> Kind:
    """The kind that asks for the body site."""
    return Kind(
        "site",
        column,
        values or {},
        ("Where on the body is this?", "Which part of the body is affected?"),
        ("Name the body site in as few words as possible.", "Body site, without a sentence?"),
        ("The body site is the {value}.", "It is on the {value}."),
    )


def skin_type(column: str = "", values: Mapping[str, str] | None = None) -> Kind:
    """The kind that asks for the Fitzpatrick skin type."""
    return Kind(
        "skin_type",
        column,
        values or {},
        ("What is the patient's Fitzpatrick skin type?", "How would you classify the skin on the Fitzpatrick scale?"),
        ("Fitzpatrick skin type, in Roman numerals?", "Give the Fitzpatrick type in Roman numerals only."),
        ("The skin is of Fitzpatrick type {value}.", "Fitzpatrick type {value}."),
    )


def choices(options: Sequence[str]) -> str:
    """The options as one reads them out: `a, b or c`."""
    return f"{', '.join(options[:-1])} or {options[-1]}"


def together(names: Sequence[str]) -> str:
    """The names as one reads them out: `a, b and c`; of none, nothing."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def ask(kind: Kind, value: str, draw: random.Random) -> tuple[str, str]:
    """A question and its answer; the question would be the same for every other value of the kind's list.

    >>> ask(malignancy(), "benign", random.Random(1))
    ('Is the finding malignant, benign or premalignant?', 'benign')
    """
    options = kind.options
    if draw.random() < 0.5 and value in options:
        return draw.choice(kind.closed).format(options=choices(draw.sample(options, len(options)))), value
    sentences = kind.sentences if isinstance(kind.sentences, tuple) else kind.sentences[value]
    return draw.choice(kind.open), draw.choice(sentences).format(value=value)


def value(kind: str, answer: str) -> str:
    """What an answer to a kind of question says, without the sentence that `ask` or Derm1M has put around it.

    >>> value("diagnosis", "This is most consistent with nevus."), value("hierarchy", "It is fungal.")
    ('nevus', 'fungal')
    >>> value("colour", "red"), value("colour", "It is red.")
    ('red', 'It is red')
    """
    plain = answer.strip()
    for sentence in _sentences().get(kind, ()):
        if match := sentence.fullmatch(plain):
            return match[1].strip()
    return plain.rstrip(".").rstrip()


@cache
def _sentences() -> dict[str, list[re.Pattern[str]]]:
    """The sentences around a value by kind, the bare value with its full stop last."""
    kinds = (diagnosis(), malignancy(), modality(), site(), skin_type())
    templates: dict[str, Iterable[str]] = {kind.fact: kind.sentences for kind in kinds}
    templates |= {"hierarchy": dict.fromkeys((*LEVEL_ANSWERS, *LAST_ANSWERS)), "concept": CONCEPT_ANSWERS}
    return {
        kind: [
            re.compile(re.escape(template).replace(re.escape("{value}"), "(.+)"), re.DOTALL)
            for template in sorted(sentences, key=len, reverse=True)
        ]
        for kind, sentences in templates.items()
    }


def converse(source: str, kinds: Mapping[str, Kind], records: Iterable[DatasetRecord]) -> Iterator[Example | Dropped]:
    """One Example or Dropped per record and kind, in order; all of a record before the next is taken.

    A record without an id or a name of its group is `empty`. One whose id came before is asked again: the rows then
    share their ids.
    """
    for record in records:
        group = record.identities[0]
        fault = None if record.id and group else Missing("no name of the image or its group", "empty")
        for name, kind in kinds.items():
            answer = fault or record.answers[name]
            if isinstance(answer, Missing):
                yield Dropped(f"{record.where} {name}", answer.rule, answer.detail)
                continue
            identity = f"{record.id}-{name}"
            if isinstance(answer, str):
                question, reply = ask(kind, answer, random.Random(f"{source}\n{identity}"))
                answer = text("user", question, images=len(record.images)), text("assistant", reply)
            yield Example(
                id=identity,
                source=source,
                images=record.images,
                messages=answer,
                group=group,
                split=record.split,
                licence=record.licence,
                facts=_with_kind(record.facts, kind.fact),
                tags=record.tags,
                identities=record.identities if len(record.identities) > 1 else (),
            )


def _with_kind(facts: Facts, kind: str) -> Facts:
    """The facts with the kind of question; `dataclasses.replace` is the dearest call of a row otherwise."""
    return Facts(
        facts.modality,
        facts.diagnosis,
        facts.malignancy,
        facts.skin_type,
        facts.age,
        facts.sex,
        facts.site,
        kind,
        facts.institution,
        facts.confirmed,
        facts.tone,
        facts.views,
        facts.present,
        facts.absent,
    )
