"""Conversations → one batch of rows in which those about the same images share their prefix: the collator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from skinvl.data.example import Example, text
from skinvl.data.mixture import Row
from skinvl.data.pixels import upright
from skinvl.model.attention import Span, Spans
from skinvl.model.chat import UNTRAINED, Chat, Encoded
from skinvl.model.families import Picture
from skinvl.model.feature_cache import Cache
from skinvl.model.lengths import sizes

SIDE = 64  # pixels of a blank image
Shown = tuple[Path | None, ...]  # the images of a conversation; None is a blank one

OURS = ("labels", "shift_labels", "row_ids", "tokens", "filler")  # of a batch, what no model takes


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations, by their place in the batch, that share so many first tokens."""

    members: tuple[int, ...]
    prefix: int


def grouped(encoded: Sequence[Encoded], shown: Sequence[Shown], image_id: int) -> list[Group]:
    """The groups of a batch: conversations that show the same images, or none, share what they begin with.

    A prefix ends before the token that predicts the first trained one of any conversation, so that no position has two
    targets; where nothing is trained, before the last token, which predicts the answer. Conversations whose later turns
    show images of their own stay alone.
    """
    alike: dict[Shown, list[int]] = defaultdict(list)
    for place, images in enumerate(shown):
        alike[images].append(place)
    groups = []
    for members in alike.values():
        some = [encoded[place] for place in members]
        first = min(_first_trained(one) for one in some)
        prefix = _common([one.ids for one in some], first - 1) if len(some) > 1 else 0
        if all(image_id not in one.ids[prefix:] for one in some):
            groups.append(Group(tuple(members), prefix))
        else:
            groups += [Group((place,), 0) for place in members]
    return groups


def _first_trained(one: Encoded) -> int:
    return next((i for i, label in enumerate(one.labels) if label != UNTRAINED), len(one.ids))


def _common(some: Sequence[list[int]], limit: int) -> int:
    least, most = min(some), max(some)  # what these two share, all share
    return next((i for i in range(min(limit, len(least))) if least[i] != most[i]), min(limit, len(least)))


def seen(row: Row, encoded: Encoded) -> Shown:
    """The images that a conversation shows: fewer than its Example names where turns were cut from its end."""
    return tuple(row.root / name for name in row.example.images[: len(encoded.pictures)])


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
    share: bool = True  # whether conversations about the same images share their prefix, where the family can
    cache: Cache | None = None  # what holds the images' features, if these are read in place of their pixels

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The model's inputs with `labels`, `shift_labels`, `row_ids`, the `tokens` of the conversations and `filler`.

        Raises:
            ChatError, ImageError: a conversation cannot be trained on; preflight finds these before training.
            CacheError: an image's features are gone or damaged.
        """
        given: list[Row] = [item["row"] for item in items if item["row"] is not None]
        encoded = [self.chat.encode(row.example, sizes(row.root, row.example)) for row in given]
        shown = [seen(row, one) for row, one in zip(given, encoded, strict=True)]
        rows = self.groups(encoded, shown)
        tokens = sum(len(one.ids) for one in encoded)
        blanks = int(self.filler and not any(shown))  # images of the filler
        if filled := blanks > 0 or not given:
            blank = self.chat.encode(blank_of(blanks), [(SIDE, SIDE)] * blanks)
            alone = Group((len(encoded),), 0)
            rows = [[*rows[0], alone]] if rows and self.chat.family.one_row else [*rows, [alone]]
            encoded.append(replace(blank, labels=[UNTRAINED] * len(blank.labels)))
            shown.append((None,) * blanks)
        return {
            **self.lay(encoded, shown, rows),
            "row_ids": [row.example.id for row in given],
            "tokens": tokens,
            "filler": filled,
        }

    def groups(self, encoded: Sequence[Encoded], shown: Sequence[Shown]) -> list[list[Group]]:
        """The groups of each row of a batch of conversations that show these images."""
        found = (
            grouped(encoded, shown, self.chat.image_id)
            if self.share and self.chat.family.shares
            else [Group((place,), 0) for place in range(len(encoded))]
        )
        return [found] * bool(found) if self.chat.family.one_row else [[group] for group in found]

    def lay(
        self, encoded: Sequence[Encoded], shown: Sequence[Shown], rows: Sequence[Sequence[Group]], left: bool = False
    ) -> dict[str, Any]:
        """The model's inputs for rows of groups of these conversations, with `labels` and `shift_labels`.

        Args:
            left: whether rows end together, with an `attention_mask` that tells what stands before them as padding.

        Raises:
            ImageError: an image cannot be read.
            CacheError: an image's features are gone or damaged.
        """
        read = {
            path: self._image(path, picture)
            for some, one in zip(shown, encoded, strict=True)
            for path, picture in dict(zip(some, one.pictures, strict=True)).items()
        }
        ids, labels, targets, positions = self._rows(encoded, rows, "left" if left else "right")
        looks = self.chat.family.looks_ahead
        whole = [stretches(one.ids, self.chat.image_id) if looks else [] for one in encoded]
        laid = spans(rows, [len(one.ids) for one in encoded], left, whole)
        first = [[group.members[0] for group in row] for row in rows]  # a group's members show the same images
        return {
            "input_ids": ids,
            "position_ids": positions,
            "labels": labels,
            "shift_labels": targets,
            "spans": laid,
            **({"attention_mask": laid.filled().long()} if left else {}),
            **self.chat.family.inputs(
                self.chat.processor,
                ids,
                [[picture for place in row for picture in encoded[place].pictures] for row in first],
                [[read[path] for place in row for path in shown[place]] for row in first],
            ),
        }

    def _image(self, path: Path | None, picture: Picture) -> torch.Tensor:
        if self.cache is not None:
            return self.cache.blank(picture) if path is None else self.cache.get(path, picture)
        return self.chat.pixels(Image.new("RGB", (SIDE, SIDE)) if path is None else upright(path))

    def _rows(self, encoded: Sequence[Encoded], rows: Sequence[Sequence[Group]], side: str) -> list[torch.Tensor]:
        """Ids, labels and the next token's labels int64[R, T], and positions int64[R, T] or int64[3, R, T]."""
        columns: list[list[torch.Tensor]] = [[], [], [], []]
        for row in rows:
            parts: list[list[torch.Tensor]] = [[], [], [], []]
            for group in row:
                for number, place in enumerate(group.members):
                    one = encoded[place]
                    cut = slice(group.prefix if number else 0, None)
                    found = [torch.tensor(one.ids), torch.tensor(one.labels)]
                    found.append(torch.tensor([*one.labels[1:], UNTRAINED]))
                    found.append(self.chat.family.positions(self.chat.processor, one.ids, one.pictures))
                    for part, tensor in zip(parts, found, strict=True):
                        part.append(tensor[..., cut])
            for column, part in zip(columns, parts, strict=True):
                column.append(torch.cat(part, -1))
        fill = (self.chat.pad_id, UNTRAINED, UNTRAINED, 0)
        return [
            pad_sequence([row.movedim(-1, 0) for row in column], padding_value=value, padding_side=side)
            .movedim(0, -1)
            .movedim(0, -2)
            for column, value in zip(columns, fill, strict=True)
        ]


def stretches(ids: Sequence[int], token: int) -> list[tuple[int, int]]:
    """Start and end of each run of a token."""
    found, cursor = [], 0
    for is_token, run in groupby(ids, lambda one: one == token):
        start, cursor = cursor, cursor + len(list(run))
        found += [(start, cursor)] * is_token
    return found


def spans(
    rows: Sequence[Sequence[Group]],
    lengths: Sequence[int],
    left: bool = False,
    whole: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> Spans:
    """Where each group's prefix and branches lie in their row.

    Args:
        lengths: the tokens of each conversation.
        left: whether rows end together.
        whole: of each conversation, the stretches whose positions see one another; in its prefix, where it has one.
    """

    def moved(place: int, by: int) -> tuple[tuple[int, int], ...]:
        return tuple((start + by, end + by) for start, end in whole[place]) if whole else ()

    widths = [sum(_tokens(group, lengths) for group in row) for row in rows]
    found: list[Span] = []
    for index, row in enumerate(rows):
        cursor = max(widths) - widths[index] if left else 0
        for group in row:
            begin = cursor
            if group.prefix:
                cursor += group.prefix
                found.append(Span(index, begin, cursor, whole=moved(group.members[0], begin)))
            for place in group.members:
                end = cursor + lengths[place] - group.prefix
                if group.prefix:
                    found.append(Span(index, cursor, end, (begin, begin + group.prefix)))
                else:
                    found.append(Span(index, cursor, end, whole=moved(place, cursor)))
                cursor = end
    return Spans(tuple(found), (len(rows), max(widths)))


def _tokens(group: Group, lengths: Sequence[int]) -> int:
    return group.prefix + sum(lengths[place] - group.prefix for place in group.members)
