"""`skinvl concepts fit` and `name`: held-out groups, chance beside every number, the page, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from helpers import provenances, sources, two_towers
from helpers.pages import HOSTILE, Page
from helpers.tiny import picture
from skinvl import __main__ as cli
from skinvl.data import example
from skinvl.data.example import Example, Facts, text
from skinvl.evaluate import concepts, embed
from skinvl.evaluate.concept import fit, images, name, vocabulary
from skinvl.evaluate.concept.fit import FitError
from skinvl.evaluate.concept.name import WordsError
from skinvl.evaluate.text_lists import TextListError
from skinvl.model import dictionary as dictionaries
from skinvl.model import dictionary_fit
from skinvl.model.dictionary import DictionaryError
from skinvl.model.towers_loaded import open_towers, read_model
from skinvl.recipe import towers
from skinvl.recipe.strict import RecipeError

WORDS = ("hair", "ruler", "ink", HOSTILE[0])
WIDTH = 16
SMALL = ("--units", "16", "--k", "2", "--steps", "60", "--batch", "32", "--seeds", "2", "--held-out", "0.2")


def source(folder: Path, patients: int = 40) -> Path:
    """A prepared source: two images of each patient, in a row each; `i.png` shows word i modulo 4."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(2 * patients):
        path = f"images/{number}.png"
        picture(number, (40, 30)).save(folder / path)
        turns = (text("user", "Describe it.", 1), text("assistant", WORDS[number % 3]))
        patient = f"patient-{number // 2}"
        rows.append(Example(f"{number}", "drawn", (path,), turns, patient, "train", "CC0-1.0", Facts("description")))
    example.write(folder, "train", rows)
    return sources.fingerprint(folder, alike=False)


def shown(path: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The embedding of an image: a mean, the axis of its word, and noise of its own."""
    number = int(Path(path).stem)
    vector = 0.1 * np.random.default_rng(number).standard_normal(WIDTH).astype(np.float32)
    vector[number % len(WORDS)] += 1
    vector[8] += 2
    return vector / np.linalg.norm(vector)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small are not worth the wait of several threads for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a recipe towers.yaml; its towers know every word, and cannot read 7.png."""
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "lesions")
    two_towers.recipe(tmp_path, data__eval=[], evaluate__classify=[])

    def vectors(loaded: Any, every: Sequence[tuple[Path, str]], *_: Any) -> Any:
        made = np.array([shown(path) for _, path in every], np.float32)
        made[[Path(path).name == "7.png" for _, path in every]] = np.nan
        return made

    def axes(loaded: Any, every: Sequence[str], *_: Any) -> Any:
        made = np.zeros((len(every), WIDTH), np.float32)
        made[:, 12] = 3  # what all texts share
        for row, word in enumerate(every):
            made[row, WORDS.index(word) if word in WORDS else 14 - len(word) % 2] += 1
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    loaded = SimpleNamespace(facts={"base": {"model": "stand-in"}, "adapter": None})
    for module in (fit, name):
        monkeypatch.setattr(module, "load_towers", lambda recipe, device: loaded)
    monkeypatch.setattr(embed, "images", vectors)
    monkeypatch.setattr(embed, "texts", axes)
    return tmp_path


def fitted(folder: Path, *words: str) -> tuple[Path, dict[str, Any]]:
    """The folder of results, and what dictionary.json says."""
    assert concepts.main(["fit", "towers.yaml", *SMALL, *words]) == 0
    (out,) = (folder / "runs").iterdir()
    return out, json.loads((out / "concepts" / "dictionary.json").read_text())


def test_no_group_is_both_fitted_to_and_measured_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[torch.Tensor] = []
    real = dictionary_fit.fit

    def watched(embeddings: torch.Tensor, *rest: Any) -> Any:
        trained.append(embeddings.clone())
        return real(embeddings, *rest)

    monkeypatch.setattr(dictionary_fit, "fit", watched)
    _, record = fitted(folder)
    every = torch.from_numpy(np.array([shown(f"{number}.png") for number in range(80)]))
    of = [{number // 2 for number in range(80) if (every[number] == rows).all(1).any()} for rows in trained]
    assert len(of) == 2
    assert of[0] == of[1]  # both seeds hold out the same
    assert len(of[0]) == 32
    train, held_out = record["seeds"][0]["train"], record["seeds"][0]["held_out"]
    assert (train["groups"], held_out["groups"]) == (32, 8)
    assert train["images"] + held_out["images"] == 79
    assert len(trained[0]) == train["images"]
    assert record["unreadable"] == ["images/7.png"]


def test_a_fit_says_what_it_explains_and_what_recurs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, record = fitted(folder, "--steps", "300", "--units", "12")
    held_out = record["seeds"][0]["held_out"]
    explained = held_out["explained_variance"]
    assert explained["value"] > 0.3
    assert explained["n"] == held_out["images"]
    assert held_out["l0"]["value"] == pytest.approx(2, abs=0.8)
    assert 0 <= held_out["dead_share"] < 1
    recurrence = record["recurrence"]
    assert 0 <= recurrence["by_chance"] <= 1
    assert recurrence["cosine"] == fit.RECURS
    assert record["settings"]["kind"] == "batch-topk"
    assert record["sources"] == ["lesions:train"]
    assert record["data"].keys() == {"lesions/train.parquet", "lesions/images.parquet"}
    said = capsys.readouterr().out
    assert "by chance" in said
    assert "of 8 groups held out" in said

    # By hand, what the file's own dictionary explains of what was held out.
    groups = np.array([number // 2 for number in range(80) if number != 7])
    rows = torch.from_numpy(np.array([shown(f"{number}.png") for number in range(80) if number != 7]))
    test = torch.from_numpy(fit.held_out_groups(groups, 0.2, 0))
    dictionary = dictionaries.load(out)
    lost = (rows[test] - dictionary.rebuilt(dictionary.units(rows[test]))).square().sum()
    whole = (rows[test] - rows[~test].mean(0)).square().sum()
    assert explained["value"] == pytest.approx(1 - float(lost / whole), abs=1e-5)


def test_one_dictionary_twice_recurs_and_random_ones_as_chance_has_it() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(300, 64, generator=generator)
    settings = dictionary_fit.FitSettings("l1", 50, 1, 1, 1)
    one, other = (dictionary_fit.start(embeddings, settings, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert fit.recurring([one], embeddings, 0)["share"] is None  # there is no other seed
    twin = dictionary_fit.start(embeddings, settings, torch.Generator().manual_seed(1))
    assert fit.recurring([one, twin], embeddings, 0)["share"] == 1
    apart = fit.recurring([one, other], embeddings, 0)
    assert apart["share"] == pytest.approx(apart["by_chance"], abs=0.05)
    narrow = embeddings[:, :2] @ torch.randn(2, 64, generator=generator)  # all in a plane
    assert fit.recurring([one, other], narrow, 0)["by_chance"] > 0.9


def test_units_are_named_and_chance_stands_beside_the_name(folder: Path) -> None:
    out, _ = fitted(folder, "--steps", "400", "--units", "12", "--kind", "topk", "--k", "1")
    (folder / "words.txt").write_text("\n".join((*WORDS, "plaque", "scale", "elbow")))
    assert concepts.main(["name", "towers.yaml", "--words", "words.txt"]) == 0
    record = json.loads((out / "concepts" / "names.json").read_text())
    units = name.read(out)
    assert record["vocabulary"][:3] == list(WORDS[:3])
    assert len(units) + record["dead"] == 12

    # The word of the images that a unit is active in, where these are of one word.
    pure = 0
    for unit in units:
        words = {WORDS[int(re.sub(r"\D", "", image)) % 4] for image in unit["images"]}
        if len(words) == 1 and unit["active"] >= 6:
            pure += 1
            assert unit["name"] in words
            assert unit["null"] < 0.05
            assert unit["margin"] > 0.2
        assert all(image.startswith("lesions:images/") for image in unit["images"])
    assert pure >= 3

    page = Page((out / "concepts" / "names.html").read_text())
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert len(page.all("script")) == 1  # the word that would be one is text
    assert HOSTILE[0] in page.text
    assert len(page.all("article")) == len(units)
    assert all(image["src"].startswith("data:image/jpeg") for image in page.all("img"))
    assert not any("style" in attributes for _, attributes in page.elements)
    assert str(folder) not in (out / "concepts" / "names.html").read_text()


def test_names_of_nothing_are_as_good_as_chance() -> None:
    """Activations that know nothing of the images: one name in twenty has a null of .05 or less."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((60, WIDTH)).astype(np.float32)
    names = generator.standard_normal((9, WIDTH)).astype(np.float32)
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    strongest = [(generator.choice(60, 8, replace=False), generator.random(8, np.float32) + 0.1) for _ in range(300)]
    centred = vectors - vectors.mean(0)
    best = np.array([((weights @ centred[rows]) @ names.T).argmax() for rows, weights in strongest])
    _, null = name.against_shuffled(strongest, vectors, names, best, 0, Console(quiet=True))
    assert 0.01 < (null <= 0.05).mean() < 0.1
    assert null.min() >= 1 / 201
    told = [(np.argsort(-(centred @ names[4]))[:8], np.ones(8, np.float32))]
    _, null = name.against_shuffled(told, vectors, names, np.array([4]), 0, Console(quiet=True))
    assert null[0] < 0.02


def test_the_page_ends_where_it_would_be_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = fitted(folder)
    monkeypatch.setattr(name, "MOST", 20_000)
    assert concepts.main(["name", "towers.yaml"]) == 0
    html = (out / "concepts" / "names.html").read_text()
    shown_units = len(Page(html).all("article"))
    assert 0 < shown_units < len(name.read(out))
    assert "names.json has all" in Page(html).text
    assert len(html) < 40_000


def test_names_of_an_earlier_dictionary_are_not_read(folder: Path) -> None:
    out, _ = fitted(folder)
    assert concepts.main(["name", "towers.yaml"]) == 0
    fitted(folder, "--seed", "5")
    with pytest.raises(DictionaryError, match=r"of an earlier dictionary than the run's; name them with"):
        name.read(out)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["fit", "tiny"], RecipeError, "a recipe of a vision-language model"),
        (["fit", "towers.yaml", "--k", "16", "--units", "64"], FitError, "--k 16: expected fewer"),
        (["fit", "towers.yaml", "--held-out", "1.5"], FitError, "--held-out 1.5: expected a share"),
        (["fit", "towers.yaml", "--seeds", "0"], FitError, "--seeds 0: expected at least 1"),
        (["fit", "towers.yaml", "--held-out", "0.9"], FitError, "expected at least 20 and 2"),
        (["name", "towers.yaml"], DictionaryError, "skinvl concepts fit"),
        (["name", "towers.yaml", "--words", "no.txt"], TextListError, "no such file"),
        (["name", "towers.yaml", "--words", "one.txt"], WordsError, "one name, which every unit would get"),
        (["find", "towers.yaml"], concepts.ConceptsError, "expected one of fit, name, score, suppress"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    folder: Path, words: list[str], error: type[ValueError], message: str
) -> None:
    (folder / "one.txt").write_text("hair\n")
    with pytest.raises(error, match=re.escape(message)):
        concepts.main(words)


def test_images_of_one_patient_are_one_group_whatever_row_shows_them(folder: Path) -> None:
    recipe = two_towers.recipe(folder, data__eval=[], evaluate__classify=[])
    own = images.train_images(recipe)
    assert len(own.shown) == 80
    assert len({*own.groups.tolist()}) == 40
    assert own.groups[0] == own.groups[1] != own.groups[2]
    assert own.name(3) == "lesions:images/3.png"


def test_our_words_are_different_and_name_what_is_no_skin() -> None:
    words = vocabulary.words(None)
    assert len({*words}) == len(words) > 120
    assert {"hair", "ruler", "ink marking", "immersion gel", "papule", "melanoma", "scalp", "blue"} <= {*words}


def test_a_trained_run_is_fitted_and_named_and_refused_once_it_was_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "lesions", patients=15)
    recipe = two_towers.recipe(tmp_path, data__eval=[], evaluate__classify=[])
    run = tmp_path / "runs" / "two"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(towers.dump(recipe))
    provenances.made(base={"commit": None}).write(run)
    dual = read_model(open_towers(recipe))
    dual.save_pretrained(run / "model")
    for file in two_towers.base("clip").glob("*.json"):  # its tokenizer and pixels
        if not (run / "model" / file.name).exists():
            shutil.copy(file, run / "model")
    assert cli.main(["concepts", "fit", "runs/two", *SMALL]) == 0
    assert cli.main(["concepts", "name", "runs/two"]) == 0
    units = name.read(Path("runs/two"))
    assert units
    embeddings = torch.randn(5, dual.config.projection_dim, generator=torch.Generator().manual_seed(0))
    dictionary = dictionaries.load(Path("runs/two"))
    assert dictionary.without(embeddings, [units[0]["unit"]]).norm(dim=1) == pytest.approx(1)

    with torch.no_grad():
        dual.image_head.projection.weight.mul_(2)
    dual.save_pretrained(run / "model")
    capsys.readouterr()
    assert cli.main(["concepts", "name", "runs/two"]) == 2
    assert "trained anew; fit it with: skinvl concepts fit runs/two" in capsys.readouterr().err


def test_help_lists_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert concepts.main(["--help"]) == 0
    assert concepts.main([]) == 2
    said = capsys.readouterr().out
    assert all(f"  {word} " in said for word in ("fit", "name", "score", "suppress"))
