"""Conversations → one batch of rows in which those about the same images share their prefix: the collator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from skinvl.data.example import Example, text
from skinvl.data.mixture import Row
from skinvl.model.attention import Span, Spans
from skinvl.model.chat import UNTRAINED, Chat
from skinvl.model.families import Picture
from skinvl.model.feature_cache import Cache
from skinvl.model.layout import Group, branches, grouped, spans, stretches
from skinvl.model.row import EncodedRow, encode_row

SIDE = 64  # pixels of a blank image


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations in rows, those about one image with it once: what a model is given, and what is known of it.

    Data loaders that find `to` and `pin_memory` on a batch call these.
    """

    inputs: dict[str, Any]  # what the model's forward takes; `spans` among it, which its attention reads
    targets: torch.Tensor  # int64[R, T]: the label of the token after each position, -100 where it is not trained
    places: tuple[Span, ...]  # where each conversation's own tokens stand, in the order of the conversations
    tokens: int  # of the conversations, each on its own
    names: tuple[str, ...] = ()  # source and id of the conversations' Examples, where these are known
    filler: bool = False  # whether its last conversation is a blank one; it counts among neither tokens nor names

    @property
    def ids(self) -> torch.Tensor:
        """The `input_ids`, int64[R, T]."""
        ids: torch.Tensor = self.inputs["input_ids"]
        return ids

    @property
    def spans(self) -> Spans:
        """Where the conversations and what they share lie in the rows."""
        laid: Spans = self.inputs["spans"]
        return laid

    @property
    def supervised(self) -> torch.Tensor:
        """bool[R, T]: at which positions a trained token is predicted."""
        return self.targets != UNTRAINED

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same with its tensors on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same with its tensors in page-locked memory, from which a GPU copies fast."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        inputs = {
            name: change(value) if isinstance(value, torch.Tensor) else value for name, value in self.inputs.items()
        }
        return replace(self, inputs=inputs, targets=change(self.targets))


def blank_of(images: int) -> Example:
    """A conversation about so many blank images."""
    turns = (text("user", "?", images), text("assistant", "."))
    return Example("filler", "skinvl", ("blank",) * images, turns, "filler", "none", "none")


@dataclass(frozen=True, slots=True)
class Collator:
    """Rows with labels at the assistant's tokens alone, their spans, and the pixels of their images, each once."""

    chat: Chat
    # Whether a batch without an image gets one more conversation, with a blank image and nothing to train. Ranks that
    # train together must all run the vision tower, or ZeRO-3 waits for ever and DDP misses gradients. A batch without
    # any conversation gets one in any case.
    filler: bool = False
    share: bool = True  # whether conversations about the same images share their prefix
    cache: Cache | None = None  # what holds the images' features, if these are read in place of their pixels

    def __call__(self, items: list[dict[str, Any]]) -> Batch:
        """The batch of the rows of a data set, as a training step takes it.

        Raises:
            ChatError, ImageError: a conversation cannot be trained on; preflight finds these before training.
            CacheError: an image's features are gone or damaged.
        """
        rows: list[Row] = [item["row"] for item in items if item["row"] is not None]
        conversations = [encode_row(self.chat, row) for row in rows]
        groups = self.groups(conversations)
        tokens = sum(len(conversation.encoded.ids) for conversation in conversations)

        blanks = int(self.filler and not any(conversation.images for conversation in conversations))
        if filled := blanks > 0 or not rows:
            blank = self.chat.encode(blank_of(blanks), [(SIDE, SIDE)] * blanks)
            alone = Group((len(conversations),), 0)
            groups = [[*groups[0], alone]] if groups and self.chat.family.one_row else [*groups, [alone]]
            untrained = replace(blank, labels=[UNTRAINED] * len(blank.labels))
            conversations.append(EncodedRow(untrained, (None,) * blanks))

        batch = self.lay(conversations, groups)
        names = tuple(f"{row.example.source}/{row.example.id}" for row in rows)
        return replace(batch, tokens=tokens, names=names, filler=filled)

    def pack(self, conversations: Sequence[EncodedRow]) -> Batch:
        """The batch of some conversations that a model is asked, prompts or whole ones.

        Raises:
            ImageError: an image cannot be read.
            CacheError: an image's features are gone or damaged.
        """
        return self.lay(conversations, self.groups(conversations))

    def groups(self, conversations: Sequence[EncodedRow]) -> list[list[Group]]:
        """The groups of each row of a batch of conversations."""
        groups = (
            grouped(conversations, self.chat.image_id)
            if self.share
            else [Group((number,), 0) for number in range(len(conversations))]
        )
        return [groups] * bool(groups) if self.chat.family.one_row else [[group] for group in groups]

    def lay(self, conversations: Sequence[EncodedRow], rows: Sequence[Sequence[Group]]) -> Batch:
        """The batch of conversations whose groups lie in rows as they are given.

        Raises:
            ImageError: an image cannot be read.
            CacheError: an image's features are gone or damaged.
        """
        sequences = [conversation.encoded.ids for conversation in conversations]
        ids, targets, positions = self._rows(conversations, rows)

        looks_ahead = self.chat.family.looks_ahead
        whole = [stretches(sequence, self.chat.image_id) if looks_ahead else [] for sequence in sequences]
        laid = spans(rows, [len(sequence) for sequence in sequences], whole)

        # Each image is read once, and shown once in each row: a group's members show the same ones.
        pixels = {
            path: self._image(path, picture)
            for conversation in conversations
            for path, picture in dict(zip(conversation.images, conversation.encoded.pictures, strict=True)).items()
        }
        first = [[conversations[group.members[0]] for group in row] for row in rows]
        inputs = {
            "input_ids": ids,
            "position_ids": positions,
            "spans": laid,
            **self.chat.family.inputs(
                self.chat.processor,
                ids,
                [[picture for each in row for picture in each.encoded.pictures] for row in first],
                [[pixels[path] for each in row for path in each.images] for row in first],
            ),
        }
        return Batch(inputs, targets, branches(rows, laid), sum(map(len, sequences)))

    def _image(self, path: Path | None, picture: Picture) -> torch.Tensor:
        """What the model reads of an image: its features where they are cached, else its pixels."""
        if self.cache is not None:
            return self.cache.blank(picture) if path is None else self.cache.get(path, picture)
        return self.chat.pixels(Image.new("RGB", (SIDE, SIDE)) if path is None else self.chat.upright(path))

    def _rows(self, conversations: Sequence[EncodedRow], rows: Sequence[Sequence[Group]]) -> list[torch.Tensor]:
        """Ids and the next token's labels int64[R, T], and positions int64[R, T] or int64[3, R, T]."""
        columns: list[list[torch.Tensor]] = [[], [], []]
        for row in rows:
            parts: list[list[torch.Tensor]] = [[], [], []]
            for group in row:
                for order, number in enumerate(group.members):
                    encoded = conversations[number].encoded
                    own = slice(group.prefix if order else 0, None)  # the first member brings the prefix
                    targets = torch.tensor([*encoded.labels[1:], UNTRAINED])
                    positions = self.chat.family.positions(self.chat.processor, encoded.ids, encoded.pictures)
                    for part, tensor in zip(parts, (torch.tensor(encoded.ids), targets, positions), strict=True):
                        part.append(tensor[..., own])
            for column, part in zip(columns, parts, strict=True):
                column.append(torch.cat(part, -1))

        # pad_sequence pads the first dimension, and a row's is the last.
        fill = (self.chat.pad_id, UNTRAINED, 0)
        return [
            pad_sequence([row.movedim(-1, 0) for row in column], padding_value=value).movedim(0, -1).movedim(0, -2)
            for column, value in zip(columns, fill, strict=True)
        ]
