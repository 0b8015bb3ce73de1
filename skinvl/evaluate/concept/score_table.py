"""What `skinvl concepts score` prints: a row for each concept, and the means, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from skinvl.recipe.printing import narrow, right


def show(
    say: Console,
    path: Path,
    table: Sequence[Mapping[str, Any]],
    means: Mapping[str, Mapping[str, Any]],
    samples: int,
    leaking: int,
    lacks_units: bool,
) -> None:
    """Prints the areas of a source's concepts.

    Args:
        samples: how many were scored or left out.
        leaking: of these, how many were trained on.
        lacks_units: whether there is no dictionary.
    """
    shown = narrow("concept", right("seen"), right("not"), right("by prompts"), right("by unit"), "unit")
    for row in table:
        unit = row["unit"]
        by = "" if unit is None else f"{unit['unit']} by {unit['by']}"
        area_by = (short_number(row["prompts"]), short_number(row["units"]))
        shown.add_row(row["concept"][:22], f"{row['positives']:,}", f"{row['negatives']:,}", *area_by, by)
    of = [f"{mean['concepts']} of {mean['of']}" for mean in means.values()]
    shown.add_row("mean over concepts", "", "", *(short_number(mean["auroc"]) for mean in means.values()), "")
    shown.add_row("  with a number", "", "", *of, "")
    say.print(shown)
    left_out = f"; {leaking:,} trained on" if leaking else ""
    say.print(f"{path}: AUROC of {len(table)} concepts in {samples:,} samples{left_out}", soft_wrap=True)
    if lacks_units:
        say.print("No dictionary, so that there are no units: skinvl concepts fit", soft_wrap=True)


def short_number(number: Mapping[str, Any] | None) -> str:
    """A number with its interval, in few characters; a dash for none."""
    if number is None or number["value"] is None:
        return "–"
    if number["low"] is None:
        return f"{number['value']:.2f}"
    return f"{number['value']:.2f} [{number['low']:.2f}, {number['high']:.2f}]"
