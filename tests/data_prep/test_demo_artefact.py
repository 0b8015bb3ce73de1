"""The drawings of the demo: those of before byte for byte, and artefacts that go by the colour in training alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from data_prep import demo
from skinvl.data.example import words


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_the_drawings_are_those_of_before(tmp_path: Path) -> None:
    assert demo.rows(tmp_path / "raw", "all") == 2640
    assert digest(tmp_path / "raw" / "index.json") == "a5e006af3bfea7fd"
    assert not (tmp_path / "raw" / "artefact").exists()
    assert all(not row.facts.present for row in demo.convert(tmp_path / "raw", "all") if hasattr(row, "facts"))


def test_artefacts_go_by_the_colour_in_training_alone(tmp_path: Path) -> None:
    counts: dict[str, Counter[tuple[str, str]]] = {"train": Counter(), "test": Counter()}
    groups: dict[str, set[str]] = {"train": set(), "test": set()}
    for row in demo.convert(tmp_path / "raw", "artefact"):
        assert not isinstance(row, demo.Dropped)
        groups[row.split].add(row.group)
        if row.facts.kind == "colour":
            over = row.facts.present[0] if row.facts.present else demo.NOTHING
            assert {*row.facts.present, *row.facts.absent} == {*demo.ARTEFACTS}
            counts[row.split][words(row.messages[1]), over] += 1
    assert groups["train"].isdisjoint(groups["test"])
    for colour, tied in demo.TIED.items():
        own = {over: count for (shown, over), count in counts["train"].items() if shown == colour}
        assert {*own} == {tied, demo.NOTHING}
        assert own[tied] > 2 * own[demo.NOTHING]
    for colour in demo.INKS:
        own = {over: count for (shown, over), count in counts["test"].items() if shown == colour}
        assert {*own} == {*demo.ARTEFACTS, demo.NOTHING}
        assert max(own[over] for over in demo.ARTEFACTS) - min(own[over] for over in demo.ARTEFACTS) <= 1
