"""Chat: prompts as published, and what is trained is exactly the answers, on real templates and tokenizers."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, AutoTokenizer

from helpers import tiny
from skinvl.data.example import Example, Message, text, words
from skinvl.model import families
from skinvl.model.chat import UNTRAINED, Chat, ChatError, Encoded

LLAMA_V1 = "llama3.2-vision/v1_2024-09.jinja"
LLAMA_V2 = "llama3.2-vision/v2_current.jinja"
REAL = [(family, tiny.TEMPLATES[family]) for family in tiny.FAMILIES] + [("mllama", LLAMA_V1)]
SIZE = (336, 448)


@cache
def real_chat(shared: Path, family: str, template: str | None = None, max_tokens: int = 4096) -> Chat:
    return Chat(tiny.real_processor(shared, family, template), families.load(family), 256, max_tokens)


def conversation(*messages: Message) -> Example:
    images = sum(part["type"] == "image" for message in messages for part in message["content"])
    return Example("1", "s", tuple(f"{n}.png" for n in range(images)), messages, "g", "train", "CC0")


ONE = conversation(text("user", "Is the lesion raised?", 1), text("assistant", "No, it is flat."))
ROWS = {
    "one turn": ONE,
    "three turns": conversation(
        text("user", "What is shown?", 1),
        text("assistant", "A pigmented naevus, 6 mm × 4 mm."),
        text("user", "Is it benign?"),
        text("assistant", "Yes"),
        text("user", "Sure?\n\nReally?"),
        text("assistant", "**Yes.**\n\n1. Symmetric\n2. One colour 😀\n"),
    ),
    "system": conversation(
        text("system", "  Be brief. "), text("user", "What is eczema?"), text("assistant", "A rash.")
    ),
    "two images": conversation(
        text("user", "Which is larger?", 2),
        text("assistant", "The second."),
        text("user", "Why?"),
        text("assistant", "It"),
    ),
    "text only": conversation(text("user", "assistant\n"), text("assistant", "user\nassistant: no")),
    "leading space": conversation(text("user", "Colour?", 1), text("assistant", " brown ")),
}


def trained(chat: Chat, encoded: Encoded) -> list[str]:
    """The runs of trained tokens, decoded."""
    runs: list[list[int]] = []
    for before, (token, label) in zip(
        [UNTRAINED, *encoded.labels[:-1]], zip(encoded.ids, encoded.labels, strict=True), strict=True
    ):
        if label == UNTRAINED:
            continue
        assert label == token
        if before == UNTRAINED:
            runs.append([])
        runs[-1].append(token)
    return [chat.tokenizer.decode(run) for run in runs]


def expected(chat: Chat, example: Example) -> list[str]:
    answers = [words(message) for message in example.messages if message["role"] == "assistant"]
    return [(one.strip() if chat.family.trims else one) + chat.family.turn_close for one in answers]


def encode(chat: Chat, example: Example) -> Encoded:
    return chat.encode(example, [SIZE] * len(example.images))


# rendering


def test_published_prompts_and_ids(shared: Path) -> None:
    kinds = {"llama": "mllama", "qwen2": "qwen2_vl", "qwen3": "qwen3_vl"}
    cases = json.loads((shared / "chat_templates" / "golden_prompts.json").read_text(encoding="utf-8"))
    assert len(cases) >= 12
    for case in cases:
        template = case["template"].removeprefix("chat_templates/")
        chat = real_chat(shared, kinds[template[:5]], template)
        messages = [as_message(message) for message in case["messages"]]
        generation = case["kwargs"].get("add_generation_prompt", False)
        if case["expected_error"]:
            with pytest.raises(ChatError, match=case["expected_error"]) as caught:
                chat.render(messages, generation)
            assert caught.value.rule == "template-refused"
            continue
        rendered = chat.render(messages, generation)
        assert rendered == case["expected"], case["id"]
        ids = chat.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert ids == case["ids_computed_here"], case["id"]
        assert case["expected_ids"] in (None, ids), case["id"]
        prefix = case["expected_ids_prefix"] or []
        assert ids[: len(prefix)] == prefix, case["id"]


def as_message(message: dict[str, Any]) -> Message:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {
        "role": message["role"],
        "content": [{"type": part["type"], "text": part.get("text")} for part in parts],
    }


@pytest.mark.parametrize("template", [LLAMA_V1, LLAMA_V2])
def test_the_saved_template_prints_the_same_date_by_itself(shared: Path, tmp_path: Path, template: str) -> None:
    chat = real_chat(shared, "mllama", template)
    chat.processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert chat.tokenizer.chat_template == chat.template
    assert loaded.chat_template == chat.template == AutoTokenizer.from_pretrained(tmp_path).chat_template
    plain = [{"role": "user", "content": [{"type": "text", "text": "What is eczema?"}]}]
    rendered = loaded.apply_chat_template(plain, add_generation_prompt=True)
    assert "Today Date: 26 Jul 2024\n" in rendered
    assert rendered == chat.render([text("user", "What is eczema?")], generation=True)
    again = Chat(loaded, families.load("mllama"), 256, 4096)
    assert again.template == chat.template
    original = (shared / "chat_templates" / template).read_text(encoding="utf-8")
    untouched = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(original)
    bos = "<|begin_of_text|>"
    assert rendered == untouched.render(
        messages=plain, bos_token=bos, add_generation_prompt=True, date_string="26 Jul 2024"
    )


# what is trained


def check(chat: Chat, example: Example, encoded: Encoded) -> None:
    """Invariant 2, and that ids are those of the whole text as published tools would see it."""
    assert trained(chat, encoded) == expected(chat, example)
    assert len(encoded.pictures) == len(example.images)
    shown = sum(id_ in chat.image_ids for id_ in encoded.ids)
    assert shown == sum(picture.text_tokens for picture in encoded.pictures)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("family", "template"), REAL, ids=[f"{family}-{Path(t).stem}" for family, t in REAL])
def test_trained_tokens_are_the_answers_and_their_end(shared: Path, family: str, template: str, name: str) -> None:
    chat, example = real_chat(shared, family, template), ROWS[name]
    encoded = encode(chat, example)
    check(chat, example, encoded)
    shifted = Encoded(
        encoded.ids,
        [
            one if label != UNTRAINED else UNTRAINED
            for one, label in zip(encoded.ids, [UNTRAINED, UNTRAINED, *encoded.labels[:-2]], strict=True)
        ],
        encoded.pictures,
        encoded.turns,
    )
    with pytest.raises(AssertionError):
        check(chat, example, shifted)
    first = conversation(*example.messages[: 2 + (example.messages[0]["role"] == "system")])
    asked = chat.prompt(first, [SIZE] * len(first.images))
    answer = chat.tokenizer(expected(chat, first)[0], add_special_tokens=False)["input_ids"]
    assert [*asked.ids, *answer] == encoded.ids[: len(asked.ids) + len(answer)]
    assert set(asked.labels) == {UNTRAINED}
    assert chat.prompt(example, [SIZE] * len(example.images)).ids == encoded.ids[: last_answer(encoded)]


def last_answer(encoded: Encoded) -> int:
    """Where the last trained run starts."""
    index = max(n for n, label in enumerate(encoded.labels) if label != UNTRAINED)
    while encoded.labels[index - 1] != UNTRAINED:
        index -= 1
    return index


@pytest.mark.parametrize("name", ["one turn", "three turns", "two images", "text only"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_ids_are_those_of_the_processor(shared: Path, family: str, name: str) -> None:
    chat, example = real_chat(shared, family), ROWS[name]
    images = [tiny.picture(n, SIZE) for n in range(len(example.images))]
    theirs = chat.processor(
        text=[chat.render(list(example.messages))],
        images=[images] if images else None,
        add_special_tokens=False,
        images_kwargs=chat.image_arguments,
    )
    assert encode(chat, example).ids == list(theirs["input_ids"][0])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "mllama"])
def test_every_answer_of_a_real_set(shared: Path, family: str) -> None:
    chat = real_chat(shared, family)
    with (shared / "mm_skin" / "MM-Skin_test.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["question"], row["answer"]) for row in csv.DictReader(file)]
    assert len(rows) == 5452
    for question, answer in rows:
        example = conversation(text("user", question), text("assistant", answer))
        assert trained(chat, chat.encode(example, [])) == [answer + chat.family.turn_close]


# what is refused


def refused(chat: Chat, example: Example) -> ChatError:
    with pytest.raises(ChatError) as caught:
        encode(chat, example)
    return caught.value


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_no_added_token_passes_as_text(shared: Path, family: str) -> None:
    chat = real_chat(shared, family)
    for token in (chat.family.turn_close, chat.family.image_token, *list(chat.tokenizer.get_added_vocab())[-3:]):
        for role in ("system", "user", "assistant"):
            words = {"system": "a", "user": "b", "assistant": "c"}
            words[role] += f" {token} "
            error = refused(chat, conversation(*(text(key, value) for key, value in words.items())))
            assert (error.rule, error.detail) == ("control-token", f"{token} in the text of a {role} turn")
    halves: Message = {
        "role": "user",
        "content": [
            {"type": "text", "text": one} for one in (f"{chat.family.turn_close[:3]}", chat.family.turn_close[3:])
        ],
    }
    assert refused(chat, conversation(halves, text("assistant", "x"))).rule == "control-token"


def test_what_a_template_does_to_the_answer_is_never_guessed() -> None:
    processor, family = tiny.processor("qwen2_vl"), families.load("qwen2_vl")
    original = processor.chat_template
    for template, found in {
        original.replace(
            "part.text", "(part.text | trim)"
        ): "writes 'brown<|im_end|>\\n'; expected the answer as it is, ' brown '",
        original.replace(
            "{%- for message", "{{- '<|im_start|>assistant\\nHi<|im_end|>' -}}{%- for message", 1
        ): "opens 2",
        original.replace("<|vision_start|><|image_pad|><|vision_end|>", ""): "shows 0 images; expected 1",
        original.replace("<|image_pad|>", "<|image_pad|><|image_pad|>"): "shows 2 images; expected 1",
        "{{ raise_exception('not today') }}": "not today",
    }.items():
        processor.chat_template = template
        error = refused(Chat(processor, family, 16, 512), ROWS["leading space"])
        assert error.rule == "template-refused"
        assert found in error.detail


def test_a_base_without_a_template_is_refused() -> None:
    processor = tiny.processor("qwen2_vl")
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="Qwen2VLProcessor: no chat template"):
        Chat(processor, families.load("qwen2_vl"), 16, 512)


def test_a_system_turn_beside_an_image_is_refused_by_the_first_llama_template_alone(shared: Path) -> None:
    example = conversation(text("system", "Be brief."), *ONE.messages)
    assert "incompatible with system messages" in refused(real_chat(shared, "mllama", LLAMA_V1), example).detail
    current = real_chat(shared, "mllama", LLAMA_V2)
    check(current, example, encode(current, example))
    assert "\n\nBe brief.<|eot_id|>" in current.render(list(example.messages))


def test_a_tokenizer_that_adds_its_own_beginning_adds_none_here() -> None:
    processor = tiny.processor("mllama")
    bos = processor.tokenizer.bos_token
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, processor.tokenizer.bos_token_id)]
    )
    assert processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id
    chat = Chat(processor, families.load("mllama"), 16, 512)
    assert encode(chat, ROWS["three turns"]).ids.count(processor.tokenizer.bos_token_id) == 1


def test_elongated_images_and_rows_without_answers_are_refused() -> None:
    chat = Chat(tiny.processor("qwen2_vl"), families.load("qwen2_vl"), 16, 512)
    with pytest.raises(ChatError, match="image-too-elongated: 5000 x 10 px"):
        chat.encode(ONE, [(10, 5000)])
    assert refused(chat, conversation(text("user", "Colour?"))).rule == "no-answer"


# too long


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_long_row_is_refused_or_loses_whole_turns(family: str) -> None:
    kind, processor = families.load(family), tiny.processor(family)
    turns = [
        text("user", "first?", 1),
        text("assistant", "one"),
        text("user", "second?", 1),
        text("assistant", "two"),
        text("user", "third?"),
        text("assistant", "three"),
    ]
    lengths = [len(encode(Chat(processor, kind, 16, 999), conversation(*turns[: 2 * n])).ids) for n in (1, 2, 3)]
    whole = conversation(*turns)
    for limit in (lengths[2], lengths[2] - 1, lengths[1], lengths[1] - 1, lengths[0]):
        fits = sum(length <= limit for length in lengths)
        chat = Chat(processor, kind, 16, limit, "drop_turns")
        encoded = encode(chat, whole)
        assert encoded == encode(Chat(processor, kind, 16, 999), conversation(*turns[: 2 * fits]))
        assert (encoded.turns, len(encoded.pictures)) == (fits, min(fits, 2))
        if fits < 3:
            error = refused(Chat(processor, kind, 16, limit), whole)
            assert (error.rule, error.detail) == ("too-long", f"{lengths[2]} tokens; expected at most {limit}")
    error = refused(Chat(processor, kind, 16, lengths[0] - 1, "drop_turns"), whole)
    assert (
        error.detail == f"{lengths[2]} tokens, {lengths[0]} in its first turn alone; expected at most {lengths[0] - 1}"
    )


# paint


def test_paint_shows_what_is_trained_and_folds_images() -> None:
    chat = Chat(tiny.processor("qwen2_vl"), families.load("qwen2_vl"), 16, 512)
    painted = chat.paint(chat.encode(ONE, [(112, 112)]))
    assert "<|vision_start|>⟨image ×16⟩<|vision_end|>Is the lesion raised?<|im_end|>" in painted.plain
    assert "image_pad" not in painted.plain
    green = [painted.plain[span.start : span.end] for span in painted.spans if "green" in str(span.style)]
    assert green == ["No, it is flat.<|im_end|>"]
