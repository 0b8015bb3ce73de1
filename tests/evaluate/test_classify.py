"""Classes weighed by likelihood and by asking: the same as each alone, for prepared sources and released CSV files."""

from __future__ import annotations

import ast
import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForImageTextToText

from helpers import runs, sources, tiny
from skinvl.data import example, mixture
from skinvl.data.example import Example, Facts, text
from skinvl.evaluate import benchmarks, classify, contamination
from skinvl.model import families, infer
from skinvl.recipe import run
from skinvl.recipe.recipe import ClassSpec, Recipe, SourceSpec
from skinvl.score import predictions, score
from skinvl.score.predictions import Classified, PredictionError, PredictionJournal
from skinvl.train import sft

DIAGNOSES = ("melanoma", "nevus", "basal cell carcinoma")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(folder: Path, images: int = 6) -> Path:
    """A prepared source whose images have a diagnosis, two questions each; that of the last is no class."""
    (folder / "images").mkdir(parents=True)
    for split in ("test", "validation"):
        some = []
        for index in range(images):
            name = f"images/{split}-{index}.png"
            tiny.picture(index + 50 * (split == "validation")).save(folder / name)
            facts = Facts(diagnosis="scar" if index == images - 1 else DIAGNOSES[index % 3])
            for number, question in enumerate(("What is it?", "Which colour?")):
                turns = (text("user", question, 1), text("assistant", "Brown."))
                id_ = f"{split}-{index}-{number}"
                some.append(Example(id_, "lesions", (name,), turns, name, split, "CC0-1.0", facts))
        example.write(folder, split, some)
    return sources.fingerprint(folder, alike=False)


def made(tmp_path: Path, family: str = "qwen2_vl", **spec: Any) -> Recipe:
    given = {"source": str(tmp_path / "lesions"), "classes": list(DIAGNOSES), **spec}
    return runs.make(tmp_path, family, evaluate__classify=[given], evaluate__batch_size=6)


def read(out: Path, name: str = "lesions") -> tuple[dict[str, Any], list[Classified]]:
    return predictions.read(out / "eval" / "classes" / f"{name}.jsonl", Classified)


def alone(family: str, one: Recipe, image: Path | None, question: str, name: str) -> float:
    """log p(name, end of turn | image, question) by Hugging Face's own model, one conversation at a time."""
    from skinvl.data.pixels import upright
    from skinvl.model.lengths import sizes

    chat = runs.chat(one)
    images = (image.name,) if image else ()
    turns = (text("user", question, len(images)), text("assistant", name))
    asked = Example("x", "x", images, turns, "x", "test", "CC0-1.0")
    encoded = chat.encode(asked, sizes(image.parent, asked) if image else ())
    ids = torch.tensor([encoded.ids])
    pictures = [[upright(image)]] if image else [[]]
    model = AutoModelForImageTextToText.from_pretrained(tiny.base(family), dtype=torch.float32).eval()
    families.load(family).prepare(model)
    with torch.no_grad():
        logits = model(input_ids=ids, **chat.family.batch(chat.processor, ids, pictures, chat.image_arguments)).logits[
            0
        ]
    places = [place for place, label in enumerate(encoded.labels) if label != -100]
    shares = log_softmax(logits.double(), -1)
    return sum(float(shares[place - 1, encoded.ids[place]]) for place in places)


@pytest.mark.parametrize("family", ["mllama", "qwen2_5_vl", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_scores_are_the_likelihoods_of_each_class_alone(tmp_path: Path, family: str) -> None:
    source(tmp_path / "lesions")
    one = made(tmp_path, family, validation="validation")
    classify.classify_sets(one, tmp_path / "out")
    settings, rows = read(tmp_path / "out")
    assert settings["classes"] == list(DIAGNOSES)
    assert settings["malignant"] == [True, False, True]
    assert [row.label for row in rows] == [*(DIAGNOSES * 2)[:5], None]  # one row an image, whatever is asked of it
    assert rows[-1].scores is None
    assert "scar" in rows[-1].detail
    for row in (rows[0], rows[1], rows[4]):
        assert row.scores is not None
        expected = [alone(family, one, Path(row.images[0]), settings["question"], name) for name in DIAGNOSES]
        assert row.scores == pytest.approx(expected, abs=1e-4)
        assert row.answer is not None
        assert row.outcome in ("matched", "none", "ambiguous")
    assert settings["prior"] == pytest.approx(
        [alone(family, one, None, settings["question"], name) for name in DIAGNOSES], abs=1e-4
    )
    tokenizer = runs.chat(one).tokenizer
    assert settings["label_tokens"] == [
        len(tokenizer(name, add_special_tokens=False)["input_ids"]) + 1 for name in DIAGNOSES
    ]
    assert rows[0].scores != rows[3].scores  # another image of the same class
    other, validation = read(tmp_path / "out", "lesions.validation")
    assert other["split"] == "validation"
    assert len(validation) == 6
    assert validation[0].images != rows[0].images


def test_an_answer_may_be_the_class_of_its_own_question(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    spec = {"source": str(tmp_path / "drawn"), "label": "answer", "where": {"kind": "colour"}}
    one = runs.make(tmp_path, "qwen2_vl", evaluate__classify=[spec], evaluate__prompted=False)
    classify.classify_sets(one, tmp_path / "out")
    settings, rows = read(tmp_path / "out", "drawn-colour")
    asked = example.read(tmp_path / "drawn", "test")
    assert [row.id for row in rows] == [one.id for one in asked]
    assert [row.label + "." for row in rows if row.label] == [example.words(one.messages[-1]) for one in asked]
    assert settings["prior"] is None  # every row has a question of its own
    assert rows[0].answer is None
    assert rows[0].outcome is None
    assert rows[0].scores is not None
    place = settings["classes"].index("Two")
    image = tmp_path / "drawn" / asked[0].images[0]
    expected = alone("qwen2_vl", one, image, "What is the colour?", "Two")
    assert rows[0].scores[place] == pytest.approx(expected, abs=1e-4)


def test_a_released_csv_is_read_as_it_is(tmp_path: Path, shared: Path) -> None:
    released = shared / "mm_skin" / "classification" / "HAM10000_test.csv"
    with released.open(newline="") as file:
        few = list(csv.DictReader(file))[:3]
    for number, row in enumerate(few):  # the images of all others are not there
        path = tmp_path / "raw" / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(number).save(path, format="JPEG")
    spec = {"source": str(released), "images": str(tmp_path / "raw")}
    one = runs.make(tmp_path, "qwen2_vl", evaluate__classify=[spec], evaluate__batch_size=64)
    classify.classify_sets(one, tmp_path / "out")
    settings, rows = read(tmp_path / "out", "HAM10000_test")
    assert len(rows) == 1511
    assert settings["benchmark"] == "ham10000"
    assert len(settings["classes"]) == 7
    weighed = [row for row in rows if row.scores is not None]
    assert [[row.label] for row in weighed] == [ast.literal_eval(row["categories"]) for row in few]
    assert all(row.detail.startswith("missing-image") for row in rows if row.scores is None)
    assert all(math.isfinite(score) for row in weighed for score in row.scores or ())


def test_what_was_stopped_goes_on_and_weighs_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(tmp_path / "lesions")
    one = made(tmp_path)
    classify.classify_sets(one, tmp_path / "whole")
    whole = (tmp_path / "whole" / "eval" / "classes" / "lesions.jsonl").read_bytes()
    written = 0
    write = PredictionJournal.write

    def stopping(self: PredictionJournal, rows: Any, rank: int) -> None:
        nonlocal written
        if written == 1:
            raise KeyboardInterrupt
        written += 1
        write(self, rows, rank)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionJournal, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            classify.classify_sets(one, tmp_path / "cut")
    weighed = infer.likelihoods
    counted: list[int] = []

    def counting(model: Any, batch: Any) -> list[float]:
        counted.append(len(batch.places))
        return weighed(model, batch)

    monkeypatch.setattr(infer, "likelihoods", counting)
    classify.classify_sets(one, tmp_path / "cut")
    assert (tmp_path / "cut" / "eval" / "classes" / "lesions.jsonl").read_bytes() == whole
    assert (
        sum(counted) == 3 * 3
    )  # five of six rows can be weighed, two of them were, and the prior is not weighed again
    with pytest.raises(PredictionError, match="classes"):
        classify.classify_sets(made(tmp_path, classes=["melanoma", "nevus"]), tmp_path / "cut")


def test_an_image_that_breaks_off_refuses_its_own_row(tmp_path: Path) -> None:
    folder = source(tmp_path / "lesions")
    cut = folder / "images" / "test-1.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    for prompted in (True, False):
        one = made(tmp_path)
        one = one.model_copy(update={"evaluate": one.evaluate.model_copy(update={"prompted": prompted})})
        classify.classify_sets(one, tmp_path / f"out-{prompted}")
        _, rows = read(tmp_path / f"out-{prompted}")
        assert [row.scores is None for row in rows] == [False, True, False, False, False, True]
        assert rows[1].detail.startswith("unreadable-image")


def test_what_was_trained_on_is_not_scored(tmp_path: Path) -> None:
    """A released CSV file by its images' bytes or archive ids, a prepared source by its groups too."""
    folder = source(tmp_path / "lesions")
    one = made(tmp_path, split="validation")
    known = folder / "images" / "validation-1.png"
    other = folder / "images" / "validation-4.png"
    train = [
        replace(row, example=replace(row.example, images=("images/test-0.png",), group=row.example.group))
        for row in mixture.rows(SourceSpec(source=str(folder), split="test"))
        if row.example.id == "test-0-0"
    ]
    samples = benchmarks.load(one.evaluate.classify[0]).samples
    assert contamination.without(samples, train) == samples
    same = contamination.without(
        samples, [replace(train[0], example=replace(train[0].example, group=samples[2].example.group))]
    )
    assert [sample.label is None for sample in same] == [False, False, True, False, False, True]
    assert same[2].detail == "trained-on: its group is that of lesions/test-0-0"
    shutil.copy(known, folder / "images" / "test-0.png")  # the same bytes under another name
    sources.fingerprint(folder, alike=False)
    found = contamination.without(samples, train)
    assert [sample.label is None for sample in found] == [False, True, False, False, False, True]
    assert found[1].detail == "trained-on: its sha256 is that of lesions/test-0-0"
    table = tmp_path / "ISIC2019_test.csv"
    table.write_text(f"image,atributes,categories\n{known.name},[],['Nevus']\n{other.name},[],['Melanoma']\n")
    csv_samples = benchmarks.load(ClassSpec(source=str(table), images=str(folder / "images"))).samples
    found = contamination.without(csv_samples, train)
    assert [sample.label for sample in found] == [None, "Melanoma"]
    assert found[0].detail.startswith("trained-on: it shows the image")


def test_a_run_is_not_scored_on_what_it_was_trained_on(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", evaluate__prompted=False)
    sft.train(one)
    path = run.folder(one)

    def asked(split: str) -> str:
        return f"evaluate.classify=[{{source: {tmp_path / 'drawn'}, split: {split}, label: answer}}]"

    for split, shared in (("test", 0), ("train", 24)):
        classify.classify_sets(*run.evaluated(str(path), [asked(split)]))
        name = "drawn" if split == "test" else "drawn-train"
        settings, rows = read(path, name)
        assert settings["leaking"] == shared
        assert sum(row.detail.startswith("trained-on: its group") for row in rows) == shared
        assert sum(row.scores is None for row in rows) == shared
    allowed = run.evaluated(str(path), [asked("train"), "data.allow_leak=true"])
    shutil.rmtree(path / "eval")
    classify.classify_sets(*allowed)
    settings, rows = read(path, "drawn-train")
    assert (settings["leaking"], settings["allow_leak"]) == (24, True)
    assert all(row.scores is not None for row in rows)


def test_nothing_to_classify_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(classify.ClassifyError, match=r"evaluate\.classify: names no set"):
        classify.classify_sets(runs.make(tmp_path, "qwen2_vl"), tmp_path / "out")


def test_the_prompt_lists_the_classes_and_its_answer_is_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(tmp_path / "lesions")
    one = made(tmp_path)
    prompts = []
    generate = infer.generate

    def said(model: Any, chat: Any, batch: Any, settings: Any, seeds: Any = ()) -> list[infer.Generated]:
        for place in batch.places:
            row = batch.ids[place.row]
            prompts.append(chat.tokenizer.decode([*row[slice(*place.prefix)], *row[place.start : place.end]]))
        ids = chat.tokenizer("It is not a nevus, but a basal cell carcinoma.", add_special_tokens=False)["input_ids"]
        return [replace(one, ids=ids) for one in generate(model, chat, batch, settings)]

    monkeypatch.setattr(infer, "generate", said)
    classify.classify_sets(one, tmp_path / "out")
    _, rows = read(tmp_path / "out")
    assert all("Answer with one of these: melanoma; nevus; basal cell carcinoma." in prompt for prompt in prompts)
    assert [(row.outcome, row.choice) for row in rows[:-1]] == [("matched", "basal cell carcinoma")] * 5
    settings = json.loads((tmp_path / "out" / "eval" / "classes" / "lesions.json").read_text())
    assert settings["prompted"] is True


def test_a_blind_set_is_weighed_like_any_other_and_has_no_label(tmp_path: Path) -> None:
    folder = source(tmp_path / "lesions", 4)
    known = example.read(folder, "test")
    example.write(folder, "test", [replace(row, facts=Facts()) for row in known])
    one = made(tmp_path, blind=True)
    classify.classify_sets(one, tmp_path / "out")
    settings, rows = read(tmp_path / "out")
    assert [(row.label, row.detail) for row in rows] == [(None, "its diagnosis is not known")] * 4
    for row, name in zip(rows, DIAGNOSES, strict=False):
        expected = alone("qwen2_vl", one, Path(row.images[0]), settings["question"], name)
        assert row.scores is not None
        assert row.scores[DIAGNOSES.index(name)] == pytest.approx(expected, abs=1e-4)
    # Scoring such a run says that nothing can be scored, and does not stop.
    assert score.main([str(tmp_path / "out"), "--resamples", "100"]) == 0
    block = json.loads((tmp_path / "out" / "scores.json").read_text())["sets"]["lesions"]["classes"]
    assert (block["rows"], block["unscored"]) == (4, 4)
