"""`skinvl probe`: a linear classifier on what the frozen image tower makes of images, from some or all labels.

Of a vision-language model it is what the SkinVL paper calls SFT classification. An image's features are the mean over
the positions that the tower gives its projector (of Qwen3-VL with those of the deepstack layers; of Mllama over the
tiles that the image fills). Of two towers they are what the image tower pools, or the embedding. Where a sample has
several images they are the mean over these. The classifier is that of `linear`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from skinvl.data import mixture
from skinvl.data.example import splits
from skinvl.data.mixture import Row
from skinvl.data.progress import Progress
from skinvl.data.source import source_folder
from skinvl.evaluate import benchmarks, contamination, distributed, linear
from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.evaluate.linear import Float, Group, group_of, groups_of
from skinvl.evaluate.probe_features import Encoded, features_of, look, look_towers
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.recipe import ClassSpec, Probe, Recipe
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score.predictions import Classified, PredictionJournal, key, rule

TRAIN = "train"  # the split that the classifier learns from


class ProbeError(ValueError):
    """A set on which no probe can be trained, or a tower that is not frozen."""


def main(words: Sequence[str]) -> int:
    """0, once the predictions lie in the run, or in the folder of a base alone."""
    parser = recipe_parser("probe", "Fit a linear probe on the features of the frozen image tower.", run=True)
    args = parser.parse_intermixed_args(words)
    if run.kind(args.recipe, args.overrides) == "pretrain":
        probe_sets(*run.evaluated_towers(args.recipe, args.overrides, images_alone=True))
    else:
        probe_sets(*run.evaluated(args.recipe, args.overrides))
    return 0


def probe_sets(recipe: Recipe | PretrainRecipe, out: Path) -> None:
    """Writes a file of predictions for each classified set, share of its labels and seed to `out/eval/classes`.

    They are called `<set>.probe-<features>-<share>`, of another seed than 0 with `-seed-<seed>` behind it.

    Raises:
        ProbeError: the vision tower of a model was trained, the embedding of a run that trained no head is asked for,
            or a set has nothing to learn from.
    """
    specs = recipe.evaluate.classify
    if not specs:
        raise ProbeError(benchmarks.lacking("probe"))
    if isinstance(recipe, Recipe) and recipe.init_adapter is not None and recipe.parts.vision.train != "frozen":
        raise ProbeError(
            f"parts.vision={recipe.parts.vision.train}: a probe measures the frozen tower, and this adapter changed "
            "it; probe the base, by the name of a recipe instead of the run"
        )
    if isinstance(recipe, PretrainRecipe) and not recipe.reads_texts and features_of(recipe) != "tower":
        raise ProbeError(
            f"evaluate.probe.features={features_of(recipe)}: the objective {recipe.objective.name} trains no head that "
            "would make embeddings of what the tower has learnt; set it to tower"
        )
    state = distributed.ranks()
    if not state.is_main_process:
        return
    say = Console()
    names = benchmarks.names(specs)
    tasks = [(_trained_on(spec), benchmarks.load(spec)) for spec in specs]

    # Of two towers that were trained, test samples that they saw say nothing; the tower of a model is its base's.
    seen = mixture.load(recipe.data).train if isinstance(recipe, PretrainRecipe) and recipe.init_adapter else []
    guarded = [contamination.guarded(test, seen, recipe.data.allow_leak) for _, test in tasks]
    every = [sample for pair in tasks for task in pair for sample in task.samples]
    if isinstance(recipe, PretrainRecipe):
        encoded, facts = look_towers(recipe, every, state, say)
    else:
        encoded, facts = look(recipe, every, state, say)
    run.begin(out, recipe)
    for name, spec, (train, _), (test, leaking) in zip(names, specs, tasks, guarded, strict=True):
        known = {**facts, "leaking": leaking, "allow_leak": recipe.data.allow_leak}
        probe(name, spec, recipe.evaluate.probe, train, test, encoded, known, out / "eval" / "classes", say)


def _trained_on(spec: ClassSpec) -> Task:
    if spec.split == TRAIN:
        raise ProbeError(f"{spec.source}: the split {TRAIN} is what a probe learns from; set split to another one")
    root = source_folder(spec.source)
    if not spec.source.casefold().endswith(".csv") and (available := splits(root)) and TRAIN not in available:
        raise ProbeError(
            f"{root}: no split {TRAIN}, from which a probe could learn; it has {', '.join(available)}. Prepare the "
            "source with one, or leave it out of evaluate.classify"
        )
    return benchmarks.load(spec, TRAIN)


def probe(
    name: str,
    spec: ClassSpec,
    asked: Probe,
    train: Task,
    test: Task,
    encoded: Encoded,
    facts: Mapping[str, Any],
    folder: Path,
    say: Console,
) -> None:
    """Writes the predictions for the test samples into the folder, a file for each share of the train samples and seed.

    Raises:
        ProbeError: the train samples that can be learned from have fewer than two classes.
    """
    # A train sample of which the test set shows an image, or a group, would be recognised rather than classified.
    left_out = Counter[str]()
    shared = _shared(spec, train, test, encoded)
    learned = []
    for sample in train.samples:
        reason = _refusal(sample, encoded) or ("shared-with-test" if group_of(sample) in shared else "")
        if reason:
            left_out[rule(reason)] += 1
        else:
            learned.append(sample)

    if len({sample.label for sample in learned}) < 2:
        raise ProbeError(
            f"{spec.source}: {len(learned)} of its {len(train.samples)} train samples can be learned from "
            f"({_listed(left_out)}), and they have fewer than two classes"
        )

    # The test features are the same for every share; only the classifier is fitted anew.
    usable = [sample for sample in test.samples if not _refusal(sample, encoded)]
    features = _features(usable, encoded)
    wanted = sorted(set(asked.shares))
    for seed in dict.fromkeys(asked.seeds):
        for share, subset in zip(wanted, linear.shares(learned, wanted, seed), strict=True):
            path = path_of(folder, name, facts["features"], share, seed)
            with Progress(f"{name}: fit to {share} % of the labels", 1, say) as progress:
                fitted = linear.fit(_features(subset, encoded), subset, test.classes, seed)
                progress.advance(1)

            # Every test sample has its row: scores, in the order of the features, or the reason why there are none.
            scores = iter(fitted.scores(features))
            rows = []
            for sample in test.samples:
                reason = _refusal(sample, encoded)
                rows.append(sample.record(None if reason else next(scores), reason))
            settings = {
                **benchmarks.settings(test, spec, spec.split, path),
                "question": test.question,
                "prompted": False,
                "probe": share / 100,
                "replicate_of": path_of(folder, name, facts["features"], share, 0).stem,
                "label_tokens": None,
                "prior": None,
                "train": {
                    "split": TRAIN,
                    "rows": len(subset),
                    "groups": len(groups_of(subset)),
                    "left_out": dict(left_out),
                },
                "unlearned": sorted({*test.classes} - {str(sample.label) for sample in subset}),
                "floor": linear.FLOOR,
                "C": fitted.strength,
                "folds": fitted.folds,
                "converged": fitted.converged,
                "seed": seed,
                **facts,
            }
            _write(path, settings, rows)
            remark = f"; left out of training: {_listed(left_out)}" if left_out and share == wanted[-1] else ""
            correct = sum(row.scores is not None and _best(row, test.classes) == row.label for row in rows)
            say.print(
                f"{path}: {len(subset):,} train rows, C={fitted.strength:g}, "
                f"{correct:,} of {len(usable):,} right{'' if fitted.converged else ', not converged'}{remark}",
                soft_wrap=True,
            )


def path_of(folder: Path, name: str, features: str, share: int, seed: int) -> Path:
    """Where the predictions of a set's probe lie."""
    return folder / f"{name}.probe-{features}-{share}{f'-seed-{seed}' if seed else ''}.jsonl"


def _write(path: Path, settings: Mapping[str, Any], rows: Sequence[Classified]) -> None:
    """Writes the predictions; a file that stands finished with these settings stays, one that was stopped is ended."""
    journal = PredictionJournal(path, settings, Classified)
    journal.begin()
    done = journal.done()
    journal.write([row for row in rows if key(row) not in done], 0)
    if not journal.path.is_file():
        journal.finish([key(row) for row in rows])


def _shared(spec: ClassSpec, train: Task, test: Task, encoded: Encoded) -> set[Group]:
    """The groups of train samples that are a test sample's too, or that show an image of one."""
    groups = {group_of(sample) for sample in test.samples}
    digests = {encoded[sample.root / name].sha256 for sample in test.samples for name in sample.example.images} - {""}
    shared = {
        group_of(sample)
        for sample in train.samples
        if group_of(sample) in groups
        or any(encoded[sample.root / name].sha256 in digests for name in sample.example.images)
    }
    if not spec.source.casefold().endswith(".csv"):  # copies that were scaled or saved anew have other bytes
        theirs, ours = ([Row(sample.example, sample.root) for sample in task.samples] for task in (test, train))
        leaking = mixture.leaks(theirs, {TRAIN: ours})
        shared |= {(leak.row.example.source, leak.row.example.group) for leak in leaking}
    return shared


def _refusal(sample: Sample, encoded: Encoded) -> str:
    """Why a sample can be neither learned from nor classified; nothing if it can."""
    if sample.label is None:
        return sample.detail
    if not sample.example.images:
        return "no-image: the conversation shows none"
    details = (encoded[sample.root / name].detail for name in sample.example.images)
    return next(filter(None, details), "")


def _features(samples: Sequence[Sample], encoded: Encoded) -> Float:
    """The mean over each sample's images, float64[N, W]."""
    images = ([encoded[sample.root / name].features for name in sample.example.images] for sample in samples)
    rows = [np.array(features, np.float64).mean(0) for features in images]
    return np.array(rows).reshape(len(samples), -1)


def _best(row: Classified, classes: Sequence[str]) -> str:
    assert row.scores is not None
    return classes[int(np.argmax(row.scores))]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in sorted(counts.items())) or "none left out"
