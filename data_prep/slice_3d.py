"""ISIC 2024 (SLICE-3D): tiles of single lesions out of total body photographs → questions in our own words.

RAW holds the metadata, `train-metadata.csv` (isic_id, target, patient_id, age_approx, sex, anatom_site_general,
attribution, copyright_license, and for training alone lesion_id and iddx_full to iddx_5), and the tiles: in
`train-image.hdf5`, JPEG bytes under each isic_id, which are read there without being unpacked, or as files of that name
at any depth. The columns that begin with tbp_lv_ are measurements of the camera's own program, and no question asks
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep import (
    SEXES,
    Card,
    Photos,
    Shard,
    count_csv,
    find,
    header,
    known,
    known_names,
    lookup,
    read_csv,
    split_of,
    without,
    years,
)
from data_prep.isic import LICENCES, SITES
from skinvl.data import labels, questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.questions import DatasetRecord, Missing

CARD = Card(
    title="ISIC 2024 challenge, SLICE-3D",
    address="https://challenge2024.isic-archive.com",
    licence="CC-BY-NC-4.0",
    terms="Non-commercial as a whole; the column copyright_license says what a tile's own licence is.",
    citation="Kurtansky et al., The SLICE-3D dataset, Scientific Data 11, 884 (2024), doi:10.1038/s41597-024-03743-w",
    obtain="download train-metadata.csv and train-image.hdf5 from the address; RAW holds both. The HDF5 file needs the "
    "extra: pip install 'skinvl[hdf5]'.",
    splits=("train", "test"),
    parts=("tiles",),
    archive="isic",
    published="401,059",
    use="non-commercial",
)

METADATA, ARCHIVE = "train-metadata.csv", "train-image.hdf5"
COLUMNS = ("isic_id", "target", "patient_id", "age_approx", "sex", "anatom_site_general")
LEVELS = ("iddx_5", "iddx_4", "iddx_3")  # the finest first; iddx_1 is a grade and iddx_2 a group
OPTIONAL = (("attribution",), ("copyright_license",), ("lesion_id",), LEVELS)
UNKNOWN = ("", "NA")
KINDS = {
    "malignancy": questions.malignancy("target", {"0": "benign", "1": "malignant"}),
    "site": questions.site("anatom_site_general", SITES),
}


def rows(raw: Path, part: str) -> int:
    """Tiles in the metadata times the kinds of question."""
    return count_csv(find(raw, METADATA, CARD)) * len(KINDS)


def absent(raw: Path, part: str) -> list[str]:
    """What is said of the columns that need not be there and are not, and of the archive."""
    path = find(raw, METADATA, CARD)
    files = [] if any(raw.rglob(ARCHIVE)) else [f"no file {ARCHIVE}, so that each tile is looked for as a JPEG file"]
    return without(path, header(path), OPTIONAL) + files


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per tile and kind of question.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = ",".join((*COLUMNS, "copyright_license", "iddx_1", "iddx_3"))
    ...     table += "\\nISIC_0015670,1,IP_1235828,60.0,male,lower extremity,CC-BY,Malignant,Basal cell carcinoma\\n"
    ...     _ = (Path(folder) / METADATA).write_text(table)
    ...     first, second = convert(Path(folder), "tiles")
    >>> first.id, first.group, first.licence, first.facts.malignancy, first.facts.diagnosis
    ('ISIC_0015670-malignancy', 'IP_1235828', 'CC-BY-4.0', 'malignant', 'basal cell carcinoma')
    >>> second.facts.site, second.images
    ('lower extremity', ('ISIC_0015670.jpg',))
    """
    return questions.converse("slice_3d", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    # The tiles lie in the archive where there is one, else as files of their own.
    paths = sorted(raw.rglob(ARCHIVE))
    archive = find(raw, ARCHIVE, CARD).relative_to(raw).as_posix() if paths else None
    photos = None if archive else Photos(raw, shard)
    for where, row in read_csv(find(raw, METADATA, CARD), COLUMNS, shard):
        name = row["isic_id"].strip()
        images, tags = photos.shown(f"{name}.jpg") if photos else ((f"{archive}#{name}",), ())
        answers = {
            "malignancy": lookup(where, row, "target", {"0": "benign", "1": "malignant"}),
            "site": _site(row),
        }
        facts = Facts(
            modality="clinical",
            diagnosis=_diagnosis(row),
            malignancy=known(answers["malignancy"]),
            age=years(where, row, "age_approx", UNKNOWN),
            sex=SEXES.get(row["sex"].strip().casefold()),
            site=known(answers["site"]),
            institution=row.get("attribution", "").strip() or None,
        )
        stated = row.get("copyright_license", "").strip()
        licence = LICENCES.get(stated, stated or CARD.licence)
        identities = known_names(row["patient_id"], row.get("lesion_id", ""), name) or ("",)
        yield DatasetRecord(*(where, name, images, identities, split_of(identities[0]), licence, facts, answers, tags))


def _site(row: dict[str, str]) -> str | Missing:
    """The body site in our words where they differ; the archive's lists grow, so others stay as they are."""
    site = row["anatom_site_general"].strip().casefold()
    if site in ("", "na", "unknown"):
        return Missing(f"anatom_site_general is {row['anatom_site_general']!r}")
    return SITES.get(site, site)


def _diagnosis(row: dict[str, str]) -> str | None:
    """The finest diagnosis that has a canonical name; most tiles were never biopsied and have none."""
    named = (row.get(level, "").strip() for level in LEVELS)
    return next((labels.diagnosis(value) for value in named if value and labels.is_known(value)), None)
