"""`skinvl ask RUN [IMAGE …] "question" …`: a run answers in the terminal, word by word, asked as it was trained."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from skinvl.recipe.run import require_answers

if TYPE_CHECKING:
    from skinvl.serve.dialogue import Dialogue

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")
COMMANDS = "/image PATH shows one more, /new begins anew, Ctrl-C ends an answer, Ctrl-D ends"


class AskError(ValueError):
    """Words that are neither an image, nor a question, nor a setting; or nothing that is asked."""


@dataclass(slots=True)
class AskWords:
    """What the words after RUN are."""

    images: list[Path] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """0, once every question was answered.

    Raises:
        AskError: nothing is asked, or a word is not what it looks like.
        DialogueError, ImageError, ChatError, RunError, BaseError: what a user can mend.
    """
    args = _arguments(arguments)
    require_answers(args.run)
    words = read_words(args.words)
    # A file cannot be named by an option and be missing; among the words it could also be a question.
    words.images[:0] = [image(path) for path in args.image]
    live = not words.questions and sys.stdin.isatty()

    with redirect_stdout(sys.stderr):  # on stdout there are answers alone
        import torch

        from skinvl.model.loaded import load_model
        from skinvl.serve import dialogue

        recipe, _ = dialogue.resolve(args.run, words.overrides, args.base)
        loaded = load_model(recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    say = Console(stderr=True, highlight=False)
    say.print(dialogue.caption(args.run, loaded), style="dim", markup=False)
    terminal = Terminal(dialogue.Dialogue(loaded, recipe.evaluate.generation), args.run, args.json, say)
    if live:
        say.print(f"{dialogue.NOTICE} {COMMANDS}", style="dim", markup=False)
        return terminal.talk(words.images)

    say.print(dialogue.NOTICE, style="dim", markup=False)
    for question in words.questions or _lines():
        if terminal.count or len(words.questions) > 1:
            say.print(f"> {question}", style="bold", markup=False)
        terminal.ask(question, words.images if not terminal.count else [])
    if not terminal.count:
        raise AskError('nothing is asked; give a "question" after the images, or lines on stdin')
    return 0


def read_words(words: Sequence[str]) -> AskWords:
    """The images, questions and settings among some words.

    A word that names a file is an image, and `key=value` is a setting. Of the others, one that ends as image files do,
    or is a path (a slash and no space), was meant as an image; anything else is a question, and so is all that ends in
    a question mark.

    Raises:
        AskError: an image that is not there.
    """
    ask_words = AskWords()
    for word in words:
        if OVERRIDE.match(word) and not word.endswith("?"):
            ask_words.overrides.append(word)
        elif len(word) < 4096 and Path(word).is_file():
            ask_words.images.append(Path(word))
        elif not word.endswith("?") and (word.casefold().endswith(SUFFIXES) or re.fullmatch(r"\S*/\S*", word)):
            raise AskError(f"{word}: no such image; if it is a question, end it with a question mark")
        elif word.strip():
            ask_words.questions.append(word)
    return ask_words


def image(name: str) -> Path:
    """The file of an image.

    Raises:
        AskError: there is none.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise AskError(f"{name}: no such image; give the path of an image file on this machine")
    return path


class Terminal:
    """Asks one conversation after another, and writes each answer as it appears.

    Args:
        plain: whether one JSON object is written for each answer, and nothing else.
    """

    def __init__(self, dialogue: Dialogue, run: str, plain: bool, say: Console) -> None:
        self.dialogue, self.run, self.plain, self.say = dialogue, run, plain, say
        self.count = 0

    def ask(self, question: str, images: Sequence[Path]) -> None:
        """Writes the answer on stdout.

        Raises:
            DialogueError, ImageError, ChatError: it cannot be asked.
        """
        from skinvl.serve.dialogue import readable

        out = sys.stdout
        with redirect_stdout(sys.stderr):  # deepspeed, which the first forward imports, would log there
            for piece in self.dialogue.ask(question, images):
                if not self.plain:
                    print(readable(piece), end="", flush=True, file=out)
        self.count += 1
        reply = self.dialogue.reply
        assert reply is not None
        if self.plain:
            facts = {"name": self.run, **self.dialogue.loaded.facts}
            row = {
                "question": reply.question,
                "answer": reply.answer,
                "thought": reply.thought,
                "finish_reason": reply.finish_reason,
                "images": [str(path) for path in self.dialogue.images],
                "turn": len(self.dialogue.messages) // 2,
                "prompt_tokens": reply.prompt_tokens,
                "cached_tokens": reply.cached_tokens,
                "completion_tokens": reply.completion_tokens,
                "seconds": round(reply.seconds, 3),
                "generation": self.dialogue.generation.model_dump(),
                "run": facts,
            }
            print(json.dumps(row, ensure_ascii=False), flush=True)
            return
        print(flush=True)
        if reply.finish_reason == "length":
            self.say.print(
                f"(cut at {reply.completion_tokens} tokens; evaluate.generation.max_new_tokens=N allows more)",
                style="dim",
                markup=False,
            )

    def talk(self, images: list[Path]) -> int:
        """0, once whoever sits at the terminal ends it; what cannot be asked is told, and the next question awaited."""
        import readline  # noqa: F401 - gives input() its editing and history

        shown = list(images)  # with the next question
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print(file=sys.stderr)
                return 0
            command, _, rest = line.partition(" ")
            try:
                if command == "/image":
                    shown.append(image(rest.strip()))
                elif command == "/new":
                    self.dialogue, shown = self.dialogue.anew(), []
                elif command.startswith("/") and not Path(command).exists():
                    raise AskError(f"{command}: no such command; {COMMANDS}")
                elif line:
                    with _stopped_by_ctrl_c(self.dialogue):
                        self.ask(line, shown)
                    shown = []
            except (ValueError, OSError) as error:  # as `skinvl` itself would say it, but without an end
                self.say.print(f"{error}", style="red", markup=False)


@contextmanager
def _stopped_by_ctrl_c(dialogue: Dialogue) -> Iterator[None]:
    """Ctrl-C ends the answer with its next token; a second one ends the command."""
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        dialogue.stop()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """The questions on stdin, one a line."""
    for line in sys.stdin:
        if question := line.strip():
            yield question


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="skinvl ask",
        usage='skinvl ask RUN [IMAGE …] ["question" …] [--image PATH] [--base] [--json] [key=value …]',
        description="Ask a run about images. Several questions are one conversation, and all images belong to its "
        "first turn. Without a question: a terminal asks on, and from a pipe each line is one.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, its merged/, or the name of a recipe")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="files are images, key=value sets evaluate.… or attention, all else is a question",
    )
    parser.add_argument("--image", action="append", default=[], metavar="PATH", help="an image, whatever it is called")
    parser.add_argument("--base", action="store_true", help="without the run's adapter")
    parser.add_argument("--json", action="store_true", help="one JSON object for each answer, and nothing else")
    return parser.parse_intermixed_args(arguments)
