"""The linear probe: it learns what is in the pixels and nothing else, from nested shares, without the test's images."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import runs, sources, tiny
from skinvl.data.example import Example, Facts, text, write
from skinvl.evaluate import linear, probe, probe_features
from skinvl.evaluate.benchmarks import Sample
from skinvl.evaluate.linear import FLOOR
from skinvl.evaluate.probe import ProbeError
from skinvl.model.families import Picture
from skinvl.recipe.recipe import Recipe
from skinvl.score.predictions import Classified, read

SHARES = (10, 30, 50, 100)
COLOURS = {"melanoma": (200, 40, 40), "nevus": (40, 40, 200), "scar": (60, 180, 60)}


def drawn(folder: Path, images: dict[str, int], shuffled: bool = False, classes: tuple[str, ...] = ()) -> Path:
    """A prepared source in which the colour tells the diagnosis, or, shuffled, nothing does; two images a group."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    chance = random.Random(7)
    names = classes or tuple(COLOURS)
    for split, count in images.items():
        rows = []
        for number in range(count):
            kind = names[number // 2 % len(names)]
            colour = tuple(value + chance.randrange(-30, 30) for value in COLOURS[kind])
            name = f"images/{split}-{number}.png"
            Image.new("RGB", (84, 84), colour).save(folder / name)
            said = chance.choice(names) if shuffled else kind
            messages = (text("user", "What is it?", images=1), text("assistant", said))
            group = f"{split}-{number // 2}"
            facts = Facts(diagnosis=said)
            rows.append(Example(f"{split}-{number}", "drawn", (name,), messages, group, split, "CC0-1.0", facts))
        write(folder, split, rows)
    return sources.fingerprint(folder, alike=False)


def recipe(tmp_path: Path, folder: Path, family: str = "qwen2_vl", spec: dict[str, Any] | None = None) -> Recipe:
    return runs.make(tmp_path, family, evaluate__classify=[{"source": str(folder), "split": "test", **(spec or {})}])


def results(out: Path, name: str = "colours") -> dict[int, tuple[dict[str, Any], list[Classified]]]:
    return {share: read(out / "eval" / "classes" / f"{name}.probe-tower-{share}.jsonl", Classified) for share in SHARES}


def accuracy(settings: dict[str, Any], rows: list[Classified]) -> float:
    best = [settings["classes"][int(np.argmax(row.scores))] for row in rows if row.scores is not None]
    return sum(map(str.__eq__, best, (str(row.label) for row in rows if row.scores is not None))) / len(best)


@pytest.mark.parametrize("family", tiny.SOME)
def test_a_probe_learns_what_is_in_the_pixels(tmp_path: Path, family: str) -> None:
    folder = drawn(tmp_path / "colours", {"train": 60, "test": 30})
    probe.probe_sets(recipe(tmp_path, folder, family), tmp_path / "out")
    found = results(tmp_path / "out")
    assert accuracy(*found[100]) > 0.9  # the largest class has a third
    assert [settings["probe"] for settings, _ in found.values()] == [0.1, 0.3, 0.5, 1.0]
    sizes = [settings["train"]["rows"] for settings, _ in found.values()]
    assert sizes == [6, 18, 30, 60]
    for settings, rows in found.values():
        assert settings["classes"] == ["melanoma", "nevus", "scar"]
        assert settings["label_tokens"] is settings["prior"] is None
        assert [row.id for row in rows] == [f"test-{number}" for number in range(30)]
        assert all(abs(np.exp(row.scores or ()).sum() - 1) < 1e-9 for row in rows)
        assert all(Path(row.images[0]).is_file() for row in rows)


def test_a_probe_learns_nothing_from_shuffled_labels(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "colours", {"train": 90, "test": 90}, shuffled=True)
    probe.probe_sets(recipe(tmp_path, folder), tmp_path / "out")
    settings, rows = results(tmp_path / "out")[100]
    majority = Counter(row.label for row in rows).most_common(1)[0][1] / len(rows)
    assert accuracy(settings, rows) < majority + 0.12  # two standard errors of 90 rows


def test_a_probe_run_again_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = recipe(tmp_path, drawn(tmp_path / "colours", {"train": 24, "test": 12}))
    for out in ("out", "out", "again"):
        probe.probe_sets(one, tmp_path / out)
    for share, (settings, rows) in results(tmp_path / "out").items():
        assert results(tmp_path / "again")[share] == (settings, rows)
    assert "24 train rows, C=" in capsys.readouterr().out


def test_what_the_test_split_shows_is_not_learned_from(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "colours", {"train": 24, "test": 12})
    rows = probe.benchmarks.read(folder, "train")
    twin, grouped = replace(rows[0], images=("images/twin.png",)), replace(rows[4], group="test-1")
    (folder / "images" / "twin.png").write_bytes((folder / "images" / "test-3.png").read_bytes())
    Image.open(folder / "images" / "test-4.png").save(folder / "images" / "train-8.png", compress_level=0)
    write(folder, "train", [twin, *rows[1:4], grouped, *rows[5:]])
    sources.fingerprint(folder, alike=False)
    probe.probe_sets(recipe(tmp_path, folder), tmp_path / "out")
    settings, _ = results(tmp_path / "out")[100]
    # With the twin goes its group, with the one of a test group that row alone; other bytes alone tell nothing.
    assert settings["train"] == {
        "split": "train",
        "rows": 21,
        "groups": 11,
        "left_out": {"shared-with-test": 3},
    }


def test_a_smaller_copy_of_a_test_image_is_not_learned_from(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "colours", {"train": 12, "test": 6})
    sources.photo(1).save(folder / "images" / "test-0.png")
    sources.photo(1).resize((160, 160)).save(folder / "images" / "train-0.png")
    sources.fingerprint(folder)
    probe.probe_sets(recipe(tmp_path, folder), tmp_path / "out")
    settings, _ = results(tmp_path / "out")[100]
    assert settings["train"]["left_out"] == {"shared-with-test": 2}  # its whole group


def test_a_csv_with_sets_is_probed_too(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "colours", {"train": 30, "test": 12})
    (folder / "images" / "train-1.png").write_bytes((folder / "images" / "test-3.png").read_bytes())
    lines = ["image,categories,set"]
    for split, count in (("train", 30), ("test", 12)):
        for row in probe.benchmarks.read(folder, split)[:count]:
            lines.append(f"{row.images[0]},['{row.facts.diagnosis}'],{split}")
    path = folder / "mine.csv"
    path.write_text("\n".join([*lines, lines[-1].replace("test\n", "train"), "gone.png,['scar'],train"]))
    probe.probe_sets(recipe(tmp_path, path), tmp_path / "out")
    settings, rows = results(tmp_path / "out", "mine")[100]
    assert accuracy(settings, rows) > 0.9
    assert settings["train"]["rows"] == 29
    assert settings["train"]["left_out"] == {"shared-with-test": 1, "missing-image": 1}


def test_rows_that_cannot_be_seen_are_refused_one_by_one(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "colours", {"train": 24, "test": 12})
    (folder / "images" / "test-0.png").unlink()
    (folder / "images" / "test-1.png").write_bytes(b"no image")
    (folder / "images" / "train-3.png").write_bytes(b"no image")
    rows = probe.benchmarks.read(folder, "test")
    write(folder, "test", [*rows[:5], replace(rows[5], facts=Facts(diagnosis=None)), *rows[6:]])
    probe.probe_sets(recipe(tmp_path, folder), tmp_path / "out")
    settings, found = results(tmp_path / "out")[30]
    assert [row.detail.partition(":")[0] for row in found[:6]] == [
        *("missing-image", "unreadable-image", "", "", ""),
        "its diagnosis is not known",
    ]
    assert [row.scores is None for row in found] == [True, True, False, False, False, True] + [False] * 6
    assert found[0].label == "melanoma"
    assert settings["train"]["left_out"] == {"unreadable-image": 1}
    assert len(found) == 12


def test_a_class_without_an_example_has_a_floor(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "colours", {"train": 24}, classes=("melanoma", "nevus"))
    drawn(folder, {"test": 12})
    probe.probe_sets(recipe(tmp_path, folder), tmp_path / "out")
    settings, rows = results(tmp_path / "out")[100]
    assert settings["unlearned"] == ["scar"]
    assert settings["floor"] == FLOOR
    assert all(row.scores is not None and row.scores[2] == FLOOR for row in rows)


def samples(groups: dict[str, list[str]]) -> list[Sample]:
    """A sample for each label of each group."""
    return [
        Sample(Example(f"{group}-{number}", "drawn", (), (), group, "train", "CC0-1.0"), Path(), label, "")
        for group, some in groups.items()
        for number, label in enumerate(some)
    ]


def test_shares_are_whole_groups_nested_and_of_every_class() -> None:
    groups = {f"a{number}": ["a"] * (1 + number % 3) for number in range(60)}
    groups |= {f"b{number}": ["b", "b", "a"] for number in range(20)} | {"c0": ["c"]}
    given = samples(groups)
    found = linear.shares(given, SHARES, 0)
    names = [{sample.example.id for sample in some} for some in found]
    assert names[0] < names[1] < names[2] < names[3] == {sample.example.id for sample in given}
    for share, some in zip(SHARES, found, strict=True):
        counts = Counter(sample.example.group for sample in some)
        assert all(count == len(groups[group]) for group, count in counts.items())
        labels = Counter(sample.label for sample in some)
        assert set(labels) == {"a", "b", "c"}
        assert abs(len(some) - share / 100 * len(given)) <= 6  # at most a group too many of each class
        assert abs(labels["b"] - share / 100 * 40) <= 2
    assert linear.shares(given, SHARES, 0) == found
    assert linear.shares(given, SHARES, 1)[0] != found[0]


def test_the_strength_is_chosen_on_groups_that_were_not_seen() -> None:
    # Rows of a group are copies: only where whole groups are held out does the weakest regularisation not win.
    chance = np.random.default_rng(0)
    groups = {f"g{number}": [str(number % 2)] * 4 for number in range(40)}
    features = np.repeat(chance.normal(size=(40, 60)), 4, axis=0)
    fitted = linear.fit(features, samples(groups), ("0", "1"))
    assert fitted.strength <= 1e-2
    apart = {f"{group}-{number}": [label] for group, some in groups.items() for number, label in enumerate(some)}
    assert linear.fit(features, samples(apart), ("0", "1")).strength >= 1


def test_tiles_that_an_image_does_not_fill_do_not_count() -> None:
    features = torch.arange(4 * 3 * 2, dtype=torch.float32).reshape(4, 3, 2)
    assert (
        probe_features.pooled(features, Picture((1, 2), 1, 12)).tolist() == features[:2].reshape(6, 2).mean(0).tolist()
    )
    assert probe_features.pooled(features[0], Picture((1, 1, 3), 3, 3)).tolist() == features[0].mean(0).tolist()


def test_what_cannot_be_probed_is_refused(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "colours", {"test": 12})
    with pytest.raises(ProbeError, match=r"no split train, from which a probe could learn; it has test\. Prepare"):
        probe.probe_sets(recipe(tmp_path, folder), tmp_path / "out")
    drawn(folder, {"train": 12})
    with pytest.raises(ProbeError, match="the split train is what a probe learns from"):
        probe.probe_sets(recipe(tmp_path, folder, spec={"split": "train"}), tmp_path / "out")
    with pytest.raises(ProbeError, match="names no set"):
        probe.probe_sets(runs.make(tmp_path, "qwen2_vl"), tmp_path / "out")
    one = runs.make(
        tmp_path,
        "qwen2_vl",
        evaluate__classify=[{"source": str(folder)}],
        parts__vision={"train": "lora"},
        init_adapter=str(tmp_path),
    )
    with pytest.raises(ProbeError, match="a probe measures the frozen tower, and this adapter changed it"):
        probe.probe_sets(one, tmp_path / "out")
    assert not (tmp_path / "out").exists()
