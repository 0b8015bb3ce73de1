"""Prompt programmes: what is asked about each image, or for each task, as a YAML file says it.

A programme has slots, and a unit gets one question from each: drawn by seed among the prompts whose facts are known.
What is known stands in the context, which the model alone sees. A question is plain text and never holds any of it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, ValidationError

from skinvl.data.example import SCALARS, Facts
from skinvl.recipe import strict
from skinvl.recipe.recipe import Name, Text
from skinvl.recipe.shipped import find, shipped
from skinvl.recipe.strict import Fault, StrictModel
from skinvl.sources.asking.request import Request
from skinvl.sources.synthesis import wording

CAPTION = "caption"
KNOWN = (*(fact for fact in SCALARS if fact != "kind"), CAPTION)  # what a context may hold
# What the templates may use: `prompt` all of it, the other two `pairs` alone.
VARIABLES = {"context", "question", "instruction", "examples", "form", "pairs"}


class ProgrammeError(ValueError):
    """A template that cannot be filled for a unit."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a programme asks about: one image with what is known of it, or one numbered task."""

    id: str  # the image's path in the source, or the number of the task
    image: str | None
    source: str  # as the Examples name it
    facts: Facts  # its kind is None
    group: str
    split: str
    licence: str
    caption: str | None = None
    tasks: Sequence[str] = ()  # of the source, among which a programme of tasks draws examples
    identities: tuple[str, ...] = ()  # as the Examples have them


class Prompt(StrictModel):
    """One thing that can be asked."""

    name: Name
    """Name within its slot."""
    kind: Name
    """Kind of question, as the facts of what is made of it say it."""
    needs: list[str] = []
    """Facts, or the caption, without which it is not asked."""
    questions: list[Text] = []
    """Wordings of what the conversation asks, of which one is drawn; none where the model writes the question."""
    instruction: str = ""
    """What the model alone is told to do; a template that knows `pairs`."""
    pairs: int | None = Field(default=None, gt=0, le=20)
    """Questions and answers that the model writes; null is one answer, or one of each where `questions` is empty."""


class Slot(StrictModel):
    """One question of every unit."""

    name: Name
    """Name of the slot."""
    prompts: list[Prompt] = Field(min_length=1)
    """What is drawn from."""


class Programme(StrictModel):
    """What is asked of a model to make conversations."""

    name: Name
    """Name of the programme: the stem of its file."""
    version: int = Field(gt=0)
    """Counted up with every change of what is asked; another version draws anew."""
    unit: Literal["image", "task"]
    """What it asks about: the images of a source, or tasks of text alone."""
    system: Text
    """The system turn; plain text."""
    prompt: Text
    """The user turn: a template of context, question, instruction, examples, form and pairs."""
    context: list[str] = []
    """Facts that the model is told, and the caption; only what is known is told."""
    captions: str | None = None
    """How the ids of the source's conversations begin whose answer is a caption of their image; null reads none."""
    seeds: list[Text] = []
    """Tasks in our own words, of which some are shown as examples."""
    draw_seeds: int = Field(default=0, ge=0)
    """How many seeds a request shows."""
    draw_tasks: int = Field(default=0, ge=0)
    """How many tasks of the source's own text conversations a request shows."""
    slots: list[Slot] = Field(min_length=1)
    """What every unit is asked, one question from each."""

    def requests(self, unit: Unit, seed: int, model: str, settings: str = "") -> list[Request]:
        """What the unit is asked, in the order of the slots; a slot of which no prompt's needs are known asks nothing.

        The same for the same programme, unit and seed, whatever was asked before and wherever.

        Args:
            model: as the endpoint knows it.
            settings: whatever else decides what is sent, such as the size of images.
        """
        disclosed = self.disclosed(unit)
        return [
            self._request(unit, slot.name, prompt, disclosed, draw, (model, settings, str(seed)))
            for slot in self.slots
            for draw in [random.Random("\n".join((self.name, str(self.version), str(seed), slot.name, unit.id)))]
            for prompt in _drawn(slot, unit, draw)
        ]

    def disclosed(self, unit: Unit) -> dict[str, str]:
        """What the context discloses of the unit to the model alone, by name."""
        known = {name: _fact(unit, name) for name in self.context}
        return {name: value for name, value in known.items() if value}

    def _request(
        self,
        unit: Unit,
        slot: str,
        prompt: Prompt,
        disclosed: Mapping[str, str],
        draw: random.Random,
        settings: tuple[str, ...],
    ) -> Request:
        question = draw.choice(prompt.questions) if prompt.questions else None
        examples = [
            *draw.sample(self.seeds, min(self.draw_seeds, len(self.seeds))),
            *draw.sample(unit.tasks, min(self.draw_tasks, len(unit.tasks))),
        ]
        draw.shuffle(examples)

        # The prompt, which alone holds what the context discloses.
        form, schema, printed = _reply(bool(prompt.questions), prompt.pairs is not None)
        values = {"context": disclosed, "question": question, "examples": examples, "form": form, "pairs": prompt.pairs}
        try:
            values["instruction"] = wording.instruction(prompt.instruction, prompt.pairs)
            text = wording.filled(self.prompt, values)
        except wording.WordingError as error:
            raise ProgrammeError(
                f"{self.name}, prompt {slot}/{prompt.name} for {unit.id}: {error}; "
                "mend the template prompt or instruction of the programme"
            ) from error

        # Equal settings give equal ids.
        origin = (self.name, str(self.version), unit.id, slot, prompt.name, *settings)
        sent = "\0".join((*origin, unit.image or "", question or "", self.system, text, printed))
        return Request(
            id=hashlib.blake2b(sent.encode(errors="surrogatepass"), digest_size=16).hexdigest(),
            unit=unit.id,
            image=unit.image,
            slot=slot,
            kind=prompt.kind,
            system=self.system,
            prompt=text,
            schema=schema,
            question=question,
            context=disclosed,
        )


def load(name_or_path: str) -> Programme:
    """The programme of a shipped name or a YAML file.

    Raises:
        RecipeError: every fault with its line, key and what was expected.
        FileNotFoundError: no such programme.
    """
    path = find(name_or_path, "recipes/synth")
    document = strict.read(path)
    document.data.setdefault("name", path.stem)
    try:
        programme = Programme.model_validate(document.data)
    except ValidationError as error:
        document.fail(strict.faults(error, Programme))
        raise
    document.fail(_faults(programme))
    return programme


def programmes() -> list[str]:
    """The names of the shipped programmes."""
    return sorted(path.stem for path in shipped("recipes/synth").glob("*.yaml"))


def _drawn(slot: Slot, unit: Unit, draw: random.Random) -> list[Prompt]:
    fitting = [prompt for prompt in slot.prompts if all(_fact(unit, need) for need in prompt.needs)]
    return [draw.choice(fitting)] if fitting else []


def _fact(unit: Unit, name: str) -> str | None:
    value = unit.caption if name == CAPTION else getattr(unit.facts, name)
    return f"{value:g}" if isinstance(value, float) else value


@lru_cache
def _reply(asked: bool, pairs: bool) -> tuple[str, dict[str, Any], str]:
    """The form of the reply as one reads it, and as a JSON schema that strict servers take, also printed."""
    if pairs:
        pair = _object({"question": _TEXT, "answer": _TEXT})
        form, schema = '{"pairs": [{"question": "…", "answer": "…"}, …]}', {"type": "array", "items": pair}
        schema = _object({"pairs": schema})
    else:
        names = ["answer"] if asked else ["question", "answer"]
        form, schema = json.dumps(dict.fromkeys(names, "…"), ensure_ascii=False), _object(dict.fromkeys(names, _TEXT))
    return form, schema, json.dumps(schema)


_TEXT = {"type": "string"}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _faults(programme: Programme) -> Iterator[Fault]:
    """What holds only of several keys together, and of what stands in the texts."""
    yield from wording.faults(("prompt",), programme.prompt, VARIABLES)
    yield from _unknown(("context",), programme.context)

    # Tasks have no context, and images no examples.
    slots = [slot.name for slot in programme.slots]
    if programme.unit == "task" and (programme.context or programme.captions is not None):
        key = "context" if programme.context else "captions"
        yield Fault((key,), "nothing is known of a task; leave it out, or set unit to image")
    if programme.unit == "image" and (programme.seeds or programme.draw_seeds or programme.draw_tasks):
        key = "seeds" if programme.seeds else "draw_seeds" if programme.draw_seeds else "draw_tasks"
        yield Fault((key,), "examples are of tasks; leave it out, or set unit to task")
    if programme.draw_seeds > len(programme.seeds):
        yield Fault(("draw_seeds",), f"found {programme.draw_seeds}, but seeds has {len(programme.seeds)}")
    if (CAPTION in programme.context) != (programme.captions is not None):
        yield Fault(("captions",), "set it exactly where context names caption, to how the ids of captions begin")

    # Slot by slot, and in each prompt by prompt.
    for number, slot in enumerate(programme.slots):
        if slots.index(slot.name) < number:
            yield Fault(("slots", number, "name"), f"found {slot.name!r} twice; give each slot a name of its own")
        names = [prompt.name for prompt in slot.prompts]
        for index, prompt in enumerate(slot.prompts):
            at = ("slots", number, "prompts", index)
            if names.index(prompt.name) < index:
                yield Fault((*at, "name"), f"found {prompt.name!r} twice in the slot; give each prompt its own")
            yield from _unknown((*at, "needs"), prompt.needs)
            if missing := [need for need in prompt.needs if need in KNOWN and need not in programme.context]:
                yield Fault((*at, "needs"), f"{missing[0]} is not in context, so that the model would not know it")
            if prompt.questions and prompt.pairs is not None:
                yield Fault((*at, "pairs"), "the model writes its own questions then; leave out questions, or pairs")
            for wording_index, question in enumerate(prompt.questions):
                if any(mark in question for mark in wording.MARKS):
                    yield Fault(
                        (*at, "questions", wording_index),
                        "a question is no template: it may hold nothing that the model alone is told",
                    )
            yield from wording.faults((*at, "instruction"), prompt.instruction, {"pairs"})


def _unknown(keys: strict.Keys, names: Sequence[str]) -> Iterator[Fault]:
    for index, name in enumerate(names):
        if name not in KNOWN:
            yield Fault((*keys, index), f"{name!r} is {strict.unknown(name, KNOWN)}")
