"""What the page of skinvl demo does: it asks a run and its base side by side, and weighs the classes of an image.

What is shown comes as HTML from demo.html.j2; of the page's own framework nothing is known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from skinvl.data.pixels import ImageError, upright
from skinvl.model.chat import ChatError
from skinvl.model.loaded import LoadedModel
from skinvl.serve import class_list, dialogue
from skinvl.serve.class_list import Classes
from skinvl.serve.dialogue import Dialogue

_HTML: Any = (
    Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    .get_template("demo.html.j2")
    .module
)


@dataclass(slots=True)
class Turn:
    """A question, and of each side what it has said so far and how it ended."""

    question: str
    said: list[str]
    notes: list[str]


@dataclass(slots=True)
class Session:
    """What one open page has asked: a conversation with each side, about one image or none."""

    dialogues: list[Dialogue]
    shown: str | None = None  # the image, once an answer to a question about it is whole
    turns: list[Turn] = field(default_factory=list)
    stopped: bool = False

    def stop(self) -> None:
        """Nothing; what is being answered ends with its next token, and what waits is not answered."""
        self.stopped = True
        for one in self.dialogues:
            one.stop()


class Page:
    """What the page can be asked, one request at a time.

    Args:
        classes: those whose probabilities are shown on request.
        alone: whether the base is left out.

    Attributes:
        sides: the name and the kind of each.
    """

    def __init__(self, asked: LoadedModel, classes: Classes | None = None, alone: bool = False) -> None:
        self.asked, self.classes, remark = asked, classes, ""
        self.sides = [("With the adapter", "adapter"), ("Base, without the adapter", "base")]
        if asked.facts["adapter"] is None:
            self.sides = [("Answer", "base")]
        elif asked.recipe.lora.get("init_lora_weights") == "pissa":
            self.sides, remark = self.sides[:1], "The base is not shown: PiSSA has changed its weights."
        elif alone:
            self.sides = self.sides[:1]
        self.remark = remark
        self._last: Session | None = None

    def session(self) -> Session:
        """One that has asked nothing."""
        generation = self.asked.recipe.evaluate.generation
        return Session([Dialogue(self.asked, generation, base=number > 0) for number in range(len(self.sides))])

    def head(self, run: str) -> str:
        """The heading; `run` is as `dialogue.caption` has it."""
        return str(_HTML.head(run, self.remark))

    def log(self, session: Session, busy: int | None = None) -> str:
        """The conversation; `busy` is the side that is answering."""
        return str(_HTML.log(self.sides, session.turns, busy))

    def look(self, image: str | None) -> str:
        """The state once an image was given or taken away: why it cannot be used, if so."""
        if image is None:
            return state("")
        try:
            found = upright(Path(image))
        except ImageError as error:
            return state(sentence(error, image), wrong=True)
        return state(f"Image of {found.width} × {found.height} pixels. Ask about it.")

    def answer(self, session: Session, question: str, image: str | None) -> Iterator[tuple[str, str]]:
        """The conversation and the state, with every piece of either side's answer.

        The image is that of the whole conversation.
        """
        if not question.strip():
            yield self.log(session), state("Type a question first.", wrong=True)
            return
        if self._last is not session:  # the keys and values of one conversation are kept, not of all that are open
            for one in self._last.dialogues if self._last else []:
                one.forget()
            self._last = session
        turn = Turn(question.strip(), [""] * len(self.sides), [""] * len(self.sides))
        before = [(list(one.messages), list(one.images)) for one in session.dialogues]
        session.turns.append(turn)
        try:
            for number, one in enumerate(session.dialogues):
                if session.stopped:
                    turn.notes[number] = "stopped"
                    continue
                yield self.log(session, number), state("Answering …")
                for piece in one.ask(turn.question, [Path(image)] if image and not one.images else []):
                    turn.said[number] += dialogue.readable(piece)
                    yield self.log(session, number), state("Answering …")
                self._note(turn, number, one)
        except (ValueError, OSError) as error:
            session.turns.remove(turn)
            for one, (messages, images) in zip(session.dialogues, before, strict=True):
                one.messages, one.images = messages, images
            yield self.log(session), state(sentence(error, image), wrong=True)
            return
        yield self.log(session), state("Stopped." if session.stopped else "")

    def _note(self, turn: Turn, number: int, one: Dialogue) -> None:
        reply = one.reply
        assert reply is not None
        ended = {"length": " · cut at the longest length", "stopped": " · stopped"}.get(reply.finish_reason, "")
        turn.said[number] = dialogue.readable(reply.answer).strip()
        turn.notes[number] = f"{reply.completion_tokens} tokens · {reply.seconds:.1f} s{ended}"

    def weigh(self, question: str, image: str | None) -> tuple[str, str]:
        """The probabilities of the classes, from the likeliest for the first side, and the state."""
        assert self.classes is not None
        if image is None or not question.strip():
            missing = "Choose an image first." if image is None else "Type a question for the classes first."
            return "", state(missing, wrong=True)
        columns, told = [], []
        try:
            for number in range(len(self.sides)):
                scores = dialogue.weigh(self.asked, [Path(image)], question.strip(), self.classes.names, number > 0)
                # What was fitted is the adapter's.
                found = replace(self.classes, temperature=None, least=None) if number else self.classes
                shares, said = class_list.probabilities(found, scores, question.strip())
                columns.append(shares.tolist())
                told.append(said)
        except (ValueError, OSError) as error:
            return "", state(sentence(error, image), wrong=True)
        if len(set(told)) > 1:
            told[0] += " The base is not calibrated."
        rows = sorted(zip(self.classes.names, zip(*columns, strict=True), strict=True), key=lambda row: -row[1][0])
        return str(_HTML.chances(self.classes.name, self.sides, rows, told[0])), state("")


def state(words: str, wrong: bool = False) -> str:
    """A line on how things stand, which screen readers speak."""
    return str(_HTML.state(words, wrong))


def sentence(error: ValueError | OSError, image: str | None) -> str:
    """What an error says, without the name of a rule and without the folders of this machine."""
    said = error.detail if isinstance(error, ChatError | ImageError) else str(error)
    if image:
        said = said.replace(str(Path(image).absolute()), "the image").replace(image, "the image")
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "?")) else ".")
