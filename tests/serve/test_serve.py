"""`skinvl serve`: a real server on a merged run, a stand-in for the other engine, and no process left behind."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import test_serving
from rich.console import Console

from helpers import runs, tiny
from skinvl import __main__
from skinvl.evaluate import parity
from skinvl.evaluate.parity import Own
from skinvl.model import ways_out
from skinvl.model.row import encode_prompt
from skinvl.recipe import run as skinvl_run
from skinvl.release import merge
from skinvl.serve import serve, serving
from skinvl.serve.serving import Command, ServedModel, ServeError
from skinvl.train import sft

HELPERS = Path(__file__).parents[1] / "helpers"
pytestmark = pytest.mark.usefixtures("_alone")


@pytest.fixture
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def free() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def processes(field: int, value: int) -> list[int]:
    """The ids of the processes whose parent (field 1) or group (field 2) is this one, the oldest first."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(file.read_text().rpartition(")")[2].split()[field]) == value:
                found.append(int(file.parent.name))
    return sorted(found)


def gone(process: int) -> bool:
    """Whether a process has ended, within some seconds."""
    for _ in range(200):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a merged folder, which is its base, to be answered by a table."""
    return test_serving.finished(tmp_path, merged=True)


@pytest.fixture
def vllm(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The table of a stand-in that is installed as vLLM and says what we say; what is set in it counts from then on."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {HELPERS / "standing_in.py"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDING_IN", str(tmp_path / "table.json"))
    table: dict[str, Any] = {"answers": {}}
    given = serving.served_model(run, "vllm")
    asked, _ = parity.examples(given.recipe, given.chat, tmp_path)
    asked = [question for question in asked if question.key in ("drawn/test-0-0", "drawn/test-0-1", "drawn/talk")]
    ours = []
    for number, question in enumerate(asked):
        row = question.row
        prompt = encode_prompt(given.chat, row).encoded.ids
        own = Own(question, prompt, f"No. {number}", given.chat.tokenizer(f"No. {number}")["input_ids"], [[]] * 20)
        words = parity.words(row.example.messages[-2])
        table["answers"][words] = {"text": own.text, "tokens": len(prompt), "ids": folded(prompt, given.chat.image_id)}
        ours.append(own)
    monkeypatch.setattr(serve, "apart", lambda function, *given: (save(), ours)[1])

    def save() -> None:
        (tmp_path / "table.json").write_text(json.dumps(table))

    return table


def folded(ids: list[int], image: int) -> list[int]:
    return [token for place, token in enumerate(ids) if token != image or ids[place - 1] != image]


def test_a_server_that_says_what_we_say_is_served(
    run: Path, vllm: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free()
    assert serve.main([str(run), "--port", str(port), "--check-only", "--", "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert f"a-run: {run}/merged, by vllm" in told
    assert "check: 5 of the run's examples, and a conversation with a system turn" in told
    assert "checked: all 3 prompts are as trained, 3 answers equal ours\n" in told
    assert all(f"\nvllm: {limit}\n" in told for limit in serving.LIMITS["vllm"])
    log = (run / "serve.log").read_text()
    assert "'--served-model-name', 'a-run', '--seed', '3']" in log
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


COLOUR = "What is the colour?"


@pytest.mark.parametrize(
    ("words", "change", "told", "refused"),
    [
        (COLOUR, {"tokens": 7}, "drawn/test-0-0: another prompt: it read 7 tokens; trained are", "1 reach the model"),
        (COLOUR, {"ids": [1, 2]}, "another prompt: it read '", "1 reach the model as another prompt"),
        (COLOUR, {"text": "Red."}, "another answer: it says 'Red.'; we say 'No. 0'", "1 get another answer"),
        ("When is it?", {"tokens": 7}, "drawn/talk: another prompt", "1 reach the model"),
    ],
)
def test_a_server_that_says_another_thing_is_refused(
    run: Path,
    vllm: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    words: str,
    change: Any,
    told: str,
    refused: str,
) -> None:
    vllm["answers"][words] |= change
    with pytest.raises(ServeError, match=refused):
        serve.main([str(run), "--port", str(free())])
    assert told in capsys.readouterr().out


def test_answers_that_rounding_turns_are_shown_and_excused_unless_they_are_most(
    run: Path, vllm: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "_turned", lambda *_: True)
    words = list(vllm["answers"])
    vllm["answers"][words[0]]["text"] = "Red."
    port = str(free())
    assert serve.main([str(run), "--port", port, "--check-only"]) == 0
    told = capsys.readouterr().out
    assert "drawn/test-0-0: another answer, from two tokens near a tie: it says 'Red.'; we say 'No. 0'" in told
    assert "2 answers equal ours, 1 part where two tokens were near a tie" in told
    vllm["answers"][words[1]]["text"] = "Red."
    with pytest.raises(ServeError, match="0 get another answer, 2 one that rounding explains"):
        serve.main([str(run), "--port", port, "--check-only"])


def test_a_server_that_draws_nothing_is_refused(run: Path, vllm: dict[str, Any]) -> None:
    vllm["greedy"] = True
    with pytest.raises(ServeError, match=r"says 'No\. 0' at a temperature of 100 too, so that it draws no answer"):
        serve.main([str(run), "--port", str(free()), "--check-only"])


def test_the_docs_name_what_each_engine_cannot_do() -> None:
    words = " ".join((Path(__file__).parents[2] / "docs" / "release.md").read_text().split())
    assert all(limit in words for limits in serving.LIMITS.values() for limit in limits)


def test_a_key_in_the_environment_is_used(run: Path, vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    vllm["key"] = "secret"
    with pytest.raises(ServeError, match=r"drawn/test-0-0: http://127\.0\.0\.1:\d+ did not answer it .*401"):
        serve.main([str(run), "--port", str(free()), "--check-only"])
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert serve.main([str(run), "--port", str(free()), "--check-only"]) == 0


def test_an_engine_that_ends_or_never_listens_says_what_its_log_says(run: Path, vllm: dict[str, Any]) -> None:
    vllm["die"] = 3
    expected = r"vllm ended with exit code 3; the end of .*serve\.log:\n  loading .*\n  CUDA out of memory"
    with pytest.raises(ServeError, match=expected):
        serve.main([str(run), "--port", str(free())])
    del vllm["die"]
    vllm["start"] = 60
    with pytest.raises(ServeError, match=r"not up after 1 s; give --timeout more, .*\n  loading"):
        serve.main([str(run), "--port", str(free()), "--timeout", "1"])


def test_a_port_that_is_taken_is_named_before_anything_starts(run: Path, vllm: dict[str, Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"--port {port}: .*in use; give another --port"):
            serve.main([str(run), "--port", str(port)])
    assert not (run / "serve.log").exists()
    with pytest.raises(ServeError, match=r"--host no\.such\.host\.invalid --port 80"):
        serve.main([str(run), "--host", "no.such.host.invalid", "--port", "8000"])


@pytest.mark.parametrize(("host", "key", "warned"), [
    ("127.0.0.1", None, ""), ("localhost", None, ""), ("0.0.0.0", "k", ""),
    ("0.0.0.0", None, "no password is asked for; whoever reaches this machine can use the model; VLLM_API_KEY"),
])  # fmt: skip
def test_an_open_host_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str, key: str | None, warned: str
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("VLLM_API_KEY", key)
    serve._warn(host, "vllm")
    told = capsys.readouterr().err
    assert warned in told if warned else not told
    serve._warn("0.0.0.0", "transformers")
    assert "read images from any address or file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.7", "10.0.0.7")]
)
def test_the_address_to_ask_at(host: str, reached: str) -> None:
    assert serve._reachable(host) == reached


def test_print_shows_what_would_start_and_starts_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert __main__.main(["serve", str(run), "--engine", "vllm", "--port", "8001", "--print", "--", "--seed", "3"]) == 0
    what, line = capsys.readouterr().out.splitlines()
    assert what == f"a-run: {run}/merged, by vllm"
    assert re.fullmatch(
        r"cd '\S+ run/served' && HF_HUB_OFFLINE=1 .* \S*vllm serve a-run .*--port 8001 .*--seed 3", line
    )
    assert "'{\"temperature\": 0.0}'" in line
    assert __main__.main(["serve", str(run), "--print"]) == 0  # vLLM is not installed here
    assert "skinvl.serve.drawing serve a-run --host 127.0.0.1 --port 8000 --dtype float32" in capsys.readouterr().out


def test_vllm_is_left_where_it_cannot_serve_the_run(
    run: Path, vllm: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways_out, "NOT_IN_VLLM", ("qwen2_vl",))
    assert serve.main([str(run), "--print"]) == 0
    assert "merged, by transformers" in capsys.readouterr().out
    shutil.rmtree(run / "merged")
    assert __main__.main(["serve", str(run)]) == 2
    assert "transformers serve takes one folder of whole weights" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--port", "0"], ["--port", "65536"], ["--engine", "tgi"], []])
def test_words_that_say_nothing_are_refused(run: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve.main([str(run), *words] if words else [])
    assert ended.value.code == 2


SLEEPS = "import os, sys, time, subprocess; subprocess.Popen(['sleep', '77']); print('up', flush=True); time.sleep(77)"


def keep(log: Path, out: Any) -> None:
    """Runs an engine that has started another process, and says the ids of its group until it ends."""
    os.setsid()
    with contextlib.suppress(KeyboardInterrupt), serve.Child(command(log.parent), log) as child:
        while "up" not in log.read_text():
            time.sleep(0.05)
        out.send(child.process.pid)
        child.follow()


def command(folder: Path) -> Command:
    return Command((sys.executable, "-S", "-c", SLEEPS), folder, {})


@contextlib.contextmanager
def kept(tmp_path: Path) -> Iterator[tuple[Any, list[int]]]:
    """A process that runs an engine, and the ids of the processes of that engine."""
    here, there = multiprocessing.Pipe()
    keeper = multiprocessing.get_context("fork").Process(target=keep, args=(tmp_path / "serve.log", there))
    keeper.start()
    try:
        group = here.recv()
        engine = processes(2, group)
        assert len(engine) == 2
        yield keeper, engine
    finally:
        keeper.kill()
        keeper.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_ends_us_ends_the_engine_and_all_it_started(tmp_path: Path, number: int) -> None:
    with kept(tmp_path) as (keeper, engine):
        os.kill(keeper.pid, number)
        keeper.join(30)
        assert keeper.exitcode == 0
        assert all(gone(one) for one in engine)


def test_our_own_violent_end_ends_the_engine(tmp_path: Path) -> None:
    with kept(tmp_path) as (keeper, engine):
        os.kill(keeper.pid, signal.SIGKILL)
        keeper.join(30)
        assert gone(engine[0])
        os.kill(max(engine), signal.SIGKILL)  # what an engine leaves when it is told to end is its own affair


def test_an_engine_that_is_killed_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with serve.Child(command(tmp_path), tmp_path / "serve.log") as child:
        while "up" not in (tmp_path / "serve.log").read_text():
            time.sleep(0.05)
        group = processes(2, child.process.pid)
        os.kill(child.process.pid, signal.SIGKILL)
        with pytest.raises(ServeError, match=r"was killed by SIGKILL; the end of .*\n  up"):
            child.follow()
    assert len(group) == 2
    assert all(gone(one) for one in group)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_engine_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "GRACE", 0.3)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(77)"
    with serve.Child(Command((sys.executable, "-S", "-c", deaf), tmp_path, {}), tmp_path / "serve.log") as child:
        while "up" not in (tmp_path / "serve.log").read_text():
            time.sleep(0.05)
    assert child.process.returncode == -signal.SIGKILL


DRAWING = (sys.executable, "-P", "-m", "skinvl.serve.drawing")


@contextlib.contextmanager
def served_at(folder: Path, address: str, start: Sequence[str] = DRAWING) -> Iterator[None]:
    """transformers serve, for whatever model of a folder a request names."""
    port = address.rpartition(":")[2]
    words = (*start, "serve", "--port", port, "--dtype", "float32", "--trust-remote-code")
    hub = folder / ".hub"
    with serve.Child(Command(words, folder, {"HF_MODULES_CACHE": str(hub)}), folder / "serve.log") as child:
        child.wait(address, 120)
        yield


@pytest.mark.slow
def test_transformers_serves_every_family_as_we_ask_it_and_nothing_else_passes(tmp_path: Path) -> None:
    out, address = tmp_path / "out", f"http://localhost:{free()}"
    say = Console(file=io.StringIO())
    given, ours = {}, {}
    for family, tokens in [*((one, 16) for one in tiny.FAMILIES), ("qwen2_vl", 4), ("mllama", 4)]:
        name = f"{family}-{tokens}"
        generation = {"max_new_tokens": 4}
        found = test_serving.subject(tmp_path / name, family, tokens, evaluate__generation=generation)
        given[name] = replace(found, name=name)
        serving.view(given[name], out)
        asked, _ = parity.examples(found.recipe, found.chat, tmp_path)
        # Random weights may write control tokens, which transformers serve shows of some models and not of others.
        control = set(found.chat.tokenizer.added_tokens_decoder)
        own = parity.own(found.recipe, found.chat, asked)
        ours[name] = [one for one in own if not control & set(one.ids)]
        assert len(ours[name]) >= 2

    def tampered(name: str, change: Callable[[Path], object]) -> ServedModel:
        folder = out / f"{name}-{change.__name__}"
        shutil.copytree(out / name, folder, symlinks=True)
        change(folder)
        return replace(given[name], name=folder.name)

    def template(folder: Path) -> None:
        file = folder / "chat_template.jinja"
        file.write_text("{{ 'Be kind. ' }}" + file.read_text())

    def budget(folder: Path) -> None:
        shutil.copy(tiny.base(folder.name.partition("-")[0]) / "processor_config.json", folder)

    def weights(folder: Path) -> None:
        other = tiny.build("qwen2_vl", tmp_path / "other", texts=tiny.TEXTS, seed=1)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(other / "model.safetensors")

    broken = [
        ("qwen2_vl-16", template, r"of (\d) questions \1 reach the model as another prompt"),
        ("qwen2_vl-4", budget, r"[1-5] reach the model as another prompt"),
        ("mllama-4", budget, r"0 reach the model as another prompt, [1-5] get another answer"),
        ("qwen2_vl-16", weights, r"0 reach the model as another prompt, [1-6] get another answer"),
    ]
    others = [(name, tampered(name, change), told) for name, change, told in broken]
    with served_at(out, address):
        for name, subject in given.items():
            serve.check(subject, "transformers", address, ours[name], say)
        for name, subject, told in others:
            with pytest.raises(ServeError, match=told):
                serve.check(subject, "transformers", address, ours[name], say)


@pytest.mark.slow
def test_transformers_draws_where_it_is_asked_to_and_fails_where_it_is_said_to(tmp_path: Path) -> None:
    out, port = tmp_path / "out", free()
    address = f"http://127.0.0.1:{port}"
    served = test_serving.subject(tmp_path, "qwen2_vl", evaluate__generation={"max_new_tokens": 12})
    serving.view(served, out)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

    def says(**settings: Any) -> list[str | None]:
        question: Any = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
        completion = client.chat.completions.create(
            model=served.name, messages=question, max_tokens=12, extra_body=settings
        )
        return [choice.message.content for choice in completion.choices]

    with served_at(out, address):
        likeliest = says()
        drawn = says(temperature=1.0, seed=3)
        assert says(temperature=0.0) == says() == likeliest
        assert drawn != likeliest
        assert drawn == says(temperature=1.0, seed=3) != says(temperature=1.0, seed=4)
        # Each line of LIMITS: one that no longer holds is to be taken out.
        assert says(top_p=0.9) == likeliest
        assert len(says(n=2, temperature=1.0)) == 1
        for ignored in ({"logprobs": True}, {"response_format": {"type": "json_object"}}, {"presence_penalty": 2.0}):
            assert says(**ignored) == likeliest
        with pytest.raises(openai.InternalServerError):
            says(stop=["e"])

    # The engine as it is draws nothing, which the check sees.
    questions, _ = parity.examples(served.recipe, served.chat, tmp_path)
    ours = parity.own(served.recipe, served.chat, questions[:1])
    with (
        served_at(out, address, [serving.program("transformers") or ""]),
        pytest.raises(ServeError, match=r"at a temperature of 100 too, so that it draws no answer"),
    ):
        serve.check(served, "transformers", address, ours, Console(file=io.StringIO()))


@pytest.mark.slow
def test_a_trained_run_is_merged_and_served_until_it_is_stopped(tmp_path: Path) -> None:
    # a quarter of the base's tiles, and a template that gets system turns as lists
    one = runs.make(tmp_path, "mllama", data__image_tokens=4, evaluate__generation={"max_new_tokens": 12})
    sft.train(one)
    path = skinvl_run.folder(one)
    assert merge.main([str(path)]) == 0
    port = str(free())
    words = [sys.executable, "-m", "skinvl", "serve", str(path), "--port", port]
    began = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert began.stdout is not None
    try:
        told = ""
        while "print(answer" not in told:
            line = began.stdout.readline()
            assert line, told
            told += line
        assert "checked: all 6 prompts are as trained, 6 answers equal ours" in told
        tiny.picture(3).save(tmp_path / "lesion.jpg")
        snippet = told[told.index("import base64, openai") :]
        said = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True).stdout
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        image = base64.b64encode((tmp_path / "lesion.jpg").read_bytes()).decode()
        parts: Any = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
            {"type": "text", "text": "What does the image show?"},
        ]
        name = path.name
        stream = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": parts}], max_tokens=12, stream=True
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert said.startswith(streamed.rstrip("\ufffd"))
        assert client.models.list().data == []  # no hub cache is needed, and none is shown
        engine = int(
            subprocess.run(["pgrep", "-P", str(began.pid), "-f", "serve"], capture_output=True, text=True).stdout
        )
    finally:
        began.terminate()
        assert began.wait(60) == 0
    assert gone(engine)
