"""`skinvl score RUN [RUN …]`: the numbers of what a run answered, with intervals, as scores.json and scores.md."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from skinvl.data.progress import Progress
from skinvl.data.workers import Workers
from skinvl.recipe import strict
from skinvl.recipe.files import write_json, write_text
from skinvl.recipe.recipe import Evaluate
from skinvl.score import (
    answers,
    class_report,
    classification,
    compare,
    exchange,
    institutions,
    metrics,
    order,
    planning,
    retrieval,
    robustness,
    submissions,
    tables,
    text_sets,
    untrained,
)
from skinvl.score.compare import CompareError, Resampling
from skinvl.score.metrics import Metric
from skinvl.score.predictions import FOLDERS, Answer, PredictionError, read
from skinvl.score.readers import results, study
from skinvl.score.retrieval import RetrievedSet
from skinvl.score.stats import LEVEL, RESAMPLES, spread

SMALL_ROWS = 30_000  # are scored sooner than processes start
DIGITS = 9  # of a number in scores.json; a sum in another order differs in the last of its sixteen
MODE = {**dict.fromkeys(FOLDERS, "generate"), "classes": "classify", "retrieval": "retrieve"}


class ScoreError(ValueError):
    """A run that cannot be scored."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a run answered, read and measured, by set."""

    free: dict[str, answers.Measured]
    permuted: dict[str, answers.Measured]
    reversed: dict[str, answers.Measured]
    classes: dict[str, classification.ClassifiedSet]
    retrieval: dict[str, RetrievedSet]
    settings: dict[tuple[str, str], dict[str, Any]]
    robustness: dict[str, dict[str, answers.Measured]] = field(default_factory=dict)  # of each set, by way of asking
    texts: dict[str, text_sets.TextSet] = field(default_factory=dict)


def main(words: Sequence[str]) -> int:
    """0, once scores.json and scores.md lie in the first run and are printed, or a challenge's file is written.

    Raises:
        ScoreError, PredictionError, MetricError, ClassError, CompareError, SubmissionError, StudyError, ExchangeError,
            RecipeError: what a user can mend.
    """
    options = _arguments(words)
    runs: list[Path] = options.runs
    console = Console(highlight=False, markup=False)
    if options.groups_for:
        console.print(planning.groups_for(options.groups_for), soft_wrap=True)
        return 0
    if options.submission:
        challenge, out = options.submission
        console.print(submissions.write(challenge, runs[0], Path(out)), soft_wrap=True)
        return 0
    if options.study:
        folder, names = options.study
        said = study.write(runs[0], Path(folder), names.split(","), options.cases, options.seed)
        console.print(said, soft_wrap=True)
        return 0
    if options.export:
        console.print(exchange.export(options.export[0], runs[0], Path(options.export[1])), soft_wrap=True)
        return 0
    if options.take:
        form, log, out = options.take
        console.print(exchange.take(form, runs[0], Path(log), Path(out)), soft_wrap=True)
        return 0
    if options.readings:
        tables.show_page(console, *results.write(runs[0], options.readings, options.resamples, options.seed))
        return 0
    metric_names = options.metrics.split(",") if options.metrics else _metrics_of(runs[0])
    chosen = [metrics.load(name) for name in dict.fromkeys(metric_names)]
    resampling = Resampling(options.resamples, options.seed)

    # The first run's own numbers, with intervals.
    ours = load(runs[0], chosen, options.workers)
    scores: dict[str, Any] = {
        "run": runs[0].resolve().name,
        "prevalence": options.prevalence,
        "resamples": options.resamples,
        "seed": options.seed,
        "level": LEVEL,
        "sets": blocks(ours, resampling, options.prevalence),
        "seeds": None,
        "replicates": None,
        "left_out": None,
        "comparison": None,
        "untrained": None,
    }

    # How they vary over the seeds of a probe, and over all of the runs, of which the others' numbers alone are needed.
    scores["seeds"] = _seeds(scores["sets"])
    if len(runs) > 1:
        rest, classes = [], [ours.classes]
        for run in runs[1:]:
            other = load(run, chosen, options.workers)
            rest.append(blocks(other, Resampling(0, options.seed)))
            classes.append(other.classes)
        scores["replicates"] = {
            "runs": [run.resolve().name for run in runs],
            "sets": _replicates([scores["sets"], *rest]),
        }
        scores["left_out"] = institutions.left_out(runs, classes)

    # Whether another run differs.
    if options.against:
        theirs = load(options.against, chosen, options.workers)
        scores["comparison"] = {
            "against": options.against.resolve().name,
            "margin": options.margin,
            "tests": _compare(runs[0], ours, options.against, theirs, resampling),
        }
        if options.margin is not None:
            scores["comparison"]["tests"] = compare.judged(scores["comparison"]["tests"], options.margin)

    # Whether two towers are better than the base that they started from, where that was evaluated.
    if (base := untrained.folder(runs[0])) and base.resolve() != runs[0].resolve():
        try:
            tests = _compare(runs[0], ours, base, load(base, chosen, options.workers), resampling)
            scores["untrained"] = untrained.block(base.name, tests)
        except (CompareError, ScoreError, PredictionError) as error:  # what was not asked for does not end this
            scores["untrained"] = untrained.block(base.name, [], str(error))

    scores = _rounded(scores)
    write_json(runs[0] / "scores.json", scores, indent=1, allow_nan=False)
    write_text(runs[0] / "scores.md", tables.markdown(scores))
    tables.show(console, scores)
    return 0


def load(run: Path, chosen: Sequence[Metric], workers: int) -> Scored:
    """Everything that a run answered, with the statistics of every row.

    Raises:
        ScoreError: it has answered nothing, or not all of a set.
    """
    files = {folder: _files(run, folder) for folder in FOLDERS}
    texts = text_sets.read_all(run)
    if not any(files.values()) and not texts:
        raise ScoreError(f"{run / 'eval'}: no predictions to score; make them with: make eval RUN={run}")
    scored = Scored({}, {}, {}, {}, {}, {})
    asked = {"answers": scored.free, "permuted": scored.permuted, "reversed": scored.reversed}
    for folder, measured in asked.items():
        for path in files[folder]:
            settings, rows = read(path, Answer)
            _refuse_empty(path, rows)
            scored.settings[folder, path.stem] = settings
            with Workers(workers if len(rows) > SMALL_ROWS else 1) as pool:
                measured[path.stem] = answers.measure(rows, chosen, pool)

    for folder in sorted(path.name for path in (run / "eval" / "robustness").glob("*/")):
        for path in _files(run, f"robustness/{folder}"):
            _, rows = read(path, Answer)
            _refuse_empty(path, rows)
            rows = robustness.plainly(rows, scored.free[path.stem].rows if path.stem in scored.free else ())
            with Workers(workers if len(rows) > SMALL_ROWS else 1) as pool:
                scored.robustness.setdefault(path.stem, {})[folder] = answers.measure(rows, chosen, pool)

    scored.texts.update(texts)
    for path in files["classes"]:
        if not path.stem.endswith(".validation"):
            scored.classes[path.stem] = classification.classified_set(path)
            _refuse_empty(path, scored.classes[path.stem].rows)
    for path in files["retrieval"]:
        scored.retrieval[path.stem] = retrieval.read(path)
        _refuse_empty(path, list(scored.retrieval[path.stem].rows))
    return scored


def blocks(scored: Scored, resampling: Resampling, prevalences: Sequence[float] = ()) -> dict[str, dict[str, Any]]:
    """The `sets` of scores.json.

    Args:
        prevalences: of malignancy, for which predictive values are given.

    Raises:
        ScoreError: answers to reversed images have nothing to be held against.
    """
    blocks_by_set: dict[str, dict[str, Any]] = {}
    count = len(scored.free) + len(scored.permuted) + len(scored.reversed) + len(scored.classes) + len(scored.retrieval)
    count += len(scored.robustness) + len(scored.texts)
    with Progress("intervals of sets", count) as progress:
        for what, sets in (("answers", scored.free), ("permuted", scored.permuted)):
            for name, measured in sets.items():
                draws = answers.bootstrap(measured.rows, resampling.resamples, resampling.seed)
                blocks_by_set.setdefault(name, {})[what] = answers.block(measured, scored.settings[what, name], draws)
                progress.advance(1)
        for name, turned in scored.reversed.items():
            if name not in scored.free:
                raise ScoreError(
                    f"{name}: was asked with its images in reverse order, and there are no answers to their own "
                    "order to hold that against; make them with skinvl generate, or remove eval/reversed"
                )
            blocks_by_set.setdefault(name, {})["reversed"] = order.block(name, scored.free[name], turned, resampling)
            progress.advance(1)
        for name, ways in scored.robustness.items():
            if name not in scored.free:
                raise ScoreError(
                    f"{name}: was asked in other ways, and there are no plain answers to hold that against; make them "
                    "with skinvl generate, or remove eval/robustness"
                )
            blocks_by_set.setdefault(name, {})["robustness"] = robustness.block(
                name, scored.free[name], ways, resampling
            )
            progress.advance(1)
        for name, asked in scored.texts.items():
            blocks_by_set.setdefault(name, {})["text"] = text_sets.block(name, asked, resampling)
            progress.advance(1)
        for name, classified in scored.classes.items():
            draws = classification.bootstrap(classified.rows, resampling.resamples, resampling.seed)
            blocks_by_set.setdefault(name, {})["classes"] = class_report.block(classified, draws, prevalences)
            progress.advance(1)
        for name, ranked in scored.retrieval.items():
            block = retrieval.block(ranked, resampling.resamples, resampling.seed)
            blocks_by_set.setdefault(name, {})["retrieval"] = block
            progress.advance(1)
    return dict(sorted(blocks_by_set.items()))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="skinvl score", description="Score what runs answered, with intervals.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN",
                        help="folder of a run; of several, all replicates, the first gets the numbers")  # fmt: skip
    parser.add_argument("--against", type=Path, metavar="RUN", help="a run to test the first one against")
    parser.add_argument("--margin", type=float, metavar="M",
                        help="with --against: how much worse may count as no worse, such as 0.02")  # fmt: skip
    parser.add_argument("--groups-for", metavar="NAME=WIDTH,…",
                        help="how many groups an interval so wide takes, such as auroc=0.1; takes no RUN")  # fmt: skip
    parser.add_argument("--prevalence", metavar="P,…", default=[], type=_shares,
                        help="of malignancy where it would be used, for predictive values, such as 0.02")  # fmt: skip
    parser.add_argument("--metrics", metavar="NAME,…", help="of the answers (default: the recipe's evaluate.metrics)")
    parser.add_argument("--submission", nargs=2, metavar=("CHALLENGE", "FILE"),
                        help=f"write what a challenge takes: {', '.join(submissions.names())}")  # fmt: skip
    parser.add_argument("--study", nargs=2, metavar=("DIR", "NAME,…"),
                        help="write a blinded reader study for these readers")  # fmt: skip
    parser.add_argument("--cases", type=int, metavar="N", help="with --study: how many are drawn (default: all)")
    parser.add_argument("--readings", type=Path, metavar="DIR",
                        help="score what the readers of a study filled in, beside the model")  # fmt: skip
    parser.add_argument("--export", nargs=2, metavar=("FORM", "FILE"),
                        help=f"write a set's answers as a log of {' or '.join(exchange.names())}")  # fmt: skip
    parser.add_argument("--take", nargs=3, metavar=("FORM", "LOG", "DIR"),
                        help="take a log's answers to the questions of RUN as a run of its own")  # fmt: skip
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N",
                        help=f"resamples of an interval (default {RESAMPLES:,})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the resamples (default 0)")
    parser.add_argument("--workers", type=int, metavar="N", default=len(os.sched_getaffinity(0)),
                        help="processes (default: one for each core)")  # fmt: skip
    options = parser.parse_intermixed_args(words)
    if not options.runs and not options.groups_for:
        parser.error("the following arguments are required: RUN")
    if options.resamples < 100:
        parser.error(f"--resamples {options.resamples}: expected at least 100, for the ends of a 95 % interval")
    if options.margin is not None and not (options.against and 0 < options.margin < 1):
        parser.error(f"--margin {options.margin}: expected a number between 0 and 1, with --against RUN")
    others = ("submission", "study", "readings", "export", "take")  # what is done instead of scoring
    asked = [f"--{name}" for name in others if getattr(options, name)]
    if len(asked) > 1:
        parser.error(f"{' and '.join(asked)}: expected one of them")
    if asked and (len(options.runs) > 1 or options.against):
        parser.error(f"{asked[0]} takes one RUN, or the file of one set's predictions")
    if options.cases is not None and not (options.study and options.cases > 0):
        parser.error(f"--cases {options.cases}: expected at least 1, with --study DIR NAME,…")
    if options.seed < 0 or options.workers < 1:
        parser.error("--seed starts at 0 and --workers at 1")
    return options


def _shares(text: str) -> list[float]:
    """Numbers between 0 and 1, parted by commas.

    Raises:
        ArgumentTypeError: something else.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers between 0 and 1, such as 0.02 or 0.02,0.1")
    return list(dict.fromkeys(shares))


def _metrics_of(run: Path) -> list[str]:
    """The metrics of answers that the run's recipe names, or the default ones where it has none, or two towers."""
    path = run / "recipe.yaml"
    document = strict.read(path) if path.is_file() else strict.Document(path.name, {})
    if "objective" in document.data:
        return list(Evaluate().metrics)
    try:
        settings = Evaluate.model_validate(document.data.get("evaluate") or {})
    except ValidationError as error:
        faults = strict.faults(error, Evaluate)
        document.fail(strict.Fault(("evaluate", *fault.keys), fault.text) for fault in faults)
        raise
    return list(settings.metrics)


def _files(run: Path, folder: str) -> list[Path]:
    """The sets that the run was asked, by name."""
    where = run / "eval" / folder
    begun = sorted(path for path in where.glob(".*.rank*.jsonl"))
    if begun:
        raise ScoreError(
            f"{begun[0]}: a set that was begun and not finished; go on with skinvl {MODE.get(folder, 'generate')}, or "
            f"with make eval RUN={run}"
        )
    return sorted(path for path in where.glob("*.jsonl") if not path.name.startswith("."))


def _refuse_empty(path: Path, rows: Sequence[object]) -> None:
    """Refuses a set without rows.

    Raises:
        ScoreError: it has none.
    """
    if not rows:
        raise ScoreError(f"{path}: no rows; remove it, and evaluate a set that has some")


def _seeds(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """As `_replicates`, over the sets that are one probe with several seeds; None where there is none."""
    by_probe: dict[str, dict[int, Mapping[str, Any]]] = {}
    for blocks in sets.values():
        settings = blocks["classes"]["settings"] if "classes" in blocks else {}
        if settings.get("replicate_of"):
            by_probe.setdefault(settings["replicate_of"], {})[settings["seed"]] = blocks
    several = {name: dict(sorted(seeds.items())) for name, seeds in by_probe.items() if len(seeds) > 1}
    if not several:
        return None
    spreads = {
        name: _replicates([{name: blocks} for blocks in seeds.values()])[name] for name, seeds in several.items()
    }
    return {"runs": [f"seed {seed}" for seed in sorted({*chain.from_iterable(several.values())})], "sets": spreads}


def _replicates(runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean, standard deviation (n − 1), least and greatest over the runs, of what all of them have."""
    replicates: dict[str, Any] = {}
    for name in runs[0]:
        for what in ("answers", "classes", "retrieval"):
            if any(what not in run.get(name, {}) for run in runs):
                continue
            by_run = [_headline(run[name][what]) for run in runs]
            shared = [metric for metric in by_run[0] if all(metric in numbers for numbers in by_run)]
            replicates.setdefault(name, {})[what] = {
                metric: spread([numbers[metric]["value"] for numbers in by_run]) for metric in shared
            }
    return replicates


def _headline(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """The numbers of a set's block: of its answers, of the headline variant of its classes, or of both directions."""
    if "directions" in block:
        return retrieval.flat(block)
    if "metrics" in block:
        numbers: Mapping[str, Any] = block["metrics"]
    else:
        numbers = block["variants"][block["headline"]] if block["headline"] else {}
    return numbers


def _compare(run: Path, ours: Scored, against: Path, theirs: Scored, resampling: Resampling) -> list[dict[str, Any]]:
    """The tests of every set that both runs were asked, corrected as one family.

    Raises:
        ScoreError: there is none.
    """
    tests = []
    free, classified = ours.free.keys() & theirs.free.keys(), ours.classes.keys() & theirs.classes.keys()
    ranked = ours.retrieval.keys() & theirs.retrieval.keys()
    with Progress("comparisons of sets", len(free) + len(classified) + len(ranked)) as progress:
        for name in sorted(free):
            tests += compare.free(name, ours.free[name], theirs.free[name], resampling)
            progress.advance(1)
        for name in sorted(classified):
            tests += compare.classes(name, ours.classes[name], theirs.classes[name], resampling)
            progress.advance(1)
        for name in sorted(ranked):
            tests += compare.retrieved(name, ours.retrieval[name], theirs.retrieval[name], resampling)
            progress.advance(1)
    if not tests:
        mine, others = (sorted({*side.free, *side.classes, *side.retrieval}) for side in (ours, theirs))
        raise ScoreError(
            f"{run} has the sets {', '.join(mine)} and {against} {', '.join(others)}: there is none that both were "
            "asked; evaluate both on one"
        )
    tests.sort(key=lambda test: (test["set"], test["what"]))
    return compare.family(tests)


def _rounded(value: Any) -> Any:
    """The value with every float to DIGITS digits, and None for what is not a number."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
