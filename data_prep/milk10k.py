"""MILK10k (ISIC 2025): lesions, each as a close-up and a dermoscopic image → questions about both in our own words.

Part `challenge` expects MILK10k_Training_GroundTruth.csv (lesion_id, and a column of 0 and 1 for each of 11 classes),
MILK10k_Training_Metadata.csv (lesion_id, image_type, isic_id, and those of OPTIONAL that are known), and, where they
are there, MILK10k_Training_Supplement.csv (isic_id, diagnosis_full) and the archive's own table of the same images
(isic_id, diagnosis_1 to diagnosis_5). Part `archive` expects the archive's table alone, with lesion_id; it names no
class of the challenge. Part `blind` expects MILK10k_Test_Metadata.csv: lesions without an answer, which are asked only
which image is which, so that `skinvl classify` has them; a source of its own keeps all of them. A column may stand in
any of the tables of an image. Images are named by isic_id, at any depth, and shown in an order that is drawn for each
lesion.

No diagnosis is known of a collision of two lesions, which has a class. Skin tone is on a scale of its own, from 0, very
dark, to 5, very light, and never becomes a Fitzpatrick type. How a diagnosis was confirmed, the institution and the
columns MONET_*, which a model made, are facts and tags and no answers: all three go with the diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    seeded,
    split_of,
    taken,
    without,
    years,
)
from skinvl.data import labels, questions
from skinvl.data.example import Dropped, Example, Facts, Message, text
from skinvl.data.labels import MILK10K_CODES
from skinvl.data.questions import DatasetRecord, Kind, Missing

CARD = Card(
    title="MILK10k",
    address="https://doi.org/10.34970/648456",
    licence="CC-BY-NC-4.0",
    terms="Every image has its own licence, in the column copyright_license; non-commercial use, with attribution.",
    citation="MILK study team, MILK10k, ISIC Archive, 2025, doi 10.34970/648456",
    obtain="download the training and test images and all their tables from "
    "https://challenge.isic-archive.com/landing/milk10k; RAW holds MILK10k_Training_GroundTruth.csv, "
    "MILK10k_Training_Metadata.csv, MILK10k_Training_Supplement.csv, MILK10k_Test_Metadata.csv, and the images at any "
    "depth below it; the archive's own metadata.csv of them beside it adds the levels of each diagnosis.",
    splits=("train", "validation", "test"),
    parts=("challenge", "archive", "blind"),
    archive="isic",
    by_name=True,
    released="sound",
    published="11,438",
    use="non-commercial",
)

TRUTH, METADATA = "MILK10k_Training_GroundTruth.csv", "MILK10k_Training_Metadata.csv"
SUPPLEMENT, BLIND = "MILK10k_Training_Supplement.csv", "MILK10k_Test_Metadata.csv"
LEVELS = tuple(f"diagnosis_{level}" for level in range(1, 6))
VIEWS = {
    "clinical: close-up": "clinical close-up",
    "clinical: overview": "clinical overview",
    "dermoscopic": "dermoscopic",
}
TONES = {written: f"MILK {number}" for number in range(6) for written in (f"{number}", f"{number}.0")}
MONET = {  # columns of probabilities → the tag of a row of which one is LIKELY
    "MONET_gel_water_drop_fluid_dermoscopy_liquid": "gel",
    "MONET_hair": "hair",
    "MONET_skin_markings_pen_ink_purple_pen": "pen",
}
LIKELY = 0.5
# What a class says of its lesions where they have no finer name, or none that is canonical.
CANONICAL = {
    "BCC": "basal cell carcinoma",
    "DF": "dermatofibroma",
    "MEL": "melanoma",
    "NV": "nevus",
    "VASC": "vascular lesion",
}
GRADES = {
    "AKIEC": "premalignant",
    **dict.fromkeys(("BEN_OTH", "BKL", "DF", "INF", "NV", "VASC"), "benign"),
    **dict.fromkeys(("BCC", "MAL_OTH", "MEL", "SCCKA"), "malignant"),
}
COLLISION = "collision"  # how the name of several diagnoses in one lesion begins
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

_ANSWERS = ("This is most consistent with {value}.", "The diagnosis is {value}.")
KINDS = {
    "diagnosis": Kind(
        "diagnosis",
        "diagnosis_full",
        {},
        (
            "What is the most likely diagnosis of this lesion?",
            "Which diagnosis would you give to the lesion?",
            "How would you name what you see?",
        ),
        (),
        _ANSWERS,
    ),
    "class": Kind(
        "diagnosis",
        "",
        MILK10K_CODES,
        ("To which class of skin lesions does it belong?", "Which group of skin lesions fits this one?"),
        ("Which class fits the lesion best: {options}?", "Choose the class of the lesion: {options}."),
        _ANSWERS,
    ),
    "malignancy": questions.malignancy("diagnosis_1"),
    "hierarchy": Kind("hierarchy", "diagnosis_1", {}, (), (), ()),
    "view": Kind("view", "image_type", {}, (), (), ()),
}
PARTS = {
    "challenge": tuple(KINDS),
    "archive": tuple(name for name in KINDS if name != "class"),
    "blind": ("view",),
}
GENERAL = (
    "Begin with the broadest level: how does this lesion behave?",
    "First of all, how would you grade this lesion?",
    "Let us narrow it down. How dangerous is the lesion?",
)
FINER = ("And which group of lesions is it in?", "Can you narrow it down?", "What is it within that group?")
LAST = ("So what is it exactly?", "Which lesion is it, then?", "And as precisely as you can?")
DERMOSCOPIC = (
    "Which of them was taken through a dermatoscope?",
    "Which one is the dermoscopic image?",
    "One shows the lesion under a dermatoscope. Which?",
)
CLINICAL = ("Which of them was taken without a dermatoscope?", "Which one is the plain photograph?")
# Columns that need not be there; any one of those in a line does.
OPTIONAL = (
    *(("diagnosis_full", "diagnosis_3"), ("diagnosis_1",), ("diagnosis_confirm_type",), ("skin_tone_class",)),
    *(("site", *isic.SITE_COLUMNS), ("age_approx",), ("sex",), ("attribution",), ("copyright_license",)),
    *(("image_manipulation",), *((column,) for column in MONET)),
)
EMPTY = dict.fromkeys((*LEVELS, *(column for columns in OPTIONAL for column in columns)), "")


@dataclass(frozen=True, slots=True)
class _Lesion:
    """A lesion with what the tables say of its class and of its images."""

    where: str  # file and line of its row, or of its first image
    name: str
    codes: tuple[str, ...]  # the classes that the ground truth gives it, one if all is well
    images: tuple[Mapping[str, str], ...]  # each with all columns of EMPTY


def rows(raw: Path, part: str) -> int:
    """Lesions times the kinds of question: the rows of the ground truth, and lesions of the images without one."""
    lesions = {_name(row) for _, row in read_csv(_tables(raw, part)[0], ("isic_id", "lesion_id"))}
    if part != "challenge":
        return len(lesions) * len(PARTS[part])
    truth = find(raw, TRUTH, CARD)
    lesions -= {row["lesion_id"] for _, row in read_csv(truth, ("lesion_id",))}
    return (count_csv(truth) + len(lesions)) * len(PARTS[part])


def absent(raw: Path, part: str) -> list[str]:
    """What is said of the columns that no table of the images has."""
    if part == "blind":
        return []
    tables = _tables(raw, part)
    names = Path(", ".join(table.name for table in tables))
    return without(names, dict.fromkeys(name for table in tables for name in header(table)), OPTIONAL)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One conversation per lesion and kind of question, with all images of the lesion.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     truth = f"lesion_id,{','.join(MILK10K_CODES)}\\nIL_7,0.0,1.0{',0.0' * 9}\\n"
    ...     _ = (Path(folder) / TRUTH).write_text(truth)
    ...     table = "lesion_id,image_type,isic_id,skin_tone_class,attribution\\n"
    ...     table += "IL_7,clinical: close-up,ISIC_1,3,Vienna\\nIL_7,dermoscopic,ISIC_2,3,Vienna\\n"
    ...     _ = (Path(folder) / METADATA).write_text(table)
    ...     made = list(convert(Path(folder), "challenge"))
    >>> made[1].id, made[1].images, made[1].group, made[1].facts.views
    ('IL_7-class', ('IL_7/ISIC_2.jpg', 'IL_7/ISIC_1.jpg'), 'IL_7', ('dermoscopic', 'clinical close-up'))
    >>> made[1].facts.diagnosis, made[1].facts.malignancy, made[1].facts.tone, made[1].facts.institution
    ('basal cell carcinoma', 'malignant', 'MILK 3', 'Vienna')
    >>> "".join(part["text"] or "<image>" for part in made[4].messages[0]["content"]).split("\\n")
    ['First image: <image>', 'Second image: <image>', 'Which of them was taken through a dermatoscope?']
    >>> made[0]
    Dropped(row='MILK10k_Training_GroundTruth.csv:2 diagnosis', rule='unknown-value', detail="diagnosis_full is ''")
    """
    kinds = {name: KINDS[name] for name in PARTS[part]}
    return questions.converse("milk10k", kinds, _records(raw, part, shard))


def _records(raw: Path, part: str, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos = Photos(raw, shard)
    for lesion in taken(_lesions(raw, part), shard):
        draw = seeded("milk10k", lesion.name)
        shown = draw.sample(lesion.images, len(lesion.images))
        views = tuple(VIEWS.get(_plain(row["image_type"]), "") for row in shown)

        # What the tables say of the lesion beside its images.
        code = lesion.codes[0] if len(lesion.codes) == 1 else ""
        fine = _finest(shown)
        danger = _danger(fine, code, _first(shown, "diagnosis_1"))
        facts = _facts(lesion.where, shown, views, _canonical(fine, code), known(danger))
        hot = Missing(f"the ground truth names {len(lesion.codes)} classes: {', '.join(lesion.codes) or 'none'}")
        answers: dict[str, str | Missing | tuple[Message, ...]] = {
            "diagnosis": fine,
            "class": MILK10K_CODES[code] if code else hot,
            "malignancy": danger,
            "hierarchy": _hierarchy(shown),
            "view": _which(views, shown),
        }

        # What is wrong with its images.
        fault = None
        if any(not row["isic_id"].strip() for row in shown):
            fault = Missing("an image without isic_id", "empty")
        elif any(_plain(row["image_manipulation"]) == "synthetic" for row in shown):
            fault = Missing("image_manipulation is 'synthetic'", "synthetic-image")
        elif not shown:
            fault = Missing("no table names an image of the lesion", "missing-image")
        if fault:
            answers = dict.fromkeys(KINDS, fault)

        images, tags = photos.shown(*(f"{lesion.name}/{row['isic_id']}.jpg" for row in shown))
        patients = (row.get("patient_id", "") for row in shown)
        identities = known_names(*patients, lesion.name, *(row["isic_id"] for row in shown)) or ("",)
        split = "test" if part == "blind" else {"test": "validation"}.get(split_of(identities[0]), "train")
        yield DatasetRecord(
            *(lesion.where, lesion.name, images, identities, split, _licence(shown), facts, answers),
            tags=(*tags, *_tags(lesion.where, shown)),
        )


def _lesions(raw: Path, part: str) -> Iterator[_Lesion]:
    """The lesions of the ground truth in its order, then those that have images alone."""
    images = _images(raw, part)
    named: set[str] = set()
    if part == "challenge":
        for where, row in read_csv(find(raw, TRUTH, CARD), ("lesion_id", *MILK10K_CODES)):
            named.add(name := row["lesion_id"])
            codes = tuple(code for code in MILK10K_CODES if row[code].strip() in ("1", "1.0"))
            yield _Lesion(where, name, codes, tuple(images[name][1].values()) if name in images else ())
    for name, (where, rows) in images.items():
        if name not in named:
            yield _Lesion(where, name, (), tuple(rows.values()))


def _images(raw: Path, part: str) -> dict[str, tuple[str, dict[str, Mapping[str, str]]]]:
    """Of each lesion where its first image stands, and what all tables say of its images, by isic_id."""
    path, *others = _tables(raw, part)
    more: dict[str, dict[str, str]] = {}
    for table in others:
        for _, row in read_csv(table, ("isic_id",)):
            more[row["isic_id"]] = _merged(row, more.get(row["isic_id"], {}))
    lesions: dict[str, tuple[str, dict[str, Mapping[str, str]]]] = {}
    for where, row in read_csv(path, ("isic_id", "lesion_id", "image_type")):
        whole = _merged(row, more.get(row["isic_id"], {}))
        lesions.setdefault(_name(row), (where, {}))[1].setdefault(row["isic_id"], whole)
    return lesions


def _merged(row: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """What two tables say of an image, the first where both say something."""
    return {**EMPTY, **other, **{column: value for column, value in row.items() if value.strip()}} | {
        column: row[column] for column in ("isic_id", "lesion_id", "image_type") if column in row
    }


def _name(row: Mapping[str, str]) -> str:
    """The lesion of an image; one that is of none is a lesion by itself."""
    return row["lesion_id"] if known_names(row["lesion_id"]) else row["isic_id"]


def _tables(raw: Path, part: str) -> list[Path]:
    """The tables about the images of a part, that which lists them first."""
    if part == "blind":
        return [find(raw, BLIND, CARD)]
    csvs = (path for path in sorted(raw.rglob("*.csv")) if path.name not in (TRUTH, METADATA, SUPPLEMENT, BLIND))
    archived = [path for path in csvs if isic.is_metadata(path)]
    if len(archived) > 1 or (part == "archive" and not archived):
        listed = ", ".join(str(path.relative_to(raw)) for path in archived) or "none"
        raise PrepError(
            f"{raw}: expected one table of the archive, a CSV with the columns isic_id and diagnosis_1; found "
            f"{listed}. How to get {CARD.title}: {CARD.obtain}"
        )
    if part == "archive":
        return archived
    supplements = [find(raw, SUPPLEMENT, CARD)] if any(raw.rglob(SUPPLEMENT)) else []
    return [find(raw, METADATA, CARD), *supplements, *archived]


def _plain(value: str) -> str:
    return " ".join(value.casefold().split())


def _first(rows: Sequence[Mapping[str, str]], column: str) -> str:
    """What the first image says that says something."""
    return next((value for row in rows if (value := row[column].strip()) and _plain(value) not in isic.UNKNOWN), "")


def _facts(
    where: str, rows: Sequence[Mapping[str, str]], views: tuple[str, ...], diagnosis: str | None, danger: str | None
) -> Facts:
    modalities = {"dermoscopy" if view == "dermoscopic" else "clinical" for view in views if view}
    columns = {column: _first(rows, column) for column in EMPTY}
    return Facts(
        modality=modalities.pop() if len(modalities) == 1 and all(views) else None,
        diagnosis=diagnosis,
        malignancy=danger,
        age=years(where, columns, "age_approx"),
        sex=columns["sex"] if columns["sex"] in ("female", "male") else None,
        site=_plain(columns["site"].replace("_", " ")) or isic.site(columns),
        institution=columns["attribution"] or None,
        confirmed=_plain(columns["diagnosis_confirm_type"]) or None,
        tone=known(lookup(where, columns, "skin_tone_class", TONES)),
        views=views if all(views) else (),
    )


def _finest(rows: Sequence[Mapping[str, str]]) -> str | Missing:
    """The one diagnosis that the images have, as finely as the tables say it."""
    names = {
        labels.diagnosis(name)
        for row in rows
        if (name := next((row[column] for column in ("diagnosis_full", *LEVELS[:1:-1]) if row[column].strip()), ""))
    }
    if len(names) > 1:
        return Missing(f"its images have the diagnoses {', '.join(sorted(names))}", "several-diagnoses")
    if not names:
        return Missing("diagnosis_full is ''")
    name = names.pop()
    return Missing(f"diagnosis_full is {name!r}", "collision") if name.startswith(COLLISION) else name


def _canonical(fine: str | Missing, code: str) -> str | None:
    if isinstance(fine, str) and labels.is_known(fine):
        return fine
    return CANONICAL.get(code) or known(fine)


def _danger(fine: str | Missing, code: str, first: str) -> str | Missing:
    """Benign, premalignant or malignant, by the archive's grade, the diagnosis, or else the class."""
    grade = first.casefold()
    if grade in ("benign", "malignant"):
        return grade
    if isinstance(fine, str) and labels.is_known(fine):
        return labels.malignancy(fine)
    if grade.startswith("indeterminate") and code != "AKIEC":
        return Missing(f"diagnosis_1 is {first!r}", "indeterminate")
    return GRADES.get(code) or Missing(f"diagnosis_1 is {first!r}, and no class is known")


def _hierarchy(rows: Sequence[Mapping[str, str]]) -> tuple[Message, ...] | Missing:
    """A conversation from the broadest level of the diagnosis to the finest."""
    stated = [_first(rows, column) for column in LEVELS]
    levels = list(dict.fromkeys(level for level in stated if level and not level.casefold().startswith(COLLISION)))
    if len(levels) < 2:
        return Missing(f"diagnosis_1 to diagnosis_5 have {len(levels)} levels", "no-hierarchy")
    draw = seeded("milk10k", "hierarchy", *(row["isic_id"] for row in rows))
    turns: list[Message] = []
    for number, level in enumerate(levels):
        last = number == len(levels) - 1
        asked = GENERAL if not number else LAST if last else FINER
        said = questions.LAST_ANSWERS if last else questions.LEVEL_ANSWERS if number else ("It is {value}.", "{value}.")
        turns.append(text("user", draw.choice(asked), images=0 if number else len(rows)))
        turns.append(text("assistant", draw.choice(said).format(value=level)))
    return tuple(turns)


def _which(views: Sequence[str], rows: Sequence[Mapping[str, str]]) -> tuple[Message, ...] | Missing:
    """Which image is the dermoscopic one, or the other; they stand apart, since it means nothing without one of them.

    Words before each image keep prep from letting the row stand with fewer.
    """
    dermoscopic = [number for number, view in enumerate(views) if view == "dermoscopic"]
    if not all(views) or len(dermoscopic) != 1 or not 2 <= len(views) <= len(ORDINALS):
        return Missing(f"image_type is {', '.join(repr(row['image_type']) for row in rows) or 'nothing'}")
    draw = seeded("milk10k", "view", *(row["isic_id"] for row in rows))
    plain = len(views) == 2 and draw.random() < 0.5
    number = 1 - dermoscopic[0] if plain else dermoscopic[0]
    question = text("user", draw.choice(CLINICAL if plain else DERMOSCOPIC))
    for place in reversed(range(len(views))):
        line: Message = text("user", f"{ORDINALS[place].capitalize()} image: ")
        question["content"][:0] = [*line["content"], *text("user", "\n", images=1)["content"]]
    answer = draw.choice(("The {} image.", "It is the {} one.", "The {} one.")).format(ORDINALS[number])
    return question, text("assistant", answer)


def _licence(rows: Sequence[Mapping[str, str]]) -> str:
    """The licences of all images, each once."""
    stated = (row["copyright_license"].strip() or CARD.licence for row in rows)
    return ", ".join(dict.fromkeys(isic.LICENCES.get(name, name) for name in stated)) or CARD.licence


def _tags(where: str, rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The rules that the images break by what the tables say of them."""
    altered = any(_plain(row["image_manipulation"]) == "altered" for row in rows)
    shown = (tag for column, tag in MONET.items() if any(_probability(where, row, column) >= LIKELY for row in rows))
    return (*(("altered-image",) if altered else ()), *shown)


def _probability(where: str, row: Mapping[str, str], column: str) -> float:
    try:
        return float(row[column] or 0)
    except ValueError:
        raise PrepError(f"{where} {column}: found {row[column]!r:.80}; expected a number from 0 to 1") from None
