"""`skinvl classify`: how likely a model holds each class of an image, all classes in one forward; and what it says.

The likelihood of a class is log p(its name and the end of the turn | image, question), the sum over the name's tokens.
With its end counted in, no class is part of another: over the classes of a set the softmax is exactly p(class | the
answer is one of them). Score makes of it the length-normalised variant, which divides by the number of tokens (Brown et
al. 2020, Language Models are Few-Shot Learners, 2.4), and the prior-corrected one, which takes away the likelihood of
the name without the image (PMI: Holtzman et al. 2021, Surface Form Competition, equation 2). A class is named without a
thought, and the prompt that lists the classes asks for none: where answers are trained with theirs, both stand where
the base's template has an answer without one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash
from accelerate import PartialState
from peft import PeftModel
from rich.console import Console
from torch.utils.data import DataLoader

from skinvl.data import mixture
from skinvl.data.example import Example, text, words
from skinvl.data.mixture import Row
from skinvl.evaluate import benchmarks, contamination, text_sets
from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.evaluate.distributed import predict, ranks
from skinvl.evaluate.engine import packed
from skinvl.evaluate.text_sets import Unread
from skinvl.model import infer
from skinvl.model.chat import UNTRAINED
from skinvl.model.loaded import LoadedModel, load_model
from skinvl.model.pack import Batch, Collator
from skinvl.model.row import EncodedRow, encode_last_answer, encode_prompt
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.files import write_text
from skinvl.recipe.recipe import ClassSpec, Generation, Recipe
from skinvl.score import predictions
from skinvl.score.predictions import Classified, PredictionJournal, unscored
from skinvl.score.text_sets import FOLDER

PROMPTED = Generation(max_new_tokens=48)  # a class name, and a few words around it


class ClassifyError(ValueError):
    """Nothing to classify."""


def main(words: Sequence[str]) -> int:
    """0, once the predictions lie in the run, or in the folder of a base alone."""
    parser = recipe_parser("classify", "Weigh the classes of each image, by likelihood and by asking.", run=True)
    arguments = parser.parse_intermixed_args(words)
    classify_sets(*run.evaluated(arguments.recipe, arguments.overrides))
    return 0


def classify_sets(recipe: Recipe, out: Path) -> None:
    """Writes the likelihoods of each set that the recipe classifies to `out/eval/classes`, and of its text sets."""
    texts = {name: text_sets.read(name, Path(path)) for name, path in recipe.evaluate.text_sets.items()}
    if not (recipe.evaluate.classify or recipe.evaluate.text_sets):
        raise ClassifyError(benchmarks.lacking("classify"))
    state = ranks()
    say = Console(quiet=not state.is_main_process)
    if state.is_main_process:
        run.begin(out, recipe)
    # What an adapter was trained on; of a base alone nobody knows.
    train = mixture.load(recipe.data).train if recipe.init_adapter is not None else []
    loaded = load_model(recipe, state.device)
    folder = out / "eval" / "classes"
    specs = benchmarks.expanded(recipe.evaluate.classify)
    for name, spec in zip(benchmarks.names(specs), specs, strict=True):
        classified(loaded, spec, spec.split, train, folder / f"{name}.jsonl", state, say)
        if spec.validation is not None:
            classified(loaded, spec, spec.validation, train, folder / f"{name}.validation.jsonl", state, say)
    for name, (task, unread) in texts.items():
        _ask_text(loaded, name, task, unread, out / "eval" / FOLDER, state, say)


def _ask_text(
    loaded: LoadedModel,
    name: str,
    task: Task,
    unread: Sequence[Unread],
    folder: Path,
    state: PartialState,
    say: Console,
) -> None:
    """Writes what the adapter, where there is one, and the base with the adapter off make of a set's letters."""
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in unread)
        write_text(folder / f"{name}.ledger.jsonl", "".join(lines))
    say.print(f"{name}: {len(task.samples):,} questions, {len(unread):,} rows that cannot be asked")
    model = loaded.model
    off = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
    said = "\n".join(words(turn) for sample in task.samples for turn in sample.example.messages)
    digest = xxhash.xxh3_128_hexdigest(said.encode())
    settings = {"set": name, "rows": len(task.samples), "digest": digest, "classes": list(task.classes)}
    sides: dict[str, tuple[LoadedModel, AbstractContextManager[None]]]
    sides = {"adapter": (loaded, nullcontext())} if isinstance(model, PeftModel) else {}
    sides["base"] = (replace(loaded, facts={**loaded.facts, "adapter": None}), off)
    for side, (asked, way) in sides.items():
        with way:
            collate = ClassCollator(asked.collator, task, False)
            _write(asked, task, collate, {**settings, **asked.facts}, folder / side / f"{name}.jsonl", state, say)


def classified(
    loaded: LoadedModel,
    spec: ClassSpec,
    split: str,
    train: Sequence[Row],
    path: Path,
    state: PartialState,
    say: Console,
) -> None:
    """Writes the predictions of a split to the path; each rank makes its share of those that were lacking.

    Samples that share a group or an image with the train rows are not classified, unless `data.allow_leak` has it so.
    """
    task, leaking = contamination.guarded(benchmarks.load(spec, split), train, loaded.recipe.data.allow_leak)
    collate = ClassCollator(loaded.collator, task, loaded.recipe.evaluate.prompted)
    tokens, prior = collate.names(loaded, predictions.begun(path))
    settings = {
        **benchmarks.settings(task, spec, split, path),
        "question": task.question,
        "leaking": leaking,
        "allow_leak": loaded.recipe.data.allow_leak,
        "prompted": loaded.recipe.evaluate.prompted,
        "label_tokens": tokens,
        "prior": prior,
        **loaded.facts,
    }
    _write(loaded, task, collate, settings, path, state, say)


def _write(
    loaded: LoadedModel,
    task: Task,
    collate: ClassCollator,
    settings: dict[str, Any],
    path: Path,
    state: PartialState,
    say: Console,
) -> None:
    """Writes the predictions of a task to the path."""
    size = max(1, loaded.recipe.evaluate.batch_size // len(task.classes))
    workers = int(loaded.recipe.train.get("dataloader_num_workers", 0))

    def predicted(blocks: Any) -> Iterator[list[Classified]]:  # anything with a length and items is a dataset
        return classified_batches(
            loaded, task, DataLoader(blocks, batch_size=None, collate_fn=collate, num_workers=workers)
        )

    rows = predict(
        PredictionJournal(path, settings, Classified),
        task.samples,
        lambda left: [left[start : start + size] for start in range(0, len(left), size)],
        predicted,
        state,
        say,
    )
    say.print(f"{path}: {len(rows):,} rows, {len(task.classes)} classes{unscored(rows)}")


@dataclass(frozen=True, slots=True)
class ClassCollator:
    """Samples → one batch with a conversation for each class of each of them: a collate function."""

    collator: Collator
    task: Task
    prompted: bool

    def __call__(self, samples: Sequence[Sample]) -> ClassBatch:
        """The samples that can be classified, with their batches, and the records of the others."""
        to_ask = [sample for sample in samples if self.task.asks(sample)]
        asked, (classes, prompts), refused = packed(
            to_ask, lambda sample: Row(sample.example, sample.root), self._encoded, self._packed
        )
        refused += [(sample, sample.detail) for sample in samples if not self.task.asks(sample)]
        return ClassBatch(asked, classes, prompts, [sample.record(None, why) for sample, why in refused])

    def _encoded(self, sample: Sample) -> tuple[list[EncodedRow], list[EncodedRow]]:
        """A sample with each class for its answer, and the prompt that lists them, if it is to be asked."""
        named = [self._named(sample.root, self._naming(sample.example, name)) for name in self.task.classes]
        return named, [self._prompt(sample)] if self.prompted else []

    def _packed(
        self, encoded: Sequence[tuple[list[EncodedRow], list[EncodedRow]]]
    ) -> tuple[Batch | None, Batch | None]:
        named = [row for rows, _ in encoded for row in rows]
        prompts = [row for _, rows in encoded for row in rows]
        return self.collator.pack(named) if named else None, self.collator.pack(prompts) if prompts else None

    def names(self, loaded: LoadedModel, begun: dict[str, Any] | None) -> tuple[list[int], list[float] | None]:
        """Of each class, the tokens of its name and its end, and how likely they are where no image is shown.

        The latter is None where each sample asks a question of its own; what was `begun` keeps what it began with.
        """
        unseen = [self._named(Path(), self._unseen(name)) for name in self.task.classes]
        tokens = [sum(label != UNTRAINED for label in row.encoded.labels) for row in unseen]
        if begun is not None:
            return tokens, begun["prior"]
        if self.task.question is None:
            return tokens, None
        with loaded.autocast():
            return tokens, infer.likelihoods(loaded.model, self.collator.pack(unseen))

    def _named(self, root: Path, example: Example) -> EncodedRow:
        return encode_last_answer(self.collator.chat, Row(example, root))

    def _prompt(self, sample: Sample) -> EncodedRow:
        example = sample.example
        if self.task.question is not None:
            listed = f"{self.task.question}\nAnswer with one of these: {'; '.join(self.task.classes)}."
            example = _asking(example, listed, len(example.images))
        return encode_prompt(self.collator.chat, Row(example, sample.root), thought=False)

    def _naming(self, example: Example, name: str) -> Example:
        thoughts = (*example.thoughts[:-1], None) if example.thoughts else ()
        return replace(example, messages=(*example.messages[:-1], text("assistant", name)), thoughts=thoughts)

    def _unseen(self, name: str) -> Example:
        question = self.task.question or "?"
        return Example(
            "prior", "skinvl", (), (text("user", question), text("assistant", name)), "prior", "none", "none"
        )


@dataclass(frozen=True, slots=True)
class ClassBatch:
    """Samples with the batch of their classes, class after class of each, and that of their prompts."""

    samples: list[Sample]
    classes: Batch | None
    prompts: Batch | None
    refused: list[Classified]


def classified_batches(loaded: LoadedModel, task: Task, loader: Iterable[ClassBatch]) -> Iterator[list[Classified]]:
    """The records of each batch."""
    count = len(task.classes)
    for batch in loader:
        records = list(batch.refused)
        if batch.classes is not None:
            answers: list[str | None] = [None] * len(batch.samples)
            with loaded.autocast():
                scores = infer.likelihoods(loaded.model, batch.classes)
                if batch.prompts is not None:
                    generated = infer.generate(loaded.model, loaded.chat, batch.prompts, PROMPTED)
                    answers = [loaded.chat.thought_and_answer(answer.ids, thought=False)[1] for answer in generated]
            for number, (sample, answer) in enumerate(zip(batch.samples, answers, strict=True)):
                own = scores[number * count : (number + 1) * count]
                records.append(sample.record(own, "" if sample.label else sample.detail, answer, task.classes))
        yield records


def _asking(example: Example, question: str, images: int) -> Example:
    return replace(example, messages=(*example.messages[:-2], text("user", question, images), example.messages[-1]))
