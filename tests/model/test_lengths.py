"""Lengths: sizes from headers alone as pixels will be loaded; every row is measured, or dropped with a reason."""

from __future__ import annotations

import csv
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from rich.console import Console

from helpers import tiny
from skinvl.data.example import Dropped, Example, Reference, text
from skinvl.data.pixels import ImageError, upright
from skinvl.model import families
from skinvl.model.chat import Chat
from skinvl.model.lengths import Preflight, preflight, sizes, summary


def example(name: str, *images: str, answer: str = "brown") -> Example:
    return Example(name, "s", images, (text("user", "Colour?", len(images)), text("assistant", answer)), "g", "t", "l")


@pytest.fixture
def chat() -> Chat:
    return Chat(tiny.processor("qwen2_vl"), families.load("qwen2_vl"), 16, 100)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_loaded_pixels(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    tiny.picture(1, (40, 90)).save(tmp_path / "a.jpg", exif=exif)
    loaded = upright(tmp_path / "a.jpg")
    assert loaded.mode == "RGB"
    assert sizes(tmp_path, example("1", "a.jpg")) == ((loaded.height, loaded.width),)
    assert (loaded.width == 40) == (orientation >= 5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_loads_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    tiny.picture(1).convert(mode).save(path)
    assert upright(path).mode == "RGB"


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing-image: .*/gone\.png: no such file"):
        upright(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ImageError, match=r"lfs-pointer: .*/text\.png"):
        sizes(tmp_path, example("1", "text.png"))
    tiny.picture(1, (200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    with pytest.raises(ImageError, match=r"unreadable-image: .*/cut\.png"):
        upright(tmp_path / "cut.png")


def test_an_image_that_takes_the_place_of_another_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for number, shape in enumerate(((40, 90), (60, 30))):
        tiny.picture(1, shape).save(path)
        os.utime(path, ns=(number, number))
        assert sizes(tmp_path, example("1", "a.png")) == (shape,)


def test_every_row_is_measured_or_dropped_with_its_reason(tmp_path: Path, chat: Chat) -> None:
    tiny.picture(1).save(tmp_path / "a.png")
    Image.new("RGB", (1000, 4)).save(tmp_path / "long.png")
    rows = [
        example("0", "a.png"),
        example("1", "gone.png"),
        example("2", "a.png", answer="brown " * 90),
        example("3", "long.png"),
        example("4", answer="a <|im_end|> b"),
        example("5", "a.png", "a.png"),
    ]
    found = preflight(chat, [(row, tmp_path) for row in rows])
    assert [(one.row, one.rule) for one in found.dropped] == [
        ("s/1", "missing-image"),
        ("s/2", "too-long"),
        ("s/3", "image-too-elongated"),
        ("s/4", "control-token"),
    ]
    assert [one.index for one in found.kept] == [0, 5]
    for one in found.kept:
        encoded = chat.encode(rows[one.index], sizes(tmp_path, rows[one.index]))
        assert one.tokens == len(encoded.ids)
        assert one.trained == len(chat.tokenizer("brown<|im_end|>")["input_ids"])
    assert [(one.image_tokens, one.vision_tokens) for one in found.kept] == [(16, 64), (32, 128)]


def test_where_references_are_drawn_each_must_fit_and_the_longest_counts(tmp_path: Path, chat: Chat) -> None:
    said = ("brown", "It is brown with a rim", "brown " * 90, "a <|im_end|> b", "never")
    weights = (1.0, 0.5, 0.5, 0.5, 0.0)
    several = tuple(Reference(words, weight) for words, weight in zip(said, weights, strict=True))
    long = example("2", answer=said[2])
    rows = [
        replace(example("0"), references=several),
        example("1"),
        replace(long, references=(several[2], several[3])),
        replace(long, references=(several[2], several[0])),
    ]
    report = preflight(chat, [(row, tmp_path) for row in rows], drawn=True)
    assert [length.references for length in report.kept] == [(1, 0), (0,), (1,)]
    assert [length.index for length in report.kept] == [0, 1, 3]
    longest = chat.encode(example("0", answer=said[1]), ())
    assert report.kept[0].tokens == len(longest.ids)
    assert [(row.row, row.rule) for row in report.dropped] == [("s/2", "too-long")]
    unfit = [("s/0, reference 3", "too-long"), ("s/0, reference 4", "control-token"), ("s/2", "too-long")]
    assert [(row.row, row.rule) for row in report.unfit] == unfit
    console = Console(record=True, width=100)
    console.print(report.table("demo"))
    assert "demo: 3 of 4 rows" in (printed := console.export_text())
    assert re.search("references that are not drawn .* 3 ", printed)
    # With the first alone, the others decide nothing.
    first = preflight(chat, [(row, tmp_path) for row in rows])
    assert [(length.index, length.references) for length in first.kept] == [(0, (0,)), (1, (0,))]
    assert not first.unfit


def test_the_table_counts_every_row(chat: Chat) -> None:
    rows = [(example(str(n), answer="b" * n), Path()) for n in range(1, 21)]
    found = preflight(chat, [*rows, (example("x", "gone.png"), Path())])
    console = Console(record=True, width=100)
    console.print(found.table("demo"))
    printed = console.export_text()
    assert "demo: 20 of 21 rows" in printed
    assert "dropped: missing-image" in printed
    assert f"{sum(one.tokens for one in found.kept):,}" in printed
    assert Preflight([], [Dropped("s/1", "r", "d")]).table("x").row_count == 5


def test_summary_by_hand() -> None:
    assert summary([]).max == 0
    found = summary([*range(1, 20), 1000])
    assert (found.mean, found.p95, found.max, found.total) == (59.5, 19, 1000, 1190)


def test_a_real_set_takes_well_under_a_minute_per_ten_thousand(shared: Path) -> None:
    chat = Chat(tiny.real_processor(shared, "qwen2_vl"), families.load("qwen2_vl"), 512, 2048)
    with (shared / "mm_skin" / "MM-Skin_test.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            Example(str(n), "s", (), (text("user", row["question"]), text("assistant", row["answer"])), "g", "t", "l")
            for n, row in enumerate(csv.DictReader(file))
        ]
    start = time.process_time()
    found = preflight(chat, [(row, shared) for row in rows])
    assert len(found.kept) == len(rows) == 5452
    assert len(rows) / (time.process_time() - start) > 10_000 / 60
