"""Drawn lesions with an artefact that goes by the label in training alone: what its units bring back, not chance."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from skinvl.score.classification import BALANCED

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "suppression.py"


def script() -> ModuleType:
    """The benchmark whose set-up this is."""
    spec = importlib.util.spec_from_file_location("suppression_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_units_of_an_artefact_bring_back_more_of_its_drop_than_random_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    benchmark = script()
    benchmark.prepare()
    found = benchmark.measured(seed=1)

    # Learnt where hair, ink and rulers go by the border, tested where they do not.
    tied = found["artefact"]
    back = tied["brought_back"]
    assert back["drop"]["low"] > 0.05
    assert back["units"]["low"] > 0
    assert back["beyond_random"]["low"] > 0
    assert tied["parts"]["with"]["random"]["beyond"]["difference"]["low"] > 0

    # Its twin, learnt where they never did: nothing was lost that could be brought back.
    untied = found["untied"]["brought_back"]
    assert untied["drop"]["low"] <= 0
    assert untied["drop"]["high"] < back["drop"]["value"]
    assert (untied["units"], untied["random"], untied["beyond_random"]) == (None, None, None)
    assert found["untied"]["parts"]["with"]["before"][BALANCED]["value"] > 0.85
