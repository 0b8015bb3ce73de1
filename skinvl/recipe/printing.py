"""What is printed fits into 80 columns, on a terminal and in a log file alike: narrow tables, entries with a text."""

from __future__ import annotations

import textwrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

WIDTH = 80
UNBROKEN: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def narrow(*columns: Column | str, gap: int = 2) -> Table:
    """A table without borders, with so many spaces between its columns."""
    return Table(*columns, box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))


def right(head: str) -> Column:
    """A column of numbers."""
    return Column(head, justify="right", no_wrap=True)


def short(head: str, width: int) -> Column:
    """A column whose cells end in … where they are longer; what it lists one by one has the whole of them."""
    return Column(head, max_width=width, no_wrap=True, overflow="ellipsis")


def entry(console: Console, head: str, text: str) -> None:
    """Prints the text behind its head, or below it, indented and broken between words, where one line is too short."""
    lines = f"{head}: {text}"
    if len(lines) > WIDTH:
        indent = " " * 4
        # An address is of no use when it is broken.
        body = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, **UNBROKEN)
        lines = f"{head}:\n{body}"
    console.print(lines, markup=False, highlight=False, soft_wrap=True)
