"""`skinvl show`: conversations as the model will see them, with what is trained in colour; of two towers the texts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from skinvl.data import mixture
from skinvl.data.mixture import Row
from skinvl.data.pixels import ImageError
from skinvl.model.chat import UNTRAINED, Chat, ChatError
from skinvl.model.lengths import sizes
from skinvl.model.loaded import open_base
from skinvl.plan import show_texts
from skinvl.recipe import towers
from skinvl.recipe.arguments import recipe_parser
from skinvl.recipe.loading import kind_of
from skinvl.recipe.recipe import Recipe, load
from skinvl.recipe.run import recipe_name


def main(words: Sequence[str]) -> int:
    """0, once the first conversations, or images with their texts, of each source of the recipe are painted."""
    parser = recipe_parser("show", "Paint what a recipe trains, conversation by conversation, or the texts of images.",
                           run=True)  # fmt: skip
    parser.add_argument("-n", type=int, default=4, metavar="COUNT", help="of each source (default 4)")
    args = parser.parse_intermixed_args(words)
    name = recipe_name(args.recipe)
    if kind_of(name, args.overrides) == "pretrain":
        show_texts.show(towers.load(name, args.overrides), args.n)
        return 0
    paint_sources(load(name, args.overrides), args.n)
    return 0


def paint_sources(recipe: Recipe, count: int) -> None:
    """Prints the first conversations of each source of the recipe, what is trained in colour."""
    chat = open_base(recipe, weights=False).chat
    say = Console()
    for spec in [*recipe.data.train, *recipe.data.eval]:
        for row in mixture.rows(spec)[:count]:
            paint(say, chat, row)


def paint(say: Console, chat: Chat, row: Row) -> None:
    """Prints one conversation, or why it would not be trained on."""
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
