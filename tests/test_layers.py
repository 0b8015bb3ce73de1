"""An arrow only points down: every module stands in one layer and imports only lower ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    ["cli"],
    # the verbs, which never import one another
    ["prep", "leaks", "sft", "cache", "generate", "classify", "probe", "score", "report", "show", "bases"],
    ["merge", "publish", "ask", "demo", "serve", "plan", "synth"],
    ["prepare", "summary", "vllm_engine", "compare", "cases", "exposure", "sharing", "served", "gate", "card", "page"],
    ["trainer", "dry", "answers", "classification", "dialogue", "agreement", "estimate"],
    ["callbacks", "features", "engine", "judged", "fold", "memory", "flops"],
    ["subject", "infer", "rehearsal", "workload"],
    ["adapter", "model", "run", "checkpoint", "tiny", "variants", "weighing"],
    ["chat", "pack", "vision", "mixture", "sampler", "lengths", "metrics", "benchmarks", "slices", "curves", "record"],
    ["synthesis"],
    ["families", "recipe", "hub", "attention", "released", "match", "stats", "upload"],
    ["source"],
    ["join"],
    ["blocks", "images", "overlap"],
    [
        "pace",
        "sections",
        "strict",
        "shipped",
        "rules",
        "fingerprints",
        "clusters",
        "crew",
        "metadata",
        "pixels",
        "sheet",
        "predictions",
        "clauses",
        "tables",
        "charts",
        "gpus",
        "counting",
        "terms",
        "vetting",
    ],
    ["example", "labels", "questions"],
]
# Inside the package that synth is made of.
SYNTHESIS = [
    ["output", "tally", "progress", "embedding", "review"],
    ["assembly", "inquiry"],
    ["screening", "job"],
    ["units", "leakage"],
    ["programme", "budget", "pool", "diagnoses", "likeness"],
    ["journal", "payload", "endpoint", "outcomes", "wording", "verification", "person", "sites"],
    ["request", "replies", "english", "wire"],
]
# Within a layer a module may import those named here, and no other.
BESIDE = {
    "model": ["tiny"],
    "chat": [],
    "lengths": ["chat"],
    "pack": ["chat", "lengths", "mixture", "vision"],
    "sections": ["strict"],
    "pixels": ["metadata"],
    "sheet": ["pixels"],
    "sampler": ["mixture"],
    "vetting": ["metadata"],
    "served": ["vllm_engine"],
    "questions": ["example"],
}
TORCHLESS = [
    "skinvl.example",
    "skinvl.labels",
    "skinvl.prep",
    "skinvl.leaks",
    "skinvl.recipe",
    "skinvl.cli",
    "skinvl.score",
    "skinvl.report",
    "skinvl.publish",
    "skinvl.benchmarks",
    "skinvl.synth",
    "skinvl.metrics",
    "data_prep",
]


def imports(path: Path, package: str = "skinvl") -> set[str]:
    """The modules of a package, and data_prep, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(package + "."):
                found.add(name.removeprefix(package + ".").split(".")[0])
            elif name.partition(".")[0] == "data_prep":
                found.add("data_prep")
    return found


def violations(module: str, found: set[str], layers: list[list[str]] = LAYERS) -> list[str]:
    """The imports of a module that point up or sideways."""
    depth = {name: level for level, names in enumerate(layers) for name in names}
    allowed = {name for name in depth if depth[name] > depth[module]} | set(BESIDE.get(module, ())) | {module}
    if module in ("prep", "prepare", "blocks", "cli"):
        allowed.add("data_prep")
    return sorted(name for name in found if name not in allowed and name != "__version__")


def modules(package: str = "skinvl") -> list[str]:
    return sorted(
        path.stem if path.suffix else path.name
        for path in (ROOT / package).iterdir()
        if not path.name.startswith("__") and (path.suffix == ".py" or (path / "__init__.py").is_file())
    )


def test_every_module_stands_in_one_layer() -> None:
    assert sorted(name for names in LAYERS for name in names) == modules()
    assert sorted(name for names in SYNTHESIS for name in names) == modules("skinvl/synthesis")


@pytest.mark.parametrize("module", modules())
def test_arrows_point_down(module: str) -> None:
    path = ROOT / "skinvl" / module
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        assert violations(module, imports(file)) == [], file


@pytest.mark.parametrize("module", modules("skinvl/synthesis"))
def test_arrows_point_down_in_synthesis(module: str) -> None:
    found = imports(ROOT / "skinvl/synthesis" / f"{module}.py", "skinvl.synthesis")
    assert violations(module, found, SYNTHESIS) == []


def test_an_upward_arrow_is_seen(tmp_path: Path) -> None:
    assert violations("families", {"chat", "example"}) == ["chat"]
    assert violations("sft", {"prep"}) == ["prep"]
    (tmp_path / "journal.py").write_text("from skinvl import source\nfrom skinvl.synthesis import budget, request\n")
    assert imports(tmp_path / "journal.py") == {"source", "synthesis"}
    found = imports(tmp_path / "journal.py", "skinvl.synthesis")
    assert violations("journal", found, SYNTHESIS) == ["budget"]


@pytest.mark.parametrize("file", sorted((ROOT / "data_prep").glob("*.py")), ids=lambda path: path.stem)
def test_data_prep_knows_only_the_lowest_layer(file: Path) -> None:
    assert imports(file) <= {"example", "labels", "questions", "data_prep"}


def test_light_modules_load_neither_torch_nor_datasets() -> None:
    code = (
        f"import sys\nfor name in {TORCHLESS}: __import__(name)\nassert not {{'torch', 'datasets'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
