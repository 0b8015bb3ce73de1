"""`skinvl retrieve`: ranks of both directions on disk, and what is nearest to a query, by towers that know it all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.pages import Page
from helpers.sources import fingerprint, photo
from skinvl.data.example import Example, Facts, text, write
from skinvl.evaluate import embed, retrieve, search
from skinvl.evaluate.pools import PoolError
from skinvl.evaluate.retrieve import RetrieveError
from skinvl.evaluate.search import SearchError
from skinvl.recipe import run
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import retrieval
from skinvl.score.ranking import Embeddings
from skinvl.score.retrieval import DIRECTIONS
from skinvl.score.score import main as score

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
HOSTILE = "five <img src=x onerror=alert(1)>"


def source(folder: Path, split: str, numbers: Sequence[int], **captions: str) -> Path:
    """A prepared source whose image 7.png has the caption `seven`, of a patient of its own."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        path = f"images/{number}.png"
        if not (folder / path).is_file():
            photo(number, 64).save(folder / path)
        turns = text("user", "Describe it.", images=1), text("assistant", captions.get(f"n{number}", WORDS[number]))
        facts = Facts(kind="description")
        rows.append(Example(f"row-{number}", "drawn", (path,), turns, f"patient-{number}", split, "CC0-1.0", facts))
    write(folder, split, rows)
    return fingerprint(folder)


def vectors(names: Sequence[str]) -> Embeddings:
    """One axis for each word of WORDS, by the first word or the number of a file: perfect towers."""
    numbers = [WORDS.index(name.split()[0]) if name.split()[0] in WORDS else int(Path(name).stem) for name in names]
    return np.eye(len(WORDS), dtype=np.float32)[numbers]


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder; its towers know what every image shows, and image 3 cannot be read."""
    monkeypatch.chdir(tmp_path)

    def images(loaded: Any, shown: Sequence[tuple[Path, str]], *_: Any, **__: Any) -> Embeddings:
        made = vectors([path for _, path in shown])
        made[[Path(path).name == "3.png" for _, path in shown]] = np.nan
        return made

    tokenizer = SimpleNamespace(cut=lambda text: len(text) > 4)
    loaded = SimpleNamespace(tokenizer=tokenizer, facts={"base": {"model": "stand-in"}})
    for module in (retrieve, search):
        monkeypatch.setattr(module, "load_towers", lambda recipe, device: loaded)
    monkeypatch.setattr(embed, "images", images)
    monkeypatch.setattr(embed, "texts", lambda loaded, said, *_, **__: vectors(said))
    return tmp_path


def recipe(folder: Path, **data: Any) -> PretrainRecipe:
    spec = {"source": str(folder), "split": "train"}
    return PretrainRecipe.model_validate(
        {
            "name": "toy",
            "base": {"name": "toy", "random": "clip"},
            "data": {"train": [spec], "eval": [{**spec, "split": "test"}], **data},
            "objective": {"name": "clip"},
            "batch": {"images": 4},
        }
    )


def test_ranks_of_both_directions_lie_in_the_run_with_their_numbers(
    towers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(source(towers / "derm", "train", [0, 1]), "test", [2, 3, 4, 5, 6])
    retrieve.retrieve_sets(recipe(folder), towers / "out")
    path = towers / "out" / "eval" / "retrieval" / "derm.jsonl"
    ranks = retrieval.read(path)
    assert {direction: [row.rank for row in rows] for direction, rows in ranks.rows.items()} == dict.fromkeys(
        DIRECTIONS, [1.0] * 4
    )
    settings = json.loads(path.with_suffix(".json").read_text())
    assert settings["left_out"] == {"unreadable image": 1}
    assert (settings["images"], settings["texts"], settings["texts_cut"]) == (4, 4, 0)
    block = settings["numbers"]["image to text"]
    assert (block["n"], block["pool"], block["numbers"]["R@1"]["value"]) == (4, 4, 1)
    assert block["chance"]["R@1"] == pytest.approx(0.25)
    nearest = settings["neighbours"]["text to image"][0]
    assert [hit["right"] for hit in nearest["nearest"]].count(True) == 1
    assert nearest["nearest"][0]["cosine"] == 1
    printed = capsys.readouterr().out
    assert "1 left out, unreadable image" in printed
    assert "text to image: R@1 1.000" in printed

    # What score makes of it is the same.
    assert score([str(towers / "out"), "--resamples", "100", "--metrics", "rouge"]) == 0


def test_what_was_trained_on_is_in_no_pool_of_the_run_nor_of_its_base(towers: Path) -> None:
    folder = source(source(towers / "derm", "train", [0, 1, 2], n2="seven"), "test", [4, 5, 6, 7])
    for init in (None, "somewhere"):
        towers_recipe = recipe(folder).model_copy(update={"init_adapter": init})
        out = towers / str(init)
        retrieve.retrieve_sets(towers_recipe, out)
        settings = json.loads((out / "eval" / "retrieval" / "derm.json").read_text())
        assert settings["left_out"] == {"trained-on: caption": 1}


def test_a_recipe_without_a_set_or_with_an_empty_one_is_refused(towers: Path) -> None:
    folder = source(source(towers / "derm", "train", [0, 1]), "test", [3, 4])
    with pytest.raises(RetrieveError, match=r"data\.eval: names no source"):
        retrieve.retrieve_sets(recipe(folder, eval=[]), towers / "out")
    with pytest.raises(PoolError, match="1 images and 1 texts"):  # the other cannot be read
        retrieve.retrieve_sets(recipe(folder), towers / "out")


def asked(towers: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """What the verb comes to, of a run of these towers."""
    monkeypatch.setattr(run, "evaluated_towers", lambda name, overrides: (recipe(towers / "derm"), towers / "run"))
    return retrieve.main(["runs/toy", *words])


def test_a_text_finds_images_and_an_image_finds_images_and_texts(
    towers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(source(towers / "derm", "train", [0, 1, 2]), "test", [3, 4, 5], n5=HOSTILE)
    assert asked(towers, monkeypatch, "five", str(folder), "--top", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f" 1.000  {folder / 'images/5.png'}"
    assert len(lines) == 2

    # In one split, with a page, on which what the data say stays text.
    words = [str(folder / "images" / "5.png"), str(folder), "--split", "test", "--html", "near.html"]
    assert asked(towers, monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith("images/5.png")
    assert f" 1.000  {HOSTILE}" in printed
    assert "images/3.png" not in printed  # which cannot be read
    html = (towers / "near.html").read_text()
    page = Page(html)
    assert HOSTILE in page.text
    assert HOSTILE not in html
    assert [image["src"][:23] for image in page.all("img")] == ["data:image/jpeg;base64,"] * 3
    assert not [tag for tag in ("script", "iframe") if page.all(tag)]
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["five"], "expected a query and the source"),
        (["five", "derm", "more"], "expected a query and the source"),
        (["five", "nowhere/at-all"], "no such prepared source"),
        (["five", "{derm}", "--split", "valid"], "no such split valid"),
        (["five", "{derm}", "--top", "0"], "--top 0"),
        (["five", "{derm}", "--html", "no/folder.html"], "there is no folder no"),
        (["gone.jpg", "{derm}"], "gone.jpg: .* expected a text, or the path of an image"),
        (["...", "{derm}"], "a query without a letter"),
        (["--html", "page.html"], "belong to a query"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    towers: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    folder = source(source(towers / "derm", "train", [0, 1]), "test", [4, 5])
    with pytest.raises((RetrieveError, SearchError), match=message):
        asked(towers, monkeypatch, *(word.format(derm=folder) for word in words))
