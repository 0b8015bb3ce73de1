"""`skinvl generate`: every question of a run's eval sets answered exactly once, whatever stops it in between."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from skinvl.data import mixture
from skinvl.data.example import Example, words
from skinvl.data.mixture import digests
from skinvl.evaluate import vllm_engine
from skinvl.evaluate.distributed import predict, ranks
from skinvl.evaluate.engine import Engine, Question, Transformers, blocks, questions
from skinvl.evaluate.robustness import variants
from skinvl.model.loaded import load_model
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.recipe import Recipe
from skinvl.score.predictions import Answer, PredictionJournal, rule

PICTURE = r"(?:image|picture|photo|photograph|view)"
# Words by which one of several images is meant for its place among them; who first noticed something means none.
TIME = r"(?![- ](?:notic\w*|appear\w*|start\w*|saw|seen|time|day|week|month|year)\b)"
PLACE = re.compile(
    rf"\b(first{TIME}|second|third|fourth|fifth|former|latter|last {PICTURE}"
    rf"|{PICTURE} (\d+|[a-e]|one|two|three|four))\b",
    re.IGNORECASE,
)


class GenerateError(ValueError):
    """Nothing to ask, or an engine that cannot be had."""


def main(arguments: Sequence[str]) -> int:
    """0, once the predictions lie in the run, or in the folder of a base alone."""
    parser = recipe_parser(
        "generate", "Answer every question of the eval sets, with a run's adapter or a base alone.", run=True
    )
    args = parser.parse_intermixed_args(arguments)
    generate_sets(*run.evaluated(args.recipe, args.overrides))
    return 0


def generate_sets(recipe: Recipe, out: Path) -> None:
    """Writes to `out/eval` the answer to each question of the eval sets, and to some with other images or words.

    These are the images of another question, its own in reverse order, or what `evaluate.robustness` names.
    """
    state = ranks()
    say = Console(quiet=not state.is_main_process)
    sets = mixture.load(recipe.data).evaluation
    if not sets:
        raise GenerateError(
            "data.eval: names no source, so that there is nothing to ask; name one in the recipe, or on the command "
            'line: "data.eval=[{source: NAME, split: test}]"'
        )
    if state.is_main_process:
        run.begin(out, recipe)
    engine = _engine(recipe, state)
    files = digests(recipe.data)

    for name, rows in sets.items():
        asked = list(chain.from_iterable(map(questions, rows)))
        subsets = {"answers": asked, "permuted": permuted(asked, recipe)}
        if recipe.evaluate.image_order == "reversed":
            subsets["reversed"], placed = reordered(asked)
            if placed:
                say.print(f"{name}: {placed:,} questions name one of several images by its place; not asked reversed")
        ways: list[tuple[str, list[Question], Engine, dict[str, Any]]]
        ways = [(folder, subset, engine, {}) for folder, subset in subsets.items()]
        for way in variants(recipe.evaluate):
            ways.append((f"robustness/{way.name}", way.of(asked), way.engine(engine), {"variant": way.facts}))
        for folder, subset, asks, more in ways:
            if subset:
                settings = {"set": name, "rows": len(subset), "data": files, "engine": recipe.evaluate.engine, **more}
                settings |= {"generation": recipe.evaluate.generation.model_dump(), **engine.facts}
                journal = PredictionJournal(out / "eval" / folder / f"{name}.jsonl", settings, Answer)
                write_answers(asks, subset, journal, recipe.evaluate.batch_size, state, say)


def write_answers(
    engine: Engine, asked: Sequence[Question], journal: PredictionJournal, size: int, state: PartialState, say: Console
) -> None:
    """Finishes the journal: each rank answers its share of the questions that are not in it yet."""
    rows = predict(journal, asked, lambda left: blocks(left, size), engine.answers, state, say)
    refused = Counter(rule(row.detail) for row in rows if row.answer is None)
    cut = sum(row.finish_reason == "length" for row in rows)
    summary = f"{len(rows) - refused.total():,} answers, {cut:,} of them cut at max_new_tokens"
    say.print(
        f"{journal.path}: {summary}{''.join(f'; {count:,} refused: {reason}' for reason, count in refused.items())}"
    )


def permuted(asked: Sequence[Question], recipe: Recipe) -> list[Question]:
    """A sample of the questions, each with the images of another."""
    shown = [question for question in asked if question.row.example.images]
    generator = random.Random(recipe.evaluate.generation.seed)
    if len(shown) > recipe.evaluate.control_rows:
        chosen = sorted(generator.sample(range(len(shown)), recipe.evaluate.control_rows))
        shown = [shown[index] for index in chosen]
    rows = mixture.permuted([question.row for question in shown], generator)
    return [replace(question, row=row) for question, row in zip(shown, rows, strict=True) if row is not None]


def reordered(asked: Sequence[Question]) -> tuple[list[Question], int]:
    """The questions about several images, each with those of every turn in reverse order, and how many are left out.

    Left out are those that name an image by its place: another order has another answer.
    """
    turned, placed = [], 0
    for question in asked:
        example = question.row.example
        order = list(chain.from_iterable(map(reversed, _by_turn(example))))
        images = tuple(example.images[number] for number in order)
        if images == example.images:
            continue
        said = [*map(words, example.messages), *example.options, *(other.text for other in example.references)]
        if any(map(PLACE.search, said)):
            placed += 1
            continue
        views = tuple(example.facts.views[number] for number in order) if example.facts.views else ()
        facts = replace(example.facts, views=views)
        row = replace(question.row, example=replace(example, images=images, facts=facts))
        turned.append(replace(question, row=row))
    return turned, placed


def _by_turn(example: Example) -> Iterator[range]:
    """The numbers of the images that each turn shows."""
    start = 0
    for message in example.messages:
        count = sum(part["type"] == "image" for part in message["content"])
        yield range(start, start + count)
        start += count


def _engine(recipe: Recipe, state: PartialState) -> Engine:
    if recipe.evaluate.engine == "vllm":
        if state.num_processes > 1:
            raise GenerateError(
                "evaluate.engine=vllm: it shares the GPUs out itself; start one process, without torchrun"
            )
        return vllm_engine.Vllm(recipe)
    workers = int(recipe.train.get("dataloader_num_workers", 0))
    return Transformers(load_model(recipe, state.device), recipe.evaluate.generation, workers)
