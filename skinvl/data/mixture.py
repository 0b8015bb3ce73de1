"""The sources of a recipe as one train set and one eval set per source, which share no group and no image."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skinvl.data import fingerprints
from skinvl.data.example import Dropped, Example, read
from skinvl.data.fingerprints import KINDS
from skinvl.data.hamming import Pairs
from skinvl.data.source import IMAGES_SCHEMA, full_name, namespace, read_card, source_folder, source_name, used_images
from skinvl.data.table1 import fact
from skinvl.recipe.files import digest
from skinvl.recipe.recipe import Data, SourceSpec
from skinvl.recipe.towers import PretrainData


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation, the folder its image paths start from, and how often an epoch shows it."""

    example: Example
    root: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Leak:
    """An eval conversation that shares its group or an image with the train set, perhaps by way of others."""

    name: str  # of the eval set
    row: Row
    twin: Row  # a train conversation of its cluster
    kind: str  # group, sha256, archive, phash or turned, the first that suffices; chain if no single one does


@dataclass(frozen=True, slots=True)
class Sets:
    """The conversations of a recipe, apart in training and evaluation."""

    train: list[Row]
    evaluation: dict[str, list[Row]]  # by label
    moved: list[Dropped] = field(default_factory=list)  # eval conversations that a shared image took from their set
    without: list[Dropped] = field(default_factory=list)  # train conversations that `data.without` leaves out
    leaking: int = 0  # eval conversations that share something with the train set, where that is allowed


class LeakError(ValueError):
    """A conversation of an eval set shares its group or an image with a train set, and may not move there."""


NOTHING = -1  # the index of no row


def label(spec: SourceSpec, specs: Sequence[SourceSpec]) -> str:
    """The name an eval set is logged under: the source, with its split where the source occurs twice."""
    name = Path(spec.source).name
    twins = sum(Path(other.source).name == name for other in specs)
    return f"{name}_{spec.split}" if twins > 1 else name


def rows(spec: SourceSpec) -> list[Row]:
    """The rows of one source and split, each with the source's weight.

    Their `source` is the prepared one, where the file has the converter: two of one converter have ids in common.
    """
    root = source_folder(spec.source)
    name = source_name(root)
    return [Row(replace(example, source=name), root, spec.weight) for example in read(root, spec.split)]


def load(data: Data | PretrainData) -> Sets:
    """The train rows, and the eval rows of each source by its label, with no group or image in both.

    A conversation whose cluster reaches into the train set leaves its eval set, where the source was split by group;
    it is trained on if its source is. The split of a benchmark stays as it is.

    Raises:
        FileNotFoundError: a source is not prepared, or without fingerprints.
        LeakError: an official eval set shares a group or an image with the train set and `data.allow_leak` is false.
        ValueError: no conversation to train on or left to evaluate on, or two eval sets of one name.
    """
    train, without = _without(data, [row for spec in data.train for row in rows(spec)])
    labels = [label(spec, data.eval) for spec in data.eval]
    if twice := {name for name in labels if labels.count(name) > 1}:
        raise ValueError(f"data.eval: two sets are called {min(twice)}; their losses need names, rename a folder")
    evaluation = dict(zip(labels, map(rows, data.eval), strict=True))
    if not train:
        raise ValueError("data.train: the sources hold no conversation; nothing can be trained")
    leaking = leaks(train, evaluation)
    if data.allow_leak:
        return Sets(train, evaluation, without=without, leaking=len(leaking))
    fixed = {root for root in {leak.row.root for leak in leaking} if read_card(root).get("split") != "group"}
    _refuse([leak for leak in leaking if leak.row.root in fixed])
    return _moved(data, Sets(train, evaluation, without=without), leaking)


def permuted(rows: Sequence[Row], generator: random.Random) -> list[Row | None]:
    """Each row with the images of another; None for one without images, or that no others are left for.

    Images are permuted among the rows of one source that show as many; rows that show the same get the same others.
    What is known of the images' views goes with them.
    """
    sets: dict[tuple[Path, int], dict[tuple[str, ...], tuple[str, ...]]] = {}
    for row in rows:
        sets.setdefault((row.root, len(row.example.images)), {})[row.example.images] = row.example.facts.views

    # Each shows what comes before it in a shuffled circle, so that none shows its own where there are two.
    other: dict[tuple[Path, tuple[str, ...]], tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for (root, _), distinct in sets.items():
        pool = list(distinct)
        generator.shuffle(pool)
        other |= {(root, images): (shown := pool[at - 1], distinct[shown]) for at, images in enumerate(pool)}

    return [_showing(row, *other[row.root, row.example.images]) for row in rows]


def _showing(row: Row, images: tuple[str, ...], views: tuple[str, ...]) -> Row | None:
    """The row with these images; None where they are its own."""
    if row.example.images == images:
        return None
    facts = row.example.facts
    facts = facts if facts.views == views else replace(facts, views=views)
    return replace(row, example=replace(row.example, images=images, facts=facts))


def leaks(train: Sequence[Row], evaluation: Mapping[str, Sequence[Row]]) -> list[Leak]:
    """The eval rows whose cluster holds a train row, in order.

    A cluster is what a name or an image holds together, over all rows: an image by its bytes, its archive id or its
    perceptual hash, mirrored and turned too; a name within one source, and in all sources of an archive where its card
    says whose ids it has.

    Raises:
        FileNotFoundError, ValueError: see `source.used_images`.
    """
    set_names = [name for name, rows in evaluation.items() for _ in rows]
    every = [*train, *(row for rows in evaluation.values() for row in rows)]
    if not set_names:
        return []

    # A graph of groups and images, its edges from each group to the images that its rows show.
    images, shown, group = _nodes(every)
    groups = int(group.max()) + 1
    base = np.stack([group[shown[:, 0]], groups + shown[:, 1]], axis=1)
    links = {kind: fingerprints.shared(images, kind) + groups for kind in KINDS}

    def reached(*linked: Pairs) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """bool, which eval rows stand in a cluster with a train row, and the cluster of every row."""
        cluster = fingerprints.clusters(groups + len(images), np.concatenate([base, *linked]))[group]
        return np.isin(cluster[len(train) :], cluster[: len(train)]), cluster

    is_leaking, cluster = reached(*links.values())
    if not is_leaking.any():
        return []

    # Each with the first train row of its cluster, and the first kind of evidence that joins the two by itself.
    by_one_kind = {"group": np.isin(group[len(train) :], group[: len(train)])}
    by_one_kind |= {kind: reached(pairs)[0] for kind, pairs in links.items()}
    twin = dict(zip(cluster[: len(train)][::-1].tolist(), train[::-1], strict=True))
    leaked = []
    for position in np.flatnonzero(is_leaking).tolist():
        kind = next((kind for kind, mask in by_one_kind.items() if mask[position]), "chain")
        index = len(train) + position
        leaked.append(Leak(set_names[position], every[index], twin[int(cluster[index])], kind))
    return leaked


def keys(rows: Sequence[Row]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64[N] and int64[N]: the same for rows whose first image is one photograph (-1: no image), and for a cluster's.

    What is one photograph, and what a cluster holds together, is as in `leaks`.

    Raises:
        FileNotFoundError, ValueError: see `source.used_images`.
    """
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    images, shown, group = _nodes(rows)
    groups = int(group.max()) + 1
    same = np.concatenate([fingerprints.shared(images, kind) for kind in KINDS])

    photograph = np.full(len(rows), NOTHING)
    if len(shown):
        first = np.unique(shown[:, 0], return_index=True)[1]
        photograph[shown[first, 0]] = fingerprints.clusters(len(images), same)[shown[first, 1]]

    edges = np.stack([group[shown[:, 0]], groups + shown[:, 1]], axis=1)
    return photograph, fingerprints.clusters(groups + len(images), np.concatenate([edges, same + groups]))[group]


def _nodes(every: Sequence[Row]) -> tuple[pa.Table, Pairs, NDArray[np.int64]]:
    """The images of N rows as a table, int64[P, 2] (row, its image's row there), and int64[N] group of each row.

    Rows that share any name are of one group.
    """
    # Source by source, as each has a table of its images, and names of its own.
    roots: dict[Path, list[int]] = defaultdict(list)
    for index, row in enumerate(every):
        roots[row.root].append(index)
    spaces = {root: namespace(root) for root in roots}
    number: dict[str, int] = {}
    keys = (full_name(spaces[row.root], row.example.group) for row in every)
    groups = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
    named = [
        (group, number.setdefault(full_name(spaces[row.root], name), len(number)))
        for group, row in zip(groups.tolist(), every, strict=True)
        for name in row.example.identities
    ]
    if named:
        groups = fingerprints.clusters(len(number), np.array(named, np.int64))[groups]

    tables, shown, count = [IMAGES_SCHEMA.empty_table()], [np.empty((0, 2), np.int64)], 0
    for root, indices in roots.items():
        row_numbers = [index for index in indices for _ in every[index].example.images]
        paths = [path for index in indices for path in every[index].example.images]
        images, image_numbers = used_images(root, pa.array(paths, pa.string()))
        shown.append(np.stack([np.array(row_numbers, np.int64), image_numbers + count], axis=1))
        tables.append(images)
        count += len(images)
    return pa.concat_tables(tables), np.concatenate(shown), groups


def _without(data: Data | PretrainData, train: Sequence[Row]) -> tuple[list[Row], list[Dropped]]:
    """The train rows that `data.without` leaves, and the ledger of the others.

    Raises:
        ValueError: no row has one of its values; the message names those that there are.
    """
    for name, value in data.without.items():
        values = Counter(str(known) for row in train if (known := fact(row.example.facts, name)) is not None)
        if train and value not in values:
            found = ", ".join(f"{other} ({count:,})" for other, count in values.most_common(8)) or "nothing known"
            raise ValueError(f"data.without.{name}: no train row has {value!r}; found {found}")
    kept, left = [], []
    for row in train:
        if why := _excluded(data, row):
            left.append(Dropped(_id(row), "without", why))
        else:
            kept.append(row)
    return kept, left


def _excluded(data: Data | PretrainData, row: Row) -> str:
    """By which of its facts a row is not to be trained on; empty where it may be."""
    found = (name for name, value in data.without.items() if str(fact(row.example.facts, name)) == value)
    return ", ".join(f"{name}: {data.without[name]}" for name in found)


def _refuse(leaking: Sequence[Leak]) -> None:
    """Refuses to go on where an official eval set leaks.

    Raises:
        LeakError: one does; with counts, examples and what to do.
    """
    if not leaking:
        return
    counts = ", ".join(f"{kind} {count}" for kind, count in Counter(leak.kind for leak in leaking).most_common())
    names = ", ".join(dict.fromkeys(leak.name for leak in leaking))
    examples = "; ".join(f"{_id(leak.row)} ~ {_id(leak.twin)} ({leak.kind})" for leak in leaking[:3])
    sources = " ".join(dict.fromkeys(str(row.root) for leak in leaking for row in (leak.row, leak.twin)))
    raise LeakError(
        f"data.eval: {len(leaking)} eval conversations of {names} share a group or an image with data.train ({counts}; "
        f"such as {examples}), and may not move there, as their split was not made by group. "
        f"Look at them with: skinvl leaks {sources}. Then prepare the source with --split group, "
        "leave one of the sources out, or set data.allow_leak=true, which the run records"
    )


def _moved(data: Data | PretrainData, sets: Sets, leaking: Sequence[Leak]) -> Sets:
    """The sets, with every leaking eval conversation in the train set or in neither.

    Raises:
        ValueError: an eval set has none left.
    """
    weights = {source_folder(spec.source).resolve(): spec.weight for spec in reversed(data.train)}
    folders = {root: root.resolve() for root in {row.root for row in [*sets.train, *(leak.row for leak in leaking)]}}
    trained = {(folders[row.root], row.example.id) for row in sets.train}
    gone = {(leak.name, leak.row.example.id) for leak in leaking}

    # A row is trained on where its source is a train source and does not show it there already.
    train, moved = list(sets.train), []
    for leak in leaking:
        folder = folders[leak.row.root]
        joins = folder in weights and (folder, leak.row.example.id) not in trained and not _excluded(data, leak.row)
        if joins:
            train.append(replace(leak.row, weight=weights[folder]))
        rule = "moved-to-train" if joins else "left-out-of-eval"
        detail = f"of {leak.name}: shares its cluster with {_id(leak.twin)} of the train set, by {leak.kind}"
        moved.append(Dropped(_id(leak.row), rule, detail))

    evaluation = {
        name: [row for row in rows if (name, row.example.id) not in gone] for name, rows in sets.evaluation.items()
    }
    for name, rows in sets.evaluation.items():
        if rows and not evaluation[name]:
            raise ValueError(
                f"data.eval: all {len(rows)} conversations of {name} share a group or an image with data.train; "
                "choose another eval set, or leave the source that holds the same images out of data.train"
            )
    return Sets(train, evaluation, moved, sets.without)


def _id(row: Row) -> str:
    return f"{row.example.source}:{row.example.id}"


def digests(data: Data | PretrainData) -> dict[str, str]:
    """32 hexadecimal digits of each file that holds a recipe's conversations, or what its images are."""
    files = set()
    for spec in (*data.train, *data.eval):
        source = source_folder(spec.source)
        files |= {source / f"{spec.split}.parquet", source / "images.parquet"}
    return {str(file): digest(file) for file in sorted(files) if file.is_file()}
