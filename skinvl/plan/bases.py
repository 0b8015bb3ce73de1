"""`skinvl bases`: the bases that have a short name, what changes from one to another, tiny ones built on request."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any

from huggingface_hub import try_to_load_from_cache
from rich.console import Console
from rich.table import Table

from skinvl.data.example import text
from skinvl.model import adapter, families, tiny, tiny_towers, towers
from skinvl.model.base import blank_model, count_parameters
from skinvl.model.chat import Chat
from skinvl.model.families import PARTS, Family
from skinvl.model.loaded import OpenBase
from skinvl.plan import dual_bases, estimate
from skinvl.plan.configs import config_folder, open_config, open_folder
from skinvl.plan.estimate import NF4, Requirements
from skinvl.plan.gpus import GIB
from skinvl.plan.workload import Assumed
from skinvl.recipe.loading import kind_of
from skinvl.recipe.printing import entry, narrow, right, short
from skinvl.recipe.recipe import Base, Recipe, bases, load, load_base
from skinvl.recipe.run import recipe_name
from skinvl.recipe.towers import load as load_towers

UNSAID = "–"
UNKNOWN = (
    "–: the hub's cache has no config of it; a --dry-run of a recipe with base=NAME\n"
    "fetches that, --configs DIR names a folder with it."
)
CELL = 18  # characters of a cell in a comparison; what is longer stands below the table
MEMORY = "skinvl-mm"  # the recipe that GPU memory is said of, with one conversation a step
SIDE, BUDGET = 448, 512  # px of the image that is counted, and its budget in tokens
IMAGE = f"its tokens under a budget of {BUDGET}, of as many positions as its tower\ncomputes"
NEEDED = f"LoRA/QLoRA: GiB of one GPU for {MEMORY} with one conversation a step, by skinvl plan."
ASKED = (text("user", "What is this?", 1),)


def main(arguments: Sequence[str]) -> int:
    """0, once the bases are listed, two are compared, or the one asked for is built.

    Raises:
        FileNotFoundError: a tokenizer, template or source that is not there.
        ValueError: a tokenizer that does not fit the family, or a base that cannot be had.
    """
    parser = argparse.ArgumentParser(prog="skinvl bases", description="List the bases, compare two, or build one.")
    parser.add_argument("--configs", type=Path, metavar="DIR", help="model configs from this folder, not the hub")
    actions = parser.add_subparsers(dest="action", metavar="build | diff | NAME")
    build = actions.add_parser("build", help="a complete model folder with random weights")
    build.add_argument("family", choices=[*families.names(), *towers.names()])
    build.add_argument("out", type=Path)
    tokens = build.add_mutually_exclusive_group(required=True)
    tokens.add_argument("--source", type=Path, help="a prepared source, on whose train split the tokenizer is trained")
    tokens.add_argument("--tokenizer", type=Path, help="a tokenizer.json to use as it is")
    build.add_argument("--template", type=Path, help="a chat template (Jinja)")
    build.add_argument("--seed", type=int, default=0)
    diff = actions.add_parser("diff", help="what changes in a recipe from one base to another")
    diff.add_argument("a")
    diff.add_argument("b")
    diff.add_argument("recipe")
    diff.add_argument("overrides", nargs="*", metavar="key=value")
    diff.add_argument("--configs", type=Path, metavar="DIR", default=argparse.SUPPRESS)
    for name in bases():
        base_parser = actions.add_parser(name)
        base_parser.add_argument("--configs", type=Path, metavar="DIR", default=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.action is None:
        _list(Console(), args.configs)
    elif args.action in bases():
        _print_base(Console(), args.action, args.configs)
    elif args.action == "diff":
        _diff(Console(), args)
    else:
        _build(args)
    return 0


def _build(args: argparse.Namespace) -> None:
    for path in (args.tokenizer, args.template):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    if args.family in towers.names():
        if args.source is None or args.template is not None:
            raise ValueError(
                f"{args.family}: two towers, whose tokenizer is trained on a source and which have no chat template; "
                "give --source alone"
            )
        out = tiny_towers.build(args.family, args.out, texts=tiny.texts([args.source]), seed=args.seed)
        _say_built(out, args.family)
        return
    out = tiny.build(
        args.family,
        args.out,
        texts=None if args.source is None else tiny.texts([args.source]),
        tokenizer_json=args.tokenizer,
        chat_template=None if args.template is None else args.template.read_text(encoding="utf-8"),
        seed=args.seed,
    )
    _say_built(out, args.family)


def _say_built(out: Path, family: str) -> None:
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}: a random {family} base, {size:.1f} MB; name it in a recipe as base: {out}")


def _list(say: Console, configs: Path | None) -> None:
    table = narrow(
        "base", "family", right("size"), right(f"{SIDE} px image"), right("LoRA/QLoRA"), short("licence", 12)
    )
    with TemporaryDirectory() as folder:
        for name in bases("vlm"):
            base = load_base(name)
            kind, parameters, image, *_ = _about(base, configs, Path(folder) / name)
            lora, qlora = _memory(base, configs, Path(folder) / f"{name}-memory")
            size = "tiny" if base.random else parameters.replace(" billion", " B")
            licence = "gated, " * base.gated + (base.licence or UNSAID).partition("; ")[0]
            memory = lora if lora == UNSAID else f"{lora}/{qlora}"
            table.add_row(name, kind, size, image, memory, licence)
        say.print(table)
        pairs = narrow("two towers", "image", "text", right("parameters"), right("px"), short("licence", 14))
        for name in bases("dual"):
            base = load_base(name)
            about = dual_bases.about(base, _config(base, configs), Path(folder) / name) or [UNSAID] * 6
            licence = (base.licence or UNSAID).partition("; ")[0]
            pairs.add_row(name, *(words.partition("_")[0] for words in about[:2]), *about[2:4], licence)
        say.print(pairs)
    for line in (f"An image: {IMAGE}.", NEEDED, UNKNOWN, "skinvl bases NAME says more of one."):
        say.print(line, highlight=False, soft_wrap=True)


def _print_base(say: Console, name: str, configs: Path | None) -> None:
    base = load_base(name)
    heads: Sequence[str] = ("family", "parameters", f"image of {SIDE} px", "LoRA on")
    with TemporaryDirectory() as folder:
        if base.kind == "dual":
            heads = dual_bases.HEADS
            about = dual_bases.about(base, _config(base, configs), Path(folder) / name) or [UNSAID] * len(heads)
        else:
            about = _about(base, configs, Path(folder) / name)
            heads = (*heads, "GiB for LoRA", "GiB for QLoRA")
            about += _memory(base, configs, Path(folder) / "memory")
    gate = "its terms are to be accepted on its page on the hub" if base.gated else "none"
    said = (("licence", base.licence), ("gate", gate), ("note", base.note))
    entry(say, "base", name)
    for head, words in (*zip(heads, about, strict=True), *said):
        entry(say, head, " ".join((words or UNSAID).split()))
    for line in (*[f"An image: {IMAGE}.", NEEDED] * (base.kind == "vlm"), *[UNKNOWN] * (UNSAID in about)):
        say.print(line, highlight=False, soft_wrap=True)


def _about(base: Base, configs: Path | None, folder: Path) -> list[str]:
    """Family, parameters, image tokens and LoRA targets, as far as they are known here."""
    path = tiny.build(base.random, folder, texts=["a b c"]) if base.random else _config(base, configs)
    if path is None:
        return [UNSAID] * 4
    recipe = load("tiny", [f"base={path}", f"data.image_tokens={BUDGET}"])
    opened = open_folder(recipe, path, folder)
    blank = blank_model(opened.config)
    size = "a few million" if base.random else f"{count_parameters(blank) / 1e9:.1f} billion"
    targets = ", ".join(_targets(blank, opened.family, recipe))
    return [opened.config.model_type, size, _image(opened.chat), targets]


def _memory(base: Base, configs: Path | None, folder: Path) -> list[str]:
    """GiB of one GPU that LoRA and QLoRA need, as `skinvl plan` counts them; of a tiny base they say nothing."""
    path = None if base.random else _config(base, configs)
    if path is None:
        return [UNSAID] * 2
    # A source that is not there, so that bases are compared by the same conversations whatever is prepared.
    unprepared = "data.train=[{source: assumed, split: train}]"
    recipe = load(MEMORY, [f"base={path}", unprepared, "train.per_device_train_batch_size=1"])
    folder.mkdir(parents=True)
    requirements = estimate.estimate(open_folder(recipe, path, folder), 1, Assumed())
    return [f"{needed.total / GIB:.0f}" for needed in (requirements.needed(), requirements.needed(quantization=NF4))]


def _config(base: Base, configs: Path | None) -> Path | None:
    """A folder with the base's config that lies on this machine; the hub is not asked."""
    if configs is not None:
        path = config_folder(configs, base.location)
        return path if (path / "config.json").is_file() else None
    if Path(base.location).is_dir():
        return Path(base.location)
    cached = try_to_load_from_cache(base.location, "config.json", revision=base.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _image(chat: Chat) -> str:
    picture = chat.picture((SIDE, SIDE))
    return f"{picture.text_tokens:,} of {picture.vision_tokens:,}"


def _targets(blank: Any, family: Family, recipe: Recipe) -> list[str]:
    """The last names of the modules that LoRA adapts in the language part."""
    hits = adapter.plan(blank, family, recipe)["language"]
    return list(dict.fromkeys(pattern.rpartition(r"\.")[2] for pattern in hits.patterns))


def _diff(say: Console, args: argparse.Namespace) -> None:
    sides = []
    recipe_of = recipe_name(args.recipe)
    of_towers = kind_of(recipe_of, args.overrides) == "pretrain"
    for name in (args.a, args.b):
        if of_towers:
            pair = load_towers(recipe_of, [*args.overrides, f"base={name}"])
            sides.append(dual_bases.compared(pair, args.configs))
            continue
        recipe = load(recipe_of, [*args.overrides, f"base={name}"])
        with TemporaryDirectory() as folder:
            base = open_config(recipe, args.configs, Path(folder))
            sides.append(dict(_side(estimate.estimate(base, 1, Assumed()), base)))
    for letter, name in (("A", args.a), ("B", args.b)):
        say.print(f"{letter}: {name}", markup=False, highlight=False, soft_wrap=True)
    rows = [(key, *(side.get(key, UNSAID) for side in sides)) for key in dict.fromkeys([*sides[0], *sides[1]])]

    # What fits into a cell stands in the table, and what is longer below it.
    short_rows = [row for row in rows if len(row[0]) <= 34 and all(len(cell) <= CELL for cell in row[1:])]
    table = Table("", right("A"), right("B"), title=args.recipe)
    for key, a, b in short_rows:
        table.add_row(key, a, b, style="" if a != b else "dim")
    say.print(table)
    for key, a, b in (row for row in rows if row not in short_rows):
        sides_of_key = (("A and B", a),) if a == b else (("A", a), ("B", b))
        for letter, words in sides_of_key:
            say.print(f"{key}, {letter}:", markup=False, highlight=False)
            say.print(indent(words or UNSAID, "    "), markup=False, highlight=False, soft_wrap=True)


def _side(requirements: Requirements, base: OpenBase) -> Iterator[tuple[str, str]]:
    """What a comparison says of one base, by name."""
    recipe, family, chat = base.recipe, base.family, base.chat
    yield "family", family.model_type
    yield "parameters", f"{requirements.parameters:,}"
    hits = adapter.plan(blank_model(base.config), family, recipe)
    for part in PARTS:
        count, mode = requirements.counts[part], getattr(recipe.parts, part).train
        yield part, mode
        yield f"{part}: parameters", f"{count.parameters:,}"
        yield f"{part}: of these trainable", f"{count.trainable:,}"
        if mode != "frozen":
            modules = [f"{pattern} ×{count}" for pattern, count in hits[part].patterns.items()]
            yield f"{part}: modules", "\n".join([*modules, *hits[part].full]).replace("\\", "")

    # How a conversation reads, and what one costs.
    yield "an answer begins", repr(family.opens(chat.template))
    yield "and ends", repr(family.turn_close)
    yield "a prompt", chat.render(ASKED, generation=True)
    yield f"image of {SIDE} px: tokens", _image(chat)
    load = requirements.shared.load
    yield "tokens a conversation", f"{load.tokens / load.conversations:,.1f}"
    yield "positions computed for one", f"{load.positions / load.conversations:,.1f}"
    yield "TFLOP a conversation", f"{requirements.rates.of(load) / load.conversations / 1e12:,.2f}"

    needed = requirements.needed()
    for name, size in needed.items.items():
        yield f"GiB: {name}", f"{size / GIB:,.2f}"
    yield f"GiB for a batch of {requirements.conversations}", f"{needed.total / GIB:,.2f}"
    yield "assumed", "\n".join(requirements.remarks)
