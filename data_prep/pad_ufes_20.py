"""PAD-UFES-20: clinical smartphone photos with what the patient reported → questions in our own words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep import Card, PrepError, choices, count_csv, find, read_csv, seeded
from skinvl.example import Dropped, Example, Facts, text
from skinvl.labels import PAD_CODES, malignancy

CARD = Card(
    title="PAD-UFES-20",
    address="https://data.mendeley.com/datasets/zr7vgbcyr2/1",
    licence="CC-BY-4.0",
    terms="Any use, with attribution.",
    citation="Pacheco et al., PAD-UFES-20: A skin lesion dataset composed of patient data and clinical images "
    "collected from smartphones, Data in Brief 32, 2020, doi 10.17632/zr7vgbcyr2.1",
    obtain="download and unpack it from the address; RAW holds metadata.csv, and the photos at any depth below it.",
    splits=("train", "test"),
    parts=("vqa",),
)

TEST_SHARE = 0.15  # of the patients
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
UNKNOWN = {"", "UNK"}


@dataclass(frozen=True, slots=True)
class Kind:
    """One question about a photo: the open forms ask for a sentence, the closed ones for the bare value."""

    fact: str  # Facts.kind
    column: str
    values: Mapping[str, str]  # what the column says → the answer to a closed question
    open: tuple[str, ...]
    closed: tuple[str, ...]  # `{options}` becomes the values in a seeded order
    sentences: tuple[str, ...] | Mapping[str, tuple[str, ...]]  # answers to open questions, of `{value}` or by value


YES_NO = {"True": "yes", "False": "no"}
SITES = (
    *("ABDOMEN", "ARM", "BACK", "CHEST", "EAR", "FACE", "FOOT"),
    *("FOREARM", "HAND", "LIP", "NECK", "NOSE", "SCALP", "THIGH"),
)


def _symptom(column: str, open_: tuple[str, ...], closed: str, yes: tuple[str, ...], no: tuple[str, ...]) -> Kind:
    return Kind("symptom", column, YES_NO, open_, (f"{closed} Answer yes or no.",), {"yes": yes, "no": no})


KINDS: dict[str, Kind] = {
    "diagnosis": Kind(
        "diagnosis",
        "diagnostic",
        PAD_CODES,
        (
            "What is the most likely diagnosis of this skin lesion?",
            "Which skin condition does the photo show?",
            "How would you diagnose this lesion?",
        ),
        ("Which diagnosis fits the photo best: {options}?", "Choose the diagnosis: {options}."),
        ("The photo shows {value}.", "This lesion is most consistent with {value}.", "The diagnosis is {value}."),
    ),
    "malignancy": Kind(
        "malignancy",
        "diagnostic",
        {code: malignancy(name) for code, name in PAD_CODES.items()},
        ("How dangerous is this kind of lesion?", "How would you grade the lesion's potential to be a cancer?"),
        ("Is the lesion {options}?", "Classify the lesion as {options}."),
        ("The lesion is {value}.", "It is a {value} lesion."),
    ),
    "site": Kind(
        "site",
        "region",
        {name: name.lower() for name in SITES},
        ("Where on the body is the lesion?", "On which part of the body was this photo taken?"),
        ("Name the body site in one word.", "Body site, in one word?"),
        ("The lesion is on the {value}.", "The photo was taken of the {value}."),
    ),
    "itch": _symptom(
        "itch",
        ("Has the patient noticed itching?", "What does the patient say about itching?"),
        "Does it itch?",
        ("The patient reports that the lesion itches.", "Itching is reported."),
        ("The patient reports no itching.", "No, the lesion does not itch."),
    ),
    "grew": _symptom(
        "grew",
        ("Has the lesion become larger of late?", "What does the patient report about growth?"),
        "Did it grow?",
        ("The patient has seen it grow.", "Yes, growth is reported."),
        ("The patient has not seen it grow.", "No growth is reported."),
    ),
    "hurt": _symptom(
        "hurt",
        ("Is the lesion painful?", "What does the patient say about pain?"),
        "Does it hurt?",
        ("The patient reports pain.", "Yes, it is painful."),
        ("The patient reports no pain.", "No, it does not hurt."),
    ),
    "changed": _symptom(
        "changed",
        ("Has the look of the lesion altered recently?", "What does the patient report about changes in its look?"),
        "Has it changed?",
        ("The patient has noticed a change.", "Yes, a change in its look is reported."),
        ("The patient has noticed no change.", "No change in its look is reported."),
    ),
    "bleed": _symptom(
        "bleed",
        ("Has there been any bleeding?", "What does the patient say about bleeding?"),
        "Did it bleed?",
        ("The patient reports bleeding.", "Yes, the lesion has bled."),
        ("The patient reports no bleeding.", "No, the lesion has not bled."),
    ),
    "skin_type": Kind(
        "skin_type",
        "fitspatrick",
        {"1.0": "I", "2.0": "II", "3.0": "III", "4.0": "IV", "5.0": "V", "6.0": "VI"},
        ("What is the patient's Fitzpatrick skin type?", "How would you classify the skin on the Fitzpatrick scale?"),
        ("Fitzpatrick skin type, as a Roman numeral?", "Give the Fitzpatrick type as a Roman numeral only."),
        ("The skin is of Fitzpatrick type {value}.", "Fitzpatrick type {value}."),
    ),
    "elevation": Kind(
        "elevation",
        "elevation",
        YES_NO,
        ("How does the lesion lie in relation to the skin around it?", "Describe the profile of the lesion."),
        ("Is the lesion elevated? Answer yes or no.", "Is it raised above the skin? Answer yes or no."),
        {"yes": ("It stands out above the skin.", "The lesion is elevated."), "no": ("It is flat.", "It lies flat.")},
    ),
}
COLUMNS = ("patient_id", "age", "gender", "img_id", *dict.fromkeys(kind.column for kind in KINDS.values()))


def rows(raw: Path, part: str) -> int:
    """Photos in metadata.csv times the kinds of question."""
    return count_csv(find(raw, "metadata.csv", CARD)) * len(KINDS)


def convert(raw: Path, part: str) -> Iterator[Example | Dropped]:
    """One question and answer per photo and kind of question.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = ",".join(COLUMNS)
    ...     table += "\\nPAT_9,55,FEMALE,PAT_9_1_2.png,NEV,ARM,True,UNK,False,False,False,2.0,True\\n"
    ...     _ = (Path(folder) / "metadata.csv").write_text(table)
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].images, made[0].facts.diagnosis, made[0].facts.malignancy, made[0].facts.skin_type
    ('PAT_9_1_2-diagnosis', ('PAT_9_1_2.png',), 'nevus', 'benign', 'II')
    >>> made[4]
    Dropped(row='metadata.csv:2 grew', rule='unknown-value', detail="grew is 'UNK'")
    """
    photos: dict[str, list[str]] = {}
    for path in sorted(raw.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            photos.setdefault(path.stem, []).append(path.relative_to(raw).as_posix())
    for where, row in read_csv(find(raw, "metadata.csv", CARD), COLUMNS):
        image = _photo(row["img_id"], photos)
        facts = _facts(where, row)
        for name, kind in KINDS.items():
            if row[kind.column] in UNKNOWN:
                yield Dropped(f"{where} {name}", "unknown-value", f"{kind.column} is {row[kind.column]!r}")
            else:
                yield _example(where, name, row, image, facts)


def _photo(name: str, photos: Mapping[str, list[str]]) -> str:
    """The photo's path in RAW: the very name where it lies there, else one that only ends otherwise, else the name."""
    same_stem = photos.get(Path(name).stem, [])
    return next((path for path in same_stem if Path(path).name == name), same_stem[0] if same_stem else name)


def _value(where: str, row: Mapping[str, str], column: str, values: Mapping[str, str]) -> str | None:
    found = row[column]
    if found in UNKNOWN:
        return None
    if found not in values:
        raise PrepError(f"{where} {column}: found {found!r}; expected {choices(sorted(values))}, UNK or nothing")
    return values[found]


def _facts(where: str, row: Mapping[str, str]) -> dict[str, str | float | None]:
    try:
        age = None if row["age"] in UNKNOWN else float(row["age"])
    except ValueError as error:
        raise PrepError(f"{where} age: found {row['age']!r}; expected a number of years, UNK or nothing") from error
    known = {name: KINDS[name] for name in ("diagnosis", "malignancy", "skin_type", "site")}
    return {
        **{name: _value(where, row, kind.column, kind.values) for name, kind in known.items()},
        "modality": "clinical",
        "age": age,
        "sex": _value(where, row, "gender", {"FEMALE": "female", "MALE": "male"}),
    }


def _example(where: str, name: str, row: Mapping[str, str], image: str, facts: Mapping[str, object]) -> Example:
    kind = KINDS[name]
    value = _value(where, row, kind.column, kind.values) or ""
    identity = f"{Path(row['img_id']).stem}-{name}"
    draw = seeded("pad_ufes_20", identity)
    if draw.random() < 0.5:
        options = draw.sample(sorted(set(kind.values.values())), len(set(kind.values.values())))
        question, answer = draw.choice(kind.closed).format(options=choices(options)), value
    else:
        sentences = kind.sentences if isinstance(kind.sentences, tuple) else kind.sentences[value]
        question, answer = draw.choice(kind.open), draw.choice(sentences).format(value=value)
    return Example(
        id=identity,
        source="pad_ufes_20",
        images=(image,),
        messages=(text("user", question, images=1), text("assistant", answer)),
        group=row["patient_id"],
        split=_split(row["patient_id"]),
        licence=CARD.licence,
        facts=Facts(**facts, kind=kind.fact),  # type: ignore[arg-type]
    )


def _split(patient: str) -> str:
    share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64
    return "test" if share < TEST_SHARE else "train"
