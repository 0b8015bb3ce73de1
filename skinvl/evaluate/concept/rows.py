"""The images of a split with the concepts that their Examples state, and what two towers and a dictionary make of them.

All that is said of the same images is one sample: it shows a concept where any of its Examples says so and none the
contrary. What Examples contradict each other in is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console

from skinvl.data.example import Example, read
from skinvl.data.mixture import Row
from skinvl.evaluate import contamination, embed
from skinvl.evaluate.benchmarks import Sample
from skinvl.evaluate.embed import Vectors
from skinvl.model.dictionary import Dictionary
from skinvl.model.towers_loaded import LoadedTowers
from skinvl.score.concepts import ABSENT, MISSING, PRESENT, Labels
from skinvl.score.stats import Float, Mask

STATED = "stated"  # in place of a class: something is known of the sample


class ConceptError(ValueError):
    """A source, a concept or a set of which nothing can be said."""


@dataclass(frozen=True, slots=True)
class StatedSplit:
    """The samples of a split of a source of which any concept is known.

    Attributes:
        labels: int8[N, C], PRESENT, ABSENT or MISSING.
        conflicts: how often what Examples of the same images say contradicts.
    """

    root: Path
    split: str
    samples: list[Sample]
    concepts: tuple[str, ...]
    labels: Labels
    conflicts: int

    @property
    def rows(self) -> list[Row]:
        """As the leak guard compares them."""
        return [Row(sample.example, sample.root) for sample in self.samples]

    def apart(self, others: Sequence[Row]) -> Mask:
        """bool[N]: which samples share neither a group nor an image with the others."""
        if not others:
            return np.ones(len(self.samples), np.bool_)
        return np.array([one.label is not None for one in contamination.without(self.samples, others)], np.bool_)

    def column(self, concept: str) -> Labels:
        """int8[N], of one concept; all missing where the split does not know it."""
        if concept not in self.concepts:
            return np.full(len(self.samples), MISSING, np.int8)
        return self.labels[:, self.concepts.index(concept)]


def stated(root: Path, split: str) -> StatedSplit:
    """The samples of a split, concepts in the order of the alphabet.

    Raises:
        FileNotFoundError: no such source or split.
    """
    by_images: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for example in read(root, split):
        if example.images and (example.facts.present or example.facts.absent):
            by_images[tuple(sorted(example.images))].append(example)
    present = [{name for one in same for name in one.facts.present} for same in by_images.values()]
    absent = [{name for one in same for name in one.facts.absent} for same in by_images.values()]
    concepts = tuple(sorted({name for names in (*present, *absent) for name in names}))
    labels = np.full((len(by_images), len(concepts)), MISSING, np.int8)
    for row, (shown, lacking) in enumerate(zip(present, absent, strict=True)):
        for column, name in enumerate(concepts):
            if (name in shown) != (name in lacking):
                labels[row, column] = PRESENT if name in shown else ABSENT
    samples = [Sample(same[0], root, STATED, "") for same in by_images.values()]
    conflicts = sum(len(shown & lacking) for shown, lacking in zip(present, absent, strict=True))
    return StatedSplit(root, split, samples, concepts, labels, conflicts)


def shown(samples: Sequence[Sample], names: Sequence[str]) -> Labels:
    """int8[N]: PRESENT where a sample shows any of the concepts, ABSENT where it shows none, else MISSING.

    A concept may be a tag too, such as hair: prep's rules look for it in every row, so that a row without is absent.
    """
    tags = {tag for sample in samples for tag in sample.example.tags}
    labels = np.full(len(samples), MISSING, np.int8)
    for row, sample in enumerate(samples):
        facts = sample.example.facts
        if {*names} & {*facts.present, *sample.example.tags}:
            labels[row] = PRESENT
        elif all(name in facts.absent or name in tags for name in names):
            labels[row] = ABSENT
    return labels


def image_embeddings(
    loaded: LoadedTowers, samples: Sequence[Sample], state: PartialState, say: Console
) -> dict[Path, Vectors]:
    """float32[D] of each image of the samples, encoded once; NaN where it cannot be read."""
    shown = list(dict.fromkeys((sample.root, name) for sample in samples for name in sample.example.images))
    vectors = embed.images(loaded, shown, state, say)
    return {root / name: vector for (root, name), vector in zip(shown, vectors, strict=True)}


def of_samples(samples: Sequence[Sample], vectors: Mapping[Path, Vectors]) -> Float:
    """float64[N, D] of length one: of each sample's images the mean; NaN where one of them cannot be read."""
    rows = [np.mean([vectors[sample.root / name] for name in sample.example.images], axis=0) for sample in samples]
    means = np.array(rows, np.float64).reshape(len(rows), -1)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.where(lengths < 1e-12, 1e-12, lengths)


def units_of_samples(dictionary: Dictionary, samples: Sequence[Sample], vectors: Mapping[Path, Vectors]) -> Float:
    """float64[N, K]: how active each unit is, the mean over a sample's images; NaN where one cannot be read."""
    paths = list(vectors)
    units = dictionary.units(torch.from_numpy(np.array([vectors[path] for path in paths], np.float32))).double().numpy()
    number = {path: row for row, path in enumerate(paths)}
    rows = [units[[number[sample.root / name] for name in sample.example.images]].mean(axis=0) for sample in samples]
    return np.array(rows, np.float64).reshape(len(rows), units.shape[1])
