"""The review of a synthesis: what it counts and draws, that it needs nothing else, and that data stays text in it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers import pictures
from helpers.pages import HOSTILE, Page, brightness, browser, console, picture, visible
from skinvl.data import pages
from skinvl.sources.synthesis import review
from skinvl.sources.synthesis.review import ReviewError

KINDS = ("anatomy", "diagnosis", "features", "overview")
RULES = (None, None, None, None, "leaks-context", "contradicts-label", "unparsable", "refusal")


def records(folder: Path, count: int, word: str = "macule") -> Iterator[dict[str, Any]]:
    """Records as synthesis.jsonl has them; images lie in the folder, but some are gone."""
    for number in range(count):
        rule, kind = RULES[number % len(RULES)], KINDS[number // 3 % len(KINDS)]
        image = f"images/lesion {number % 7}.jpg"
        if number % 7:
            picture(folder / image, number % 7)
        parsed = rule not in ("unparsable", "refusal")
        answer = f"An even brown {word} with a sharp border, {number} pixels from the edge, on skin with fine hair."
        verdicts = {"yes": "All of it is seen.", "no": f"No {word} is seen.", "unsure": ""}
        told = list(verdicts.items())[number % 3] if number % 2 and rule is None else None
        yield {
            "id": f"{number:032x}",
            "request": f"{number:032x}",
            "unit": image,
            "image": None if number % 11 == 10 else image,
            "split": "train" if number % 5 else "test",
            "slot": "general" if number % 2 else "specific",
            "kind": kind,
            "source": "demo-dermasynth",
            "licence": "CC-BY-4.0",
            "programme": "dermasynth",
            "version": 1,
            "seed": 0,
            "settings": "768",
            "terms": "Apache-2.0",
            "model": "standing-in-vlm",
            "finish": "length" if rule == "unparsable" else "stop",
            "prompt_tokens": 1_234,
            "completion_tokens": 98,
            "created": 1_763_000_000.0 + number,
            "attempts": 1 + (number % 9 == 0),
            "context": {"modality": "clinical", "diagnosis": "nevus", "age": "31", "note": word} if number % 11 else {},
            "facts": {"modality": "clinical"},
            "system": "You look at images of skin.",
            "prompt": f"<context>\ndiagnosis: nevus\n</context>\nWhat does this image show? {word}",
            "question": f"What does this image show? {word if number % 3 == 0 else ''}" if parsed else "",
            "answer": answer if parsed else "",
            "rule": rule,
            "detail": f"answer: {word}" if rule else "",
            "tags": ["label-conditioned"] if rule is None and kind == "diagnosis" else [],
            "verdict": {"supported": told[0], "reason": told[1]} if told else None,
            "reply": json.dumps({"answer": answer}) if parsed else f"Sorry, {word}",
        }


def written(folder: Path, count: int = 200, word: str = "macule") -> Path:
    """An OUT with so many records."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records(folder, count, word)]
    (folder / "synthesis.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    return folder


def outcome(record: dict[str, Any]) -> str:
    return record["rule"] or ("tagged" if record["tags"] else "kept")


def shown(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<article class="card[^"]*" data-kind="([^"]*)" data-outcome="([^"]*)"', page)


def test_every_kind_and_outcome_is_shown_and_all_are_counted(tmp_path: Path) -> None:
    everything = list(records(tmp_path, 200))
    page = review.page(everything, [tmp_path])
    counts = Counter((record["kind"], outcome(record)) for record in everything)
    assert Counter(shown(page)) == {stratum: min(review.EACH, count) for stratum, count in counts.items()}
    table = page[page.index("<tbody>") : page.index("</tfoot>")]
    rows = {
        cells[0]: list(map(int, cells[1:]))
        for cells in (re.findall(r">(\w+)</t[hd]>", row) for row in table.split("<tr>")[1:])
    }
    heads = ["kept", "tagged", "contradicts-label", "leaks-context", "refusal", "unparsable"]
    assert re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', page) == ["kind", *heads, "all"]
    for kind in KINDS:
        assert rows[kind] == [*(counts[kind, head] for head in heads), sum(r["kind"] == kind for r in everything)]
    assert rows["all"][-1] == 200


def test_what_is_drawn_depends_on_the_seed_alone(tmp_path: Path) -> None:
    everything = list(records(tmp_path, 200))
    page = review.page(everything, [tmp_path], seed=3)
    assert review.page(everything, [tmp_path], seed=3) == page
    assert review.page(everything[::-1], [tmp_path], seed=3) == page  # as when shards end in another order
    assert set(re.findall("[0-9a-f]{32}", review.page(everything, [tmp_path], seed=4))) != set(
        re.findall("[0-9a-f]{32}", page)
    )
    fewer = [record for record in everything if record["kind"] != "overview"]
    kept = re.findall("[0-9a-f]{32}", review.page(fewer, [tmp_path], seed=3))
    assert set(kept) < set(re.findall("[0-9a-f]{32}", page))  # others are drawn as if they were alone


def test_a_card_tells_all_that_is_known(tmp_path: Path) -> None:
    one = next(
        record for record in records(tmp_path, 9) if record["verdict"] and record["verdict"]["supported"] == "no"
    )
    page = review.page([one], [tmp_path])
    card = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page[page.index("<article") : page.index("</article>")]))
    for words in (one["question"], one["answer"], "Told to the model alone", "diagnosis nevus", "no. No macule is seen",
                  "You look at images of skin.", "standing-in-vlm", "1,234 + 98 tokens", "CC-BY-4.0", "Apache-2.0",
                  one["id"], "2025-11-13", "images/lesion"):  # fmt: skip
        assert words.strip() in card, words
    assert page.count("<img ") == 1
    assert "{&#34;answer&#34;" in page  # the reply as it came


def test_a_record_needs_no_more_than_its_fields(tmp_path: Path) -> None:
    bare = {
        "request": "r",
        "unit": "7",
        "image": None,
        "kind": "task",
        "context": {},
        "prompt": "P",
        "rule": "request-failed",
    }
    page = review.page([bare], [tmp_path])
    assert shown(page) == [("task", "request-failed")]
    assert "None" not in page
    assert "no records yet" in review.page([], [tmp_path])


def test_images_are_found_small_and_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "source" / "images" / "photo.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (900, 300), "red").save(path, exif=pictures.exif(6, private=True), comment=b"Ada Patient")
    uri, why = review._picture("images/photo.jpg", (tmp_path, tmp_path / "source"))
    assert (uri is not None, why) == (True, "")
    assert uri is not None
    found, size = pictures_of(uri)
    assert size == (107, 320)
    assert not [secret for secret in (*pictures.SECRETS, b"Exif") if secret in found]
    path.write_bytes(b"no image")
    assert review._picture("images/photo.jpg", (tmp_path / "source",)) == (None, "image unreadable")
    assert review._picture("images/gone.jpg", (tmp_path,)) == (None, "image not found")
    assert review._picture("../../etc/passwd", (tmp_path,)) == (None, "no path in the source")
    assert review._picture(None, (tmp_path,)) == (None, "text alone")


def pictures_of(uri: str) -> tuple[bytes, tuple[int, int]]:
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        return data, image.size


@pytest.mark.parametrize("word", HOSTILE)
def test_data_stays_text(tmp_path: Path, word: str) -> None:
    plain, hostile = (Page(review.page(records(tmp_path, 40, one), [tmp_path])) for one in ("macule", word))
    for one, other in zip(plain.elements, hostile.elements, strict=True):
        assert (one[0], one[1].keys()) == (other[0], other[1].keys())
    assert " ".join(word.split()) in hostile.text


def test_texts_of_any_size_and_kind_are_shown(tmp_path: Path) -> None:
    one = next(records(tmp_path, 1)) | {"answer": "x" * 20_000, "reply": "half of a pair: \ud800"}
    page = review.page([one], [tmp_path])
    assert "(14,000 characters more)" in page
    assert "x" * pages.LONGEST in page
    assert "x" * (pages.LONGEST + 1) not in page
    (tmp_path / "synthesis.jsonl").write_text(json.dumps(one) + "\n", encoding="utf-8")
    assert review.write(tmp_path, tmp_path).read_bytes().count(b"half of a pair: ?") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (None, "synthesis.jsonl: no such file; expected an OUT of skinvl synth"),
        ("{", "synthesis.jsonl:2: not JSON"),
        (
            '{"request": "1"}',
            "synthesis.jsonl:2: no unit, image, kind, context, prompt, rule; expected what this version",
        ),
        ("[1]", "synthesis.jsonl:2: no request, unit"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str | None, message: str) -> None:
    if line is not None:
        first = json.dumps(next(records(tmp_path, 1)))
        (tmp_path / "synthesis.jsonl").write_text(f"{first}\n{line}\n", encoding="utf-8")
    with pytest.raises(ReviewError, match=re.escape(message)):
        review.write(tmp_path, tmp_path)
    assert not (tmp_path / "review.html").exists()


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = review.write(written(tmp_path), tmp_path).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href|action)="(?!data:image/jpeg;base64,|data:,"|#)""", page)
    assert "default-src 'none'" in page
    assert len(page) < 3_000_000


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A review whose data tries to run scripts and to break out of its column."""
    folder = tmp_path_factory.mktemp("review")
    word = f'<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">{"x" * 200}'
    return review.write(written(folder, 200, word), folder)


@pytest.mark.slow
def test_in_a_browser_filters_work_by_keyboard_and_nothing_else_runs(hostile: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    with browser(hostile, 1280) as driver:
        assert driver.execute_script("return window.hacked") is None
        everything = len(visible(driver))
        assert everything == len(shown(hostile.read_text(encoding="utf-8"))) > 60

        def press(*keys: str) -> Any:
            driver.switch_to.active_element.send_keys(*keys)
            return driver.switch_to.active_element

        def reach(name: str) -> Any:
            for _ in range(30):
                if (there := press(Keys.TAB)).get_attribute("name") == name or there.text == name:
                    return there
            raise AssertionError(f"{name}: not reached by the tab key")

        assert press(Keys.TAB).text == "Skip to the results"
        assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert press(Keys.ENTER).get_attribute("id") == "main"
        reach("outcome")
        press("leaks")
        leaks = visible(driver)
        assert {one.get_attribute("data-outcome") for one in leaks} == {"leaks-context"}
        assert driver.find_element("css selector", "output").text == f"{len(leaks)} of {everything} shown"
        assert len([one for one in driver.find_elements("css selector", ".group") if one.is_displayed()]) == len(
            {one.get_attribute("data-kind") for one in leaks}
        )
        reach("words")
        press("nothing has this")
        assert visible(driver) == []
        assert driver.find_element("css selector", ".nothing").is_displayed()
        reach("Show all")
        press(Keys.ENTER)
        driver.execute_async_script("setTimeout(arguments[0], 50)")
        assert len(visible(driver)) == everything
        details = visible(driver)[0].find_element("css selector", "summary")
        driver.execute_script("arguments[0].focus()", details)
        press(Keys.ENTER)
        assert visible(driver)[0].find_element("css selector", "pre").is_displayed()
        assert console(driver) == []


@pytest.mark.slow
def test_in_a_browser_the_page_fits_a_phone_and_the_dark(hostile: Path) -> None:
    with browser(hostile, 390) as driver:
        driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        wide = "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
        assert max(driver.execute_script(wide)) <= 390
        light = brightness(driver)
        assert console(driver) == []
    with browser(hostile, 390, dark=True) as driver:
        assert brightness(driver) < 80 < 200 < light
        assert console(driver) == []


@pytest.mark.slow
def test_in_a_browser_all_is_shown_without_scripts(hostile: Path) -> None:
    with browser(hostile, 1280, scripts=False) as driver:
        assert not driver.find_element("id", "filters").is_displayed()
        assert len(visible(driver)) == len(shown(hostile.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_in_a_browser_the_policy_stops_what_is_not_the_pages_own(hostile: Path) -> None:
    """That the tests above would see it: the same page with a style and a script of somebody else."""
    foreign = hostile.with_name("foreign.html")
    body = '<body><p style="color: red">x</p><script>window.hacked = 1</script><img src="https://localhost/x.png">'
    foreign.write_text(hostile.read_text(encoding="utf-8").replace("<body>", body), encoding="utf-8")
    with browser(foreign, 1280) as driver:
        assert driver.execute_script("return window.hacked") is None
        assert len([text for text in console(driver) if "Content Security Policy" in text]) == 3
