"""A linear classifier on frozen features: multinomial logistic regression, its C chosen over whole groups.

Features are standardised on the training rows. C is the one of least log-loss in a cross-validation whose folds cut no
group; shares of the labels take whole groups too.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skinvl.evaluate.benchmarks import Sample

Float = NDArray[np.float64]
Group = tuple[str, str]  # source, group

STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # values of C that are tried
FOLDS = 5
STEPS = 2_000  # of the solver at most
FLOOR = -30.0  # log-probability of a class that the share has no example of, and the least of any other


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


def shares(samples: Sequence[Sample], wanted: Sequence[int], seed: int) -> list[list[Sample]]:
    """The samples of each share in per cent, by whole groups and class by class; a larger one holds the smaller ones.

    Of each class, by the commonest class of a group, as many groups are taken as reach the share; at least one.
    """
    groups = groups_of(samples)
    strata: dict[str, list[Group]] = defaultdict(list)
    for group in sorted(groups):
        counts = Counter(str(sample.label) for sample in groups[group])
        commonest = min(counts, key=lambda label: (-counts[label], label))
        strata[commonest].append(group)

    # One order for all shares: each takes a beginning of it, so that the larger ones hold the smaller.
    generator = random.Random(seed)
    shuffled = {label: generator.sample(stratum, len(stratum)) for label, stratum in sorted(strata.items())}

    subsets = []
    for share in wanted:
        taken: set[Group] = set()
        for stratum in shuffled.values():
            needed, count = share / 100 * sum(len(groups[group]) for group in stratum), 0
            for group in stratum:
                if count and count >= needed - 1e-9:
                    break
                taken.add(group)
                count += len(groups[group])
        subsets.append([sample for sample in samples if group_of(sample) in taken])
    return subsets


def fit(features: Float, samples: Sequence[Sample], classes: Sequence[str], seed: int = 0) -> Fitted:
    """The classifier of these rows, float64[N, W], with the C of the least log-loss on groups it has not seen.

    Args:
        seed: of which groups share a fold.
    """
    labels = np.array([str(sample.label) for sample in samples])
    if len({*labels}) == 1:
        return Fitted(classes, None, str(labels[0]), 1.0, 0, True)

    # No more folds than groups, nor than rows of the commonest class: fewer than two choose nothing, and C stays 1.
    numbers = {group: number for number, group in enumerate(groups_of(samples))}
    groups = np.array([numbers[group_of(sample)] for sample in samples])
    folds = min(FOLDS, len(numbers), Counter(labels).most_common(1)[0][1])
    losses = dict.fromkeys(STRENGTHS, 0.0) if folds > 1 else {1.0: 0.0}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` holds it
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed) if folds > 1 else None
        for inside, held_out in splitter.split(features, labels, groups) if splitter else ():
            for strength in losses:
                part = fit_at(features[inside], labels[inside], classes, strength)
                columns = [classes.index(label) for label in labels[held_out]]
                losses[strength] -= float(part.scores(features[held_out])[np.arange(len(held_out)), columns].sum())
        best = min(losses, key=lambda strength: (losses[strength], strength))  # of equal ones the stronger regularised
        whole = fit_at(features, labels, classes, best)
    return Fitted(classes, whole.pipeline, "", best, folds, whole.converged)


def fit_at(features: Float, labels: NDArray[np.str_], classes: Sequence[str], strength: float) -> Fitted:
    """The classifier of rows float64[N, W] with these labels, by a C that is given."""
    if len({*labels}) == 1:
        return Fitted(classes, None, str(labels[0]), strength, 0, True)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=STEPS))
    pipeline.fit(features, labels)
    return Fitted(classes, pipeline, "", strength, 0, bool(max(pipeline[-1].n_iter_) < STEPS))


def group_of(sample: Sample) -> Group:
    """What no share, fold or interval may cut."""
    return sample.example.source, sample.example.group


def groups_of(samples: Sequence[Sample]) -> dict[Group, list[Sample]]:
    """The samples of each group, in their order."""
    groups: dict[Group, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[group_of(sample)].append(sample)
    return groups
