"""What a recipe would do on its base, without the base's weights: the model is built on the meta device."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor

from skinvl.data import mixture
from skinvl.data.source import source_folder
from skinvl.model import adapter, hub, tiny
from skinvl.model.base import blank_model, count_parameters, read_config
from skinvl.model.chat import Chat
from skinvl.model.families import PARTS, Family
from skinvl.model.lengths import preflight
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
        _show(say, recipe, files(recipe, configs, Path(folder)))


def _show(say: Console, recipe: Recipe, path: Path) -> None:
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
    _lengths(say, recipe, family, path)


def files(recipe: Recipe, configs: Path | None, folder: Path) -> Path:
    """The folder of the base's config, tokenizer and template; a random base is built into the folder given.

    Raises:
        BaseError: it cannot be had, or `configs` lacks it.
    """
    location = recipe.base.location
    if recipe.base.random is not None:  # a dry run leaves nothing behind
        sources = [source_folder(spec.source) for spec in recipe.data.train]
        prepared = [source for source in sources if (source / "train.parquet").is_file()]
        return tiny.build(recipe.base.random, folder / recipe.base.name, texts=tiny.texts(prepared))
    if configs is None:
        return hub.fetch(location, recipe.base.revision, weights=False).path
    path = configs / location.rsplit("/", 1)[-1].lower()
    if not (path / "config.json").is_file():
        have = ", ".join(sorted(file.parent.name for file in configs.glob("*/config.json"))) or "none"
        raise hub.BaseError(
            f"--configs {configs}: no {path.name}/config.json for base {recipe.base.name}; found: {have}"
        )
    return path


def _lengths(say: Console, recipe: Recipe, family: Family, path: Path) -> None:
    if not (path / "tokenizer.json").is_file():
        say.print(f"token statistics: none, {path} holds no tokenizer.json")
        return
    chat = Chat(AutoProcessor.from_pretrained(path), family, **recipe.data.budget)
    for spec in [*recipe.data.train, *recipe.data.eval]:
        root = source_folder(spec.source)
        if not (root / f"{spec.split}.parquet").is_file():
            say.print(f"{spec.source} ({spec.split}): not prepared, skipped; skinvl prep --list says how to obtain it")
            continue
        rows = mixture.rows(spec)
        report = preflight(chat, [(row.example, row.root) for row in rows])
        say.print(report.table(f"{spec.source} ({spec.split})"))
