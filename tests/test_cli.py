"""The command line: words reach the verbs, and what the user can mend is one message."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from helpers import provenances
from skinvl import __main__ as cli
from skinvl.plan import show
from skinvl.recipe import silence, towers
from skinvl.train import sft

ROOT = Path(__file__).parent.parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skinvl", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "SKINVL_TRACEBACK": ""})


def verb(monkeypatch: pytest.MonkeyPatch, name: str, main: Any) -> None:
    module = ModuleType(f"skinvl.{cli.WING_OF[name]}.{name}")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"skinvl.{cli.WING_OF[name]}.{name}", module)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def main(words: list[str]) -> int:
        raise error

    # The name of the module decides whose error it is, so the verb gets that of a verb.
    named = FunctionType(main.__code__, {"__name__": "skinvl.sources.prep"}, closure=main.__closure__)
    verb(monkeypatch, "prep", named)


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from skinvl import __main__ as cli\n"
        "for words in (['--help'], ['--version'], ['stf']): cli.main(words)\n"
        "assert not {'torch', 'datasets', 'pydantic'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in cli.WING_OF)
    assert "skinvl 0." in done.stdout
    assert "skinvl stf: no such verb; did you mean sft?" in done.stderr


def test_exit_codes_of_the_process() -> None:
    assert run("--help").returncode == 0
    assert run("sft", "--help").stdout.startswith("usage: skinvl sft")
    nothing = run()
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert run("stf").returncode == 2
    missing = run("sft", "no-such-recipe")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert missing.stderr.startswith("skinvl sft: no-such-recipe: neither a name in recipes/")


def test_make_help_lists_the_targets_by_wing() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "help"]  # the tests themselves are started by make
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    wing, wings = "", dict[str, list[str]]()
    for line in shown.splitlines():
        assert len(line) <= 80, line
        wing = line[:12].strip() or wing
        wings.setdefault(wing, []).append(line[12:22].strip())
    assert list(wings)[:-1] == [name for name in cli.WINGS if name in wings]
    for name, targets in wings.items():
        for target in targets:
            assert cli.WING_OF.get(target, name) == name
    verbs = {
        "prep",
        "synth",
        "look",
        "plan",
        "show",
        "sft",
        "pretrain",
        "cache",
        "eval",
        "merge",
        "publish",
        "ask",
        "demo",
        "serve",
    }
    assert verbs <= {target for targets in wings.values() for target in targets}
    assert {"setup", "check", "test"} <= set(wings["project"])


@pytest.mark.parametrize(
    ("target", "extras"),
    [
        ("sft", set()),
        ("pretrain", set()),
        ("eval", set()),
        ("demo", {"demo"}),
        ("serve", {"serve"}),
        ("synth", {"serve"}),
        ("test", {"dev"}),
    ],
)
def test_a_target_installs_what_it_needs_and_no_more(target: str, extras: set[str]) -> None:
    command = ["make", "--dry-run", "--always-make", target]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installed = re.findall(r"--constraint constraints\.txt --editable (\S+)", shown)
    assert installed == [".", *(f"'.[{extra}]'" for extra in extras)]


SAID = """
import logging, sys, warnings
from skinvl.recipe import silence
silence.messages()
kernel, engine = logging.getLogger("bitsandbytes.backends.cpu.ops"), logging.getLogger("DeepSpeed")
kernel.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please", "No module named 'kernels'")
kernel.warning("another fault of the kernel")
engine.warning("Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.")
engine.warning("another fault of the engine")
warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning)
warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed in v6.", UserWarning)
warnings.warn("another fault in the future", FutureWarning)
"""


def test_what_a_user_can_do_nothing_about_is_left_out_by_name_and_all_else_comes_through() -> None:
    done = subprocess.run([sys.executable, "-c", SAID], cwd=ROOT, capture_output=True, text=True, check=True)
    told = [line for line in done.stderr.splitlines() if "warnings.warn(" not in line]
    assert [line.rpartition(": ")[2] for line in told if line] == [
        "another fault of the kernel",
        "another fault of the engine",
        "`is_gradient_checkpointing` is deprecated and will be removed in v6.",
        "another fault in the future",
    ]


def test_bars_that_are_done_at_once_are_left_out_and_others_come_through() -> None:
    made = []
    silence.bar(lambda *given, **named: made.append((given, named)), ([1],), {"desc": "Loading weights", "total": 1})
    silence.bar(lambda *given, **named: made.append((given, named)), ([1],), {"desc": "Downloading", "total": 1})
    (_, quiet), (_, loud) = made
    assert quiet == {"desc": "Loading weights", "total": 1, "disable": None, "delay": silence.BAR_AFTER, "leave": False}
    assert loud == {"desc": "Downloading", "total": 1}
    code = (
        "from transformers.utils import logging; from skinvl.recipe import silence; silence.bars()\n"
        "for name in ('Loading weights', 'Writing model shards', 'Downloading'): list(logging.tqdm([1], desc=name))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Downloading" in done.stderr
    assert "Loading" not in done.stderr
    assert "shards" not in done.stderr


def test_words_reach_prep_and_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    for name in ("prep", "bases"):
        verb(monkeypatch, name, lambda words: seen.append(words) or 7)  # type: ignore[func-returns-value]
        assert cli.main([name, "a", "--help", "-x"]) == 7
    assert seen == [["a", "--help", "-x"]] * 2


def test_the_recipe_reaches_sft_and_show(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []

    monkeypatch.setattr(sft.dry, "show", lambda recipe, configs: seen.append((recipe, {"configs": configs})))
    monkeypatch.setattr(sft, "train", lambda recipe: seen.append((recipe, {})))
    monkeypatch.setattr(show, "paint_sources", lambda recipe, count: seen.append((recipe, {"count": count})))
    assert cli.main(["sft", "tiny", "train.max_steps=3", "--dry-run", "base=qwen3-vl-4b", "--configs", "x"]) == 0
    assert cli.main(["sft", "tiny"]) == 0
    assert cli.main(["show", "-n", "2", "tiny", "run=again"]) == 0
    (dry, dry_options), (_, options), (shown, show_options) = seen
    assert (dry.train["max_steps"], dry.base.name) == (3, "qwen3-vl-4b")
    assert dry_options == {"configs": Path("x")}
    assert options == {}
    assert (shown.run, show_options) == ("again", {"count": 2})


def test_configs_without_dry_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["sft", "tiny", "--configs", "x"])
    assert caught.value.code == 2
    assert "add --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("train: no such thing"), "train: no such thing"),
        (FileNotFoundError("data/x: prepare it"), "data/x: prepare it"),
        (PermissionError(13, "Permission denied", "runs/x"), "runs/x: Permission denied"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    failing(monkeypatch, error)
    monkeypatch.delenv("SKINVL_TRACEBACK", raising=False)
    assert cli.main(["prep"]) == 2
    assert capsys.readouterr().err == f"skinvl prep: {message}\n"
    monkeypatch.setenv("SKINVL_TRACEBACK", "1")
    assert cli.main(["prep"]) == 2
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_message_of_another_library_says_whose_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SKINVL_TRACEBACK", raising=False)
    verb(monkeypatch, "prep", lambda words: json.loads("{"))
    assert cli.main(["prep"]) == 2
    error = capsys.readouterr().err
    assert "(from json.decoder; SKINVL_TRACEBACK=1 shows the way there)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AssertionError("x"), RuntimeError("x")])
def test_a_fault_of_the_program_keeps_its_trace(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main(["prep"])


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert cli.main(["prep"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_pipe_that_closes_early_is_quiet() -> None:
    code = (
        "import sys, types; from skinvl import __main__ as cli\n"
        "def main(words):\n    while True: print('x' * 1000)\n"
        "sys.modules['skinvl.sources.prep'] = module = types.ModuleType('skinvl.sources.prep')\n"
        "module.main = main\nsys.exit(cli.main(['prep']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        *(((verb, "runs/two"), "a run of two towers") for verb in ("ask", "demo", "serve", "generate", "classify")),
        *(((verb, "runs/two"), "the folder of a run of two towers, and no recipe") for verb in ("sft", "cache")),
        *(((verb, "tiny-clip"), "a recipe of two towers") for verb in ("sft", "cache", "generate", "ask")),
        *(((verb, "tiny"), "a recipe of a vision-language model") for verb in ("pretrain", "zeroshot", "retrieve")),
    ],
)
def test_the_other_kind_of_run_or_recipe_is_refused_in_one_sentence(
    words: tuple[str, ...],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "two"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(towers.dump(towers.load("tiny-clip")))
    of_towers = {"texts": {"caption": 9}, "distinct": 9, "text_length": 77, "too_long": 0, "conversion": None}
    provenances.made(towers=of_towers).write(run)
    more = ("missing.png", "What is it?") if words[0] == "ask" else ()  # the kind is said before the image
    assert cli.main([*words, *more]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert said.count("\n") == 1
    assert "; use skinvl eval" in said or ("skinvl eval, " in said and " evaluate" in said)
