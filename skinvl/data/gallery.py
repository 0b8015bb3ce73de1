"""A sample of the conversations and groups of prepared sources, with small pictures, as a page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skinvl.data import columns, pages
from skinvl.data.columns import SourceSplit
from skinvl.data.example import SCALARS, Example, inside, words
from skinvl.data.pages import Thumbnail
from skinvl.data.table1 import Columns, Ints

CONVERSATIONS, GROUPS = 120, 32  # most that are shown
LARGEST = 4  # groups that are shown whatever is drawn
IMAGES = 6  # most of a conversation or a group that are shown
ROWS = 20  # of a group that are asked for what else it is known by
SIDE, SMALL = 280, 160  # pixels of the longer side of an image of a conversation, and of a group
PICTURES, TEXTS = 13_000_000, 3_000_000  # bytes of each in a page, which stays below 20 MB
BANDS = {0: "0", 1: "1", 2: "2", 3: "3 to 5", 6: "6 to 10", 11: "11 to 20", 21: "21 or more"}  # from so many images on
SPEAKERS = {"system": "System", "user": "Question", "assistant": "Answer"}


@dataclass(frozen=True, slots=True)
class ConversationCard:
    """A conversation as the page shows it."""

    set: str
    example: Example
    turns: list[tuple[str, str, str | None]]  # who speaks, the words, and the thought before them
    facts: list[tuple[str, str]]
    images: list[Thumbnail]


@dataclass(frozen=True, slots=True)
class GroupCard:
    """What shares a group, as the page shows it."""

    name: str
    band: str  # of its images
    sets: list[str]
    conversations: int
    shown: int  # images
    identities: list[str]  # what its rows are known by, beside its name
    images: list[Thumbnail]


@dataclass(slots=True)
class Album:
    """The pictures of a page, as many as fit into it."""

    left: int = PICTURES  # bytes

    def thumbnail(self, root: Path, path: str, side: int) -> Thumbnail:
        """The image, or why it is not shown."""
        name = path.rpartition("/")[2]
        if not inside(path):
            return Thumbnail(name, None, "no path in the source")
        if self.left <= 0:
            return Thumbnail(name, None, "left out, as the page is full")
        shown = pages.thumbnail(root / path, side)
        self.left -= len(shown.uri or "")
        return shown


def drawn(strata: Ints, most: int, generator: np.random.Generator) -> Ints:
    """int64: at most so many numbers of the strata, ascending, of each as many as of any other where it has enough."""
    order = generator.permutation(len(strata))
    sorted_strata = np.argsort(strata[order], kind="stable")
    _, first, counts = np.unique(strata, return_index=True, return_counts=True)
    starts = np.repeat(np.cumsum([0, *counts[:-1]]) if len(first) else first, counts)
    rank = np.arange(len(strata)) - starts  # within its stratum, in the drawn order
    return np.sort(order[sorted_strata[np.argsort(rank, kind="stable")[:most]]])


def conversations(parts: Sequence[SourceSplit], rows: Columns, album: Album, seed: int) -> list[ConversationCard]:
    """Conversations of the chosen parts, as many of each part and kind of question as there are.

    Raises:
        ExampleError: a file is not one of Examples.
    """
    numbers = np.flatnonzero(_chosen(parts, rows))
    kinds = rows.facts["kind"].indices.fill_null(-1).to_numpy().astype(np.int64)
    strata = rows.set * (int(kinds.max(initial=0)) + 2) + kinds
    generator = np.random.default_rng(seed)
    shown = numbers[drawn(strata[numbers], CONVERSATIONS, generator)]
    examples = columns.examples(parts, shown.tolist())

    # In a drawn order, so that what a full page leaves out is of any part.
    cards, left = dict[int, ConversationCard](), TEXTS
    for number in generator.permutation(shown).tolist():
        card = _conversation(parts[rows.set[number]], examples[number], album)
        left -= _size(card)
        if left < 0:
            break
        cards[number] = card
    return [cards[number] for number in sorted(cards)]


def _conversation(part: SourceSplit, example: Example, album: Album) -> ConversationCard:
    thoughts = iter(example.thoughts)
    turns = [
        (SPEAKERS[turn["role"]], words(turn), next(thoughts, None) if turn["role"] == "assistant" else None)
        for turn in example.messages
    ]
    images = [album.thumbnail(part.root, path, SIDE) for path in example.images[:IMAGES]]
    values = [(name, getattr(example.facts, name)) for name in SCALARS]
    known = [(name, f"{value:g}" if name == "age" else value) for name, value in values if value is not None]
    concepts = [(name, ", ".join(getattr(example.facts, name))) for name in ("present", "absent")]
    facts = [(name.replace("_", " "), value) for name, value in (*known, *concepts) if value]
    return ConversationCard(part.name, example, turns, facts, images)


def _size(card: ConversationCard) -> int:
    """Bytes of the texts of a card, as they are shown."""
    example = card.example
    texts = [text or "" for _, *pair in card.turns for text in pair]
    texts += [*(reference.text for reference in example.references), *example.options, example.schema or ""]
    return sum(len(pages.cut(text).encode(errors="replace")) for text in texts)


def groups(
    parts: Sequence[SourceSplit], rows: Columns, paths: Sequence[tuple[Path, str]], album: Album, seed: int
) -> tuple[list[tuple[str, int, int, int]], list[GroupCard]]:
    """What shares a group in the chosen parts: counts by the images of a group, and some groups, the largest first.

    A count is a band of images, its groups, their conversations and their images. Shown are groups of several
    conversations or images, as many of each band as there are, and the largest of all.

    Raises:
        ExampleError: a file is not one of Examples.
    """
    chosen = _chosen(parts, rows)
    inside, images = chosen[rows.row], int(rows.image.max(initial=-1)) + 1
    pairs = np.divmod(np.unique(rows.group[rows.row[inside]] * images + rows.image[inside]), max(images, 1))
    count = int(rows.group.max(initial=-1)) + 1
    spoken, shown = np.bincount(rows.group[chosen], minlength=count), np.bincount(pairs[0], minlength=count)
    band = np.searchsorted(np.array(list(BANDS)), shown, side="right") - 1
    names = list(BANDS.values())
    counts = [
        (names[number], int(own.sum()), int(spoken[own].sum()), int(shown[own].sum()))
        for number in range(len(names))
        if (own := (band == number) & (spoken > 0)).any()
    ]

    # The largest, and some of each band; of each its first rows and images.
    sharing = np.flatnonzero(np.maximum(spoken, shown) * (spoken > 0) > 1)
    largest_first = sharing[np.lexsort((sharing, -spoken[sharing], -shown[sharing]))]
    some = sharing[drawn(band[sharing], GROUPS - LARGEST, np.random.default_rng(seed))]
    picked = {*largest_first[:LARGEST].tolist(), *some.tolist()}
    member = np.flatnonzero(np.isin(rows.group, list(picked)) & chosen)
    members = {group: member[rows.group[member] == group] for group in largest_first.tolist() if group in picked}
    examples = columns.examples(parts, [row for own in members.values() for row in own[:ROWS].tolist()])
    cards = []
    for group, own in members.items():
        known = [examples[row] for row in own[:ROWS].tolist()]
        sets = [parts[number] for number in np.unique(rows.set[own])]
        seen = pairs[1][np.searchsorted(pairs[0], group) :][: min(IMAGES, shown[group])]
        images_shown = [album.thumbnail(root, path, SMALL) for root, path in map(paths.__getitem__, seen.tolist())]
        identities = sorted({name for example in known for name in example.identities} - {known[0].group})
        size = int(spoken[group]), int(shown[group])
        cards.append(
            GroupCard(known[0].group, names[band[group]], [part.name for part in sets], *size, identities, images_shown)
        )
    return counts, cards


def _chosen(parts: Sequence[SourceSplit], rows: Columns) -> NDArray[np.bool_]:
    return np.array([part.chosen for part in parts])[rows.set]
