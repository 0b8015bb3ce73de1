"""The README's picture of the house is the repository's, and what README and docs/ name exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import data_prep
from skinvl import __main__ as cli
from skinvl.recipe import recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATASETS = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
]
WRITTEN = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)


def files() -> set[str]:
    """The files of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return {name for name in listed if (ROOT / name).exists()}


def house() -> list[list[str]]:
    """The lines of the picture of the house, each as its columns; a wing's line is indented by two."""
    block = README.split("## The house")[1].split("##")[0]
    lines = [line.removeprefix("    ") for line in block.splitlines() if line.startswith("    ")]
    return [re.split(r"  +", line) for line in lines]


def test_the_tree_is_the_repository() -> None:
    top = {name.partition("/")[0] + "/" * ("/" in name) for name in files()}
    shown = {name for columns in house() for name in columns[0].split(", ") if name}
    assert shown == top - {".gitignore", "README.md"}


def test_the_picture_of_the_wings_is_that_of_the_house() -> None:
    wings = [columns[1:] for columns in house() if not columns[0]]
    folders = {f"{name.split('/')[1]}/" for name in files() if name.startswith("skinvl/") and name.count("/") > 1}
    assert len(wings) == 10
    assert {name for name, *_ in wings} == folders
    shown = {name.rstrip("/"): verbs[0].split() if verbs else [] for name, _, *verbs in wings}
    assert {wing: verbs for wing, verbs in shown.items() if verbs} == {w: list(v) for w, v in cli.WINGS.items()}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_are_short_and_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 120] == []
    for link in re.findall(r"\]\(([^):#]+)\)", text):
        assert (path.parent / link).is_file(), link


def test_files_that_are_named_exist() -> None:
    folders = "|".join(name.rstrip("/") for columns in house() for name in columns[0].split(", ") if "/" in name)
    examples = re.findall(r"^`(\S+)`:$", WRITTEN, re.MULTILINE)  # that CONTRIBUTING adds
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", WRITTEN)) - set(examples)
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_recipes_bases_and_verbs_of_the_readme_exist() -> None:
    for name in recipe.recipes() + recipe.bases():
        assert f"`{name}`" in README, name
    for verb in re.findall(r"\bskinvl ([a-z]+) ", WRITTEN):
        assert verb in cli.WING_OF or verb in ("trains", "decides", "turns", "is", "sft"), verb


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?:^ *|`|&& )make ([a-z][a-z-]*)", WRITTEN, re.MULTILINE)
    assert len(targets) > 20
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_dataset_has_its_row_with_its_licence() -> None:
    rows = {
        cells[4].strip(" `"): cells for cells in (line.split("|") for line in DATASETS.splitlines()) if len(cells) > 5
    }
    for name in data_prep.names():
        licence = data_prep.load(name).CARD.licence
        if licence.startswith("CC"):
            assert rows[name][3].strip() == licence, name
        assert name in rows, name
