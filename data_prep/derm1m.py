"""Derm1M: captions, diagnoses, the classes above them and visible features of images from many open sources.

Derm1M_*.csv files with the columns of COLUMNS; those with `validation` in their name are the split val. A missing value
is a whole sentence (UNKNOWN).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from data_prep import Card, PrepError, count_csv, digest, person, read_csv, refuse_pointer, seeded
from skinvl import questions
from skinvl.example import Dropped, Example, Facts, Role, text
from skinvl.labels import diagnosis, is_known, malignancy

CARD = Card(
    title="Derm1M",
    address="https://huggingface.co/datasets/redlessone/Derm1M",
    licence="CC-BY-NC-4.0",
    terms="Research and other non-commercial use, with attribution; the hub asks for consent to this.",
    citation="Yan et al., Derm1M: A Million-Scale Vision-Language Dataset Aligned with Clinical Ontology Knowledge for "
    "Dermatology, 2025, arXiv 2503.14911",
    obtain="accept the terms at the address, download, unpack each zip file; RAW holds Derm1M_*.csv, at any depth, and "
    "the images under the paths of its column filename, with or without their first folder.",
    splits=("train", "validation"),
    parts=("caption", "diagnosis", "hierarchy", "concept"),
)

COLUMNS = (
    *("filename", "caption", "disease_label", "hierarchical_disease_label", "skin_concept"),
    *("body_location", "age", "gender"),
)
# The sentences that stand for a missing value, each in its own column; compared as a whole, in any case.
UNKNOWN = {
    "disease_label": "no definitive diagnosis",
    "hierarchical_disease_label": "no definitive diagnosis",
    "skin_concept": "no visual concepts",
    "body_location": "no body location information",
    "age": "no age information",
    "gender": "no gender information",
}
SPECIAL = ("<s>", "</s>")  # what the authors' language model left in captions

DESCRIBE = (
    "Describe this image.",
    "What does this image show?",
    "Write a caption for this image.",
    "Please explain what can be seen here.",
)
CONCEPT = (
    "Which features of the skin can be seen?",
    "Name the visible features in this image.",
    "What would you note about the look of the skin?",
)
CONCEPT_ANSWERS = ("{value}.", "Visible features: {value}.", "I note: {value}.")
GENERAL = (
    "To which broad class of skin conditions does this belong?",
    "Let us go from the general to the particular. Which broad class of skin conditions is this?",
    "What is the general category of this condition?",
)
FINER = ("And within that class?", "Can you be more specific?", "Which group is it within the one before?")
LAST = ("Which condition is it, then?", "So what is the diagnosis?", "And which disease of that group is it?")
LEVEL_ANSWERS = ("{value}.", "It is {value}.", "This belongs to: {value}.")
LAST_ANSWERS = ("{value}.", "It is {value}.", "The diagnosis is {value}.")
# What a part asks for, and the kind of question that this is.
PARTS = {
    "caption": ("caption", "description"),
    "diagnosis": ("disease_label", "diagnosis"),
    "hierarchy": ("hierarchical_disease_label", "hierarchy"),
    "concept": ("skin_concept", "concept"),
}


def rows(raw: Path, part: str) -> int:
    """The records of all files."""
    return sum(count_csv(path) for path in _files(raw))


def convert(raw: Path, part: str) -> Iterator[Example | Dropped]:
    """One conversation per record, of what the part names.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     row = 'edu/a.jpg,A red patch.,Tinea corporis,"infectious, fungal, Tinea corporis",No visual concepts'
    ...     table = ",".join(COLUMNS) + f"\\n{row},arm,No age information,female\\n"
    ...     _ = (Path(folder) / "Derm1M_v2_pretrain.csv").write_text(table)
    ...     one, two = (next(convert(Path(folder), part)) for part in ("hierarchy", "concept"))
    >>> one.id, one.group, one.facts.diagnosis, one.facts.site, one.facts.sex, one.facts.age
    ('hierarchy-bd84510b987c8695', 'edu/a.jpg', 'tinea corporis', 'arm', 'female', None)
    >>> [turn["content"][-1]["text"] for turn in one.messages][1::2]
    ['infectious.', 'fungal.', 'Tinea corporis.']
    >>> two
    Dropped(row='Derm1M_v2_pretrain.csv:2', rule='unknown-value', detail="skin_concept is 'No visual concepts'")
    """
    column, kind = PARTS[part]
    first: dict[str, str] = {}
    for path in _files(raw):
        split = "validation" if "validation" in path.stem.casefold() else "train"
        for where, row in read_csv(path, COLUMNS):
            file = row["filename"].strip()
            name = f"{part}-{digest(file, row[column].strip())}"
            outcome = _turns(part, row, seeded("derm1m", name))
            if not file:
                outcome = "empty", "no filename"
            elif name in first:
                outcome = "duplicate", f"the image and {column} of {first[name]}"
            if isinstance(outcome, tuple):
                yield Dropped(where, *outcome)
                continue
            first[name] = where
            yield Example(
                id=name,
                source="derm1m",
                images=(_placed(raw, file),),
                messages=tuple(text(role, words, images=not number) for number, (role, words) in enumerate(outcome)),
                group=file,
                split=split,
                licence=CARD.licence,
                facts=_facts(row, kind),
            )


def _files(raw: Path) -> list[Path]:
    """The tables, in the order of their paths; each has its content."""
    found = sorted(raw.rglob("Derm1M_*.csv"))
    if not found:
        raise PrepError(f"{raw}: no file Derm1M_*.csv in it or below it. How to get {CARD.title}: {CARD.obtain}")
    for path in found:
        refuse_pointer(path)
    return found


def _known(row: Mapping[str, str], column: str) -> str | None:
    """The field, None where it is empty or the sentence for a missing value."""
    value = row[column].strip()
    return None if value.rstrip(".").casefold() in ("", UNKNOWN.get(column)) else value


def _turns(part: str, row: Mapping[str, str], draw: Random) -> list[tuple[Role, str]] | tuple[str, str]:
    """What is said by turns, or the rule and the detail of why nothing can be."""
    column = PARTS[part][0]
    value = _known(row, column)
    if value is None:
        return "unknown-value" if row[column].strip() else "empty", f"{column} is {row[column]!r}"
    if token := next((token for token in SPECIAL if token in value), None):
        return "special-token", f"{column} holds {token}"
    if part == "hierarchy":
        return _levels(value, _known(row, "disease_label"), draw)
    if part == "diagnosis":
        question, answer = questions.ask(questions.diagnosis(), value, draw)
    elif part == "concept":
        features = [" ".join(feature.replace("_", " ").split()) for feature in value.split(",") if feature.strip()]
        listed = " and ".join(filter(None, (", ".join(features[:-1]), features[-1]))) if features else value
        question, answer = draw.choice(CONCEPT), draw.choice(CONCEPT_ANSWERS).format(value=listed)
    else:
        question, answer = draw.choice(DESCRIBE), value
    return [("user", question), ("assistant", answer)]


def _levels(value: str, disease: str | None, draw: Random) -> list[tuple[Role, str]] | tuple[str, str]:
    """From the broadest class to the disease, which may hold a comma itself."""
    if disease is None or value[-len(disease) :].casefold() != disease.casefold():
        return "unclear-hierarchy", f"{value!r:.200} does not end in disease_label, {disease!r:.100}"
    levels = [level.strip() for level in value[: -len(disease)].split(",") if level.strip()]
    if not levels:
        return "no-hierarchy", f"{value!r:.200} has one level only"
    turns: list[tuple[Role, str]] = []
    for number, level in enumerate([*levels, disease]):
        asked = LAST if number == len(levels) else FINER if number else GENERAL
        answers = LAST_ANSWERS if number == len(levels) else LEVEL_ANSWERS
        turns.append(("user", draw.choice(asked)))
        turns.append(("assistant", draw.choice(answers).format(value=level)))
    return turns


def _facts(row: Mapping[str, str], kind: str) -> Facts:
    age, sex = person(row["age"], row["gender"])
    label, place = _known(row, "disease_label"), _known(row, "body_location")
    disease = diagnosis(label) if label else None
    return Facts(
        diagnosis=disease,
        malignancy=malignancy(disease) if disease and is_known(disease) else None,
        age=age,
        sex=sex,
        site=place.casefold() if place else None,
        kind=kind,
    )


def _placed(raw: Path, file: str) -> str:
    """The path under which the image lies in RAW: some unpack a zip file beside the folder that bears its name."""
    bare = file.partition("/")[2]
    return bare if bare and not (raw / file).is_file() and (raw / bare).is_file() else file
