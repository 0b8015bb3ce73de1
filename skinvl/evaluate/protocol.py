"""`skinvl eval RUN --protocol NAME`: a run asked as others were, in one table beside the figures that they published.

Sets that are not on this machine are named and left out. Every number is ours to the end: rows without what training
saw, n, and an interval over groups. The figures beside it are of the rows, prompts and truth that their authors took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from skinvl.data import mixture
from skinvl.data.example import splits
from skinvl.data.source import source_folder
from skinvl.evaluate import benchmarks, probe
from skinvl.evaluate.classify import classify_sets
from skinvl.evaluate.concept.score import score_source
from skinvl.evaluate.distributed import ranks
from skinvl.evaluate.probe_features import features_of
from skinvl.evaluate.retrieve import retrieve_sets
from skinvl.evaluate.zeroshot import zeroshot_sets
from skinvl.recipe.files import read_json, write_json, write_text
from skinvl.recipe.printing import narrow, right
from skinvl.recipe.protocol import Protocol, ProtocolSet
from skinvl.recipe.recipe import ClassSpec, Recipe, SourceSpec
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import class_report, classification, ranking, retrieval
from skinvl.score.stats import RESAMPLES
from skinvl.score.tables import escaped, number

SEED = 0  # of the resamples
NONE = "–"


class ProtocolError(ValueError):
    """A protocol that cannot be asked of a run, or of which nothing is on this machine."""


@dataclass(frozen=True, slots=True)
class Line:
    """One number of a protocol's table, beside what was published of its set."""

    set: str
    what: str  # the direction, share of the labels or way to score; empty where there is one number alone
    source: str  # where our rows lie
    metric: str
    ours: Mapping[str, Any]  # a Number
    rows: int | None  # that the figures are of
    figures: Mapping[str, float] = field(default_factory=dict)


def ask(protocol: Protocol, recipe: Recipe | PretrainRecipe, out: Path) -> None:
    """Asks the run what the protocol asks, and writes `out/protocols/<name>.json` and `.md` with the table.

    Raises:
        ProtocolError: none of its sets is on this machine, or the verb is not for such a run.
    """
    if not isinstance(recipe, PretrainRecipe) and protocol.verb in ("retrieve", "concepts"):
        raise ProtocolError(
            f"{protocol.name}: {protocol.verb} compares images with texts, and {out} is of a vision-language model; "
            "give a run of pretrain, or a protocol that classifies"
        )
    learns = protocol.verb == "probe"
    found = {name: at(one, learns) for name, one in protocol.sets.items()}
    present = {name: spec for name, spec in found.items() if spec is not None}
    absent = [f"{name} ({_expected(one, learns)})" for name, one in protocol.sets.items() if found[name] is None]
    if not present:
        raise ProtocolError(
            f"{protocol.name}: none of its sets is here: {'; '.join(absent)}. Prepare one with skinvl prep, or put its "
            "released CSV there, with the images below its folder"
        )
    lines = list(_ASKED[protocol.verb](protocol, present, recipe, out))
    if not ranks().is_main_process:
        return
    record = {
        "protocol": protocol.model_dump(),
        "numbers": [asdict(line) for line in lines],
        "not_here": absent,
    }
    path = out / "protocols" / f"{protocol.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record, indent=1, allow_nan=False)
    write_text(path.with_suffix(".md"), markdown(protocol, lines, absent))
    _show(Console(highlight=False, markup=False), path.with_suffix(".md"), lines, absent)


def at(one: ProtocolSet, learns: bool) -> ClassSpec | None:
    """Where the rows of a set lie on this machine; None where they do not.

    Args:
        learns: whether a split to learn from is needed too.
    """
    for spec in one.at:
        if spec.source.casefold().endswith(".csv"):
            if Path(spec.source).is_file():
                return spec
        elif {*_splits(spec, learns)} <= {*splits(source_folder(spec.source))}:
            return spec
    return None


def _splits(spec: ClassSpec, learns: bool) -> list[str]:
    return [*([probe.TRAIN] if learns else []), spec.split]


def _expected(one: ProtocolSet, learns: bool) -> str:
    """Where the rows of a set would have to lie."""
    places = []
    for spec in one.at:
        names = _splits(spec, learns)
        of = f"split{'s' if learns else ''} {' and '.join(names)}"
        places.append(spec.source if spec.source.endswith(".csv") else f"{source_folder(spec.source)}, {of}")
    return " or ".join(places)


def _classified(
    protocol: Protocol, present: Mapping[str, ClassSpec], recipe: Recipe | PretrainRecipe, out: Path
) -> Iterator[Line]:
    """A line of each set, by prompts; by likelihood where a vision-language model is asked."""
    specs = list(present.values())
    if isinstance(recipe, PretrainRecipe):
        zeroshot_sets(_evaluating(recipe, classify=specs), out)
    else:
        classify_sets(_evaluating(recipe, classify=specs), out)
    for set_name, stem in zip(present, benchmarks.names(specs), strict=True):
        yield _of_classes(protocol, set_name, present[set_name], "", out / "eval" / "classes" / f"{stem}.jsonl")


def _probed(
    protocol: Protocol, present: Mapping[str, ClassSpec], recipe: Recipe | PretrainRecipe, out: Path
) -> Iterator[Line]:
    """A line of each set, share of its labels and seed."""
    asked, specs = protocol.probe, list(present.values())
    assert asked is not None
    own = recipe.evaluate.probe.model_copy(update={"shares": asked.shares, "seeds": asked.seeds})
    asking = _evaluating(recipe, classify=specs, probe=own)
    probe.probe_sets(asking, out)
    for set_name, stem in zip(present, benchmarks.names(specs), strict=True):
        for share in sorted(set(asked.shares)):
            for seed in dict.fromkeys(asked.seeds):
                path = probe.path_of(out / "eval" / "classes", stem, features_of(recipe), share, seed)
                what = f"{share} %" + (f", seed {seed}" if len(asked.seeds) > 1 else "")
                yield _of_classes(protocol, set_name, present[set_name], what, path)


def _of_classes(protocol: Protocol, set_name: str, spec: ClassSpec, what: str, path: Path) -> Line:
    one = protocol.sets[set_name]
    classified = classification.classified_set(path)
    draws = classification.bootstrap(classified.rows, RESAMPLES, SEED)
    block = class_report.block(classified, draws)
    numbers = block["variants"][block["headline"]] if block["headline"] else {}
    if one.metric not in numbers:
        raise ProtocolError(
            f"{path}: no row could be scored, so that there is no {one.metric}; see what it says of each"
        )
    figures = {model: one.of(model)[0] for model in one.figures}
    return Line(set_name, what, spec.source, one.metric, numbers[one.metric], one.n, figures)


def _retrieved(
    protocol: Protocol, present: Mapping[str, ClassSpec], recipe: Recipe | PretrainRecipe, out: Path
) -> Iterator[Line]:
    """A line of each set and direction: the mean of R@k over the protocol's k."""
    assert isinstance(recipe, PretrainRecipe)
    assert protocol.depths is not None
    sources = [SourceSpec(source=spec.source, split=spec.split) for spec in present.values()]
    retrieve_sets(recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": sources})}), out)
    if not ranks().is_main_process:
        return
    for (set_name, spec), source in zip(present.items(), sources, strict=True):
        one = protocol.sets[set_name]
        found = retrieval.read(out / "eval" / "retrieval" / f"{mixture.label(source, sources)}.jsonl")
        for side, (direction, rows) in enumerate(found.rows.items()):
            size = found.size(direction)
            if max(protocol.depths) not in ranking.depths(size):
                raise ProtocolError(
                    f"{spec.source} {spec.split}: a pool of {size:,}, in which R@{max(protocol.depths)} leaves nothing "
                    "out; take a larger set, or a protocol with smaller depths"
                )
            ranked = retrieval.ranked(rows)
            mean = np.mean([ranked <= depth for depth in protocol.depths], axis=0)
            draws = retrieval.bootstrap(rows, RESAMPLES, SEED)
            estimate = draws.share(mean, np.ones(len(rows), np.bool_))
            figures = {model: one.of(model)[side] for model in one.figures}
            yield Line(set_name, direction, spec.source, one.metric, estimate.number(), one.n, figures)


def _told(
    protocol: Protocol, present: Mapping[str, ClassSpec], recipe: Recipe | PretrainRecipe, out: Path
) -> Iterator[Line]:
    """A line of each set and way to score: the mean AUROC of its concepts, by prompts and by units."""
    assert isinstance(recipe, PretrainRecipe)
    for set_name, spec in present.items():
        path = score_source(recipe, out, f"{spec.source}:{spec.split}")
        if not ranks().is_main_process:
            continue
        one = protocol.sets[set_name]
        for way, mean in read_json(path, "make it again with skinvl concepts score", ProtocolError)["macro"].items():
            if mean["auroc"] is not None:
                figures = {model: one.of(model)[0] for model in one.figures}
                what = f"by {way}, {mean['concepts']} of {mean['of']} concepts"
                yield Line(set_name, what, spec.source, one.metric, mean["auroc"], one.n, figures)


_ASKED = {"zeroshot": _classified, "probe": _probed, "retrieve": _retrieved, "concepts": _told}


def _evaluating(recipe: Any, **asked: Any) -> Any:
    """The recipe with other things to evaluate."""
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=asked)})


def markdown(protocol: Protocol, lines: Sequence[Line], absent: Sequence[str]) -> str:
    """The table with a column for each model of which a figure was published, and what is not here."""
    models = [model for model in protocol.figures_from if any(model in line.figures for line in lines)]
    head = ("set", "of", "rows from", "metric", "ours", "n", "their n", *models)
    rows = [
        (
            *(line.set, line.what or NONE, line.source, line.metric.replace("_", " "), number(line.ours)),
            *(f"{line.ours['n']:,}", NONE if line.rows is None else f"{line.rows:,}"),
            *(f"{line.figures[model]:.4g}" if model in line.figures else NONE for model in models),
        )
        for line in lines
    ]
    parts = [
        f"# {protocol.name}",
        "\n".join(f"| {' | '.join(map(escaped, row))} |" for row in (head, ["---"] * len(head), *rows)),
    ]
    if models:
        said = "Figures as published, of their authors' rows, prompts and truth: rows may be theirs where n is."
        parts += [said, "\n".join(f"- {escaped(model)}: {escaped(protocol.figures_from[model])}" for model in models)]
    parts += [f"Not here: {escaped(one)}." for one in absent]
    return "\n\n".join(parts) + "\n"


def _show(console: Console, path: Path, lines: Sequence[Line], absent: Sequence[str]) -> None:
    """Prints the table so that it fits into 80 columns, figures below the number that they stand beside."""
    table = narrow("set", "metric", "ours", right("n"), right("theirs"))
    for line in lines:
        name = f"{line.set} {line.what}".rstrip()
        theirs = NONE if line.rows is None else f"{line.rows:,}"
        table.add_row(name, line.metric.replace("_", " "), number(line.ours), f"{line.ours['n']:,}", theirs)
        for model, figure in line.figures.items():
            table.add_row("", f"  {model}", f"{figure:.4g}", "", "")
    console.print(table)
    for one in absent:
        console.print(f"not here: {one}", soft_wrap=True)
    console.print(f"{path}: every figure with its source", soft_wrap=True)
