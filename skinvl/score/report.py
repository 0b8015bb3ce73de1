"""`skinvl report RUN`: the scores of a run, and a sample of what it said, as one HTML file that needs nothing else."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from rich.console import Console

from skinvl.data import flow, pages, table1
from skinvl.data.pages import short
from skinvl.recipe.files import read_json, read_json_lines, write_bytes
from skinvl.score import (
    charts,
    checklists,
    compare,
    evaluated_flow,
    retrieval_page,
    robustness,
    samples,
    side_by_side,
    tables,
    text_sets,
    untrained,
)
from skinvl.score.readers import results

HEADLINE = {
    "answers": ("closed_accuracy", "option_credit", "json_fields", "json_valid", "exact_match", "token_f1"),
    # Accuracy hides missed cancers, so what was found of them stands right below it.
    "classes": ("accuracy", "sensitivity", "specificity", "balanced_accuracy", "macro_f1", "auroc"),
}
MALIGNANT = {"sensitivity", "specificity"}
WRITTEN = {"bleu": "BLEU", "rouge": "ROUGE", "meteor": "METEOR", "bertscore": "BERTScore", "auroc": "AUROC",
           "auprc": "AUPRC", "aurc": "AURC", "ece": "ECE", "brier": "Brier", "f1": "F1", "json": "JSON",
           "l": "L"}  # fmt: skip
OUTCOMES = {"right": "✓", "partly right": "◐", "wrong": "✗", "no answer": "∅", "not scored": "?"}
NO_SCORES = {  # of what an evaluation logs
    *("eval_runtime", "eval_tokens", "eval_samples_per_second", "eval_steps_per_second"),
    "eval_model_preparation_time",
}


class ReportError(ValueError):
    """A run of which no report can be written."""


def main(arguments: Sequence[str]) -> int:
    """0, once RUN/report.html, a checklist or RUN/side_by_side.html is written.

    Raises:
        ReportError: there are no scores, or they cannot be read.
        PredictionError: the predictions cannot be read.
        ChecklistError, SideBySideError: there is no such checklist, or no row that both runs have.
    """
    parser = argparse.ArgumentParser(prog="skinvl report", description="Write RUN/report.html from a scored run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that skinvl score has scored")
    parser.add_argument("--checklist", metavar="NAME",
                        help=f"write RUN/NAME.md instead, of {', '.join(checklists.names())}")  # fmt: skip
    parser.add_argument("--against", type=Path, metavar="RUN",
                        help="write RUN/side_by_side.html instead, with what another run said")  # fmt: skip
    options = parser.parse_args(list(arguments))
    if options.against and options.checklist:
        parser.error("--checklist and --against are one at a time")
    run: Path = options.run
    console = Console(highlight=False, markup=False)
    if options.checklist:
        console.print(checklists.write(options.checklist, run, _scores(run)), soft_wrap=True)
        return 0
    if options.against:
        text = side_by_side.page(run, _scores(run), options.against, _scores(options.against))
    else:
        text = page(run)
    data = text.encode("utf-8", "replace")
    path = run / ("side_by_side.html" if options.against else "report.html")
    write_bytes(path, data)
    console.print(f"{path}: {len(data) / 2**20:,.1f} MiB, one file", soft_wrap=True)
    return 0


def page(run: Path) -> str:
    """The report as HTML; the same for the same files.

    Raises:
        ReportError, PredictionError: as `main` says.
    """
    scores = _scores(run)
    environment = _json(run / "env.json")
    recipe = run / "recipe.yaml"
    log = list(_lines(run / "log.jsonl", "step"))
    try:
        predicted = list(samples.scored(run / "eval", scores["sets"]))
        template = pages.template(
            Path(__file__).with_name("report.html.j2"),
            digits=digits,
            p=lambda value: "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}",
            label=label,
            letter=tables.METHODS.__getitem__,
            pretty=lambda value: json.dumps(short(value), ensure_ascii=False, indent=1),
        )
        return template.render(
            scores=scores,
            about=tables.about(scores),
            headline=list(_headline(scores)),
            environment=dict(_flat({key: value for key, value in environment.items() if key != "data"})),
            leaks={key: environment.get(key) for key in ("allow_leak", "leaking", "moved", "dropped")},
            summary=dict(_flat({k: v for k, v in _json(run / "summary.json").items() if k not in NO_SCORES})),
            ledger=_ledger(run / "ledger.jsonl"),
            losses=_losses(log),
            during=_during(log),
            recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
            flow=None if (of_rows := evaluated_flow.flow(scores["run"], predicted)) is None else flow.svg(of_rows),
            readers=_readers(run / "readers.json"),
            tables=_tables({each.name: each.rows for each in predicted}),
            cards=list(samples.sample(predicted, scores["seed"])),
            outcomes=OUTCOMES,
            charts=charts,
            robustness=robustness,
            as_text=tables.number,
            text_sets=text_sets,
            worse=untrained.worse(scores),
            **retrieval_page.context(run, scores),
        )
    except (jinja2.UndefinedError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{run / 'scores.json'}: not as this version writes it ({type(error).__name__}: {error}); "
            f"score again with skinvl score {run}"
        ) from error


def _tables(sets: Mapping[str, Sequence[table1.Described]]) -> list[table1.Table1]:
    """Table 1 of the evaluated rows, by each unit; none where no predictions are left."""
    columns = table1.columns(sets)
    return [table1.table(columns, unit) for unit in table1.UNITS] if len(columns.set) else []


def _readers(path: Path) -> tuple[str, list[tables.Titled]] | None:
    """What a reader study of the run came to; None where there was none."""
    numbers = _json(path)
    return (results.about(numbers), list(results.shown(numbers))) if numbers else None


def _scores(run: Path) -> dict[str, Any]:
    path = run / "scores.json"
    if not run.is_dir():
        raise ReportError(f"{run}: no such folder; expected the folder of a run, such as runs/tiny--tiny-qwen2_vl")
    if not path.is_file():
        raise ReportError(
            f"{path}: no such file; make it with skinvl score {run}, or all of it with make eval RUN={run}"
        )
    scores = _json(path)
    if not isinstance(scores.get("sets"), dict):
        raise ReportError(f"{path}: holds no sets; make it again with skinvl score {run}")
    return scores


def _json(path: Path) -> dict[str, Any]:
    """The object in the file; an empty one where there is no file."""
    return read_json(path, "make it again with the verb that wrote it", ReportError) if path.is_file() else {}


def _lines(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file. A killed run may leave half a line."""
    if path.is_file():
        yield from read_json_lines(path, "mend or remove the line", ReportError, keys, unfinished=True)


def digits(value: float | None) -> str:
    """The number as tables show it; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}").replace("-", "−")


def label(metric: str) -> str:
    """The name of a metric, a slice or a fact in words."""
    name = re.sub("[a-z0-9]+", lambda word: WRITTEN.get(word[0], word[0]), metric.replace("_", " "))
    return name + " (lower is better)" * (metric in compare.LOWER) + " (malignant)" * (metric in MALIGNANT)


def _headline(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], list[dict[str, Any]]]]:
    """For each set its name, `answers` or `classes`, its block, and a row for each of the metrics that say most."""
    for name, blocks in scores["sets"].items():
        if answers := blocks.get("answers"):
            control = (blocks.get("permuted") or {}).get("metrics", {})
            rows = _rows("answers", answers["metrics"], control, {"closed_accuracy": answers["majority"]})
            yield name, "answers", answers, rows
        if classes := blocks.get("classes"):
            numbers = classes["variants"].get(classes["headline"], {})
            yield name, "classes", classes, _rows("classes", numbers, {}, {"accuracy": classes["majority"]})


def _rows(
    what: str, own: Mapping[str, Any], control: Mapping[str, Any], majority: Mapping[str, Any]
) -> list[dict[str, Any]]:
    chosen = [name for name in HEADLINE[what] if _known(own.get(name)) or (own and name in MALIGNANT)]
    rows = []
    for metric in chosen or list(own)[:1]:
        number, baselines = own.get(metric), {"permuted": control.get(metric), "majority": majority.get(metric)}
        beside = [_apart(number, other, what) for what, other in baselines.items() if _known(number) and _known(other)]
        why = "not known which classes are malignant" if metric in MALIGNANT and number is None else "–"
        rows.append({"metric": metric, "own": number, "why": why, **baselines, "beside": beside})
    return rows


def _known(number: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    return number is not None and number["value"] is not None


def _apart(own: Mapping[str, Any], other: Mapping[str, Any], what: str) -> str:
    """Where the interval lies beside another's; touching ones are said to overlap, which errs on the careful side."""
    if own["low"] is None or other["low"] is None:
        return f"not known beside {what}"
    low, high, least, most = own["low"], own["high"], other["low"], other["high"]
    return f"above {what}" if low > most else f"below {what}" if high < least else f"overlaps {what}"


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            plain = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
            yield short(f"{above}{key}"), short(plain) or "none"


def _ledger(path: Path) -> list[tuple[str, int, str]]:
    """Each rule, how many rows it took, and the detail of the first; the most frequent first."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for row in _lines(path, "row", "rule", "detail"):
        counts[row["rule"]] += 1
        first.setdefault(row["rule"], short(f"{row['row']}: {row['detail']}" if row["detail"] else row["row"]))
    return [(rule, count, first[rule]) for rule, count in counts.most_common()]


def _losses(log: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Of each loss, its finite (step, value) pairs; of one step the last."""
    losses = _logged(log, lambda key: key == "loss" or (key.startswith("eval_") and key.endswith("_loss")))
    if len(losses.keys() - {"train"}) == 2:  # of one set the overall loss is the same again
        losses.pop("eval", None)
    return losses


def _during(log: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The same of the other scores that were logged at evaluations, if all of them lie between 0 and 1."""
    scores = _logged(log, lambda key: key.startswith("eval_") and not key.endswith("_loss") and key not in NO_SCORES)
    return {name: line for name, line in scores.items() if all(0 <= value <= 1 for _, value in line)}


def _logged(log: Iterable[Mapping[str, Any]], wanted: Callable[[str], bool]) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, dict[float, float]] = {}
    for entry in log:
        for key, value in entry.items():
            if wanted(key) and isinstance(value, int | float) and math.isfinite(value):
                name = "train" if key == "loss" else label(key.removesuffix("_loss"))
                lines.setdefault(name, {})[entry["step"]] = value
    return {name: sorted(points.items()) for name, points in lines.items()}
