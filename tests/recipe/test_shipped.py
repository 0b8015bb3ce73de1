"""The shipped folders are found in a wheel and in the repository, and never left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skinvl.recipe.shipped import shipped


@pytest.mark.parametrize(
    "name", ["../pyproject.toml", "recipes/../tests", "/etc/passwd", "tests", "recipes/bases/../../x"]
)
def test_shipped_stays_in_its_folders(name: str) -> None:
    with pytest.raises(ValueError, match="not in the shipped folders"):
        shipped(name)


def test_shipped_finds_both_layouts(tmp_path: Path) -> None:
    package = tmp_path / "skinvl"
    (package / "recipes").mkdir(parents=True)
    source = Path(shipped.__code__.co_filename).read_text(encoding="utf-8")
    (package / "recipe").mkdir()
    (package / "recipe" / "shipped.py").write_text(source, encoding="utf-8")
    code = "import shipped; print(shipped.shipped('recipes/tiny.yaml'), shipped.shipped('ds_configs'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package / "recipe", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(package / "recipes" / "tiny.yaml"), str(tmp_path / "ds_configs")]
