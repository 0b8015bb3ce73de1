"""PAD-UFES-20: clinical smartphone photos with what the patient reported → questions in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep import (
    Card,
    Photos,
    Shard,
    count_csv,
    find,
    known,
    lookup,
    read_csv,
    split_of,
    years,
)
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import PAD_CODES, malignancy
from skinvl.data.questions import DatasetRecord, Kind

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
    archive="pad_ufes_20",
    by_name=True,
    published="2,298",
    use="any",
)

UNKNOWN = ("", "UNK")

YES_NO = {"True": "yes", "False": "no"}
SITES = (
    *("ABDOMEN", "ARM", "BACK", "CHEST", "EAR", "FACE", "FOOT"),
    *("FOREARM", "HAND", "LIP", "NECK", "NOSE", "SCALP", "THIGH"),
)


def _symptom(column: str, open_: tuple[str, ...], closed: str, yes: tuple[str, ...], no: tuple[str, ...]) -> Kind:
    return Kind("symptom", column, YES_NO, open_, (f"{closed} Answer yes or no.",), {"yes": yes, "no": no})


KINDS: dict[str, Kind] = {
    "diagnosis": questions.diagnosis("diagnostic", PAD_CODES),
    "malignancy": questions.malignancy("diagnostic", {code: malignancy(name) for code, name in PAD_CODES.items()}),
    "site": questions.site("region", {name: name.lower() for name in SITES}),
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
    "skin_type": questions.skin_type(
        "fitspatrick", {"1.0": "I", "2.0": "II", "3.0": "III", "4.0": "IV", "5.0": "V", "6.0": "VI"}
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


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
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
    return questions.converse("pad_ufes_20", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    for where, row in read_csv(find(raw, "metadata.csv", CARD), COLUMNS, shard):
        answers = {name: lookup(where, row, kind.column, kind.values, UNKNOWN) for name, kind in KINDS.items()}
        facts = Facts(
            modality="clinical",
            diagnosis=known(answers["diagnosis"]),
            malignancy=known(answers["malignancy"]),
            skin_type=known(answers["skin_type"]),
            age=years(where, row, "age", UNKNOWN),
            sex=known(lookup(where, row, "gender", {"FEMALE": "female", "MALE": "male"}, UNKNOWN)),
            site=known(answers["site"]),
        )
        # Not lesion_id: 250 of its 1,641 numbers are those of several patients, whose lesions are others.
        identities = row["patient_id"], row["img_id"]
        images, tags = photos.shown(row["img_id"])
        name = Path(row["img_id"]).stem
        yield DatasetRecord(
            *(where, name, images, identities, split_of(identities[0]), CARD.licence, facts, answers, tags)
        )
