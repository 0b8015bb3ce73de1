"""Patch16: tiles of histopathology slides of skin in 16 classes → questions in our own words.

Expected: tiles-v2.csv with the columns file (data/tiles/<class>/<tile>.jpg), class, set (Train, Validation or Test) and
malignicy (spelt so: tumor or nontumor), and the tiles at any depth. A tile is called <class>_…_<slide>_<number>: what
stands before the number is its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_prep import Card, Photos, PrepError, Shard, count_csv, find, known, lookup, read_csv
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import CLASSES, diagnosis, is_known, malignancy
from skinvl.data.questions import PICTURES, DatasetRecord, Kind

CARD = Card(
    title="Patch16 (tiles of skin tumors and normal skin)",
    address="https://doi.org/10.11588/data/7QCR8S",
    licence="as stated in the record at the address",
    terms="Read the terms of the record at the address before use; its tiles come from patients.",
    citation="Kriegsmann et al., 2022, https://doi.org/10.11588/data/7QCR8S",
    obtain="download and unpack data.zip from the address; RAW holds tiles-v2.csv, and the tiles at any "
    "depth below it.",
    splits=("train", "validation", "test"),
    parts=("vqa",),
    archive="patch16",
    by_name=True,
    released="sound",
)

FILE = "tiles-v2.csv"
COLUMNS = ("file", "class", "set", "malignicy")
SETS = {"Train": "train", "Validation": "validation", "Test": "test"}
TISSUES = {
    "nontumor_skin_chondraltissue_chondraltissue": "chondral tissue",
    "nontumor_skin_dermis_dermis": "dermis",
    "nontumor_skin_elastosis_elastosis": "elastosis",
    "nontumor_skin_epidermis_epidermis": "epidermis",
    "nontumor_skin_hairfollicle_hairfollicle": "hair follicle",
    "nontumor_skin_muscle_skeletal": "skeletal muscle",
    "nontumor_skin_necrosis_necrosis": "necrosis",
    "nontumor_skin_nerves_nerves": "nerves",
    "nontumor_skin_sebaceousglands_sebaceousglands": "sebaceous glands",
    "nontumor_skin_subcutis_subcutis": "subcutis",
    "nontumor_skin_sweatglands_sweatglands": "sweat glands",
    "nontumor_skin_vessel_vessel": "blood vessel",
    "tumor_skin_epithelial_bcc": "basal cell carcinoma",
    "tumor_skin_epithelial_sqcc": "squamous cell carcinoma",
    "tumor_skin_melanoma_melanoma": "melanoma",
    "tumor_skin_naevus_naevus": "nevus",
}
KINDS = {
    "tissue": Kind(
        "tissue",
        "class",
        TISSUES,
        (
            "Which tissue does this tile show?",
            "What do you recognize in this histopathology tile?",
            "How would you label this piece of a skin slide?",
        ),
        ("Which class fits the tile: {options}?", "Choose what the tile shows: {options}."),
        ("The tile shows {value}.", "This is {value}."),
    ),
    "tumor": Kind(
        "tumor",
        "malignicy",
        {name: name for name in CLASSES["patch16"]},
        ("Does a neoplasm appear in this tile?", "Would you call what this tile shows normal?"),
        ("Is the tile {options}?", "Classify the tile as {options}."),
        {
            "tumor": ("The tile shows a tumor.", "It is tumor tissue."),
            "nontumor": ("The tile shows no tumor.", "There is no tumor in it."),
        },
    ),
    "modality": questions.modality(),
}


def rows(raw: Path, part: str) -> int:
    """Tiles in the CSV file times the kinds of question."""
    return count_csv(find(raw, FILE, CARD)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per tile and kind of question; the split is the given one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = ",".join(COLUMNS) + "\\ndata/tiles/tumor_skin_epithelial_bcc/tumor_ws_44_1.jpg,"
    ...     _ = (Path(folder) / FILE).write_text(table + "tumor_skin_epithelial_bcc,Test,tumor\\n")
    ...     row = next(convert(Path(folder), "vqa"))
    >>> row.id, row.group, row.split, row.facts.diagnosis, row.facts.malignancy
    ('tumor_ws_44_1-tissue', 'tumor_ws_44', 'test', 'basal cell carcinoma', 'malignant')
    """
    return questions.converse("patch16", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    for where, row in read_csv(find(raw, FILE, CARD), COLUMNS, shard):
        answers = {
            "tissue": lookup(where, row, "class", TISSUES),
            "tumor": lookup(where, row, "malignicy", KINDS["tumor"].values),
            "modality": PICTURES["pathology"],
        }
        split = known(lookup(where, row, "set", SETS))
        if split is None:
            raise PrepError(f"{where} set: found nothing; expected {', '.join(SETS)}")
        tissue = known(answers["tissue"]) or ""
        facts = Facts(
            modality="pathology",
            diagnosis=diagnosis(tissue) if is_known(tissue) else None,
            malignancy=malignancy(tissue) if is_known(tissue) else None,
        )
        name = PurePosixPath(row["file"])
        images, tags = photos.shown(row["file"])
        group = name.stem.rpartition("_")[0] or name.stem
        yield DatasetRecord(where, name.stem, images, (group,), split, CARD.licence, facts, answers, tags)
