"""`skinvl concepts score` and `suppress`: numbers by hand, what is left out, whose unit is whose, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from helpers import sources, two_towers
from helpers.tiny import picture
from skinvl.data import example
from skinvl.data.example import Example, Facts, text
from skinvl.evaluate import benchmarks, concepts, embed, linear
from skinvl.evaluate.concept import classified, rows, score, terms
from skinvl.evaluate.concept.rows import ConceptError, shown, stated
from skinvl.model import dictionary as dictionaries
from skinvl.model.dictionary import Dictionary, DictionaryError
from skinvl.model.towers_loaded import load_towers
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score.concepts import ABSENT, MISSING, PRESENT

IMAGES, WIDTH = 48, 64
OUT = Path("runs/towers--clip--untrained/concepts")


def hairy(split: str, number: int) -> bool:
    """In training hair lies over brown lesions alone; in the test split over half of either colour."""
    return number // 2 % 2 == 1 and (split == "test" or number % 2 == 0 or number % 24 == 3)


def source(folder: Path) -> Path:
    """Brown (even) and black lesions, half of the patients with hair; of ink nothing is known but in four images."""
    (folder / "images").mkdir(parents=True)
    for split in ("train", "test"):
        rows = []
        for number in range(IMAGES):
            path, colour = f"images/{split}-{number}.png", ("brown", "black")[number % 2]
            picture(number + 100 * (split == "test"), (40, 30)).save(folder / path)
            known = {"present" if hairy(split, number) else "absent": ("hair",)}
            if number < 4:
                known["present"] = (*known.get("present", ()), "ink")
            for kind, answer in (("colour", colour), ("description", f"In {split} number {number} is {colour}.")):
                turns = (text("user", "What is it?", 1), text("assistant", answer))
                facts = Facts(kind=kind, skin_type=("II", "V")[number // 8 % 2], **known)
                id_ = f"{split}-{number}-{kind}"
                rows.append(Example(id_, "drawn", (path,), turns, f"{split}-{number // 4}", split, "CC0-1.0", facts))
        example.write(folder, split, rows)
    return sources.fingerprint(folder, alike=False)


def planted(path: str) -> Any:
    """The embedding of an image: axes 0 and 1 are colours, 2 is hair, 5 and more are its own."""
    split, number = Path(path).stem.split("-")
    vector = np.abs(np.random.default_rng([int(number), split == "test"]).normal(scale=0.1, size=WIDTH))
    vector[int(number) % 2] += 1
    vector[2] = 2 * hairy(split, int(number))
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainRecipe:
    """A recipe over the source; its base is not trained."""
    monkeypatch.chdir(tmp_path)
    source(tmp_path / "lesions")
    spec = {"source": str(tmp_path / "lesions"), "label": "answer", "where": {"kind": "colour"}}
    return two_towers.recipe(tmp_path, evaluate__classify=[spec], evaluate__batch_size=48)


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers that embed as `planted`, and whose word for brown has learned hair."""

    def texts(loaded: Any, written: Sequence[str], *_: Any) -> Any:
        made = np.full((len(written), WIDTH), 0.05, np.float32)
        for row, said in enumerate(written):
            made[row, 0] += "brown" in said
            made[row, 1] += "black" in said
            made[row, 2] += 0.8 * ("brown" in said) + ("hair" in said)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def images(loaded: Any, every: Sequence[tuple[Path, str]], *_: Any) -> Any:
        return np.array([planted(path) for _, path in every], np.float32).reshape(len(every), WIDTH)

    monkeypatch.setattr(embed, "texts", texts)
    monkeypatch.setattr(embed, "images", images)


def dictionary(folder: Path, adapter: str | None = None) -> None:
    """Puts a dictionary whose units are the axes into a run."""
    made = Dictionary(WIDTH, WIDTH, "l1", 1)
    made.directions.data.copy_(torch.eye(WIDTH))
    made.encoder.data.copy_(torch.eye(WIDTH))
    dictionaries.save_dictionary(folder, made, {"tower": {"adapter": adapter}})


def written(name: str = "lesions") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((OUT / "scores" / f"{name}.json").read_text())
    return read


def test_by_prompts_it_is_the_mean_over_templates_of_a_softmax_over_two_cosines(recipe: PretrainRecipe) -> None:
    assert concepts.main(["score", "towers.yaml", "./lesions:test"]) == 0
    record = written()
    towers = load_towers(recipe, torch.device("cpu"))
    model: Any = towers.model
    scale = float(model.scale.value().detach())
    split = stated(Path("lesions"), "test")
    cosines = []
    images = two_towers.images_by_hand(towers, [one.root / one.example.images[0] for one in split.samples])
    for template in terms.TEMPLATES:
        own = [two_towers.text_alone(towers, template.replace("{c}", word)) for word in ("hair", "hairs")]
        reference = two_towers.text_alone(towers, template.replace("{c}", "skin"))
        pair = torch.stack([images @ torch.stack(own).mean(0), images @ reference], dim=1)
        cosines.append(torch.softmax(scale * pair, dim=1)[:, 0])
    hair = record["concepts"][0]
    known = [one.example.facts.present.count("hair") for one in split.samples]
    assert hair["prompts"]["value"] == pytest.approx(roc_auc_score(known, torch.stack(cosines).mean(0)), abs=0.02)
    assert hair["prompts"]["groups"] == IMAGES // 4
    assert (hair["concept"], hair["positives"], hair["negatives"], hair["missing"]) == ("hair", 24, 24, 0)
    assert hair["prevalence"] == 0.5
    ink = record["concepts"][1]
    assert (ink["concept"], ink["prompts"], ink["positives"], ink["missing"]) == ("ink", None, 4, IMAGES - 4)
    assert record["macro"]["prompts"]["concepts"] == 1
    assert record["macro"]["prompts"]["auroc"]["value"] == pytest.approx(hair["prompts"]["value"])
    assert record["settings"]["temperature"] == pytest.approx(1 / scale)
    assert record["settings"]["dictionary"] is None


def test_the_unit_is_chosen_on_another_split(
    recipe: PretrainRecipe, axes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    dictionary(OUT.parent)
    assert concepts.main(["score", "towers.yaml", "./lesions"]) == 0
    hair, ink = written()["concepts"]
    assert (hair["unit"]["unit"], hair["unit"]["by"]) == (2, "labels")
    assert hair["units"]["value"] == hair["prompts"]["value"] == 1
    assert (ink["unit"], ink["units"]) == (None, None)
    assert written()["settings"]["units_chosen_on"] == "train"
    printed = capsys.readouterr().out
    assert "2 by labels" in printed
    assert max(map(len, printed.splitlines()[:5])) <= 80

    # Its name goes before that, unless chance names as well.
    named = {"unit": 7, "name": "Hairs", "margin": 0.2, "null": 0.01}
    record = {"names": [named, {**named, "unit": 8, "margin": 0.9, "null": 0.4}]}
    weights = dictionaries.read_settings(OUT.parent)["weights"]
    (OUT / "names.json").write_text(json.dumps({**record, "dictionary": weights}))
    assert concepts.main(["score", "towers.yaml", "./lesions"]) == 0
    assert written()["concepts"][0]["unit"] == {"unit": 7, "by": "name", "worth": 0.2}


def test_what_a_run_was_trained_on_is_not_scored(recipe: PretrainRecipe, axes: None, tmp_path: Path) -> None:
    trained = recipe.model_copy(update={"init_adapter": str(two_towers.base("clip"))})
    with pytest.raises(ConceptError, match="all 48 samples that state a concept were trained on"):
        score.score_source(trained, tmp_path / "out", "./lesions:train")
    allowed = trained.model_copy(update={"data": trained.data.model_copy(update={"allow_leak": True})})
    score.score_source(allowed, tmp_path / "out", "./lesions:train")
    settings = json.loads((tmp_path / "out/concepts/scores/lesions-train.json").read_text())["settings"]
    assert (settings["leaking"], settings["allow_leak"]) == (48, True)


def test_what_examples_contradict_each_other_in_is_not_known(tmp_path: Path) -> None:
    def row(id_: str, images: tuple[str, ...], **known: tuple[str, ...]) -> Example:
        turns = (text("user", "What is it?", len(images)), text("assistant", "Hair."))
        return Example(id_, "drawn", images, turns, "a", "test", "CC0-1.0", Facts(**known), ("pen",) * (id_ == "4"))

    rows = [
        row("0", ("a.png", "b.png"), present=("hair",)),
        row("1", ("b.png", "a.png"), absent=("hair", "ink")),
        row("2", ("c.png",), present=("hair",)),
        row("3", ("d.png",)),
        row("4", ("e.png",), absent=("hair",)),
    ]
    example.write(tmp_path, "test", rows)
    split = stated(tmp_path, "test")
    assert split.concepts == ("hair", "ink")
    assert split.labels.tolist() == [[MISSING, ABSENT], [PRESENT, MISSING], [ABSENT, MISSING]]
    assert split.conflicts == 1
    assert split.column("ruler").tolist() == [MISSING] * 3
    # A tag of prep is looked for in every row.
    assert shown(split.samples, ["pen"]).tolist() == [ABSENT, ABSENT, PRESENT]
    assert shown(split.samples, ["hair", "pen"]).tolist() == [PRESENT, PRESENT, PRESENT]
    assert shown(split.samples, ["ink"]).tolist() == [MISSING] * 3


def test_a_suppressed_unit_brings_accuracy_back(
    recipe: PretrainRecipe, axes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    dictionary(OUT.parent)
    words = ["suppress", "towers.yaml", "--concept", "hair", "--classify", "lesions-colour", "--draws", "4"]
    assert concepts.main(words) == 0
    record = json.loads((OUT / "suppress/hair--lesions-colour.json").read_text())
    settings = record["settings"]
    assert [unit["unit"] for unit in settings["units"]["hair"]] == [2]
    assert settings["chosen_on"] == "train"
    assert settings["mass"]["matched_on"] == "rows with the artefact"
    assert (len(settings["random"]), settings["mass"]["rows"]) == (4, 24)
    seen, clean = record["parts"]["with"], record["parts"]["without"]
    assert (seen["rows"], clean["rows"]) == (24, 24)
    assert seen["before"]["accuracy"]["value"] < 0.6  # nearly all are called brown
    assert seen["after"]["accuracy"]["value"] == clean["after"]["accuracy"]["value"] == 1
    assert record["skin_type"]["change"]["values"]["V"]["value"] > 0.15
    probe = record["probe"]
    before, after = (probe["parts"]["all"][side]["accuracy"]["value"] for side in ("before", "after"))
    assert (probe["train_rows"], after) == (IMAGES, 1)
    assert before < 1
    assert probe["parts"]["with"]["random"]["balanced_accuracy"]["mean"] < 1
    assert probe["brought_back"]["units"] is None  # no drop of which one could be sure
    assert record["brought_back"]["beyond_random"]["low"] > 0.5
    assert [*record["retrieval"]["lesions"]] == ["image to text", "text to image"]
    tests = {(one["what"], one.get("part"), one["metric"], one["test"]): one for one in record["tests"]}
    assert tests["classes", "with", "accuracy", "McNemar"]["p"] < 0.001
    assert all(("probe", part, "accuracy", "McNemar") in tests for part in ("all", "with", "without"))
    assert all("p_holm" in one for one in record["tests"])
    printed = capsys.readouterr().out.splitlines()
    assert "hair: units 2 (1.00) by labels of train, AUROC" in printed
    assert max(len(line) for line in printed if "balanced" in line and "costs" not in line) <= 80


def test_a_probe_is_fitted_to_each_side_at_the_strength_of_the_first(recipe: PretrainRecipe) -> None:
    (spec,) = recipe.evaluate.classify
    task, train = benchmarks.load(spec), benchmarks.load(spec, "train").samples
    paths = [one.root / one.example.images[0] for one in (*task.samples, *train)]
    whole = {path: planted(path.name) for path in paths}
    only_hair = {path: vector * (np.arange(WIDTH) == 2) for path, vector in whole.items()}
    unread = {**whole, paths[0]: np.full(WIDTH, np.nan)}
    settings = {"set": "lesions-colour", "classes": list(task.classes)}
    strength, sides = classified.by_probe(task, train, [whole, whole, only_hair, unread], settings)
    assert strength == linear.fit(rows.of_samples(train, whole), train, task.classes).strength
    assert sides[0].rows == sides[1].rows
    found = [np.array([row.scores for row in side.rows[1:]]).argmax(1) == side.true[1:] for side in sides]
    assert found[0].mean() > 0.8
    assert 0.4 < found[2].mean() < 0.6  # hair says nothing of the colour in the test split
    assert (sides[3].rows[0].scores, sides[3].rows[0].detail) == (None, "unreadable-image")
    assert found[3].tolist() == found[0].tolist()


def test_what_cannot_be_suppressed_says_what_to_do(recipe: PretrainRecipe, axes: None) -> None:
    def suppress(*words: str) -> None:
        concepts.main(["suppress", "towers.yaml", *words])

    with pytest.raises(DictionaryError, match="skinvl concepts fit"):
        suppress("--concept", "hair", "--classify", "lesions-colour")
    dictionary(OUT.parent)
    with pytest.raises(ConceptError, match=r"no set of evaluate.classify \(it has lesions-colour\)"):
        suppress("--concept", "hair", "--classify", "nothing")
    with pytest.raises(ConceptError, match="--concept ink: no unit is called so"):
        suppress("--concept", "hair,ink", "--classify", "lesions-colour")
    with pytest.raises(ConceptError, match="names none"):
        suppress("--concept", " , ", "--classify", "lesions-colour")
    with pytest.raises(FileNotFoundError, match="no such set"):
        concepts.main(["score", "towers.yaml", "./lesions:validation"])
