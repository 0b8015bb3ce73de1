"""Derm1M: captions, diagnoses, the classes above them and visible features of images from many open sources.

Derm1M_*.csv files with the columns of COLUMNS; those with `validation` in their name are the split validation. A
missing value is a whole sentence (UNKNOWN). Two files beside them are used where they are there. ontology.json, an
object of class names, each with the list of the classes right below it, gives the levels of a disease where the column
hierarchical_disease_label does not. concept.csv, whose first column is the image's path, with the columns
disease_label and skin_concept, gives the visible features where the column skin_concept does not. Only what is there is
asked for: both name what a text mentions, so a feature that they do not name need not be absent.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from data_prep import Card, PrepError, Shard, count_csv, digest, person, read_csv, refuse_pointer, seeded
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts, Role, text
from skinvl.data.labels import diagnosis, is_known, malignancy, ways
from skinvl.data.questions import Missing

CARD = Card(
    title="Derm1M",
    address="https://huggingface.co/datasets/redlessone/Derm1M",
    licence="CC-BY-NC-4.0",
    terms="Research and other non-commercial use, with attribution; the hub asks for consent to this.",
    citation="Yan et al., Derm1M: A Million-Scale Vision-Language Dataset Aligned with Clinical Ontology Knowledge for "
    "Dermatology, 2025, arXiv 2503.14911",
    obtain="accept the terms at the address, download, unpack each zip file; RAW holds Derm1M_*.csv, at any depth, and "
    "the images under the paths of its column filename, with or without their first folder; leave ontology.json and "
    "concept.csv beside the CSV files.",
    splits=("train", "validation"),
    parts=("caption", "diagnosis", "hierarchy", "concept"),
    archive="derm1m",
    released="sound",
    published="403,563",
    use="non-commercial",
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
COLUMNS = ("filename", "caption", *UNKNOWN)
SPECIAL = ("<s>", "</s>")  # what the authors' language model left in captions
FRAME = re.compile(r"(.+)_frame_\d+(?:_\d+)?\.\w+", re.DOTALL)  # an image cut from a video: youtube/<video>_frame_…
ROOT = "root"  # above the broadest classes of the ontology
DIAGNOSIS = questions.diagnosis()
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
GENERAL = (
    "To which broad class of skin conditions does this belong?",
    "Let us go from the general to the particular. Which broad class of skin conditions is this?",
    "What is the general category of this condition?",
)
FINER = ("And within that class?", "Can you be more specific?", "Which group is it within the one before?")
LAST = ("Which condition is it, then?", "So what is the diagnosis?", "And which disease of that group is it?")
PARTS = {  # what a part asks for, and the kind of question that this is
    "caption": ("caption", "description"),
    "diagnosis": ("disease_label", "diagnosis"),
    "hierarchy": ("hierarchical_disease_label", "hierarchy"),
    "concept": ("skin_concept", "concept"),
}

# The file beside the tables that the part may use, and the column that it adds to.
BESIDE = {
    "hierarchy": ("ontology.json", "hierarchical_disease_label"),
    "concept": ("concept.csv", "skin_concept"),
}


def rows(raw: Path, part: str) -> int:
    """The records of all files."""
    return sum(count_csv(path) for path in _files(raw))


def absent(raw: Path, part: str) -> list[str]:
    """What is said of the file that need not be there and is not."""
    name, column = BESIDE.get(part, ("", ""))
    folders = dict.fromkeys(path.parent for path in _files(raw))
    lacking = [str(folder) for folder in folders if name and not (folder / name).is_file()]
    return [f"no file {name} in {', '.join(lacking)}, so that the column {column} alone says it"] if lacking else []


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One conversation per record, of what the part names; the frames of a video are one group.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     row = 'edu/a.jpg,A red patch.,Tinea corporis,"infectious, fungal, Tinea corporis",No visual concepts'
    ...     table = ",".join(COLUMNS) + f"\\n{row},arm,No age information,female\\n"
    ...     _ = (Path(folder) / "Derm1M_v2_pretrain.csv").write_text(table)
    ...     row, dropped = (next(convert(Path(folder), part)) for part in ("hierarchy", "concept"))
    >>> row.id, row.group, row.facts.diagnosis, row.facts.site, row.facts.sex, row.facts.age
    ('hierarchy-b141f29a226069d3', 'edu/a.jpg', 'tinea corporis', 'arm', 'female', None)
    >>> [turn["content"][-1]["text"] for turn in row.messages][1::2]
    ['It is infectious.', 'fungal.', 'The diagnosis is Tinea corporis.']
    >>> dropped
    Dropped(row='Derm1M_v2_pretrain.csv:2', rule='sentinel', detail="skin_concept is 'No visual concepts'")
    """
    tables = _files(raw)
    beside = {folder: _beside(folder, part) for folder in dict.fromkeys(path.parent for path in tables)}
    for path in tables:
        split = "validation" if "validation" in path.stem.casefold() else "train"
        for where, row in read_csv(path, COLUMNS, shard):
            file = row["filename"].strip()
            values = _values(part, row, beside[path.parent]) if file else Missing("no filename", "empty")
            if isinstance(values, Missing):
                yield Dropped(where, values.rule, values.detail)
                continue
            name = f"{part}-{digest(file, *values)}"
            turns = _turns(part, values, seeded("derm1m", name))
            frame = FRAME.fullmatch(file)
            yield Example(
                id=name,
                source="derm1m",
                images=(_placed(raw, file),),
                messages=tuple(text(role, words, images=not number) for number, (role, words) in enumerate(turns)),
                group=frame[1] if frame else file,
                split=split,
                licence=CARD.licence,
                facts=_facts(row, PARTS[part][1]),
                identities=(frame[1], file) if frame else (),
            )


def _files(raw: Path) -> list[Path]:
    """The tables, in the order of their paths; each has its content."""
    paths = sorted(raw.rglob("Derm1M_*.csv"))
    if not paths:
        raise PrepError(f"{raw}: no file Derm1M_*.csv in it or below it. How to get {CARD.title}: {CARD.obtain}")
    for path in paths:
        refuse_pointer(path)
    return paths


def _beside(folder: Path, part: str) -> Mapping[str, Sequence[str]]:
    """What the file beside the tables says that the part needs: levels by disease, or features by an image's path."""
    read = {"hierarchy": _ontology, "concept": _concepts}.get(part)
    path = folder / BESIDE.get(part, ("", ""))[0]
    return read(path) if read and path.is_file() else {}


def _ontology(path: Path) -> Mapping[str, Sequence[str]]:
    refuse_pointer(path)
    expected = f'expected {{"{ROOT}": ["class", …], "class": ["class right below it", …], …}}; download it again'
    try:
        below = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PrepError(f"{path}: not JSON ({error}); {expected}") from error
    if not isinstance(below, dict):
        raise PrepError(f"{path}: found {type(below).__name__}; {expected}")
    for name, children in below.items():
        if not isinstance(children, list) or not all(isinstance(child, str) for child in children):
            raise PrepError(f"{path}: found {name!r:.100} with {children!r:.100}; {expected}")
    return ways(below, ROOT)


def _concepts(path: Path) -> Mapping[str, Sequence[str]]:
    concepts: dict[str, tuple[str]] = {}
    same: dict[tuple[str], tuple[str]] = {}  # most images share their features with others: one tuple each saves memory
    for _, row in read_csv(path, ("disease_label", "skin_concept")):
        file, value = next(iter(row.values())).strip(), _known(row, "skin_concept")
        if not isinstance(value, Missing):
            whole = (f"{concepts[file][0]}, {value}",) if file in concepts else (value,)
            concepts[file] = same.setdefault(whole, whole)
    return concepts


def _known(row: Mapping[str, str], column: str) -> str | Missing:
    """The field, or that it is empty or the sentence for a missing value."""
    value = row[column].strip()
    plain = value.rstrip(".").casefold()
    if plain in ("", "nan", UNKNOWN.get(column)):
        return Missing(f"{column} is {row[column]!r:.200}", "sentinel" if plain else "empty")
    return value


def _values(part: str, row: Mapping[str, str], beside: Mapping[str, Sequence[str]]) -> Sequence[str] | Missing:
    """What there is to say, level by level in a hierarchy, or why there is nothing."""
    value = _known(row, PARTS[part][0])
    values = _levels(value, row) if part == "hierarchy" else value if isinstance(value, Missing) else [value]
    if isinstance(values, Missing):
        disease = row["disease_label"].strip()
        if part == "concept":
            values = beside.get(row["filename"].strip(), values)
        elif len(way := beside.get(disease) or beside.get(disease.casefold()) or ()) > 1:
            values = [*way[:-1], disease]
    if not isinstance(values, Missing) and (token := next((mark for mark in SPECIAL if mark in "\n".join(values)), "")):
        return Missing(f"{PARTS[part][0]} holds {token}", "special-token")
    return values


def _levels(value: str | Missing, row: Mapping[str, str]) -> Sequence[str] | Missing:
    """From the broadest class to the disease, which may hold a comma itself."""
    if isinstance(value, Missing):
        return value
    disease = _known(row, "disease_label")
    if isinstance(disease, Missing) or value[-len(disease) :].casefold() != disease.casefold():
        return Missing(
            f"{value!r:.200} does not end in disease_label, {row['disease_label']!r:.100}", "unclear-hierarchy"
        )
    levels = [level.strip() for level in value[: -len(disease)].split(",") if level.strip()]
    return [*levels, disease] if levels else Missing(f"{value!r:.200} has one level only", "no-hierarchy")


def _turns(part: str, values: Sequence[str], draw: Random) -> list[tuple[Role, str]]:
    value = values[-1]
    if part == "diagnosis":
        question, answer = questions.ask(DIAGNOSIS, value, draw)
    elif part == "concept":
        features = (" ".join(word.replace("_", " ").split()) for word in value.split(","))
        listed = list(dict.fromkeys(filter(None, features))) or [value]
        named = questions.together(listed)
        question, answer = draw.choice(CONCEPT), draw.choice(questions.CONCEPT_ANSWERS).format(value=named)
    elif part == "hierarchy":
        turns: list[tuple[Role, str]] = []
        for number, level in enumerate(values[:-1]):
            turns.append(("user", draw.choice(FINER if number else GENERAL)))
            turns.append(("assistant", draw.choice(questions.LEVEL_ANSWERS).format(value=level)))
        question, answer = draw.choice(LAST), draw.choice(questions.LAST_ANSWERS).format(value=value)
        return [*turns, ("user", question), ("assistant", answer)]
    else:
        question, answer = draw.choice(DESCRIBE), value
    return [("user", question), ("assistant", answer)]


def _facts(row: Mapping[str, str], kind: str) -> Facts:
    age, sex = person(row["age"], row["gender"])
    label, site = _known(row, "disease_label"), _known(row, "body_location")
    disease = None if isinstance(label, Missing) else diagnosis(label)
    return Facts(
        diagnosis=disease,
        malignancy=malignancy(disease) if disease and is_known(disease) else None,
        age=age,
        sex=sex,
        site=None if isinstance(site, Missing) else site.casefold(),
        kind=kind,
    )


def _placed(raw: Path, file: str) -> str:
    """The path under which the image lies in RAW: some unpack a zip file beside the folder that bears its name."""
    bare = file.partition("/")[2]
    there = os.path.isfile  # asked for every row of a million, and three times as fast as Path's
    return bare if bare and not there(f"{raw}/{file}") and there(f"{raw}/{bare}") else file
