from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

import data_prep
from data_prep import Card, PrepError, Shard, taken
from helpers import colours, sources
from skinvl.data.example import Dropped, Example, Message, read, text, words
from skinvl.sources import prep
from skinvl.sources.prepare import images
from skinvl.sources.rules import RULES

Run = Callable[..., Path]
CARD = Card("fake", "nowhere", "CC0-1.0", "Any use.", "none", "draw it yourself", ("train", "test"), ("all", "more"))


class Fake:
    """A converter whose outcomes a test chooses."""

    CARD = CARD

    def __init__(self, *outcomes: Example | Dropped, rows: int | None = None) -> None:
        self.outcomes = outcomes
        self.counted = len(outcomes) if rows is None else rows

    def rows(self, raw: Path, part: str) -> int:
        return self.counted

    def convert(self, raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
        yield from taken(self.outcomes, shard)


def example(name: str, *images: str, answer: str = "Yes.", split: str = "train") -> Example:
    turns = (text("user", "Is it red?", images=len(images)), text("assistant", answer))
    return Example(name, "fake", images, turns, name, split, "CC0-1.0")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "sub" / "a.png")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, raw: Path, tmp_path: Path) -> Run:
    def prepare(fake: Fake, *options: str) -> Path:
        monkeypatch.setattr(data_prep, "load", lambda name: fake)
        (raw / "download.txt").write_text(repr(fake.outcomes))  # another download is other work
        assert prep.main(["fake", str(raw), str(tmp_path / "out"), *options]) == 0
        return tmp_path / "out"

    return prepare


def ledger(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", data_prep.names())
def test_every_dataset_has_a_card_and_a_golden_row(name: str) -> None:
    module = importlib.import_module(f"data_prep.{name}")
    card = data_prep.load(name).CARD
    assert card.parts
    assert card.splits
    assert all((card.title, card.address, card.licence, card.terms, card.citation, card.obtain))
    result = doctest.testmod(module)
    assert result.attempted > 1
    assert result.failed == 0


def test_the_account_is_printed_and_written(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = example("b", answer="So <|im_end|> it is </s>.", split="test")
    out = run(Fake(example("a", "sub/a.png"), tokens, Dropped("x.csv:3", "empty", "no answer")))
    shown = capsys.readouterr().out
    assert "rows in 3 = Examples out 2 + ledger 1" in shown
    assert re.search(r"kept, tagged: special-token +1", shown)
    card = json.loads((out / "card.json").read_text())
    assert (card["rows"], card["examples"], card["ledger"]) == (3, {"test": 1, "train": 1}, {"empty": 1})
    assert card["tags"] == {"special-token": 1}
    assert read(out, "test")[0].tags == ("special-token",)
    assert read(out, "train")[0].images == ("images/sub/a.png",)
    assert words(read(out, "test")[0].messages[1]) == "So <|im_end|> it is </s>."
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "raw"]


def test_images_are_linked_and_looked_at_once(run: Run, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Mock(wraps=images.look)
    monkeypatch.setattr(images, "look", watched)
    out = run(Fake(*(example(name, "sub/a.png", answer=f"{name} it is.") for name in "abc")))
    assert watched.call_count == 1
    assert (out / "images/sub/a.png").samefile(raw / "sub/a.png")


def test_colours_are_accounted_for_by_their_profile(run: Run, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, icc in (("p3", colours.ICC["Display P3"]), ("bad", b"broken"), ("srgb", colours.srgb_of_table(1024))):
        sources.photo(len(name), 64).save(raw / f"{name}.jpg", icc_profile=icc)
    rows = [example(name, *shown, answer=f"{name} it is.") for name, *shown in (
        ("one", "p3.jpg"), ("two", "p3.jpg", "srgb.jpg"), ("three", "bad.jpg"), ("four", "sub/a.png")
    )]  # fmt: skip
    out = run(Fake(*rows))
    shown = capsys.readouterr().out
    assert re.search(r"images converted to sRGB from Display P3 +1\b", shown)
    assert re.search(r"images whose colour profile cannot be used: lcms cannot read it +1\b", shown)
    card = json.loads((out / "card.json").read_text())
    assert (card["profiles"], card["profiled"], card["tags"]) == ("srgb", {"Display P3": 1}, {"unusable-profile": 1})
    assert {row.id: row.tags for row in read(out, "train")}["three"] == ("unusable-profile",)
    as_srgb, stamp = pq.read_table(out / "images.parquet"), card["stamp"]

    out = run(Fake(*rows), "--profiles", "ignore")
    assert re.search(r"images tagged with Display P3 +1\b", capsys.readouterr().out)
    card = json.loads((out / "card.json").read_text())
    assert (card["profiles"], card["profiled"]) == ("ignore", {"Display P3": 1, "a damaged profile": 1})
    assert card["tags"] == {}
    assert card["stamp"] != stamp
    ignoring = pq.read_table(out / "images.parquet")
    assert ignoring["sha256"] == as_srgb["sha256"]

    out = run(Fake(*rows), "--drop", "unusable-profile")
    assert [row["rule"] for row in ledger(out)] == ["unusable-profile"]
    assert ledger(out)[0]["detail"] == "an image has a colour profile that cannot be used: lcms cannot read it"
    assert len(read(out, "train")) == 3


def test_images_are_copied_where_they_cannot_be_linked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(18, "Invalid cross-device link")))
    with Image.open(run(Fake(example("a", "sub/a.png"))) / "images/sub/a.png") as picture:
        assert picture.size == (64, 64)


def test_images_that_cannot_be_used_are_in_the_ledger_by_rule(run: Run, raw: Path) -> None:
    whole = raw / "sub" / "whole.jpg"
    Image.effect_noise((64, 64), 90).save(whole)
    (raw / "cut.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (raw / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (raw.parent / "secret.png").write_bytes(whole.read_bytes())
    images = ["../secret.png", "/etc/passwd", "gone.png", "cut.jpg", "lfs.png", "sub/a.png"]
    out = run(Fake(*(example(f"row{number}", image) for number, image in enumerate(images))))
    found = {row["detail"].split()[0].rstrip(":"): row["rule"] for row in ledger(out)}
    assert found == {
        "../secret.png": "unsafe-path",
        "/etc/passwd": "unsafe-path",
        "gone.png": "missing-image",
        "cut.jpg": "unreadable-image",
        "lfs.png": "lfs-pointer",
    }
    assert [row.id for row in read(out, "train")] == ["row5"]
    assert [path.name for path in out.rglob("images/**/*.*")] == ["a.png"]


def test_optional_images_leave_text_but_no_broken_image(run: Run, raw: Path) -> None:
    (raw / "bad.png").write_bytes(b"no image")
    fake = Fake(example("a", "gone.png"), example("b", "bad.png"), example("c", "gone.png", "bad.png"))
    out = run(fake, "--keep", "missing-image")
    (row,) = read(out, "train")
    assert row.images == ()
    assert row.tags == ("missing-image",)
    assert [part["type"] for part in row.messages[0]["content"]] == ["text"]
    assert [row["rule"] for row in ledger(out)] == ["unreadable-image", "unreadable-image"]


def test_a_row_of_several_images_stays_with_those_that_are_there(
    run: Run, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "bad.png").write_bytes(b"no image")
    apart = example("d", "sub/a.png", "gone.png")
    image, *rest = apart.messages[0]["content"]
    placed: Message = {"role": "user", "content": [image, {"type": "text", "text": "or"}, *rest]}
    outcomes = (
        example("a", "gone.png", "sub/a.png", "bad.png", answer="A it is."),
        example("b", "gone.png", "bad.png"),
        example("c", "sub/a.png"),
        replace(apart, messages=(placed, *apart.messages[1:])),
    )
    for options in ((), ("--keep", "missing-image")):
        out = run(Fake(*outcomes), *options)
        rows = {row.id: row for row in read(out, "train")}
        assert (rows["a"].images, rows["a"].tags) == (("images/sub/a.png",), ("fewer-images",))
        assert [part["type"] for part in rows["a"].messages[0]["content"]] == ["image", "text"]
        assert (rows["c"].images, rows["c"].tags) == (("images/sub/a.png",), ())
        assert [(row["row"], row["rule"], row["detail"].partition(":")[0]) for row in lacking(out)] == [
            ("all record 1: a", "missing-image", "gone.png"),
            ("all record 1: a", "unreadable-image", "bad.png"),
        ]
        assert ledger(out)[0]["rule"] == "unreadable-image"
        assert pq.read_table(out / "images.parquet")["path"].to_pylist() == ["images/sub/a.png"]
        assert "images that kept rows go without: missing-image 1" in " ".join(capsys.readouterr().out.split())
    assert "d" in rows
    assert rows["d"].images == ()  # a row that names each of its images in its place means nothing with one of them
    out = run(Fake(*outcomes), "--drop", "fewer-images")
    assert [row["rule"] for row in ledger(out)] == ["unreadable-image", "unreadable-image", "missing-image"]
    assert not (out / "lacking.jsonl").exists()


def lacking(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "lacking.jsonl").read_text().splitlines()]


def test_faults_of_a_converter_are_noticed(run: Run) -> None:
    with pytest.raises(PrepError, match="2 rows in, but 1 Examples and 0 ledger rows out"):
        run(Fake(example("a"), rows=2))
    with pytest.raises(PrepError, match="a has the split 'dev'; its card names train, test"):
        run(Fake(example("a", split="dev")))


def test_rows_that_say_the_same_again_are_in_the_ledger(run: Run) -> None:
    again = replace(example("b"), messages=(text("user", "is it RED"), text("assistant", "Yes!")))
    out = run(Fake(example("a"), example("a"), again, example("c", "sub/a.png")))
    assert [row.id for row in read(out, "train")] == ["a", "c"]
    assert [(row["row"], row["rule"]) for row in ledger(out)] == [
        ("all record 2: a", "duplicate"),
        ("all record 3: b", "near-duplicate"),
    ]
    out = run(Fake(example("a"), example("a"), again), "--keep", "near-duplicate")
    assert [(row.id, row.tags) for row in read(out, "train")] == [("a", ()), ("b", ("near-duplicate",))]


def test_a_rule_is_switched_by_its_name(run: Run) -> None:
    leak = example("a", "sub/a.png", answer="As mentioned in the caption, it is red.")
    rows = Fake(leak, example("b", answer="Red </s>."))
    out = run(rows)
    assert [row["rule"] for row in ledger(out)] == ["caption-leak"]
    out = run(rows, "--keep", "caption-leak", "--drop", "special-token")
    assert [row["rule"] for row in ledger(out)] == ["special-token"]
    assert [row.tags for row in read(out, "train")] == [("caption-leak",)]
    assert json.loads((out / "card.json").read_text())["rules"]["caption-leak"] == "keep"
    with pytest.raises(PrepError, match=r"rule .empty.: not one that can be switched; those are .*caption-leak"):
        run(rows, "--keep", "empty")


def test_the_rules_are_listed_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert prep.main(["--rules"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in RULES)


def test_a_failed_run_leaves_the_older_source_as_it_was(run: Run, raw: Path) -> None:
    out = run(Fake(example("old")))
    with pytest.raises(PrepError):
        run(Fake(example("new"), rows=7))
    assert [row.id for row in read(out, "train")] == ["old"]
    run(Fake(example("newer", split="test")))
    assert sorted(path.name for path in out.iterdir()) == [
        "card.json",
        "images.parquet",
        "ledger.jsonl",
        "test.parquet",
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "raw"]


def test_parts_are_prepared_together(run: Run) -> None:
    fake = Fake(example("a"))
    assert len(read(run(fake), "train")) == 1
    out = run(fake, "--part", "all", "--part", "more")
    assert [row["row"] for row in ledger(out)] == ["more record 1: a"]  # so both parts were converted
    with pytest.raises(PrepError, match="has no part none; its parts are all, more"):
        run(fake, "--part", "none")


def test_folders_that_must_not_be_written_are_refused(run: Run, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(PrepError, match=r"not empty and not a prepared source .*thesis\.tex"):
        run(Fake(example("a")))
    assert (out / "thesis.tex").exists()
    for inner in (raw / "prepared", raw, tmp_path):
        with pytest.raises(PrepError, match="lie in one another"):
            prep.main(["fake", str(raw), str(inner)])
    (tmp_path / "file").write_text("")
    with pytest.raises(PrepError, match=r"file: a file; expected a folder"):
        prep.main(["fake", str(raw), str(tmp_path / "file")])
    with pytest.raises(PrepError, match=r"(Not a directory|File exists) while preparing fake .*choose another OUT"):
        prep.main(["fake", str(raw), str(tmp_path / "file" / "out")])


@pytest.mark.parametrize("name", [name for name in data_prep.names() if not data_prep.load(name).CARD.drawn])
def test_a_missing_raw_folder_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(PrepError, match="no such file or folder") as caught:
        prep.main([name, str(tmp_path / "none"), str(tmp_path / "out")])
    assert data_prep.load(name).CARD.obtain in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_datasets_are_listed_and_others_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert prep.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in data_prep.names())
    assert "CC-BY-4.0" in shown
    head, frame, *rows, hint = shown.splitlines()
    assert head.split() == ["dataset", "images", "licence", "use"]
    assert [row.split()[0] for row in rows] == data_prep.names()  # one line a dataset
    assert all(len(row) <= 80 for row in (head, frame, *rows, hint))
    assert rows[data_prep.names().index("ham10000")].split() == ["ham10000", "10,015", "CC-BY-NC-4.0", "non-commercial"]
    assert rows[data_prep.names().index("isic")].split()[1] == "–"  # any collection: nothing is published of it
    with pytest.raises(PrepError, match="'mm_skn': no such converter; did you mean mm_skin"):
        prep.main(["mm_skn", "raw", "out"])


def test_of_one_dataset_all_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in data_prep.names():
        assert prep.main(["--list", name]) == 0
        shown, card = " ".join(capsys.readouterr().out.split()), data_prep.load(name).CARD
        for known in (card.title, card.licence, card.terms, card.address, card.obtain, card.citation, *card.parts):
            assert " ".join(known.split()) in shown, (name, known)
    with pytest.raises(PrepError, match="'mm_skn': no such converter; did you mean mm_skin"):
        prep.main(["--list", "mm_skn"])


def test_a_prepared_source_loads_with_datasets(run: Run, tmp_path: Path) -> None:
    out = run(Fake(example("a", "sub/a.png"), example("b")))
    table = datasets.load_dataset(
        "parquet", data_files=str(out / "train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table[0]["images"] == [{"bytes": None, "path": "images/sub/a.png"}]
    assert table[0]["messages"][0]["content"] == [
        {"type": "image", "text": None},
        {"type": "text", "text": "Is it red?"},
    ]
    assert table[1]["images"] == []


def test_nothing_here_imports_torch() -> None:
    check = (
        "import sys, skinvl.sources.prep, skinvl.data.labels, data_prep\n"
        "for name in data_prep.names(): data_prep.load(name)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


CSV = '\ufeffimage,question\n"a\nb",c\n\nd,"e, f"\n'


def test_csv_rows_are_located_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV, encoding="utf-8")
    assert list(data_prep.read_csv(path, ("image",))) == [
        ("t.csv:2", {"image": "a\nb", "question": "c"}),
        ("t.csv:5", {"image": "d", "question": "e, f"}),
    ]
    assert data_prep.count_csv(path) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"img,question\n", r"t\.csv: no column image; found img, question; expected image, question"),
        (b"", r"t\.csv: no column image, question; found nothing"),
        (b"image,question\na,b\na,b,c\n", r"t\.csv:3: 3 fields; expected 2"),
        (b"image,question\na,\xff\n", r"t\.csv:\d: not UTF-8 CSV"),
        (b'image,question\na,"b\n', r"t\.csv:2: not UTF-8 CSV"),
    ],
)
def test_a_broken_csv_is_refused_with_its_place(tmp_path: Path, body: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(body)
    with pytest.raises(PrepError, match=message):
        list(data_prep.read_csv(path, ("image", "question")))
