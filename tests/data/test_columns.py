from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.sources import fingerprint, photo
from skinvl.data import columns
from skinvl.data.example import Example, Facts, text, write
from skinvl.data.table1 import table


def source(folder: Path, seeds: list[int], *views: tuple[str, ...]) -> Path:
    """A source of one conversation for each tuple of views, which shows that many of the photos, from the first on."""
    (folder / "images").mkdir(parents=True)
    paths = [f"images/{folder.name}{seed}.png" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        photo(seed, 40).save(folder / path)
    rows = []
    for number, named in enumerate(views):
        shown = tuple(paths[: len(named) or 1])
        turns = text("user", "What is it?", images=len(shown)), text("assistant", "A nevus.")
        name = f"{folder.name}{number}"
        rows.append(Example(name, "x", shown, turns, name, "train", "CC0-1.0", Facts(views=named)))
    write(folder, "train", rows)
    return fingerprint(folder)


def test_a_photo_that_two_sources_name_otherwise_counts_once(tmp_path: Path) -> None:
    first, second = source(tmp_path / "a", [1, 2], ("x", "y")), source(tmp_path / "b", [2, 3], ("x", "y"))
    read, images = columns.read(columns.parts([str(first), str(second)]))
    assert len(images) == 4  # two of each source, all of which can be shown
    assert table(read, "images").totals == (2, 2, 3)
    alone, _ = columns.read(columns.parts([str(first)]))
    assert np.unique(alone.image).size == 2


def test_views_are_one_value_whatever_their_order(tmp_path: Path) -> None:
    folder = source(tmp_path / "a", [1, 2], ("close-up", "dermoscopic"), ("dermoscopic", "close-up"), ())
    read, _ = columns.read(columns.parts([str(folder)]))
    (views,) = (fact for fact in table(read, "conversations").facts if fact.name == "views")
    lines = [(line.value, line.counts) for line in views.lines]
    assert lines == [("close-up + dermoscopic", (2,)), ("not known", (1,))]
