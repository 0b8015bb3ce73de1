"""Classification sets as released, each a CSV file: MM-Skin's, and those of the zero-shot protocols.

MM-Skin's have the columns image, categories and, where it is known, set. The others have image_path, label (the number
of the class in a list of its own, from 0), diag (its name) and, at times, split.
"""

from __future__ import annotations

import ast
import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from skinvl.data import labels
from skinvl.data.example import Example, Facts, inside, text
from skinvl.data.fingerprints import archive_id

LONGEST_LIST = 1_000  # characters; a longer field is no list of one class
LICENCE = "none stated (research only)"
NAMES = {"isic_test": "isic2019"}  # of files that do not say which benchmark they are
NO_CLASS = ("malformed", "no-class", "several-classes")  # how the detail of a row begins that names not one class
SETS = {"train": "train", "training": "train", "val": "validation", "validation": "validation", "test": "test"}


class BenchmarkError(ValueError):
    """A classification that cannot be made from its source."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row of a source and what it says of its class; `detail` is why it says nothing, or that its image is missing.

    A value is None where there is none.
    """

    example: Example
    value: str | None
    detail: str = ""


def benchmark(path: Path) -> str | None:
    """The benchmark that a file is, by its name; None where that says none."""
    return NAMES.get(path.stem.casefold()) or labels.benchmark(path.stem, begins=True)


def read(path: Path, root: Path, split: str, classes: Sequence[str] = ()) -> Iterator[Labelled]:
    """The rows of a split, in the order of the file; an image may lack its path's first folder below `root`.

    Args:
        classes: that the numbers of a zero-shot set stand for; else what its column diag calls them.

    Raises:
        BenchmarkError: no such file, no CSV, without the columns, or without the split; or numbers of other classes.
    """
    counts: Counter[str] = Counter()  # of the rows of each split
    benchmark_name = benchmark(path)
    seen: Counter[str] = Counter()  # of the rows that name an image
    rows = list(_table(path))
    numbered = _numbered(path, [row for _, row in rows], classes) if rows and "image_path" in rows[0][1] else {}
    for where, row in rows:
        zero_shot = "image_path" in row
        column = "split" if zero_shot else "set"
        name = row.get(column, "test").strip().casefold()
        if name not in SETS:
            raise BenchmarkError(f"{where} {column}: found {row[column]!r}; expected one of {', '.join(SETS)}")
        counts[SETS[name]] += 1
        if SETS[name] != split:
            continue

        # Who the row is, and whether its image lies where it says.
        image = row["image_path" if zero_shot else "image"].strip()
        seen[image] += 1
        identity = f"{image or where}{f'#{seen[image]}' if seen[image] > 1 else ''}"
        image_path, missing = _placed(image, root)

        # Its class, and how malignant that is by what the name is known to mean.
        value, detail = _class_of(row["label"], numbered) if zero_shot else _category(row["categories"])
        grade = labels.malignant([value]) if value else None
        plain = labels.diagnosis(value or "")
        known = labels.malignancy(plain) if labels.is_known(plain) else None
        facts = Facts(
            diagnosis=plain if known else None,
            malignancy=known or ("malignant" if grade == (True,) else "benign" if plain == "benign" else None),
        )

        messages = (text("user", "What is shown?", images=bool(image_path)), text("assistant", value or "unknown"))
        images = (image_path,) if image_path else ()
        group = _group(image, benchmark_name) or where
        example = Example(identity, path.stem, images, messages, group, split, LICENCE, facts)
        yield Labelled(example, value if image_path else None, detail or missing)

    if not counts[split]:
        has = ", ".join(sorted(counts)) or "no rows"
        raise BenchmarkError(
            f"{path}: no row of the split {split!r}; found {has} (without a column set all rows are test). "
            "For a probe or a validation split use a prepared source that has it"
        )


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(`file:line`, the fields by column) of the rows of a UTF-8 CSV file; a BOM may lead."""
    if not path.is_file():
        raise BenchmarkError(f"{path}: no such file; expected the CSV of a released classification, or a source's name")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines, [])
            wanted = ("image_path", "label") if "image_path" in header else ("image", "categories")
            if missing := [column for column in wanted if column not in header]:
                raise BenchmarkError(
                    f"{path}: no column {' and no '.join(missing)}; found {', '.join(header) or 'nothing'}; expected "
                    "image, categories and, where it is known, set; or image_path, label and diag"
                )
            for values in lines:
                if values and len(values) != len(header):
                    raise BenchmarkError(
                        f"{path}:{lines.line_num}: {len(values)} fields; expected {len(header)} as in the header"
                    )
                if values:
                    yield f"{path}:{lines.line_num}", dict(zip(header, values, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BenchmarkError(f"{path}:{lines.line_num + 1}: not UTF-8 CSV ({error})") from error


@lru_cache(maxsize=1024)
def _category(field: str) -> tuple[str | None, str]:
    """The one class of a field such as `['melanoma']`, or why there is none."""
    try:
        classes = ast.literal_eval(field.strip()) if len(field) <= LONGEST_LIST else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) and name.strip() for name in classes):
        return None, f"malformed: categories is {field!r:.120}; expected a list of one class"
    if len(classes) != 1:
        return None, f"{'several-classes' if classes else 'no-class'}: categories is {field!r:.120}"
    return " ".join(classes[0].split()), ""


def _numbered(path: Path, rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> dict[int, str]:
    """What the numbers of a zero-shot set stand for.

    Raises:
        BenchmarkError: nothing says it, or the list of classes and the column diag contradict one another.
    """
    called: dict[int, dict[str, None]] = {}  # what diag says beside each number
    for row in rows:
        if (number := _number(row["label"])) is not None:
            names = called.setdefault(number, {})
            names |= {name: None} if (name := " ".join(row.get("diag", "").split())) else {}

    # Without a list, each number has a name of its own beside it.
    own = {number: name for number, (name, *more) in called.items() if not more} if all(called.values()) else {}
    if not classes:
        if len({name.casefold() for name in own.values()}) < len(called):
            raise BenchmarkError(
                f"{path}: its column diag does not give each label a name of its own; give the classes in the order of "
                "the labels, by classes or class_file"
            )
        return dict(sorted(own.items()))

    # A list in another order would name every image wrongly.
    numbers = {name.casefold(): number for number, name in enumerate(classes)}
    for number, names in sorted(called.items()):
        if not 0 <= number < len(classes):
            raise BenchmarkError(
                f"{path}: label {number}, and a list of {len(classes)} classes, 0 to {len(classes) - 1}; give the "
                "classes of this set in the order of its labels"
            )
        for name in names:
            if numbers.get(name.casefold(), number) != number:
                raise BenchmarkError(
                    f"{path}: label {number} is {name!r} by its column diag and {classes[number]!r} by the list; give "
                    "the classes in the order of the labels"
                )
    return dict(enumerate(classes))


def _number(field: str) -> int | None:
    """The number of a class, which may be written as 3.0; None where the field is none."""
    try:
        value = float(field)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _class_of(field: str, numbered: Mapping[int, str]) -> tuple[str | None, str]:
    """The class of a number, or why there is none."""
    number = _number(field)
    return (
        (None, f"malformed: label is {field!r:.120}; expected the number of a class")
        if number is None
        else (numbered[number], "")
    )


def _placed(image: str, root: Path) -> tuple[str, str]:
    """The image's path in the folder, also without its first folder, and what is wrong with it, if anything."""
    if not inside(image):
        return "", f"unsafe-path: {image!r:.120} is no path below {root}"
    short = image.partition("/")[2]
    for path in (image, short):
        if path and (root / path).is_file():
            return path, ""
    return image, f"missing-image: neither {root / image} nor {root / short} is there"


def _group(image: str, benchmark: str | None) -> str:
    """What no interval may cut: the image, but for Patch16, whose tiles are named by their slide, the slide."""
    stem = PurePosixPath(image).stem
    slide = stem.rpartition("_")[0] if benchmark == "patch16" else ""
    return slide or archive_id(image) or stem
