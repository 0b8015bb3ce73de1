"""`skinvl concepts score`: how well two towers tell images with a concept from those without, by prompts and by units.

By prompts, a concept's score is the mean over templates of the softmax over two cosines with the image at the model's
own scale: the mean over the prompts with each of the concept's names, and the prompt with a word that fits every image
(`terms`). By units, it is how active one unit of the run's dictionary is: the one that `concepts name` calls so, or
else the one that tells the concept best on another split of the source, in groups that are not scored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy.special import expit

from skinvl.data import mixture
from skinvl.data.example import splits
from skinvl.data.source import source_name, source_splits
from skinvl.evaluate import embed, prompts
from skinvl.evaluate.concept import rows as concept_rows
from skinvl.evaluate.concept import terms
from skinvl.evaluate.concept.choose import Chosen, best, named
from skinvl.evaluate.concept.rows import ConceptError
from skinvl.evaluate.concept.score_table import show
from skinvl.evaluate.distributed import ranks
from skinvl.model import dictionary
from skinvl.model.towers_loaded import LoadedTowers, load_towers
from skinvl.recipe import run
from skinvl.recipe.files import write_json
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import concepts
from skinvl.score.concepts import FEWEST, MISSING, ConceptArea
from skinvl.score.stats import LEVEL, RESAMPLES, Bootstrap, Estimate, Float

SEED = 0  # of the resamples
TRAIN, TEST = "train", "test"


def command(words: Sequence[str]) -> int:
    """0, once the areas lie in the run, or in the folder of a base alone."""
    parser = argparse.ArgumentParser(
        prog="skinvl concepts score", description="Tell images with a concept from those without, by prompts and units."
    )
    parser.add_argument("recipe", metavar="RUN", help="the folder of a run, or a recipe's name for its base alone")
    parser.add_argument("source", metavar="SOURCE[:SPLIT]", help="a prepared source that states concepts (split: test)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as evaluate.prompts=FILE")
    arguments = parser.parse_intermixed_args(words)
    recipe, out = run.evaluated_towers(arguments.recipe, arguments.overrides)
    score_source(recipe, out, arguments.source)
    return 0


def score_source(recipe: PretrainRecipe, out: Path, source: str) -> Path:
    """The file with the areas of the source's concepts, in `out/concepts/scores`; they are printed too.

    Raises:
        ConceptError: the split states no concept, or nothing of it is left.
        DictionaryError: the dictionary is of other embeddings.
    """
    # What can be refused is refused before the towers are loaded.
    root, split = _split(source)
    scored = concept_rows.stated(root, split)
    if not scored.concepts:
        raise ConceptError(f"{root} {split}: none of its Examples states a concept; name a source that does")
    templates = prompts.templates_of(recipe.evaluate.prompts) if recipe.evaluate.prompts != "neutral" else None
    units = dictionary.load(out) if (out / dictionary.FOLDER / dictionary.WEIGHTS).is_file() else None
    other = next((name for name in (TRAIN, *splits(root)) if name != split and name in splits(root)), None)
    chosen_on = concept_rows.stated(root, other) if units is not None and other is not None else None

    # Of what was trained on nothing is scored; of a base alone nobody knows what that was.
    train = mixture.load(recipe.data).train if recipe.init_adapter is not None else []
    apart = scored.apart(train)
    leaking = int((~apart).sum())
    used = np.ones(len(apart), np.bool_) if recipe.data.allow_leak else apart
    if not used.any():
        raise ConceptError(
            f"{root} {split}: all {leaking:,} samples that state a concept were trained on; name another split, or set "
            "data.allow_leak=true, which the file records"
        )

    state = ranks()
    say = Console(quiet=not state.is_main_process, highlight=False, markup=False)
    loaded = load_towers(recipe, state.device)
    vectors = concept_rows.image_embeddings(loaded, scored.samples, state, say)
    chosen: dict[str, Chosen] = {}
    if units is not None:
        chosen = {name: own[0] for name, own in named(out, scored.concepts).items()}
        if chosen_on is not None:
            others = concept_rows.image_embeddings(loaded, chosen_on.samples, state, say)
            there = concept_rows.units_of_samples(units, chosen_on.samples, others)
            chosen = best(there, chosen_on, chosen_on.apart(scored.rows), scored.concepts) | chosen
    by_prompts, asked = prompt_scores(
        loaded, scored.concepts, templates or terms.TEMPLATES, concept_rows.of_samples(scored.samples, vectors)
    )
    name = source_name(root) if split == TEST else f"{source_name(root)}-{split}"
    path = out / dictionary.FOLDER / "scores" / f"{name}.json"
    if not state.is_main_process:
        return path
    active = None if units is None else concept_rows.units_of_samples(units, scored.samples, vectors)

    labels = np.where(used[:, None], scored.labels, MISSING).astype(np.int8)
    draws = Bootstrap([(one.example.source, one.example.group) for one in scored.samples], RESAMPLES, SEED)
    areas = []
    for column, concept in enumerate(scored.concepts):
        unit = chosen.get(concept)
        areas.append(
            _Areas(
                concept,
                concepts.area(by_prompts[:, column], labels[:, column], draws),
                None
                if unit is None or active is None
                else concepts.area(active[:, unit.unit], labels[:, column], draws),
                unit,
            )
        )
    settings = {
        "set": name,
        "source": str(root),
        "split": split,
        "samples": len(scored.samples),
        "leaking": leaking,
        "allow_leak": recipe.data.allow_leak,
        "conflicts": scored.conflicts,
        "unreadable": int(np.isnan(by_prompts).any(axis=1).sum()),
        "prompts": recipe.evaluate.prompts if templates is None else "of a file",
        **asked,
        "dictionary": None if units is None else dictionary.read_settings(out),
        "units_chosen_on": None if chosen_on is None else chosen_on.split,
        "fewest": FEWEST,
        **{"resamples": RESAMPLES, "seed": SEED, "level": LEVEL},
        **loaded.facts,
    }
    run.begin(out, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [one.record() for one in areas]
    means = {
        "prompts": _mean([one.prompts for one in areas], draws),
        "units": _mean([one.units for one in areas if one.units is not None], draws),
    }
    write_json(path, {"settings": settings, "macro": means, "concepts": table}, allow_nan=False)
    show(say, path, table, means, len(scored.samples), leaking, units is None)
    return path


def prompt_scores(
    loaded: LoadedTowers, names: Sequence[str], templates: Sequence[str], images: Float
) -> tuple[Float, dict[str, Any]]:
    """float64[N, C] from 0 to 1, the scores of C concepts for images float64[N, D]; and what was asked."""
    called = [terms.terms(name) if loaded.recipe.evaluate.synonyms else (name,) for name in names]
    every = dict.fromkeys(
        prompts.prompt(template, word)
        for template in templates
        for own in (*called, (terms.REFERENCE,))
        for word in own
    )
    vectors = dict(zip(every, embed.texts(loaded, list(every)).astype(np.float64), strict=True))
    model: Any = loaded.model
    scale = float(model.scale.value().detach())

    chances = np.zeros((len(images), len(names)))
    for template in templates:
        reference = images @ vectors[prompts.prompt(template, terms.REFERENCE)]
        for column, own in enumerate(called):
            cosine = images @ np.mean([vectors[prompts.prompt(template, word)] for word in own], axis=0)
            chances[:, column] += expit(scale * (cosine - reference)) / len(templates)
    asked = {
        "templates": list(templates),
        "reference": terms.REFERENCE,
        "temperature": 1 / scale,
        "terms": {name: list(own) for name, own in zip(names, called, strict=True)},
    }
    return chances, asked


@dataclass(frozen=True, slots=True)
class _Areas:
    """What came of one concept."""

    concept: str
    prompts: ConceptArea
    units: ConceptArea | None
    unit: Chosen | None

    def record(self) -> dict[str, Any]:
        """Its row of the file."""
        return {
            "concept": self.concept,
            "positives": self.prompts.positives,
            "negatives": self.prompts.negatives,
            "missing": self.prompts.missing,
            "prevalence": self.prompts.prevalence,
            "prompts": _number(self.prompts.estimate),
            "units": _number(self.units.estimate) if self.units is not None else None,
            "unit": None if self.unit is None else self.unit.record(),
        }


def _split(source: str) -> tuple[Path, str]:
    """The split that a word names: its own, the only one, or the test split.

    Raises:
        ConceptError: it could be one of several.
        FileNotFoundError: no such source or split.
    """
    pairs = source_splits(source)
    own = pairs if len(pairs) == 1 else [pair for pair in pairs if pair[1] == TEST]
    if not own:
        raise ConceptError(f"{source}: no split {TEST}; name one: {', '.join(f'{source}:{name}' for _, name in pairs)}")
    return own[0]


def _mean(areas: Sequence[ConceptArea], draws: Bootstrap) -> dict[str, Any]:
    estimate, count = concepts.macro(areas, draws)
    return {"auroc": _number(estimate), "concepts": count, "of": len(areas)}


def _number(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.number()
