"""`skinvl eval`: a run, or a base alone, answered, classified, scored and reported."""

from __future__ import annotations

import os
from collections.abc import Sequence

from skinvl.evaluate.classify import classify_sets
from skinvl.evaluate.generate import generate_sets
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.run import evaluated
from skinvl.score import report, score


def main(words: Sequence[str]) -> int:
    """0, once the predictions, scores.json, scores.md and report.html lie in the run.

    Raises:
        ValueError: neither an eval set nor a set to classify is named; see the verbs for the rest.
    """
    parser = recipe_parser("eval", "Answer, classify, score and report: a run, or a base alone.", run=True)
    parser.add_argument("--against", metavar="RUN", help="another run to test the numbers against")
    args = parser.parse_intermixed_args(words)
    recipe, out = evaluated(args.recipe, args.overrides)
    if not recipe.data.eval and not recipe.evaluate.classify:
        raise ValueError(
            "data.eval and evaluate.classify: both are empty, so that there is nothing to evaluate; name a source, "
            'such as "data.eval=[{source: NAME, split: test}]"'
        )
    if recipe.data.eval:
        generate_sets(recipe, out)
    if recipe.evaluate.classify:
        classify_sets(recipe, out)
    if os.environ.get("RANK", "0") == "0":
        against = ["--against", args.against] if args.against else []
        score.main([str(out), "--metrics", ",".join(recipe.evaluate.metrics), *against])
        report.main([str(out)])
    return 0
