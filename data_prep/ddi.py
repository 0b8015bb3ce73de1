"""DDI, Diverse Dermatology Images: biopsy-proven clinical photos over all skin tones → questions in our own words.

Expected: ddi_metadata.csv with the columns DDI_file, skin_tone (12, 34 or 56: pairs of Fitzpatrick types), malignant
(True or False) and disease, and the photos, named by DDI_file, at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep import Card, Photos, Shard, count_csv, find, known, lookup, read_csv, split_of
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import diagnosis, is_known, malignancy
from skinvl.data.questions import PICTURES, DatasetRecord, Missing

CARD = Card(
    title="DDI (Diverse Dermatology Images)",
    address="https://ddi-dataset.github.io",
    licence="Stanford University research use agreement",
    terms="Research only, by the person who signed the agreement: no commercial use, never redistribute or share.",
    citation="Daneshjou et al., Disparities in dermatology AI performance on a diverse, curated clinical image set, "
    "Science Advances 8, 2022",
    obtain="sign the agreement at the address and download the set; RAW holds ddi_metadata.csv, and the photos at any "
    "depth below it.",
    splits=("train", "test"),
    parts=("vqa",),
    archive="ddi",
    by_name=True,
    published="656",
    use="research",
)

FILE = "ddi_metadata.csv"
COLUMNS = ("DDI_file", "skin_tone", "malignant", "disease")
KINDS = {
    "diagnosis": questions.diagnosis("disease"),
    "malignancy": questions.malignancy("malignant", {"True": "malignant", "False": "non-malignant"}),
    "modality": questions.modality(),
    "skin_type": questions.skin_type("skin_tone", {"12": "I-II", "34": "III-IV", "56": "V-VI"}),
}


def rows(raw: Path, part: str) -> int:
    """Photos in the metadata times the kinds of question."""
    return count_csv(find(raw, FILE, CARD)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per photo and kind of question; which photos share a patient is not known.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / FILE).write_text(",".join(COLUMNS) + "\\n000001.png,56,True,melanoma-in-situ\\n")
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].images, made[0].group, made[0].facts.diagnosis, made[0].facts.skin_type
    ('000001-diagnosis', ('000001.png',), '000001.png', 'melanoma', 'V-VI')
    """
    return questions.converse("ddi", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    for where, row in read_csv(find(raw, FILE, CARD), COLUMNS, shard):
        disease = diagnosis(row["disease"].replace("-", " "))
        answers = {
            "diagnosis": disease or Missing("disease is ''"),
            "modality": PICTURES["clinical"],
            **{
                name: lookup(where, row, KINDS[name].column, KINDS[name].values) for name in ("malignancy", "skin_type")
            },
        }
        danger = known(answers["malignancy"])
        if danger == "non-malignant":  # which benign and premalignant lesions share
            early = is_known(disease) and malignancy(disease) == "premalignant"
            danger = "premalignant" if early else "benign"
        facts = Facts(
            modality="clinical",
            diagnosis=disease or None,
            malignancy=danger,
            skin_type=known(answers["skin_type"]),
        )
        name = row["DDI_file"]
        images, tags = photos.shown(name)
        yield DatasetRecord(where, Path(name).stem, images, (name,), split_of(name), CARD.licence, facts, answers, tags)
