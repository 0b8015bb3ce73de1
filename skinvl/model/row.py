"""A row as a model reads it: the ids of its conversation, or of its prompt, and the images that they show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from skinvl.data.mixture import Row
from skinvl.data.pixels import upright
from skinvl.model.chat import UNTRAINED, Chat, Encoded
from skinvl.model.lengths import sizes

Shown = tuple[Path | None, ...]  # the images of a conversation; None is a blank one


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A conversation, or the beginning of one, as ids; and the images that it shows."""

    encoded: Encoded
    images: Shown


def encode_row(chat: Chat, row: Row) -> EncodedRow:
    """The whole conversation of a row, every answer trained.

    Raises:
        ChatError: it cannot be trained on, as `Chat.encode` has it.
        ImageError: an image is missing or cannot be read.
    """
    return _with_images(row, chat.encode(row.example, sizes(row.root, row.example)))


def encode_prompt(chat: Chat, row: Row, thought: bool = True) -> EncodedRow:
    """What a model is asked of a row: everything before its last answer.

    Args:
        thought: as `Chat.prompt` has it.

    Raises:
        ChatError: it cannot be asked, as `Chat.prompt` has it.
        ImageError: an image is missing or cannot be read.
    """
    return _with_images(row, chat.prompt(row.example, sizes(row.root, row.example), thought))


def encode_last_answer(chat: Chat, row: Row) -> EncodedRow:
    """The whole conversation of a row with nothing but its last answer trained.

    Raises:
        ChatError, ImageError: as `encode_row`.
    """
    whole = encode_row(chat, row)
    return replace(whole, encoded=last_answer(whole.encoded))


def last_answer(encoded: Encoded) -> Encoded:
    """The conversation with nothing but its last answer trained."""
    end = next(i for i in range(len(encoded.ids), 0, -1) if encoded.labels[i - 1] != UNTRAINED)
    start = next(i for i in range(end, 0, -1) if encoded.labels[i - 1] == UNTRAINED)
    return replace(encoded, labels=[UNTRAINED] * start + encoded.labels[start:])


def read_images(row: Row) -> None:
    """Reads every image of a row to its end: of one that breaks off in the middle the header alone tells nothing.

    Raises:
        ImageError: an image is missing or cannot be read.
    """
    for name in row.example.images:
        upright(row.root / name)


def _with_images(row: Row, encoded: Encoded) -> EncodedRow:
    # Fewer images than the Example names where turns were cut from its end.
    return EncodedRow(encoded, tuple(row.root / name for name in row.example.images[: len(encoded.pictures)]))
