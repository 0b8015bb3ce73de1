"""What became of the rows of a prepared source, as a reviewer wants it drawn: in, left out by rule, out by split.

After the flow diagrams of CONSORT and STARD, whose boxes are those of a study's participants.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from markupsafe import Markup

from skinvl.recipe.files import whole_file

# Units of the drawing, which a telephone shows at about a pixel each.
WIDTH, SIDE = 360, 168  # of the drawing, and of a box of its left or right side
LINE, PAD, GAP = 15, 8, 22
ACROSS = 3  # boxes of splits in a row
RULES = 14  # that have a line of their own; the rarer ones share one
LONGEST = 21  # characters of a rule's name in the drawing

Texts = Sequence[tuple[str, str]]  # lines of a box: what stands at its left, and at its right


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What a split holds."""

    name: str
    conversations: int
    images: int
    groups: int


@dataclass(frozen=True, slots=True)
class Flow:
    """What became of the rows of a source."""

    source: str
    ledger: tuple[tuple[str, int], ...]  # rule and rows that it left out, the most first
    splits: tuple[SplitCounts, ...]
    images: int  # of all splits
    groups: int
    joined: int = 0  # groups that share an image or a name with another
    largest: int = 0  # groups that became one
    moved: int = 0  # conversations that this took to a split nearer to training

    @property
    def conversations(self) -> int:
        """Of all splits."""
        return sum(split.conversations for split in self.splits)

    @property
    def left_out(self) -> int:
        """Rows of the ledger."""
        return sum(count for _, count in self.ledger)

    @property
    def rows(self) -> int:
        """Rows in."""
        return self.conversations + self.left_out


def write_csv(path: Path, flows: Sequence[Flow]) -> None:
    """Writes a row for each number of the diagrams."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "stage", "what", "count"])
        for flow in flows:
            writer.writerows((flow.source, *line) for line in _counts(flow))


def _counts(flow: Flow) -> Iterator[tuple[str, str, int]]:
    yield "in", "rows", flow.rows
    yield from (("left out", rule, count) for rule, count in flow.ledger)
    yield from (("out", what, getattr(flow, what)) for what in ("conversations", "images", "groups"))
    yield "joined", "groups that share an image or a name with another", flow.joined
    yield "joined", "groups that became one, at most", flow.largest
    yield "joined", "conversations moved nearer to training", flow.moved
    for split in flow.splits:
        yield from ((split.name, what, getattr(split, what)) for what in ("conversations", "images", "groups"))


def svg(flow: Flow) -> Markup:
    """The diagram: rows in at the top, what was left out at the right, the splits at the bottom."""
    parts, y = list[Markup](), 0.0

    def downwards(lines: Texts, aside: Texts) -> None:
        """Puts a box at the left, and below it, beside the arrow to the next, one at the right if it has lines."""
        nonlocal y
        parts.append(_box(0, y, SIDE, lines))
        y += _height(lines)
        below = y + (2 * GAP + _height(aside) if aside else GAP)
        parts.append(_arrow((SIDE / 2, y), (SIDE / 2, below)))
        if aside:
            middle = y + GAP + _height(aside) / 2
            parts.append(_arrow((SIDE / 2, middle), (WIDTH - SIDE, middle)))
            parts.append(_box(WIDTH - SIDE, y + GAP, SIDE, aside))
        y = below

    downwards([("Rows in", f"{flow.rows:,}")], _left_out(flow))
    totals = (("Rows out", flow.conversations), ("images", flow.images), ("groups", flow.groups))
    downwards([(name, f"{count:,}") for name, count in totals], _joined(flow))

    # The splits stand side by side, on the arrow that ends above the first of them.
    width = (WIDTH - (ACROSS - 1) * PAD) / ACROSS
    for first in range(0, len(flow.splits), ACROSS):
        boxes = [
            [(split.name[:LONGEST], ""), *((name, f"{getattr(split, name):,}") for name in ("images", "groups"))]
            for split in flow.splits[first : first + ACROSS]
        ]
        for number, (split, lines) in enumerate(zip(flow.splits[first:], boxes, strict=False)):
            lines.insert(1, ("rows", f"{split.conversations:,}"))
            parts.append(_box(number * (width + PAD), y, width, lines))
        y += _height(boxes[0]) + PAD
    return Markup('<svg class="flow" role="img" viewBox="-1 -1 {} {}"><title>{}</title>{}</svg>').format(
        WIDTH + 2, y - PAD + 2, f"What became of the rows of {flow.source}", Markup("").join(parts)
    )


def _left_out(flow: Flow) -> Texts:
    own, rare = flow.ledger[:RULES], flow.ledger[RULES:]
    lines = [(_short(rule), f"{count:,}") for rule, count in own]
    if rare:
        lines.append((f"{len(rare)} rarer rules", f"{sum(count for _, count in rare):,}"))
    return [("Left out", f"{flow.left_out:,}"), *lines]


def _joined(flow: Flow) -> Texts:
    if not flow.joined:
        return []
    text = f"share an image or a name; at most {flow.largest:,} became one"
    lines = [(line, "") for line in wrap(text, 26)]
    return [("Groups joined", f"{flow.joined:,}"), *lines, ("rows changing split", f"{flow.moved:,}")]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _height(lines: Texts) -> float:
    return len(lines) * LINE + 2 * PAD - 3 if lines else 0


def _box(x: float, y: float, width: float, lines: Texts) -> Markup:
    """A frame with lines of text, the first of them in bold."""
    texts = []
    for number, (left, right) in enumerate(lines):
        base, css = y + PAD + 10 + number * LINE, "first" if number == 0 else ""
        texts.append(Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x + PAD, base, left))
        if right:
            texts.append(
                Markup('<text class="end {}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x + width - PAD, base, right)
            )
    frame = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="4"/>')
    return frame.format(x, y, width, _height(lines)) + Markup("").join(texts)


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    """A line with a head, down or to the right."""
    (x, y), head = end, "l-4-7h8z" if start[0] == end[0] else "l-7-4v8z"
    line = Markup('<path class="way" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(*start, x, y)
    return line + Markup('<path class="head" d="M{:.1f} {:.1f}{}"/>').format(x, y, head)
