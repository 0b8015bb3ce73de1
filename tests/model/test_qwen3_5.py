"""Qwen3.5: a state is carried along each conversation, and by none to the next; answers have no thought."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import AutoProcessor
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from helpers import runs, tiny
from skinvl.data import mixture
from skinvl.data.example import Example, text
from skinvl.model import adapter, attention, families, recurrence
from skinvl.model.base import logits
from skinvl.model.chat import UNTRAINED, Chat, ChatError
from skinvl.model.families.qwen3_5 import Qwen35
from skinvl.model.layout import Group
from skinvl.model.pack import Batch, Collator
from skinvl.model.row import EncodedRow
from skinvl.train.trainer import token_losses

FAMILY = families.load("qwen3_5")
TURNS = (
    text("user", "What is the colour?", 1),
    text("assistant", " Brown.\n"),
    text("user", "Is it raised?"),
    text("assistant", "No, it is flat."),
)
SIZE = (112, 112)


def words_alone(question: str, answer: str = "Yes.") -> Example:
    """A conversation without an image."""
    return Example(question, "s", (), (text("user", question), text("assistant", answer)), "g", "train", "CC0-1.0")


LONG = words_alone("Compare the two images: is the border of the first smooth or jagged, and how many are there?")
SHORT = words_alone("What is a lesion?")


# the tiny base


def test_the_tiny_base_has_every_path_of_the_architecture() -> None:
    config = tiny.model("qwen3_5").config
    language = config.text_config
    assert set(language.layer_types) == {"linear_attention", "full_attention"}
    assert language.linear_num_value_heads == 2 * language.linear_num_key_heads
    assert language.rope_parameters["partial_rotary_factor"] == 0.25
    assert 2 * sum(language.rope_parameters["mrope_section"]) == language.head_dim // 4
    assert language.rope_parameters["mrope_interleaved"]
    assert config.tie_word_embeddings


def test_its_state_outlives_many_tokens_and_images_reach_it() -> None:
    """Within the recurrent layers alone: what attends is cut off."""
    model = tiny.model("qwen3_5")
    for layer in model.model.language_model.layers:
        if layer.block_type == "full_attention":
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    ids = torch.arange(90)[None] + 100
    other = ids.clone()
    other[0, 20] = 7
    with torch.no_grad():
        change = (model(input_ids=ids).logits - model(input_ids=other).logits)[0].abs().amax(-1)
    assert not change[:20].any()
    assert change[89] > 1e-3


# rows


@cache
def ready(kind: str) -> tuple[Chat, Any]:
    """The chat and the model of a tiny base, its attention over spans."""
    model = tiny.model(kind)
    attention.use(model, "sdpa")
    return Chat(tiny.processor(kind), families.load(kind), 16, 512), model


def beside(kind: str, places: list[list[int]]) -> tuple[list[torch.Tensor], Batch]:
    """The logits of LONG and SHORT, each in the row where `places` puts it, and their batch."""
    chat, model = ready(kind)
    encoded = [EncodedRow(chat.encode(one, ()), ()) for one in (LONG, SHORT)]
    batch = Collator(chat).lay(encoded, [[Group((one,), 0) for one in row] for row in places])
    with torch.no_grad():
        every = logits(model, batch.inputs, torch.ones_like(batch.ids, dtype=torch.bool))
    rows = every.view(*batch.ids.shape, -1)
    return [rows[place.row, place.start : place.end] for place in batch.places], batch


@cache
def alone(which: int) -> torch.Tensor:
    """The logits of LONG or SHORT in Hugging Face's own model."""
    ids = ready("qwen3_5")[0].encode((LONG, SHORT)[which], ()).ids
    with torch.no_grad():
        alone_logits: torch.Tensor = tiny.model("qwen3_5")(input_ids=torch.tensor([ids])).logits[0]
    return alone_logits


def difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> list[float]:
    return [(one - other).abs().max().item() for one, other in zip(first, second, strict=True)]


def test_in_one_row_no_conversation_remembers_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans hide it from attention, and are read one by one by what carries a state; else it would be remembered."""
    assert max(difference([alone(0), alone(1)], beside("qwen3_5", [[0, 1]])[0])) < 1e-4
    assert max(difference([alone(0), alone(1)], beside("qwen3_5", [[1, 0]])[0])) < 1e-4
    own = Qwen3_5GatedDeltaNet.forward
    monkeypatch.setattr(recurrence, "read", lambda *_: pytest.fail("spans are read"))
    for layer in ready("qwen3_5")[1].model.language_model.layers:
        if layer.block_type == "linear_attention":
            monkeypatch.setattr(layer.linear_attn, "forward", MethodType(own, layer.linear_attn))
    first, second = difference([alone(0), alone(1)], beside("qwen3_5", [[0, 1]])[0])
    assert first < 1e-4 < 1e-1 < second


def test_padding_after_a_row_changes_nothing() -> None:
    rows, batch = beside("qwen3_5", [[0], [1]])
    assert batch.ids.shape[0] == 2
    assert max(difference([alone(0), alone(1)], rows)) < 1e-4


# what trains


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
ADAPTED = {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"}


@pytest.mark.parametrize("quantization", [None, NF4], ids=["lora", "qlora"])
def test_the_recurrence_is_adapted_by_its_projections_and_keeps_its_own_weights(
    tmp_path: Path, quantization: dict[str, Any] | None
) -> None:
    recipe = runs.make(tmp_path, "qwen3_5", train__bf16=True, quantization=quantization)
    model = runs.attached(recipe)
    counts = adapter.check(model, FAMILY, recipe)
    assert {name: counts["language"].lora[name] for name in ADAPTED} == dict.fromkeys(ADAPTED, 2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B.default.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
        if ".linear_attn." in name and name.rsplit(".", 2)[-2] in ("linear_attn", "conv1d", "norm"):
            assert not parameter.requires_grad, name
            assert parameter.dtype == torch.bfloat16, name
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = token_losses(model, runs.batch(recipe, mixture.load(recipe.data).train[:1]))
    losses.sum().backward()
    inner = {n: p for n, p in model.named_parameters() if ".linear_attn." in n and p.requires_grad}
    assert len(inner) == 2 * 2 * len(ADAPTED)
    assert all(p.grad is not None and p.grad.any() for p in inner.values())
    quantised = {n.rsplit(".", 2)[-2] for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert quantised >= ADAPTED if quantization else not quantised


# the template


PUBLISHED = {
    name: (tiny.TRL / f"{name}.jinja").read_text()
    for name in ("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8")
}
EMPTY = "<think>\n\n</think>\n\n"


def chat_with(template: str) -> Chat:
    processor = tiny.processor("qwen3_5")
    processor.chat_template = template
    return Chat(processor, FAMILY, 16, 512)


def conversation(turns: int) -> Example:
    return Example("1", "s", ("a.png",), TURNS[: 2 * turns], "g", "train", "CC0-1.0")


def bare(template: str, turns: int, **settings: Any) -> str:
    """What a published template writes by itself."""
    messages = [
        {"role": turn["role"], "content": [{k: v for k, v in part.items() if v} for part in turn["content"]]}
        for turn in TURNS[:turns]
    ]
    tokenizer = tiny.processor("qwen3_5").tokenizer
    written: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **settings)
    return written


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_answer_follows_an_empty_thought_in_training_and_when_it_is_asked_for(name: str) -> None:
    chat = chat_with(PUBLISHED[name])
    whole = conversation(2)
    encoded = chat.encode(whole, [SIZE])
    trained = chat.tokenizer.decode([label for label in encoded.labels if label != UNTRAINED])
    assert trained == "Brown.<|im_end|>No, it is flat.<|im_end|>"
    for turns in (1, 2):
        prompt = chat.prompt(conversation(turns), [SIZE])
        assert prompt.ids == encoded.ids[: len(prompt.ids)]
        assert chat.tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\n" + EMPTY)
    assert chat.render(whole.messages).count(EMPTY) == 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_the_published_template_without_thoughts(name: str) -> None:
    published = PUBLISHED[name]
    chat = chat_with(published)
    off = {"enable_thinking": False} if name == "qwen3_8" else {}  # else a sentence on how hard to think leads
    assert chat.render(TURNS[:2]) == bare(published, 2, **off)
    asked = chat.render(TURNS[:1], generation=True)
    assert asked == bare(published, 1, add_generation_prompt=True, enable_thinking=False)
    assert asked == bare(chat.template, 1, add_generation_prompt=True, enable_thinking=True)  # whoever asks
    assert FAMILY.template(chat.template) == chat.template
    # TRL's own training variant keeps the empty thoughts as well.
    trained = (tiny.TRL / f"{name}_training.jinja").read_text()
    kept = {"preserve_thinking": True} if name in ("qwen3_6", "qwen3_8") else {}
    assert chat.render(TURNS) == bare(trained, 4, **kept, **off)


def test_a_sentence_on_how_hard_to_think_is_left_out_of_thoughts_too() -> None:
    published = PUBLISHED["qwen3_8"]
    assert bare(published, 2).startswith("<|im_start|>system\nReasoning effort is set to xhigh.")
    processor = tiny.processor("qwen3_5")
    processor.chat_template = published
    chat = Chat(processor, FAMILY, 16, 512, thoughts="trained")
    assert chat.render(TURNS[:2]).startswith("<|im_start|>user\n")
    asked = chat.render(TURNS[:1], generation=True)
    assert asked == bare(published, 1, add_generation_prompt=True, reasoning_effort="medium")


def test_a_template_that_adds_a_turn_is_refused_with_that_turn() -> None:
    """As one of that shape would that heeds neither of its settings."""
    other = "{{- '<|im_start|>system\\nThink with all your might.<|im_end|>\\n' }}" + PUBLISHED["qwen3_8"]
    with pytest.raises(ValueError, match=r"begins a conversation with .*system\\nThink with all your might\.<\|im_end"):
        chat_with(other)


def test_it_is_saved_as_it_was_trained_with(tmp_path: Path) -> None:
    chat = chat_with(PUBLISHED["qwen3_5_think"])
    chat.processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == chat.template
    assert Chat(loaded, FAMILY, 16, 512).template == chat.template


def test_as_published_a_template_would_train_what_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen35, "template", lambda self, published, thinking=False: published)
    chat = chat_with(PUBLISHED["qwen3_5_think"])
    assert chat.encode(conversation(1), [SIZE])
    with pytest.raises(ChatError, match="opens 1 answers; expected 2"):
        chat.encode(conversation(2), [SIZE])
    with pytest.raises(ChatError, match="opens 0 answers; expected 1"):
        chat.prompt(conversation(1), [SIZE])


def test_a_thought_in_the_data_is_refused() -> None:
    chat = chat_with(PUBLISHED["qwen3_5_think"])
    with pytest.raises(ChatError, match="control-token: <think> in the text of a assistant turn"):
        chat.encode(words_alone("Why?", "<think>Hm.</think> So."), ())
