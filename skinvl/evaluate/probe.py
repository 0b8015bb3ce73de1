"""`skinvl probe`: a linear classifier on what the frozen vision tower makes of images, from 10 to 100 % of the labels.

It is what the SkinVL paper calls SFT classification. An image's features are the mean over the positions that the tower
gives its projector (of Qwen3-VL with those of the deepstack layers; of Mllama over the tiles that the image fills), and
the mean over the images where a case has several. They are standardised on the training rows; the classifier is the
multinomial logistic regression of scikit-learn, its C chosen by cross-validation over whole groups.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from rich.console import Console
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from skinvl.data import fingerprints, mixture
from skinvl.data.example import splits
from skinvl.data.mixture import Row
from skinvl.data.pixels import ImageError, upright
from skinvl.data.progress import Progress
from skinvl.data.source import source_folder
from skinvl.evaluate import benchmarks, distributed
from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.model.base import load_tower
from skinvl.model.chat import Chat, ChatError
from skinvl.model.families import Picture
from skinvl.model.loaded import open_base
from skinvl.recipe import run
from skinvl.recipe.recipe import ClassSpec, Recipe
from skinvl.recipe.words import recipe_parser
from skinvl.score.predictions import Classified, PredictionJournal, key, rule

Float = NDArray[np.float64]
Group = tuple[str, str]  # source, group

TRAIN = "train"  # the split that the classifier learns from
SHARES = (10, 30, 50, 100)  # per cent of the labels
STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # values of C that are tried
FOLDS = 5
SEED = 0  # of which groups belong to a share, and to a fold
STEPS = 2_000  # of the solver at most
FLOOR = -30.0  # log-probability of a class that the share has no example of, and the least of any other


class ProbeError(ValueError):
    """A set on which no probe can be trained, or a tower that is not frozen."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An image through the tower: float32[W], and the sha256 of its file; or why it cannot be read."""

    features: NDArray[np.float32] | None
    sha256: str
    detail: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """A classifier for `classes`, and how it was chosen."""

    classes: Sequence[str]
    pipeline: Pipeline | None  # None where there was only one class to learn
    only: str
    strength: float
    folds: int
    converged: bool

    def scores(self, features: Float) -> Float:
        """Log-probabilities of the classes, float64[N, C]; those without an example have FLOOR."""
        found = np.full((len(features), len(self.classes)), FLOOR)
        if self.pipeline is None:
            found[:, self.classes.index(self.only)] = 0.0
        elif len(features):
            columns = [self.classes.index(one) for one in self.pipeline.classes_]
            found[:, columns] = np.maximum(self.pipeline.predict_log_proba(features), FLOOR)
        return found


def main(words: Sequence[str]) -> int:
    """0, once the predictions lie in the run, or in the folder of a base alone."""
    parser = recipe_parser("probe", "Fit a linear probe on the features of the frozen vision tower.", run=True)
    given = parser.parse_intermixed_args(words)
    probe_sets(*run.evaluated(given.recipe, given.overrides))
    return 0


def probe_sets(recipe: Recipe, out: Path) -> None:
    """Writes `out/eval/classes/<name>.probe-10.jsonl` to `<name>.probe-100.jsonl` of each classified set.

    Raises:
        ProbeError: the vision tower was trained, or a set has nothing to learn from.
    """
    specs = recipe.evaluate.classify
    if not specs:
        raise ProbeError(
            "evaluate.classify: names no set, so that there is nothing to probe; name one in the recipe, or on the "
            'command line: "evaluate.classify=[{source: ham10000, split: test}]"'
        )
    if recipe.init_adapter is not None and recipe.parts.vision.train != "frozen":
        raise ProbeError(
            f"parts.vision={recipe.parts.vision.train}: a probe measures the frozen tower, and this adapter changed "
            "it; probe the base, by the name of a recipe instead of the run"
        )
    state = distributed.ranks()
    if not state.is_main_process:
        return
    say = Console()
    names = benchmarks.names(specs)
    tasks = [(_trained_on(spec), benchmarks.load(spec)) for spec in specs]
    seen, facts = look(recipe, [case for pair in tasks for task in pair for case in task.cases], state, say)
    run.begin(out, recipe)
    for name, spec, (train, test) in zip(names, specs, tasks, strict=True):
        probe(name, spec, train, test, seen, facts, out / "eval" / "classes", say)


def _trained_on(spec: ClassSpec) -> Task:
    if spec.split == TRAIN:
        raise ProbeError(f"{spec.source}: the split {TRAIN} is what a probe learns from; set split to another one")
    root = source_folder(spec.source)
    if not spec.source.casefold().endswith(".csv") and (there := splits(root)) and TRAIN not in there:
        raise ProbeError(
            f"{root}: no split {TRAIN}, from which a probe could learn; it has {', '.join(there)}. Prepare the source "
            "with one, or leave it out of evaluate.classify"
        )
    return benchmarks.load(spec, TRAIN)


def look(
    recipe: Recipe, cases: Iterable[Sample], state: PartialState, say: Console
) -> tuple[dict[Path, Seen], dict[str, Any]]:
    """What the base's vision tower makes of every image of the cases, and the facts of it that settings hold."""
    base = open_base(recipe)  # an adapter leaves the tower as it was
    family = base.family
    tower = load_tower(base.path, family, recipe).to(state.device)
    bf16 = torch.autocast(state.device.type, torch.bfloat16, enabled=recipe.bf16)
    paths: Any = sorted({case.root / name for case in cases for name in case.example.images})
    workers = int(recipe.train.get("dataloader_num_workers", 0))
    reading: Any = _Reading(base.chat)  # of one path, where a batch would be a list
    loader: Any = DataLoader(paths, batch_size=None, collate_fn=reading, num_workers=workers)
    found = {}
    with Progress("vision features", len(paths), say) as progress:
        for path, picture, pixels, sha256, detail in loader:
            features = None
            if picture is not None:
                with torch.no_grad(), bf16:
                    whole = family.encode(tower, picture, pixels).float()
                features = pooled(whole, picture).cpu().numpy()
            found[path] = Seen(features, sha256, detail)
            progress.advance(1)
    return found, {**base.facts, "device": state.device.type}


def pooled(features: torch.Tensor, picture: Picture) -> torch.Tensor:
    """The mean over positions, float[W], of [positions, W] or of [tiles, positions, W] that the picture fills."""
    if features.ndim == 3:  # what the tower makes of the other tiles says nothing of the image
        features = features[: math.prod(picture.grid)].flatten(0, 1)
    return features.mean(0)


@dataclass(frozen=True, slots=True)
class _Reading:
    """An image file → its pixels for the tower: a collate function, so that workers decode."""

    chat: Chat

    def __call__(self, path: Path) -> tuple[Path, Picture | None, torch.Tensor | None, str, str]:
        try:
            image = upright(path)
            picture = self.chat.picture((image.height, image.width))
        except (ImageError, ChatError) as error:
            return path, None, None, "", str(error)
        digest = fingerprints.sha256(path)
        return path, picture, self.chat.pixels(image), digest, ""


def probe(
    name: str,
    spec: ClassSpec,
    train: Task,
    test: Task,
    seen: Mapping[Path, Seen],
    facts: Mapping[str, Any],
    folder: Path,
    say: Console,
) -> None:
    """Nothing; the predictions for the test cases lie in the folder, one file for each share of the train cases."""
    left_out = Counter[str]()
    shared = _shared(spec, train, test, seen)
    learned = []
    for case in train.cases:
        why = _refusal(case, seen) or ("shared-with-test" if _group(case) in shared else "")
        if why:
            left_out[rule(why)] += 1
        else:
            learned.append(case)
    if len({case.label for case in learned}) < 2:
        raise ProbeError(
            f"{spec.source}: {len(learned)} of its {len(train.cases)} train cases can be learned from "
            f"({_listed(left_out)}), and they have fewer than two classes"
        )
    asked = [case for case in test.cases if not _refusal(case, seen)]
    features = _features(asked, seen)
    for share, some in zip(SHARES, shares(learned), strict=True):
        with Progress(f"{name}: fit to {share} % of the labels", 1, say) as progress:
            fitted = fit(_features(some, seen), some, test.classes)
            progress.advance(1)
        scores = iter(fitted.scores(features))
        refusals = [_refusal(case, seen) for case in test.cases]
        rows = [case.record(None if why else next(scores), why) for case, why in zip(test.cases, refusals, strict=True)]
        right = sum(one.scores is not None and _best(one, test.classes) == one.label for one in rows)
        settings = {
            "set": f"{name}.probe-{share}",
            "rows": len(test.cases),
            "source": spec.source,
            "split": spec.split,
            "benchmark": test.benchmark,
            "classes": list(test.classes),
            "malignant": test.malignant and list(test.malignant),
            "question": test.question,
            "prompted": False,
            "probe": share / 100,
            "label_tokens": None,
            "prior": None,
            "train": {"split": TRAIN, "rows": len(some), "groups": len(_groups(some)), "left_out": dict(left_out)},
            "unlearned": sorted({*test.classes} - {str(case.label) for case in some}),
            "floor": FLOOR,
            "C": fitted.strength,
            "folds": fitted.folds,
            "converged": fitted.converged,
            "seed": SEED,
            **facts,
        }
        journal = PredictionJournal(folder / f"{name}.probe-{share}.jsonl", settings, Classified)
        journal.begin()
        done = journal.done()
        journal.write([row for row in rows if key(row) not in done], 0)
        if not journal.path.is_file():
            journal.finish([key(row) for row in rows])
        told = f"; left out of training: {_listed(left_out)}" if left_out and share == SHARES[-1] else ""
        say.print(
            f"{journal.path}: {len(some):,} train rows, C={fitted.strength:g}, "
            f"{right:,} of {len(asked):,} right{'' if fitted.converged else ', not converged'}{told}"
        )


def shares(cases: Sequence[Sample], seed: int = SEED) -> list[list[Sample]]:
    """The cases of each of SHARES, by whole groups and class by class; each holds the ones before it.

    Of each class, by the commonest class of a group, as many groups are taken as reach the share; at least one.
    """
    groups = _groups(cases)
    strata: dict[str, list[Group]] = defaultdict(list)
    for group in sorted(groups):
        counts = Counter(str(case.label) for case in groups[group])
        strata[min(counts, key=lambda one: (-counts[one], one))].append(group)
    generator = random.Random(seed)
    order = {name: generator.sample(some, len(some)) for name, some in sorted(strata.items())}
    found = []
    for share in SHARES:
        taken: set[Group] = set()
        for some in order.values():
            wanted, have = share / 100 * sum(len(groups[one]) for one in some), 0
            for group in some:
                if have and have >= wanted - 1e-9:
                    break
                taken.add(group)
                have += len(groups[group])
        found.append([case for case in cases if _group(case) in taken])
    return found


def fit(features: Float, cases: Sequence[Sample], classes: Sequence[str]) -> Fitted:
    """The classifier of these rows, float64[N, W], with the C of the least log-loss on groups it has not seen."""
    labels = np.array([str(case.label) for case in cases])
    if len({*labels}) == 1:
        return Fitted(classes, None, str(labels[0]), 1.0, 0, True)
    numbers = {group: number for number, group in enumerate(_groups(cases))}
    groups = np.array([numbers[_group(case)] for case in cases])
    folds = min(FOLDS, len(numbers), Counter(labels).most_common(1)[0][1])
    losses = dict.fromkeys(STRENGTHS, 0.0) if folds > 1 else {1.0: 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        cut = StratifiedGroupKFold(folds, shuffle=True, random_state=SEED) if folds > 1 else None
        for inside, held in cut.split(features, labels, groups) if cut else ():
            for strength in losses:
                part = _regression(features[inside], labels[inside], classes, strength)
                columns = [classes.index(one) for one in labels[held]]
                losses[strength] -= float(part.scores(features[held])[np.arange(len(held)), columns].sum())
        best = min(losses, key=lambda one: (losses[one], one))
        whole = _regression(features, labels, classes, best)
    return Fitted(classes, whole.pipeline, "", best, folds, whole.converged)


def _regression(features: Float, labels: NDArray[np.str_], classes: Sequence[str], strength: float) -> Fitted:
    if len({*labels}) == 1:
        return Fitted(classes, None, str(labels[0]), strength, 0, True)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=STEPS))
    pipeline.fit(features, labels)
    return Fitted(classes, pipeline, "", strength, 0, bool(max(pipeline[-1].n_iter_) < STEPS))


def _shared(spec: ClassSpec, train: Task, test: Task, seen: Mapping[Path, Seen]) -> set[Group]:
    """The groups of train cases that are a test case's too, or that show an image of one."""
    groups = {_group(case) for case in test.cases}
    digests = {seen[case.root / one].sha256 for case in test.cases for one in case.example.images} - {""}
    found = {
        _group(case)
        for case in train.cases
        if _group(case) in groups or any(seen[case.root / one].sha256 in digests for one in case.example.images)
    }
    if not spec.source.casefold().endswith(".csv"):  # copies that were scaled or saved anew have other bytes
        theirs, ours = ([Row(case.example, case.root) for case in task.cases] for task in (test, train))
        leaking = mixture.leaks(theirs, {TRAIN: ours})
        found |= {(leak.row.example.source, leak.row.example.group) for leak in leaking}
    return found


def _group(case: Sample) -> Group:
    return case.example.source, case.example.group


def _groups(cases: Sequence[Sample]) -> dict[Group, list[Sample]]:
    groups: dict[Group, list[Sample]] = defaultdict(list)
    for case in cases:
        groups[_group(case)].append(case)
    return groups


def _refusal(case: Sample, seen: Mapping[Path, Seen]) -> str:
    """Why a case can be neither learned from nor classified; nothing if it can."""
    if case.label is None:
        return case.detail
    if not case.example.images:
        return "no-image: the conversation shows none"
    details = (seen[case.root / one].detail for one in case.example.images)
    return next(filter(None, details), "")


def _features(cases: Sequence[Sample], seen: Mapping[Path, Seen]) -> Float:
    found = ([seen[case.root / one].features for one in case.example.images] for case in cases)
    rows = [np.array(some, np.float64).mean(0) for some in found]
    return np.array(rows).reshape(len(cases), -1)


def _best(row: Classified, classes: Sequence[str]) -> str:
    assert row.scores is not None
    return classes[int(np.argmax(row.scores))]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in sorted(counts.items())) or "none left out"
