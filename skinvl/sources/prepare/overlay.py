"""Annotations of another source's images: rows and images take what the prepared source below says of them.

A converter whose card names sources in `over` gives Examples whose images are file names of that source's raw photos.
What lies over it has its paths, groups, splits, identities, facts and terms, and the same rows in the table of images,
so that the leak guard and a mixture know every image again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from data_prep import Card, PrepError
from skinvl.data.example import SCALARS, Dropped, Example, Facts, facts_of, splits
from skinvl.data.source import IMAGES_SCHEMA, read_card, read_images, source_folder
from skinvl.data.workers import advance
from skinvl.recipe.files import whole_file
from skinvl.sources.prepare.images import Looked

RULE = "not-below"  # of a row whose image the source below does not have
_COLUMNS = ("images", "group", "split", "licence", "facts", "identities")


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the source below says of an image, in the first row that shows it."""

    path: str
    group: str
    split: str
    licence: str
    facts: Facts
    identities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Below:
    """The images of a prepared source by their file names; None where several images have the name."""

    folder: Path
    by_name: Mapping[str, _Shown | None]

    def laid(self, where: str, example: Example) -> Example | Dropped:
        """The Example with the images of the source below and what that says of them."""
        shown = []
        for name in example.images:
            image = self.by_name.get(PurePosixPath(name).name) or self.by_name.get(PurePosixPath(name).stem)
            if image is None:
                several = PurePosixPath(name).name in self.by_name
                lack = "several images of that name" if several else "no image of that name"
                return Dropped(where, RULE, f"{name:.120}: {lack} in the source below, {self.folder.name}")
            shown.append(image)
        if not shown:
            return example
        first = shown[0]
        known = {name: getattr(first.facts, name) for name in SCALARS if getattr(example.facts, name) is None}
        return replace(
            example,
            images=tuple(image.path for image in shown),
            group=first.group,
            split=first.split,
            licence=", ".join(dict.fromkeys((example.licence, *(image.licence for image in shown)))),
            facts=replace(example.facts, **known),
            identities=tuple(dict.fromkeys(name for image in shown for name in image.identities)),
        )


def choose(name: str, card: Card, parts: Sequence[str], over: Path | None) -> tuple[tuple[str, ...], Path | None]:
    """The parts that are converted, and the prepared source that they lie over; None where they have their own images.

    Args:
        parts: those asked for; none is the first, or that of the source which `over` names.
        over: where the source below lies; None is `data/` and the name of the part.

    Raises:
        PrepError: there is no such source below, or it is of another converter.
    """
    if not card.over:
        if over is not None:
            raise PrepError(f"--over {over}: {name} has images of its own and lies over no other source; leave it out")
        return tuple(dict.fromkeys(parts or card.parts[:1])), None
    if over is not None and not parts and (source := read_card(over).get("source")) in card.over:
        parts = (source,)
    chosen = tuple(dict.fromkeys(parts or card.parts[:1]))
    if len(chosen) > 1:
        raise PrepError(
            f"{name}: the parts {', '.join(chosen)} each lie over a source of their own; prepare one after the other, "
            "each into an OUT of its own"
        )
    part, folder = chosen[0], over or source_folder(chosen[0])
    if not (source := read_card(folder).get("source")) or not (folder / "images.parquet").is_file():
        raise PrepError(
            f"{folder}: no prepared source; {name} has no images and lies over those of {part}. Prepare them with "
            f"skinvl prep {part} RAW {folder} (skinvl prep --list {part} says how to get them), or name the folder "
            "where they are prepared with --over"
        )
    if source != part:
        raise PrepError(
            f"{folder}: prepared from {source}; the part {part} of {name} lies over {part}. Name another folder with "
            f"--over, or another part with --part ({', '.join(card.over)})"
        )
    return chosen, folder


@lru_cache(maxsize=1)
def below(folder: Path, stamp: str) -> Below:
    """The source below, read once for each of its stamps.

    Raises:
        ValueError: its files are not those of a prepared source.
    """
    by_path: dict[str, _Shown] = {}
    for split in splits(folder):
        for row in pq.read_table(folder / f"{split}.parquet", columns=list(_COLUMNS)).to_pylist():
            for image in row["images"]:
                if image["path"] not in by_path:
                    facts = replace(facts_of(row["facts"]), kind=None)
                    by_path[image["path"]] = _Shown(
                        *(image["path"], row["group"], row["split"], row["licence"], facts, tuple(row["identities"]))
                    )
    by_name: dict[str, _Shown | None] = {}
    for shown in by_path.values():
        path = PurePosixPath(shown.path)
        for name in {path.name, path.stem}:
            by_name[name] = None if name in by_name else shown
    return Below(folder, by_name)


def keeps_split(folder: Path | None) -> bool:
    """Whether the source below keeps the split of its authors; what lies over it then does too."""
    return folder is not None and read_card(folder).get("split") == "official"


def stamp(folder: Path) -> str:
    """What tells whether a source below has changed."""
    return str(read_card(folder).get("stamp"))


def inherited(card: Card, folder: Path) -> dict[str, Any]:
    """What the card of a source says that lies over the one in the folder: the terms of both, and its archive."""
    record = read_card(folder)
    return {
        "licence": ", ".join(dict.fromkeys((card.licence, record["licence"]))),
        "terms": f"{card.terms} Of the images: {record['terms']}",
        "archive": record["archive"],
        "alike": record["alike"],
        "profiles": record.get("profiles", "ignore"),
        "below": {"source": record["source"], "stamp": record["stamp"]},
    }


def link_images(folder: Path, paths: Sequence[str], out: Path) -> list[Looked]:
    """Each of some images of the source below, linked into OUT as it is, with its row of the table of images."""
    table = _images(folder, (folder / "images.parquet").stat().st_mtime_ns)
    looked = []
    for path in paths:
        if path in table and (folder / path).is_file():
            _link(folder / path, out / path)
            looked.append(Looked(path, path, **table[path]))
        else:
            looked.append(Looked(path, rule="missing-image", detail=f"{path}: not in the source below, {folder.name}"))
    advance(len(looked))
    return looked


@lru_cache(maxsize=1)
def _images(folder: Path, changed: int) -> dict[str, dict[str, Any]]:
    """The rows of the table of images, by path."""
    rows = read_images(folder).to_pylist()
    return {row["path"]: {name: row[name] for name in IMAGES_SCHEMA.names if name != "path"} for row in rows}


def _link(source: Path, target: Path) -> None:
    """Links the target to the source, or copies it where the two lie on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
