"""The notebook runs from top to bottom, with the tiny base and a shorter training."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "first_run.ipynb"


def cells(kind: str) -> list[str]:
    """The sources of its cells of a kind."""
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_holds_no_output_of_a_machine() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_its_cells_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A checkout of which only what it looks for is there; skinvl itself is the installed one.
    (tmp_path / "recipes").mkdir()
    shutil.copy(ROOT / "recipes" / "tiny.yaml", tmp_path / "recipes")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first, *rest = cells("code")
    names: dict[str, Any] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(first, "first cell", "exec"), names)
        names["EPOCHS"] = 0.5
        for number, cell in enumerate(rest, 2):
            exec(compile(cell, f"cell {number}", "exec"), names)
    told = said.getvalue()
    for words in ("drawn skin lesions", "trainable", "closed accuracy", "numbers of LoRA"):
        assert words in told.replace("_", " "), words
    assert (tmp_path / "examples" / "work" / "runs" / "notebook" / "report.html").is_file()
