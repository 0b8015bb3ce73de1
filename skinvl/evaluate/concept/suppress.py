"""`skinvl concepts suppress`: takes units out of the embeddings of images, and measures what that changes.

What is taken out is out for all that reads embeddings: classes by prompts, a linear probe that is fitted anew, and
retrieval. Beside it stand random units of the same mass (`random_units`), matched on the rows that show the artefact,
or on all rows where nobody says which these are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from skinvl.data import mixture
from skinvl.data.example import splits
from skinvl.data.mixture import Row
from skinvl.data.source import source_folder
from skinvl.evaluate import benchmarks, contamination, embed, prompts
from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.evaluate.concept import classified, retrieved
from skinvl.evaluate.concept import rows as concept_rows
from skinvl.evaluate.concept.choose import WORTH, Chosen, named, telling
from skinvl.evaluate.concept.random_units import TOLERANCE, drawn
from skinvl.evaluate.concept.rows import ConceptError
from skinvl.evaluate.concept.suppress_tables import show
from skinvl.evaluate.distributed import ranks
from skinvl.evaluate.embed import Vectors
from skinvl.model import dictionary as dictionaries
from skinvl.model.dictionary import Dictionary
from skinvl.model.towers_loaded import LoadedTowers, load_towers
from skinvl.recipe import run
from skinvl.recipe.files import write_json
from skinvl.recipe.recipe import ClassSpec
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import compare, suppression
from skinvl.score.classification import ClassifiedSet
from skinvl.score.compare import Resampling
from skinvl.score.concepts import PRESENT, Labels
from skinvl.score.probabilities import PROMPTS
from skinvl.score.stats import LEVEL, RESAMPLES, Mask
from skinvl.score.suppression import Suppressed

SEED = 0  # of the resamples, and of the draws of random units
DRAWS = 10  # of random units
TRAIN = "train"
OTHERS = (TRAIN, "validation")  # splits that units may be chosen on, the first that there is


def command(words: Sequence[str]) -> int:
    """0, once what suppression changes lies in the run."""
    parser = argparse.ArgumentParser(
        prog="skinvl concepts suppress", description="Take concepts out of the embeddings, and measure what changes."
    )
    parser.add_argument("recipe", metavar="RUN", help="the folder of a run with a dictionary, or a recipe's name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as evaluate.prompts=FILE")
    parser.add_argument("--concept", required=True, metavar="NAMES", help="such as hair,ink,ruler")
    parser.add_argument("--classify", required=True, metavar="SET", help="of evaluate.classify, or a prepared source")
    parser.add_argument("--draws", type=int, default=DRAWS, metavar="N", help=f"of random units (default {DRAWS})")
    arguments = parser.parse_intermixed_args(words)
    names = list(dict.fromkeys(name for part in arguments.concept.split(",") if (name := " ".join(part.split()))))
    if not names:
        raise ConceptError(f"--concept {arguments.concept!r}: names none; expected such as hair,ink,ruler")
    if arguments.draws < 1:
        raise ConceptError(f"--draws {arguments.draws}: expected at least one, beside which the units stand")
    recipe, out = run.evaluated_towers(arguments.recipe, arguments.overrides)
    suppress(recipe, out, names, arguments.classify, arguments.draws)
    return 0


def suppress(recipe: PretrainRecipe, out: Path, names: Sequence[str], name: str, draws: int) -> None:
    """Writes what suppression changes to `out/concepts/suppress`, and prints it.

    Raises:
        ConceptError: no such set, or no unit stands for a concept.
        DictionaryError: no dictionary, or one of other embeddings.
    """
    # What can be refused is refused before the towers are loaded.
    spec = _spec(recipe, name)
    dictionary = dictionaries.load(out)
    train = mixture.load(recipe.data).train if recipe.init_adapter is not None else []
    task, leaking = contamination.guarded(benchmarks.load(spec), train, recipe.data.allow_leak)
    split, others = _others(spec, task)
    asked = prompts.make(task.classes, recipe.evaluate.prompts, recipe.evaluate.synonyms)

    state = ranks()
    say = Console(quiet=not state.is_main_process, highlight=False, markup=False)
    loaded = load_towers(recipe, state.device)
    vectors = concept_rows.image_embeddings(loaded, [*task.samples, *others], state, say)
    texts = dict(zip(asked.texts, embed.texts(loaded, asked.texts, state), strict=True))
    pools = retrieved.embedded(loaded, recipe, state, say)
    if not state.is_main_process:
        return

    # The units, and random ones that are as active in the rows where the artefact is.
    chosen = _chosen(dictionary, out, names, task.classes, others, vectors)
    units = sorted({one.unit for own in chosen.values() for one in own})
    artefact = concept_rows.shown(task.samples, names)
    active = concept_rows.units_of_samples(dictionary, task.samples, vectors)
    readable: Mask = np.asarray(np.isfinite(active).all(axis=1))
    seen: Mask = readable & (artefact == PRESENT)
    matched = seen if seen.any() else readable
    mass, random = drawn(active, matched, units, draws, SEED)

    # The same towers and classes; only the embeddings of images differ.
    set_name = benchmarks.name(spec)
    scale = _scale(loaded)
    settings = {
        **benchmarks.settings(task, spec, spec.split, Path(f"{set_name}.jsonl")),
        "concepts": list(names),
        "units": {concept: [one.record() for one in own] for concept, own in chosen.items()},
        "chosen_on": split,
        "mass": {
            "units": mass,
            "of": float(active[matched].sum(axis=1).mean()),
            "rows": int(matched.sum()),
            "matched_on": "rows with the artefact" if seen.any() else "all rows",
            "tolerance": TOLERANCE,
        },
        "random": [{"units": list(one.units), "mass": one.mass} for one in random],
        **{"leaking": leaking, "allow_leak": recipe.data.allow_leak},
        "dictionary": dictionaries.read_settings(out),
        **{"variant": PROMPTS, "templates": list(asked.templates), "scale": scale},
        **{"resamples": RESAMPLES, "seed": SEED, "level": LEVEL},
        **loaded.facts,
    }
    removed = [units, *(one.units for one in random)]
    sides = [vectors, *(_suppressed(dictionary, vectors, numbers) for numbers in removed)]
    resampling = Resampling(RESAMPLES, SEED)
    prompted = classified.by_prompts(task, sides, scale * prompts.embeddings(asked, texts).whole, settings)
    numbers, tests = _change(set_name, prompted, artefact, resampling, "classes")
    probe, probe_tests = None, list[dict[str, Any]]()
    if split == TRAIN:
        strength, probed = classified.by_probe(task, others, sides, settings)
        probe, probe_tests = _change(set_name, probed, artefact, resampling, "probe")
        probe = {"train_rows": len(others), "strength": strength, **probe}
    ranked, rank_tests = retrieved.change(loaded, pools, dictionary, units, removed[1:], resampling)
    record = {
        "settings": settings,
        **numbers,
        "probe": probe,
        "retrieval": ranked,
        "tests": compare.family([*tests, *probe_tests, *rank_tests]),
    }
    path = out / dictionaries.FOLDER / "suppress" / f"{'-'.join(names)}--{set_name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record, allow_nan=False)
    show(say, path, record)


def _spec(recipe: PretrainRecipe, name: str) -> ClassSpec:
    """The set of that name in the recipe, or the test split of a prepared source.

    Raises:
        ConceptError: there is neither.
    """
    sets = dict(zip(benchmarks.names(recipe.evaluate.classify), recipe.evaluate.classify, strict=True))
    if name in sets:
        return sets[name]
    if not source_folder(name).is_dir():
        known = ", ".join(sets) or "none"
        raise ConceptError(
            f"--classify {name}: no set of evaluate.classify (it has {known}), and no prepared source; name one of them"
        )
    return ClassSpec(source=name)


def _others(spec: ClassSpec, task: Task) -> tuple[str | None, list[Sample]]:
    """The split that units are chosen and a probe is fitted on, and its samples that share nothing with the task's."""
    root = source_folder(spec.source)
    split = next((name for name in OTHERS if name != spec.split and name in splits(root)), None)
    if split is None:
        return None, []
    rows = [Row(sample.example, sample.root) for sample in task.samples]
    samples = contamination.without(benchmarks.load(spec, split).samples, rows)
    return split, [sample for sample in samples if sample.label is not None and sample.example.images]


def _chosen(
    dictionary: Dictionary,
    out: Path,
    names: Sequence[str],
    classes: Sequence[str],
    others: Sequence[Sample],
    vectors: Mapping[Path, Vectors],
) -> dict[str, list[Chosen]]:
    """The units of each concept: those that are called so, or else those that tell it in the other split.

    Raises:
        ConceptError: a concept has none.
    """
    chosen = named(out, names)
    if others and len(chosen) < len(names):
        active = concept_rows.units_of_samples(dictionary, others, vectors)
        readable = np.isfinite(active).all(axis=1)
        strata = np.array([classes.index(str(sample.label)) for sample in others], np.int64)[readable]
        for name in names:
            labels = concept_rows.shown(others, [name])[readable]
            if name not in chosen and (own := telling(active[readable], labels, strata)):
                chosen[name] = own
    if lacking := [name for name in names if name not in chosen]:
        raise ConceptError(
            f"--concept {lacking[0]}: no unit is called so (skinvl concepts name {out}), and in another split of the "
            f"set none tells it (AUROC of {WORTH} within the classes, and above that of any class), or too few rows "
            "say whether they show it; name another concept, another set, or fit with other --units and --k"
        )
    return {name: chosen[name] for name in names}


def _suppressed(dictionary: Dictionary, vectors: Mapping[Path, Vectors], units: Sequence[int]) -> dict[Path, Vectors]:
    """The embeddings of the images without the units."""
    made = dictionary.without(torch.from_numpy(np.array(list(vectors.values()), np.float32)), units).numpy()
    return dict(zip(vectors, made, strict=True))


def _change(
    name: str, sides: Sequence[ClassifiedSet], artefact: Labels, resampling: Resampling, what: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The numbers of a set as it is classified before, after and by random units; and the tests."""
    before, after, *beside = sides
    numbers = suppression.block(name, Suppressed(before, after, beside, artefact), resampling)
    tests = [{**test, "what": what} for part in numbers["parts"].values() for test in part.pop("tests")]
    return numbers, tests


def _scale(loaded: LoadedTowers) -> float:
    model: Any = loaded.model
    return float(model.scale.value().detach())
