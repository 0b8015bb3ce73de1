"""One conversation about one or more images: the record that every source is turned into.

A prepared source is a folder: `<split>.parquet` files of Examples, `images/`, `card.json` and `ledger.jsonl`.
Any library that reads the Hugging Face `messages` + `images` columns can use it as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, chain
from operator import attrgetter, itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from skinvl.recipe.files import whole_file

Role = Literal["system", "user", "assistant"]


class Part(TypedDict):
    """A piece of a message: `{"type": "image", "text": None}` or `{"type": "text", "text": "…"}`, no other key."""

    type: Literal["image", "text"]
    text: str | None


class Message(TypedDict):
    """One turn; `content` is always a list, so that every row has one Arrow type."""

    role: Role
    content: list[Part]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about an image and its question; None is unknown, never a sentence that says so."""

    modality: str | None = None  # clinical, dermoscopy, pathology, …
    diagnosis: str | None = None  # a canonical name of skinvl.data.labels where there is one
    malignancy: str | None = None  # benign, premalignant or malignant
    skin_type: str | None = None  # Fitzpatrick type, I to VI, or a pair such as I-II where no more is known
    age: float | None = None  # years
    sex: str | None = None  # female or male
    site: str | None = None  # body site
    kind: str | None = None  # kind of question: diagnosis, site, symptom, …; "open" or "closed" where no more is known
    institution: str | None = None  # where it was taken
    confirmed: str | None = None  # how the diagnosis was confirmed: histopathology, expert consensus, follow-up, …
    tone: str | None = None  # skin tone on a scale other than Fitzpatrick's, with its name: Monk 7, MILK 3
    views: tuple[str, ...] = ()  # of each image: clinical close-up, clinical overview, dermoscopic, histology, …
    present: tuple[str, ...] = ()  # concepts that an expert sees
    absent: tuple[str, ...] = ()  # concepts that an expert does not see; those in neither are not known


@dataclass(frozen=True, slots=True)
class Reference:
    """One of several right answers to the last question."""

    text: str
    weight: float = 1.0  # -1 to 1, how good it is; what is not above 0 is never trained on
    author: str | None = None  # who gave it
    completeness: float | None = None  # 0 to 1, how much of the question it answers, by its dataset


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation about zero or more images.

    `group` names what no split may cut (a patient, a lesion, a figure). It is local to the prepared source, as are the
    identities, unless its card names an archive. `skinvl prep` gives one group to rows that share any of their names.
    """

    id: str
    source: str  # its converter in a file, the prepared source once a recipe has read it
    images: tuple[str, ...]  # paths relative to the source's folder, with forward slashes
    messages: tuple[Message, ...]
    group: str
    split: str
    licence: str
    facts: Facts = Facts()
    tags: tuple[str, ...] = ()  # rules of `skinvl prep` that it breaks and was kept in spite of
    identities: tuple[str, ...] = ()  # all that it says of itself: patient, lesion, case, …; empty is the group alone
    references: tuple[Reference, ...] = ()  # the last answer, then others as right; empty where it is the only one
    options: tuple[str, ...] = ()  # of a last question with a set of right options, as it lists them
    right: tuple[int, ...] = ()  # the right ones' numbers in `options`, from 0, ascending
    schema: str | None = None  # JSON schema of the last answer, where that is JSON
    thoughts: tuple[str | None, ...] = ()  # what goes before each answer, None for nothing; empty where none has one


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that did not become a trained conversation: where it stood, the rule that says why, and what was found."""

    row: str
    rule: str
    detail: str


class ExampleError(ValueError):
    """An Example that breaks the contract of this module."""


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """The type as the datasets library writes it down; loading that library for it takes longer than all else here."""
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if kind == _IMAGE:
        return {"decode": False, "_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": "float64" if pa.types.is_floating(kind) else str(kind), "_type": "Value"}


_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
LISTS = ("views", "present", "absent")  # the facts that are lists
SCALARS = tuple(fact.name for fact in fields(Facts) if fact.name not in LISTS)
_FACTS = [
    pa.field(
        fact.name,
        pa.float64() if fact.name == "age" else pa.list_(pa.string()) if fact.name in LISTS else pa.string(),
    )
    for fact in fields(Facts)
]
_COLUMNS = {
    "id": pa.string(),
    "source": pa.string(),
    "images": pa.list_(_IMAGE),
    "messages": pa.list_(
        pa.struct({"role": pa.string(), "content": pa.list_(pa.struct({"type": pa.string(), "text": pa.string()}))})
    ),
    "group": pa.string(),
    "split": pa.string(),
    "licence": pa.string(),
    "facts": pa.struct(_FACTS),
    "tags": pa.list_(pa.string()),
    "identities": pa.list_(pa.string()),
    "references": pa.list_(
        pa.struct({"text": pa.string(), "weight": pa.float64(), "author": pa.string(), "completeness": pa.float64()})
    ),
    "options": pa.list_(pa.string()),
    "right": pa.list_(pa.int64()),
    "schema": pa.string(),
    "thoughts": pa.list_(pa.string()),
}
# Columns that a source prepared before they came to be does not have.
_LATER = ("references", "options", "right", "schema", "thoughts")
_INFO = {"info": {"features": {name: _feature(kind) for name, kind in _COLUMNS.items()}}}
# The columns of a split, with what tells the datasets library that `images` holds images.
SCHEMA = pa.schema(_COLUMNS, metadata={"huggingface": json.dumps(_INFO)})
_PART = {"type", "text"}


def text(role: Role, words: str, images: int = 0) -> Message:
    """A message of `images` image parts followed by `words`."""
    pictures: list[Part] = [{"type": "image", "text": None} for _ in range(images)]
    return {"role": role, "content": [*pictures, {"type": "text", "text": words}]}


def words(message: Message) -> str:
    """The text of a message, its parts joined as every chat template joins them: by nothing."""
    content = message["content"]
    if len(content) == 1:  # as most; a join takes three times as long
        return content[0]["text"] or ""
    return "".join([part["text"] or "" for part in content])


def inside(path: str) -> bool:
    """Whether a relative path, taken from a source's folder, stays in it."""
    pure = PurePosixPath(path)
    return bool(path) and "\\" not in path and not pure.is_absolute() and ".." not in pure.parts


def validate(example: Example) -> None:
    """Checks that the Example can be trained on.

    Raises:
        ExampleError: naming the Example, what was found and what was expected.
    """

    def fail(fault: str, expected: str) -> None:
        raise ExampleError(f"Example {example.id!r} of {example.source!r}: {fault}; expected {expected}")

    # Its names, the paths of its images, and the order of its turns.
    if not (example.id and example.source and example.group and example.split and example.licence):
        empty = next(name for name in ("id", "source", "group", "split", "licence") if not getattr(example, name))
        fail(f"an empty {empty}", "a non-empty string")
    if "" in example.identities:
        fail("an empty identity", "non-empty strings")
    for path in example.images:
        if not inside(path):
            fail(f"image path {path!r}", "a relative path inside the source's folder")
    roles = tuple(message["role"] for message in example.messages)
    turns = roles[1:] if roles[:1] == ("system",) else roles
    if not turns or turns != ("user", "assistant") * (len(turns) // 2):
        fail(f"roles {list(roles)}", "an optional system turn, then user and assistant in turn")

    # The content of each turn: only the two kinds of part, images in user turns, words in every turn.
    pictures = 0
    for message in example.messages:
        spoken = False
        for part in message["content"]:
            if part.keys() != _PART or part["type"] not in ("image", "text"):
                fail(f"content part {part!r}", "{'type': 'image' or 'text', 'text': …} and nothing else")
            text = part["text"]
            if (text is None) != (part["type"] == "image"):
                fail(f"content part {part!r}", "text in a text part, None in an image part")
            if text is None:
                pictures += 1
                if message["role"] != "user":
                    fail(f"an image in a {message['role']} turn", "images in user turns")
            elif text and not text.isspace():
                spoken = True
        if not spoken:
            fail(f"a {message['role']} turn without words", "words in every turn")
    if pictures != len(example.images):
        fail(f"{pictures} image parts and {len(example.images)} images", "as many parts as images")

    # What few Examples have: views, concepts, several answers, options, a schema, thoughts.
    facts = example.facts
    if facts.views and len(facts.views) != len(example.images):
        fail(f"{len(facts.views)} views and {len(example.images)} images", "a view for each image, or none")
    if facts.present and facts.absent and (both := {*facts.present} & {*facts.absent}):
        fail(f"{min(both)!r} among the concepts present and absent", "each in one of them")
    if example.references or example.options or example.right or example.schema is not None or example.thoughts:
        _validate_answers(example, fail)


def _validate_answers(example: Example, fail: Callable[[str, str], None]) -> None:
    """Checks what an Example says of its answers beside their words."""
    answers = [words(message) for message in example.messages if message["role"] == "assistant"]
    if example.references:
        first, *others = example.references
        if not others or first.text != answers[-1] or first.weight <= 0:
            fail(f"references that begin with {first.text[:40]!r}", "the last answer, weighted above 0, then others")
        for reference in example.references:
            if not reference.text.strip() or not -1 <= reference.weight <= 1:
                fail(f"the reference {reference.text[:40]!r} of weight {reference.weight}", "words, and -1 to 1")
    if example.options or example.right:
        numbers = range(len(example.options))
        if len({*example.options}) < max(2, len(example.options)):
            fail(f"options {list(example.options)}", "at least two, each once")
        if not example.right or list(example.right) != sorted({*example.right} & {*numbers}):
            fail(
                f"right options {list(example.right)}", f"numbers from 0 to {len(numbers) - 1}, ascending, at least one"
            )
    if example.schema is not None and not _is_json_object(example.schema):
        fail(f"the schema {example.schema[:40]!r}", "a JSON schema, which is an object")
    if example.thoughts:
        if len(example.thoughts) != len(answers) or not any(example.thoughts):
            fail(f"{len(example.thoughts)} thoughts for {len(answers)} answers", "one or None for each, or none at all")
        if any(thought is not None and not thought.strip() for thought in example.thoughts):
            fail("a thought without words", "words, or None")


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def write(folder: Path, split: str, examples: Iterable[Example]) -> int:
    """How many Examples went into `folder/<split>.parquet`, which appears whole or not at all.

    Raises:
        ExampleError: an Example breaks the contract; nothing is written then.
    """
    count = 0
    with whole_file(folder / f"{split}.parquet") as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        for batch in _batches(examples, 2_000):
            for example in batch:
                validate(example)
            writer.write_table(table(batch))
            count += len(batch)
    return count


def read(folder: Path, split: str) -> list[Example]:
    """The Examples of one split of a prepared source, in the order they were written.

    Raises:
        FileNotFoundError: no such source or split; the message says which there are and how to prepare it.
        ExampleError: the file is not one that `write` made.
    """
    with split_file(folder, split) as path:
        return examples(pq.read_table(path))


def take(folder: Path, split: str, numbers: Sequence[int]) -> list[Example]:
    """The Examples of these row numbers of a split, ascending, of which only the row groups with one are read.

    Raises:
        FileNotFoundError, ExampleError: as `read`.
    """
    taken = []
    with split_file(folder, split) as path, pq.ParquetFile(path) as file:
        start, wanted = 0, sorted(numbers)
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if inside := [number - start for number in wanted if start <= number < end]:
                taken += examples(file.read_row_group(group).take(inside))
            start = end
    return taken


@contextmanager
def split_file(folder: Path, split: str) -> Iterator[Path]:
    """The file of a split, and one message of what is wrong with it where reading it fails.

    Raises:
        FileNotFoundError, ExampleError: as `read`.
    """
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such split; {have(folder)}")
    try:
        yield path
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ExampleError(
            f"{path}: not a file of Examples ({type(error).__name__}: {error}); "
            "prepare the source again with skinvl prep"
        ) from error


SPLITS = ("train", "validation", "test")  # from training outwards


def split_place(split: str) -> tuple[int, str]:
    """What splits sort by: those of SPLITS first, others by name."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def splits(folder: Path) -> list[str]:
    """The splits of a prepared source, by name; none where the folder holds no source."""
    return sorted(path.stem for path in folder.glob("*.parquet") if path.stem != "images")


def have(folder: Path) -> str:
    """What a message about a split that is not there says of the source, and how to prepare it."""
    prepare = f"skinvl prep DATASET RAW {folder} (skinvl prep --list)"
    if names := ", ".join(splits(folder)):
        return f"it has the splits: {names}. Take one of them, or prepare it anew with: {prepare}"
    return f"the folder holds no prepared source. Prepare it with: {prepare}"


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """How many rows went into the JSON-lines file; dataclasses become objects."""
    count = 0
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            plain = row if isinstance(row, dict) else asdict(row)
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
            count += 1
    return count


def table(rows: Sequence[Example]) -> pa.Table:
    """The Examples as an Arrow table of SCHEMA, built by columns: much faster than row by row."""
    # The innermost columns first: one value per part of a message, then per message, then per row.
    messages = [message for row in rows for message in row.messages]
    parts = [part for message in messages for part in message["content"]]
    facts = [row.facts for row in rows]
    paths = _texts(path for row in rows for path in row.images)
    pictures = _struct(bytes=pa.nulls(len(paths), pa.binary()), path=paths)
    pieces = _struct(type=_texts(map(itemgetter("type"), parts)), text=_texts(map(itemgetter("text"), parts)))
    contents = _list((len(message["content"]) for message in messages), pieces)
    turns = _struct(role=_texts(message["role"] for message in messages), content=contents)

    columns = {
        **{name: _texts(map(attrgetter(name), rows)) for name in ("id", "source", "group", "split", "licence")},
        "images": _list((len(row.images) for row in rows), pictures),
        "messages": _list((len(row.messages) for row in rows), turns),
        "facts": _facts(facts),
        "tags": _words([row.tags for row in rows]),
        "identities": _words([row.identities for row in rows]),
        **_about_answers(rows),
    }
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def examples(rows: pa.Table) -> list[Example]:
    """The Examples of a table that `table` made; columns that are no field of an Example are left out.

    Fields that came later than the table have their defaults.

    Raises:
        KeyError, TypeError: the table has not the columns of SCHEMA.
    """
    names = [name for name in SCHEMA.names if name not in _LATER or name in rows.column_names]
    return [
        Example(
            **{
                **row,
                "images": tuple(image["path"] for image in row["images"]),
                "messages": tuple(row["messages"]),
                "facts": facts_of(row["facts"]),
                "tags": tuple(row["tags"]),
                "identities": tuple(row["identities"]),
                **answers_of(row),
            }
        )
        for row in rows.select(names).to_pylist()
    ]


def facts_of(plain: Mapping[str, Any]) -> Facts:
    """The Facts of an object as a file has them; what it does not say is unknown."""
    lists = {name: tuple(plain[name]) for name in LISTS if plain.get(name)}
    return Facts(**{**plain, **dict.fromkeys(LISTS, ()), **lists})


def answers_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields about an Example's answers of an object as a file has them, those that it has."""
    fields = {name: tuple(plain[name]) for name in ("options", "right", "thoughts") if name in plain}
    if "references" in plain:
        fields["references"] = tuple(Reference(**reference) for reference in plain["references"])
    return fields


def _texts(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def _about_answers(rows: Sequence[Example]) -> dict[str, pa.Array]:
    """The columns of _LATER; where no row has any of them they are made faster."""
    if not any(row.references or row.options or row.schema is not None or row.thoughts for row in rows):
        return {name: _nothing(SCHEMA.field(name).type, len(rows)) for name in _LATER}
    numbers = pa.array([number for row in rows for number in row.right], pa.int64())
    return {
        "references": _references([row.references for row in rows]),
        "options": _words([row.options for row in rows]),
        "right": _list((len(row.right) for row in rows), numbers),
        "schema": _texts(row.schema for row in rows),
        "thoughts": _words([row.thoughts for row in rows]),
    }


def _nothing(kind: pa.DataType, count: int) -> pa.Array:
    """So many empty lists, of a type of lists, or nulls."""
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count + 1), pa.array([], kind.value_type))
    return pa.nulls(count, kind)


def _references(rows: Sequence[tuple[Reference, ...]]) -> pa.ListArray:
    references = list(chain.from_iterable(rows))
    columns = {
        field.name: pa.array([getattr(reference, field.name) for reference in references], field.type)
        for field in SCHEMA.field("references").type.value_type
    }
    return _list(map(len, rows), _struct(**columns))


def _words(rows: Sequence[tuple[str | None, ...]]) -> pa.ListArray:
    """The column of lists of texts; of none at all it is made faster."""
    return _list(map(len, rows), _texts(chain.from_iterable(rows)) if any(rows) else pa.array([], pa.string()))


def _facts(rows: Sequence[Facts]) -> pa.StructArray:
    """The column of the facts; one object in all rows is repeated, which is much faster."""
    if rows and all(facts is rows[0] for facts in rows):  # as where nothing is known
        values = {column: getattr(rows[0], column.name) for column in _FACTS}
        return _struct(
            **{
                column.name: pa.repeat(pa.scalar(value, column.type), len(rows))
                if value or column.type == pa.float64()
                else _nothing(column.type, len(rows))
                for column, value in values.items()
            }
        )
    columns = {column.name: list(map(attrgetter(column.name), rows)) for column in _FACTS}
    return _struct(
        **{
            column.name: _words(columns[column.name])
            if column.name in LISTS
            else pa.array(columns[column.name], column.type)
            for column in _FACTS
        }
    )


def _struct(**columns: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))


def _list(lengths: Iterable[int], values: pa.Array) -> pa.ListArray:
    """The values cut into lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array([0, *accumulate(lengths)], pa.int32()), values)


def _batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    batch: list[Example] = []
    for example in examples:
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
