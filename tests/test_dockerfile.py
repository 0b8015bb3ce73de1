"""The Dockerfile takes its versions from constraints.txt, a Python that the package allows, and extras that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def test_its_python_is_one_that_the_package_allows() -> None:
    (image,) = (line.removeprefix("FROM ") for line in LINES if line.startswith("FROM "))
    found = re.fullmatch(r"python:(\d+\.\d+)-slim", image)
    assert found
    assert found[1] in SpecifierSet(PROJECT["requires-python"])


def test_every_version_is_that_of_the_constraints() -> None:
    pinned: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            one = Requirement(line)
            pinned[canonicalize_name(one.name)] = str(one.specifier)
    assert {canonicalize_name(Requirement(one).name) for one in PROJECT["dependencies"]} <= pinned.keys()
    (install,) = (line for line in LINES if "pip install" in line)
    assert "--constraint /skinvl/constraints.txt" in install
    assert install.endswith('"/skinvl[${EXTRAS}]"')
    for name, version in re.findall(r"([A-Za-z0-9_.-]+)(==[^\s\"']+)", "\n".join(LINES)):  # of what is named besides
        assert pinned[canonicalize_name(name)] == version


def test_extras_that_it_speaks_of_exist() -> None:
    said = re.search(r"such as ([a-z,]+); (\w+) needs", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert said
    assert {*said[1].split(","), said[2]} <= PROJECT["optional-dependencies"].keys()


def test_it_copies_what_the_package_is_built_of() -> None:
    copied = {one for line in LINES if line.startswith("COPY ") for one in line.split()[1:-1]}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    needed = {*wheel["packages"], *wheel.get("force-include", {})}
    assert copied == {*needed, "pyproject.toml", "constraints.txt", PROJECT["readme"], "LICENSE"}
    assert all((ROOT / one).exists() for one in copied)
