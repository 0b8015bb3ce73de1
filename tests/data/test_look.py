"""The page about a source: every number is that of its rows, data stays text in it, and a large one stays small."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers import many_rows, pictures
from helpers.pages import HOSTILE, Page, brightness, browser, console, visible
from helpers.sources import photo
from skinvl.data import example, flow, gallery, look
from skinvl.data.example import Example, ExampleError, Facts, Reference, text, write
from skinvl.data.flow import Flow, SplitCounts


def row(name: str, group: str, split: str, *images: str, **facts: Any) -> Example:
    messages = (text("user", "What is shown?", images=len(images)), text("assistant", f"The answer of {name}."))
    return Example(name, "drawn", images, messages, group, split, "CC0-1.0", Facts(**facts))


def made(folder: Path, word: str = "plain") -> Path:
    """A source of two splits, whose data says `word` wherever it can say anything."""
    (folder / "images").mkdir(parents=True)
    for seed in range(6):
        photo(seed, 300).save(folder / f"images/{seed}.png")
    Image.new("RGB", (60, 40), "red").save(
        folder / "images/tagged.jpg", exif=pictures.exif(6, private=True), comment=b"Ada Patient"
    )
    (folder / "images" / "broken.png").write_bytes(b"no image")
    full = replace(
        row("full", "p1", "train", "images/0.png", "images/1.png", sex="female", age=41.0, diagnosis=word,
            skin_type="II", kind=word, views=("dermoscopic", "overview"), present=("scale", word), absent=("pus",)),
        tags=(word,), identities=("p1", f"lesion {word}"), options=(word, "another"), right=(0,),
        references=(Reference("The answer of full."), Reference(f"Another, {word}", 0.5, word, 0.5)),
        schema=json.dumps({"type": "object", "title": word}), thoughts=(f"First think: {word}",),
    )  # fmt: skip
    rows = [
        full,
        row("two", "p1", "train", "images/0.png", sex="female", kind="colour"),
        row("three", "p2", "train", "images/2.png", sex="male", kind="colour"),
        row("four", "p3", "train"),
        row("private", "p5", "train", "images/tagged.jpg"),
    ]
    write(folder, "train", rows)
    write(folder, "test", [row(f"t {word}", "p4", "test", "images/gone.png", "images/broken.png", sex="male")])
    lines = [{"row": f"a.csv:{number}", "rule": "missing-image", "detail": f"{word} gone"} for number in range(9)]
    lines.append({"row": f"{folder}/a.csv:9", "rule": word, "detail": ""})
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = {"title": f"Title {word}", "licence": "CC0-1.0", "joined": 3, "largest": 2, "moved": 4, "split": "group"}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def looked(folder: Path, *words: str) -> Page:
    assert look.main([str(folder / "source"), *words, "--out", str(folder / "out")]) == 0
    return Page((folder / "out" / "look.html").read_text(encoding="utf-8"))


def numbers(path: Path) -> dict[tuple[str, ...], int]:
    _, *rows = csv.reader(path.open(encoding="utf-8", newline=""))
    return {tuple(cells[:-1]): int(cells[-1]) for cells in rows}


def test_the_page_says_what_became_of_every_row(tmp_path: Path) -> None:
    made(tmp_path / "source")
    page = looked(tmp_path)
    assert "source: 16 rows in = 6 conversations out + 10 in the ledger." in page.text
    drawing = " ".join(text.strip() for tag, text in page.texts if tag in ("text", "title") and text.strip())
    for words in ("Rows in 16", "Left out 10 missing-image 9 plain 1", "Rows out 6 images 6 groups 5",
                  "Groups joined 3 share an image or a name; at most 2 became one rows changing split 4",
                  "train rows 5 images 4 groups 4", "test rows 1 images 2 groups 1"):  # fmt: skip
        assert words in drawing, words
    counts = numbers(tmp_path / "out" / "flow.csv")
    assert counts["source", "in", "rows"] == 16
    assert counts["source", "left out", "missing-image"] == 9
    assert counts["source", "train", "groups"] == 4
    assert counts["source", "joined", "conversations moved nearer to training"] == 4


def test_table_1_is_on_the_page_and_beside_it(tmp_path: Path) -> None:
    made(tmp_path / "source")
    text = looked(tmp_path).text
    assert "groups, n (%) train test all SMD all 4 1 5 age, years – mean (SD) 41.0 – 41.0" in text
    assert "sex 1.41 male 1 (25.0) 1 (100.0) 2 (40.0) female 1 (25.0) 0 (0.0) 1 (20.0) not known 2 (50.0)" in text
    assert "Not known of any: tone, site, institution" in text
    rows = [line.split(",") for line in (tmp_path / "out" / "table1.csv").read_text().splitlines()]
    assert ["groups", "sex", "male", "1", "25.00", "1", "100.00", "2", "40.00", "1.4142"] in rows


def test_a_conversation_is_shown_with_all_that_it_has(tmp_path: Path) -> None:
    made(tmp_path / "source")
    page = looked(tmp_path)
    for words in ("Thought First think: plain", "Question What is shown?", "Answer The answer of full.",
                  "2 options, 1 right plain ✓ another", "2 references The answer of full. weight 1 Another, plain "
                  "weight 0.5, by plain, completeness 0.5", "0.png · dermoscopic", "1.png · overview",
                  "present scale, plain", "absent pus", "age 41", "image not found: gone.png",
                  "image unreadable: broken.png", "missing-image 9 a.csv:", "Kept with a tag: plain 1."):  # fmt: skip
        assert words in page.text, words
    assert {card["data-set"] for card in page.all("article") if "data-set" in card} == {"train", "test"}
    assert '"title": "plain"' in page.within("pre")


def test_what_shares_a_group_is_shown_the_largest_first(tmp_path: Path) -> None:
    made(tmp_path / "source")
    page = looked(tmp_path)
    for words in ("0 1 1 0 1 2 2 2 2 2 3 4", "p1 2 conversations, 2 images, in train",
                  "also known as lesion plain", "p4 1 conversations, 2 images, in test"):  # fmt: skip
        assert words in page.text, words
    assert [card["data-band"] for card in page.all("article") if "data-band" in card] == ["2", "2"]


def test_groups_of_several_splits_are_warned_of(tmp_path: Path) -> None:
    source = made(tmp_path / "source")
    assert "several of these sets" not in looked(tmp_path).text
    write(source, "test", [row("leak", "p1", "test"), row("fine", "p9", "test")])
    assert "1 group stands in several of these sets" in looked(tmp_path).text
    assert "several of these sets" not in looked(tmp_path, "--split", "test").text


def test_a_split_may_be_looked_at_alone_and_the_diagram_has_all(tmp_path: Path) -> None:
    made(tmp_path / "source")
    for words in (("--split", "test"), ()):
        source = f"{tmp_path / 'source'}" + ":test" * (not words)
        assert look.main([source, "--out", str(tmp_path / "out"), *words]) == 0
        page = Page((tmp_path / "out" / "look.html").read_text(encoding="utf-8"))
        assert "1 of 1." in page.text
        assert "16 rows in" in page.text
        assert [card["data-set"] for card in page.all("article") if "data-set" in card] == ["test"]
        assert "groups, n (%) test all 1 " in page.text


def test_several_sources_stand_side_by_side_and_groups_hold_in_their_own(tmp_path: Path) -> None:
    made(tmp_path / "source")
    made(tmp_path / "other")
    page = looked(tmp_path, str(tmp_path / "other"))
    assert "groups, n (%) source:train source:test other:train other:test all SMD all 4 1 4 1 10" in page.text
    assert len(page.all("svg")) == 2
    counts = numbers(tmp_path / "out" / "flow.csv")
    assert counts["source", "in", "rows"] == counts["other", "in", "rows"] == 16


def test_a_group_of_one_archive_in_two_sources_is_one_with_the_images_of_both(tmp_path: Path) -> None:
    for name, image in (("source", "images/0.png"), ("other", "images/9.png")):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        photo(len(name), 40).save(folder / image)
        write(folder, "train", [row(name, "IL_1", "train", image)])
        (folder / "card.json").write_text(json.dumps({"archive": "drawn"}))
    page = looked(tmp_path, str(tmp_path / "other"))
    assert "IL_1 2 conversations, 2 images, in source:train, other:train" in page.text
    assert {"image 0.png", "image 9.png"} == {image["alt"] for image in page.all("img")}
    assert "not found" not in page.text


def test_a_source_without_ledger_card_or_later_columns_is_looked_at(tmp_path: Path) -> None:
    source = made(tmp_path / "source")
    (source / "ledger.jsonl").unlink()
    (source / "card.json").unlink()
    table = pq.read_table(source / "train.parquet").drop_columns(["references", "options", "right", "thoughts"])
    facts = table["facts"].combine_chunks()
    later = ("tone", "views", "present", "absent")
    kept = [number for number, field in enumerate(facts.type) if field.name not in later]
    facts = type(facts).from_arrays([facts.field(number) for number in kept], fields=[facts.type[n] for n in kept])
    table = table.set_column(table.column_names.index("facts"), "facts", facts)
    pq.write_table(table, source / "train.parquet")
    page = looked(tmp_path)
    assert "No row was left out." in page.text
    assert "6 rows in = 6 conversations out + 0 in the ledger" in page.text


@pytest.mark.parametrize("word", HOSTILE)
def test_what_data_says_stays_text(tmp_path: Path, word: str) -> None:
    made(tmp_path / "a" / "source")
    made(tmp_path / "b" / "source", word)
    plain, hostile = looked(tmp_path / "a"), looked(tmp_path / "b")
    assert Counter(tag for tag, _ in hostile.elements) == Counter(tag for tag, _ in plain.elements)
    assert {tuple(sorted(shape)) for _, shape in hostile.elements} == {tuple(sorted(s)) for _, s in plain.elements}
    assert hostile.within("script") == plain.within("script")
    assert hostile.within("style") == plain.within("style")
    assert hostile.text.count(" ".join(word.split())) > 15


def test_the_page_needs_nothing_else_and_tells_no_path_of_the_machine(tmp_path: Path) -> None:
    made(tmp_path / "source")
    page = looked(tmp_path)
    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    told = [page.text, *(value for _, attributes in page.elements for value in attributes.values())]
    told += [path.read_text() for path in (tmp_path / "out").glob("*.csv")]
    assert not [text for text in told if str(tmp_path) in text or str(Path.home()) in text]
    assert "…/a.csv:9" in page.text
    data = (tmp_path / "out" / "look.html").read_bytes()
    assert not [secret for secret in (*pictures.SECRETS, b"Ada Patient") if secret in data]


def test_the_page_can_be_read_by_ear(tmp_path: Path) -> None:
    made(tmp_path / "source")
    page = looked(tmp_path)
    assert all(head.get("scope") in ("col", "row", "rowgroup") for head in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"][1:] for link in page.all("a")} <= set(names)
    assert all(drawing["role"] == "img" for drawing in page.all("svg"))
    assert "What became of the rows of source" in page.within("title")


def test_the_same_seed_draws_the_same_and_another_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CONVERSATIONS", 12)
    many_rows.write(tmp_path / "source", 400, images=0)

    def ids(*words: str) -> list[str]:
        page = looked(tmp_path, *words)
        return [text for tag, text in page.texts if tag == "h4" and text.startswith("row-")]

    assert len(ids()) == 12
    assert ids() == ids("--seed", "0") != ids("--seed", "1")


def test_splits_may_be_named_one_by_one(tmp_path: Path) -> None:
    made(tmp_path / "source")
    one_by_one = looked(tmp_path, "--split", "train", "--split", "test")
    assert one_by_one.text == looked(tmp_path, "--split", "train", "test").text


def test_of_every_stratum_as_many_are_drawn_as_there_are() -> None:
    strata = np.repeat([7, 3, 5], [1000, 4, 50])
    shown = gallery.drawn(strata, 30, np.random.default_rng(0))
    assert Counter(strata[shown].tolist()) == {7: 13, 3: 4, 5: 13}
    assert (np.diff(shown) > 0).all()
    assert gallery.drawn(strata, 9999, np.random.default_rng(0)).tolist() == list(range(1054))
    assert gallery.drawn(np.empty(0, np.int64), 3, np.random.default_rng(0)).tolist() == []


def test_ledger_rows_are_drawn_from_all_of_a_rule(tmp_path: Path) -> None:
    lines = [json.dumps({"row": str(number), "rule": "r", "detail": ""}) for number in range(300)]
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    means = []
    for seed in range(60):
        (rule,) = look.ledger(tmp_path, seed)
        assert (rule.count, len(rule.rows)) == (300, look.ROWS)
        means += [int(line["row"]) for line in rule.rows]
    assert 130 < np.mean(means) < 170
    (tmp_path / "ledger.jsonl").write_text(lines[0] + "\n{\n")
    with pytest.raises(ExampleError, match=r"ledger.jsonl:2: not JSON"):
        look.ledger(tmp_path, 0)


def test_a_page_that_is_full_leaves_out_pictures_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "source")
    whole = looked(tmp_path)
    monkeypatch.setattr(gallery, "PICTURES", 1)
    album = gallery.Album(left=1)
    assert album.thumbnail(tmp_path / "source", "images/0.png", 40).uri
    assert album.thumbnail(tmp_path / "source", "images/0.png", 40).why == "left out, as the page is full"
    assert gallery.Album().thumbnail(tmp_path, "../x.png", 40).why == "no path in the source"
    monkeypatch.setattr(gallery, "TEXTS", 300)
    assert 0 < looked(tmp_path).text.count("Answer The answer") < whole.text.count("Answer The answer")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{source}", "--split", "validation"], "--split validation: no such split in .*; found train, test"),
        (["{source}:dev"], "no such set in .*it has the splits: test, train"),
        (["data/nothing"], "the folder holds no prepared source. Prepare it with"),
    ],
)
def test_a_set_that_is_not_there_is_named(tmp_path: Path, words: list[str], said: str) -> None:
    source = made(tmp_path / "source")
    with pytest.raises(FileNotFoundError, match=said):
        look.main([word.format(source=source) for word in words] + ["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_none_of_examples_is_named(tmp_path: Path) -> None:
    source = made(tmp_path / "source")
    (source / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ExampleError, match=r"test.parquet: not a file of Examples"):
        look.main([str(source), "--out", str(tmp_path / "out")])


def test_rows_are_read_by_the_groups_that_hold_them(tmp_path: Path) -> None:
    written = [row(str(number), "g", "train") for number in range(5_000)]
    write(tmp_path, "train", written)
    assert pq.read_metadata(tmp_path / "train.parquet").num_row_groups == 3
    assert example.take(tmp_path, "train", [4_999, 3, 2_000]) == [written[3], written[2_000], written[4_999]]
    assert example.take(tmp_path, "train", []) == []


def test_a_diagram_of_many_rules_and_splits_keeps_its_boxes_apart() -> None:
    ledger = tuple((f"a-rule-with-a-long-name-{number}", 100 - number) for number in range(20))
    splits = tuple(SplitCounts(f"split {number}", number, number, number) for number in range(5))
    page = Page(str(flow.svg(Flow("s", ledger, splits, 9, 9, 3, 2, 1))))
    boxes = [tuple(float(box[name]) for name in ("x", "y", "width", "height")) for box in page.all("rect")]
    assert len(boxes) == 4 + 5
    for number, (x, y, width, height) in enumerate(boxes):
        assert x >= -1
        assert x + width <= flow.WIDTH + 1
        for left, top, wide, high in boxes[number + 1 :]:
            assert x + width <= left or left + wide <= x or y + height <= top or top + high <= y
    assert "6 rarer rules" in page.text
    assert sum(count for _, count in ledger) == Flow("s", ledger, splits, 9, 9).left_out


@pytest.mark.slow
def test_200_000_rows_are_read_by_columns_in_little_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak memory is measured; as Examples they would take more than a gigabyte."""
    source = many_rows.write(tmp_path / "many", 200_000, left_out=50_000)
    for seed in range(200):
        path = source / f"images/{seed}.png"
        path.parent.mkdir(exist_ok=True)
        photo(seed).save(path)
    code = (
        "import sys; from skinvl.data import look; look.main(sys.argv[1:]);"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )  # and not getrusage, which has the peak of the process that started it
    words = [str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 500_000  # kB
    data = (tmp_path / "out" / "look.html").read_bytes()
    assert len(data) < 20_000_000
    page = Page(data.decode())
    assert "120 of 200,000, as many of each split and kind of question as there are" in page.text
    assert "250,000 rows in = 200,000 conversations out + 50,000 in the ledger" in page.text
    assert len([card for card in page.all("article") if "data-set" in card]) == gallery.CONVERSATIONS


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose data tries to run scripts and to break out of its column."""
    folder = tmp_path_factory.mktemp("look")
    made(folder / "source", f'<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">{"x" * 200}')
    looked(folder)
    return folder / "out" / "look.html"


@pytest.mark.slow
def test_in_a_browser_filters_work_each_on_its_own_cards(hostile: Path) -> None:
    with browser(hostile, 1280) as driver:
        assert driver.execute_script("return window.hacked") is None
        assert len(visible(driver)) == 8
        words = driver.find_elements("css selector", "input[name=words]")
        words[1].send_keys("answer of two")
        assert [card.get_attribute("data-set") for card in visible(driver)] == [None, None, "train"]
        counts = [count.text for count in driver.find_elements("css selector", "output")]
        assert counts == ["2 of 2 shown", "1 of 6 shown"]
        words[0].send_keys("nothing has this")
        assert len(visible(driver)) == 1
        assert console(driver) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser_the_page_fits_a_phone_and_the_dark(hostile: Path, width: int) -> None:
    with browser(hostile, width) as driver:
        driver.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
        wide = "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
        assert max(driver.execute_script(wide)) <= width
        sizes = "return [...document.querySelectorAll('svg text')].map(each => each.getBoundingClientRect().height)"
        assert min(driver.execute_script(sizes)) >= 10  # pixels of a line of the diagram
        light = brightness(driver)
        assert console(driver) == []
    with browser(hostile, width, dark=True) as driver:
        assert brightness(driver) < 80 < 200 < light
        assert console(driver) == []
