"""The house has ten wings, and an import only points to a wing that stands before its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from skinvl import __main__ as cli

ROOT = Path(__file__).parent.parent
# recipe < data < (data_prep < sources) | score | (model < plan) < evaluate < train | release | serve < __main__
BEFORE: dict[str, set[str]] = {"recipe": set(), "data": {"recipe"}}
BEFORE["data_prep"] = {"recipe", "data"}
BEFORE["sources"] = {"recipe", "data", "data_prep"}
BEFORE["score"] = {"recipe", "data"}
BEFORE["model"] = {"recipe", "data"}
BEFORE["plan"] = {"recipe", "data", "model"}
BEFORE["evaluate"] = {"recipe", "data", "data_prep", "sources", "score", "model", "plan"}
BEFORE["train"] = BEFORE["release"] = BEFORE["serve"] = {*BEFORE["evaluate"], "evaluate"}
BEFORE["__main__"] = {*BEFORE["train"], "train", "release", "serve"}
WINGS = {*BEFORE} - {"data_prep", "__main__"}
LIGHT = ("recipe", "data", "sources", "score")  # wings that load no torch, and with them data_prep and release/publish
# Verbs never import one another, but for eval, which calls those of its wing, score and report.
MAY_CALL = {"eval": {"generate", "classify", "probe", "zeroshot", "retrieve", "score", "report"}}


def files() -> dict[str, Path]:
    """The files of skinvl and data_prep by module, such as skinvl.model.chat."""
    found = {}
    for folder in ("skinvl", "data_prep"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(module: str, text: str, known: Iterable[str]) -> set[str]:
    """The known modules that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in whole]
        else:
            continue
        found |= {name for name in names if name in known}
    return found - {module}


def wing(module: str) -> str:
    """The wing of a module, data_prep or __main__."""
    package, *rest = module.split(".")
    return rest[0] if package == "skinvl" and rest else package


def upward(module: str, imported: Iterable[str]) -> list[str]:
    """The imports of a module that point to a wing which does not stand before its own."""
    own = wing(module)
    return sorted(name for name in imported if wing(name) not in {own, "skinvl", *BEFORE[own]})


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


FILES = files()
GRAPH = {module: imports(module, path.read_text(encoding="utf-8"), FILES) for module, path in FILES.items()}
MODULES = sorted(GRAPH.keys() - {"skinvl"})


def test_the_house_is_ten_wings() -> None:
    shown = {path.name for path in (ROOT / "skinvl").iterdir() if path.name != "__pycache__"}
    assert shown == {"__init__.py", "__main__.py", *WINGS}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_to_wings_that_stand_before(module: str) -> None:
    assert upward(module, GRAPH[module]) == []


def test_there_is_no_circle() -> None:
    assert circle(GRAPH) == []


def test_an_upward_arrow_and_a_circle_are_seen() -> None:
    text = "from skinvl.train import sft\nfrom skinvl.model.chat import Chat\nimport data_prep\n"
    assert imports("skinvl.model.pack", text, FILES) == {"skinvl.train.sft", "skinvl.model.chat", "data_prep"}
    assert upward("skinvl.model.pack", imports("skinvl.model.pack", text, FILES)) == ["data_prep", "skinvl.train.sft"]
    assert upward("skinvl.score.stats", {"skinvl.model.chat"}) == ["skinvl.model.chat"]
    assert upward("skinvl.release.merge", {"skinvl.serve.ask", "skinvl.evaluate.parity"}) == ["skinvl.serve.ask"]
    assert upward("data_prep.isic", {"skinvl.sources.prep", "skinvl.data.example"}) == ["skinvl.sources.prep"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_a_verb_is_the_file_of_its_name_in_its_wing() -> None:
    mains = {
        module
        for module, path in FILES.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body)
    }
    assert mains == {f"skinvl.{wing}.{verb}" for verb, wing in cli.WING_OF.items()} | {"skinvl.__main__"}


@pytest.mark.parametrize("verb", sorted(cli.WING_OF))
def test_verbs_do_not_import_one_another(verb: str) -> None:
    verbs = {f"skinvl.{wing}.{name}": name for name, wing in cli.WING_OF.items()}
    called = {verbs[name] for name in GRAPH[f"skinvl.{cli.WING_OF[verb]}.{verb}"] if name in verbs}
    assert called <= MAY_CALL.get(verb, set())


@pytest.mark.parametrize("name", sorted(WINGS))
def test_a_wing_says_in_a_sentence_what_it_is_and_imports_nothing(name: str) -> None:
    (body,) = ast.parse(FILES[f"skinvl.{name}"].read_text(encoding="utf-8")).body
    assert isinstance(body, ast.Expr)
    assert isinstance(body.value, ast.Constant)
    assert str(body.value.value).count(".") == 1


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("data_prep")))
def test_data_prep_knows_examples_labels_and_questions_alone(name: str) -> None:
    names = ("dicom_pixels", "example", "labels", "questions", "reply_json")
    known = {"skinvl.data", *(f"skinvl.data.{name}" for name in names)}
    assert {one for one in GRAPH[name] if not one.startswith("data_prep")} <= known


@pytest.mark.parametrize("name", [*LIGHT, "publish"])
def test_light_wings_load_no_torch(name: str) -> None:
    modules = [module for module in MODULES if wing(module) == name] if name in LIGHT else ["skinvl.release.publish"]
    also = [module for module in MODULES if wing(module) == "data_prep"] if name == "sources" else []
    code = (
        f"import importlib, sys\nfor name in {modules + also}: importlib.import_module(name)\n"
        "assert not {'torch', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
