"""Every image of a source becomes one unit with what its conversations agree on, in any share, with flat memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skinvl.data.example import Example, ExampleError, Facts, text, write
from skinvl.sources.synthesis import programme
from skinvl.sources.synthesis.programme import Unit
from skinvl.sources.synthesis.units import POOL, Share, UnitsError, total, units

DERMASYNTH = programme.load("dermasynth")
CAPTIONS = programme.load("caption_vqa")
TASKS = programme.load("self_instruct")


def row(
    number: int,
    images: Sequence[str] = ("images/a.jpg",),
    facts: Facts = Facts(),  # noqa: B008  # it is frozen
    split: str = "train",
    licence: str = "CC-BY-4.0",
    said: tuple[str, str] = ("What is it?", "A macule."),
    name: str = "row",
) -> Example:
    turns = text("user", said[0], images=len(images)), text("assistant", said[1])
    return Example(f"{name}-{number}", "drawn", tuple(images), turns, f"p-{images}", split, licence, facts)


def source(folder: Path, *rows: Example) -> Path:
    folder.mkdir(exist_ok=True)
    for split in {one.split for one in rows}:
        write(folder, split, [one for one in rows if one.split == split])
    return folder


def names(found: Iterable[Unit]) -> list[str]:
    return [unit.id for unit in found]


def test_a_unit_has_what_the_conversations_about_its_image_know(tmp_path: Path) -> None:
    folder = source(
        tmp_path,
        row(0, facts=Facts("clinical", "melanoma", age=50.0, kind="diagnosis")),
        row(1, ["images/b.jpg"], Facts(site="arm", kind="site")),
        row(2, facts=Facts(sex="male", kind="sex"), licence="CC0-1.0"),
    )
    one, other = sorted(units(DERMASYNTH, folder, Share()), key=lambda unit: unit.id)
    known = Facts("clinical", "melanoma", age=50.0, sex="male")
    group = "p-('images/a.jpg',)"
    assert one == Unit("images/a.jpg", "images/a.jpg", "drawn", known, group, "train", "CC-BY-4.0, CC0-1.0")
    assert other.facts == Facts(site="arm")


def test_what_conversations_disagree_about_is_not_known(tmp_path: Path) -> None:
    ages = [50.0, 60.0, 50.0]
    rows = [row(n, facts=Facts("clinical", "melanoma", age=age)) for n, age in enumerate(ages)]
    (unit,) = units(DERMASYNTH, source(tmp_path, *rows), Share())
    assert unit.facts == Facts("clinical", "melanoma")


def test_only_conversations_about_exactly_one_image_count(tmp_path: Path) -> None:
    pairs = [
        row(n, [f"images/{name}.jpg" for name in names], Facts(sex="male")) for n, names in enumerate(("ab", "ba"))
    ]
    folder = source(tmp_path, *pairs, row(2, ["images/b.jpg"]), row(3, []))
    (unit,) = units(DERMASYNTH, folder, Share())
    assert (unit.id, unit.facts) == ("images/b.jpg", Facts())
    assert total(DERMASYNTH, folder, Share()) == 1


def test_captions_are_read_where_a_programme_wants_them(tmp_path: Path) -> None:
    folder = source(
        tmp_path,
        row(0, said=("Describe it.", "A brown\nplaque.")),
        row(1, said=("Describe it.", "A red\n  plaque."), name="caption"),
        row(2, ["images/b.jpg"]),
    )
    found = {unit.id: unit.caption for unit in units(CAPTIONS, folder, Share())}
    assert found == {"images/a.jpg": "A red plaque.", "images/b.jpg": None}
    assert {unit.caption for unit in units(DERMASYNTH, folder, Share())} == {None}


def test_splits_stay_and_an_image_of_two_is_of_the_one_nearer_to_training(tmp_path: Path) -> None:
    a, b, c = ["images/a.jpg"], ["images/b.jpg"], ["images/c.jpg"]
    folder = source(tmp_path, row(0, a, split="test"), row(1, b, split="test"), row(2, a), row(3, c, split="extra"))
    assert {unit.id: unit.split for unit in units(DERMASYNTH, folder, Share())} == {
        **{"images/a.jpg": "train", "images/b.jpg": "test", "images/c.jpg": "extra"}
    }
    assert sorted(names(units(DERMASYNTH, folder, Share(("test",))))) == ["images/a.jpg", "images/b.jpg"]
    assert total(DERMASYNTH, folder, Share(("test", "extra"))) == 3


def many(folder: Path, count: int, rows: int = 2) -> Path:
    """Images whose first conversations stand in a row, and whose last ones do so again far below."""
    return source(folder, *(row(at * count + n, [f"images/{n}.jpg"]) for at in range(rows) for n in range(count)))


def test_shards_share_the_units_of_any_limit(tmp_path: Path) -> None:
    folder = many(tmp_path, 300)
    whole = names(units(DERMASYNTH, folder, Share()))
    assert len(whole) == len(set(whole)) == 300
    shards = [names(units(DERMASYNTH, folder, Share(index=n, of=4))) for n in range(4)]
    assert sorted(name for shard in shards for name in shard) == sorted(whole)
    assert all(40 < len(shard) < 110 for shard in shards)
    few = names(units(DERMASYNTH, folder, Share(limit=40)))
    more = names(units(DERMASYNTH, folder, Share(limit=90)))
    assert (len(few), len(more)) == (40, 90)
    assert set(few) < set(more)  # what is paid for stays of use
    assert few != whole[:40]
    assert sum(len(names(units(DERMASYNTH, folder, Share(limit=40, index=n, of=4)))) for n in range(4)) == 40
    assert [total(DERMASYNTH, folder, Share(limit=n)) for n in (40, 900, None)] == [40, 300, 300]


def test_tasks_are_numbered_and_draw_from_the_source(tmp_path: Path) -> None:
    rows = [row(n, [], said=(f"Task {n}?", "An answer.")) for n in range(POOL + 200)]
    long, image = row(9000, [], said=("x" * 5000, "yes")), row(9001, ["images/a.jpg"], said=("Of an image?", "yes"))
    folder = source(tmp_path, *rows, long, image, row(9002, [], split="test", said=("Of the test?", "yes")))
    (folder / "card.json").write_text(json.dumps({"licence": "CC-BY-NC-4.0"}))
    found = list(units(TASKS, folder, Share(count=30)))
    assert names(found) == [f"task-{number}" for number in range(1, 31)]
    assert {unit.licence for unit in found} == {"CC-BY-NC-4.0"}
    assert {unit.image for unit in found} == {None}
    assert len(found[0].tasks) == len(set(found[0].tasks)) == POOL
    assert all(task.startswith("Task ") for task in found[0].tasks)
    assert found[0].tasks is found[29].tasks
    assert sum(len(names(units(TASKS, folder, Share(count=30, index=n, of=3)))) for n in range(3)) == 30
    assert total(TASKS, folder, Share(count=30)) == 30


def test_tasks_of_seeds_alone_have_no_licence_of_the_source(tmp_path: Path) -> None:
    (unit,) = units(TASKS, source(tmp_path, row(0)), Share(count=1))
    assert (unit.tasks, unit.licence) == ((), "")


def test_tasks_of_a_benchmark_are_no_examples_unless_it_is_named(tmp_path: Path) -> None:
    folder = source(tmp_path, row(0, [], split="test", said=("Of the test?", "yes")))
    assert next(units(TASKS, folder, Share(count=1))).tasks == ()
    assert next(units(TASKS, folder, Share(("test",), count=1))).tasks == ("Of the test?",)


def test_what_cannot_be_asked_about_is_said(tmp_path: Path) -> None:
    folder = source(tmp_path, row(0, []))
    with pytest.raises(UnitsError, match=r"no conversation of train is about exactly one image.*self_instruct"):
        units(DERMASYNTH, folder, Share())
    with pytest.raises(UnitsError, match="--count N"):
        next(units(TASKS, folder, Share()))
    with pytest.raises(FileNotFoundError, match=r"tests\.parquet: no such split; it has the splits: train"):
        units(DERMASYNTH, folder, Share(("tests",)))
    with pytest.raises(FileNotFoundError, match="holds no prepared source"):
        units(DERMASYNTH, tmp_path / "nowhere", Share())
    pq.write_table(pa.table({"id": ["a"]}), folder / "train.parquet")
    with pytest.raises(ExampleError, match="no column images"):
        units(DERMASYNTH, folder, Share())
    (folder / "train.parquet").write_bytes(b"no")
    with pytest.raises(ExampleError, match="not Parquet"):
        units(DERMASYNTH, folder, Share())


def test_memory_is_flat_over_the_images(tmp_path: Path) -> None:
    peaks = []
    for count in (4_000, 16_000):
        folder = many(tmp_path / str(count), count, rows=1)
        tracemalloc.start()
        try:
            assert sum(1 for _ in units(DERMASYNTH, folder, Share())) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # What is held of an image is its hash and the count of its conversations.
    assert peaks[1] - peaks[0] < 12_000 * 400  # bytes
