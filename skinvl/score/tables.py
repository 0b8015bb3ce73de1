"""The numbers of scores.json as tables: on the terminal, and in Markdown for a model card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

HEAD = ("metric", "value", "images permuted", "majority", "n", "unscored")
# Accuracy hides missed cancers, so what was found of them always stands right below it.
BESIDE = ("accuracy", "sensitivity", "specificity")
NONE = "–"
NOT_KNOWN = "not known which classes are malignant"


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Nothing; prints the tables of `found`, the content of a scores.json."""
    console.print(_about(found))
    for title, head, rows in _tables(found):
        columns = [Column(name, no_wrap=place == 0) for place, name in enumerate(head)]
        table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(found: Mapping[str, Any]) -> str:
    """The same tables in Markdown, with what came from data escaped."""
    parts = [_escaped(_about(found))]
    for title, head, rows in _tables(found):
        lines = [f"{_escaped(title)}:", "", *(_line(row) for row in (head, ["---"] * len(head)))]
        parts.append("\n".join([*lines, *(_line([_escaped(cell) for cell in row]) for row in rows)]))
    return "\n\n".join(parts) + "\n"


def _about(found: Mapping[str, Any]) -> str:
    return (
        f"All numbers with {found['level']:.0%} intervals from {found['resamples']:,} resamples of whole groups "
        f"(seed {found['seed']})."
    )


def _tables(found: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    for name, one in found["sets"].items():
        for what, rows in (("", _free(one)), *((f", {what}", rows) for what, rows in _classes(one))):
            if rows:
                yield f"{found['run']}: {name}{what}", *_used(HEAD, rows)
    if found["replicates"]:
        yield f"Runs {', '.join(found['replicates']['runs'])}", *_spreads(found["replicates"])
    if found["comparison"]:
        yield f"{found['run']} against {found['comparison']['against']}", *_tests(found["comparison"])


def _free(one: Mapping[str, Any]) -> list[list[str]]:
    own, control = one.get("answers", {}), one.get("permuted", {})
    numbers, controls = own.get("metrics", {}), control.get("metrics", {})
    rows = [_row("valid answers", own.get("valid"), control.get("valid"), None)]
    for metric in numbers or controls:
        majority = own.get("majority") if metric == "closed_accuracy" else None
        some = numbers.get(metric) or controls[metric]
        if some["n"] or some["unscored"]:  # else no row is such a question
            rows.append(_row(metric, numbers.get(metric), controls.get(metric), majority))
    return rows if own or control else []


def _classes(one: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """The headline variant, and beside it the prompted one; the others stand in scores.json alone."""
    block = one.get("classes", {"variants": {}})
    for variant, numbers in block["variants"].items():
        if variant not in (block["headline"], "prompted"):
            continue
        rows = [_row("valid answers", block["valid"], None, None)] if variant == "prompted" else []
        for metric in (*BESIDE, *(name for name in numbers if name not in BESIDE)):
            row = _row(metric, numbers.get(metric), None, block["majority"] if metric == "accuracy" else None)
            rows.append(row if metric in numbers else [metric, NOT_KNOWN, *row[2:]])
        yield variant, rows


def _used(head: Sequence[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns in which there is anything."""
    kept = [place for place in range(len(head)) if any(row[place] != NONE for row in rows)]
    return [head[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _row(metric: str, own: Any, control: Any, majority: Any) -> list[str]:
    counts = [f"{own['n']:,}", f"{own['unscored']:,}"] if own else [NONE, NONE]
    return [metric, number(own), number(control), number(majority), *counts]


def number(one: Mapping[str, Any] | None) -> str:
    """A Number as text: the value, and its interval where there is one."""
    if one is None or one["value"] is None:
        return NONE
    interval = "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"
    return f"{one['value']:.3f}{interval}"


def _spreads(replicates: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for name, kinds in replicates["sets"].items():
        for what, spreads in kinds.items():
            for metric, one in spreads.items():
                rows.append([name, what, metric, *(_plain(one[key]) for key in ("mean", "sd", "min", "max"))])
    return ("set", "what", "metric", "mean", "sd", "min", "max"), rows


def _tests(comparison: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    rows = [
        [
            *(test[key] for key in ("set", "what", "metric")),
            *(_plain(test[key]) for key in ("ours", "theirs")),
            number(test["difference"]),
            *(_p(test[key]) for key in ("p", "p_holm")),
            test["test"],
            f"{test['n']:,}",
        ]
        for test in comparison["tests"]
    ]
    return ("set", "what", "metric", "ours", "theirs", "difference", "p", "p (Holm)", "test", "n"), rows


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """The text as Markdown shows it literally, on one line."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", plain)
