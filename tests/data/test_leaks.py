"""What two sets share, counted by each kind of evidence, listed, and shown on a sheet that is read back."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance
from rich.table import Table

from helpers.sources import fingerprint, phash, photo
from skinvl.data import leaks
from skinvl.data.example import Example, text, write
from skinvl.data.fingerprints import THRESHOLD
from skinvl.data.overlap import ImageMatch, Set, evidence, matches, nearest, once, read
from skinvl.data.source import IMAGES_SCHEMA


def example(name: str, group: str, *images: str) -> Example:
    messages = (text("user", "What is shown?", images=len(images)), text("assistant", "A nevus."))
    return Example(name, "drawn", tuple(f"images/{one}" for one in images), messages, group, "train", "CC0-1.0")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two sources; of the five images of the second, one is a copy, one a JPEG copy, one has an id of the first."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "images").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "ISIC_0000007.png", "d.png")):
        photo(seed).save(one / "images" / name)
    shutil.copy(one / "images" / "a.png", other / "images" / "x.png")
    photo(1).save(other / "images" / "y.jpg", quality=60)
    photo(10).save(other / "images" / "isic_0000007_small.JPG")
    photo(11).save(other / "images" / "z.png")
    photo(12).save(other / "images" / "unused.png")
    write(one, "train", [example("1", "g1", "a.png"), example("2", "g2", "b.png", "ISIC_0000007.png"),
                         example("3", "g3", "d.png"), example("4", "g3", "d.png")])  # fmt: skip
    write(other, "test", [example("5", "h1", "x.png"), example("6", "h1", "x.png"), example("7", "h2", "y.jpg"),
                          example("8", "h3", "isic_0000007_small.JPG"), example("9", "h4", "z.png"),
                          example("10", "g3")])  # fmt: skip
    return fingerprint(one, archive="drawn"), fingerprint(other, archive="drawn")


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)]


def counted(*names: Path | str) -> list[list[str]]:
    sets, images = read([str(name) for name in names])
    rows = []
    for pair, kind, *counts in cells(leaks._table(sets, nearest(sets, evidence(images, THRESHOLD)[0]))[0]):
        both = [sets[int(number) - 1] for number in pair.split(", ")]
        totals = [one.images for one in both] + [len(one.group) for one in both]
        rows.append([*(one.name for one in both), kind, *map("{} of {}".format, counts, totals)])
    return rows


def test_each_kind_is_counted_in_images_and_conversations_of_both_sets(pair: tuple[Path, Path]) -> None:
    sets = ["one:train", "other:test"]
    assert counted(*pair) == [
        [*sets, "sha256", "1 of 4", "1 of 4", "1 of 4", "2 of 6"],
        [*sets, "archive", "1 of 4", "1 of 4", "1 of 4", "1 of 6"],
        [*sets, "phash", "2 of 4", "2 of 4", "2 of 4", "3 of 6"],
        [*sets, "group", "1 of 4", "0 of 4", "2 of 4", "1 of 6"],
        [*sets, "any", "4 of 4", "3 of 4", "4 of 4", "5 of 6"],
    ]


def test_names_are_local_to_a_source_unless_both_are_of_one_archive(pair: tuple[Path, Path]) -> None:
    one, other = pair
    write(one, "train", [replace(example("1", "g1"), identities=("g1", "IL_1")), example("2", "g2")])
    write(other, "test", [example("3", "IL_1"), example("4", "IL_2"), replace(example("5", "h"), identities=("g2",))])
    assert counted(*pair) == [["one:train", "other:test", "group", "0 of 0", "0 of 0", "2 of 2", "2 of 3"]]
    fingerprint(other, archive="another")
    assert counted(*pair) == [["one:train", "other:test", "none", "0 of 0", "0 of 0", "0 of 2", "0 of 3"]]
    for source in pair:
        fingerprint(source)
    assert counted(*pair)[0][2] == "none"
    write(one, "test", [example("6", "IL_1")])
    assert ["one:test", "one:train", "group", "0 of 0", "0 of 0", "1 of 1", "1 of 2"] in counted(one)


def test_many_pairs_of_sets_that_share_nothing_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        (tmp_path / f"set{number}").mkdir()
        write(tmp_path / f"set{number}", "train", [example("1", f"g{number // 2}")])
        fingerprint(tmp_path / f"set{number}", archive="drawn")
    words = [*(str(tmp_path / f"set{number}") for number in range(4)), "--out", str(tmp_path / "out")]
    assert leaks.main(words) == 0
    assert capsys.readouterr().out.count("none") == 4
    monkeypatch.setattr(leaks, "SHOWN", 3)
    assert leaks.main(words) == 0
    shown = capsys.readouterr().out
    assert "none" not in shown
    assert shown.count("group") == 2
    assert "4 other pairs of sets share nothing" in shown


def test_the_pairs_are_written_nearest_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert leaks.main([*map(str, pair), "--out", str(tmp_path / "out")]) == 0
    head, *rows = csv.reader((tmp_path / "out" / "pairs.csv").open(encoding="utf-8", newline=""))
    assert head == ["set a", "image a", "set b", "image b", "kind", "distance"]
    assert rows[0] == ["one:train", "images/a.png", "other:test", "images/x.png", "sha256+phash", "0"]
    assert rows[1][:5] == ["one:train", "images/b.png", "other:test", "images/y.jpg", "phash"]
    assert int(rows[1][5]) <= THRESHOLD
    assert rows[2][:5] == [
        "one:train",
        "images/ISIC_0000007.png",
        "other:test",
        "images/isic_0000007_small.JPG",
        "archive",
    ]
    assert int(rows[2][5]) > THRESHOLD + 4
    assert len(rows) == 3


def test_a_pair_that_looks_alike_is_on_the_sheet(pair: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    leaks.main([*map(str, pair), "--out", str(tmp_path / "out")])
    drawn = Image.open(tmp_path / "out" / "sheet.png").convert("RGB")
    left, top = leaks.cell_corner(0)
    top += 3 * leaks.LINE
    for side, seed in enumerate((1, 1)):  # b.png and y.jpg; the pair of equal bytes is not shown
        corner = left + side * (leaks.SIDE + leaks.GAP)
        found = np.asarray(drawn.crop((corner, top, corner + leaks.SIDE, top + leaks.SIDE)), float)
        expected = np.asarray(photo(seed).resize((leaks.SIDE, leaks.SIDE)), float)
        assert np.abs(found - expected).mean() < 4
        assert np.abs(found - np.asarray(photo(2).resize((leaks.SIDE, leaks.SIDE)), float)).mean() > 30
    label = np.asarray(drawn.crop((left, top - 3 * leaks.LINE, left + 300, top - 2 * leaks.LINE)))
    assert (label == leaks.LINKED).all(axis=2).any()
    assert not (label == leaks.APART).all(axis=2).any()
    assert "1 of 1 pairs that look alike" in " ".join(capsys.readouterr().out.split())


def test_each_image_is_paired_with_the_nearest_of_the_other_set() -> None:
    """In a there are images 4, 2 and 3 bits from the first of b, and a flat one that b has too, byte for byte."""
    seen = 0xF0F0F0F0F0F0F0F0
    values = [
        ("a", seen ^ 0b1111),
        ("b", seen ^ 0b11),
        ("c", seen ^ 0b111),
        ("flat", None),
        ("d", seen),
        ("flat", None),
    ]
    rows = [{"path": str(place), "sha256": sha, "phash": hash_} for place, (sha, hash_) in enumerate(values)]
    images = pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)
    none = np.empty(0, np.int64)
    sets = [Set("one", Path(), 0, 4, none, none, none), Set("other", Path(), 4, 2, none, none, none)]
    kinds, _ = evidence(images, 4)
    assert kinds[2].nearest(*sets).tolist() == [[1, 4]]
    assert kinds[2].nearest(*sets[::-1]).tolist() == [[4, 0], [4, 1], [4, 2]]
    assert matches(images, once(nearest(sets, kinds)), 4) == [
        ImageMatch(0, 3, 5, ("sha256",)),
        *(ImageMatch(one, other, 4, ("phash",)) for one, other in ((2, 1), (3, 2), (4, 0))),
    ]


def test_a_mirrored_image_is_evidence_of_its_own(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It is written with its distance, and on the sheet."""
    _, other = pair
    photo(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other / "images" / "z.png")
    photo(0).transpose(Image.Transpose.ROTATE_90).save(other / "images" / "unused.png")
    fingerprint(other, archive="drawn")
    assert ["one:train", "other:test", "turned", "1 of 4", "1 of 4", "2 of 4", "1 of 6"] in counted(*pair)
    assert leaks.main([*map(str, pair), "--out", str(tmp_path / "out")]) == 0
    rows = list(csv.reader((tmp_path / "out" / "pairs.csv").open(encoding="utf-8", newline="")))
    (row,) = [row for row in rows if row[4] == "turned"]
    assert row[:4] == ["one:train", "images/d.png", "other:test", "images/z.png"]
    assert int(row[5]) <= THRESHOLD
    drawn = Image.open(tmp_path / "out" / "sheet.png").convert("RGB")
    label = [drawn.getpixel((x, y)) for x in range(*(leaks.cell_corner(1)[0] + n for n in (0, 200)))
             for y in range(leaks.cell_corner(1)[1], leaks.cell_corner(1)[1] + leaks.LINE)]  # fmt: skip
    assert leaks.LINKED in label
    fingerprint(other, alike=False, archive="drawn")
    assert "turned" not in [row[2] for row in counted(*pair)]


def test_splits_of_one_source_are_sets_and_share_what_both_show(pair: tuple[Path, Path]) -> None:
    one = pair[0]
    write(one, "test", [example("11", "k1", "d.png"), example("12", "k2", "b.png")])
    sets = ["one:test", "one:train"]
    expected = [
        [*sets, "sha256", "2 of 2", "2 of 4", "2 of 2", "3 of 4"],
        [*sets, "phash", "2 of 2", "2 of 4", "2 of 2", "3 of 4"],
        [*sets, "any", "2 of 2", "2 of 4", "2 of 2", "3 of 4"],
    ]
    assert counted(one) == expected
    assert counted(f"{one}:test", f"{one}:train", one) == expected
    assert len(counted(f"{one}:train", pair[1])) == 5
    assert {tuple(row[:2]) for row in counted(*pair)} == {
        ("one:test", "one:train"), ("one:test", "other:test"), ("one:train", "other:test"),
    }  # fmt: skip


def test_strangers_share_nothing_and_leave_no_sheet(pair: tuple[Path, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (alone / "images").mkdir(parents=True)
    photo(20).save(alone / "images" / "q.png")
    write(alone, "train", [example("1", "q", "q.png")])
    fingerprint(alone)
    (tmp_path / "sheet.png").write_bytes(b"of an earlier call")
    assert leaks.main([str(alone), str(pair[1]), "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "sheet.png").exists()
    assert (tmp_path / "pairs.csv").read_text().splitlines() == ["set a,image a,set b,image b,kind,distance"]
    assert counted(alone, pair[1]) == [["alone:train", "other:test", "none", "0 of 1", "0 of 4", "0 of 1", "0 of 6"]]


def test_drawings_are_not_joined_by_their_looks(pair: tuple[Path, Path]) -> None:
    fingerprint(pair[1], alike=False, archive="drawn")
    assert [row[2] for row in counted(*pair)] == ["sha256", "archive", "group", "any"]


def test_the_threshold_moves_a_pair_to_the_other_side(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Between the two is what the sheet shows in red."""
    one, other = pair
    changed = ImageEnhance.Contrast(photo(3)).enhance(1.0).crop((5, 5, 320, 320))
    changed.save(other / "images" / "z.png")
    fingerprint(other)
    hashes = [phash(Image.open(path)) for path in (one / "images" / "d.png", other / "images" / "z.png")]
    apart = (hashes[0] ^ hashes[1]).bit_count() if hashes[0] is not None and hashes[1] is not None else 0
    assert apart in range(2, 13), apart

    def kinds(threshold: int) -> list[tuple[str, ...]]:
        sets, images = read([str(one), str(other)])
        linked, close = evidence(images, threshold)
        seen = matches(images, once(nearest(sets, [close])), threshold)
        assert any(match.distance == apart for match in seen)
        return [
            match.kinds for match in matches(images, once(nearest(sets, linked)), threshold) if match.distance == apart
        ]

    assert kinds(apart) == [("phash",)]
    assert kinds(apart - 1) == []


def test_the_sheet_is_spread_over_the_distances_and_names_what_cannot_be_read(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    files = (tmp_path / "a.png", tmp_path / "gone.png")
    names = ("one:train images/" + "long-" * 40 + "name.png", "other:test images/gone.png")
    pairs = [leaks.ImagePair(distance, names, files) for distance in (0,) * 90 + (2,) * 50 + (4,) * 3 + (8,)]
    chosen = leaks.choose(pairs)
    assert [[pair.distance for pair in chosen].count(distance) for distance in (0, 2, 4, 8)] == [18, 18, 3, 1]
    assert [pair.distance for pair in chosen] == sorted(pair.distance for pair in chosen)
    leaks.draw_sheet(tmp_path / "sheet.png", chosen, 4)
    drawn = Image.open(tmp_path / "sheet.png")
    left, top = leaks.cell_corner(39)
    middle = top + 3 * leaks.LINE + leaks.SIDE // 2
    assert drawn.getpixel((left + leaks.SIDE + leaks.GAP + 80, middle)) == leaks.NOTHING
    label = np.asarray(drawn.crop((left, top, left + 300, top + leaks.LINE)))
    assert (label == leaks.APART).all(axis=2).any()
    beyond = np.asarray(drawn.crop((left + leaks.CELL[0], top, left + leaks.CELL[0] + 2 * leaks.GAP, top + 51)))
    assert (beyond == 255).all()  # a long name does not run into the next cell


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one:test", "one"], r"one:test: no such set in .*one; it has the splits: train.*skinvl prep"),
        (["nowhere", "one"], "nowhere: no such set in .*nowhere; the folder holds no prepared source"),
        (["one"], "one set, with nothing to compare it to"),
    ],
)
def test_a_set_that_is_not_there_is_named(pair: tuple[Path, Path], names: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        leaks.main([f"{pair[0].parent}/{name}" for name in names])


def test_an_image_without_fingerprints_says_what_to_do(pair: tuple[Path, Path]) -> None:
    write(pair[0], "train", [example("1", "g", "later.png")])
    with pytest.raises(ValueError, match=r"images\.parquet: has no row of images/later\.png.*skinvl prep"):
        read(list(map(str, pair)))
