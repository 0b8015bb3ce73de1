"""PASSION: children's skin in Sub-Saharan Africa, several photos a subject → questions in our own words.

Expected: label.csv (the columns of COLUMNS, a row a subject), PASSION_split.csv (subject_id, Split: TRAIN or TEST), and
the photos at any depth, named by their subject and a number: AA0001_1.jpg, or Files_Matrix_AA0001_1.jpg, with any
ending in any case of letters.

What is known is known of the subject, and not of each photo: all photos of one stand in one conversation, or, where
they are more than MOST, in several of nearly as many each. An empty impetig is no impetigo, and "Others" no diagnosis.
Where the subject has several body sites, the answer lists them. The country stands for the institution.
"""

from __future__ import annotations

import filecmp
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_prep import (
    NOBODY,
    SUFFIXES,
    Card,
    PrepError,
    Shard,
    find,
    header,
    is_text,
    known,
    lookup,
    person,
    read_csv,
    without,
)
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.questions import DatasetRecord, Kind, Missing

CARD = Card(
    title="PASSION",
    address="https://passionderm.github.io",
    licence="none stated: given on request",
    terms="The authors give it to whom they agree to, under terms that they send; nothing more is permitted.",
    citation="Gottfrois et al., PASSION for Dermatology: Bridging the Diversity Gap with Pigmented Skin Images from "
    "Sub-Saharan Africa, MICCAI 2024, arXiv 2411.04584",
    obtain="ask for it at the address; RAW holds label.csv, PASSION_split.csv, and the photos at any depth below it.",
    splits=("train", "test"),
    parts=("vqa",),
    archive="passion",
    released="sound",
    published="4,901",
    use="see its terms",
)

LABELS, SPLIT = "label.csv", "PASSION_split.csv"
COLUMNS = ("subject_id", "conditions_PASSION", "impetig", "body_loc", "fitzpatrick")
OPTIONAL = (("country",), ("age",), ("sex",))
MOST = 4  # photos of one conversation
PHOTO = re.compile(r"(?:Files_Matrix_)?([A-Za-z]+[0-9]+)(?:_([0-9]{1,9}))?\.\w+", re.IGNORECASE)
SPLITS = {"TRAIN": "train", "TEST": "test"}
CONDITIONS = {"eczema": "eczema", "fungal": "fungal infection", "scabies": "scabies"}
IMPETIGO = {**dict.fromkeys(("", "0", "0.0"), "no"), **dict.fromkeys(("1", "1.0"), "yes")}
NUMERALS = ("I", "II", "III", "IV", "V", "VI")
SKIN_TYPES = {
    written: name for number, name in enumerate(NUMERALS, 1) for written in (name, f"{number}", f"{number}.0")
}
KINDS = {
    "diagnosis": Kind(
        "diagnosis",
        "conditions_PASSION",
        CONDITIONS,
        (
            "What is the most likely diagnosis?",
            "Which skin condition is it?",
            "How would you diagnose what you see here?",
        ),
        ("Which diagnosis fits best: {options}?", "Choose the diagnosis: {options}."),
        ("This is most consistent with {value}.", "The diagnosis is {value}."),
    ),
    "impetigo": Kind(
        "impetigo",
        "impetig",
        IMPETIGO,
        ("Are there signs that the skin is infected with bacteria on top?", "What can be said about impetigo?"),
        ("Is the skin impetiginised? Answer yes or no.", "Is there impetigo? Answer yes or no."),
        {
            "yes": ("The skin is impetiginised.", "There is impetigo on top."),
            "no": ("The skin is not impetiginised.", "There is no impetigo."),
        },
    ),
    "site": questions.site("body_loc"),
    "skin_type": questions.skin_type("fitzpatrick", {name: name for name in NUMERALS}),
}


def rows(raw: Path, part: str) -> int:
    """Conversations that the photos of each subject of the table make, at least one, times the kinds of question."""
    photos = _photos(raw)
    counts = [len(photos[_key(row["subject_id"])]) for _, row in read_csv(find(raw, LABELS, CARD), COLUMNS)]
    return sum(max(1, -(-count // MOST)) for count in counts) * len(KINDS)


def absent(raw: Path, part: str) -> list[str]:
    """What is said of columns that need not be there and are not, and of photos of no subject."""
    path = find(raw, LABELS, CARD)
    subjects = {_key(row["subject_id"]) for _, row in read_csv(path, COLUMNS)}
    others = sorted(photo for subject, photos in _photos(raw).items() if subject not in subjects for photo in photos)
    named = f", such as {others[0]}" if others else ""
    said = [f"{LABELS}: no row for the subjects of {len(others)} photos{named}; they are not used"] if others else []
    return without(path, header(path), OPTIONAL) + said


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per kind and MOST photos of a subject; the split is the given one, which is by subject.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / LABELS).write_text(",".join(COLUMNS) + "\\nAA7,Scabies,,hand,5\\n")
    ...     _ = (Path(folder) / SPLIT).write_text("subject_id,Split\\nAA7,TEST\\n")
    ...     for name in ("AA7_10.JPG", "AA7_2.png"):
    ...         (Path(folder) / name).touch()
    ...     made = list(convert(Path(folder), "vqa"))
    >>> made[0].id, made[0].images, made[0].group, made[0].split, made[0].facts.diagnosis
    ('AA7-diagnosis', ('AA7_2.png', 'AA7_10.JPG'), 'AA7', 'test', 'scabies')
    >>> made[1].messages[1]["content"][0]["text"], made[1].facts.absent, made[3].facts.skin_type
    ('no', ('impetigo',), 'V')
    """
    return questions.converse("passion", KINDS, _records(raw, shard))


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    photos, split = _photos(raw), _splits(raw)
    for where, row in read_csv(find(raw, LABELS, CARD), COLUMNS, shard):
        subject = row["subject_id"].strip()
        sites = re.split(r"\s*[;,/]\s*", " ".join(row["body_loc"].replace("_", " ").casefold().split()))
        values = {
            "diagnosis": CONDITIONS.get(row["conditions_PASSION"].strip().casefold()),
            "impetigo": IMPETIGO.get(row["impetig"].strip()),
            "site": questions.together([site for site in sites if site not in NOBODY]),
            "skin_type": SKIN_TYPES.get(row["fitzpatrick"].strip()),
        }
        answers: dict[str, str | Missing] = {
            name: value or Missing(f"{KINDS[name].column} is {row[KINDS[name].column]!r}")
            for name, value in values.items()
        }
        age, sex = person(row.get("age", ""), row.get("sex", ""))
        facts = Facts(
            modality="clinical",
            diagnosis=values["diagnosis"],
            skin_type=values["skin_type"],
            age=age,
            sex=sex,
            site=values["site"] or None,
            institution=row.get("country", "").strip() or None,
            present=("impetigo",) if values["impetigo"] == "yes" else (),
            absent=("impetigo",) if values["impetigo"] == "no" else (),
        )

        # Its photos, in as many conversations as they need.
        shown = photos[_key(subject)]
        count = max(1, -(-len(shown) // MOST))
        if not shown:
            answers = dict.fromkeys(KINDS, Missing("no photo is named by the subject", "missing-image"))
        elif _key(subject) not in split:
            answers = dict.fromkeys(KINDS, Missing(f"{SPLIT} does not name the subject", "no-split"))
        for number in range(count):
            images = tuple(shown[len(shown) * number // count : len(shown) * (number + 1) // count])
            name = f"{subject}.{number + 1}" if number else subject
            yield DatasetRecord(
                *(where, name, images, (subject,), split.get(_key(subject), ""), CARD.licence, facts, answers)
            )


def _key(subject: str) -> str:
    """A subject as tables and files have it in common."""
    return subject.strip().casefold().removeprefix("files_matrix_")


def _photos(raw: Path) -> defaultdict[str, list[str]]:
    """The paths in RAW of the photos of each subject, by their numbers.

    Raises:
        PrepError: two files of one name differ.
    """
    photos: dict[str, tuple[str, int, str]] = {}  # by name: the subject, the number of the photo, its path
    for path in sorted(raw.rglob("*")):
        match = PHOTO.fullmatch(path.name)
        if match is None or path.suffix.lower() not in SUFFIXES or not is_text(str(path)) or not path.is_file():
            continue
        place = path.relative_to(raw).as_posix()
        _, _, other = photos.setdefault(path.name, (_key(match[1]), int(match[2] or 0), place))
        if not filecmp.cmp(raw / other, path, shallow=False):
            raise PrepError(f"{raw}: {other} and {place} differ; expected one photo of a name; take one out of RAW")
    by_subject: defaultdict[str, list[str]] = defaultdict(list)
    for subject, _, place in sorted(photos.values()):
        by_subject[subject].append(place)
    return by_subject


def _splits(raw: Path) -> dict[str, str]:
    """The split of each subject.

    Raises:
        PrepError: a split that is none, or two of one subject.
    """
    splits: dict[str, str] = {}
    for where, row in read_csv(find(raw, SPLIT, CARD), ("subject_id", "Split")):
        split = known(lookup(where, {"Split": row["Split"].strip().upper()}, "Split", SPLITS, ())) or ""
        if splits.setdefault(_key(row["subject_id"]), split) != split:
            raise PrepError(f"{where} Split: {row['subject_id']!r} is in both splits; expected one split a subject")
    return splits
