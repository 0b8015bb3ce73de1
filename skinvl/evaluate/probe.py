"""`skinvl probe`: a linear classifier on what the frozen vision tower makes of images, from 10 to 100 % of the labels.

It is what the SkinVL paper calls SFT classification. An image's features are the mean over the positions that the tower
gives its projector (of Qwen3-VL with those of the deepstack layers; of Mllama over the tiles that the image fills), and
the mean over the images where a sample has several. They are standardised on the training rows; the classifier is the
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
from skinvl.data.pixels import ImageError
from skinvl.data.progress import Progress
from skinvl.data.source import source_folder
from skinvl.evaluate import benchmarks, distributed
from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.model.base import autocast, load_tower
from skinvl.model.chat import Chat, ChatError
from skinvl.model.families import Picture
from skinvl.model.loaded import open_base
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.recipe import ClassSpec, Recipe
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
class ImageFeatures:
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
        scores = np.full((len(features), len(self.classes)), FLOOR)
        if self.pipeline is None:
            scores[:, self.classes.index(self.only)] = 0.0
        elif len(features):
            columns = [self.classes.index(name) for name in self.pipeline.classes_]
            scores[:, columns] = np.maximum(self.pipeline.predict_log_proba(features), FLOOR)
        return scores


def main(words: Sequence[str]) -> int:
    """0, once the predictions lie in the run, or in the folder of a base alone."""
    parser = recipe_parser("probe", "Fit a linear probe on the features of the frozen vision tower.", run=True)
    args = parser.parse_intermixed_args(words)
    probe_sets(*run.evaluated(args.recipe, args.overrides))
    return 0


def probe_sets(recipe: Recipe, out: Path) -> None:
    """Writes `out/eval/classes/<name>.probe-10.jsonl` to `<name>.probe-100.jsonl` of each classified set.

    Raises:
        ProbeError: the vision tower was trained, or a set has nothing to learn from.
    """
    specs = recipe.evaluate.classify
    if not specs:
        raise ProbeError(benchmarks.lacking("probe"))
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
    encoded, facts = look(recipe, [sample for pair in tasks for task in pair for sample in task.samples], state, say)
    run.begin(out, recipe)
    for name, spec, (train, test) in zip(names, specs, tasks, strict=True):
        probe(name, spec, train, test, encoded, facts, out / "eval" / "classes", say)


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


def look(
    recipe: Recipe, samples: Iterable[Sample], state: PartialState, say: Console
) -> tuple[dict[Path, ImageFeatures], dict[str, Any]]:
    """What the base's vision tower makes of every image of the samples, and the facts of it that settings hold."""
    base = open_base(recipe)  # an adapter leaves the tower as it was
    family = base.family
    tower = load_tower(base.path, family, recipe).to(state.device)
    paths: Any = sorted({sample.root / name for sample in samples for name in sample.example.images})
    workers = int(recipe.train.get("dataloader_num_workers", 0))
    reading: Any = _Reading(base.chat)  # of one path, where a batch would be a list
    loader: Any = DataLoader(paths, batch_size=None, collate_fn=reading, num_workers=workers)
    encoded = {}
    with Progress("vision features", len(paths), say) as progress:
        for path, picture, pixels, sha256, detail in loader:
            features = None
            if picture is not None:
                with torch.no_grad(), autocast(recipe, state.device):
                    whole = family.encode(tower, picture, pixels).float()
                features = pooled(whole, picture).cpu().numpy()
            encoded[path] = ImageFeatures(features, sha256, detail)
            progress.advance(1)
    return encoded, {**base.facts, "device": state.device.type}


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
            image = self.chat.upright(path)
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
    encoded: Mapping[Path, ImageFeatures],
    facts: Mapping[str, Any],
    folder: Path,
    say: Console,
) -> None:
    """Writes the predictions for the test samples into the folder, a file for each share of the train samples.

    Raises:
        ProbeError: the train samples that can be learned from have fewer than two classes.
    """
    # A train sample of which the test set shows an image, or a group, would be recognised rather than classified.
    left_out = Counter[str]()
    shared = _shared(spec, train, test, encoded)
    learned = []
    for sample in train.samples:
        reason = _refusal(sample, encoded) or ("shared-with-test" if _group(sample) in shared else "")
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
    for share, subset in zip(SHARES, shares(learned), strict=True):
        with Progress(f"{name}: fit to {share} % of the labels", 1, say) as progress:
            fitted = fit(_features(subset, encoded), subset, test.classes)
            progress.advance(1)

        # Every test sample has its row: scores, in the order of the features, or the reason why there are none.
        scores = iter(fitted.scores(features))
        rows = []
        for sample in test.samples:
            reason = _refusal(sample, encoded)
            rows.append(sample.record(None if reason else next(scores), reason))
        correct = sum(row.scores is not None and _best(row, test.classes) == row.label for row in rows)

        settings = {
            "set": f"{name}.probe-{share}",
            "rows": len(test.samples),
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
            "train": {"split": TRAIN, "rows": len(subset), "groups": len(_groups(subset)), "left_out": dict(left_out)},
            "unlearned": sorted({*test.classes} - {str(sample.label) for sample in subset}),
            "floor": FLOOR,
            "C": fitted.strength,
            "folds": fitted.folds,
            "converged": fitted.converged,
            "seed": SEED,
            **facts,
        }

        # A file that stands finished with these settings stays; one that was stopped is written to its end.
        journal = PredictionJournal(folder / f"{name}.probe-{share}.jsonl", settings, Classified)
        journal.begin()
        done = journal.done()
        journal.write([row for row in rows if key(row) not in done], 0)
        if not journal.path.is_file():
            journal.finish([key(row) for row in rows])

        remark = f"; left out of training: {_listed(left_out)}" if left_out and share == SHARES[-1] else ""
        say.print(
            f"{journal.path}: {len(subset):,} train rows, C={fitted.strength:g}, "
            f"{correct:,} of {len(usable):,} right{'' if fitted.converged else ', not converged'}{remark}"
        )


def shares(samples: Sequence[Sample], seed: int = SEED) -> list[list[Sample]]:
    """The samples of each of SHARES, by whole groups and class by class; each holds the ones before it.

    Of each class, by the commonest class of a group, as many groups are taken as reach the share; at least one.
    """
    groups = _groups(samples)
    strata: dict[str, list[Group]] = defaultdict(list)
    for group in sorted(groups):
        counts = Counter(str(sample.label) for sample in groups[group])
        commonest = min(counts, key=lambda label: (-counts[label], label))
        strata[commonest].append(group)

    # One order for all shares: each takes a beginning of it, so that the larger ones hold the smaller.
    generator = random.Random(seed)
    shuffled = {label: generator.sample(stratum, len(stratum)) for label, stratum in sorted(strata.items())}

    subsets = []
    for share in SHARES:
        taken: set[Group] = set()
        for stratum in shuffled.values():
            wanted, count = share / 100 * sum(len(groups[group]) for group in stratum), 0
            for group in stratum:
                if count and count >= wanted - 1e-9:
                    break
                taken.add(group)
                count += len(groups[group])
        subsets.append([sample for sample in samples if _group(sample) in taken])
    return subsets


def fit(features: Float, samples: Sequence[Sample], classes: Sequence[str]) -> Fitted:
    """The classifier of these rows, float64[N, W], with the C of the least log-loss on groups it has not seen."""
    labels = np.array([str(sample.label) for sample in samples])
    if len({*labels}) == 1:
        return Fitted(classes, None, str(labels[0]), 1.0, 0, True)

    # No more folds than groups, nor than rows of the commonest class: fewer than two choose nothing, and C stays 1.
    numbers = {group: number for number, group in enumerate(_groups(samples))}
    groups = np.array([numbers[_group(sample)] for sample in samples])
    folds = min(FOLDS, len(numbers), Counter(labels).most_common(1)[0][1])
    losses = dict.fromkeys(STRENGTHS, 0.0) if folds > 1 else {1.0: 0.0}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` holds it
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=SEED) if folds > 1 else None
        for inside, held_out in splitter.split(features, labels, groups) if splitter else ():
            for strength in losses:
                part = _regression(features[inside], labels[inside], classes, strength)
                columns = [classes.index(label) for label in labels[held_out]]
                losses[strength] -= float(part.scores(features[held_out])[np.arange(len(held_out)), columns].sum())
        best = min(losses, key=lambda strength: (losses[strength], strength))  # of equal ones the stronger regularised
        whole = _regression(features, labels, classes, best)
    return Fitted(classes, whole.pipeline, "", best, folds, whole.converged)


def _regression(features: Float, labels: NDArray[np.str_], classes: Sequence[str], strength: float) -> Fitted:
    if len({*labels}) == 1:
        return Fitted(classes, None, str(labels[0]), strength, 0, True)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=STEPS))
    pipeline.fit(features, labels)
    return Fitted(classes, pipeline, "", strength, 0, bool(max(pipeline[-1].n_iter_) < STEPS))


def _shared(spec: ClassSpec, train: Task, test: Task, encoded: Mapping[Path, ImageFeatures]) -> set[Group]:
    """The groups of train samples that are a test sample's too, or that show an image of one."""
    groups = {_group(sample) for sample in test.samples}
    digests = {encoded[sample.root / name].sha256 for sample in test.samples for name in sample.example.images} - {""}
    shared = {
        _group(sample)
        for sample in train.samples
        if _group(sample) in groups
        or any(encoded[sample.root / name].sha256 in digests for name in sample.example.images)
    }
    if not spec.source.casefold().endswith(".csv"):  # copies that were scaled or saved anew have other bytes
        theirs, ours = ([Row(sample.example, sample.root) for sample in task.samples] for task in (test, train))
        leaking = mixture.leaks(theirs, {TRAIN: ours})
        shared |= {(leak.row.example.source, leak.row.example.group) for leak in leaking}
    return shared


def _group(sample: Sample) -> Group:
    return sample.example.source, sample.example.group


def _groups(samples: Sequence[Sample]) -> dict[Group, list[Sample]]:
    groups: dict[Group, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[_group(sample)].append(sample)
    return groups


def _refusal(sample: Sample, encoded: Mapping[Path, ImageFeatures]) -> str:
    """Why a sample can be neither learned from nor classified; nothing if it can."""
    if sample.label is None:
        return sample.detail
    if not sample.example.images:
        return "no-image: the conversation shows none"
    details = (encoded[sample.root / name].detail for name in sample.example.images)
    return next(filter(None, details), "")


def _features(samples: Sequence[Sample], encoded: Mapping[Path, ImageFeatures]) -> Float:
    """The mean over each sample's images, float64[N, W]."""
    images = ([encoded[sample.root / name].features for name in sample.example.images] for sample in samples)
    rows = [np.array(features, np.float64).mean(0) for features in images]
    return np.array(rows).reshape(len(samples), -1)


def _best(row: Classified, classes: Sequence[str]) -> str:
    assert row.scores is not None
    return classes[int(np.argmax(row.scores))]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in sorted(counts.items())) or "none left out"
