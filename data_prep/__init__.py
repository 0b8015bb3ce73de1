"""Raw downloads → Examples: one module per dataset with `CARD`, `rows` and `convert`; the folder is the registry."""

from __future__ import annotations

import csv
import difflib
import filecmp
import hashlib
import importlib
import pkgutil
import random
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, TypeVar, cast

from skinvl.data.example import Dropped, Example
from skinvl.data.questions import Missing
from skinvl.data.questions import choices as choices

T = TypeVar("T")
BLOCK = 2_000  # records that are converted, and kept, together
# A field may be as long as it likes: the rule `oversized` judges it, where Python's limit would stop the whole table.
csv.field_size_limit(1 << 30)
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
NOBODY = {"", "unknown", "unk", "nan", "none", "null", "n/a", "na"}  # in place of an id: many rows have it in common
TEST_SHARE = 0.15  # of the groups of a dataset that has no split of its own
SEXES = {"female": "female", "f": "female", "woman": "female", "male": "male", "m": "male", "man": "male"}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class PrepError(ValueError):
    """Raw files, an output folder or a converter that cannot give a prepared source; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a person should know before they use a dataset; it travels with the prepared source."""

    title: str
    address: str
    licence: str  # an SPDX identifier where there is one; every Example carries it
    terms: str  # what the licence lets one do, in a sentence
    citation: str
    obtain: str  # how to get the raw files and how RAW has to look
    splits: tuple[str, ...]
    parts: tuple[str, ...]  # what of RAW can be converted; the first is the default
    released: Literal["none", "sound", "leaky"] = "none"  # the authors' own split; a leaky one is kept only on request
    alike: bool = True  # whether images that look the same show the same; false for drawings that share a style
    drawn: bool = False  # the converter makes RAW itself where it is absent
    # The converters whose prepared sources have its images; each is the name of the part that lies over it. The images
    # of such a part's Examples are the names of raw photos there, which prep finds in the source below.
    over: tuple[str, ...] = ()
    # Whose ids its Examples are known by: equal ones mean the same in all sources of that archive. Empty: they mean
    # something in one prepared source alone, as the paths and row numbers of any file do.
    archive: str = ""
    by_name: bool = False  # images are found by their names, at any depth of RAW, so that `--images` can narrow it
    published: str = "–"  # how many images it has by its authors; one line of a list, as is `use`
    use: Literal["any", "non-commercial", "research", "see its terms"] = "see its terms"  # the terms in a word


@dataclass(slots=True)
class Shard:
    """Which records of the raw files are converted: whole blocks, every `count`-th of them and none that is `done`.

    A record is what the raw files hold one after another: a row of a table, an entry of a list, a file of its own. All
    that records show lies in the folder `images`.
    """

    index: int = 0
    count: int = 1
    block: int = BLOCK  # records
    done: Container[int] = ()  # numbers of blocks
    images: str = ""  # relative to RAW; empty is all of RAW
    record: int = -1  # number of the record that was read last, over all files of the part

    def takes(self) -> bool:
        """Whether the next record is converted; asked once for every record, in the order of the files."""
        self.record += 1
        number = self.record // self.block
        return number % self.count == self.index and number not in self.done

    def left(self) -> int:
        """How many records of the last one's block follow it; all of them are converted, or none is."""
        return self.block - 1 - self.record % self.block


class Converter(Protocol):
    """What a module of this folder offers."""

    CARD: Card

    def rows(self, raw: Path, part: str) -> int:
        """How many conversations the raw files could give, counted without `convert`."""

    def convert(self, raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
        """One Example or Dropped per row of the records that the shard takes, in file order; None takes all.

        An Example says all that it is known by, patient, lesion, case, figure: prep gives one group to what shares any.
        All that comes of a record is given before the next is read. What is known of other records may not change it:
        `skinvl prep` finds what repeats. Image paths are relative to RAW.
        """


def names() -> list[str]:
    """The datasets that have a converter."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Converter:
    """The converter of a dataset.

    Raises:
        PrepError: no module of that name; the message says which there are.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise PrepError(
            f"dataset {name!r}: no such converter; {hint}skinvl has {', '.join(names())}. "
            f"To add one write data_prep/{name}.py (see CONTRIBUTING.md)"
        )
    return cast(Converter, importlib.import_module(f"{__name__}.{name}"))


def find(raw: Path, name: str, card: Card) -> Path:
    """The one file called `name` in RAW or below it, checked not to be a Git LFS pointer.

    Raises:
        PrepError: no such file, several, or a pointer.
    """
    if raw.is_file():
        raise PrepError(f"{raw}: a file; expected the folder that holds {name}")
    paths = sorted(raw.rglob(name))
    if not paths:
        raise PrepError(f"{raw}: no file {name} in it or below it. How to get {card.title}: {card.obtain}")
    if len(paths) > 1:
        listed = ", ".join(str(path.relative_to(raw)) for path in paths)
        raise PrepError(f"{raw}: {len(paths)} files are called {name} ({listed}); leave one or give a narrower RAW")
    refuse_pointer(paths[0])
    return paths[0]


def is_pointer(path: Path) -> bool:
    """Whether a file is the small text that Git leaves where Git LFS keeps the content elsewhere."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def refuse_pointer(path: Path) -> None:
    """Refuses a file without its content.

    Raises:
        PrepError: it is a Git LFS pointer.
    """
    if is_pointer(path):
        raise PrepError(
            f"{path}: a Git LFS pointer of {path.stat().st_size} bytes, not the data; "
            "run `git lfs pull` in its repository or download the file from where the authors publish it"
        )


def taken(records: Iterable[T], shard: Shard | None) -> Iterator[T]:
    """The records that the shard takes; None takes all."""
    return (record for record in records if shard is None or shard.takes())


def read_csv(path: Path, columns: Sequence[str], shard: Shard | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """(`file:line` where the row starts, its fields by column) of the shard's rows of a UTF-8 CSV file; a BOM may lead.

    Raises:
        PrepError: a column is missing, a row has another number of fields than the header, or the text is not CSV.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        last = 0
        header: list[str] = []
        try:
            header = next(lines, [])
            if missing := [column for column in columns if column not in header]:
                other = len(header) == 1 and next((sign for sign in (";", "\t") if sign in header[0]), None)
                hint = f"; its fields are parted by {other!r}: save it with commas" if other else ""
                raise PrepError(
                    f"{path}: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}; "
                    f"expected {', '.join(columns)}{hint}"
                )
            last = lines.line_num
            for values in lines:
                where, last = f"{path.name}:{last + 1}", lines.line_num
                if not values:  # a blank line is no row
                    continue
                if len(values) != len(header):
                    raise PrepError(
                        f"{path.parent / where}: {len(values)} fields; expected {len(header)} as in the header; "
                        "put fields that hold commas or line breaks in double quotes"
                    )
                if shard is None or shard.takes():
                    yield where, dict(zip(header, values, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise PrepError(f"{path}:{last + 1}: not UTF-8 CSV ({error}); save the file as UTF-8 CSV") from error


def header(path: Path) -> list[str]:
    """The columns of a CSV file."""
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        return next(csv.reader(file), [])


def without(path: Path, columns: Iterable[str], optional: Iterable[Sequence[str]]) -> list[str]:
    """What is said, in a sentence or none, of columns that need not be there and are not.

    Args:
        columns: those that are there.
        optional: names of which any one does.

    >>> without(Path("raw/a.csv"), ["image", "skin"], [("age",), ("tone", "skin"), ("site", "region")])
    ['a.csv: no column age, site or region, so that what they would say is unknown; found image, skin']
    """
    there = list(columns)
    missing = [" or ".join(names) for names in optional if not {*names} & {*there}]
    if not missing:
        return []
    return [
        f"{path.name}: no column {', '.join(missing)}, so that what they would say is unknown; found {', '.join(there)}"
    ]


def absent(name: str, raw: Path, part: str) -> list[str]:
    """What a converter says of what RAW need not hold and does not, a sentence each."""
    said = getattr(load(name), "absent", None)
    return cast(list[str], said(raw, part)) if said else []


def count_csv(path: Path) -> int:
    """How many data rows a CSV file holds, by its records alone."""
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        return sum(1 for values in csv.reader(file) if values) - 1


def seeded(*key: str) -> random.Random:
    """A generator that depends on the words of the key alone, the same on every machine and in every order."""
    return random.Random("\n".join(key))


def digest(*key: str) -> str:
    """16 hexadecimal digits that name the words of the key."""
    return hashlib.blake2b("\0".join(key).encode(), digest_size=8).hexdigest()


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold the text: it cannot hold half of a surrogate pair, as JSON escapes and file names may."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


class Photos:
    """The image files of RAW, or of one folder in it, which tables name without saying where they lie."""

    def __init__(self, raw: Path, shard: Shard | None) -> None:
        self.raw = raw
        self._by_stem: dict[str, list[str]] = {}
        for path in sorted((raw / shard.images if shard else raw).rglob("*")):
            # No table in UTF-8 can name a file whose name is not.
            if path.suffix.lower() in SUFFIXES and is_text(str(path)):
                self._by_stem.setdefault(path.stem, []).append(path.relative_to(raw).as_posix())

    def shown(self, *names: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The paths in RAW of the images of these names, and the tag of a row that shows them.

        One that is not there keeps its name, which prep then misses.

        Raises:
            PrepError: files of one name, or of one stem where none has the name, differ.
        """
        paths = tuple(map(self._path, names))
        ends_otherwise = any(Path(path).suffix != Path(name).suffix for path, name in zip(paths, names, strict=True))
        return paths, ("other-ending",) if ends_otherwise else ()

    def _path(self, name: str) -> str:
        """The path of the very name where it lies in RAW, else of what only ends otherwise, else the name."""
        *folders, last = PurePosixPath(name.replace("\\", "/")).parts or ("",)
        same_stem = self._by_stem.get(Path(last).stem, [])
        paths = [path for path in same_stem if path.rpartition("/")[2] == last] or same_stem
        if not paths:
            return name

        # The folders that the name gives tell some apart, the innermost first.
        if len(paths) > 1:
            matched = {path: _matched(folders, path.split("/")[:-1]) for path in paths}
            paths = [path for path in paths if matched[path] == max(matched.values())]
        for path in paths[1:]:
            if not filecmp.cmp(self.raw / paths[0], self.raw / path, shallow=False):
                first, second = (str(PurePosixPath(path).parent) for path in (paths[0], path))
                raise PrepError(
                    f"{self.raw}: {name} may be {paths[0]} or {path}, which differ; expected one file of a name. "
                    f"Say which folder holds the photos, --images {first} or --images {second}, or take one out of RAW"
                )
        return paths[0]


def _matched(folders: Sequence[str], others: Sequence[str]) -> tuple[bool, ...]:
    """Which of the folders of a path the other path has too, from the innermost outwards."""
    return tuple(depth <= len(others) and folder == others[-depth] for depth, folder in enumerate(reversed(folders), 1))


def lookup(
    where: str, row: Mapping[str, str], column: str, values: Mapping[str, str], unknown: Collection[str] = ("",)
) -> str | Missing:
    """What the column's value stands for, or Missing where it is one of `unknown`.

    Raises:
        PrepError: a value that is neither; the message names it.
    """
    field = row[column]
    if field in unknown:
        return Missing(f"{column} is {field!r}")
    if field not in values:
        expected = sorted({*values, *unknown}, key=lambda value: (not value, value))
        listed = choices([value or "nothing" for value in expected])
        raise PrepError(f"{where} {column}: found {field!r}; expected {listed}")
    return values[field]


def known_names(*names: str) -> tuple[str, ...]:
    """The names that say something, each once.

    >>> known_names("unknown", "IL_7", "", "ISIC_0000001", "IL_7")
    ('IL_7', 'ISIC_0000001')
    """
    stripped = (name.strip() for name in names)
    return tuple(dict.fromkeys(name for name in stripped if name.casefold() not in NOBODY))


def in_archive(archive: str, name: str) -> str:
    """A name that means the same wherever this archive's ids are known: for a source that has photos of several.

    It begins as `skinvl.data.source.namespace` begins the names of a source whose card names the archive.
    """
    return f"archive {archive}: {name}"


def known(value: str | Missing) -> str | None:
    """The value, None where it is missing."""
    return None if isinstance(value, Missing) else value


def years(where: str, row: Mapping[str, str], column: str, unknown: Collection[str] = ("",)) -> float | None:
    """An age, None where it is one of `unknown` or "nan".

    Raises:
        PrepError: not a number.
    """
    if row[column] in unknown or row[column].strip().casefold() == "nan":
        return None
    if not re.fullmatch(r"\s*\d{1,3}(\.\d*)?\s*", row[column]):
        raise PrepError(f"{where} {column}: found {row[column]!r:.80}; expected a number of years or nothing")
    return float(row[column])


def person(age: str, sex: str) -> tuple[float | None, str | None]:
    """Years, and `female` or `male`, of free text such as `45 years old` and `F`; None where it says anything else."""
    years = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)(?:[ -]?(?:years?|y)(?:[ -]old)?)?", age.strip(), re.IGNORECASE)
    return float(years[1]) if years else None, SEXES.get(sex.strip().casefold())


def split_of(group: str) -> str:
    """`test` for about 15 % of all groups, chosen by the group's name alone, else `train`."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return "test" if share < TEST_SHARE else "train"
