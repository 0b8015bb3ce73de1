"""One conversation about one or more images: the record that every source is turned into.

A prepared source is a folder: `<split>.parquet` files of Examples, `images/`, `card.json` and `ledger.jsonl`.
Any library that reads the Hugging Face `messages` + `images` columns can use it as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

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
    diagnosis: str | None = None  # a canonical name of skinvl.labels where there is one
    malignancy: str | None = None  # benign, premalignant or malignant
    skin_type: str | None = None  # Fitzpatrick type, I to VI, or a pair such as I-II where no more is known
    age: float | None = None  # years
    sex: str | None = None  # female or male
    site: str | None = None  # body site
    kind: str | None = None  # kind of question: diagnosis, site, symptom, …; "open" or "closed" where no more is known


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation about zero or more images.

    `group` names what no split may cut (a patient, a lesion, a figure); it is unique within `source`.
    """

    id: str
    source: str
    images: tuple[str, ...]  # paths relative to the source's folder, with forward slashes
    messages: tuple[Message, ...]
    group: str
    split: str
    licence: str
    facts: Facts = Facts()


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that did not become a trained conversation: where it stood, the rule that says why, and what was found."""

    row: str
    rule: str
    detail: str


class ExampleError(ValueError):
    """An Example that breaks the contract of this module."""


FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "images": List(Image(decode=False)),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "group": Value("string"),
        "split": Value("string"),
        "licence": Value("string"),
        "facts": {field.name: Value("float64" if field.name == "age" else "string") for field in fields(Facts)},
    }
)


def text(role: Role, words: str, images: int = 0) -> Message:
    """A message of `images` image parts followed by `words`."""
    pictures: list[Part] = [{"type": "image", "text": None} for _ in range(images)]
    return {"role": role, "content": [*pictures, {"type": "text", "text": words}]}


def words(message: Message) -> str:
    """The text of a message, its parts joined as every chat template joins them: by nothing."""
    return "".join(part["text"] or "" for part in message["content"] if part["type"] == "text")


def inside(path: str) -> bool:
    """Whether a relative path, taken from a source's folder, stays in it."""
    pure = PurePosixPath(path)
    return bool(path) and "\\" not in path and not pure.is_absolute() and ".." not in pure.parts


def validate(example: Example) -> None:
    """Nothing, if the Example can be trained on.

    Raises:
        ExampleError: naming the Example, what was found and what was expected.
    """

    def fail(found: str, expected: str) -> None:
        raise ExampleError(f"Example {example.id!r} of {example.source!r}: {found}; expected {expected}")

    for name in ("id", "source", "group", "split", "licence"):
        if not getattr(example, name):
            fail(f"an empty {name}", "a non-empty string")
    for path in example.images:
        if not inside(path):
            fail(f"image path {path!r}", "a relative path inside the source's folder")
    roles = [message["role"] for message in example.messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        fail(f"roles {roles}", "an optional system turn, then user and assistant in turn")
    pictures = 0
    for message in example.messages:
        for part in message["content"]:
            if set(part) != {"type", "text"} or part["type"] not in ("image", "text"):
                fail(f"content part {part!r}", "{'type': 'image' or 'text', 'text': …} and nothing else")
            if (part["text"] is None) != (part["type"] == "image"):
                fail(f"content part {part!r}", "text in a text part, None in an image part")
            if part["type"] == "image":
                pictures += 1
                if message["role"] != "user":
                    fail(f"an image in a {message['role']} turn", "images in user turns")
        if not words(message).strip():
            fail(f"a {message['role']} turn without words", "words in every turn")
    if pictures != len(example.images):
        fail(f"{pictures} image parts and {len(example.images)} images", "as many parts as images")


def write(folder: Path, split: str, examples: Iterable[Example]) -> int:
    """How many Examples went into `folder/<split>.parquet`, which appears whole or not at all.

    Raises:
        ExampleError: an Example breaks the contract; nothing is written then.
    """
    schema = FEATURES.arrow_schema
    partial = folder / f".{split}.parquet.partial"
    count = 0
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for batch in _batches(examples, 2_000):
                for example in batch:
                    validate(example)
                writer.write_table(pa.Table.from_pylist([_row(example) for example in batch], schema=schema))
                count += len(batch)
        partial.replace(folder / f"{split}.parquet")
    finally:
        partial.unlink(missing_ok=True)
    return count


def read(folder: Path, split: str) -> list[Example]:
    """The Examples of one split of a prepared source, in the order they were written.

    Raises:
        FileNotFoundError: no such source or split; the message says which there are and how to prepare it.
        ExampleError: the file is not one that `write` made.
    """
    path = folder / f"{split}.parquet"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in folder.glob("*.parquet")))
        have = f"it has the splits: {found}" if found else "the folder holds no prepared source"
        raise FileNotFoundError(
            f"{path}: no such split; {have}. Prepare it with: skinvl prep DATASET RAW {folder} (skinvl prep --list)"
        )
    try:
        rows = pq.read_table(path).to_pylist()
        return [_example(row) for row in rows]
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ExampleError(
            f"{path}: not a file of Examples ({type(error).__name__}: {error}); "
            "prepare the source again with skinvl prep"
        ) from error


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """How many rows went into the JSON-lines file; dataclasses become objects."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            plain = row if isinstance(row, dict) else asdict(row)
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
            count += 1
    return count


def _row(example: Example) -> dict[str, Any]:
    return {**asdict(example), "images": [{"bytes": None, "path": path} for path in example.images]}


def _example(row: dict[str, Any]) -> Example:
    return Example(
        **{
            **row,
            "images": tuple(image["path"] for image in row["images"]),
            "messages": tuple(row["messages"]),
            "facts": Facts(**row["facts"]),
        }
    )


def _batches(items: Iterable[Example], size: int) -> Iterator[list[Example]]:
    batch: list[Example] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
