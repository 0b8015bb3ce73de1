"""`skinvl serve RUN`: a run behind the OpenAI-compatible API of vLLM or transformers, checked before anyone asks it."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self, get_args

from rich.console import Console

from skinvl.evaluate import parity
from skinvl.evaluate.engine import Question
from skinvl.serve import serving
from skinvl.serve.serving import Command, Engine, ServedModel, ServeError

LAST = 15  # lines of the engine's log in a message
GRACE = 20.0  # seconds that an engine has to end by itself
OPEN = ("0.0.0.0", "::")
PR_SET_PDEATHSIG = 1  # linux/prctl.h

SNIPPETS = """\
curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' -d @- <<END
{{"model": "{name}", "messages": [{{"role": "user", "content": [
  {{"type": "image_url", "image_url": {{"url": "data:image/jpeg;base64,$(base64 -w0 lesion.jpg)"}}}},
  {{"type": "text", "text": "What does the image show?"}}]}}]}}
END

import base64, openai
client = openai.OpenAI(base_url="{address}/v1", api_key="none")
image = base64.b64encode(open("lesion.jpg", "rb").read()).decode()
question = [{{"type": "image_url", "image_url": {{"url": f"data:image/jpeg;base64,{{image}}"}}}},
            {{"type": "text", "text": "What does the image show?"}}]
answer = client.chat.completions.create(model="{name}", messages=[{{"role": "user", "content": question}}])
print(answer.choices[0].message.content)
"""
REASONS = {
    "prompt": "another prompt",
    "answer": "another answer",
    "rounding": "another answer, from two tokens near a tie",
}


def main(words: Sequence[str]) -> int:
    """0, once the server was stopped, or with --check-only once it is checked.

    Raises:
        ServeError: nothing to serve, no engine, a port that is taken, an engine that ends by itself, or one that
            answers otherwise than the run.
        RunError: no finished run.
    """
    args = _arguments(words)
    say = Console(highlight=False, markup=False, soft_wrap=True)
    served, engine = _chosen(args.run, args.engine)
    out = args.run / "served"
    folder = serving.view(served, out)
    command = serving.command(served, engine, folder, args.host, args.port, args.more)
    what = f"{served.adapter} on {served.weights}" if served.adapter else str(served.weights)
    say.print(f"{served.name}: {what}, by {engine}")
    if args.print:
        print(command)
        return 0

    # What can be refused is refused before weights are read: by us for our own answers, then by the engine.
    serving.require(engine)
    _warn(args.host, engine)
    for limit in serving.LIMITS[engine]:
        say.print(f"{engine}: {limit}")
    _free(args.host, args.port)
    questions, origin = parity.examples(served.recipe, served.chat, out)
    say.print(f"check: {origin}, and a conversation with a system turn; our own answers first")
    ours = apart(parity.own, served.recipe, served.chat, questions)

    with Child(command, args.run / "serve.log") as child:
        address = f"http://{_reachable(args.host)}:{args.port}"
        with say.status(f"{engine} starts; its log is {child.log}"):
            child.wait(address, args.timeout)
        say.print(f"{engine} is up; asking it")
        check(served, engine, address, ours, say)
        if args.check_only:
            return 0
        say.print(f"{address}/v1 serves {served.name}; Ctrl-C stops it. To ask it:\n")
        print(SNIPPETS.format(address=address, name=served.name), flush=True)
        try:
            child.follow()
        except KeyboardInterrupt:
            say.print("stopped")
    return 0


def check(served: ServedModel, engine: Engine, address: str, ours: Sequence[parity.Own], say: Console) -> None:
    """Checks that the server at the address answers as we do.

    Raises:
        ServeError: it reads other prompts, gives other answers than rounding explains, or draws none where asked.
    """
    import openai

    ends = serving.ends(served)
    key = os.environ.get("VLLM_API_KEY")

    def answer(question: Question, temperature: float | None = None) -> parity.ServedAnswer:
        try:
            return parity.ask(address, served.name, question, served.recipe, key, engine == "vllm", temperature)
        except openai.OpenAIError as error:
            raise ServeError(f"{question.key}: {address} did not answer it ({error})") from error

    verdicts = [(own.question.key, parity.judge(own, answer(own.question), served.chat, ends)) for own in ours]

    # Two tokens near a tie may part the answers now and then; more often than not they do not.
    counts = Counter(verdict.outcome for _, verdict in verdicts)
    for name, verdict in verdicts:
        if verdict.outcome != "same":
            say.print(f"{name}: {REASONS[verdict.outcome]}: {verdict.detail}")
    if counts["prompt"] or counts["answer"] or counts["rounding"] > counts["same"]:
        raise ServeError(
            f"{address} serves something else than was trained: of {len(ours)} questions {counts['prompt']} reach the "
            f"model as another prompt, {counts['answer']} get another answer, {counts['rounding']} one that rounding "
            "explains. What was said after -- may change template, images or weights; serve.log in the run has more"
        )
    # At such a temperature every token is as likely as any: whoever draws gives another answer than the likeliest.
    longest = max(ours, key=lambda own: len(own.ids))
    likeliest, drawn = longest.text.strip(), answer(longest.question, parity.HOT).text.strip()
    if drawn == likeliest or (drawn and likeliest.startswith(drawn)):
        raise ServeError(
            f"{longest.question.key}: {address} says {drawn!r} at a temperature of {parity.HOT:g} too, so that it "
            "draws no answer where one is asked for; what was said after -- may change this"
        )
    turned = f", {counts['rounding']} part where two tokens were near a tie" if counts["rounding"] else ""
    say.print(f"checked: all {len(ours)} prompts are as trained, {counts['same']} answers equal ours{turned}")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, from a process of its own: whatever it held on a GPU is free again.

    Raises:
        ServeError: the process died; what the function raises as ValueError or OSError is raised as it is.
    """
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(writer, function, arguments), daemon=True)
    process.start()
    writer.close()
    try:
        result = reader.recv()
        process.join()
    except EOFError as error:
        raise ServeError("our own answers: the process died, most often for want of memory") from error
    finally:
        process.kill()
    if isinstance(result, Exception):
        raise result
    return result


def _send_result(writer: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    try:
        writer.send(function(*arguments))
    except (ValueError, OSError) as error:
        writer.send(error)


class Child:
    """An engine while it runs: a process group of its own, which is gone when the block is left, whatever ends it."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command, self.log = command, log

    def __enter__(self) -> Self:
        # What ends us ends as Ctrl-C does: the block is left, and the engine with it.
        endings = (signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, signal.default_int_handler) for number in endings}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                self.command.words,
                cwd=self.command.folder,
                env={**os.environ, **self.command.environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who then end the whole group
                preexec_fn=_orphaned,
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._signal(signal.SIGTERM)
        try:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        finally:
            self._signal(signal.SIGKILL)  # what it has started may outlive it
            self.process.wait()
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # the whole group has ended
            os.killpg(self.process.pid, number)

    def wait(self, address: str, seconds: float) -> None:
        """Waits until the server says that it is well.

        Raises:
            ServeError: it has ended, or does not say so in time.
        """
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise self._ended()
            try:
                with direct.open(f"{address}/health", timeout=5):
                    return
            except OSError:  # not yet
                time.sleep(0.5)
        raise ServeError(f"{address}: not up after {seconds:g} s; give --timeout more, or see {self._last()}")

    def follow(self) -> None:
        """Waits for as long as the engine runs.

        Raises:
            ServeError: the engine has ended.
        """
        self.process.wait()
        raise self._ended()

    def _ended(self) -> ServeError:
        code = self.process.returncode
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ServeError(f"{self.command.words[0]} {why}; {self._last()}")

    def _last(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n  ".join([f"the end of {self.log}:", *lines[-LAST:]])


def _orphaned() -> None:
    """Has the process that calls this end when its parent is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _chosen(path: Path, engine: Engine | None) -> tuple[ServedModel, Engine]:
    """What is served, and by which engine: unless one is named, vLLM where it is installed and can serve the run."""
    if engine is None and serving.program("vllm") is not None:
        with suppress(ServeError):
            return serving.served_model(path, "vllm"), "vllm"
    return serving.served_model(path, engine or "transformers"), engine or "transformers"


def _free(host: str, port: int) -> None:
    try:
        (family, kind, _, _, where), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ServeError(
            f"--host {host} --port {port}: {error.strerror or error}; give another --port, or end what listens there"
        ) from error


def _reachable(host: str) -> str:
    """The host by which this machine reaches a server that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _warn(host: str, engine: Engine) -> None:
    if host in ("127.0.0.1", "::1", "localhost") or (engine == "vllm" and os.environ.get("VLLM_API_KEY")):
        return
    more = (
        "; VLLM_API_KEY in the environment sets a password"
        if engine == "vllm"
        else ", and have it read images from any address or file that it names"
    )
    print(
        f"--host {host}: no password is asked for; whoever reaches this machine can use the model{more}",
        file=sys.stderr,
    )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="skinvl serve", description="Serve a run by the OpenAI-compatible API, and check what is served.",
        usage="skinvl serve [options] RUN [-- engine arguments]",
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--engine", choices=get_args(Engine),
                        help="default: vllm where it is there and can serve the run, else transformers")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default 8000")
    parser.add_argument("--timeout", type=float, default=1200.0, metavar="SECONDS",
                        help="how long the engine may take to start (default 1200)")  # fmt: skip
    parser.add_argument("--print", action="store_true", help="print the command that would start it, and end")
    parser.add_argument("--check-only", action="store_true", help="start it, check it, and end")
    own, more = list(words), []
    if "--" in own:
        end = own.index("--")
        own, more = own[:end], own[end + 1 :]
    args = parser.parse_args(own)
    if not 0 < args.port < 2**16:
        parser.error(f"--port {args.port}: expected 1 to 65535")
    args.more = more
    return args
