"""The same questions with changed images and in other words: what is shown, what is asked, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import runs
from skinvl.data import example
from skinvl.data.example import Example, text
from skinvl.data.mixture import Row
from skinvl.evaluate import engine, generate, robustness
from skinvl.evaluate.engine import Transformers
from skinvl.evaluate.robustness import Variant
from skinvl.model.chat import Chat
from skinvl.model.feature_cache import Cache
from skinvl.model.loaded import load_model
from skinvl.model.row import encode_prompt
from skinvl.recipe import recipe
from skinvl.recipe.recipe import Evaluate, Recipe, RecipeError
from skinvl.score import predictions, report, score
from skinvl.score.predictions import Answer

WAYS = ["blank", "rotate", "darken", "paraphrase"]
ASKED = {
    "evaluate__robustness": WAYS,
    "evaluate__paraphrases": {"polite": "Please tell me: {q}", "short": "{q} Be brief."},
    "evaluate__generation": {"max_new_tokens": 8},
    "evaluate__batch_size": 4,
    "evaluate__control_rows": 0,
    "evaluate__metrics": ["tokens", "exact_match"],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(tmp_path: Path, **changes: Any) -> Recipe:
    return runs.make(tmp_path, "qwen2_vl", **{**ASKED, **changes})


def test_every_way_has_answers_of_its_own_the_same_to_the_byte_and_is_scored_beside_the_plain(tmp_path: Path) -> None:
    one, source = made(tmp_path), tmp_path / "drawn"
    runs.source(source, images=3, split="test", text_only=1)
    generate.generate_sets(one, tmp_path / "out")
    folder = tmp_path / "out" / "eval" / "robustness"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("blank", "darken", "paraphrase-polite", "paraphrase-short", "rotate"),
    ]
    _, plain = predictions.read(tmp_path / "out" / "eval" / "answers" / "drawn.jsonl", Answer)
    settings, polite = predictions.read(folder / "paraphrase-polite" / "drawn.jsonl", Answer)
    assert [row.question for row in polite] == [f"Please tell me: {row.question}" for row in plain]
    assert settings["variant"] == {"template": "Please tell me: {q}"}
    settings, blank = predictions.read(folder / "blank" / "drawn.jsonl", Answer)
    assert [row.id for row in blank] == [row.id for row in plain if row.images]  # words alone show no image
    assert settings["variant"] == {"change": "blank", "grey": 128}

    # Another folder, another batch size: not a byte differs.
    again = one.model_copy(update={"evaluate": one.evaluate.model_copy(update={"batch_size": 9})})
    generate.generate_sets(again, tmp_path / "again")
    for path in folder.rglob("drawn.jsonl"):
        other = tmp_path / "again" / path.relative_to(tmp_path / "out")
        assert other.read_bytes() == path.read_bytes()

    (tmp_path / "out" / "recipe.yaml").write_text(recipe.dump(one))
    assert score.main([str(tmp_path / "out"), "--workers", "1", "--resamples", "100"]) == 0
    block = json.loads((tmp_path / "out" / "scores.json").read_text())["sets"]["drawn"]["robustness"]
    assert {way: of["rows"] for way, of in block["ways"].items()} == {
        **dict.fromkeys(("blank", "darken", "rotate"), 9),
        **dict.fromkeys(("paraphrase-polite", "paraphrase-short"), 10),
    }
    assert block["overall"]["token_f1"]["difference"]["n"] == 9
    assert "asked in other ways" in (tmp_path / "out" / "scores.md").read_text()
    assert report.main([str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "every way of asking" in page
    assert "worst of ways: " in page


def test_nothing_is_asked_in_another_way_unless_it_is_asked_for(tmp_path: Path) -> None:
    generate.generate_sets(made(tmp_path, evaluate__robustness=[], evaluate__paraphrases={}), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "eval").iterdir()] == ["answers"]


def test_a_changed_image_reaches_the_model_and_never_a_cached_one(tmp_path: Path) -> None:
    one = made(tmp_path)
    loaded = load_model(one, torch.device("cpu"))
    (first, *_) = example.read(tmp_path / "drawn", "test")
    row = Row(first, tmp_path / "drawn")

    class Refusing(Cache):
        def __init__(self) -> None:
            pass

        def get(self, *_: Any) -> torch.Tensor:
            raise AssertionError("a cached feature was read")

    cached = replace(loaded, collator=replace(loaded.collator, cache=Refusing()))
    asked = list(engine.questions(row))
    with pytest.raises(AssertionError, match="a cached feature"):  # the twin: unchanged images do read it
        next(Transformers(cached, one.evaluate.generation).answers([asked]))
    changed = Transformers(cached, one.evaluate.generation).seeing("blank")
    (answers,) = changed.answers([asked])
    assert answers[0].answer is not None

    # The logits of the changed image are those of a file that holds the changed pixels, and not those of the plain one.
    def logits(chat: Chat, of: Row) -> torch.Tensor:
        collator = replace(loaded.collator, chat=chat)
        batch = collator.pack([encode_prompt(chat, of)])
        with torch.no_grad():
            return loaded.model(**batch.inputs).logits

    turned = tmp_path / "turned"
    (turned / "images").mkdir(parents=True)
    for way in ("rotate", "crop", "darken"):
        seeing = loaded.chat.seeing(way)
        seeing.upright(row.root / first.images[0]).save(turned / first.images[0])
        by_change, by_file = logits(seeing, row), logits(loaded.chat, Row(first, turned))
        torch.testing.assert_close(by_change, by_file, rtol=0, atol=0)
        assert not torch.equal(by_change, logits(loaded.chat, row))
    assert loaded.chat.change is None  # the model's own chat stays


def test_a_template_wraps_the_last_question_alone() -> None:
    turns = (
        text("user", "What is shown?", 1),
        text("assistant", "Eczema."),
        text("user", "Where?", 1),
        text("assistant", "The back."),
    )
    row = Row(Example("1", "s", ("a.png", "b.png"), turns, "g", "test", "CC0-1.0"), Path("/folder"))
    asked = list(engine.questions(row))
    polite = Variant("paraphrase-polite", template="Please: {q} Thank you.").of(asked)
    assert [example.words(question.row.example.messages[-2]) for question in polite] == [
        "Please: What is shown? Thank you.",
        "Please: Where? Thank you.",
    ]
    assert polite[1].row.example.messages[:2] == turns[:2]
    assert [question.key for question in polite] == ["s/1", "s/1#2"]
    assert polite[1].row.example.images == row.example.images
    assert example.words(asked[1].row.example.messages[-2]) == "Where?"  # what was given stays


def test_ways_are_those_of_the_recipe() -> None:
    evaluate = Evaluate(robustness=["crop", "paraphrase"], paraphrases={"a": "{q}?", "b": "So {q}"})
    assert [way.name for way in robustness.variants(evaluate)] == ["crop", "paraphrase-a", "paraphrase-b"]
    assert list(robustness.variants(Evaluate())) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"evaluate__robustness": ["paraphrase"], "evaluate__paraphrases": {}}, "paraphrases go together"),
        ({"evaluate__robustness": ["crop"]}, "paraphrases go together"),
        ({"evaluate__robustness": ["crop", "crop"], "evaluate__paraphrases": {}}, "names a way twice"),
        ({"evaluate__paraphrases": {"a": "Please"}}, r"paraphrases\.a: 'Please'; expected \{q\} in it once"),
        ({"evaluate__robustness": ["blur"]}, r"evaluate\.robustness"),
    ],
)
def test_ways_that_cannot_be_asked_are_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        made(tmp_path, **changes)
