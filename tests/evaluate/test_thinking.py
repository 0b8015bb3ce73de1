"""A model that was trained with thoughts is asked as it was trained, and what it thinks is kept from its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import runs
from skinvl.data import mixture
from skinvl.data.mixture import Row
from skinvl.evaluate import benchmarks, classify, engine
from skinvl.evaluate.engine import Transformers
from skinvl.model import infer
from skinvl.model.attention import Span
from skinvl.model.chat import UNTRAINED
from skinvl.model.infer import Generated
from skinvl.model.loaded import LoadedModel, load_model
from skinvl.model.row import EncodedRow
from skinvl.recipe.recipe import ClassSpec, Generation
from skinvl.serve.dialogue import Dialogue
from skinvl.train.image_control import image_control

THOUGHT = "It is brown all over.\n\nSo it is brown."


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("thinking")
    made = runs.make(folder, "qwen3_5", data__thoughts="trained", evaluate__generation={"max_new_tokens": 64})
    return load_model(made, torch.device("cpu"))


def rows(thinking: LoadedModel) -> list[Row]:
    (of_set,) = mixture.load(thinking.recipe.data).evaluation.values()
    return [replace(row, example=replace(row.example, thoughts=(THOUGHT,))) for row in of_set]


def ids(thinking: LoadedModel, said: str) -> list[int]:
    encoded: list[int] = thinking.chat.tokenizer(said, add_special_tokens=False)["input_ids"]
    return encoded


def whole_of(chat: Any, batch: Any, place: Span) -> str:
    """The text of a conversation of a batch, with the prefix that it shares."""
    row = batch.ids[place.row]
    text: str = chat.tokenizer.decode(torch.cat([row[slice(*place.prefix)], row[place.start : place.end]]))
    return text


def saying(thinking: LoadedModel, monkeypatch: pytest.MonkeyPatch, said: str) -> list[str]:
    """Has the model say something; the prompts that it is then asked, as text."""
    prompts: list[str] = []

    def generate(model: Any, chat: Any, batch: Any, *settings: Any) -> list[Generated]:
        for place in batch.places:
            prompts.append(whole_of(chat, batch, place))
        return [Generated(ids(thinking, said), "stop", 9) for _ in batch.places]

    monkeypatch.setattr(infer, "generate", generate)
    return prompts


def test_an_answer_is_recorded_without_its_thought(thinking: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = saying(thinking, monkeypatch, f"{THOUGHT}\n</think>\n\nBrown.")
    asked = [question for row in rows(thinking)[:2] for question in engine.questions(row)]
    (answers,) = Transformers(thinking, Generation()).answers([asked])
    assert [(row.thought, row.answer) for row in answers] == [(THOUGHT, "Brown.")] * 2
    assert all(prompt.endswith("<|im_start|>assistant\n<think>\n") for prompt in prompts)
    whole = thinking.chat.encode(asked[0].row.example, [(84, 112)])
    assert thinking.chat.tokenizer.decode(whole.ids).startswith(prompts[0].partition("<|vision_start|>")[0])
    saying(thinking, monkeypatch, f"{THOUGHT[:9]}")  # which does not come to an end
    (answers,) = Transformers(thinking, Generation()).answers([asked[:1]])
    assert (answers[0].thought, answers[0].answer) == (THOUGHT[:9].strip(), "")


def test_classes_are_named_and_asked_for_without_a_thought(
    thinking: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = thinking.recipe.data.eval[0].source
    spec = ClassSpec(source=source, split="test", label="answer", where={"kind": "colour"}, classes=["Brown.", "Red."])
    task = benchmarks.load(spec, "test")
    samples = [
        replace(sample, example=replace(sample.example, thoughts=(THOUGHT,)))
        for sample in task.samples
        if sample.label is not None
    ]
    chat = thinking.chat
    batch = classify.ClassCollator(thinking.collator, task, prompted=True)(samples[:1])
    assert batch.classes is not None
    for place, name in zip(batch.classes.places, task.classes, strict=True):
        targets = batch.classes.targets[place.row, place.start : place.end]
        assert chat.tokenizer.decode(targets[targets != UNTRAINED]) == f"{name}<|im_end|>"
        shown = whole_of(chat, batch.classes, place)
        assert f"<|im_start|>assistant\n<think>\n\n</think>\n\n{name}<|im_end|>" in shown
        assert THOUGHT not in shown
    prompts = saying(thinking, monkeypatch, "Brown.")
    monkeypatch.setattr(infer, "likelihoods", lambda model, batch: [0.0] * len(batch.places))
    ((record,),) = classify.classified_batches(thinking, task, [batch])
    assert record.answer == "Brown."  # and no thought without an end
    assert prompts[0].endswith("<think>\n\n</think>\n\n")


def test_a_conversation_streams_answers_alone_and_goes_on_after_the_thought(
    thinking: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: Iterator[int] = iter(())
    monkeypatch.setattr(infer, "choose", lambda logits, settings, generators: [next(said)])
    dialogue = Dialogue(thinking, Generation(max_new_tokens=64))
    prompts: list[Sequence[int]] = []
    read = dialogue._read

    def reading(prompt: EncodedRow) -> tuple[torch.Tensor, int]:
        prompts.append(prompt.encoded.ids)
        return read(prompt)

    monkeypatch.setattr(dialogue, "_read", reading)
    for question in ("What is the colour?", "Is it raised?"):
        said = iter(ids(thinking, f"{THOUGHT}\n</think>\n\nBrown, and flat.<|im_end|>"))
        pieces = list(dialogue.ask(question))
        assert "".join(pieces) == "Brown, and flat."
        assert dialogue.reply is not None
        assert (dialogue.reply.answer, dialogue.reply.thought) == ("Brown, and flat.", THOUGHT)
    first, second = map(thinking.chat.tokenizer.decode, prompts)
    assert second.startswith(f"{first}{THOUGHT}\n</think>\n\nBrown, and flat.<|im_end|>\n")  # as it would be trained
    assert second.endswith("<think>\n")


def test_the_control_counts_no_tokens_of_thoughts(thinking: LoadedModel) -> None:
    seen: list[Row] = []

    class Sums:
        args = SimpleNamespace(seed=0)

        def sums(self, rows: Sequence[Row]) -> torch.Tensor:
            seen.extend(rows)
            return torch.ones(4)

    trainer: Any = Sums()
    control = image_control(trainer, rows(thinking))
    assert control is not None
    assert len(seen) == 2 * control.questions > 0
    assert all(row.example.thoughts == () for row in seen)


def test_the_prompts_of_a_base_without_thoughts_are_what_they_were(tmp_path: Path) -> None:
    plain = runs.make(tmp_path, "qwen3_5")
    chat = runs.chat(plain)
    (of_set,) = mixture.load(plain.data).evaluation.values()
    row = of_set[0].example
    thought = replace(row, thoughts=(THOUGHT,))
    assert chat.encode(thought, [(84, 112)]) == chat.encode(row, [(84, 112)])
    assert chat.prompt(thought, [(84, 112)]) == chat.prompt(row, [(84, 112)], thought=False)
