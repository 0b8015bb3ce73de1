"""derm7pt: lesions, each as a clinical photo and a dermoscopic image, by the seven-point checklist → our own questions.

Expected: meta/meta.csv with the columns of COLUMNS, meta/train_indexes.csv, valid_indexes.csv and test_indexes.csv (the
column indexes: numbers of rows of meta.csv, from 0), and the folder images beside meta, in which the columns clinic and
derm name a file in any case of letters. Values are written with spaces or underscores.

Diagnosis and management are asked of both images, the clinical one first; elevation and site of the clinical photo; the
seven criteria, each by choosing from its own vocabulary, and the score, which names what counts and adds it up, of the
dermoscopic image. Twenty names of diagnoses make 15 classes; "miscellaneous" is no diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

from data_prep import Card, PrepError, Shard, count_csv, find, is_text, lookup, read_csv, seeded, taken
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts, Message, text
from skinvl.data.labels import DERM7PT_CRITERIA, DERM7PT_NAMES, diagnosis, is_known, malignancy
from skinvl.data.questions import DatasetRecord, Kind, Missing, choices

CARD = Card(
    title="derm7pt (seven-point checklist)",
    address="https://derm.cs.sfu.ca",
    licence="CC-BY-NC-ND-4.0",
    terms="Non-commercial use, with attribution; no changed copy may be passed on, so that conversations about it, and "
    "what is trained on them, stay at home.",
    citation="Kawahara et al., Seven-Point Checklist and Skin Lesion Classification Using Multitask Multimodal Neural "
    "Nets, IEEE Journal of Biomedical and Health Informatics 23, 2019",
    obtain="fill in the form at the address and unpack the download; RAW is the folder release_v0, with images/ and "
    "meta/.",
    splits=("train", "validation", "test"),
    parts=("vqa",),
    archive="derm7pt",
    released="sound",
    published="2,013",
    use="non-commercial",
)

FILE = "meta.csv"
SPLITS = {"train_indexes.csv": "train", "valid_indexes.csv": "validation", "test_indexes.csv": "test"}
# Of the values of the criteria those that count, two points of the first three criteria and one of the others.
MAJOR = ("pigment_network", "blue_whitish_veil", "vascular_structures")
COUNTED = {
    *("atypical", "present", "dotted", "linear irregular", "diffuse irregular", "localized irregular", "irregular"),
    *("blue areas", "white areas", "combinations"),
}
CRITERIA: dict[str, dict[str, int]] = {
    name: {value: (1 + (name in MAJOR)) * (value in COUNTED) for value in values}
    for name, values in DERM7PT_CRITERIA.items()
}
# What is there where a criterion has points.
CONCEPTS = {
    "pigment_network": "atypical pigment network",
    "blue_whitish_veil": "blue-whitish veil",
    "vascular_structures": "atypical vessels",
    "pigmentation": "irregular pigmentation",
    "streaks": "irregular streaks",
    "dots_and_globules": "irregular dots and globules",
    "regression_structures": "regression structures",
}
SITES = {"head neck": "head or neck", "acral": "acral skin", "genital areas": "genital area"}
CHOOSE = (
    "Which of these describes the {name} under the dermatoscope: {options}?",
    "Judge the {name} of this lesion and choose: {options}.",
    "By the seven-point checklist, what applies to the {name}: {options}?",
)
ADD_UP = (
    "Which criteria of the seven-point checklist count here, and what do they add up to?",
    "Work out the seven-point score of this lesion, criterion by criterion.",
    "What is the seven-point score of the lesion, and how do you get there?",
)


def _called(criterion: str) -> str:
    """A criterion as one would say it."""
    return criterion.replace("blue_whitish", "blue-whitish").replace("_", " ")


PAIR = {
    "diagnosis": Kind(
        "diagnosis",
        "diagnosis",
        DERM7PT_NAMES,
        (
            "What is the most likely diagnosis of this lesion?",
            "Which diagnosis would you give to the lesion?",
            "How would you diagnose this lesion?",
        ),
        ("Which diagnosis fits the lesion best: {options}?", "Choose the diagnosis: {options}."),
        ("This is most consistent with {value}.", "The diagnosis is {value}."),
    ),
    "management": Kind(
        "management",
        "management",
        {
            "clinical follow up": "clinical follow-up",
            "excision": "excision",
            "no further examination": "no further examination",
        },
        ("How was this lesion managed?", "What was done about the lesion?"),
        ("Which management was chosen: {options}?", "Choose the management of the lesion: {options}."),
        ("The management was {value}.", "Management: {value}."),
    ),
}
CLINICAL = {
    "elevation": Kind(
        "elevation",
        "elevation",
        {name: name for name in ("flat", "nodular", "palpable")},
        ("How does the lesion lie in relation to the skin around it?", "Describe the profile of the lesion."),
        ("Is the lesion {options}?", "Choose the profile of the lesion: {options}."),
        ("The lesion is {value}.", "It is {value}."),
    ),
    "site": questions.site("location"),
}
DERMOSCOPIC = {
    **{name: Kind(_called(name), name, {}, (), (), ()) for name in CRITERIA},
    "score": Kind("score", "seven_point_score", {}, (), (), ()),
}
KINDS = PAIR | CLINICAL | DERMOSCOPIC
VIEWS = {"clinic": "clinical close-up", "derm": "dermoscopic"}
MODALITIES = {"clinic": "clinical", "derm": "dermoscopy"}
SHOWN = ((PAIR, ("clinic", "derm")), (CLINICAL, ("clinic",)), (DERMOSCOPIC, ("derm",)))
COLUMNS = ("case_num", *(kind.column for kind in KINDS.values()), "sex", "clinic", "derm")


def rows(raw: Path, part: str) -> int:
    """Cases times the kinds of question."""
    return count_csv(find(raw, FILE, CARD)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One conversation per case and kind of question; the split is the given one.

    >>> import tempfile
    >>> row = dict.fromkeys(COLUMNS, "absent") | {"case_num": "1", "diagnosis": "melanoma_(in_situ)", "derm": "D/1.jpg"}
    >>> row |= {"pigment_network": "atypical", "streaks": "irregular", "seven_point_score": "3", "clinic": "C/1.jpg"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     meta = Path(folder) / "meta"
    ...     meta.mkdir()
    ...     for name in SPLITS:
    ...         _ = (meta / name).write_text("indexes\\n" + "0\\n" * (name == "train_indexes.csv"))
    ...     _ = (meta / FILE).write_text(",".join(row) + "\\n" + ",".join(row.values()) + "\\n")
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].images, made[0].facts.views, made[0].facts.diagnosis, made[0].split
    ('1-diagnosis', ('images/C/1.jpg', 'images/D/1.jpg'), ('clinical close-up', 'dermoscopic'), 'melanoma', 'train')
    >>> made[4].images, made[4].messages[1]["content"][0]["text"], made[4].facts.present
    (('images/D/1.jpg',), 'atypical', ('atypical pigment network', 'irregular streaks'))
    >>> made[11].messages[1]["content"][0]["text"]
    'Atypical pigment network 2, irregular streaks 1: 2 + 1 = 3.'
    """
    path = find(raw, FILE, CARD)
    folder = path.parent.parent / "images"
    if not folder.is_relative_to(raw):
        raise PrepError(f"{path}: expected images/ and meta/ side by side in RAW; give the folder above {path.parent}")
    split, files = _splits(raw, count_csv(path)), _files(raw, folder)
    for number, (where, row) in taken(enumerate(read_csv(path, COLUMNS)), shard):
        record = _record(where, row, number, split.get(number, ""))
        named = {column: row[column].strip().replace("\\", "/") for column in VIEWS}
        places = {column: f"{folder.relative_to(raw).as_posix()}/{name}" for column, name in named.items() if name}
        placed = {column: files.get(place.casefold(), place) for column, place in places.items()}
        identities = record.identities[0], *placed.values()
        twice = len({*placed.values()}) < len(placed)
        for kinds, columns in SHOWN:
            images = {column: placed[column] for column in columns if column in placed}
            fault = Missing(f"{columns[0]} is {row[columns[0]]!r}", "missing-image") if not images else None
            if twice:
                fault = Missing(f"clinic and derm are both {row['derm']!r}", "shared-image")
            facts = replace(
                record.facts,
                views=tuple(VIEWS[column] for column in images),
                modality=MODALITIES[min(images)] if len(images) == 1 else None,
            )
            answers = dict.fromkeys(kinds, fault) if fault else record.answers
            shown = tuple(images.values())
            about = replace(record, images=shown, identities=identities, facts=facts, answers=answers)
            yield from questions.converse("derm7pt", kinds, [about])


def _splits(raw: Path, count: int) -> dict[int, str]:
    """The split of each row of the table by its number, from 0.

    Raises:
        PrepError: a number of no row, or of two splits.
    """
    splits: dict[int, str] = {}
    for name, split in SPLITS.items():
        for where, row in read_csv(find(raw, name, CARD), ("indexes",)):
            index = row["indexes"].strip()
            if not (index.isascii() and index.isdecimal() and len(index) < 10 and int(index) < count):
                raise PrepError(
                    f"{where} indexes: found {index!r:.80}; expected a row of {FILE}, from 0 to {count - 1}"
                )
            if splits.setdefault(int(index), split) != split:
                raise PrepError(
                    f"{where} indexes: row {index} is in {splits[int(index)]} too; expected one split a row"
                )
    return splits


def _files(raw: Path, folder: Path) -> dict[str, str]:
    """The files of the folder by their paths in RAW, in lower case: the table and the files differ in case."""
    names = (path.relative_to(raw).as_posix() for path in sorted(folder.rglob("*")))
    return {name.casefold(): name for name in names if is_text(name)}


def _record(where: str, row: Mapping[str, str], number: int, split: str) -> DatasetRecord:
    """What the row says of its case, without its images."""
    plain = {column: " ".join(row[column].replace("_", " ").casefold().split()) for column in COLUMNS}
    criteria = {
        name: lookup(where, plain, name, {value: value for value in points}) for name, points in CRITERIA.items()
    }
    points = {name: CRITERIA[name][value] for name, value in criteria.items() if isinstance(value, str)}
    disease = DERM7PT_NAMES.get(plain["diagnosis"], plain["diagnosis"])
    site = SITES.get(plain["location"], plain["location"])

    # Each question with its answer, or why it has none.
    values = {
        "diagnosis": "" if disease == "miscellaneous" else disease,
        "management": PAIR["management"].values.get(plain["management"], plain["management"]),
        "elevation": plain["elevation"],
        "site": site,
    }
    answers: dict[str, str | Missing | tuple[Message, ...]] = {
        name: value or Missing(f"{KINDS[name].column} is {row[KINDS[name].column]!r}") for name, value in values.items()
    }
    for name, value in criteria.items():
        draw = seeded("derm7pt", row["case_num"], name)
        answers[name] = value if isinstance(value, Missing) else _chosen(name, value, draw)
    answers["score"] = _score(row, points, seeded("derm7pt", row["case_num"], "score"))
    if not split:
        answers = dict.fromkeys(KINDS, Missing(f"row {number} is in none of {choices([*SPLITS])}", "no-split"))

    canonical = "nevus" if disease.endswith("nevus") else diagnosis(values["diagnosis"])
    facts = Facts(
        diagnosis=canonical or None,
        malignancy=malignancy(canonical) if is_known(canonical) else None,
        sex=plain["sex"] if plain["sex"] in ("female", "male") else None,
        site=site or None,
        present=tuple(CONCEPTS[name] for name, count in points.items() if count),
        absent=tuple(CONCEPTS[name] for name, count in points.items() if not count),
    )
    return DatasetRecord(where, row["case_num"], (), (row["case_num"],), split, CARD.licence, facts, answers)


def _chosen(name: str, value: str, draw: Random) -> tuple[Message, ...]:
    """A question that lists the values of a criterion, and the one that was chosen."""
    options = choices(draw.sample([*CRITERIA[name]], len(CRITERIA[name])))
    question = draw.choice(CHOOSE).format(name=_called(name), options=options)
    return text("user", question, images=1), text("assistant", value)


def _score(row: Mapping[str, str], points: Mapping[str, int], draw: Random) -> tuple[Message, ...] | Missing:
    """A question about the score, and the sum of what counts, which the column has to confirm."""
    stated = row["seven_point_score"].strip().removesuffix(".0")
    if unknown := [name for name in CRITERIA if name not in points]:
        return Missing(f"{unknown[0]} is {row[unknown[0]]!r}")
    total = sum(points.values())
    if stated != f"{total}":
        rule = "inconsistent-score" if stated else "unknown-value"
        return Missing(f"seven_point_score is {row['seven_point_score']!r}, and the criteria make {total}", rule)
    counted = {CONCEPTS[name]: count for name, count in points.items() if count}
    listed = ", ".join(f"{concept} {count}" for concept, count in counted.items()).capitalize()
    added = " + ".join(map(str, counted.values()))
    answer = f"{listed}: {added} = {total}." if len(counted) > 1 else f"{listed}: the score is {total}."
    if not counted:
        answer = "None of the seven criteria counts: the score is 0."
    return text("user", draw.choice(ADD_UP), images=1), text("assistant", answer)
