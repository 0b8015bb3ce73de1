"""What is printed fits into 80 columns."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table

from helpers import printed
from skinvl.recipe.printing import entry, narrow, right, short


def table(text: str) -> Table:
    made = narrow("name", right("count"), short("licence", 10))
    made.add_row(text, "1,234", "CC-BY-NC-SA-4.0")
    return made


def test_a_narrow_table_has_one_line_for_a_row() -> None:
    assert [line.rstrip() for line in printed.lines(lambda console: console.print(table("ddi")))] == [
        "name  count  licence",
        "───────────────────────",
        "ddi   1,234  CC-BY-NC-…",
    ]
    printed.unbroken(lambda console: console.print(table("x" * 60)))
    with pytest.raises(AssertionError):
        printed.unbroken(lambda console: console.print(table("x" * 70)))  # the check can fail


def test_an_entry_is_one_line_or_a_paragraph_without_broken_words() -> None:
    def show(console: Console) -> None:
        entry(console, "licence", "CC0-1.0 [sic]")
        entry(console, "address", "a page at https://example.org/" + "x" * 80 + " and more")
        entry(console, "terms", "long-word " * 12)

    assert printed.lines(show) == [
        "licence: CC0-1.0 [sic]",
        "address:",
        "    a page at",
        "    https://example.org/" + "x" * 80,
        "    and more",
        "terms:",
        "    " + " ".join(["long-word"] * 7),
        "    " + " ".join(["long-word"] * 5),
    ]
