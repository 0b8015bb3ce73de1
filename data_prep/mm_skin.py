"""MM-Skin: questions, answers and captions about figures of dermatology textbooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_prep import Card, PrepError, count_csv, digest, find, read_csv, seeded
from skinvl.example import Dropped, Example, Facts, text

CARD = Card(
    title="MM-Skin",
    address="https://github.com/ZwQ803/MM-Skin",
    licence="none stated (research only)",
    terms="The authors state no licence and the figures come from textbooks: research use, never redistribute.",
    citation="Zeng et al., MM-Skin: Enhancing Dermatology Vision-Language Model with an Image-Text Dataset Derived "
    "from Textbooks, 2025",
    obtain="follow the address to the CSV files (VQA.csv, caption.csv, MM-Skin_test.csv) and the figures; RAW holds "
    "the CSV files, at any depth, and the figures as dataset/bk….png or bk….png.",
    splits=("train", "test"),
    parts=("vqa", "test", "caption"),
)

FILES = {"vqa": "VQA.csv", "test": "MM-Skin_test.csv", "caption": "caption.csv"}

# Only `skin` is certain to occur; the others are the spellings of the three kinds that the authors describe.
MODALITIES = {
    "skin": "clinical",
    "clinical": "clinical",
    "dermoscopy": "dermoscopy",
    "dermoscopic": "dermoscopy",
    "dermatoscopy": "dermoscopy",
    "pathology": "pathology",
    "pathological": "pathology",
    "histopathology": "pathology",
}
SEXES = {"female": "female", "f": "female", "woman": "female", "male": "male", "m": "male", "man": "male"}

PICTURES = {"clinical": "clinical photograph", "dermoscopy": "dermoscopic image", "pathology": "histopathology image"}
INSTRUCTIONS = (
    "Describe this {picture}.",
    "Write a caption for this {picture}.",
    "What can be seen in this {picture}?",
    "Summarize the findings in this {picture}.",
    "How would a textbook describe this {picture}?",
    "Please explain to a colleague what this {picture} shows.",
)


def rows(raw: Path, part: str) -> int:
    """The records of the part's CSV file."""
    return count_csv(find(raw, FILES[part], CARD))


def convert(raw: Path, part: str) -> Iterator[Example | Dropped]:
    """One conversation per record of the part's CSV file; modality, age and sex come from caption.csv where it is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = "image,question,answer\\ndataset/bk1_2.png,Is it raised?,\\"Yes, it is a papule.\\"\\n"
    ...     _ = (Path(folder) / "VQA.csv").write_text(table)
    ...     row = next(convert(Path(folder), "vqa"))
    >>> row.id, row.images, row.group, row.split, row.facts.kind
    ('vqa-be15a0ec9961e5d8', ('dataset/bk1_2.png',), 'dataset/bk1_2', 'train', 'closed')
    >>> [(turn["role"], turn["content"][-1]["text"]) for turn in row.messages]
    [('user', 'Is it raised?'), ('assistant', 'Yes, it is a papule.')]
    """
    path = find(raw, FILES[part], CARD)
    return _captions(raw, path) if part == "caption" else _questions(raw, path, part)


def _questions(raw: Path, path: Path, part: str) -> Iterator[Example | Dropped]:
    known: dict[str, Facts] = {}
    if any(raw.rglob(FILES["caption"])):
        for where, row in _read_captions(find(raw, FILES["caption"], CARD)):
            known.setdefault(_figure(row["image"]), _facts(where, row))
    first: dict[tuple[str, str], str] = {}
    for where, row in read_csv(path, ("image", "question", "answer")):
        image, question, answer = (row[column].strip() for column in ("image", "question", "answer"))
        if gap := [column for column in ("image", "question", "answer") if not row[column].strip()]:
            yield Dropped(where, "empty", f"no {' and no '.join(gap)}")
            continue
        if (image, question) in first:
            yield Dropped(where, "duplicate", f"the image and question of {first[image, question]}")
            continue
        first[image, question] = where
        facts = known.get(_figure(image), Facts())
        kind = "closed" if re.match(r"(yes|no)\b", answer, re.IGNORECASE) else "open"
        yield _example(
            raw,
            f"{part}-{digest(image, question)}",
            image,
            question,
            answer,
            "test" if part == "test" else "train",
            Facts(modality=facts.modality, age=facts.age, sex=facts.sex, kind=kind),
        )


def _captions(raw: Path, path: Path) -> Iterator[Example | Dropped]:
    first: dict[tuple[str, str], str] = {}
    for where, row in _read_captions(path):
        facts = _facts(where, row)
        image = row["image"].strip()
        caption = row["cleaned_caption"].strip() or row["caption"].strip()
        if not image or not caption:
            yield Dropped(where, "empty", "no caption" if image else "no image")
            continue
        if (image, caption) in first:
            yield Dropped(where, "duplicate", f"the image and caption of {first[image, caption]}")
            continue
        first[image, caption] = where
        name = f"caption-{digest(image, caption)}"
        instruction = seeded("mm_skin", name).choice(INSTRUCTIONS)
        question = instruction.format(picture=PICTURES[facts.modality or "clinical"])
        yield _example(raw, name, image, question, caption, "train", facts)


def _read_captions(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    return read_csv(path, ("image", "caption", "modality", "sex", "age", "cleaned_caption"))


def _facts(where: str, row: dict[str, str]) -> Facts:
    """Modality, age in years and sex; age and sex are free text in the source, and unknown where they say no more."""
    modality = MODALITIES.get(row["modality"].strip().casefold())
    if modality is None:
        raise PrepError(
            f"{where} modality: found {row['modality']!r}; expected one of {', '.join(sorted(MODALITIES))}. "
            "Add it to MODALITIES in data_prep/mm_skin.py with what it means"
        )
    age = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)(?:[ -]?(?:years?|y)(?:[ -]old)?)?", row["age"].strip(), re.IGNORECASE)
    return Facts(
        modality=modality,
        age=float(age[1]) if age else None,
        sex=SEXES.get(row["sex"].strip().casefold()),
        kind="open",
    )


def _example(raw: Path, name: str, image: str, question: str, answer: str, split: str, facts: Facts) -> Example:
    return Example(
        id=name,
        source="mm_skin",
        images=(_placed(raw, image),),
        messages=(text("user", question, images=1), text("assistant", answer)),
        group=str(PurePosixPath(image).with_suffix("")),
        split=split,
        licence=CARD.licence,
        facts=facts,
    )


def _placed(raw: Path, image: str) -> str:
    """The path under which the figure lies in RAW: many copies lack the folder that the CSV files name."""
    bare = image.removeprefix("dataset/")
    return bare if bare != image and not (raw / image).is_file() and (raw / bare).is_file() else image


def _figure(image: str) -> str:
    return str(PurePosixPath(image.strip().removeprefix("dataset/")).with_suffix(""))
