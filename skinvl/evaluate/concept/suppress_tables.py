"""What `skinvl concepts suppress` prints: before, after and random units, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skinvl.recipe.printing import narrow, right
from skinvl.score.classification import BALANCED

SHOWN = (BALANCED, "sensitivity", "specificity")
ROWS = {"all": "all rows", "with": "with artefact", "without": "without it"}


def show(say: Console, path: Path, record: Mapping[str, Any]) -> None:
    """Prints the numbers of a suppression."""
    settings = record["settings"]
    for concept, units in settings["units"].items():
        listed = ", ".join(f"{unit['unit']} ({unit['worth']:.2f})" for unit in units)
        what = "its name, margin" if units[0]["by"] == "name" else f"labels of {settings['chosen_on']}, AUROC"
        say.print(f"{concept}: units {listed} by {what}", soft_wrap=True)
    table = narrow("rows", "number", right("before"), right("after"), right("random"), right("p"), right("n"))
    _add_parts(table, record["parts"], [test for test in record["tests"] if test["what"] == "classes"], "", SHOWN)
    for name in record["skin_type"]["before"]["values"]:
        sides = [record["skin_type"][side]["values"][name] for side in ("before", "after")]
        if all(sides) and name != "unknown":
            table.add_row(f"type {name}", BALANCED, *(short(side) for side in sides), "", "", f"{sides[0]['n']:,}")
    if record["probe"] is not None:
        tests = [test for test in record["tests"] if test["what"] == "probe"]
        _add_parts(table, record["probe"]["parts"], tests, "probe, ", (BALANCED,))
    for name, directions in record["retrieval"].items():
        for direction, one in directions.items():
            random = "" if one["random"] is None else f"{one['random']['mean']:.3f}"
            numbers = (f"{one[side]:.3f}" for side in ("before", "after"))
            table.add_row(f"{name}, {direction}", f"R@{one['k']}", *numbers, random, "", f"{one['n']:,}")
    say.print(table)
    for sentence in sentences(record):
        say.print(sentence, soft_wrap=True)
    say.print(str(path), soft_wrap=True)


def _add_parts(
    table: Table, parts: Mapping[str, Any], tests: Sequence[Mapping[str, Any]], prefix: str, metrics: Sequence[str]
) -> None:
    """Adds the numbers of each part."""
    found = {(test["part"], test["metric"]): test["p_holm"] for test in tests}
    for part, block in parts.items():
        spread = block["random"][BALANCED]
        for metric in metrics:
            if metric in block["before"]:
                value = found.get((part, metric))
                random = f"{spread['mean']:.3f}" if metric == BALANCED and spread and spread["mean"] is not None else ""
                beside = (short(block[side][metric]) for side in ("before", "after"))
                p = "" if value is None else f"{value:.3f}"
                table.add_row(prefix + ROWS[part], metric, *beside, random, p, f"{block['rows']:,}")


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What the artefact cost by prompts and by the probe, and what came back of it."""
    mass = record["settings"]["mass"]
    said = [
        f"p is Holm's over all tests of the file. random: mean of {len(record['settings']['random'])} draws of units "
        f"of the same mass ({mass['units']:.3f} of {mass['of']:.3f}), matched on {mass['matched_on']}."
    ]
    if record["brought_back"]["drop"] is None:
        return [*said, "Nobody says of the rows both that they show the artefact and that they do not."]
    read_by = {"By prompts": record, "By the probe": record["probe"]}
    return said + [_cost(who, block["brought_back"]) for who, block in read_by.items() if block is not None]


def _cost(who: str, back: Mapping[str, Any]) -> str:
    costs = f"{who}, the artefact costs {span(back['drop'])} of {BALANCED}"
    if back["units"] is None:
        return f"{costs}: no drop that could be brought back."
    return (
        f"{costs}; of this the units bring back {span(back['units'])}, random ones {span(back['random'])}, "
        f"a difference of {span(back['beyond_random'])}."
    )


def short(number: Mapping[str, Any]) -> str:
    """A value with three decimals, a dash for none."""
    return "–" if number["value"] is None else f"{number['value']:.3f}"


def span(number: Mapping[str, Any]) -> str:
    """A value with its interval."""
    return short(number) if number["low"] is None else f"{short(number)} [{number['low']:.3f}, {number['high']:.3f}]"
