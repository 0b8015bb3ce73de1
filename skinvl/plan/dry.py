"""What a recipe would do on its base, without the base's weights: the model is built on the meta device."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from skinvl.data import mixture
from skinvl.data.source import source_folder
from skinvl.model import adapter
from skinvl.model.base import blank_model, count_parameters, read_config
from skinvl.model.chat import Chat
from skinvl.model.families import PARTS
from skinvl.model.lengths import preflight
from skinvl.plan.configs import files, open_folder
from skinvl.recipe.recipe import Recipe, dump


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
        if (path / "tokenizer.json").is_file():
            _lengths(say, recipe, open_folder(recipe, path, Path(folder)).chat)
        else:
            say.print(f"token statistics: none, {path} holds no tokenizer.json")


def _parts(say: Console, recipe: Recipe, path: Path) -> None:
    config, family = read_config(path)
    blank = blank_model(config)
    total = count_parameters(blank)
    hits = adapter.plan(blank, family, recipe)
    # PiSSA would decompose weights that are not there.
    lora = {key: value for key, value in recipe.lora.items() if key != "init_lora_weights"}
    peft_model = adapter.attach(blank, family, recipe.model_copy(update={"lora": lora, "init_adapter": None}))
    counts = adapter.check(peft_model, family, recipe)
    table = Table("part", "train", "trainable", "of")
    for part in PARTS:
        mode = getattr(recipe.parts, part).train
        table.add_row(part, mode, f"{counts[part].trainable:,}", f"{counts[part].parameters:,}")
    say.print(table)
    for part, hit in hits.items():
        for what in [f"{pattern} ×{count}" for pattern, count in hit.patterns.items()] + list(hit.full):
            say.print(f"{part}: {what}", markup=False, highlight=False, soft_wrap=True)
    say.print(f"parameters of {recipe.base.name}: {total:,}")


def _lengths(say: Console, recipe: Recipe, chat: Chat) -> None:
    for spec in [*recipe.data.train, *recipe.data.eval]:
        root = source_folder(spec.source)
        if not (root / f"{spec.split}.parquet").is_file():
            say.print(f"{spec.source} ({spec.split}): not prepared, skipped; skinvl prep --list says how to obtain it")
            continue
        rows = mixture.rows(spec)
        report = preflight(chat, [(row.example, row.root) for row in rows])
        say.print(report.table(f"{spec.source} ({spec.split})"))
