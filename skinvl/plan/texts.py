"""The images of a recipe of two towers with texts that its base reads, each text measured before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from skinvl.data.example import Dropped
from skinvl.data.permuted_texts import permuted
from skinvl.data.pixels import size
from skinvl.data.seen import Seen
from skinvl.data.texts import ASPECTS, TextedImage, TextedSets
from skinvl.model import objectives
from skinvl.model.dual_inputs import TextTokenizer
from skinvl.model.families import ShapeError
from skinvl.model.own_tower import OpenGenerative
from skinvl.model.text_lengths import fitted
from skinvl.model.towers_loaded import OpenTowers
from skinvl.plan.rows import say_shared
from skinvl.recipe.towers import PretrainRecipe


@dataclass(frozen=True, slots=True)
class CheckedTexts:
    """The images of a recipe with the texts that the towers are shown, and the ledger of what they are not."""

    train: list[TextedImage]
    evaluation: dict[str, list[TextedImage]]
    ledger: list[Dropped]
    too_long: int  # texts of the training images that are longer than the text tower reads: cut, split or left out

    @property
    def aspects(self) -> Counter[str]:
        """How many texts of the training images are of each aspect."""
        return Counter(text.aspect for image in self.train for text in image.texts)

    @property
    def distinct(self) -> int:
        """How many texts of the training images read differently, case and spaces apart."""
        return len({text.key for image in self.train for text in image.texts})


def checked_texts(
    sets: TextedSets, tokenizer: TextTokenizer, recipe: PretrainRecipe, seed: int, say: Console
) -> CheckedTexts:
    """The images that are shown, with their texts as `data.too_long` has them; prints how many there are.

    Of an eval set what training saw is left out, as `skinvl retrieve` does, each a row `trained-on` of the ledger. With
    `data.permuted` each training image has the texts of another.

    Raises:
        ValueError: a set has no image left.
    """
    say_shared(say, sets.ledger, sets.leaking)
    if sets.idle:
        say.print(f"data.texts: no Example is of the kind {', '.join(sets.idle)}; skinvl show has the texts there are")
    unseen, ledger = _unseen(sets)
    ledger = [*sets.ledger, *ledger]
    for name, of_set in unseen.items():
        if count := len(sets.evaluation[name]) - len(of_set):
            say.print(f"{name}: {count:,} images left out, which training saw, or their patient or caption")
    places = objectives.load(recipe.objective).places
    table = Table("set", "images", "texts", "too long", title=f"texts of at most {tokenizer.length} tokens")
    images, too_long = dict[str, list[TextedImage]](), 0
    for name, of_set in {"train": sets.train, **unseen}.items():
        fit = fitted(of_set, tokenizer, recipe.data.too_long)
        left_out = sum(row.rule == "long-text" for row in fit.ledger)
        long = {"cut": fit.cut, "split": fit.split, "ledger": left_out}[recipe.data.too_long]
        what = {"cut": "cut", "split": "split by sentences", "ledger": "left out"}[recipe.data.too_long]
        table.add_row(name, f"{len(fit.images):,}", f"{fit.texts:,}", f"{long:,} {what}" if long else "none")
        if not fit.images:
            raise ValueError(
                f"{name}: none of {len(of_set):,} images has a text of at most {tokenizer.length} tokens; "
                "set data.too_long to cut or split"
            )
        images[name], no_place = (fit.images, []) if places is None else _placed(fit.images, places)
        ledger += fit.ledger + no_place
        too_long += long if name == "train" else 0
    say.print(table)
    train = images.pop("train")
    if recipe.data.permuted:
        train = permuted(train, seed)
        say.print(
            "data.permuted: each training image has the texts of another, so that nothing can be learnt from it; "
            "what is measured of this run is chance",
            style="red",
        )
    return CheckedTexts(train, images, ledger, too_long)


def shaped(sets: TextedSets, opened: OpenTowers[Any]) -> TextedSets:
    """The sets without images that are too elongated for a generative base, each of which is a row of the ledger."""
    if not isinstance(opened, OpenGenerative):
        return sets
    ledger, kept = list(sets.ledger), dict[str, list[TextedImage]]()
    for name, images in {"": sets.train, **sets.evaluation}.items():
        kept[name] = []
        for image in images:
            try:
                opened.pixels.picture(size(image.root / image.path))
            except ShapeError as error:
                ledger.append(Dropped(image.name, "image-too-elongated", str(error)))
            else:
                kept[name].append(image)
    return replace(sets, train=kept.pop(""), evaluation=kept, ledger=ledger)


def checked_images(sets: TextedSets, say: Console) -> CheckedTexts:
    """The images that are shown, of an objective that reads no texts; prints how many there are.

    Raises:
        ValueError: a set has no image left.
    """
    say_shared(say, sets.ledger, sets.leaking)
    unseen, ledger = _unseen(sets)
    for name, of_set in {"train": sets.train, **unseen}.items():
        left_out = len(sets.evaluation.get(name, of_set)) - len(of_set)
        seen = f", {left_out:,} left out, which training saw, or their patient" * bool(left_out)
        say.print(f"{name}: {len(of_set):,} images{seen}")
    if not sets.train:
        raise ValueError("data.train: no image to train on")
    return CheckedTexts(sets.train, unseen, [*sets.ledger, *ledger], 0)


def _unseen(sets: TextedSets) -> tuple[dict[str, list[TextedImage]], list[Dropped]]:
    """The images of each eval set of which training saw nothing, and a row `trained-on` for each other.

    Raises:
        ValueError: a set has none left.
    """
    seen = Seen(sets.train)
    unseen, ledger = dict[str, list[TextedImage]](), list[Dropped]()
    for name, images in sets.evaluation.items():
        unseen[name] = []
        for image in images:
            if what := seen.what(image):
                ledger.append(Dropped(image.name, "trained-on", f"of {name}; training saw its {what}"))
            else:
                unseen[name].append(image)
        if not unseen[name]:
            raise ValueError(
                f"data.eval: of {name} training saw each of {len(images):,} images, or their patient or caption; name "
                "another source or split"
            )
    return unseen, ledger


def _placed(images: Sequence[TextedImage], places: Sequence[int]) -> tuple[list[TextedImage], list[Dropped]]:
    """The images with no more texts of each aspect than an objective has places for; a row `no-place` of each other."""
    placed, ledger = [], list[Dropped]()
    for image in images:
        left, kept = dict(zip(ASPECTS, places, strict=True)), []
        for text in image.texts:
            left[text.aspect] -= 1
            if left[text.aspect] >= 0:
                kept.append(text)
            else:
                ledger.append(Dropped(image.name, "no-place", f"{text.aspect}: {text.text!r:.80}"))
        placed.append(replace(image, texts=tuple(kept)))
    return placed, ledger
