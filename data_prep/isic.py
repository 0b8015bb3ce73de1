"""ISIC archive: images of skin lesions with the archive's metadata → questions in our own words.

Part `archive` expects one metadata file: a CSV with the column isic_id, and diagnosis or diagnosis_1 to diagnosis_5
(and those of OPTIONAL, where they are known); or JSON records, a list or one a line, with name or isic_id and the same
fields in meta or metadata, below clinical and acquisition. BCN20000, HIBA, MSKCC and DERM12345 come so. diagnosis_1 is
a grade and diagnosis_2 a group; neither is a diagnosis. Synthetic images show no patient and are left out. Part `2019`
expects ISIC_2019_Training_GroundTruth.csv (image, and a column of 0 and 1 per class) and
ISIC_2019_Training_Metadata.csv (image, age_approx, anatom_site_general, lesion_id, sex). Images are named by their id,
at any depth.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep import (
    Card,
    Photos,
    PrepError,
    Shard,
    count_csv,
    find,
    header,
    known_names,
    read_csv,
    refuse_pointer,
    split_of,
    taken,
    without,
    years,
)
from skinvl.data import labels, questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import ISIC_2019_CODES
from skinvl.data.questions import PICTURES, DatasetRecord, Missing

CARD = Card(
    title="ISIC archive (any collection, and the ISIC 2019 challenge)",
    address="https://www.isic-archive.com",
    licence="by image (CC0-1.0, CC-BY-4.0 or CC-BY-NC-4.0)",
    terms="Every image has its own licence, in the column copyright_license; ISIC 2019 is non-commercial as a whole.",
    citation="The ISIC Archive, https://www.isic-archive.com, and the attribution of each image there",
    obtain="download a collection with its metadata from the address, or the training images, ground truth and "
    "metadata of https://challenge.isic-archive.com/data/#2019; RAW holds the CSV (or JSON) and the images at any "
    "depth below it, or is the metadata file, with the images beside it.",
    splits=("train", "test"),
    parts=("archive", "2019"),
    archive="isic",
    by_name=True,
)

TRUTH, METADATA = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
LICENCES = {"CC-0": "CC0-1.0", "CC-BY": "CC-BY-4.0", "CC-BY-NC": "CC-BY-NC-4.0"}
DIAGNOSES = {"diagnosis", "diagnosis_1"}  # one of them is in the archive's metadata, by their age
LEVELS = ("diagnosis", "diagnosis_5", "diagnosis_4", "diagnosis_3")  # the finest first; diagnosis is an older name
# The one group that is a class of the challenges: known of the image, but never an answer.
GROUPS = {"benign soft tissue proliferations - vascular": "vascular lesion"}
TYPES = {"dermoscopic": "dermoscopy", "clinical": "clinical", "overview": "clinical", "tbp tile": "clinical"}
# The finest first; a special site is finer than the whole limb, and the last is the older name of them all.
SITE_COLUMNS = (
    *("anatom_site_5", "anatom_site_4", "anatom_site_3", "anatom_site_2"),
    *("anatom_site_special", "anatom_site_1", "anatom_site_general"),
)
SITES = {  # in lower case; the archive's newer names become the older ones that say the same
    **{name: name for name in ("anterior torso", "posterior torso", "lateral torso", "trunk", "anogenital region")},
    **{name: name for name in ("lower extremity", "upper extremity")},
    **{f"{side} trunk": f"{side} torso" for side in ("anterior", "posterior", "lateral")},
    **dict.fromkeys(("head/neck", "head and neck"), "head or neck"),
    **dict.fromkeys(("oral/genital", "oral or genital"), "oral or genital area"),
    **dict.fromkeys(("palms/soles", "acral palms or soles"), "palms or soles"),
    **{"acral nos": "acral skin", "nail nos": "nail"},
}
UNKNOWN = ("", "unknown")
KINDS = {
    "diagnosis": questions.diagnosis("diagnosis", ISIC_2019_CODES),
    "malignancy": questions.malignancy("benign_malignant"),
    "modality": questions.modality("image_type"),
    "site": questions.site("anatom_site_general", SITES),
    "skin_type": questions.skin_type(
        "fitzpatrick_skin_type", {name: name for name in ("I", "II", "III", "IV", "V", "VI")}
    ),
}
PARTS = {"archive": tuple(KINDS), "2019": ("diagnosis", "malignancy", "modality", "site")}
# Where the answer to each kind is looked for.
ANSWERS = {
    "diagnosis": (*LEVELS, "diagnosis_2", "diagnosis_1"),
    "malignancy": ("benign_malignant", "diagnosis_1", *LEVELS),
    "modality": ("image_type",),
    "site": SITE_COLUMNS,
    "skin_type": ("fitzpatrick_skin_type",),
}
# Columns that need not be there; any one of those in a line does.
OPTIONAL = (
    *(("age_approx",), ("sex",), SITE_COLUMNS, ("benign_malignant", "diagnosis_1"), ANSWERS["modality"]),
    *(ANSWERS["skin_type"], ("lesion_id",), ("patient_id",), ("copyright_license",), ("image_manipulation",)),
)

EMPTY = dict.fromkeys((column for columns in (*OPTIONAL, *ANSWERS.values()) for column in columns), "")


def rows(raw: Path, part: str) -> int:
    """Images in the metadata times the kinds of question."""
    path = _file(raw) if part == "archive" else find(raw, TRUTH, CARD)
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip()) * len(PARTS[part])
    return (len(_load(path)) if path.suffix == ".json" else count_csv(path)) * len(PARTS[part])


def absent(raw: Path, part: str) -> list[str]:
    """What is said of the columns that need not be there and are not."""
    if part != "archive":
        return []
    path = _file(raw)
    json_fields = (name for _, row in _archive(path, None) for name in row) if path.suffix != ".csv" else ()
    return without(path, dict.fromkeys(json_fields) or header(path), OPTIONAL)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per image and kind of question.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = "isic_id,copyright_license,diagnosis_1,diagnosis_3,lesion_id,image_type,sex\\n"
    ...     _ = (Path(folder) / "metadata.csv").write_text(
    ...         table + 'ISIC_0000001,CC-0,Malignant,"Melanoma, NOS",IL_7,dermoscopic,female\\n')
    ...     made = list(convert(Path(folder), "archive"))
    >>> made[0].id, made[0].group, made[0].licence, made[0].facts.diagnosis, made[0].facts.malignancy
    ('ISIC_0000001-diagnosis', 'IL_7', 'CC0-1.0', 'melanoma', 'malignant')
    >>> made[4]
    Dropped(row='metadata.csv:2 skin_type', rule='unknown-value', detail='no column fitzpatrick_skin_type')
    """
    return questions.converse("isic", {name: KINDS[name] for name in PARTS[part]}, records(raw, part, shard))


def _file(raw: Path) -> Path:
    if raw.is_file():
        refuse_pointer(raw)
        return raw
    paths = sorted(path for path in raw.rglob("*") if path.suffix in (".json", ".jsonl"))
    paths += [path for path in sorted(raw.rglob("*.csv")) if is_metadata(path)]
    if len(paths) != 1:
        listed = ", ".join(str(path.relative_to(raw)) for path in paths) or "none"
        raise PrepError(
            f"{raw}: expected one metadata file, a CSV with the columns isic_id and diagnosis or diagnosis_1, "
            f"or JSON records; found {listed}. "
            f"Give the file itself as RAW, or see how to get it: {CARD.obtain}"
        )
    refuse_pointer(paths[0])
    return paths[0]


def is_metadata(path: Path) -> bool:
    """Whether a CSV file says which diagnosis an image has; collections come with tables that only list images."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            header = next(csv.reader(file), [])
        except csv.Error:  # a table of something else
            return False
    return "isic_id" in header and bool(DIAGNOSES & set(header))


def _archive(path: Path, shard: Shard | None) -> Iterator[tuple[str, dict[str, str]]]:
    if path.suffix not in (".json", ".jsonl"):
        for where, row in read_csv(path, ("isic_id",), shard):
            if not DIAGNOSES & row.keys():
                raise PrepError(f"{path}: no column diagnosis or diagnosis_1; found {', '.join(row)}")
            yield where, row
        return
    if path.suffix == ".json":
        for number, record in taken(enumerate(_load(path), 1), shard):
            yield f"{path.name} record {number}", _flat(f"{path} record {number}", record)
        return
    with path.open("rb") as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, line in taken(numbered, shard):
            record = _parse(f"{path}:{number}", line.decode("utf-8-sig", "replace"))
            yield f"{path.name}:{number}", _flat(f"{path}:{number}", record)


def _parse(where: str, words: str) -> Any:
    try:
        return json.loads(words)
    except (ValueError, RecursionError) as error:
        raise PrepError(f"{where}: not JSON ({error}); download the file again") from error


def _load(path: Path) -> list[Any]:
    records = _parse(str(path), path.read_text(encoding="utf-8-sig", errors="replace"))
    if not isinstance(records, list):
        raise PrepError(f"{path}: found {type(records).__name__}; expected a list of records")
    return records


def _flat(where: str, record: Any) -> dict[str, str]:
    """The fields of a record as a row of the archive's CSV has them."""
    fields: dict[str, object] = {}
    if isinstance(record, dict):
        meta = record.get("meta") or record.get("metadata")
        for part in (record, *(meta.values() if isinstance(meta, dict) else ())):
            fields |= part if isinstance(part, dict) else {}
        fields["isic_id"] = record.get("isic_id") or record.get("name")
    if not isinstance(fields.get("isic_id"), str) or not fields["isic_id"]:
        raise PrepError(f"{where}: found no name or isic_id; expected a record of the ISIC archive")
    # JSON may hold half of a surrogate pair, which no file can.
    return {
        name: "" if value is None else str(value).encode(errors="replace").decode()
        for name, value in fields.items()
        if not isinstance(value, dict | list)
    }


def _challenge(raw: Path, shard: Shard | None) -> Iterator[tuple[str, dict[str, str]]]:
    path = find(raw, METADATA, CARD)
    more = {
        row["image"]: row
        for _, row in read_csv(path, ("image", "age_approx", "anatom_site_general", "lesion_id", "sex"))
    }
    for where, row in read_csv(find(raw, TRUTH, CARD), ("image", *ISIC_2019_CODES), shard):
        if row["image"] not in more:
            raise PrepError(f"{where}: image {row['image']!r} has no row in {path.name}; expected one for each image")
        hot = [name for code, name in ISIC_2019_CODES.items() if row[code] in ("1", "1.0")]
        fixed = {"isic_id": row["image"], "image_type": "dermoscopic", "copyright_license": "CC-BY-NC"}
        yield where, {**more[row["image"]], **fixed, "diagnosis": hot[0] if len(hot) == 1 else ""}


def _diagnosis(row: Mapping[str, str]) -> str:
    """The finest diagnosis that has a canonical name, else the finest one, else nothing."""
    named = [value for level in LEVELS if (value := row.get(level, "").strip())]
    best = next((value for value in named if labels.is_known(value)), named[0] if named else "")
    return labels.diagnosis(best)


def site(row: Mapping[str, str]) -> str | None:
    """The finest site, in our words where they differ; the archive's lists grow, so others stay as they are."""
    named = (row.get(column, "").strip().casefold() for column in SITE_COLUMNS)
    finest = next((value for value in named if value not in UNKNOWN), None)
    return finest and SITES.get(finest, finest)


def _missing(kind: str, row: Mapping[str, str]) -> Missing:
    """Why a row has no answer of a kind."""
    columns = [column for column in ANSWERS[kind] if column in row]
    if not columns:
        return Missing(f"no column {' or '.join(ANSWERS[kind])}")
    column = next((column for column in columns if row[column].strip()), columns[0])
    detail = f"{column} is {row[column]!r}"
    if kind == "malignancy" and row[column].casefold().startswith("indeterminate"):
        return Missing(detail, "indeterminate")
    group = kind == "diagnosis" and column in ("diagnosis_1", "diagnosis_2") and row[column].strip()
    return Missing(f"{detail}, a group of diagnoses" if group else detail)


def records(raw: Path, part: str, shard: Shard | None) -> Iterator[DatasetRecord]:
    """What the metadata say about each image; the group is named by its patient, else its lesion, else itself."""
    photos = Photos(raw.parent if raw.is_file() else raw, shard)
    entries = _archive(_file(raw), shard) if part == "archive" else _challenge(raw, shard)
    for where, entry in entries:
        row = EMPTY | entry

        # What is known of the lesion, under our own names.
        name = _diagnosis(row)
        canonical = name if labels.is_known(name) else GROUPS.get(row["diagnosis_2"].strip().casefold(), name)
        flag = (row["benign_malignant"] or row["diagnosis_1"]).casefold()
        if flag not in ("benign", "malignant"):
            flag = labels.malignancy(name) if labels.is_known(name) else ""
        view = TYPES.get(row["image_type"].casefold().partition(":")[0])
        tone = KINDS["skin_type"].values.get(row["fitzpatrick_skin_type"])
        facts = Facts(
            modality=view,
            diagnosis=canonical or None,
            malignancy=flag or None,
            skin_type=tone,
            age=years(where, row, "age_approx", UNKNOWN),
            sex=row["sex"] if row["sex"] in ("female", "male") else None,
            site=site(row),
        )

        # Among its classes the challenge calls this one so; the canonical name is narrower.
        spoken = row["diagnosis"] if row["diagnosis"] in ISIC_2019_CODES.values() else name
        values = {"diagnosis": spoken, "malignancy": flag, "modality": view and PICTURES[view]}
        values |= {"site": facts.site, "skin_type": tone}
        answers = {kind: values[kind] or _missing(kind, entry) for kind in KINDS}
        if row["image_manipulation"].strip().casefold() == "synthetic":
            answers = dict.fromkeys(KINDS, Missing("image_manipulation is 'synthetic'", "synthetic-image"))

        identities = known_names(row.get("patient_id", ""), row.get("lesion_id", ""), row["isic_id"]) or ("",)
        licence = LICENCES.get(row.get("copyright_license", ""), row.get("copyright_license") or CARD.licence)
        images, tags = photos.shown(f"{row['isic_id']}.jpg")
        split = split_of(identities[0])
        yield DatasetRecord(where, row["isic_id"], images, identities, split, licence, facts, answers, tags)
