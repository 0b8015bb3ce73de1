"""DERM12345: dermoscopic images of Turkish patients, in 40 subclasses of skin lesions → questions in our own words.

Part `vqa` expects derm12345_metadata_train.csv and derm12345_metadata_test.csv with the columns of COLUMNS, and the
images, named by image_id, at any depth. Part `archive` expects the same collection as the ISIC archive gives it: its
metadata CSV (see data_prep/isic.py), the images, and, where it is there, its supplement, a CSV with the columns isic_id
and split that has `supplement` in its name. Without that file the split is drawn by patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from data_prep import (
    Card,
    Photos,
    PrepError,
    Shard,
    count_csv,
    find,
    header,
    isic,
    known,
    known_names,
    lookup,
    read_csv,
    without,
)
from skinvl.data import labels, questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import DERM12345_CODES
from skinvl.data.questions import PICTURES, DatasetRecord, Kind, Missing

CARD = Card(
    title="DERM12345",
    address="https://doi.org/10.7910/DVN/DAXZ7P",
    licence="CC-BY-4.0",
    terms="Any use, with attribution.",
    citation="Yilmaz et al., DERM12345: A Large, Multisource Dermatoscopic Skin Lesion Dataset with 40 Subclasses, "
    "Scientific Data 11, 2024, doi 10.1038/s41597-024-04104-3",
    obtain="download and unpack all files of the address; RAW holds derm12345_metadata_train.csv, "
    "derm12345_metadata_test.csv, and the images at any depth below it. For --part archive: the metadata, the "
    "supplement and the images of https://api.isic-archive.com/doi/derm12345.",
    splits=("train", "test"),
    parts=("vqa", "archive"),
    archive="isic",
    by_name=True,
    released="sound",
    published="12,345",
    use="any",
)

FILES = ("derm12345_metadata_train.csv", "derm12345_metadata_test.csv")
COLUMNS = ("image_id", "patient_id", "split", "super_class", "malignancy", "main_class_1", "sub_class", "label")
SPLITS = {name: name for name in CARD.splits}
SUPERCLASSES = {
    "melanocytic benign": "benign melanocytic",
    "melanocytic malignant": "malignant melanocytic",
    "nonmelanocytic benign": "benign non-melanocytic",
    "nonmelanocytic indeterminate": "indeterminate non-melanocytic",
    "nonmelanocytic malignant": "malignant non-melanocytic",
}
MAIN_CLASSES = {
    "banal": "banal nevus",
    "dysplastic": "dysplastic nevus",
    "fibro_histiocytic": "fibrohistiocytic lesion",
    "keratinocytic": "keratinocytic lesion",
    "lentigo": "lentigo",
    "melanoma": "melanoma",
    "vascular": "vascular lesion",
}
# The canonical name of a subclass that has none of its own: what other datasets call the same lesion.
CANONICAL = {
    **dict.fromkeys((code for code, name in DERM12345_CODES.items() if name.endswith("nevus")), "nevus"),
    **dict.fromkeys(("alm", "anm", "lm", "lmm"), "melanoma"),
    **dict.fromkeys(("angk", "ha", "la", "pg", "sa"), "vascular lesion"),
    **dict.fromkeys(("isl", "ls"), "lentigo"),
    "bd": "squamous cell carcinoma in situ",
}
KINDS = {
    "diagnosis": questions.diagnosis("label"),
    "class": Kind(
        "diagnosis",
        "main_class_1",
        MAIN_CLASSES,
        ("Which main class of skin lesions is this?", "To which class of lesions would you assign it?"),
        ("Which class fits the lesion best: {options}?", "Choose the class of the lesion: {options}."),
        ("The lesion belongs to the class {value}.", "It is of the class {value}."),
    ),
    "category": Kind(
        "category",
        "super_class",
        SUPERCLASSES,
        ("From which cells does it come, and how dangerous is it?", "Name the origin and the behavior of the lesion."),
        ("Which group fits the lesion: {options}?", "Classify the lesion as {options}."),
        ("The lesion is {value}.", "Origin and behavior: {value}."),
    ),
    "malignancy": questions.malignancy("malignancy", {name: name for name in ("benign", "indeterminate", "malignant")}),
    "modality": questions.modality(),
}


def rows(raw: Path, part: str) -> int:
    """Images in the metadata times the kinds of question."""
    if part == "archive":
        return isic.rows(raw, part)
    return sum(count_csv(find(raw, name, CARD)) for name in FILES) * len(KINDS)


def absent(raw: Path, part: str) -> list[str]:
    """What is said of the columns that need not be there and are not."""
    if part == "archive":
        return isic.absent(raw, part)
    paths = [find(raw, name, CARD) for name in FILES]
    return [sentence for path in paths for sentence in without(path, header(path), [("lesion_id",)])]


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per image and kind of question; the split is the given one, which is by patient.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, split in zip(FILES, CARD.splits):
    ...         row = f"DERM_{len(split)},PID_7,{split},melanocytic,benign,banal,blue,bdb"
    ...         _ = (Path(folder) / name).write_text(",".join(COLUMNS) + f"\\n{row}\\n")
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].group, made[0].split, made[0].facts.diagnosis, made[0].facts.malignancy
    ('DERM_5-diagnosis', 'PID_7', 'train', 'nevus', 'benign')
    >>> made[0].messages[1]["content"][0]["text"]
    'The diagnosis is blue nevus.'
    """
    if part == "archive":
        return questions.converse("derm12345", isic.KINDS, _archive(raw, shard))
    return questions.converse("derm12345", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    for path in [find(raw, name, CARD) for name in FILES]:
        for where, row in read_csv(path, COLUMNS, shard):
            code = row["label"].strip()
            name = DERM12345_CODES.get(code) or _plain(row["sub_class"])
            diagnosis = CANONICAL.get(code) or labels.diagnosis(name)
            behavior = row["malignancy"].strip().casefold()
            group = f"{row['super_class'].strip().casefold()} {behavior}".strip()
            main = row["main_class_1"].strip()

            # What is answered to each kind of question: our names where there is one, else theirs.
            values = {
                "diagnosis": name,
                "class": MAIN_CLASSES.get(main) or _plain(main),
                "category": SUPERCLASSES.get(group, ""),
                "malignancy": behavior,
                "modality": PICTURES["dermoscopy"],
            }
            answers = {
                kind: values[kind] or Missing(f"{KINDS[kind].column} is {row[KINDS[kind].column]!r}") for kind in KINDS
            }

            # A lesion that they call indeterminate is graded by its diagnosis.
            danger = labels.malignancy(diagnosis) if labels.is_known(diagnosis) else None
            facts = Facts(
                modality="dermoscopy",
                diagnosis=diagnosis or None,
                malignancy=behavior if behavior in ("benign", "malignant") else danger,
            )

            identity = row["image_id"]
            identities = row["patient_id"], *known_names(row.get("lesion_id", "")), identity
            split = known(lookup(where, row, "split", SPLITS, ())) or ""
            images, tags = photos.shown(f"{identity}.jpg")
            yield DatasetRecord(where, identity, images, identities, split, CARD.licence, facts, answers, tags)


def _plain(value: str) -> str:
    """A value of the file as one would say it."""
    return " ".join(value.replace("_", " ").casefold().split())


def _archive(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    split = _supplement(raw.parent if raw.is_file() else raw)
    for record in isic.records(raw, "archive", shard):
        if split and record.id and record.id not in split:
            raise PrepError(
                f"{record.where}: image {record.id!r} has no row in the supplement; expected one for each image; "
                "download both again, or take the supplement out of RAW"
            )
        yield replace(record, split=split[record.id]) if record.id in split else record


def _supplement(folder: Path) -> Mapping[str, str]:
    """The split of each image by its id, nothing where there is no supplement."""
    paths = sorted(folder.rglob("*supplement*.csv"))
    if len(paths) > 1:
        listed = ", ".join(str(path.relative_to(folder)) for path in paths)
        raise PrepError(f"{folder}: found {len(paths)} supplements ({listed}); expected one; leave one of them")
    splits: dict[str, str] = {}
    for path in paths:
        for where, row in read_csv(path, ("isic_id", "split")):
            plain = {"split": row["split"].strip().casefold()}
            splits[row["isic_id"]] = known(lookup(where, plain, "split", SPLITS, ())) or ""
    return splits
