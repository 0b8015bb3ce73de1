"""How long every conversation will be, from its text and its images' sizes alone: nothing too long starts to train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from rich.table import Table

from skinvl.data import references
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
    # Where they are drawn: the numbers of its references that can be trained on, the longest first, which was measured.
    references: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Preflight:
    """What will be trained on, and what not and why."""

    kept: list[Length]
    dropped: list[Dropped]
    unfit: list[Dropped] = field(default_factory=list)  # references of what is kept that will not be drawn

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
        if self.unfit:
            table.add_row("references that are not drawn", "", "", "", str(len(self.unfit)))
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


def preflight(chat: Chat, rows: Sequence[tuple[Example, Path]], drawn: bool = False) -> Preflight:
    """The lengths of the conversations that can be trained on, and the others with their reasons.

    Args:
        rows: each Example with the folder that its image paths start from.
        drawn: whether any of an Example's references is trained on; each is then measured, and the longest counts.
    """
    report = Preflight([], [])
    for index, (example, root) in enumerate(rows):
        lengths: list[Length] = []
        unfit: list[Dropped] = []
        for number in references.drawable(example) if drawn else [0]:
            try:
                length = _length(chat, index, references.answered(example, number), root)
            except (ChatError, ImageError) as error:
                name = f"{example.source}/{example.id}" + (f", reference {number + 1}" if number else "")
                unfit.append(Dropped(name, error.rule, error.detail))
                continue
            lengths.append(replace(length, references=(number,)))
        if not lengths:
            report.dropped.append(unfit[0])
            continue
        lengths.sort(key=lambda length: -length.tokens)
        report.kept.append(replace(lengths[0], references=tuple(length.references[0] for length in lengths)))
        report.unfit.extend(unfit)
    return report


def _length(chat: Chat, index: int, example: Example, root: Path) -> Length:
    encoded = chat.encode(example, sizes(root, example))
    return Length(
        index=index,
        tokens=len(encoded.ids),
        image_tokens=sum(picture.text_tokens for picture in encoded.pictures),
        trained=len(encoded.labels) - encoded.labels.count(UNTRAINED),
        vision_tokens=sum(picture.vision_tokens for picture in encoded.pictures),
    )


def _changed(path: Path) -> int:
    """When a file was last written, ns; 0 where that cannot be known, and where `size` says why."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1 << 20)
def _size(path: Path, changed: int) -> Size:
    return size(path)  # of the image that lies there now: one that is asked about may be replaced by another
