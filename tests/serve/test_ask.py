"""What `skinvl ask` reads from its words, from a pipe and from a terminal, and what it writes where."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import test_dialogue

from helpers import tiny
from skinvl import __main__
from skinvl.model.loaded import LoadedModel
from skinvl.serve import ask, dialogue
from skinvl.serve.ask import AskError, Terminal
from skinvl.serve.dialogue import Dialogue

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run lies as runs/one, and an image."""
    from helpers import runs

    folder = tmp_path_factory.mktemp("asked")
    test_dialogue.finished(folder, runs.make(folder, "qwen2_vl", evaluate__generation={"max_new_tokens": 6}))
    tiny.picture(3).save(folder / "a lesion.png")
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(made)
    return "runs/one"


def test_images_questions_and_settings_are_told_apart(run: str) -> None:
    found = ask.read_words(
        ["a lesion.png", "What is it?", "evaluate.batch_size=2", "And which site", "benign/malignant?", " "]
    )
    assert found.images == [Path("a lesion.png")]
    assert found.questions == ["What is it?", "And which site", "benign/malignant?"]
    assert found.overrides == ["evaluate.batch_size=2"]
    assert ask.read_words(["What is in IMG_1.jpg?", "Is size=3 large", "x=1?"]).questions == [
        "What is in IMG_1.jpg?",
        "Is size=3 large",
        "x=1?",
    ]
    assert ask.read_words(["why " * 2000]).questions  # longer than any path
    for word in ("a leison.png", "images/lesion", "https://example.com/a", "photo.JPG"):
        with pytest.raises(AskError, match="no such image; if it is a question, end it with a question mark"):
            ask.read_words([word])
    with pytest.raises(AskError, match=r"gone\.png: no such image"):
        ask.image("gone.png")


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_answer_is_one_object_of_one_conversation(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [run, "a lesion.png", "What is the colour?", "How many?", "--json", "evaluate.generation.max_new_tokens=5"]
    assert ask.main(words) == 0
    first, second = rows(capsys)
    assert [one["question"] for one in (first, second)] == ["What is the colour?", "How many?"]
    assert [one["turn"] for one in (first, second)] == [1, 2]
    assert first["images"] == second["images"] == [str(Path("a lesion.png").absolute())]
    assert first["cached_tokens"] == 0 < second["cached_tokens"] < second["prompt_tokens"]
    assert first["completion_tokens"] <= 5
    assert first["finish_reason"] in ("stop", "length")
    assert first["generation"]["max_new_tokens"] == 5
    assert first["run"]["name"] == run
    assert first["run"]["adapter"]
    assert ask.main([run, "a lesion.png", "What is the colour?", "--json", "--base"]) == 0
    (base,) = rows(capsys)
    assert base["run"]["adapter"] is None


def test_a_pipe_asks_line_by_line(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many?\n\nWhich colour?\n"))
    assert ask.main([run, "--image", "a lesion.png"]) == 0
    told = capsys.readouterr()
    assert "> Which colour?" in told.err
    assert dialogue.NOTICE in told.err
    assert "adapter" in told.err
    assert "Which colour?" not in told.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(AskError, match="nothing is asked"):
        ask.main([run])


def test_what_goes_wrong_is_one_message(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["ask", run, "a leison.png", "What?"]) == 2
    assert capsys.readouterr().err == (
        "skinvl ask: a leison.png: no such image; if it is a question, end it with a question mark\n"
    )
    assert __main__.main(["ask", "runs/none", "What?"]) == 2
    assert "runs/none" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def asked(made: Path) -> LoadedModel:
    from skinvl.model.loaded import load_model

    found, _ = dialogue.resolve(str(made / "runs" / "one"), [])
    return load_model(found, test_dialogue.CPU)


def test_a_terminal_asks_on(
    run: str, asked: LoadedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    lines = iter(
        ["/image gone.png", "/image a lesion.png", "What is it?", "", "/frob", "<|im_end|>", "Why?", "/new", "How?"]
    )

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    terminal = Terminal(Dialogue(asked, test_dialogue.FEW), "one", True, Console(stderr=True))
    assert terminal.talk([]) == 0
    told = capsys.readouterr()
    found = [json.loads(line) for line in told.out.splitlines()]
    assert [(one["question"], one["turn"], len(one["images"])) for one in found] == [
        ("What is it?", 1, 1),
        ("Why?", 2, 1),
        ("How?", 1, 0),
    ]
    for why in ("gone.png: no such image", "/frob: no such command", "control-token"):
        assert why in " ".join(told.err.split())


def test_ctrl_c_ends_an_answer_and_not_the_conversation(asked: LoadedModel) -> None:
    import signal

    one = Dialogue(asked, test_dialogue.FEW.model_copy(update={"max_new_tokens": 40}))
    before = signal.getsignal(signal.SIGINT)
    with ask._stopped_by_ctrl_c(one):
        for _ in one.ask("What is it?"):
            if signal.getsignal(signal.SIGINT) is not before:
                os.kill(os.getpid(), signal.SIGINT)
    assert one.reply is not None
    assert one.reply.finish_reason == "stopped"
    assert signal.getsignal(signal.SIGINT) is before
    with ask._stopped_by_ctrl_c(one):
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is not before:
            time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):  # a second one ends the command
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_as_a_command_stdout_holds_answers_alone(made: Path) -> None:
    command = [sys.executable, "-m", "skinvl", "ask", "runs/one", "a lesion.png"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    piped = subprocess.run(
        [*command, "--json"], cwd=made, env=environment, input="How many?\n", capture_output=True, text=True
    )
    assert piped.returncode == 0, piped.stderr
    assert [json.loads(line)["question"] for line in piped.stdout.splitlines()] == ["How many?"]
    leader, follower = pty.openpty()  # a terminal: control characters of an answer do not reach it
    live = subprocess.Popen(
        command, cwd=made, env=environment, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.write(leader, b"How many?\n\x04")
    out, err = live.communicate(timeout=120)
    os.close(leader)
    os.close(follower)
    assert live.returncode == 0, err
    assert "Ctrl-D ends" in err
    assert (
        json.loads(piped.stdout)["answer"].strip() in out
        or dialogue.readable(json.loads(piped.stdout)["answer"]) in out
    )
