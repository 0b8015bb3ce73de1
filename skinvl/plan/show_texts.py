"""What `skinvl show` prints of two towers: images with their texts, the aspect and the length of each."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from skinvl.data import texts
from skinvl.data.texts import TextedImage
from skinvl.model import own_tower
from skinvl.model.dual_inputs import TextTokenizer
from skinvl.model.towers_loaded import open_towers
from skinvl.recipe.towers import PretrainRecipe


def show(recipe: PretrainRecipe, count: int) -> None:
    """Prints the first images of each source with the texts that the towers are shown, and what became no text.

    Raises:
        ValueError: the objective reads no texts.
    """
    if not recipe.reads_texts:
        raise ValueError(
            f"objective {recipe.objective.name} reads no texts, so that there are none to show; skinvl look shows the "
            "images of a source"
        )
    pair = own_tower.of_text(recipe) if recipe.generative else recipe
    tokenizer = open_towers(pair, weights=False).tokenizer
    sets, say = texts.load(recipe.data, recipe.objective), Console()
    for name, images in {"train": sets.train, **sets.evaluation}.items():
        shown = Counter[str]()
        for image in images:
            shown[image.source] += 1
            if shown[image.source] <= count:
                _show(say, name, image, tokenizer)
    for rule, number in Counter(row.rule for row in sets.ledger).most_common():
        say.print(f"left out: {number:,} × {rule}", markup=False, highlight=False)


def _show(say: Console, name: str, image: TextedImage, tokenizer: TextTokenizer) -> None:
    number = len(image.texts)
    say.rule(f"{name}, {image.name}: {number} text{'s' * (number != 1)}")
    if image.diagnosis is not None:
        path = ", ".join(image.path_of_diagnosis) or image.diagnosis
        say.print(f"diagnosis: {path}", markup=False, highlight=False, style="dim")
    for text, length in zip(image.texts, tokenizer.lengths([text.text for text in image.texts]), strict=True):
        long = f", too long: {tokenizer.length} are read" if length > tokenizer.length else ""
        say.print(f"[bold]{text.aspect}[/bold] ({length} tokens{long})", highlight=False)
        say.print(f"  {text.text}", markup=False, highlight=False, soft_wrap=True)
