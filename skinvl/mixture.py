"""The sources of a recipe as one train set and one eval set per source: weights, joined groups, leak guard."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Sampler

from skinvl.example import Example, read
from skinvl.recipe import Data, SourceSpec


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation, the folder its image paths start from, and how often an epoch shows it."""

    example: Example
    root: Path
    weight: float = 1.0


class LeakError(ValueError):
    """A conversation of an eval set shares its group or an image with a train set."""


class Rows(Dataset[dict[str, Any]]):
    """The rows of a set as dictionaries, the form in which the Trainer's data loader hands them to the collator."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": self.rows[index]}


def folder(source: str, data: Path = Path("data")) -> Path:
    """Where a source of a recipe lies: a path, which has a slash, as given; a bare name under `data/`."""
    return Path(source) if "/" in source else data / source


def label(spec: SourceSpec, specs: Sequence[SourceSpec]) -> str:
    """The name an eval set is logged under: the source, with its split where the source occurs twice."""
    name = Path(spec.source).name
    twins = sum(Path(other.source).name == name for other in specs)
    return f"{name}_{spec.split}" if twins > 1 else name


def rows(spec: SourceSpec) -> list[Row]:
    """The rows of one source and split, each with the source's weight."""
    root = folder(spec.source)
    return [Row(example, root, spec.weight) for example in read(root, spec.split)]


def load(data: Data) -> tuple[list[Row], dict[str, list[Row]]]:
    """The train rows, and the eval rows of each source by its label.

    Raises:
        FileNotFoundError: a source is not prepared.
        LeakError: an eval set shares a group with the train set and `data.allow_leak` is false.
        ValueError: no conversation to train on, or two eval sets of one name.
    """
    train = [row for spec in data.train for row in rows(spec)]
    labels = [label(spec, data.eval) for spec in data.eval]
    if twice := {name for name in labels if labels.count(name) > 1}:
        raise ValueError(f"data.eval: two sets are called {min(twice)}; their losses need names, rename a folder")
    evaluation = dict(zip(labels, map(rows, data.eval), strict=True))
    if not train:
        raise ValueError("data.train: the sources hold no conversation; nothing can be trained")
    shared = leaks(train, [row for some in evaluation.values() for row in some])
    if shared and not data.allow_leak:
        shown = ", ".join(
            f"{a.example.source}:{a.example.id} ~ {b.example.source}:{b.example.id}" for a, b in shared[:3]
        )
        raise LeakError(
            f"data.eval: {len(shared)} eval conversations share a group or an image with data.train ({shown}, …); "
            "split the source by group, drop one of the sources, or set data.allow_leak=true, which the run records"
        )
    return train, evaluation


def leaks(train: Sequence[Row], evaluation: Sequence[Row]) -> list[tuple[Row, Row]]:
    """A pair (train row, eval row) for every eval row that shares its group or the bytes of an image with a train row.

    Only files of equal size are read, so that large sets cost a directory listing and not a pass over the images.
    """
    groups = {(row.example.source, row.example.group): row for row in train}
    sizes: dict[int, dict[Path, Row]] = defaultdict(dict)
    for row, path in _images(train):
        sizes[path.stat().st_size].setdefault(path, row)
    digests: dict[int, dict[str, Row]] = {}
    found = []
    for row in evaluation:
        twin = groups.get((row.example.source, row.example.group))
        for _, path in _images([row]):
            size = path.stat().st_size
            if twin is None and size in sizes:
                if size not in digests:
                    digests[size] = {_sha256(file): owner for file, owner in sizes[size].items()}
                twin = digests[size].get(_sha256(path))
        if twin is not None:
            found.append((twin, row))
    return found


class MixtureSampler(Sampler[int]):
    """Indices of one epoch, drawn anew from (seed, epoch): weights in whole groups, and facts in balance.

    Weight w is ⌊w⌋ copies of a source and a share w − ⌊w⌋ of its groups; the last group drawn is cut, so that every
    epoch has the same length. With `balance`, the conversations whose fact is known are drawn so that each of its
    values is equally frequent; those whose fact is unknown are kept as they are.
    """

    def __init__(self, rows: Sequence[Row], seed: int, balance: str | None = None) -> None:
        self.rows, self.seed, self.balance = rows, seed, balance
        self.epoch = 0
        self.length = len(self._draw(random.Random(0)))

    def set_epoch(self, epoch: int) -> None:
        """Nothing; the next iteration draws the indices of this epoch. Called by the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}-{self.epoch}")
        indices = self._draw(generator)
        if self.balance is not None:
            indices = self._balanced(indices, generator)
        generator.shuffle(indices)
        return iter(indices)

    def _draw(self, generator: random.Random) -> list[int]:
        pools: dict[tuple[str, float], list[int]] = defaultdict(list)
        for index, row in enumerate(self.rows):
            pools[str(row.root), row.weight].append(index)
        drawn: list[int] = []
        for (_, weight), pool in pools.items():
            drawn += pool * int(weight)
            groups: dict[str, list[int]] = defaultdict(list)
            for index in pool:
                groups[self.rows[index].example.group].append(index)
            order = list(groups)
            generator.shuffle(order)
            share = [index for group in order for index in groups[group]]
            drawn += share[: round((weight - int(weight)) * len(pool))]
        return drawn

    def _balanced(self, indices: list[int], generator: random.Random) -> list[int]:
        values: dict[str, list[int]] = defaultdict(list)
        unknown: list[int] = []
        for index in indices:
            value = getattr(self.rows[index].example.facts, str(self.balance))
            (unknown if value is None else values[str(value)]).append(index)
        known = len(indices) - len(unknown)
        balanced: list[int] = []
        for position, value in enumerate(sorted(values)):
            quota = known // len(values) + (position < known % len(values))
            pool = values[value]
            while quota > 0:
                generator.shuffle(pool)
                balanced += pool[:quota]
                quota -= len(pool)
        return balanced + unknown


def _images(rows: Sequence[Row]) -> Iterator[tuple[Row, Path]]:
    for row in rows:
        for name in row.example.images:
            path = row.root / name
            if path.is_file():  # the preflight names the missing ones
                yield row, path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
