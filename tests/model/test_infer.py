"""Answers and likelihoods on a shared prefix are those of each conversation on its own, in Hugging Face's own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import runs, tiny
from skinvl.data.example import Example, text
from skinvl.data.mixture import Row
from skinvl.model import infer
from skinvl.model.base import load_base, read_config
from skinvl.model.chat import UNTRAINED, Chat
from skinvl.model.decode import stop_tokens, stop_tokens_in
from skinvl.model.lengths import sizes
from skinvl.model.loaded import load_model
from skinvl.model.pack import Collator
from skinvl.model.row import EncodedRow, encode_last_answer, encode_prompt, last_answer
from skinvl.recipe.recipe import Generation, Recipe

SHOWN = ("images/train-0.png", "images/train-1.png")
CLASSES = ("melanoma", "melanoma metastasis", "nevus", "a brown lesion with a lighter rim")


def example(question: str, images: tuple[str, ...], answer: str = "?") -> Example:
    turns = (text("user", question, images=len(images)), text("assistant", answer))
    return Example(question, "drawn", images, turns, "g", "test", "CC0-1.0")


QUESTIONS = [
    example("What is the colour of this lesion?", SHOWN[:1]),
    example("What is the colour?", SHOWN[1:]),
    example("Is the border smooth or jagged, and how many lesions are there? Answer briefly.", SHOWN[:1]),
    example("What is the colour of this lesion?", SHOWN[:1]),  # the same again: its branch is one token
    example("Compare the two images.", SHOWN),
    example("How many?", SHOWN[:1]),
]
TEXT_ONLY = [example("What is a lesion?", ()), example("What is a border?", ())]


def asked(chat: Chat, root: Path, example: Example, whole: bool = False) -> EncodedRow:
    return (encode_last_answer if whole else encode_prompt)(chat, Row(example, root))


def loaded(one: Recipe) -> Any:
    path = Path(one.base.location)
    _, family = read_config(path)
    return load_base(path, family, one).eval()


def alone(chat: Chat, one: EncodedRow) -> dict[str, Any]:
    """A prompt as Hugging Face's own model takes it."""
    from skinvl.data.pixels import upright

    ids = torch.tensor([one.encoded.ids])
    images = [[upright(path) for path in one.images]]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **chat.family.batch(chat.processor, ids, images, chat.image_arguments),
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_answers_are_those_of_each_prompt_alone(family: str, tmp_path: Path) -> None:
    one = runs.make(tmp_path, family)
    chat, ours, theirs = runs.chat(one), loaded(one), tiny.model(family)
    said = {}
    for some in (QUESTIONS, TEXT_ONLY):
        prompts = [asked(chat, tmp_path / "drawn", question) for question in some]
        batch = Collator(chat).pack(prompts)
        fewer = batch.ids.numel() < sum(len(prompt.encoded.ids) for prompt in prompts)
        assert fewer or family == "mllama"
        found = infer.generate(ours, chat, batch, Generation(max_new_tokens=12))
        for question, prompt, generated in zip(some, prompts, found, strict=True):
            whole = theirs.generate(
                **alone(chat, prompt), max_new_tokens=12, do_sample=False, eos_token_id=sorted(infer.stops(ours, chat))
            )
            ids = whole[0, len(prompt.encoded.ids) :].tolist()
            assert generated.ids == ids[: len(generated.ids)]
            assert generated.tokens == len(ids)
            assert generated.finish_reason == ("stop" if len(generated.ids) < len(ids) else "length")
            said[question.id, question.images] = generated.ids
    assert said["What is the colour of this lesion?", SHOWN[:1]] != said["What is the colour?", SHOWN[1:]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_likelihoods_are_those_of_each_conversation_alone(family: str, tmp_path: Path) -> None:
    one = runs.make(tmp_path, family)
    chat, ours, theirs = runs.chat(one), loaded(one), tiny.model(family)
    root = tmp_path / "drawn"
    some = [
        asked(chat, root, example(question.id, question.images, name), whole=True)
        for question in (QUESTIONS[0], QUESTIONS[4], QUESTIONS[1])
        for name in CLASSES
    ]
    batch = Collator(chat).pack(some)
    found = infer.likelihoods(ours, batch)
    expected = []
    for conversation in some:
        with torch.no_grad():
            logits = theirs(**alone(chat, conversation)).logits[0].log_softmax(-1)
        labels = torch.tensor(conversation.encoded.labels)
        places = (labels != UNTRAINED).nonzero()[:, 0]
        expected.append(float(logits[places - 1, labels[places]].sum()))
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(one, 3) for one in found}) == len(found)  # another image, another likelihood


@pytest.mark.parametrize("family", tiny.SOME)
def test_what_branches_share_decides(family: str, tmp_path: Path) -> None:
    """The twins: another image under the same words, and positions that are off by one."""
    one = runs.make(tmp_path, family)
    chat, ours = runs.chat(one), loaded(one)
    root = tmp_path / "drawn"
    two = (QUESTIONS[0], QUESTIONS[2])

    def said(images: tuple[str, ...]) -> list[list[int]]:
        batch = Collator(chat).pack([asked(chat, root, replace(one, images=images)) for one in two])
        return [answer.ids for answer in infer.generate(ours, chat, batch, Generation(max_new_tokens=12))]

    def likely(shift: int) -> list[float]:
        batch = Collator(chat).pack([asked(chat, root, one, whole=True) for one in two])
        place = batch.places[1]
        own = slice((place.start + place.end) // 2, place.end)  # a whole row would stand as it stood
        batch.inputs["position_ids"][..., place.row, own] += shift
        return infer.likelihoods(ours, batch)

    assert said(SHOWN[:1]) != said(SHOWN[1:])
    right, shifted = likely(0), likely(40)
    assert shifted[0] == pytest.approx(right[0], abs=1e-4)
    assert abs(shifted[1] - right[1]) > 1e-3


def test_a_prefix_of_another_branch_is_not_seen(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat, ours = runs.chat(one), loaded(one)
    few = [asked(chat, tmp_path / "drawn", question) for question in (QUESTIONS[0], QUESTIONS[5])]
    more = [*few, asked(chat, tmp_path / "drawn", QUESTIONS[2])]
    settings = Generation(max_new_tokens=12)
    first = infer.generate(ours, chat, Collator(chat).pack(few), settings)
    second = infer.generate(ours, chat, Collator(chat).pack(more), settings)
    assert second[:2] == first


def test_what_is_drawn_depends_on_its_own_seed_alone(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat, ours = runs.chat(one), loaded(one)
    settings = Generation(max_new_tokens=8, do_sample=True, temperature=1.5, top_p=0.95)
    prompts = [asked(chat, tmp_path / "drawn", question) for question in QUESTIONS[:3]]

    def drawn(places: list[int], seeds: list[int]) -> list[list[int]]:
        batch = Collator(chat).pack([prompts[place] for place in places])
        return [answer.ids for answer in infer.generate(ours, chat, batch, settings, seeds)]

    together = drawn([0, 1, 2], [7, 8, 9])
    assert drawn([2, 0], [9, 7]) == [together[2], together[0]]
    assert drawn([0], [1]) != [together[0]]


def test_only_the_last_answer_is_weighed(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat = runs.chat(one)
    turns = example("How many?", SHOWN[:1], "One.").messages
    twice = replace(QUESTIONS[0], messages=(*turns, text("user", "Which colour?"), text("assistant", "Brown.")))
    encoded = last_answer(chat.encode(twice, sizes(tmp_path / "drawn", twice)))
    trained = [label for label in encoded.labels if label != UNTRAINED]
    assert chat.tokenizer.decode(trained) == "Brown." + chat.family.turn_close
    assert len(encoded.labels) == len(encoded.ids)


@pytest.mark.parametrize("family", ["mllama", "qwen3_vl", pytest.param("qwen3_5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["bf16", "nf4"])
def test_a_run_is_asked_in_its_own_precision(family: str, kind: str, tmp_path: Path) -> None:
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else None
    one = runs.make(tmp_path, family, train__bf16=kind == "bf16", quantization=nf4)
    asking = load_model(one, torch.device("cpu"))
    chat = asking.chat
    assert next(asking.model.parameters()).dtype == (torch.bfloat16 if kind == "bf16" else torch.float32)
    whole = [asked(chat, tmp_path / "drawn", example("Which?", SHOWN[:1], name), whole=True) for name in CLASSES]
    prompts = [asked(chat, tmp_path / "drawn", question) for question in QUESTIONS[:3]]
    with asking.autocast():
        shared = infer.likelihoods(asking.model, asking.collator.pack(whole))
        apart = [infer.likelihoods(asking.model, asking.collator.pack([one]))[0] for one in whole]
        said = infer.generate(asking.model, chat, asking.collator.pack(prompts), Generation(max_new_tokens=3))
    assert shared == pytest.approx(apart, rel=2e-2 if kind == "bf16" else 1e-5)
    assert all(answer.tokens <= 3 for answer in said)


def test_an_answer_ends_at_what_the_base_ends_at(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    chat, ours = runs.chat(one), loaded(one)
    batch = Collator(chat).pack([asked(chat, tmp_path / "drawn", question) for question in QUESTIONS[:3]])
    settings = Generation(max_new_tokens=8)
    free = infer.generate(ours, chat, batch, settings)
    end = free[1].ids[2]
    ours.generation_config.eos_token_id = [end]
    cut = infer.generate(ours, chat, batch, settings)
    first = free[1].ids.index(end)
    assert cut[1] == infer.Generated(free[1].ids[:first], "stop", first + 1)
    close = chat.tokenizer.convert_tokens_to_ids(chat.family.turn_close)
    assert infer.stops(ours, chat) == {close, end}
    assert [stop_tokens(chat, eos) for eos in (None, close, [end])] == [{close}, {close}, {close, end}]
    assert stop_tokens_in(tmp_path, chat) == {close}
    ours.generation_config.save_pretrained(tmp_path)
    assert stop_tokens_in(tmp_path, chat) == {close, end}
    for before, after in zip(free, cut, strict=True):
        assert after.ids == before.ids[: len(after.ids)]
