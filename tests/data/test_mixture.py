"""Sets that share no group and no image: what moves, what is refused, and what is left as it is."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import in_archive
from helpers.sources import fingerprint, phash, photo
from skinvl.data import overlap
from skinvl.data.example import Example, Facts, read, text, write
from skinvl.data.mixture import LeakError, Row, Sets, keys, leaks, load, permuted, rows
from skinvl.data.source import IMAGES_SCHEMA, source_folder
from skinvl.recipe.recipe import Data, SourceSpec
from skinvl.score import predictions


def example(name: str, group: str, *images: str) -> Example:
    messages = (text("user", "What is shown?", images=len(images)), text("assistant", "A nevus."))
    return Example(name, "drawn", tuple(f"images/{one}" for one in images), messages, group, "train", "CC0-1.0")


class Source:
    """A prepared source that grows; every image it names is drawn by a seed, the number in its name."""

    def __init__(self, root: Path, split: str = "group", alike: bool = True) -> None:
        self.root, self.split, self.alike = root, split, alike
        (root / "images").mkdir(parents=True)

    def has(self, split: str, *examples: Example) -> Source:
        for name in {name for one in examples for name in one.images}:
            path = self.root / name
            if not path.exists():
                photo(int("".join(filter(str.isdigit, path.stem)))).save(path)
        write(self.root, split, [replace(one, split=split, source=self.root.name) for one in examples])
        fingerprint(self.root, self.split, self.alike)
        return self

    def spec(self, split: str, weight: float = 1.0) -> SourceSpec:
        return SourceSpec(source=str(self.root), split=split, weight=weight)


def data(train: list[SourceSpec], evaluation: list[SourceSpec], allow_leak: bool = False) -> Data:
    return Data(train=train, eval=evaluation, image_tokens=16, max_tokens=256, allow_leak=allow_leak)


def ids(sets: Sets) -> tuple[list[str], dict[str, list[str]]]:
    names = {name: [row.example.id for row in some] for name, some in sets.evaluation.items()}
    return [row.example.id for row in sets.train], names


def fates(sets: Sets) -> list[tuple[str, str]]:
    return [(row.row, row.rule) for row in sets.moved]


def test_strangers_stay_where_they_are(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "g1", "1.png"), example("t", "g3"))
    one.has("test", example("b", "g2", "2.png"), example("u", "g4"))
    sets = load(data([one.spec("train")], [one.spec("test")]))
    assert ids(sets) == (["a", "t"], {"one": ["b", "u"]})
    assert (sets.moved, sets.leaking) == ([], 0)


def test_a_shared_group_moves_to_train_with_its_weight(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "patient-1"))
    one.has("test", example("b", "patient-1"), example("c", "patient-2"), example("d", "patient-1"))
    sets = load(data([one.spec("train", 2.5)], [one.spec("test")]))
    assert ids(sets) == (["a", "b", "d"], {"one": ["c"]})
    assert {row.weight for row in sets.train} == {2.5}
    assert fates(sets) == [("one:b", "moved-to-train"), ("one:d", "moved-to-train")]
    assert sets.moved[0].detail == "of one: shares its cluster with one:a of the train set, by group"


def test_a_group_of_another_source_is_another_group(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "patient-1"))
    other = Source(tmp_path / "other").has("test", example("b", "patient-1"))
    assert load(data([one.spec("train")], [other.spec("test")])).moved == []


def copies(tmp_path: Path, split: str) -> tuple[Source, Source]:
    """A train source, and an eval source with one image by each kind of evidence and a stranger."""
    one = Source(tmp_path / "one").has(
        "train", example("a", "g1", "1.png"), example("b", "g2", "2.png"), example("c", "g3", "ISIC_0000003.png")
    )
    other = Source(tmp_path / "other", split)
    shutil.copy(one.root / "images" / "1.png", other.root / "images" / "51.png")
    photo(2).save(other.root / "images" / "52.jpg", quality=60)
    photo(53).save(other.root / "images" / "isic_0000003.JPG")
    other.has(
        "test", example("sha", "h1", "51.png"), example("looks", "h2", "52.jpg"),
        example("id", "h3", "isic_0000003.JPG"), example("none", "h4", "54.png"),
    )  # fmt: skip
    return one, other


def test_an_image_of_another_source_is_left_out_by_each_kind_of_evidence(tmp_path: Path) -> None:
    one, other = copies(tmp_path, "group")
    sets = load(data([one.spec("train")], [other.spec("test")]))
    assert ids(sets) == (["a", "b", "c"], {"other": ["none"]})
    assert fates(sets) == [(f"other:{name}", "left-out-of-eval") for name in ("sha", "looks", "id")]
    assert [row.detail.rsplit(" ", 1)[1] for row in sets.moved] == ["sha256", "phash", "archive"]


def test_an_official_split_is_refused_with_counts_examples_and_a_way_out(tmp_path: Path) -> None:
    one, other = copies(tmp_path, "official")
    recipe = data([one.spec("train")], [other.spec("test")])
    with pytest.raises(LeakError) as raised:
        load(recipe)
    said = str(raised.value)
    assert "3 eval conversations of other share" in said
    assert "(sha256 1, phash 1, archive 1; such as other:sha ~ one:a (sha256); other:looks ~ one:b (phash);" in said
    assert f"skinvl leaks {other.root} {one.root}." in said
    assert "--split group" in said
    assert "data.allow_leak=true" in said
    (other.root / "card.json").unlink()
    with pytest.raises(LeakError):
        load(recipe)


def test_what_is_allowed_to_leak_is_counted_and_left_where_it_is(tmp_path: Path) -> None:
    one, other = copies(tmp_path, "official")
    sets = load(data([one.spec("train")], [other.spec("test")], allow_leak=True))
    assert ids(sets) == (["a", "b", "c"], {"other": ["sha", "looks", "id", "none"]})
    assert (sets.leaking, sets.moved) == (3, [])


def test_drawings_that_look_alike_are_strangers(tmp_path: Path) -> None:
    one, other = copies(tmp_path, "group")
    fingerprint(other.root, alike=False)
    sets = load(data([one.spec("train")], [other.spec("test")]))
    assert ids(sets)[1] == {"other": ["looks", "none"]}


def test_chains_count_over_rows_of_any_set(tmp_path: Path) -> None:
    """The patient of d has a second photo, c, which is the train source's under another name."""
    one = Source(tmp_path / "one").has("train", example("a", "g1", "1.png"))
    other = Source(tmp_path / "other")
    shutil.copy(one.root / "images" / "1.png", other.root / "images" / "61.png")
    other.has("test", example("c", "p", "61.png"), example("d", "p", "62.png"), example("e", "q", "62.png", "63.png"),
              example("f", "r", "64.png"))  # fmt: skip
    sets = load(data([one.spec("train")], [other.spec("test")]))
    assert ids(sets)[1] == {"other": ["f"]}
    bridge = Source(tmp_path / "bridge").has("test", example("x", "s", "65.png", "64.png"))
    shutil.copy(one.root / "images" / "1.png", bridge.root / "images" / "65.png")
    fingerprint(bridge.root)
    bridge.has("dev", example("y", "z", "66.png"))
    evaluation = [other.spec("test"), bridge.spec("test"), bridge.spec("dev")]
    with pytest.raises(ValueError, match=r"all 4 conversations of other share a group or an image with data\.train"):
        load(data([one.spec("train")], evaluation))
    assert load(data([one.spec("train")], evaluation, allow_leak=True)).leaking == 5


def test_a_chain_that_no_single_kind_makes_is_called_one(tmp_path: Path) -> None:
    """The ISIC image is the train source's by its name, and the eval source's by its looks."""
    one = Source(tmp_path / "one").has("train", example("a", "g", "ISIC_0000001.png"))
    middle = Source(tmp_path / "middle")
    photo(70).save(middle.root / "images" / "isic_0000001.jpg", quality=90)
    middle.has("test", example("m", "g", "isic_0000001.jpg"), example("n", "h", "71.png"))
    last = Source(tmp_path / "last").has("test", example("z", "g", "70.png"), example("y", "h", "72.png"))
    found = load(data([one.spec("train")], [middle.spec("test"), last.spec("test")]))
    assert [(row.row, row.detail.rsplit(" ", 1)[1]) for row in found.moved] == [
        ("middle:m", "archive"),
        ("last:z", "chain"),
    ]


def test_what_is_trained_on_already_is_not_trained_on_twice(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "g1", "1.png"))
    one.has("test", example("b", "g2", "2.png"))
    other = Source(tmp_path / "other").has("test", example("c", "g3", "3.png"))
    both = [one.spec("train"), one.spec("test")]
    with pytest.raises(ValueError, match="all 1 conversations of one share"):
        load(data(both, [one.spec("test"), other.spec("test")]))
    one.has("test", example("b", "g2", "2.png"), example("d", "g2"))
    one.has("train", example("b", "g2", "2.png"))
    one.has("test", example("b", "g2", "2.png"), example("d", "g2"), example("e", "g9"))
    sets = load(data([one.spec("train")], [one.spec("test")]))
    assert ids(sets) == (["b", "d"], {"one": ["e"]})
    assert fates(sets) == [("one:b", "left-out-of-eval"), ("one:d", "moved-to-train")]


def of(one: Example, institution: str | None) -> Example:
    return replace(one, facts=replace(one.facts, institution=institution))


def test_what_is_to_be_trained_without_stands_in_the_ledger_and_comes_back_by_no_way(tmp_path: Path) -> None:
    source = Source(tmp_path / "drawn")
    places = ("Bern", "Vienna", None)
    source.has("train", *(of(example(f"t{n}", f"g{n}", f"{n}.png"), places[n % 3]) for n in range(6)))
    # Of a group that is trained on: one that may join it, and one of the institution that may not.
    joined = of(example("e0", "g0", "10.png"), "Bern"), of(example("e1", "g0", "11.png"), "Vienna")
    source.has("test", *joined, of(example("e2", "g9", "12.png"), "Vienna"))
    asked = data([source.spec("train")], [source.spec("test")])
    everything, fewer = (
        load(asked),
        load(asked.model_copy(update={"without": {"institution": "Vienna"}})),
    )
    assert ids(everything)[0] == [*(f"t{n}" for n in range(6)), "e0", "e1"]
    assert ids(fewer) == (["t0", "t2", "t3", "t5", "e0"], {"drawn": ["e2"]})
    assert [(row.row, row.rule, row.detail) for row in fewer.without] == [
        (f"drawn:t{n}", "without", "institution: Vienna") for n in (1, 4)
    ]
    assert ("drawn:e1", "left-out-of-eval") in fates(fewer)
    assert everything.without == []
    with pytest.raises(
        ValueError, match=r"data\.without\.institution: no train row has 'Basel'; found Bern \(2\), Vienna"
    ):
        load(asked.model_copy(update={"without": {"institution": "Basel"}}))


def test_without_eval_sets_no_fingerprints_are_needed(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "g1", "1.png"))
    (one.root / "images.parquet").unlink()
    assert ids(load(data([one.spec("train")], []))) == (["a"], {})


def test_images_without_fingerprints_are_an_error_and_text_needs_none(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "g1", "1.png"))
    words = Source(tmp_path / "words").has("test", example("b", "g2"))
    (words.root / "images.parquet").unlink()
    recipe = data([one.spec("train")], [words.spec("test")])
    assert load(recipe).moved == []
    (one.root / "images.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"one/images\.parquet: no such file.*skinvl prep"):
        load(recipe)
    pq.write_table(IMAGES_SCHEMA.empty_table(), one.root / "images.parquet")
    with pytest.raises(ValueError, match=r"has no row of images/1\.png.*skinvl prep"):
        load(recipe)


def test_mirrored_and_turned_images_leak(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", *(example(f"a{n}", f"g{n}", f"{n}.png") for n in range(1, 8)))
    other = Source(tmp_path / "other")
    for number, turn in enumerate(Image.Transpose, start=1):
        photo(number).transpose(turn).save(other.root / "images" / f"{50 + number}.jpg", quality=60)
    rows = [example(f"b{n}", f"h{n}", f"{50 + n}.jpg") for n in range(1, 8)]
    other.has("test", *rows, example("none", "h", "60.png"))
    sets = load(data([one.spec("train")], [other.spec("test")]))
    assert ids(sets)[1] == {"other": ["none"]}
    assert [row.detail for row in sets.moved] == [
        f"of other: shares its cluster with one:a{n} of the train set, by turned" for n in range(1, 8)
    ]
    fingerprint(other.root, alike=False)
    assert load(data([one.spec("train")], [other.spec("test")])).moved == []


def test_only_images_that_conversations_show_join_them(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "g1", "1.png"))
    one.has("test", example("b", "g2", "2.png"))
    unused = [{"path": f"images/{n}", "sha256": n, "phash": phash(photo(n_)), "archive": None, "width": 9, "height": 9}
              for n, n_ in (("x", 1), ("y", 2))]  # fmt: skip
    table = pq.read_table(one.root / "images.parquet")
    pq.write_table(
        pa.concat_tables([table, pa.Table.from_pylist(unused, schema=IMAGES_SCHEMA)]), one.root / "images.parquet"
    )
    assert load(data([one.spec("train")], [one.spec("test")])).moved == []


def test_a_source_that_is_not_prepared_says_how(tmp_path: Path) -> None:
    nowhere = SourceSpec(source=str(tmp_path / "nowhere"), split="train")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*skinvl prep"):
        load(data([nowhere], []))


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "g1"))
    with pytest.raises(FileNotFoundError, match=r"it has the splits: .*train"):
        load(data([one.spec("train")], [one.spec("test")]))


def test_two_eval_sets_of_one_name_are_refused_and_two_splits_told_apart(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "g1"))
    twins = [Source(tmp_path / place / "two").has("test", example("b", f"{place}2")) for place in ("x", "y")]
    twins[0].has("dev", example("c", "g3"))
    with pytest.raises(ValueError, match=r"data\.eval: two sets are called two_test"):
        load(data([one.spec("train")], [twin.spec("test") for twin in twins]))
    splits = [twins[0].spec("test"), twins[0].spec("dev")]
    assert set(load(data([one.spec("train")], splits)).evaluation) == {"two_test", "two_dev"}


def test_a_bare_name_lies_in_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert source_folder("demo") == Path("data/demo")
    assert source_folder("./demo") == Path("demo")


def test_nothing_leaks_into_nothing() -> None:
    assert leaks([], {}) == []


def test_equal_names_in_two_sources_of_one_converter_are_two(tmp_path: Path) -> None:
    """Relative paths and row numbers mean nothing beyond their own source; two llava files have them in common."""
    one, other = Source(tmp_path / "one"), Source(tmp_path / "other")
    for source, first in ((one, 1), (other, 11)):
        rows = []
        for number in range(6):
            photo(first + number).save(source.root / "images" / f"{number}.png")
            row = example(str(number), f"{number}.png", f"{number}.png")
            rows.append(replace(row, source="llava", identities=(row.group, "a.png")))
        write(source.root, "train", rows)
        fingerprint(source.root)
    sets = load(data([one.spec("train")], [other.spec("train")]))
    assert (len(sets.train), len(sets.evaluation["other"]), sets.moved) == (6, 6, [])
    keys = [[predictions.key(row.example) for row in rows] for rows in (sets.train, sets.evaluation["other"])]
    assert keys == [[f"{name}/{number}" for number in range(6)] for name in ("one", "other")]

    shutil.copy(one.root / "images" / "1.png", other.root / "images" / "2.png")  # the images decide
    fingerprint(other.root)
    write(other.root, "train", [replace(row, identities=()) for row in read(other.root, "train")])
    moved = load(data([one.spec("train")], [other.spec("train")])).moved
    assert [(row.row, row.detail) for row in moved] == [
        ("other:2", "of other: shares its cluster with one:0 of the train set, by sha256")
    ]


def test_names_of_an_archive_hold_in_all_of_its_sources_by_way_of_others_too(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has(
        "train", replace(example("a", "IP_1"), identities=("IP_1", "IL_1")), example("z", "IL_9")
    )
    other = Source(tmp_path / "other").has(
        "test", example("b", "IL_1"), replace(example("c", "IP_2"), identities=("IP_2", "IL_2")),
        replace(example("d", "IL_2"), identities=("IL_2", "IL_9")), example("e", "IP_3"),
    )  # fmt: skip
    recipe = data([one.spec("train")], [other.spec("test")])
    assert load(recipe).moved == []
    fingerprint(one.root, archive="isic")
    assert load(recipe).moved == []
    fingerprint(other.root, archive="isic")
    assert [row.row for row in load(recipe).moved] == ["other:b", "other:c", "other:d"]
    assert {row.detail.rsplit(" ", 1)[1] for row in load(recipe).moved} == {"group"}
    fingerprint(other.root, archive="another")
    assert load(recipe).moved == []


def test_a_name_that_says_its_archive_holds_there_whatever_the_source(tmp_path: Path) -> None:
    """Photos of several sets in one source: each is known by the name that its own set has for it."""
    mixed = Source(tmp_path / "mixed").has("train", example("a", in_archive("fitzpatrick17k", "0a1b")))
    other = Source(tmp_path / "other").has("test", example("b", "0a1b"), example("c", "77"))
    recipe = data([mixed.spec("train")], [other.spec("test")])
    assert load(recipe).moved == []
    fingerprint(other.root, archive="fitzpatrick17k")
    assert [(row.row, row.detail.rsplit(" ", 1)[1]) for row in load(recipe).moved] == [("other:b", "group")]
    sets, _ = overlap.read([str(mixed.root), str(other.root)])
    assert sets[0].group[0] == sets[1].group[0] != sets[1].group[1]
    fingerprint(other.root, archive="ddi")
    assert load(recipe).moved == []
    sets, _ = overlap.read([str(mixed.root), str(other.root)])
    assert sets[0].group[0] not in sets[1].group


def test_one_source_by_two_paths_is_one(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has("train", example("a", "IP_1")).has("test", example("b", "IP_1"))
    (tmp_path / "link").symlink_to(one.root)
    linked = SourceSpec(source=str(tmp_path / "link"), split="test")
    with pytest.raises(ValueError, match="all 1 conversations of link share a group or an image"):
        load(data([one.spec("train")], [linked]))


def test_keys_number_photographs_and_clusters_of_rows(tmp_path: Path) -> None:
    one = Source(tmp_path / "one").has(
        "train", example("a", "g1", "1.png"), example("b", "g2"), example("c", "g3", "2.png", "3.png")
    )
    other = Source(tmp_path / "other")
    photo(2).save(other.root / "images" / "52.jpg", quality=60)
    other.has("train", example("d", "h1", "52.jpg"), example("e", "h1", "6.png"), example("f", "h2", "3.png"))
    every = [*rows(one.spec("train")), *rows(other.spec("train"))]
    photographs, clusters = (numbers.tolist() for numbers in keys(every))
    a, b, c, d, e, f = photographs
    assert b == -1
    assert c == d
    assert len({a, c, e, f}) == 4
    a, b, c, d, e, f = clusters
    assert c == d == e == f  # by the group of d and e, and by the second image of c
    assert len({a, b, c}) == 3
    assert [numbers.tolist() for numbers in keys([])] == [[], []]
    assert keys(every[1:2])[0].tolist() == [-1]


def test_images_of_another_row_bring_what_is_known_of_their_views() -> None:
    known = Facts(views=("clinical", "dermoscopic"), diagnosis="nevus")
    pair, other = example("1", "g1", "1.png", "2.png"), example("2", "g2", "3.png", "4.png")
    first, second = permuted([Row(replace(pair, facts=known), Path()), Row(other, Path())], random.Random(0))
    assert first is not None
    assert second is not None
    assert (first.example.images, first.example.facts) == (other.images, replace(known, views=()))
    assert (second.example.images, second.example.facts) == (pair.images, Facts(views=known.views))
    assert permuted([Row(pair, Path())], random.Random(0)) == [None]
