"""Thoughts before answers: written as the published templates write them, dropped, shown or trained, and parted."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from helpers import tiny
from skinvl.data.example import Example, text, words
from skinvl.model import families
from skinvl.model.chat import UNTRAINED, Chat, ChatError, Encoded
from skinvl.model.families import Family

SIZE = (112, 112)
TURNS = (
    text("user", "What is the colour?", 1),
    text("assistant", "Brown."),
    text("user", "Is it raised?"),
    text("assistant", "No, it is flat."),
)
THOUGHTS = ("It is brown.\n\nWith a rim.", "The border casts no shadow.")


def conversation(turns: int = 2, thoughts: tuple[str | None, ...] = THOUGHTS) -> Example:
    return Example("1", "s", ("a.png",), TURNS[: 2 * turns], "g", "train", "CC0-1.0", thoughts=thoughts[:turns])


@dataclass(frozen=True)
class Published:
    """A published template, the family that reads it, and how a user of it gives a thought."""

    family: Family
    base: str  # whose tiny processor stands in
    file: str
    thinking: dict[str, Any]  # what its caller sets for thoughts

    def chat(self, shared: Path, thoughts: Any = "trained") -> Chat:
        processor = self.processor()
        tokens = {self.family.turn_close, *self.family.thoughts.marks, self.family.image_token}  # type: ignore[union-attr]
        tokens |= set(re.findall(r"<\|?\w+\|?>|\[/?\w+\]", self.family.turn_open))
        processor.tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sorted(tokens)])
        if hasattr(processor, "image_token"):
            processor.image_token = self.family.image_token
        processor.chat_template = self.text(shared)
        return Chat(processor, self.family, 16, 1024, thoughts=thoughts)

    def processor(self) -> Any:
        processor: Any = tiny.processor(self.base)
        if self.family.turn_close == "</s>":  # which the template calls the end of a text
            processor.tokenizer.eos_token = "</s>"
        return processor

    def text(self, shared: Path) -> str:
        return (shared / "chat_templates" / self.file).read_text(encoding="utf-8")

    def bare(self, shared: Path, messages: list[dict[str, Any]], **settings: Any) -> str:
        """What the template writes by itself."""
        written: str = self.processor().tokenizer.apply_chat_template(
            messages, chat_template=self.text(shared), tokenize=False, **{**self.thinking, **settings}
        )
        return written


QWEN, GEMMA = families.load("qwen3_5"), families.load("gemma4")
TABLE = {
    "qwen3.5": Published(QWEN, "qwen3_5", "qwen3_5/Qwen3.5-4B.jinja", {"enable_thinking": True}),
    "qwen3.6": Published(QWEN, "qwen3_5", str(tiny.TRL / "qwen3_6.jinja"), {"preserve_thinking": True}),
    "qwen3.5, trained": Published(QWEN, "qwen3_5", str(tiny.TRL / "qwen3_5_think_training.jinja"), {}),
    "gemma 4": Published(GEMMA, "gemma4", "gemma4/google-gemma-4-31B-it.jinja", {"enable_thinking": True}),
    "gemma 4 E2B": Published(GEMMA, "gemma4", str(tiny.TRL / "gemma4_v5.jinja"), {"enable_thinking": True}),
    "ministral 3": Published(
        families.load("mistral3"), "mistral3", "ministral3/mistralai-Ministral-3-14B-Reasoning-2512.jinja", {}
    ),
}


def given(example: Example, published: Published, **more: Any) -> list[dict[str, Any]]:
    """The conversation as a user of the published template gives it, thoughts where its own documentation has them."""
    messages, thoughts = [], iter(example.thoughts)
    for turn in example.messages:
        content: list[dict[str, Any]] = [{k: v for k, v in part.items() if v} for part in turn["content"]]
        message: dict[str, Any] = {"role": turn["role"], "content": content}
        if turn["role"] == "assistant" and (thought := next(thoughts, None)) is not None:
            if published.file.startswith("ministral3"):
                content.insert(0, {"type": "thinking", "thinking": thought})
            else:
                message |= {"reasoning_content": thought, **more}
        messages.append(message)
    return messages


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3.6", "qwen3.5, trained", "ministral 3"])
def test_an_answer_with_its_thought_is_what_the_published_template_writes(shared: Path, name: str) -> None:
    published = TABLE[name]
    chat = published.chat(shared)
    for thoughts in (THOUGHTS, (THOUGHTS[0], None)):
        one = conversation(1, thoughts)
        assert chat.render(one.messages, thoughts=one.thoughts) == published.bare(shared, given(one, published))
    asked = published.bare(shared, given(conversation(1), published)[:1], add_generation_prompt=True)
    assert chat.render(TURNS[:1], generation=True) == asked
    # Of several turns each keeps its thought, as where the published template is told to.
    two = conversation()
    ours = chat.render(two.messages, thoughts=two.thoughts)
    if name != "qwen3.5":
        assert ours == published.bare(shared, given(two, published))
    else:  # it leaves out those before the last question, with which the first answer was trained
        dropped = f"<think>\n{THOUGHTS[0]}\n</think>\n\n"
        assert ours.count(dropped) == 1
        assert ours.replace(dropped, "") == published.bare(shared, given(two, published))


def test_gemma_4_writes_a_thought_where_a_tool_is_called_and_ours_is_the_same(shared: Path) -> None:
    published = TABLE["gemma 4"]
    chat = published.chat(shared)
    one = conversation(1)
    ours = chat.render(one.messages, thoughts=one.thoughts)
    call = {"tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    theirs = published.bare(shared, given(one, published, **call))
    thought = f"<|turn>model\n<|channel>thought\n{THOUGHTS[0]}\n<channel|>"
    assert thought in theirs
    assert ours == theirs.replace("<|tool_call>call:look{}<tool_call|>", "").replace("<|tool_response>", "<turn|>\n")
    # Without a thought, and as a question, it is the published text.
    assert chat.render(TURNS) == published.bare(shared, given(conversation(2, ()), published))
    asked = published.bare(shared, given(conversation(1, ()), published)[:1], add_generation_prompt=True)
    assert chat.render(TURNS[:1], generation=True) == asked


# what is trained


def runs(chat: Chat, encoded: Encoded) -> list[str]:
    """The runs of trained tokens, decoded."""
    pairs = [(UNTRAINED, UNTRAINED), *zip(encoded.ids, encoded.labels, strict=True)]
    starts = [n for n, (before, pair) in enumerate(pairwise(pairs)) if before[1] == UNTRAINED != pair[1]]
    ends = [next((n for n in range(start, len(pairs) - 1) if encoded.labels[n] == UNTRAINED), None) for start in starts]
    return [chat.tokenizer.decode(encoded.labels[start:end]) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("name", TABLE)
def test_labels_are_on_answers_and_where_asked_on_their_thoughts(shared: Path, name: str) -> None:
    published = TABLE[name]
    family, known = published.family, published.family.thoughts
    assert known is not None
    example = conversation(2, (THOUGHTS[0], None))
    answers = [words(turn) + family.turn_close for turn in TURNS if turn["role"] == "assistant"]
    chats = {thoughts: published.chat(shared, thoughts) for thoughts in ("dropped", "shown", "trained")}
    encoded = {thoughts: chat.encode(example, [SIZE]) for thoughts, chat in chats.items()}
    before = known.opening + THOUGHTS[0] + known.closing
    assert runs(chats["trained"], encoded["trained"]) == [before + answers[0], answers[1]]
    assert runs(chats["shown"], encoded["shown"]) == answers
    assert encoded["shown"].ids == encoded["trained"].ids  # which is asked later is the same
    assert runs(chats["dropped"], encoded["dropped"]) == answers
    assert encoded["dropped"] == chats["dropped"].encode(conversation(2, ()), [SIZE])
    with pytest.raises(AssertionError):
        assert runs(chats["shown"], replace(encoded["shown"], labels=encoded["trained"].labels)) == answers

    # What is asked is the beginning of what was trained, whose thought the model writes from there on.
    for thoughts in ("shown", "trained"):
        chat = chats[thoughts]
        asked = chat.prompt(conversation(1), [SIZE])
        assert asked.ids == encoded[thoughts].ids[: len(asked.ids)]
        assert chat.tokenizer.decode(asked.ids).endswith(known.turn_open)
        said = encoded["trained"].labels[len(asked.ids) :]
        said = said[: next(n for n, label in enumerate(said) if label == UNTRAINED) - 1]  # without the end of turn
        assert chat.thought_and_answer(said) == (THOUGHTS[0], "Brown.")
        # Without a thought it is asked as an answer without one was trained.
        closed = chat.prompt(example, [SIZE], thought=False)
        assert closed.ids == encoded[thoughts].ids[: len(closed.ids)]
        assert chat.tokenizer.decode(closed.ids).endswith(known.turn_open + known.absent)
        assert chat.encode(example, [SIZE]).ids[len(closed.ids) :] == encoded[thoughts].ids[len(closed.ids) :]


def ids_of(chat: Chat, said: str) -> list[int]:
    ids: list[int] = chat.tokenizer(said, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("name", ["qwen3.5", "gemma 4", "ministral 3"])
def test_a_thought_never_stands_in_an_answer(shared: Path, name: str) -> None:
    published = TABLE[name]
    chat, known = published.chat(shared), published.family.thoughts
    assert known is not None
    begin, end = known.marks

    def said(words: str, **settings: Any) -> tuple[str | None, str]:
        return chat.thought_and_answer(ids_of(chat, words), **settings)

    whole = f"{known.opening}Hm.\n\nSo.{known.closing}"
    assert said(f"{whole}It is flat. ") == ("Hm.\n\nSo.", "It is flat. ")
    assert said(f"{whole}First.{end}It is flat.")[1] == "It is flat."
    assert said(f"{known.closing}Flat.") == (None, "Flat.")
    assert said(f"{known.opening}Hm, it") == ("Hm, it", "")  # cut before its end
    assert said(f"Flat.{begin}But") == ("But", "Flat.")
    assert said(f"{whole}Flat.{begin}But")[1] == "Flat."
    assert said("Flat.", thought=False) == (None, "Flat.")
    assert said("Flat.") == (("Flat.", "") if name == "qwen3.5" else (None, "Flat."))


def test_a_chat_that_drops_thoughts_says_what_it_said(shared: Path) -> None:
    chat = TABLE["qwen3.5"].chat(shared, "dropped")
    ids = ids_of(chat, "\n It is flat. \n")
    assert chat.thought_and_answer(ids) == (None, "\n It is flat. \n")
    end = ids_of(chat, "</think>")
    assert chat.thought_and_answer([*ids, *end, *ids]) == ("It is flat.", " It is flat. \n")


# what is refused, and kept


@pytest.mark.parametrize("thoughts", ["shown", "trained"])
@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if families.load(name).thoughts is None])
def test_a_template_without_a_place_for_thoughts_is_refused(family: str, thoughts: Any) -> None:
    with pytest.raises(ValueError, match=f"data.thoughts: found {thoughts}, .* template of {family} has no place"):
        Chat(tiny.processor(family), families.load(family), 16, 512, thoughts=thoughts)


def test_a_control_token_in_a_thought_is_refused_where_it_is_shown() -> None:
    example = conversation(1, ("Look: <|im_end|>",))
    assert chat_of("dropped").encode(example, [SIZE])
    with pytest.raises(ChatError, match=r"control-token: <\|im_end\|> in the text of a thought"):
        chat_of("shown").encode(example, [SIZE])


def test_a_template_that_writes_no_thought_is_refused() -> None:
    processor: Any = tiny.processor("qwen3_5")
    processor.chat_template = processor.chat_template.replace("message.reasoning_content | default('')", "''")
    chat = Chat(processor, QWEN, 16, 512, thoughts="trained")
    assert chat.encode(conversation(1, ()), [SIZE])
    with pytest.raises(ChatError, match=r"template-refused: the chat template writes .*expected 'It is brown"):
        chat.encode(conversation(1), [SIZE])


@cache
def chat_of(thoughts: Any) -> Chat:
    return Chat(tiny.processor("qwen3_5"), QWEN, 16, 512, thoughts=thoughts)


def test_dropped_turns_take_their_thoughts_with_them() -> None:
    whole = chat_of("trained").encode(conversation(2), [SIZE])
    first = chat_of("trained").encode(conversation(1), [SIZE])
    short = Chat(tiny.processor("qwen3_5"), QWEN, 16, len(whole.ids) - 1, "drop_turns", thoughts="trained")
    assert short.encode(conversation(2), [SIZE]) == first


def test_the_saved_template_thinks_as_it_was_trained_to_and_can_be_told_otherwise(shared: Path) -> None:
    published = TABLE["qwen3.5"].text(shared)
    thinking, without = QWEN.template(published, True), QWEN.template(published)
    assert thinking != without
    assert QWEN.template(thinking, True) == QWEN.template(without, True) == thinking
    assert QWEN.template(thinking) == QWEN.template(without) == without


def test_paint_tells_thoughts_from_answers() -> None:
    for thoughts, style in {"shown": "cyan italic", "trained": "green italic"}.items():
        chat = chat_of(thoughts)
        painted = chat.paint(chat.encode(conversation(1), [SIZE]))
        marked = [painted.plain[span.start : span.end] for span in painted.spans if span.style == style]
        assert "".join(marked).replace("<think>", "").strip().startswith(THOUGHTS[0])
        assert "Brown" not in "".join(marked)
        bold = [painted.plain[span.start : span.end] for span in painted.spans if span.style == "bold green"]
        assert "".join(bold).strip() == "Brown.<|im_end|>"
    dropped = chat_of("dropped")
    assert "italic" not in str(dropped.paint(dropped.encode(conversation(1), [SIZE])).spans)
