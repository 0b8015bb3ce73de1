"""Any file in LLaVA's format: a JSON list, or JSON lines, of conversations between `human` and `gpt`."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import Card, PrepError, Shard, is_text, refuse_pointer
from skinvl.data.example import Dropped, Example, Message, Part, Role

CARD = Card(
    title="a file in LLaVA format",
    address="https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md",
    licence="unknown",
    terms="The format says nothing about rights: those of your file and its images hold.",
    citation="of the data itself; the format: Liu et al., Visual Instruction Tuning, 2023",
    obtain="RAW is a .json or .jsonl file, or a folder with exactly one in it or below it; image paths in the file "
    "count from RAW (from the file's folder where RAW is the file).",
    splits=("train",),
    parts=("all",),
)

ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}
PLACEHOLDER = "<image>"
CHUNK = 1 << 20  # bytes of a list that are read at once, at least
NEAR = 32  # characters; nearer to the end of what was read an error, or a number, may be one that is only cut there
BATCH = 128  # records of a Parquet file that are in memory at once: they may hold images
DECODER = json.JSONDecoder()
FILLED = re.compile(r"[^ \t\n\r]")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One entry: its images and turns, with image parts where the placeholders stood, and its `id` (may repeat)."""

    images: tuple[str, ...]
    messages: tuple[Message, ...]
    id: str | None


def rows(raw: Path, part: str) -> int:
    """The entries of the list, or the lines that are not blank."""
    return count(_file(raw))


def count(path: Path) -> int:
    """How many entries a JSON list, lines that are not blank a JSON-lines file, or records a Parquet file holds."""
    if path.suffix == ".parquet":
        with _parquet(path) as file:
            return int(file.metadata.num_rows)
    if _is_list(path):
        return sum(1 for _ in _elements(path))
    with path.open("rb") as file:
        return sum(1 for line in file if not line.isspace())


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One conversation per entry, with its images where the placeholders stand.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     turns = [{"from": "human", "value": "Look: <image>\\nIs it red?"}, {"from": "gpt", "value": "Yes."}]
    ...     _ = (Path(folder) / "a.json").write_text(json.dumps([{"image": "b/c.png", "conversations": turns}]))
    ...     row = next(convert(Path(folder), "all"))
    >>> row.id, row.images, row.group
    ('1', ('b/c.png',), 'b/c.png')
    >>> [part["text"] for part in row.messages[0]["content"]]
    ['Look:', None, 'Is it red?']
    """
    shard = shard or Shard()
    for where, entry in entries(_file(raw), shard):
        talk = conversation(entry)
        if isinstance(talk, tuple):
            yield Dropped(where, *talk)
            continue
        number = str(shard.record + 1)  # ids repeat in many files, so a row's number names it
        group = " + ".join(talk.images) or talk.id or number
        yield Example(number, "llava", talk.images, talk.messages, group, "train", CARD.licence)


def _file(raw: Path) -> Path:
    paths = [raw] if raw.is_file() else sorted([*raw.rglob("*.json"), *raw.rglob("*.jsonl")])
    if len(paths) != 1:
        listed = ", ".join(str(path.relative_to(raw)) for path in paths[:5]) or "none"
        raise PrepError(
            f"{raw}: found {len(paths)} .json or .jsonl files ({listed}); expected exactly one: name the file as RAW"
        )
    refuse_pointer(paths[0])
    return paths[0]


def entries(path: Path, shard: Shard | None = None) -> Iterator[tuple[str, Any]]:
    """(`file:line` in JSON lines, else `file[index]`; entry) of the shard's entries of a JSON list, lines or Parquet.

    A list is decoded entry by entry; JSON lines and groups of Parquet rows of other shards are not decoded at all.

    Raises:
        PrepError: the file is damaged; the message says where.
    """
    shard = shard or Shard()
    before = shard.record + 1
    if path.suffix == ".parquet":
        for record in _records(path, shard):
            yield f"{path.name}[{shard.record - before}]", record
    elif _is_list(path):
        for element in _elements(path):
            if shard.takes():
                yield f"{path.name}[{shard.record - before}]", element
    else:
        with path.open("rb") as file:
            lines = (line for line in enumerate(file, start=1) if not line[1].isspace())
            for number, line in lines:
                if shard.takes():
                    yield f"{path.name}:{number}", _decoded(path, number, line)
                else:
                    shard.record += sum(1 for _ in islice(lines, shard.left()))


def _decoded(path: Path, number: int, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass  # Python's decoder also takes a BOM, NaN and half a surrogate pair, and its errors are ours elsewhere
    try:
        return DECODER.decode(line.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        raise PrepError(
            f"{path}:{number}: not JSON in UTF-8 ({error}); expected a JSON list, or one JSON object a line"
        ) from error


def _parquet(path: Path) -> pq.ParquetFile:
    """The open file.

    Raises:
        PrepError: it is no Parquet file.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise PrepError(f"{path}: not a Parquet file ({error}); download it again") from error


def _records(path: Path, shard: Shard) -> Iterator[Any]:
    with _parquet(path) as file:
        try:
            for group in range(file.num_row_groups):
                if _passes(shard, file.metadata.row_group(group).num_rows):
                    continue
                for batch in file.iter_batches(BATCH, row_groups=[group]):
                    if not _passes(shard, batch.num_rows):
                        yield from (record for record in batch.to_pylist() if shard.takes())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PrepError(f"{path}: damaged after record {shard.record + 1} ({error}); download it again") from error


def _passes(shard: Shard, records: int) -> bool:
    """Whether the shard takes none of the next records, which then count as read."""
    ahead = replace(shard)
    if any(ahead.takes() for _ in range(records)):
        return False
    shard.record = ahead.record
    return True


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        for data in iter(lambda: file.read(1 << 12), b""):
            if words := data.removeprefix(codecs.BOM_UTF8).lstrip():
                return words.startswith(b"[")
    return False


def _elements(path: Path) -> Iterator[Any]:
    """The elements of a JSON list, of which only about one chunk is in memory at a time."""
    with path.open("rb") as file:
        window = _Window(path, file)
        start = window.skip(window.skip(0) + 1)
        more = window.text[start : start + 1] != "]"
        while more:
            element, end = window.decode(start)
            yield element
            start = window.skip(end)
            if (mark := window.text[start : start + 1]) not in (",", "]"):
                raise window.fault("Expecting ',' delimiter", start)
            if more := mark == ",":
                start = window.skip(start + 1)
        if (end := window.skip(start + 1)) < len(window.text):
            raise window.fault("Extra data", end)


class _Window:
    """The part of a JSON file that is read and not yet done with; positions in it count from 0 after each reading."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.text = ""
        self.ended = False
        self._lines = self._column = 0  # line breaks before the text, and characters since the last of them
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()

    def skip(self, start: int) -> int:
        """The position of the next character that is not blank, or the end of the text where the file ends."""
        while True:
            match = FILLED.search(self.text, start)
            if match or self.ended:
                return match.start() if match else len(self.text)
            start = self._read(len(self.text))

    def decode(self, start: int) -> tuple[Any, int]:
        """The value that starts there, and where it ends."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, start)
                if end <= len(self.text) - NEAR or self.ended:
                    return value, end
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - NEAR or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise self.fault(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:  # nested too deep, a number of too many digits
                raise self.fault(str(error), start) from error
            start = self._read(start)

    def fault(self, message: str, position: int) -> PrepError:
        """The error that names the place."""
        lines, last = self.text.count("\n", 0, position), self.text.rfind("\n", 0, position)
        column = position - last if lines else self._column + position + 1
        return PrepError(
            f"{self.path}:{self._lines + lines + 1}: not JSON ({message}, column {column}); repair it there"
        )

    def _read(self, start: int) -> int:
        """The new position of `start`, before which the text is dropped; after it the text at least doubles."""
        gone, self.text = self.text[:start], self.text[start:]
        self._lines += gone.count("\n")
        self._column = start - gone.rindex("\n") - 1 if "\n" in gone else self._column + start
        data = self.file.read(max(CHUNK, len(self.text)))
        self.ended = not data
        try:
            self.text += self._utf8.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._lines + self.text.count("\n") + error.object.count(b"\n", 0, error.start) + 1
            raise PrepError(f"{self.path}:{line}: not UTF-8 ({error.reason}); save it as UTF-8") from error
        return 0


def conversation(entry: Any) -> Conversation | tuple[str, str]:
    """The entry's images and turns, or the rule and the detail of why it has none that could be trained on."""
    if not isinstance(entry, dict) or not isinstance(turns := entry.get("conversations"), list) or not turns:
        return "malformed", "no list of turns under 'conversations'"

    # The images, none, one or a list of them; an empty path is none.
    image, identity = entry.get("image"), entry.get("id")
    images = [image] if isinstance(image, str) else image or []
    if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        return "malformed", f"image is {image!r:.120}; expected a path or a list of paths"
    images = [path for path in images if path and not path.isspace()]
    name = str(identity) if identity else None
    texts: list[str] = [*images, name or ""]

    # The turns, with an image part for each placeholder.
    messages: list[Message] = []
    spoken: list[str] = []
    placeholders = 0
    for turn in turns:
        speaker, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(speaker, str) or not isinstance(value, str) or (role := ROLES.get(speaker)) is None:
            return "malformed", f"{_turn(spoken)} is {turn!r:.120}; expected from human, gpt or system, and value"
        content: list[Part]
        if PLACEHOLDER in value:
            content = _content(value)
            marks = sum(part["text"] is None for part in content)
            placeholders += marks
            if len(content) == marks:
                return "empty", f"{_turn(spoken)} has no words"
            if marks and role != "user":
                return "malformed", f"{_turn(spoken)} has an image placeholder in a turn of {speaker}"
        elif words := value.strip():  # as most turns
            content = [{"type": "text", "text": words}]
        else:
            return "empty", f"{_turn(spoken)} has no words"
        texts.append(value)
        spoken.append(role)
        messages.append({"role": role, "content": content})
    if not (all(map(str.isascii, texts)) or is_text("".join(texts))):
        return "malformed", "half of a surrogate pair, which no text file can hold"

    # Whoever asks is answered, and images without a placeholder stand before the first question.
    asked = spoken[1:] if spoken[0] == "system" else spoken
    if not asked or asked != ["user", "assistant"] * (len(asked) // 2):
        return "malformed", f"turns of {', '.join(turn['from'] for turn in turns)}; expected human and gpt by turns"
    if not placeholders and images:
        pictures: list[Part] = [{"type": "image", "text": None} for _ in images]
        messages[spoken.index("user")]["content"][:0] = pictures
    elif placeholders != len(images):
        return "image-count", f"{placeholders} placeholders and {len(images)} images"
    return Conversation(tuple(images), tuple(messages), name)


def _turn(before: Sequence[str]) -> str:
    return f"turn {len(before) + 1}"


def _content(value: str) -> list[Part]:
    parts: list[Part] = []
    for position, piece in enumerate(value.split(PLACEHOLDER)):
        if position:
            parts.append({"type": "image", "text": None})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts
