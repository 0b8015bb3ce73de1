"""The README's tree is the repository's, and what it names exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import data_prep
from skinvl import __main__ as cli
from skinvl.recipe import recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def files() -> set[str]:
    """The files of the repository, folders that the tree does not open cut off at their name."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return {name for name in listed if (ROOT / name).exists()}


def tree() -> set[str]:
    """The paths of the tree under "What is where"."""
    block = README.split("## What is where")[1].split("##")[0]
    return {line.split()[0] for line in block.splitlines() if line.startswith("    ")}


def test_the_tree_is_the_repository() -> None:
    shown = tree()
    folders = {path for path in shown if path.endswith("/")}
    for path in shown:
        assert (ROOT / path).exists(), path
    for name in files() - {".gitignore"}:
        inner = [folder for folder in folders if name.startswith(folder)]
        if not inner:
            assert name in shown, f"{name} is not in the README's tree"
            continue
        deepest = max(inner, key=len)
        opened = any(path != deepest and path.startswith(deepest) for path in shown)
        rest = name.removeprefix(deepest)
        if opened and "/" not in rest and not rest.startswith("__"):
            assert name in shown, f"{name} is not in the README's tree, which opens {deepest}"
        if opened and "/" in rest:
            assert deepest + rest.split("/")[0] + "/" in shown, f"{deepest}{rest.split('/')[0]}/ is not in the tree"


def test_recipes_bases_and_verbs_of_the_readme_exist() -> None:
    for name in recipe.recipes() + recipe.bases():
        assert f"`{name}`" in README, name
    for verb in re.findall(r"\bskinvl ([a-z]+) ", README):
        assert verb in cli.WING_OF or verb in ("trains", "decides", "turns", "is", "sft"), verb


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z][a-z-]*)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_dataset_has_its_row_with_its_licence() -> None:
    rows = {
        cells[4].strip(" `"): cells for cells in (line.split("|") for line in README.splitlines()) if len(cells) > 5
    }
    for name in data_prep.names():
        licence = data_prep.load(name).CARD.licence
        if licence.startswith("CC"):
            assert rows[name][3].strip() == licence, name
        assert name in rows, name
