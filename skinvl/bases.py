"""`skinvl bases`: the bases that have a short name, and tiny ones with random weights built on request."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from skinvl import families, recipe, tiny


def main(arguments: Sequence[str]) -> int:
    """0, once the bases are listed, or the one asked for is built.

    Raises:
        FileNotFoundError: a tokenizer, template or source that is not there.
        ValueError: a tokenizer that does not fit the family.
    """
    parser = argparse.ArgumentParser(prog="skinvl bases", description="List the bases, or build a tiny one.")
    actions = parser.add_subparsers(dest="action", metavar="build")
    build = actions.add_parser("build", help="a complete model folder with random weights")
    build.add_argument("family", choices=families.names())
    build.add_argument("out", type=Path)
    tokens = build.add_mutually_exclusive_group(required=True)
    tokens.add_argument("--source", type=Path, help="a prepared source, on whose train split the tokenizer is trained")
    tokens.add_argument("--tokenizer", type=Path, help="a tokenizer.json to use as it is")
    build.add_argument("--template", type=Path, help="a chat template (Jinja)")
    build.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.action is None:
        _list(Console())
        return 0
    for path in (given.tokenizer, given.template):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    made = tiny.build(
        given.family,
        given.out,
        texts=None if given.source is None else tiny.texts([given.source]),
        tokenizer_json=given.tokenizer,
        chat_template=None if given.template is None else given.template.read_text(encoding="utf-8"),
        seed=given.seed,
    )
    size = sum(file.stat().st_size for file in made.iterdir()) / 1e6
    print(f"{made}: a random {given.family} base, {size:.1f} MB; name it in a recipe as base: {made}")
    return 0


def _list(say: Console) -> None:
    table = Table(Column("base", no_wrap=True), Column("model", overflow="fold"), "licence", "note")
    for name in recipe.bases():
        base = recipe.load_base(name)
        table.add_row(name, base.model or f"random {base.random}", base.licence, base.note)
    say.print(table)
