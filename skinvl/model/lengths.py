"""How long every conversation will be, from its text and its images' sizes alone: nothing too long starts to train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.table import Table

from skinvl.data.example import Dropped, Example
from skinvl.data.pixels import ImageError, size
from skinvl.model.chat import UNTRAINED, Chat, ChatError
from skinvl.model.families import Size


@dataclass(frozen=True, slots=True)
class Length:
    """The positions of one conversation; `index` is its place among the rows that were measured."""

    index: int
    tokens: int  # in the language row, image tokens included
    image_tokens: int  # of these, those of images
    trained: int  # of these, those with a label
    vision_tokens: int  # positions that the vision tower computes for its images


@dataclass(frozen=True, slots=True)
class Preflight:
    """What will be trained on, and what not and why."""

    kept: list[Length]
    dropped: list[Dropped]

    def table(self, title: str) -> Table:
        """The counts and token statistics under a title, for the terminal."""
        rows = len(self.kept) + len(self.dropped)
        table = Table(
            "tokens per conversation", "mean", "95 %", "max", "total", title=f"{title}: {len(self.kept)} of {rows} rows"
        )
        for name in ("tokens", "image_tokens", "trained", "vision_tokens"):
            column = summary([getattr(length, name) for length in self.kept])
            table.add_row(
                name.replace("_", " "), f"{column.mean:.1f}", str(column.p95), str(column.max), f"{column.total:,}"
            )
        for rule in sorted({row.rule for row in self.dropped}):
            table.add_row(f"dropped: {rule}", "", "", "", str(sum(row.rule == rule for row in self.dropped)))
        return table


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean, 95th percentile (nearest rank), maximum and sum of some counts; zeros where there are none."""

    mean: float
    p95: int
    max: int
    total: int


def summary(counts: Sequence[int]) -> Summary:
    """The statistics of some counts."""
    if not counts:
        return Summary(0.0, 0, 0, 0)
    ordered = sorted(counts)
    return Summary(sum(ordered) / len(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1], sum(ordered))


def sizes(root: Path, example: Example) -> tuple[Size, ...]:
    """Height and width in pixels of each image of an Example, as `pixels.upright` gives them; only headers are read.

    Raises:
        ImageError: an image is missing or cannot be read.
    """
    return tuple(_size(root / name, _changed(root / name)) for name in example.images)


def preflight(chat: Chat, rows: Sequence[tuple[Example, Path]]) -> Preflight:
    """The lengths of the conversations that can be trained on, and the others with their reasons.

    Args:
        rows: each Example with the folder that its image paths start from.
    """
    kept, dropped = [], []
    for index, (example, root) in enumerate(rows):
        try:
            encoded = chat.encode(example, sizes(root, example))
        except (ChatError, ImageError) as error:
            dropped.append(Dropped(f"{example.source}/{example.id}", error.rule, error.detail))
            continue
        kept.append(
            Length(
                index=index,
                tokens=len(encoded.ids),
                image_tokens=sum(picture.text_tokens for picture in encoded.pictures),
                trained=len(encoded.labels) - encoded.labels.count(UNTRAINED),
                vision_tokens=sum(picture.vision_tokens for picture in encoded.pictures),
            )
        )
    return Preflight(kept, dropped)


def _changed(path: Path) -> int:
    """When a file was last written, ns; 0 where that cannot be known, and where `size` says why."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1 << 20)
def _size(path: Path, changed: int) -> Size:
    return size(path)  # of the image that lies there now: one that is asked about may be replaced by another
