"""The numbers of scores.json as tables: on the terminal, and in Markdown for a model card."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column

from skinvl.recipe.printing import UNBROKEN, WIDTH, narrow, right
from skinvl.score import calibration, compare, institutions, robustness, text_sets, untrained
from skinvl.score.readers import multireader
from skinvl.score.stats import ALIKE, EXPANDED, FEWEST, WILSON

PERMUTED, MAJORITY = "images permuted", "majority"
HEAD = ("metric", "value", PERMUTED, MAJORITY, "n", "groups", "unscored")
GROUPED = ("R@1", "R@10")  # that are shown with the group right too; scores.json has all
REVERSED = ("metric", "value", "images reversed", "difference", "n", "groups")
FOUND = ("stated", "labels deny it", PERMUTED, "labels show it", "n", "groups")
POINTS = ("fixed on validation", "from", "sensitivity", "specificity", "n", "groups")
BY_INSTITUTION = ("institution", "metric", "value", "another's would lie in", "n", "groups")
CALIBRATED = ("observed − foretold", "intercept", "slope", "n")
PREDICTED = ("prevalence", "fixed on validation", "PPV", "NPV", "biopsies for one")
RANKED = ("metric", "value", "chance", "one order", "n", "groups")
BELOW = {PERMUTED: "  images permuted", MAJORITY: "  always the same"}  # on the terminal
TESTS = ("set", "what", "metric", "ours", "theirs", "difference", "p", "p (Holm)", "test", "n", "groups")
LETTERS = {"paired bootstrap": "B", "McNemar": "M", "DeLong": "D"}
METHODS = {
    WILSON: "W",
    EXPANDED: "E",
    multireader.METHOD: "R",
    calibration.SANDWICH: "S",
    institutions.METHOD: "H",
}  # behind each interval
COUNTS = ("n", "groups", "unscored")
TEXTS = ("metric", "set", "what")
Titled = tuple[str, Sequence[str], list[list[str]]]  # title, head and rows of a table
# Accuracy hides missed cancers, so what was found of them always stands right below it.
BESIDE = ("accuracy", "sensitivity", "specificity")
NONE = "–"
NOT_KNOWN = "not known which classes are malignant"
BRIEFLY = {NOT_KNOWN: "malignant classes not known"}  # where 80 columns have no room for more


def show(console: Console, scores: Mapping[str, Any]) -> None:
    """Prints the tables of `scores`, the content of a scores.json, so that they fit into 80 columns."""
    titled = [
        (title, *_stacked(head, rows))
        for title, head, rows in [*_sets(scores), *_replicates(scores), *_left_out(scores)]
    ]
    show_page(console, [*_worse(scores), about(scores)], titled)
    for comparison in _compared(scores):
        _print_tests(console, f"{scores['run']} against {comparison['against']}", comparison)


def show_page(console: Console, lines: Iterable[str], titled: Iterable[Titled]) -> None:
    """Prints lines and tables."""
    for line in lines:
        console.print(textwrap.fill(line, WIDTH, **UNBROKEN), soft_wrap=True)
    for title, head, rows in titled:
        _print(console, title, head, rows)


def _print(console: Console, title: str, head: Sequence[str], rows: Iterable[Sequence[str]], gap: int = 2) -> None:
    columns = [right(name) if name in COUNTS else Column(name, no_wrap=name in TEXTS) for name in head]
    table = narrow(*columns, gap=gap)
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", soft_wrap=True)
    console.print(table)


def _stacked(head: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The table with both baselines below the numbers that they are to be compared with, not beside them."""
    kept = [column for column, name in enumerate(head) if name not in BELOW or "value" not in head]
    stacked = []
    for row in rows:
        stacked.append([BRIEFLY.get(row[column], row[column]) for column in kept])
        for column, name in enumerate(head):
            if column not in kept and row[column] != NONE:
                stacked.append([BELOW[name], row[column], *[""] * (len(kept) - 2)])
    return [head[column] for column in kept], stacked


def _print_tests(console: Console, title: str, comparison: Mapping[str, Any]) -> None:
    """Prints a table for each set and what was asked of it, then which test a letter stands for."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for test in comparison["tests"]:
        kinds.setdefault((test["set"], test["what"]), []).append(test)
    for (name, what), tests in kinds.items():
        rows = []
        for test in tests:
            _, _, metric, ours, theirs, difference, p, holm, by, n, _ = _test(test)
            difference = difference.removesuffix(f" {METHODS[EXPANDED]}")  # as the line below says of all of them
            rows.append([metric, ours, theirs, difference, p, holm, LETTERS[by], n])
        head = ("metric", "ours", "theirs", "difference", "p", "Holm", "by", "n")
        _print(console, f"{title}: {name}, {what}", head, rows, gap=1)
    used = {test["test"] for test in comparison["tests"]}
    letters = ", ".join(f"{letter}: {test}" for test, letter in LETTERS.items() if test in used)
    said = f"p by {letters}; Holm: p corrected for all of these tests"
    console.print(textwrap.fill(said, WIDTH, **UNBROKEN), soft_wrap=True)
    console.print(f"every difference with its interval by {METHODS[EXPANDED]}", soft_wrap=True)
    for line in _verdicts(comparison):
        console.print(textwrap.fill(line, WIDTH, **UNBROKEN), soft_wrap=True)


def markdown(scores: Mapping[str, Any]) -> str:
    """The same numbers in Markdown, all of a table side by side, with what came from data escaped."""
    titled = [*_sets(scores), *_replicates(scores), *_left_out(scores), *_comparison(scores)]
    verdicts = [line for comparison in _compared(scores) for line in _verdicts(comparison)]
    return page([*_worse(scores), about(scores)], titled, verdicts)


def page(lines: Iterable[str], titled: Iterable[Titled], after: Iterable[str] = ()) -> str:
    """Lines, tables and lines as Markdown, with what came from data escaped."""
    parts = [escaped(line) for line in lines]
    for title, head, rows in titled:
        above = [f"{escaped(title)}:", "", *(_line(row) for row in (head, ["---"] * len(head)))]
        parts.append("\n".join([*above, *(_line([escaped(cell) for cell in row]) for row in rows)]))
    parts += [escaped(line) for line in after]
    return "\n\n".join(parts) + "\n"


def _worse(scores: Mapping[str, Any]) -> list[str]:
    """Where two towers are worse than their base, which nothing may stand before."""
    lines = untrained.worse(scores)
    return [f"Worse than the base without training: {'; '.join(lines)}."] if lines else []


def _compared(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparison that was asked for, and that with the base; neither if there are no tests."""
    blocks = [block for block in (scores["comparison"], scores["untrained"]) if block and block["tests"]]
    return list({block["against"]: block for block in blocks}.values())  # the base may be what was asked for


def about(scores: Mapping[str, Any]) -> str:
    """What the intervals are, and the letters behind them."""
    return (
        f"All numbers with {scores['level']:.0%} intervals that take groups whole. {METHODS[WILSON]}: a share, by "
        f"Wilson's interval with the groups' variance, from {FEWEST[WILSON]} groups on. {METHODS[EXPANDED]}: any other "
        f"number, by expanded percentiles of {scores['resamples']:,} resamples (seed {scores['seed']}), from "
        f"{FEWEST[EXPANDED]} groups on. {ALIKE.capitalize()}: no resample differs, and nothing can be said."
    )


def _sets(scores: Mapping[str, Any]) -> Iterator[Titled]:
    for name, blocks in scores["sets"].items():
        for what, rows in (("", _free(blocks)), *((f", {what}", rows) for what, rows in _classes(blocks))):
            if rows:
                yield f"{scores['run']}: {name}{what}", *_used(HEAD, rows)
        yield from _operating(f"{scores['run']}: {name}", blocks)
        yield from _calibration(f"{scores['run']}: {name}", blocks)
        yield from _institutions(f"{scores['run']}: {name}", blocks)
        if (found := blocks.get("answers", {}).get("unsupported")) is not None:
            yield f"{scores['run']}: {name}, findings that labels deny", FOUND, _unsupported(blocks, found)
        if "reversed" in blocks:
            yield f"{scores['run']}: {name}, images reversed", REVERSED, _reversed(blocks["reversed"])
        if "robustness" in blocks:
            yield f"{scores['run']}: {name}, asked in other ways", robustness.HEAD, _ways(blocks["robustness"])
        if "text" in blocks:
            unread = sum(blocks["text"]["unread"].values())
            title = f"{scores['run']}: {name}, without images ({unread:,} rows not read)"
            yield title, text_sets.HEAD, text_sets.table(blocks["text"], number)
        for direction, block in blocks.get("retrieval", {"directions": {}})["directions"].items():
            yield f"{scores['run']}: {name}, {direction}, pool of {block['pool']:,}", RANKED, _ranked(block)


def _replicates(scores: Mapping[str, Any]) -> Iterator[Titled]:
    for title, replicates in (("Probes with", scores["seeds"]), ("Runs", scores["replicates"])):
        if replicates:
            yield f"{title} {', '.join(replicates['runs'])}", *_spreads(replicates)


def _comparison(scores: Mapping[str, Any]) -> Iterator[Titled]:
    for comparison in _compared(scores):
        yield f"{scores['run']} against {comparison['against']}", TESTS, [_test(test) for test in comparison["tests"]]


def _verdicts(comparison: Mapping[str, Any]) -> Iterator[str]:
    """A line for each verdict within the margin that was given, and what it holds for."""
    margin = comparison.get("margin")
    for verdict in compare.VERDICTS if margin is not None else ():
        of = [f"{test['set']} {test['metric']}" for test in comparison["tests"] if test["verdict"] == verdict]
        if of:
            yield f"within {margin:g} of {comparison['against']}, {verdict}: {', '.join(of)}"


def _free(blocks: Mapping[str, Any]) -> list[list[str]]:
    """A row for each number of a set's free answers, with the control's and the baseline's beside it."""
    own, control = blocks.get("answers", {}), blocks.get("permuted", {})
    numbers, controls = own.get("metrics", {}), control.get("metrics", {})
    rows = [_row("valid answers", own.get("valid"), control.get("valid"), None)]
    for metric in numbers or controls:
        majority = own.get("majority") if metric == "closed_accuracy" else None
        shown = numbers.get(metric) or controls[metric]
        if shown["n"] or shown["unscored"]:  # else no row is such a question
            rows.append(_row(metric, numbers.get(metric), controls.get(metric), majority))
    return rows if own or control else []


def _operating(title: str, blocks: Mapping[str, Any]) -> Iterator[Titled]:
    """What comes of thresholds that validation rows chose, and of what is called malignant at a prevalence."""
    points = ((blocks.get("classes") or {}).get("operating") or {"points": []})["points"]
    reached = [point for point in points if point["threshold"] is not None]
    names = [f"{point['fixed']} {point['at']:g}" for point in reached]
    rows, predicted = [], []
    for name, point in zip(names, reached, strict=True):
        sides = (point["sensitivity"], point["specificity"])
        counts = [f"{sum(side[count] for side in sides):,}" for count in ("n", "groups")]
        rows.append([name, _plain(point["threshold"]), *map(number, sides), *counts])
        for of in point["at_prevalence"]:
            predicted.append([f"{of['prevalence']:g}", name, *(number(of[key]) for key in ("ppv", "npv", "biopsies"))])
    if rows:
        yield f"{title}, malignant from a probability on", POINTS, rows
    if predicted:
        yield f"{title}, of those called malignant at a prevalence", PREDICTED, sorted(predicted)


def _calibration(title: str, blocks: Mapping[str, Any]) -> Iterator[Titled]:
    """How true the probabilities of malignancy are; scores.json and the report have each subgroup too."""
    own = (blocks.get("classes") or {}).get("calibration")
    if own is None:
        return
    keys = ("observed_less_foretold", "intercept", "slope")
    table = [[*(number(own[key]) for key in keys), f"{own['slope']['n']:,}"]]
    yield f"{title}, calibration of malignancy (S: sandwich over groups, t)", CALIBRATED, table


def _institutions(title: str, blocks: Mapping[str, Any]) -> Iterator[Titled]:
    """Each institution's shares, and what they come to together."""
    if rows := _by_institution((blocks.get("classes") or {}).get("institutions") or {}):
        yield f"{title}, by institution (H: Hartung and Knapp)", BY_INSTITUTION, rows


def _left_out(scores: Mapping[str, Any]) -> Iterator[Titled]:
    """The same where each institution is asked of the run that was trained without it."""
    for name, metrics in (scores.get("left_out") or {}).items():
        yield f"{name}, each institution by the run without it (H)", BY_INSTITUTION, _by_institution(metrics)


def _by_institution(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for metric, of in metrics.items():
        for name, own in (*of["by"].items(), ("pooled", of["pooled"])):
            expected = own.get("expected")
            lies = NONE if expected is None else f"[{expected[0]:.3f}, {expected[1]:.3f}]"
            rows.append([name, metric, number(own) if own["value"] is not None else own["method"] or NONE, lies,
                         f"{own['n']:,}", f"{own['groups']:,}"])  # fmt: skip
    return rows


def _unsupported(blocks: Mapping[str, Any], own: Mapping[str, Any]) -> list[list[str]]:
    """A row for the share of answers, one for that of findings, and one for each concept that is stated."""
    control = (blocks.get("permuted") or {}).get("unsupported") or {"by_concept": {}}
    whole = (("in an answer", "answers"), ("of all findings", "findings"))
    lines = [(title, own[name], control.get(name), None) for title, name in whole]
    for name, of in own["by_concept"].items():
        lines.append((name, of["denied"], control["by_concept"].get(name, {}).get("denied"), of["shown"]))
    return [
        [name, number(denied), number(other), number(shown), f"{denied['n']:,}", f"{denied['groups']:,}"]
        for name, denied, other, shown in lines
    ]


def _reversed(block: Mapping[str, Any]) -> list[list[str]]:
    """A row for the share of answers that stay, and for each number with the images in either order."""
    same = block["same"]
    rows = [["same answer", number(same), NONE, NONE, f"{same['n']:,}", f"{same['groups']:,}"]]
    for metric, numbers in block["metrics"].items():
        if (own := numbers["given"])["n"]:
            beside = (number(numbers[what]) for what in ("given", "reversed", "difference"))
            rows.append([metric, *beside, f"{own['n']:,}", f"{own['groups']:,}"])
    return rows


def _ways(block: Mapping[str, Any]) -> list[list[str]]:
    return robustness.table(block, number)


def _classes(blocks: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """The headline variant, and beside it the prompted one; the others stand in scores.json alone."""
    block = blocks.get("classes", {"variants": {}})
    for variant, numbers in block["variants"].items():
        if variant not in (block["headline"], "prompted"):
            continue
        rows = [_row("valid answers", block["valid"], None, None)] if variant == "prompted" else []
        for metric in (*BESIDE, *(name for name in numbers if name not in BESIDE)):
            row = _row(metric, numbers.get(metric), None, block["majority"] if metric == "accuracy" else None)
            rows.append(row if metric in numbers else [metric, NOT_KNOWN, *row[2:]])
            rows += _spread(block, metric) if variant == block["headline"] else []
        yield variant, rows


def _ranked(block: Mapping[str, Any]) -> list[list[str]]:
    """A row for each number of a direction beside a random order and one for all, then with the group right too."""
    rows = []
    for what, numbers in (("", block["numbers"]), (", group too", block["same_group"])):
        for metric, own in numbers.items():
            if what and metric not in GROUPED:
                continue
            beside = ["", ""] if what else [f"{block[order][metric]:.3f}" for order in ("chance", "blind")]
            name = f"{metric}{what}".replace("_", " ")
            rows.append([name, number(own), *beside, f"{own['n']:,}", f"{own['groups']:,}"])
    return rows


def _spread(block: Mapping[str, Any], metric: str) -> Iterator[list[str]]:
    """A row for each kind of variation of prompts over which the metric was measured."""
    for kind, spreads in block["spread"].items():
        if metric in spreads:
            spread = spreads[metric]
            values = f"{_plain(spread['min'])} to {_plain(spread['max'])}, sd {_plain(spread['sd'])}"
            yield [f"  over {len(spread['values'])} {kind}", values, *[NONE] * (len(HEAD) - 2)]


def _used(head: Sequence[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns in which there is anything."""
    used = [column for column in range(len(head)) if any(row[column] != NONE for row in rows)]
    return [head[column] for column in used], [[row[column] for column in used] for row in rows]


def _row(metric: str, own: Any, control: Any, majority: Any) -> list[str]:
    counts = [f"{own[count]:,}" if own else NONE for count in COUNTS]
    return [metric, number(own), number(control), number(majority), *counts]


def number(estimate: Mapping[str, Any] | None) -> str:
    """A Number as text: the value, its interval and the method's letter, or why there is no interval."""
    if estimate is None or estimate["value"] is None:
        return NONE
    if estimate["low"] is None:
        return f"{estimate['value']:.3f} {estimate['method'] or 'no interval'}"
    interval = f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return f"{estimate['value']:.3f} {interval} {METHODS[estimate['method']]}"


def _spreads(replicates: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for name, kinds in replicates["sets"].items():
        for what, spreads in kinds.items():
            for metric, spread in spreads.items():
                rows.append([name, what, metric, *(_plain(spread[key]) for key in ("mean", "sd", "min", "max"))])
    return ("set", "what", "metric", "mean", "sd", "min", "max"), rows


def _test(test: Mapping[str, Any]) -> list[str]:
    return [
        *(test[key] for key in ("set", "what", "metric")),
        *(_plain(test[key]) for key in ("ours", "theirs")),
        number(test["difference"]),
        *(p_value(test[key]) for key in ("p", "p_holm")),
        test["test"],
        f"{test['n']:,}",
        f"{test['groups']:,}",
    ]


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def p_value(value: float | None) -> str:
    """A p-value as text."""
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """The text as Markdown shows it literally, on one line."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", plain)
