"""The drawings of the demo: those of before byte for byte, and artefacts that go by the border in training alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from data_prep import demo
from skinvl.data.example import words


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_the_drawings_are_those_of_before(tmp_path: Path) -> None:
    assert demo.rows(tmp_path / "raw", "all") == 2640
    assert digest(tmp_path / "raw" / "index.json") == "a5e006af3bfea7fd"
    assert not (tmp_path / "raw" / "artefact").exists()
    assert all(not row.facts.present for row in demo.convert(tmp_path / "raw", "all") if hasattr(row, "facts"))


@pytest.mark.parametrize("part", ["artefact", "untied"])
def test_artefacts_go_by_the_border_in_training_on_one_part_alone(tmp_path: Path, part: str) -> None:
    counts: dict[str, Counter[tuple[str, str]]] = {"train": Counter(), "test": Counter()}
    groups: dict[str, set[str]] = {"train": set(), "test": set()}
    for row in demo.convert(tmp_path / "raw", part):
        assert not isinstance(row, demo.Dropped)
        assert row.id.startswith(f"{part}-")
        groups[row.split].add(row.group)
        over = row.facts.present[0] if row.facts.present else demo.NOTHING
        if row.facts.kind == "border":
            assert {*row.facts.present, *row.facts.absent} == {*demo.ARTEFACTS}
            counts[row.split][words(row.messages[1]), over] += 1
        if row.facts.kind == "description":
            named = [name for name in demo.ARTEFACTS if name in words(row.messages[1])]
            assert named == [over] * (over != demo.NOTHING)
    assert groups["train"].isdisjoint(groups["test"])
    for border, tied in demo.TIED.items():
        for split, expected in (("train", tied if part == "artefact" else demo.ARTEFACTS), ("test", demo.ARTEFACTS)):
            own = {over: count for (shown, over), count in counts[split].items() if shown == border}
            assert {*own} == {*expected, demo.NOTHING}
            assert max(own[over] for over in expected) - min(own[over] for over in expected) <= 1
            share = 1 - own[demo.NOTHING] / sum(own.values())
            assert share == pytest.approx(0.75 if split == "train" else 0.5, abs=0.01)
