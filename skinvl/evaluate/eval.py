"""`skinvl eval`: a run, or a base alone, asked what its kind can be asked, scored and reported.

A vision-language model answers and classifies; two towers classify by prompts and retrieve. With --protocol it is asked
what others were, in one table beside their figures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from skinvl.evaluate.classify import classify_sets
from skinvl.evaluate.generate import generate_sets
from skinvl.evaluate.protocol import ask
from skinvl.evaluate.retrieve import retrieve_sets
from skinvl.evaluate.zeroshot import zeroshot_sets
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.protocol import load, protocols
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.run import evaluated, evaluated_towers, kind
from skinvl.recipe.towers import PretrainRecipe
from skinvl.score import report, score


def main(words: Sequence[str]) -> int:
    """0, once the predictions, scores.json, scores.md and report.html lie in the run.

    Raises:
        ValueError: neither an eval set nor a set to classify is named; see the verbs for the rest.
    """
    parser = recipe_parser("eval", "Answer or retrieve, classify, score and report: a run, or a base alone.", run=True)
    parser.add_argument("--against", metavar="RUN", help="another run to test the numbers against, of whichever kind")
    parser.add_argument(
        "--protocol", metavar="NAME", help=f"ask this instead: {', '.join(protocols())}, or a YAML file"
    )
    args = parser.parse_intermixed_args(words)
    if args.protocol:
        if args.against:
            parser.error("--against compares what score has; give it to skinvl score, for the sets of the protocol")
        asked, of_towers = load(args.protocol), kind(args.recipe, args.overrides) == "pretrain"
        ask(asked, *(evaluated_towers if of_towers else evaluated)(args.recipe, args.overrides))
        return 0
    if kind(args.recipe, args.overrides) == "pretrain":
        metrics, out = _towers(*evaluated_towers(args.recipe, args.overrides))
    else:
        metrics, out = _model(*evaluated(args.recipe, args.overrides))
    if os.environ.get("RANK", "0") == "0":
        against = ["--against", args.against] if args.against else []
        score.main([str(out), *metrics, *against])
        report.main([str(out)])
    return 0


def _model(recipe: Recipe, out: Path) -> tuple[list[str], Path]:
    """Asks a vision-language model; what `score` is told of metrics, and the folder of the results."""
    if not recipe.evaluate.text_sets:
        _require_sets(recipe)
    if recipe.data.eval:
        generate_sets(recipe, out)
    if recipe.evaluate.classify or recipe.evaluate.text_sets:
        classify_sets(recipe, out)
    return ["--metrics", ",".join(recipe.evaluate.metrics)], out


def _towers(recipe: PretrainRecipe, out: Path) -> tuple[list[str], Path]:
    """The same of two towers, which have no answers to measure."""
    _require_sets(recipe)
    if recipe.evaluate.classify:
        zeroshot_sets(recipe, out)
    if recipe.data.eval:
        retrieve_sets(recipe, out)
    return [], out


def _require_sets(recipe: Recipe | PretrainRecipe) -> None:
    if not recipe.data.eval and not recipe.evaluate.classify:
        raise ValueError(
            "data.eval and evaluate.classify: both are empty, so that there is nothing to evaluate; name a source, "
            'such as "data.eval=[{source: NAME, split: test}]"'
        )
