"""HAM10000: dermoscopic images of pigmented lesions → questions in our own words.

Expected: HAM10000_metadata.csv with the columns lesion_id, image_id, dx, age, sex, localization, and the images,
named by image_id, at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep import Card, Photos, Shard, count_csv, find, known, lookup, read_csv, split_of, years
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import HAM_CODES, canonical, malignancy
from skinvl.data.questions import PICTURES, DatasetRecord

CARD = Card(
    title="HAM10000",
    address="https://doi.org/10.7910/DVN/DBW86T",
    licence="CC-BY-NC-4.0",
    terms="Non-commercial use, with attribution.",
    citation="Tschandl et al., The HAM10000 dataset, a large collection of multi-source dermatoscopic images of common "
    "pigmented skin lesions, Scientific Data 5, 2018",
    obtain="download the images and the metadata from the address and unpack them; RAW holds HAM10000_metadata.csv "
    "(add the ending .csv if the download has none), and the images at any depth below it.",
    splits=("train", "test"),
    parts=("vqa",),
    archive="isic",
    by_name=True,
    published="10,015",
    use="non-commercial",
)

FILE = "HAM10000_metadata.csv"
COLUMNS = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
UNKNOWN = ("", "unknown")
SITES = (
    *("abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand", "lower extremity", "neck"),
    *("scalp", "trunk", "upper extremity"),
)
SITE_NAMES = {"acral": "acral skin", "genital": "genital area"}
KINDS = {
    "diagnosis": questions.diagnosis("dx", HAM_CODES),
    "malignancy": questions.malignancy("dx", {code: malignancy(name) for code, name in HAM_CODES.items()}),
    "modality": questions.modality(),
    "site": questions.site("localization", {name: SITE_NAMES.get(name, name) for name in SITES}),
}


def rows(raw: Path, part: str) -> int:
    """Images in the metadata times the kinds of question."""
    return count_csv(find(raw, FILE, CARD)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per image and kind of question.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = ",".join(COLUMNS) + "\\nHAM_1,ISIC_0024306,bkl,80.0,male,unknown\\n"
    ...     _ = (Path(folder) / FILE).write_text(table)
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].group, made[0].facts.diagnosis, made[0].facts.malignancy, made[0].facts.age
    ('ISIC_0024306-diagnosis', 'HAM_1', 'seborrheic keratosis', 'benign', 80.0)
    >>> made[3]
    Dropped(row='HAM10000_metadata.csv:2 site', rule='unknown-value', detail="localization is 'unknown'")
    """
    return questions.converse("ham10000", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    for where, row in read_csv(find(raw, FILE, CARD), COLUMNS, shard):
        answers = {
            name: lookup(where, row, kind.column, kind.values, UNKNOWN) if kind.column else PICTURES["dermoscopy"]
            for name, kind in KINDS.items()
        }
        diagnosis = known(answers["diagnosis"])
        facts = Facts(
            modality="dermoscopy",
            diagnosis=diagnosis and canonical(diagnosis),
            malignancy=known(answers["malignancy"]),
            age=years(where, row, "age", UNKNOWN),
            sex=known(lookup(where, row, "sex", {"female": "female", "male": "male"}, UNKNOWN)),
            site=known(answers["site"]),
        )
        name = row["image_id"]
        identities = row["lesion_id"], name
        images, tags = photos.shown(f"{name}.jpg")
        yield DatasetRecord(
            *(where, name, images, identities, split_of(identities[0]), CARD.licence, facts, answers, tags)
        )
