"""What every page has: colours that can be read, a policy of its own hashes, small pictures, no path of a machine."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from PIL import Image

from helpers.pages import Page, contrast, palettes
from skinvl.data import pages
from skinvl.data.pages import Thumbnail, short

BARE = """{% import "pages.html.j2" as pages %}
<!doctype html><html lang="en"><head>{{ pages.head(title, pages.sheet, pages.script) }}</head>
<body>{% call pages.filters("Filter", "card") %}{{ pages.picker("kind", "Kind", [title, "b"]) }}{% endcall %}
<script>{{ pages.script }}</script></body></html>
"""


def bare(folder: Path, title: str = "a") -> Page:
    (folder / "bare.html.j2").write_text(BARE)
    return Page(pages.template(folder / "bare.html.j2").render(title=title))


def test_a_page_may_load_its_own_sheet_and_script_and_nothing_else(tmp_path: Path) -> None:
    page = bare(tmp_path)
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    for tag in ("style", "script"):
        digest = hashlib.sha256(page.within(tag).encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")


def test_what_data_says_stays_text(tmp_path: Path) -> None:
    word = '"><script>alert(1)</script>'
    hostile, plain = bare(tmp_path, word), bare(tmp_path)
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert word in [option["value"] for option in hostile.all("option")]


def test_colours_differ_enough_in_light_and_dark(tmp_path: Path) -> None:
    """WCAG 2.2, 1.4.3: text has a contrast of 4.5 to its ground."""
    for colours in palettes(bare(tmp_path).within("style")):
        for ground in ("paper", "panel", "mark"):
            assert contrast(colours["ink"], colours[ground]) >= 4.5
        for text in ("muted", "link", "good", "bad", "warn"):
            assert contrast(colours[text], colours["paper"]) >= 4.5, text
        for text, ground in (("muted", "panel"), ("muted", "mark"), ("warn", "mark"), ("link", "mark")):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_a_thumbnail_is_small_or_says_why_it_is_not_there(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100), "red").save(tmp_path / "a.png")
    shown = pages.thumbnail(tmp_path / "a.png", 40)
    assert shown.uri is not None
    assert (shown.name, shown.uri[:23], shown.why) == ("a.png", "data:image/jpeg;base64,", "")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert pages.thumbnail(tmp_path / "b.png", 40) == Thumbnail("b.png", None, "image unreadable")
    assert pages.thumbnail(tmp_path / "c.png", 40) == Thumbnail("c.png", None, "image not found")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/ada/data/x.png: no such file", "…/x.png: no such file"),
        ("run=/home/ada/x", "run=…/x"),
        ("/home/Ada Lovelace/my data/x.png", "…/x.png"),
        ("read '/a/b c/d.csv' and /e/f.csv, twice", "read '…/d.csv' and …/f.csv, twice"),
        ("/x.png", "…/x.png"),
        ("Qwen/Qwen3-VL-8B", "Qwen/Qwen3-VL-8B"),
        ("data/demo/train.parquet", "data/demo/train.parquet"),
        ("and/or 1 / 2", "and/or 1 / 2"),
        ("https://example.org/a", "https://example.org/a"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, told: str) -> None:
    assert short(text) == told
    assert short({text: [text, 1, None]}) == {told: [told, 1, None]}
