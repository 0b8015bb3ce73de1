"""`skinvl zeroshot`: how like each image is to the prompts of each class, by two towers that never learned the classes.

A class is the one embedding that its prompts come to (`prompts`), its score scale × cosine with the image's embedding,
the scale being the model's own: the softmax over the classes is what the model was trained to make of them (Radford et
al. 2021, arXiv:2103.00020, §3.1). Rows are those of `skinvl classify`. Beside its scores each has the class that every
template alone, and every choice of one name for each class, would give: score tells how much accuracy hangs on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console

from skinvl.data import mixture
from skinvl.data.mixture import Row
from skinvl.evaluate import benchmarks, contamination, embed, prompts
from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.evaluate.distributed import predict, ranks
from skinvl.evaluate.embed import Vectors
from skinvl.evaluate.prompts import ClassEmbeddings, Prompts
from skinvl.model.towers_loaded import LoadedTowers, load_towers
from skinvl.recipe import run
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.recipe import ClassSpec
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score.predictions import Classified, PredictionJournal, unscored
from skinvl.score.probabilities import PROMPTS


class ZeroshotError(ValueError):
    """Nothing to classify."""


def main(words: Sequence[str]) -> int:
    """0, once the predictions lie in the run, or in the folder of a base alone."""
    parser = recipe_parser("zeroshot", "Classify images by prompts of their classes, with two towers.", run=True)
    arguments = parser.parse_intermixed_args(words)
    zeroshot_sets(*run.evaluated_towers(arguments.recipe, arguments.overrides))
    return 0


def zeroshot_sets(recipe: PretrainRecipe, out: Path) -> None:
    """Writes the scores of each set that the recipe classifies to `out/eval/classes`.

    Raises:
        ZeroshotError: it classifies none.
        BenchmarkError, PromptError, TextListError: a set, its classes or the templates do not fit.
    """
    if not recipe.evaluate.classify:
        raise ZeroshotError(benchmarks.lacking("classify"))
    state = ranks()
    say = Console(quiet=not state.is_main_process)

    # What can be refused is refused before the towers are loaded.
    sets = []
    for name, spec in zip(benchmarks.names(recipe.evaluate.classify), recipe.evaluate.classify, strict=True):
        for split, file in ((spec.split, f"{name}.jsonl"), (spec.validation, f"{name}.validation.jsonl")):
            if split is not None:
                task = benchmarks.load(spec, split)
                asked = prompts.make(task.classes, recipe.evaluate.prompts, recipe.evaluate.synonyms)
                sets.append((spec, split, file, task, asked))
    if state.is_main_process:
        run.begin(out, recipe)

    # What a run was trained on; of a base alone nobody knows.
    train = mixture.load(recipe.data).train if recipe.init_adapter is not None else []
    loaded = load_towers(recipe, state.device)
    known: dict[Path, Vectors | str] = {}  # sets may show the same images
    for spec, split, file, task, asked in sets:
        _classified(loaded, spec, split, task, asked, train, out / "eval" / "classes" / file, known, state, say)


def _classified(
    loaded: LoadedTowers,
    spec: ClassSpec,
    split: str,
    task: Task,
    asked: Prompts,
    train: Sequence[Row],
    path: Path,
    known: dict[Path, Vectors | str],
    state: PartialState,
    say: Console,
) -> None:
    """Writes the predictions of a split to the path; each rank makes its share of those that were lacking.

    Samples that share a group or an image with the train rows are not classified, unless `data.allow_leak` has it so.
    """
    recipe = loaded.recipe
    task, leaking = contamination.guarded(task, train, recipe.data.allow_leak)

    # The classes as embeddings, and what they were made of.
    texts = asked.texts
    embeddings = prompts.embeddings(asked, dict(zip(texts, embed.texts(loaded, texts), strict=True)))
    model: Any = loaded.model
    scale = float(model.scale.value().detach())
    settings = {
        **benchmarks.settings(task, spec, split, path),
        "question": None,
        "leaking": leaking,
        "allow_leak": recipe.data.allow_leak,
        "variant": PROMPTS,
        "prompts": recipe.evaluate.prompts if recipe.evaluate.prompts == "neutral" else "of a file",
        "templates": list(asked.templates),
        "names": [list(names) for names in asked.names],
        "variations": {"templates": len(embeddings.by_template), "names": len(embeddings.by_choice)},
        "scale": scale,
        "prompted": False,
        "label_tokens": None,
        "prior": None,
        **loaded.facts,
    }

    size = recipe.evaluate.batch_size
    scorer = _Scorer(embeddings, scale)
    rows = predict(
        PredictionJournal(path, settings, Classified),
        task.samples,
        lambda left: [left[start : start + size] for start in range(0, len(left), size)],
        lambda blocks: _records(loaded, scorer, task, blocks, known),
        state,
        say,
    )
    say.print(
        f"{path}: {len(rows):,} rows, {len(task.classes)} classes, {len(texts):,} prompts{unscored(rows)}",
        soft_wrap=True,
    )


@dataclass(frozen=True, slots=True)
class _Scorer:
    """What makes scores of an image's embedding."""

    classes: ClassEmbeddings
    scale: float

    def scores(self, image: Vectors) -> tuple[list[float], tuple[int, ...]]:
        """scale × cosine for each class, and the class that each variation of the prompts gives."""
        long = image.astype(np.float64)
        cosines = self.classes.whole @ long
        varied = [(part @ long).argmax(axis=1) for part in (self.classes.by_template, self.classes.by_choice)]
        return (self.scale * cosines).tolist(), tuple(int(number) for part in varied for number in part)


def _records(
    loaded: LoadedTowers,
    scorer: _Scorer,
    task: Task,
    blocks: Sequence[Sequence[Sample]],
    known: dict[Path, Vectors | str],
) -> Iterator[list[Classified]]:
    """The records of each block of samples."""
    shown = [
        [sample.root / name for sample in block if task.asks(sample) for name in sample.example.images]
        for block in blocks
    ]
    for block, embeddings in zip(blocks, embed.streamed(loaded, shown, known), strict=True):
        records = []
        for sample in block:
            if not task.asks(sample):
                records.append(sample.record(None, sample.detail))
                continue
            vectors = [embeddings[sample.root / name] for name in sample.example.images]
            refused = [vector for vector in vectors if isinstance(vector, str)]
            if refused or not vectors:
                records.append(sample.record(None, next(iter(refused), "no-image: the question shows none")))
                continue

            # Of several images the mean, as one vector of length one.
            mean = np.mean(np.array(vectors, np.float64), axis=0)
            scores, varied = scorer.scores(mean / max(float(np.linalg.norm(mean)), 1e-12))
            records.append(replace(sample.record(scores, sample.detail), varied=varied))
        yield records
