"""The same questions in other ways: their images changed, or their words put into a template of the recipe's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skinvl.data import changes
from skinvl.data.example import Message
from skinvl.evaluate.engine import Engine, Question
from skinvl.recipe.recipe import QUESTION, Evaluate, ImageChange


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of asking: an image change, or a template of words."""

    name: str  # of the folder of its answers
    change: ImageChange | None = None
    template: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What decides it, as the settings of predictions hold it."""
        return {"template": self.template} if self.change is None else changes.parameters(self.change)

    def of(self, asked: Sequence[Question]) -> list[Question]:
        """The questions as this way asks them; a changed image asks those that show one."""
        if self.template is None:
            return [question for question in asked if question.row.example.images]
        return [_put(question, self.template) for question in asked]

    def engine(self, engine: Engine) -> Engine:
        """The engine that sees what this way shows."""
        return engine if self.change is None else engine.seeing(self.change)


def variants(evaluate: Evaluate) -> Iterator[Variant]:
    """Every way that a recipe names; a paraphrase for each of its templates."""
    for name in evaluate.robustness:
        if name == "paraphrase":
            for called, template in evaluate.paraphrases.items():
                yield Variant(f"paraphrase-{called}", template=template)
        else:
            yield Variant(name, change=name)


def _put(question: Question, template: str) -> Question:
    """The question with the last user turn put into the template; earlier turns and images stay."""
    example = question.row.example
    *before, asked, reference = example.messages
    words = [number for number, part in enumerate(asked["content"]) if part["type"] == "text"]
    start, end = template.split(QUESTION)
    content = [part.copy() for part in asked["content"]]
    if words:
        content[words[0]]["text"] = start + (content[words[0]]["text"] or "")
        content[words[-1]]["text"] = (content[words[-1]]["text"] or "") + end
    turn: Message = {**asked, "content": content}
    return replace(question, row=replace(question.row, example=replace(example, messages=(*before, turn, reference))))
