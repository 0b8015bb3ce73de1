"""MM-Skin: questions, answers and captions about textbook figures, and the class lists of its classification sets.

Parts and their files, at any depth below RAW: `vqa` VQA.csv and `test` MM-Skin_test.csv (image, question, answer);
`caption` caption.csv (CAPTION_COLUMNS); `json` every vqa_*.json, a LLaVA list (vqa_PubMM.json repeats the other two);
`classification` every CSV file in a folder of that name (image, categories, and set where it is known).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from data_prep import (
    Card,
    PrepError,
    Shard,
    count_csv,
    digest,
    find,
    header,
    llava,
    person,
    read_csv,
    refuse_pointer,
    seeded,
)
from skinvl.data.example import Dropped, Example, Facts, Message, text, words
from skinvl.data.labels import diagnosis, is_known, malignancy
from skinvl.data.questions import PICTURES, choices

CARD = Card(
    title="MM-Skin",
    address="https://github.com/ZwQ803/MM-Skin",
    licence="none stated (research only)",
    terms="The authors state no licence and the figures come from textbooks: research use, never redistribute.",
    citation="Zeng et al., MM-Skin: Enhancing Dermatology Vision-Language Model with an Image-Text Dataset Derived "
    "from Textbooks, 2025",
    obtain="follow the address to the CSV files (VQA.csv, caption.csv, MM-Skin_test.csv) and the figures; RAW holds "
    "the CSV files, at any depth, and the figures as dataset/bk….png or bk….png; for json the vqa_*.json files, for "
    "classification their folder classification, and the images under the paths that these files give.",
    splits=("train", "validation", "test"),
    parts=("vqa", "test", "caption", "json", "classification"),
    archive="mm_skin",
    released="leaky",  # by question: most images of the test file are asked about in VQA.csv too
    published="11,039",
    use="research",
)

# A pattern may match several files, a plain name only one.
FILES = {"vqa": "VQA.csv", "test": "MM-Skin_test.csv", "caption": "caption.csv"}
FILES |= {"json": "vqa_*.json", "classification": "classification/*.csv"}
CAPTION_COLUMNS = ("image", "caption", "modality", "sex", "age", "cleaned_caption")
Outcome = Example | tuple[str, str]  # or the rule that drops the row, and what was found
YES_NO = re.compile(r"(yes|no)\b", re.IGNORECASE)
PANEL = re.compile(r"(bk\d+(?:_c?\d+)+)_[a-z]")  # `bk11_161_b` and `bk11_161_e` are panels of one figure
IMAGES = 1 << 14  # more than MM-Skin has; what their names say is worked out once
# Only `skin` is certain to occur; the others are the spellings of the three kinds that the authors describe.
MODALITIES = {
    **dict.fromkeys(("skin", "clinical"), "clinical"),
    **dict.fromkeys(("dermoscopy", "dermoscopic", "dermatoscopy"), "dermoscopy"),
    **dict.fromkeys(("pathology", "pathological", "histopathology"), "pathology"),
}
INSTRUCTIONS = (
    "Describe this {picture}.",
    "Write a caption for this {picture}.",
    "What can be seen in this {picture}?",
    "Summarize the findings in this {picture}.",
    "How would a textbook describe this {picture}?",
    "Please explain to a colleague what this {picture} shows.",
)
QUESTIONS = (
    "Which of these classes fits the image: {options}?",
    "Classify the image. The classes are {options}.",
    "Choose the one class that the image belongs to: {options}.",
)
SETS = {"train": "train", "training": "train", "val": "validation", "validation": "validation", "test": "test"}
# What the first word of a classification file's name says about all of its images; ISIC, HIBA and MSKCC say nothing.
SET_MODALITIES = {
    **dict.fromkeys(("ddi", "dermnet", "fitzpatrick", "pad"), "clinical"),
    **{"bcn20000": "dermoscopy", "ham10000": "dermoscopy", "patch16": "pathology"},
}
GRADES = {"benign": "benign", "malignant": "malignant", "non-malignant": None, "non-neoplastic": None}
OPEN = Facts(kind="open")
LONGEST_LIST = 1_000  # characters; a longer field is no list of one class, and need not be parsed


def rows(raw: Path, part: str) -> int:
    """The records of the part's files."""
    return sum((llava.count if part == "json" else count_csv)(path) for path in _files(raw, part))


def absent(raw: Path, part: str) -> list[str]:
    """What is said of the file and the columns that need not be there and are not, of all like files at once."""
    if part in ("vqa", "test", "json") and not any(raw.rglob(FILES["caption"])):
        return [f"no file {FILES['caption']}, so that modality, age and sex are unknown"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for path in _files(raw, part) if part == "classification" else ():
        if "set" not in (columns := tuple(header(path))):
            alike.setdefault(columns, []).append(path.name)
    return [
        f"{', '.join(names)}: no column set, so that every row is of the split test; found {', '.join(columns)}"
        for columns, names in alike.items()
    ]


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One conversation per record of the part's files; modality, age and sex come from caption.csv where it is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = "image,question,answer\\ndataset/bk1_2.png,Is it raised?,\\"Yes, it is a papule.\\"\\n"
    ...     _ = (Path(folder) / "VQA.csv").write_text(table)
    ...     row = next(convert(Path(folder), "vqa"))
    >>> row.id, row.images, row.group, row.split, row.facts.kind
    ('vqa-be15a0ec9961e5d8', ('dataset/bk1_2.png',), 'bk1_2', 'train', 'closed')
    >>> [(turn["role"], turn["content"][-1]["text"]) for turn in row.messages]
    [('user', 'Is it raised?'), ('assistant', 'Yes, it is a papule.')]
    """
    bare = _bare(raw)
    for path in _files(raw, part):
        for where, outcome in READERS[part](raw, path, bare, shard):
            yield Dropped(where, *outcome) if isinstance(outcome, tuple) else outcome


def _files(raw: Path, part: str) -> list[Path]:
    """The part's files, in the order of their paths; each has its content."""
    if "*" not in FILES[part]:
        return [find(raw, FILES[part], CARD)]
    paths = sorted(raw.rglob(FILES[part]))
    if not paths:
        raise PrepError(f"{raw}: no file {FILES[part]} in it or below it. How to get {CARD.title}: {CARD.obtain}")
    for path in paths:
        refuse_pointer(path)
    return paths


def _known(raw: Path) -> dict[str, Facts]:
    known: dict[str, Facts] = {}
    if any(raw.rglob(FILES["caption"])):
        for where, row in read_csv(find(raw, FILES["caption"], CARD), CAPTION_COLUMNS):
            known.setdefault(_panel(row["image"].strip()), _facts(where, row))
    return known


def _questions(raw: Path, path: Path, bare: Collection[str], shard: Shard | None) -> Iterator[tuple[str, Outcome]]:
    known = _known(raw)
    part = "test" if path.name == FILES["test"] else "vqa"
    split = "test" if part == "test" else "train"
    for where, row in read_csv(path, ("image", "question", "answer"), shard):
        image, question, answer = row["image"].strip(), row["question"].strip(), row["answer"].strip()
        if not (image and question and answer):
            gap = [name for name, value in (("image", image), ("question", question), ("answer", answer)) if not value]
            yield where, ("empty", f"no {' and no '.join(gap)}")
            continue
        facts = _answered(known.get(_panel(image), OPEN), answer)
        name = f"{part}-{digest(image, question)}"
        yield where, _example(bare, name, (image,), _asked(question, answer), split, facts)


def _captions(raw: Path, path: Path, bare: Collection[str], shard: Shard | None) -> Iterator[tuple[str, Outcome]]:
    for where, row in read_csv(path, CAPTION_COLUMNS, shard):
        facts = _facts(where, row)
        image = row["image"].strip()
        caption = row["cleaned_caption"].strip() or row["caption"].strip()
        if not image or not caption:
            yield where, ("empty", "no caption" if image else "no image")
            continue
        name = f"caption-{digest(image, caption)}"
        instruction = seeded("mm_skin", name).choice(INSTRUCTIONS)
        question = instruction.format(picture=PICTURES[facts.modality or "clinical"])
        described = replace(facts, kind="description")
        yield where, _example(bare, name, (image,), _asked(question, caption), "train", described)


def _conversations(raw: Path, path: Path, bare: Collection[str], shard: Shard | None) -> Iterator[tuple[str, Outcome]]:
    known = _known(raw)
    split = "test" if "test" in path.stem.casefold() else "train"
    for where, entry in llava.entries(path, shard):
        talk = llava.conversation(entry)
        if isinstance(talk, tuple):
            yield where, talk
            continue
        spoken = [words(message) for message in talk.messages]
        name = f"json-{split}-{digest(*talk.images, *spoken)}"
        facts = known.get(_panel(talk.images[0]), OPEN) if len(talk.images) == 1 else OPEN
        yield where, _example(bare, name, talk.images, talk.messages, split, _answered(facts, spoken[-1]))


def _classes(raw: Path, path: Path, bare: Collection[str], shard: Shard | None) -> Iterator[tuple[str, Outcome]]:
    """A question per image with the classes of its file as choices, in a seeded order."""
    columns = ("image", "categories")
    labels = {_label(row["categories"]) for _, row in read_csv(path, columns)}  # of all shards
    options = sorted(label for label in labels if isinstance(label, str))
    if len(options) == 1:
        raise PrepError(f"{path} categories: only the class {options[0]!r} occurs; expected two or more to choose from")
    kind = "malignancy" if all(option.casefold() in GRADES for option in options) else "diagnosis"
    modality = SET_MODALITIES.get(path.stem.split("_")[0].casefold())

    for where, row in read_csv(path, columns, shard):
        label = _label(row["categories"])
        image, subset = row["image"].strip(), row.get("set", "test")
        if subset.strip().casefold() not in SETS:
            raise PrepError(f"{where} set: found {subset!r}; expected {choices(sorted(SETS))}, in any case")
        if isinstance(label, tuple) or not image:
            yield where, label if isinstance(label, tuple) else ("empty", "no image")
            continue
        name = f"classification-{digest(path.stem, image)}"
        draw = seeded("mm_skin", name)
        question = draw.choice(QUESTIONS).format(options=choices(draw.sample(options, len(options))))
        plain = diagnosis(label)
        grade = malignancy(plain) if is_known(plain) else GRADES.get(plain)
        facts = Facts(modality=modality, diagnosis=plain if is_known(plain) else None, malignancy=grade, kind=kind)
        split = SETS[subset.strip().casefold()]
        yield where, _example(bare, name, (image,), _asked(question, label), split, facts)


def _label(categories: str) -> str | tuple[str, str]:
    """The one class of a field such as `['melanoma']`, or the rule and the detail of why there is none."""
    labels = _parsed(categories) if len(categories) <= LONGEST_LIST else None
    if not isinstance(labels, list) or not all(
        isinstance(label, str) and label.strip() and label.isprintable() for label in labels
    ):
        return "malformed", f"categories is {categories!r:.120}; expected a list of one class"
    if not labels:
        return "unknown-value", "categories is an empty list"
    if len(labels) > 1:
        return "several-classes", f"categories is {categories!r:.120}; one answer is expected"
    return " ".join(labels[0].split())


@lru_cache(maxsize=1024)
def _parsed(categories: str) -> object:
    try:
        return ast.literal_eval(categories.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _facts(where: str, row: dict[str, str]) -> Facts:
    """Modality, age in years and sex; age and sex are free text in the source, and unknown where they say no more."""
    modality = MODALITIES.get(row["modality"].strip().casefold())
    if modality is None:
        raise PrepError(
            f"{where} modality: found {row['modality']!r}; expected one of {', '.join(sorted(MODALITIES))}. "
            "Add it to MODALITIES in data_prep/mm_skin.py with what it means"
        )
    age, sex = person(row["age"], row["sex"])
    return Facts(modality=modality, age=age, sex=sex, kind="open")


def _answered(facts: Facts, answer: str) -> Facts:
    return _closed(facts) if YES_NO.match(answer) else facts


@lru_cache(maxsize=IMAGES)
def _closed(facts: Facts) -> Facts:
    return replace(facts, kind="closed")


def _asked(question: str, answer: str) -> tuple[Message, ...]:
    return text("user", question, images=1), text("assistant", answer)


def _example(
    bare: Collection[str], name: str, images: tuple[str, ...], messages: tuple[Message, ...], split: str, facts: Facts
) -> Example:
    placed = tuple([_placed(image, bare) for image in images]) if bare else images
    figures = (_figure(images[0]),) if len(images) == 1 else tuple(dict.fromkeys(map(_figure, images)))
    group, identities = " + ".join(figures) or name, figures if len(figures) > 1 else ()
    return Example(name, "mm_skin", placed, messages, group, split, CARD.licence, facts, identities=identities)


def _bare(raw: Path) -> Collection[str]:
    """What lies in RAW itself and not in its folder dataset: many copies lack the folder that the CSV files name."""
    folder = raw / "dataset"
    within = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {path.name for path in raw.iterdir()} - within


def _placed(image: str, bare: Collection[str]) -> str:
    """The path under which the figure lies in RAW."""
    name = image.removeprefix("dataset/")
    return name if name.partition("/")[0] in bare else image


@lru_cache(maxsize=IMAGES)
def _panel(image: str) -> str:
    """What an image shows, under one name in all files: a panel, an image of the ISIC archive, a slide of Patch16."""
    name = re.sub(r"\.\w+$", "", image.removeprefix("dataset/"))
    archive = re.search(r"(?:^|/)(ISIC_\d{7})$", name)
    slide = re.fullmatch(r"Patch16/.+_ws_(\d+)_\d+", name)
    return archive[1] if archive else f"Patch16/ws_{slide[1]}" if slide else name


@lru_cache(maxsize=IMAGES)
def _figure(image: str) -> str:
    """The figure of which the image is a panel, or what else it shows."""
    panel = PANEL.fullmatch(_panel(image))
    return panel[1] if panel else _panel(image)


Reader = Callable[[Path, Path, Collection[str], Shard | None], Iterator[tuple[str, Outcome]]]
READERS: dict[str, Reader] = {"vqa": _questions, "test": _questions, "caption": _captions}
READERS |= {"json": _conversations, "classification": _classes}
