"""Gemma 4: soft-token budgets, templates with and without an empty thought, windows that look ahead, shared keys.

Settings are those that the published configs are described to have; no config of its was at hand: patches of 16 px, 3
x 3 of them a token. The templates of E2B are those that TRL ships, as published; that of 31B lies in the shared data.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma4ImageProcessor
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextAttention

from helpers import runs, tiny
from skinvl.data.example import Example, text
from skinvl.data.mixture import Row
from skinvl.model import adapter, attention, families
from skinvl.model.base import blank_model, logits
from skinvl.model.chat import UNTRAINED, Chat
from skinvl.model.families import ShapeError
from skinvl.model.families.gemma4 import BUDGETS, NO_THOUGHT
from skinvl.model.pack import Collator
from skinvl.model.row import encode_row

GEMMA = families.load("gemma4")
SMALL = [str(tiny.TRL / f"gemma4{version}.jinja") for version in ("", "_v2", "_v3", "_v4", "_v5")]
LARGE = ["gemma4/google-gemma-4-31B-it.jinja", "gemma4/google-gemma-4-31B-it-interleaved.jinja"]
TURNS = (
    text("user", "What is the colour?", 1),
    text("assistant", "Brown."),
    text("user", "Is it raised?"),
    text("assistant", "No, it is flat."),
)
ONE = Example("1", "s", ("0.png",), TURNS, "g", "train", "CC0-1.0")
pytestmark = pytest.mark.filterwarnings("ignore:data.image_tokens")


def published() -> Any:
    """The processor at the published settings, on the tiny base's tokenizer."""
    made: Any = tiny.processor("gemma4")
    made.image_processor = Gemma4ImageProcessor()
    return made


# sizes, pixels and ids


def test_sizes_are_those_of_the_published_processor_whatever_the_image_and_the_budget() -> None:
    processor, draw = published(), random.Random(7)
    sizes = [(draw.randint(1, 4000), draw.choice((draw.randint(1, 4000), draw.randint(1, 60)))) for _ in range(250)]
    seen: set[int] = set()
    for budget in BUDGETS:
        arguments = GEMMA.image_arguments(processor, budget)
        assert arguments == {"max_soft_tokens": budget}
        for size in sizes:
            try:
                picture = GEMMA.picture(processor, size, arguments)
            except ShapeError:
                assert max(size) > budget * min(size)
                continue
            (theirs,) = processor._get_num_multimodal_tokens([size], **arguments)["num_image_tokens"]
            assert picture.text_tokens == theirs <= budget
            seen.add(theirs)
    assert len(seen) > 100


def test_the_budget_is_the_largest_that_the_tokens_reach_and_never_less_than_the_smallest() -> None:
    processor = published()
    arguments = {n: GEMMA.image_arguments(processor, n)["max_soft_tokens"] for n in (70, 139, 140, 512, 1119, 5000)}
    assert arguments == {70: 70, 139: 70, 140: 140, 512: 280, 1119: 560, 5000: 1120}
    with pytest.warns(UserWarning, match=r"data\.image_tokens=16: the smallest budget of gemma4 is 70"):
        assert GEMMA.image_arguments(processor, 16) == {"max_soft_tokens": 70}


def test_what_is_too_elongated_is_refused() -> None:
    with pytest.raises(ShapeError, match="9000 x 1 px; 70 tokens in a row would not be as elongated"):
        GEMMA.picture(published(), (1, 9000), {"max_soft_tokens": 70})


def test_ids_and_pixels_are_those_of_the_published_processor() -> None:
    processor = published()
    chat = Chat(processor, GEMMA, 140, 4096)
    for number, size in enumerate([(448, 448), (900, 500), (60, 700), (1500, 1499), (5, 9)]):
        image = tiny.picture(number, size)
        encoded = chat.encode(ONE, [size])
        parts = [{"type": "image"}, {"type": "text", "text": "What is the colour?"}]
        asked = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        theirs = processor(
            text=[asked], images=[[image]], add_special_tokens=False, return_tensors="pt", **chat.image_arguments
        )
        ids = theirs["input_ids"][0].tolist()
        assert encoded.ids[: len(ids)] == ids
        ours = GEMMA.batch(processor, theirs["input_ids"], [[image]], chat.image_arguments)
        patches = ours["pixel_values"].shape[1]
        assert patches == encoded.pictures[0].vision_tokens
        for name in ("pixel_values", "image_position_ids"):  # without the padding to the budget
            assert torch.equal(ours[name], theirs[name][:, :patches])
        assert (theirs["image_position_ids"][:, patches:] == -1).all()
        assert torch.equal(ours["mm_token_type_ids"], theirs["mm_token_type_ids"])


# templates


@pytest.mark.parametrize("file", SMALL + LARGE)
def test_an_answer_is_trained_behind_what_its_question_is_asked_with(shared: Path, file: str) -> None:
    processor: Any = tiny.processor("gemma4")
    processor.chat_template = (shared / "chat_templates" / file).read_text(encoding="utf-8")
    template = processor.chat_template
    asked = processor.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, enable_thinking=False
    )
    chat = Chat(processor, GEMMA, 70, 512)
    empty = NO_THOUGHT if file in LARGE else ""
    assert chat.render([text("user", "Q")], generation=True) == asked
    assert asked.endswith("<|turn>model\n" + empty)
    encoded = chat.encode(ONE, [(112, 112)])
    plain = [
        {"role": turn["role"], "content": [{k: v for k, v in part.items() if v} for part in turn["content"]]}
        for turn in TURNS
    ]
    theirs = processor.tokenizer.apply_chat_template(plain, chat_template=template, tokenize=False)
    assert theirs.count("<|turn>model\n") == 2
    assert chat.render(TURNS) == theirs.replace("<|turn>model\n", f"<|turn>model\n{empty}")
    trained = [id_ for id_, label in zip(encoded.ids, encoded.labels, strict=True) if label != UNTRAINED]
    assert chat.tokenizer.decode(trained) == "Brown.<turn|>No, it is flat.<turn|>"
    prompt = chat.prompt(ONE, [(112, 112)])
    assert encoded.ids[: len(prompt.ids)] == prompt.ids

    # Settled once, it stays as it is, and thoughts can be switched on and off.
    off, on = GEMMA.template(template), GEMMA.template(template, True)
    assert off == chat.template != template
    assert GEMMA.template(off) == GEMMA.template(on) == off
    assert GEMMA.template(off, True) == GEMMA.template(on, True) == on


def test_the_tiny_template_writes_what_the_published_one_of_its_kind_does(shared: Path) -> None:
    theirs = Chat(tiny.real_processor(shared, "gemma4"), GEMMA, 70, 512)
    ours = Chat(tiny.processor("gemma4"), GEMMA, 70, 512)
    system = (text("system", "Be brief."), *TURNS)
    for turns in (TURNS, system, TURNS[:3], TURNS[:1]):
        assert ours.render(turns) == theirs.render(turns)
    assert ours.render(TURNS[:3], generation=True) == theirs.render(TURNS[:3], generation=True)


# the model


def model_of(bidirectional: str | None) -> Any:
    """The tiny base, its images' tokens seeing one another or not."""
    model = tiny.model("gemma4", prepared=False)
    model.config.text_config.use_bidirectional_attention = bidirectional
    return model


def ahead(model: Any) -> list[bool]:
    """Which attention layers look ahead within an image."""
    return [module.looks_ahead for module in model.modules() if isinstance(module, Gemma4TextAttention)]


@pytest.mark.parametrize(("bidirectional", "expected"), [("vision", [True, False] * 2), (None, [False] * 4)])
def test_spans_see_what_the_bare_model_lets_them_see(
    tmp_path: Path, bidirectional: str | None, expected: list[bool]
) -> None:
    """Both layouts of the published sizes; twins look ahead in every layer, or in none."""
    path = tmp_path / "0.png"
    tiny.picture(1, (112, 112)).save(path)
    model, chat = model_of(bidirectional), Chat(tiny.processor("gemma4"), GEMMA, 70, 512)
    batch = Collator(chat).pack([encode_row(chat, Row(ONE, tmp_path))])
    where = torch.ones_like(batch.ids, dtype=torch.bool)
    inputs = {name: value for name, value in batch.inputs.items() if name != "spans"}
    with torch.no_grad():
        bare = model(**inputs).logits[0]
        attention.use(model, "sdpa")
        GEMMA.prepare(model)
        assert ahead(model) == expected
        assert torch.allclose(logits(model, batch.inputs, where), bare, atol=1e-4)
        for wrong in (True, False):
            for module in model.modules():
                if isinstance(module, Gemma4TextAttention):
                    module.looks_ahead = wrong  # type: ignore[assignment]
            off = float((logits(model, batch.inputs, where) - bare).abs().max())
            assert off > 1e-2 or (not wrong and bidirectional is None)
    assert bare.abs().max() < 30  # as its soft cap has it


def test_layers_that_read_the_keys_of_others_are_named_and_have_none_to_adapt(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "gemma4")
    model = runs.attached(one)
    config = tiny.model("gemma4").config
    adapted = {
        int(name.split("layers.")[1].split(".")[0]): name
        for name, _ in model.named_parameters()
        if "k_proj.lora_A" in name
    }
    assert sorted(adapted) == [0, 1]
    line = GEMMA.left_out(config)
    assert line == (
        "layers 2 to 3 attend to the keys and values of layers 0 and 1: they have no k_proj and v_proj, and none is "
        "adapted there"
    )
    config.text_config.num_kv_shared_layers = 0
    assert GEMMA.left_out(config) == ""
    hits = adapter.plan(blank_model(config), GEMMA, one)["language"].patterns
    assert not any("audio" in pattern for pattern in hits)


def test_every_adapter_pair_has_a_gradient_and_padding_gives_none_that_is_not_a_number(tmp_path: Path) -> None:
    for number, size in enumerate([(112, 112), (60, 180)]):
        tiny.picture(number, size).save(tmp_path / f"{number}.png")
    parts = {part: {"train": "lora"} for part in ("language", "projector", "vision")}
    one = runs.make(tmp_path, "gemma4", parts=parts)
    model, chat = runs.attached(one).train(), runs.chat(one)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    rows = [encode_row(chat, Row(replace(ONE, images=(f"{n}.png",)), tmp_path)) for n in range(2)]
    batch = Collator(chat).pack(rows)
    assert (batch.inputs["image_position_ids"] == -1).any()
    logits(model, batch.inputs, batch.supervised).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "value"), [("enable_moe_block", True), ("use_bidirectional_attention", "all")])
def test_bases_with_experts_or_another_attention_are_refused(name: str, value: Any) -> None:
    model = tiny.model("gemma4")
    setattr(model.config.text_config, name, value)
    with pytest.raises(ValueError, match=f"a gemma4 base with {name} {value!r}; .*such as gemma4-e2b"):
        GEMMA.prepare(model)


def test_the_unified_model_has_no_family() -> None:
    with pytest.raises(ValueError, match="'gemma4_unified': no such family"):
        families.load("gemma4_unified")
