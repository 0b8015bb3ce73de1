"""A conversation as token ids and labels, through the base's own chat template: exactly its answers are trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from PIL import Image
from rich.text import Text
from transformers import ProcessorMixin

from skinvl.data import changes, pixels
from skinvl.data.example import Example, Message, words
from skinvl.data.example import text as turn
from skinvl.data.profiles import Profiles
from skinvl.model.families import Family, Picture, ShapeError, Size
from skinvl.recipe.recipe import ImageChange

UNTRAINED = -100  # the label of a position that is not trained, as everywhere in PyTorch
DATE = "26 Jul 2024"  # what the Llama templates themselves fall back to; the day of a run would change its prompts


class ChatError(ValueError):
    """A conversation that cannot be trained on as it is; `rule` names why, `detail` says what was found."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule, self.detail = rule, detail


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation, ready for the model.

    `labels` has -100 where nothing is trained and is not shifted. The pictures are those of the Example's first
    images: all of them, unless turns were dropped.
    """

    ids: list[int]
    labels: list[int]
    pictures: tuple[Picture, ...]
    turns: int  # question-answer pairs kept


class Chat:
    """Encodes Examples for one base.

    The template in use is `template`: the processor's own, with the date it may print pinned and what its family
    settles. It is put back into the processor and its tokenizer, so that saving them saves what was trained with.

    Args:
        image_tokens: the budget of one image, in positions.
        max_tokens: the most ids a conversation may have.
        too_long: a longer one is refused ("ledger"), or loses whole question-answer pairs from its end ("drop_turns").
        profiles: how images tagged with a colour profile are read.
        thoughts: those of answers are left out ("dropped"), read but not trained ("shown"), or trained ("trained").

    Raises:
        ValueError: the processor has no chat template, one without a place for the thoughts that are asked for, or one
            that writes a turn which no conversation has.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        family: Family,
        image_tokens: int,
        max_tokens: int,
        too_long: Literal["ledger", "drop_turns"] = "ledger",
        profiles: Profiles = "srgb",
        thoughts: Literal["dropped", "shown", "trained"] = "dropped",
    ) -> None:
        if thoughts != "dropped" and family.thoughts is None:
            raise ValueError(
                f"data.thoughts: found {thoughts}, and the chat template of {family.model_type} has no place for a "
                "thought; expected dropped, or a base whose template has one (such as qwen3.5-4b)"
            )
        family.prepare_processor(processor)
        self.processor, self.family, self.profiles = processor, family, profiles
        self.change: ImageChange | None = None
        self.thoughts, self.thinking = thoughts, family.thoughts if thoughts != "dropped" else None
        self.max_tokens, self.too_long = max_tokens, too_long
        self.tokenizer: Any = processor.tokenizer
        self.template = family.template(_pinned(_template(processor)), self.thinking is not None)
        processor.chat_template = self.tokenizer.chat_template = self.template
        self.image_arguments = family.image_arguments(processor, image_tokens)
        self.image_id: int = self.tokenizer.convert_tokens_to_ids(family.soft_token or family.image_token)
        # With it what else stands among an image's positions.
        self.image_ids = frozenset({self.image_id, *self.tokenizer.convert_tokens_to_ids(list(family.breaks))})
        close: int = self.tokenizer.convert_tokens_to_ids(family.turn_close)
        # The ids at which a thought begins and ends, and whether what a model says begins within one.
        marks = self.tokenizer.convert_tokens_to_ids(list(family.thoughts.marks)) if family.thoughts else (None, None)
        self.marks: tuple[int | None, int | None] = (marks[0], marks[1])
        self.begins_within = self.thinking is not None and not self.thinking.opening
        # Padded positions are masked and untrained: where a tokenizer has no padding token any id serves.
        self.pad_id: int = close if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        # Some tokenizers have tokens of blanks alone among these, which any text may hold.
        added = {
            token.content for token in self.tokenizer.added_tokens_decoder.values() if token.content.strip(" \t\n▁")
        }
        self._control = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))))
        self._pictures: dict[Size, Picture] = {}
        self._require_no_other_turn()

    def _require_no_other_turn(self) -> None:
        """Refuses a template that begins a conversation with a turn of its own, where its family has none.

        Raises:
            ValueError: it does; the message shows the turn.
        """
        first = self.family.first_turn
        if first is None:
            return
        written = self.render((turn("user", "?"), turn("assistant", ".")))
        if not written.startswith(first):
            raise ValueError(
                f"the base's chat template begins a conversation with {written.partition(first)[0]!r:.400}, which no "
                f"conversation has; expected {first!r}. Give a base whose template adds no turn, or take that turn out "
                "of its chat_template.jinja"
            )

    def encode(self, example: Example, sizes: Sequence[Size]) -> Encoded:
        """The ids and labels of a conversation whose images have these sizes.

        Raises:
            ChatError: it cannot be trained on; rules: control-token, image-too-elongated, template-refused, no-answer,
                too-long.
        """
        messages, thoughts = list(example.messages), self._thoughts(example)
        if not any(message["role"] == "assistant" for message in messages):
            raise ChatError("no-answer", "no assistant turn; expected at least one to train on")
        whole: int | None = None
        while True:
            encoded = self._encode(messages, thoughts, sizes, generation=False)
            if len(encoded.ids) <= self.max_tokens:
                return encoded
            whole = whole or len(encoded.ids)
            if self.too_long == "ledger" or encoded.turns == 1:
                least = "" if whole == len(encoded.ids) else f", {len(encoded.ids)} in its first turn alone"
                raise ChatError("too-long", f"{whole} tokens{least}; expected at most {self.max_tokens}")
            del messages[-2:]

    def prompt(self, example: Example, sizes: Sequence[Size], thought: bool = True) -> Encoded:
        """What a model is asked at inference: everything before the last answer, and that answer's opening.

        Nothing is trained in it, and it may exceed `max_tokens`.

        Args:
            thought: whether a thought may come first, where answers are trained with theirs; else it ends as before an
                answer without one.

        Raises:
            ChatError: as `encode`, but for too-long.
        """
        thoughts = self._thoughts(example)[:-1]
        if thought or self.thinking is None:
            return self._encode(list(example.messages[:-1]), thoughts, sizes, generation=True)
        whole = self._encode(list(example.messages), [*thoughts, None], sizes, generation=False)
        *_, start = (n for n, (before, label) in enumerate(pairwise(whole.labels), 1) if before == UNTRAINED != label)
        return Encoded(whole.ids[:start], whole.labels[:start], whole.pictures, whole.turns - 1)

    def thought_and_answer(self, ids: Sequence[int], thought: bool = True) -> tuple[str | None, str]:
        """What a model said: its thought, None where it has none, and its answer, which holds nothing of a thought.

        Args:
            ids: what follows the prompt. Where a thought does not end the answer is empty.
            thought: as of the `prompt`.
        """
        ids, known = list(ids), self.family.thoughts
        begin, end = self.marks
        if end in ids:
            cut = len(ids) - ids[::-1].index(end)
            within, rest = ids[: cut - 1], ids[cut:]
            if begin in rest:  # another thought, which does not end
                again = rest.index(begin)
                within, rest = [*within, *rest[again:]], rest[:again]
            answer = self._decode(rest).lstrip("\n")
        elif begin in ids:
            within, answer = ids, self._decode(ids[: ids.index(begin)])
        elif thought and self.begins_within:
            within, answer = ids, ""
        else:
            return None, self._decode(ids)
        assert known is not None
        if begin in within:
            within = within[within.index(begin) + 1 :]
        within = [id_ for id_ in within if id_ not in self.marks]
        return self._decode(within).removeprefix(known.opening[len(known.marks[0]) :]).strip() or None, answer

    def render(self, messages: Sequence[Message], generation: bool = False, thoughts: Sequence[str | None] = ()) -> str:
        """The text of a conversation as the template writes it, before images are expanded.

        Args:
            thoughts: of each answer; none where there are none.

        Raises:
            ChatError: the template refuses it (template-refused).
        """
        plain = [_plain(message) for message in messages]
        turns = (number for number, message in enumerate(messages) if message["role"] == "assistant")
        for number, thought in zip(turns, thoughts, strict=False):
            if thought is not None and self.thinking is not None:
                plain[number] = self.thinking.with_thought(plain[number], thought)
        try:
            text: str = self.processor.apply_chat_template(plain, add_generation_prompt=generation, tokenize=False)
        except jinja2.TemplateError as error:
            raise ChatError("template-refused", f"the base's chat template says: {error}") from error
        return text

    def picture(self, size: Size) -> Picture:
        """What an image of this size becomes within the budget.

        Raises:
            ChatError: it is too elongated (image-too-elongated).
        """
        if size not in self._pictures:
            try:
                self._pictures[size] = self.family.picture(self.processor, size, self.image_arguments)
            except ShapeError as error:
                raise ChatError("image-too-elongated", str(error)) from error
        return self._pictures[size]

    def upright(self, path: Path) -> Image.Image:
        """The RGB pixels of an image file, its colours read as the base is trained on them.

        Raises:
            ImageError: it cannot be read.
        """
        image = pixels.upright(path, self.profiles)
        return image if self.change is None else changes.changed(image, self.change)

    def seeing(self, change: ImageChange) -> Chat:
        """The same chat with every image changed once it is decoded."""
        other = copy.copy(self)
        other.change = change
        return other

    def pixels(self, image: Any) -> torch.Tensor:
        """What the base's vision tower reads of an RGB PIL image within the budget."""
        return self.family.pixels(self.processor, image, self.image_arguments)

    def paint(self, encoded: Encoded) -> Text:
        """The conversation as coloured text: what is trained stands out, an image's tokens are one ⟨image ×N⟩.

        Thoughts have colours of their own, trained or not; in a chat that drops them there are none.
        """
        painted = Text()
        triples = list(zip(encoded.ids, encoded.labels, self._within(encoded.ids), strict=True))
        for (image, trained, within), run in groupby(
            triples, lambda triple: (triple[0] in self.image_ids, triple[1] != UNTRAINED, triple[2])
        ):
            ids = [id_ for id_, *_ in run]
            if image:
                painted.append(f"⟨image ×{len(ids)}⟩", style="magenta")
            elif within:
                painted.append(self.tokenizer.decode(ids), style="green italic" if trained else "cyan italic")
            else:
                painted.append(self.tokenizer.decode(ids), style="bold green" if trained else "dim")
        return painted

    def _within(self, ids: Sequence[int]) -> Iterator[bool]:
        """Of each id whether it is of a thought, its marks included."""
        (begin, end), within = self.marks if self.thinking else (None, None), False
        for id_ in ids:
            within = within or id_ == begin
            yield within
            within = within and id_ != end

    def _thoughts(self, example: Example) -> list[str | None]:
        """The thought of each answer as it is shown; stripped, as one template or another would do it."""
        if self.thinking is None or not example.thoughts:
            return [None] * sum(message["role"] == "assistant" for message in example.messages)
        return [thought.strip() if thought else None for thought in example.thoughts]

    def _encode(
        self, messages: list[Message], thoughts: Sequence[str | None], sizes: Sequence[Size], generation: bool
    ) -> Encoded:
        for message in messages:
            if token := self._control.search(words(message)):
                raise ChatError("control-token", f"{token[0]} in the text of a {message['role']} turn")
        for thought in thoughts:
            if thought is not None and (token := self._control.search(thought)):
                raise ChatError("control-token", f"{token[0]} in the text of a thought")
        parts = [part for message in messages for part in message["content"]]
        pictures = tuple(self.picture(size) for size in sizes[: sum(part["type"] == "image" for part in parts)])

        # The text as the template writes it, in pieces: an answer with its end of turn, or what stands between two.
        answers = [words(message) for message in messages if message["role"] == "assistant"]
        answers = [answer.strip() for answer in answers] if self.family.trims else answers
        text = self.family.spelled(self.render(messages, generation, thoughts))
        before = thoughts[: len(answers)]
        pieces, trained = zip(*self._pieces(text, answers, before, generation), strict=True)

        # The ids of each piece on its own, an image's token as often as the image has positions.
        ids: list[int] = []
        labels: list[int] = []
        rest = iter(pictures)
        shown = 0
        for piece, is_trained in zip(self._tokenize(pieces), trained, strict=True):
            shown += piece.count(self.image_id)
            if shown > len(pictures):
                break
            expanded = [id_ for token in piece for id_ in self._expand(token, rest)]
            ids += expanded
            labels += expanded if is_trained else [UNTRAINED] * len(expanded)
        if shown != len(pictures):
            raise ChatError("template-refused", f"the chat template shows {shown} images; expected {len(pictures)}")
        return Encoded(ids, labels, pictures, len(answers))

    def _pieces(
        self, text: str, answers: Sequence[str], thoughts: Sequence[str | None], generation: bool
    ) -> Iterator[tuple[str, bool]]:
        # Cut where inference cuts: a prompt ends just before its answer, so its ids cannot depend on the answer.
        # Data holds no control token, hence whatever opens a turn in the text was written by the template.
        known = self.thinking
        opening, closing = known.turn_open if known else self.family.opens(self.template), self.family.turn_close
        space = " " if self.family.prefix_space else ""  # before an answer: its first token has it, whoever wrote it
        turns = text.count(opening)
        if turns != (wanted := len(answers) + generation):
            raise ChatError("template-refused", f"the chat template opens {turns} answers; expected {wanted}")
        cursor = 0
        for answer, thought in zip(answers, thoughts, strict=True):
            start = text.index(opening, cursor) + len(opening)
            before = ""
            if known is not None:
                before = known.absent if thought is None else known.opening + thought + known.closing
                if not text.startswith(before, start):
                    raise ChatError(
                        "template-refused",
                        f"the chat template writes {text[start : start + 40]!r}; expected {before[:40]!r}",
                    )
            start, thought_start = start + len(before), start
            begin = start + (len(space) if text.startswith(space, start) else 0)
            end = begin + len(answer) + len(closing)
            if text[begin:end] != answer + closing:
                raise ChatError(
                    "template-refused",
                    f"the chat template writes {text[start : start + 40]!r}; "
                    f"expected the answer as it is, {answer[:40]!r}",
                )
            if thought is None:
                yield text[cursor:start], False
            else:
                yield text[cursor:thought_start], False
                yield before, self.thoughts == "trained"
            yield text[begin:end], True
            cursor = end
        yield text[cursor:], False

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _tokenize(self, pieces: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(pieces), add_special_tokens=False)["input_ids"]
        return ids

    def _expand(self, token: int, rest: Iterator[Picture]) -> list[int]:
        return self.family.expanded(self.processor, next(rest)) if token == self.image_id else [token]


def _template(processor: ProcessorMixin) -> str:
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    if not isinstance(template, str):
        raise ValueError(
            f"{type(processor).__name__}: no chat template; expected chat_template.jinja beside the base's weights. "
            "Use an instruction-tuned base, or put its template there"
        )
    return template


def _pinned(template: str) -> str:
    pin = f'{{%- set date_string = "{DATE}" -%}}\n'
    return template if "date_string" not in template or template.startswith(pin) else pin + template


def _plain(message: Message) -> dict[str, Any]:
    # A system turn goes in as a string (the Llama templates print a list as Python would), and no part may have a key
    # "image" or "text" that it does not use: the Qwen templates look for the key alone.
    if message["role"] == "system":
        return {"role": "system", "content": words(message)}
    content = [
        {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]}
        for part in message["content"]
    ]
    return {"role": message["role"], "content": content}
