"""The samples of a task by what reads their embeddings, prompts or a linear probe: once for each side of a suppression.

A side holds the embeddings of all images, as they are or without some units. The probe is fitted anew to each side, so
that it may learn from what is left. Its strength is chosen on the first, as `skinvl probe` chooses it, and kept: sides
differ in their embeddings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.evaluate.concept import rows as concept_rows
from skinvl.evaluate.embed import Vectors
from skinvl.evaluate.linear import fit, fit_at
from skinvl.score import suppression
from skinvl.score.classification import ClassifiedSet
from skinvl.score.stats import Float, Mask

Side = Mapping[Path, Vectors]


def by_prompts(task: Task, sides: Sequence[Side], classes: Float, settings: Mapping[str, Any]) -> list[ClassifiedSet]:
    """Each side by the products with the classes float[C, D], at the model's scale."""
    return [_set(task, concept_rows.of_samples(task.samples, side) @ classes.T, settings) for side in sides]


def by_probe(
    task: Task, train: Sequence[Sample], sides: Sequence[Side], settings: Mapping[str, Any]
) -> tuple[float, list[ClassifiedSet]]:
    """C, and each side by a probe of the labels of the train samples, fitted to that side."""
    strength, made = None, []
    for side in sides:
        features = concept_rows.of_samples(train, side)
        usable: Mask = np.asarray(np.isfinite(features).all(axis=1))
        learned = [sample for sample, counts in zip(train, usable.tolist(), strict=True) if counts]
        if strength is None:
            fitted = fit(features[usable], learned, task.classes)
            strength = fitted.strength
        else:
            labels = np.array([str(sample.label) for sample in learned])
            fitted = fit_at(features[usable], labels, task.classes, strength)
        test = concept_rows.of_samples(task.samples, side)
        readable = np.isfinite(test).all(axis=1)
        scores = np.full((len(test), len(task.classes)), np.nan)
        scores[readable] = fitted.scores(test[readable])
        made.append(_set(task, scores, settings))
    assert strength is not None
    return strength, made


def _set(task: Task, scores: Float, settings: Mapping[str, Any]) -> ClassifiedSet:
    rows = []
    for sample, own in zip(task.samples, scores, strict=True):
        unread = "" if np.isfinite(own).all() else "unreadable-image"
        usable = sample.label is not None and not unread
        rows.append(sample.record(own.tolist() if usable else None, sample.detail or unread))
    return suppression.classified(rows, settings, str(settings["set"]))
