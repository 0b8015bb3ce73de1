"""Questions of an eval set and what answers them: which are asked together, and the record of each answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import xxhash
from torch.utils.data import DataLoader

from skinvl.data.example import words
from skinvl.data.mixture import Row
from skinvl.data.pixels import ImageError
from skinvl.data.sampler import alike, together
from skinvl.model import infer
from skinvl.model.chat import ChatError
from skinvl.model.loaded import LoadedModel
from skinvl.model.pack import Batch, Collator
from skinvl.model.row import encode_prompt, read_images
from skinvl.recipe.recipe import Generation, ImageChange
from skinvl.score.predictions import Answer

Item = TypeVar("Item")
Encoding = TypeVar("Encoding")
Packed = TypeVar("Packed")


@dataclass(frozen=True, slots=True)
class Question:
    """One question: a conversation whose last turn is the reference answer, and how it is told from the others."""

    id: str
    row: Row

    @property
    def key(self) -> str:
        """As `predictions.key`."""
        return f"{self.row.example.source}/{self.id}"


class Engine(Protocol):
    """What answers questions; `facts` are those of its model."""

    facts: dict[str, Any]

    def answers(self, blocks: Sequence[Sequence[Question]]) -> Iterator[list[Answer]]:
        """The answers to each block of questions, which all show images or none."""

    def seeing(self, change: ImageChange) -> Engine:
        """The same model, to which every image is shown changed."""


def questions(row: Row) -> Iterator[Question]:
    """The questions of a conversation, each with everything before it; the first keeps the conversation's id.

    What an Example says of its answer beside the words (references, options, schema) it says of its last one.
    """
    turns = [turn for turn, message in enumerate(row.example.messages) if message["role"] == "assistant"]
    for number, turn in enumerate(turns, 1):
        messages = row.example.messages[: turn + 1]
        shown = sum(part["type"] == "image" for message in messages for part in message["content"])
        facts = replace(row.example.facts, views=row.example.facts.views[:shown])
        thoughts, images = row.example.thoughts[:number], row.example.images[:shown]
        example = replace(row.example, messages=messages, images=images, facts=facts, thoughts=thoughts)
        if number < len(turns):
            example = replace(example, references=(), options=(), right=(), schema=None)
        yield Question(row.example.id + (f"#{number}" if number > 1 else ""), replace(row, example=example))


def blocks(asked: Sequence[Question], size: int) -> list[list[Question]]:
    """Questions to ask together, those about the same images side by side, those without any apart."""
    rows = [question.row for question in asked]
    kinds = alike(rows)
    parts = [
        [number for number, row in enumerate(rows) if bool(row.example.images) == shown] for shown in (True, False)
    ]
    return [[asked[number] for number in block] for part in parts for block in together(kinds, part, size)]


def seed_of(question: Question, generation: Generation) -> int:
    """The seed of a question's answer: its own, whatever is asked beside it; 0 where nothing is drawn."""
    if not generation.do_sample:
        return 0
    return xxhash.xxh3_64_intdigest(f"{generation.seed} {question.key}".encode()) >> 1


def answer(
    question: Question,
    text: str | None,
    finish_reason: Literal["stop", "length", "refused"],
    detail: str = "",
    tokens: int = 0,
    seed: int = 0,
    thought: str | None = None,
) -> Answer:
    """The record of an answer, or of why there is none."""
    example = question.row.example
    *_, question_turn, reference_turn = example.messages
    return Answer(
        id=question.id,
        source=example.source,
        group=example.group,
        images=tuple(str((question.row.root / name).absolute()) for name in example.images),
        question=words(question_turn),
        reference=words(reference_turn),
        facts=example.facts,
        answer=text,
        finish_reason=finish_reason,
        detail=detail,
        tokens=tokens,
        seed=seed,
        references=example.references,
        options=example.options,
        right=example.right,
        schema=example.schema,
        thought=thought,
    )


class Transformers:
    """The engine that every training has: its own model, on shared prefixes.

    Args:
        workers: processes that read images ahead.
    """

    def __init__(self, loaded: LoadedModel, generation: Generation, workers: int = 0) -> None:
        self.loaded, self.generation, self.workers, self.facts = loaded, generation, workers, loaded.facts

    def seeing(self, change: ImageChange) -> Transformers:
        """As Engine. It reads pixels: cached features are those of the images as they are."""
        collator = replace(self.loaded.collator, chat=self.loaded.chat.seeing(change), cache=None)
        return Transformers(replace(self.loaded, collator=collator), self.generation, self.workers)

    def answers(self, blocks: Sequence[Sequence[Question]]) -> Iterator[list[Answer]]:
        """As Engine."""
        dataset: Any = blocks  # anything with a length and items is one
        loader: Any = DataLoader(
            dataset, batch_size=None, collate_fn=QuestionCollator(self.loaded.collator), num_workers=self.workers
        )
        for asked, batch, refused in loader:
            if batch is None:
                yield refused
                continue
            seeds = [seed_of(question, self.generation) for question in asked]
            with self.loaded.autocast():
                answers = infer.generate(self.loaded.model, self.loaded.chat, batch, self.generation, seeds)
            parted = [self.loaded.chat.thought_and_answer(generated.ids) for generated in answers]
            yield refused + [
                answer(
                    question,
                    text,
                    generated.finish_reason,
                    tokens=generated.tokens,
                    seed=seed,
                    thought=thought,
                )
                for question, generated, seed, (thought, text) in zip(asked, answers, seeds, parted, strict=True)
            ]


@dataclass(frozen=True, slots=True)
class QuestionCollator:
    """Questions → their batch: a collate function."""

    collator: Collator

    def __call__(self, block: Sequence[Question]) -> tuple[list[Question], Batch | None, list[Answer]]:
        """The questions that can be asked, their batch, and the record of each of the others."""
        asked, batch, refused = packed(
            block,
            lambda question: question.row,
            lambda question: encode_prompt(self.collator.chat, question.row),
            lambda prompts: self.collator.pack(prompts) if prompts else None,
        )
        return asked, batch, [answer(question, None, "refused", why) for question, why in refused]


def packed(
    items: Sequence[Item],
    row_of: Callable[[Item], Row],
    encode: Callable[[Item], Encoding],
    pack: Callable[[list[Encoding]], Packed],
    whole: bool = False,
) -> tuple[list[Item], Packed, list[tuple[Item, str]]]:
    """The items that can be asked, what `pack` makes of their encodings, and the others with the reason of each.

    An image that breaks off in the middle shows it to `pack` alone, which cannot tell whose it is. All are then packed
    a second time, with each image read to its end before, so that it refuses the items of its own row and no others.

    Args:
        whole: whether this is that second time.
    """
    asked, encodings, refused = [], [], []
    for item in items:
        try:
            encoding = encode(item)
            if whole:
                read_images(row_of(item))
        except (ChatError, ImageError) as error:
            refused.append((item, str(error)))
            continue
        asked.append(item)
        encodings.append(encoding)
    try:
        return asked, pack(encodings), refused
    except ImageError:
        if whole:
            raise
        return packed(items, row_of, encode, pack, whole=True)
