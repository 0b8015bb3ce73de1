"""What the page of skinvl demo does: it asks a run and its base side by side, and shows the likelihoods of classes.

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
from skinvl.serve.class_list import ClassList
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
    answers: list[str]
    notes: list[str]


@dataclass(slots=True)
class Session:
    """What one open page has asked: a conversation with each side, about one image or none."""

    dialogues: list[Dialogue]
    shown: str | None = None  # the image, once an answer to a question about it is whole
    turns: list[Turn] = field(default_factory=list)
    stopped: bool = False

    def stop(self) -> None:
        """Ends what is being answered with its next token; what waits is not answered."""
        self.stopped = True
        for side in self.dialogues:
            side.stop()


class Page:
    """What the page can be asked, one request at a time.

    Args:
        classes: those whose probabilities are shown on request.
        alone: whether the base is left out.

    Attributes:
        sides: the name and the kind of each.
    """

    def __init__(self, loaded: LoadedModel, classes: ClassList | None = None, alone: bool = False) -> None:
        self.loaded, self.classes, remark = loaded, classes, ""
        self.sides = [("With the adapter", "adapter"), ("Base, without the adapter", "base")]
        if loaded.facts["adapter"] is None:
            self.sides = [("Answer", "base")]
        elif loaded.recipe.lora.get("init_lora_weights") == "pissa":
            self.sides, remark = self.sides[:1], "The base is not shown: PiSSA has changed its weights."
        elif alone:
            self.sides = self.sides[:1]
        self.remark = remark
        self._last: Session | None = None

    def session(self) -> Session:
        """One that has asked nothing."""
        generation = self.loaded.recipe.evaluate.generation
        return Session([Dialogue(self.loaded, generation, base=number > 0) for number in range(len(self.sides))])

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
            picture = upright(Path(image))
        except ImageError as error:
            return state(sentence(error, image), wrong=True)
        return state(f"Image of {picture.width} × {picture.height} pixels. Ask about it.")

    def answer(self, session: Session, question: str, image: str | None) -> Iterator[tuple[str, str]]:
        """The conversation and the state, with every piece of either side's answer.

        The image is that of the whole conversation.
        """
        if not question.strip():
            yield self.log(session), state("Type a question first.", wrong=True)
            return
        if self._last is not session:  # the keys and values of one conversation are kept, not of all that are open
            for side in self._last.dialogues if self._last else []:
                side.forget()
            self._last = session

        # What cannot be asked leaves each side as it was, so that another image or question can follow.
        turn = Turn(question.strip(), [""] * len(self.sides), [""] * len(self.sides))
        before = [(list(side.messages), list(side.images)) for side in session.dialogues]
        session.turns.append(turn)
        try:
            for number, side in enumerate(session.dialogues):
                if session.stopped:
                    turn.notes[number] = "stopped"
                    continue
                yield self.log(session, number), state("Answering …")
                for piece in side.ask(turn.question, [Path(image)] if image and not side.images else []):
                    turn.answers[number] += dialogue.readable(piece)
                    yield self.log(session, number), state("Answering …")
                self._note(turn, number, side)
        except (ValueError, OSError) as error:
            session.turns.remove(turn)
            for side, (messages, images) in zip(session.dialogues, before, strict=True):
                side.messages, side.images = messages, images
            yield self.log(session), state(sentence(error, image), wrong=True)
            return

        yield self.log(session), state("Stopped." if session.stopped else "")

    def _note(self, turn: Turn, number: int, side: Dialogue) -> None:
        reply = side.reply
        assert reply is not None
        ended = {"length": " · cut at the longest length", "stopped": " · stopped"}.get(reply.finish_reason, "")
        turn.answers[number] = dialogue.readable(reply.answer).strip()
        turn.notes[number] = f"{reply.completion_tokens} tokens · {reply.seconds:.1f} s{ended}"

    def probabilities(self, question: str, image: str | None) -> tuple[str, str]:
        """The probabilities of the classes, from the likeliest for the first side, and the state."""
        assert self.classes is not None
        if image is None or not question.strip():
            missing = "Choose an image first." if image is None else "Type a question for the classes first."
            return "", state(missing, wrong=True)

        columns, remarks = [], []
        try:
            for number in range(len(self.sides)):
                scores = dialogue.likelihoods(
                    self.loaded, [Path(image)], question.strip(), self.classes.names, number > 0
                )
                # What was fitted is the adapter's.
                classes = replace(self.classes, temperature=None, least=None) if number else self.classes
                shares, remark = class_list.probabilities(classes, scores, question.strip())
                columns.append(shares.tolist())
                remarks.append(remark)
        except (ValueError, OSError) as error:
            return "", state(sentence(error, image), wrong=True)
        if len(set(remarks)) > 1:
            remarks[0] += " The base is not calibrated."
        rows = sorted(zip(self.classes.names, zip(*columns, strict=True), strict=True), key=lambda row: -row[1][0])
        return str(_HTML.chances(self.classes.name, self.sides, rows, remarks[0])), state("")


def state(words: str, wrong: bool = False) -> str:
    """A line on how things stand, which screen readers speak."""
    return str(_HTML.state(words, wrong))


def sentence(error: ValueError | OSError, image: str | None) -> str:
    """What an error says, without the name of a rule and without the folders of this machine."""
    message = error.detail if isinstance(error, ChatError | ImageError) else str(error)
    if image:
        message = message.replace(str(Path(image).absolute()), "the image").replace(image, "the image")
    return message[:1].upper() + message[1:] + ("" if message.endswith((".", "?")) else ".")
