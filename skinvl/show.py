"""`skinvl show`: conversations as the model will see them, with what is trained in colour."""

from __future__ import annotations

from rich.console import Console
from transformers import AutoProcessor

from skinvl import mixture, model
from skinvl.chat import UNTRAINED, Chat, ChatError
from skinvl.lengths import sizes
from skinvl.mixture import Row
from skinvl.pixels import ImageError
from skinvl.recipe import Recipe


def main(recipe: Recipe, *, count: int) -> int:
    """0, once the first conversations of each source of the recipe were painted."""
    base = model.snapshot(recipe, weights=False)
    _, family = model.config(base.path)
    chat = Chat(AutoProcessor.from_pretrained(base.path), family, **recipe.data.budget)
    say = Console()
    for spec in [*recipe.data.train, *recipe.data.eval]:
        for row in mixture.rows(spec)[:count]:
            paint(say, chat, row)
    return 0


def paint(say: Console, chat: Chat, row: Row) -> None:
    """Nothing; prints one conversation, or why it would not be trained on."""
    name = f"{row.example.source}/{row.example.id}"
    try:
        encoded = chat.encode(row.example, sizes(row.root, row.example))
    except (ChatError, ImageError) as error:
        say.rule(f"{name}: not trained on")
        say.print(str(error), style="red", markup=False)
        return
    trained = len(encoded.labels) - encoded.labels.count(UNTRAINED)
    say.rule(f"{name}: {len(encoded.ids)} tokens, {trained} trained, {len(encoded.pictures)} images")
    say.print(chat.paint(encoded))
