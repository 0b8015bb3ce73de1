"""What a recipe would do on its base, without the base's weights: the model is built on the meta device.

What a training refuses and needs no weights is refused here too, by the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from skinvl.data import mixture
from skinvl.model import adapter, tower_init, ways_out
from skinvl.model.adapter import Hits, Trained
from skinvl.model.base import attention_kernel, blank_model, count_parameters, read_config
from skinvl.model.precompute import require_room
from skinvl.plan.configs import files, open_folder
from skinvl.plan.rows import checked
from skinvl.plan.workload import is_prepared
from skinvl.recipe.recipe import Data, Parts, Recipe, SourceSpec, dump
from skinvl.recipe.towers import PretrainData, Towers

AnyData = TypeVar("AnyData", Data, PretrainData)


def show(recipe: Recipe, configs: Path | None) -> None:
    """Prints the resolved recipe, the parts with their hits, the exact parameter counts and the lengths.

    Args:
        configs: a folder of model configs to read instead of the hub; the sub-folder is the last part of the model
            id in lower case.
    """
    say = Console()
    say.print(dump(recipe), markup=False, highlight=False)
    with TemporaryDirectory() as folder:
        path = files(recipe, configs, Path(folder))
        _parts(say, recipe, path)
        data = prepared(say, recipe.data)
        if not (path / "tokenizer.json").is_file():
            say.print(f"token statistics: none, {path} holds no tokenizer.json")
        elif data is not None:
            base = open_folder(recipe, path, Path(folder))
            require_room(base, checked(base.chat, mixture.load(data), say, data.references == "drawn").all)


def _parts(say: Console, recipe: Recipe, path: Path) -> None:
    config, family = read_config(path)
    attention_kernel(recipe.attention, family)
    blank = blank_model(config)
    total = count_parameters(blank)
    hits = adapter.plan(blank, family, recipe)
    tower = tower_init.of_recipe(recipe, config)
    ahead = [*ways_out.ahead(blank, family, recipe), *(tower.lines(family) if tower else [])]
    peft_model = adapter.attach(blank, family, recipe)
    counts = adapter.check(peft_model, family, recipe)
    say_parts(say, recipe.parts, counts, hits)
    for line in ahead:
        say.print(line, markup=False, highlight=False, soft_wrap=True)
    say.print(f"parameters of {recipe.base.name}: {total:,}")


def say_parts(say: Console, specs: Parts | Towers, counts: Mapping[str, Trained], hits: Mapping[str, Hits]) -> None:
    """Prints how much of each part trains, and the modules that it trains in."""
    table = Table("part", "train", "trainable", "of")
    for part, count in counts.items():
        table.add_row(part, getattr(specs, part).train, f"{count.trainable:,}", f"{count.parameters:,}")
    say.print(table)
    for part, hit in hits.items():
        for what in [f"{pattern} ×{count}" for pattern, count in hit.patterns.items()] + list(hit.full):
            say.print(f"{part}: {what}", markup=False, highlight=False, soft_wrap=True)


def prepared(say: Console, data: AnyData) -> AnyData | None:
    """The data with those of its sources that are prepared, the others printed; None where none is to train on.

    Raises:
        FileNotFoundError: one is prepared, and has no such split.
    """
    lying: dict[str, list[SourceSpec]] = {"train": [], "eval": []}
    for purpose, specs in lying.items():
        for spec in getattr(data, purpose):
            if is_prepared(spec):
                specs.append(spec)
            else:
                say.print(
                    f"{spec.source} ({spec.split}): not prepared, skipped; skinvl prep --list says how to obtain it"
                )
    return data.model_copy(update=lying) if lying["train"] else None
