"""The words that verbs have in common: a recipe or the folder of a run, and what is given anew."""

from __future__ import annotations

import argparse


def recipe_parser(verb: str, description: str, *, run: bool = False) -> argparse.ArgumentParser:
    """A parser of `RECIPE key=value …`, to which the verb adds its own options.

    Args:
        run: whether the folder of a run may stand for the recipe.
    """
    parser = argparse.ArgumentParser(prog=f"skinvl {verb}", description=description)
    parser.add_argument(
        "recipe", help=f"{'the folder of a run, ' if run else ''}a name in recipes/, or a path to a YAML file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as base=qwen3-vl-8b train.max_steps=10")
    return parser
