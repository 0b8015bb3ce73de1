"""Fitzpatrick17k: clinical photos of two atlases with skin types → questions in our own words.

Expected: fitzpatrick17k.csv with the columns md5hash, fitzpatrick_scale, label, nine_partition_label,
three_partition_label, qc, and the photos as <md5hash>.jpg at any depth. A scale of -1 is
unknown; a photo that the authors' check calls "3 Wrongly labelled" is asked for its skin type and modality only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep import Card, Photos, Shard, count_csv, find, known, lookup, read_csv, split_of
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import CLASSES, diagnosis
from skinvl.data.questions import PICTURES, DatasetRecord, Kind, Missing

CARD = Card(
    title="Fitzpatrick17k",
    address="https://github.com/mattgroh/fitzpatrick17k",
    licence="CC-BY-NC-SA-3.0",
    terms="Non-commercial use, with attribution, under the same licence.",
    citation="Groh et al., Evaluating Deep Neural Networks Trained on Clinical Images in Dermatology with the "
    "Fitzpatrick 17k Dataset, CVPR Workshops 2021",
    obtain="take fitzpatrick17k.csv from the address and ask there for the photos, or fetch them from its column url; "
    "RAW holds fitzpatrick17k.csv, and the photos as <md5hash>.jpg at any depth below it.",
    splits=("train", "test"),
    parts=("vqa",),
    archive="fitzpatrick17k",
    by_name=True,
    published="16,577",
    use="non-commercial",
)

FILE = "fitzpatrick17k.csv"
COLUMNS = ("md5hash", "fitzpatrick_scale", "label", "nine_partition_label", "three_partition_label", "qc")
UNKNOWN = ("", "-1")
WRONG = "3 Wrongly labelled"
GROUPS = (
    *("inflammatory", "genodermatoses", "benign dermal", "benign epidermal", "benign melanocyte"),
    *("malignant cutaneous lymphoma", "malignant dermal", "malignant epidermal", "malignant melanoma"),
)
KINDS = {
    "diagnosis": questions.diagnosis("label"),
    "category": Kind(
        "category",
        "nine_partition_label",
        {name: name for name in GROUPS},
        ("Which group of skin diseases does this belong to?", "To which broad category would you assign the finding?"),
        ("Which category fits best: {options}?", "Choose the group of diseases: {options}."),
        ("It belongs to the group {value}.", "The category is {value}."),
    ),
    "malignancy": questions.malignancy("three_partition_label", {name: name for name in CLASSES["fitzpatrick17k"]}),
    "modality": questions.modality(),
    "skin_type": questions.skin_type(
        "fitzpatrick_scale", {str(number): name for number, name in enumerate(("I", "II", "III", "IV", "V", "VI"), 1)}
    ),
}


def rows(raw: Path, part: str) -> int:
    """Photos in the CSV file times the kinds of question."""
    return count_csv(find(raw, FILE, CARD)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per photo and kind of question.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = ",".join(COLUMNS) + "\\n0a1b,-1,melanoma,malignant melanoma,malignant,\\n"
    ...     _ = (Path(folder) / FILE).write_text(table)
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].images, made[0].group, made[0].facts.diagnosis, made[0].facts.malignancy
    ('0a1b-diagnosis', ('0a1b.jpg',), '0a1b', 'melanoma', 'malignant')
    >>> made[4]
    Dropped(row='fitzpatrick17k.csv:2 skin_type', rule='unknown-value', detail="fitzpatrick_scale is '-1'")
    """
    return questions.converse("fitzpatrick17k", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    for where, row in read_csv(find(raw, FILE, CARD), COLUMNS, shard):
        label = row["label"].strip()
        answers = {
            "diagnosis": diagnosis(label) if label else Missing("label is ''"),
            "modality": PICTURES["clinical"],
            **{
                name: lookup(where, row, KINDS[name].column, KINDS[name].values, UNKNOWN)
                for name in ("category", "malignancy", "skin_type")
            },
        }
        if row["qc"].strip() == WRONG:
            answers |= dict.fromkeys(
                ("diagnosis", "category", "malignancy"), Missing(f"qc is {WRONG!r}", "wrong-label")
            )
        danger = known(answers["malignancy"])
        facts = Facts(
            modality="clinical",
            diagnosis=known(answers["diagnosis"]),
            malignancy=danger if danger in ("benign", "malignant") else None,
            skin_type=known(answers["skin_type"]),
        )
        name = row["md5hash"]
        images, tags = photos.shown(f"{name}.jpg")
        yield DatasetRecord(where, name, images, (name,), split_of(name), CARD.licence, facts, answers, tags)
