"""DermNet photos in 23 folders of related diseases → questions in our own words.

Expected: the folders train/ and test/, each with folders of photos that are named by class, at any depth below RAW. The
split is the given one. Runs of spaces in a folder's name count as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from data_prep import SUFFIXES, Card, PrepError, Shard, digest, taken
from skinvl.data import questions
from skinvl.data.example import Dropped, Example, Facts
from skinvl.data.labels import CLASSES
from skinvl.data.questions import DatasetRecord, Kind

CARD = Card(
    title="DermNet (23 classes)",
    address="https://www.kaggle.com/datasets/shubhamgoel27/dermnet",
    licence="none stated (research only)",
    terms="The photos are those of a website and no licence is stated: research use, never redistribute.",
    citation="DermNet (23 classes), https://www.kaggle.com/datasets/shubhamgoel27/dermnet",
    obtain="download and unpack it from the address; RAW holds the folders train and test.",
    splits=("train", "test"),
    parts=("vqa",),
    released="sound",
    published="≈ 19,500",
    use="research",
)

NAMES = {name.casefold(): name for name in CLASSES["dermnet"]}
KINDS = {
    "category": Kind(
        "category",
        "",
        {name: name for name in CLASSES["dermnet"]},
        (
            "Which group of skin diseases does this photo belong to?",
            "In which chapter of a dermatology atlas would you look for this?",
            "What family of conditions does the photo show?",
        ),
        ("Which of these classes fits the photo best: {options}?", "Choose the class of the photo: {options}."),
        ("The photo belongs to the class {value}.", "This fits the class {value}."),
    )
}


def rows(raw: Path, part: str) -> int:
    """Photos below train/ and test/ times the kinds of question."""
    return sum(len(_photos(folder)) for folder in _classes(raw)) * len(KINDS)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One question and answer per photo, in the order of the paths; patients are not known.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     photo = Path(folder) / "test" / "Urticaria  Hives" / "hives-1.jpg"
    ...     photo.parent.mkdir(parents=True)
    ...     photo.touch()
    ...     row = next(convert(Path(folder), "vqa"))
    >>> row.id, row.split, row.messages[1]["content"][0]["text"]
    ('b139c5d20c2594c3-category', 'test', 'The photo belongs to the class Urticaria Hives.')
    """
    return questions.converse("dermnet", KINDS, _records(raw, shard))


def _classes(raw: Path) -> list[Path]:
    """The folders below train/ and test/, in order.

    Raises:
        PrepError: no such folder.
    """
    splits = sorted(path for path in (raw, *raw.rglob("*")) if path.name in CARD.splits and path.is_dir())
    if not splits:
        raise PrepError(f"{raw}: no folder train or test in it or below it. How to get {CARD.title}: {CARD.obtain}")
    return [folder for split in splits for folder in sorted(split.iterdir()) if folder.is_dir()]


def _photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def _records(raw: Path, shard: Shard | None) -> Iterator[DatasetRecord]:
    for path in taken(chain.from_iterable(map(_photos, _classes(raw))), shard):
        folder = path.parent
        label = " ".join(folder.name.split())
        if label.casefold() not in NAMES:
            raise PrepError(
                f"{folder}: found a folder of photos called {label!r}; expected one of the 23 classes, "
                f"such as {CLASSES['dermnet'][0]!r}; rename it or take it out of RAW"
            )
        # A name that is no UTF-8 becomes one with backslashes, which prep refuses by name.
        image = path.relative_to(raw).as_posix().encode(errors="backslashreplace").decode()
        answers = {"category": NAMES[label.casefold()]}
        facts = Facts(modality="clinical")
        yield DatasetRecord(image, digest(image), (image,), (image,), folder.parent.name, CARD.licence, facts, answers)
