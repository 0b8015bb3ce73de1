"""The commands of the documents: what opens a page works when pasted after `make sft`, and the others are understood.

A block that starts with ```sh is run; one that starts with ```sh needs … (a GPU, data, a server) is parsed only.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skinvl import __main__ as cli
from skinvl.recipe import loading, recipe, towers

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMES = "contrastive data datasets evaluation limits release scale-and-interruptions synthesis training"
BLOCK = re.compile(r"^```sh(?: needs (?P<needs>.+))?\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
SKINVL = re.compile(r"(?:\S*\bskinvl|.* -m skinvl)\s")  # how a command starts that is the words of a verb
Command = list[str]


class Parsed(Exception):
    """The words of a verb were understood."""


def commands(text: str) -> list[Command]:
    """The words of each command of a block, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> Iterator[tuple[bool, list[Command]]]:
    """Each block of a page: whether it can be run here, and its commands."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield block["needs"] is None, commands(block["commands"])


def verbs(command: Command) -> list[Command]:
    """What a command gives to skinvl: the verb and its words; of a target of make, those of its recipe."""
    if command[0] != "make":
        assert command[0] in ("skinvl", ".venv/bin/skinvl"), command
        return [command[1:]]
    known = {line.split()[0] for line in (ROOT / "Makefile").read_text().splitlines() if re.match(r"\w+ +\??=", line)}
    assert {word.partition("=")[0] for word in command if "=" in word} <= known, command
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    dry = subprocess.run(
        ["make", "-n", "--no-print-directory", *command[1:]],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [shlex.split(line[match.end() :]) for line in dry.stdout.splitlines() if (match := SKINVL.match(line))]


def parse(words: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails unless the verb exists, knows its words, and a recipe that is named takes what is set."""

    def understood(original: Any) -> Any:
        def parse_and_stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
            raise Parsed(original(parser, *args, **kwargs))

        return parse_and_stop

    assert words[0] in cli.WING_OF, words
    module = importlib.import_module(f"skinvl.{cli.WING_OF[words[0]]}.{words[0]}")
    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, understood(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed) as stopped:
            module.main(words[1:])
    (options,) = stopped.value.args
    named = getattr(options, "recipe", None)
    if named in recipe.recipes():
        load: Any = towers.load if loading.kind_of(named) == "pretrain" else recipe.load
        load(named, options.overrides)


def test_every_subject_has_its_page() -> None:
    assert [page.stem for page in PAGES] == NAMES.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_opens_with_a_command_that_can_be_run(page: Path) -> None:
    title, opening = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert opening.startswith("```sh\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_cannot_be_run_here_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, block in blocks(page):
        for command in block:
            calls = verbs(command)
            assert calls, command
            for words in calls:
                parse(words, monkeypatch)


def test_a_command_that_is_not_understood_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    parse(["sft", "skinvl-mm", "train.learning_rate=1e-4", "--dry-run"], monkeypatch)
    for words in ("stf tiny", "sft tiny --dri", "sft tiny train.lerning_rate=1", "merge runs/a --folded"):
        with pytest.raises((AssertionError, SystemExit, ValueError)):
            parse(words.split(), monkeypatch)
    with pytest.raises(subprocess.CalledProcessError):
        verbs(["make", "sfft"])
    with pytest.raises(AssertionError):
        verbs(["make", "sft", "RECIPES=tiny"])
    assert verbs(["make", "sft", "RECIPE=skinvl-pub", "GPUS=8", "ARGS=resume=auto"])[-1] == [
        "sft", "skinvl-pub", "resume=auto",
    ]  # fmt: skip


@pytest.mark.slow
def test_commands_work_when_pasted_after_make_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def skinvl(words: Command) -> None:
        capsys.readouterr()
        code = cli.main(words)
        printed = capsys.readouterr()
        assert (code, bool(printed.out.strip())) == (0, True), f"{shlex.join(words)}: {printed.err[-3000:]}"

    # What make sft does, in fewer steps.
    skinvl(["prep", "demo", "data/raw/demo", "data/demo"])
    skinvl(["sft", "tiny", "train.max_steps=40"])
    for page in PAGES:
        for works_here, block in blocks(page):
            for command in block if works_here else []:
                for words in verbs(command):
                    skinvl(words)
