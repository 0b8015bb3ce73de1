"""Any file in LLaVA's format: a JSON list, or JSON lines, of conversations between `human` and `gpt`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import Card, PrepError, refuse_pointer
from skinvl.example import Dropped, Example, Message, Part, Role

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
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
        return int(_parquet(path).metadata.num_rows)
    if _is_list(path):
        return len(_list(path))
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def convert(raw: Path, part: str) -> Iterator[Example | Dropped]:
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
    path = _file(raw)
    for number, (where, entry) in enumerate(entries(path), start=1):
        talk = conversation(entry)
        if isinstance(talk, tuple):
            yield Dropped(where, *talk)
            continue
        yield Example(
            id=str(number),  # ids repeat in many files, so a row's number names it
            source="llava",
            images=talk.images,
            messages=talk.messages,
            group=" + ".join(talk.images) or talk.id or str(number),
            split="train",
            licence=CARD.licence,
        )


def _file(raw: Path) -> Path:
    found = [raw] if raw.is_file() else sorted([*raw.rglob("*.json"), *raw.rglob("*.jsonl")])
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(raw)) for path in found[:5]) or "none"
        raise PrepError(
            f"{raw}: found {len(found)} .json or .jsonl files ({listed}); expected exactly one: name the file as RAW"
        )
    refuse_pointer(found[0])
    return found[0]


def _is_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return next((line for line in file if line.strip()), "").lstrip().startswith("[")


def _list(path: Path) -> list[Any]:
    try:
        found: list[Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise PrepError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); repair it there"
        ) from error
    except UnicodeDecodeError as error:
        raise PrepError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error
    except (RecursionError, ValueError) as error:
        raise PrepError(f"{path}: JSON that cannot be read ({error}); expected a flat list of entries") from error
    return found


def entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(`file:line` in JSON lines, else `file[index]`; entry) of each entry of a JSON list, JSON lines or Parquet."""
    if path.suffix == ".parquet":
        batches = _parquet(path).iter_batches()
        records = (record for batch in batches for record in batch.to_pylist())
        yield from ((f"{path.name}[{index}]", record) for index, record in enumerate(records))
        return
    if _is_list(path):
        for index, entry in enumerate(_list(path)):
            yield f"{path.name}[{index}]", entry
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path.name}:{number}", json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise PrepError(
                    f"{path}:{number}: not JSON in UTF-8 ({error}); expected a JSON list, or one JSON object a line"
                ) from error


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise PrepError(f"{path}: not a Parquet file ({error}); download it again") from error


def conversation(entry: Any) -> Conversation | tuple[str, str]:
    """The entry's images and turns, or the rule and the detail of why it has none that could be trained on."""
    if not isinstance(entry, dict) or not isinstance(turns := entry.get("conversations"), list) or not turns:
        return "malformed", "no list of turns under 'conversations'"
    if LONE_SURROGATE.search(json.dumps(entry, ensure_ascii=False)):
        return "malformed", "half of a surrogate pair, which no text file can hold"
    image = entry.get("image")
    images = [image] if isinstance(image, str) else image or []
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
        return "malformed", f"image is {image!r}; expected a path or a list of paths"
    messages: list[Message] = []
    placeholders = 0
    for turn in turns:
        if not isinstance(turn, dict) or str(turn.get("from")) not in ROLES or not isinstance(turn.get("value"), str):
            return (
                "malformed",
                f"turn {len(messages) + 1} is {turn!r:.120}; expected from human, gpt or system, and value",
            )
        role, value = ROLES[turn["from"]], turn["value"]
        if not value.replace(PLACEHOLDER, "").strip():
            return "empty", f"turn {len(messages) + 1} has no words"
        if role != "user" and PLACEHOLDER in value:
            return "malformed", f"turn {len(messages) + 1} has an image placeholder in a turn of {turn['from']}"
        placeholders += value.count(PLACEHOLDER)
        messages.append({"role": role, "content": _content(value)})
    spoken = [message["role"] for message in messages]
    asked = spoken[1:] if spoken[0] == "system" else spoken
    if not asked or asked != ["user", "assistant"] * (len(asked) // 2):
        return "malformed", f"turns of {', '.join(turn['from'] for turn in turns)}; expected human and gpt by turns"
    if placeholders == 0:
        pictures: list[Part] = [{"type": "image", "text": None} for _ in images]
        messages[spoken.index("user")]["content"][:0] = pictures
    elif placeholders != len(images):
        return "image-count", f"{placeholders} placeholders and {len(images)} images"
    given = entry.get("id")
    return Conversation(tuple(images), tuple(messages), str(given) if given else None)


def _content(value: str) -> list[Part]:
    parts: list[Part] = []
    for position, piece in enumerate(value.split(PLACEHOLDER)):
        if position:
            parts.append({"type": "image", "text": None})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts
