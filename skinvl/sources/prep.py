"""`skinvl prep`: a raw download → a prepared source, with an account of every row."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

import data_prep
from data_prep import Card
from skinvl.data.source import source_folder
from skinvl.recipe.printing import entry, narrow, right, short
from skinvl.sources.prepare.steps import prepare
from skinvl.sources.prepare.writer import Account
from skinvl.sources.rules import RULES


def main(words: list[str]) -> int:
    """0 when the source, or the given shard of it, is prepared or a list printed.

    Raises:
        PrepError: raw files, output folder or converter do not allow it; an older OUT is as it was before.
    """
    parser = argparse.ArgumentParser(prog="skinvl prep", description="Turn a raw download into a prepared source.")
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="a name of skinvl prep --list")
    parser.add_argument("raw", nargs="?", type=Path, metavar="RAW", help="where the download lies")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder for the prepared source")
    parser.add_argument("--part", action="append", metavar="NAME", help="what of RAW to convert; may be repeated")
    parser.add_argument("--keep", action="append", metavar="RULE", default=[],
                        help="keep the rows that break a rule, with a tag; may be repeated")  # fmt: skip
    parser.add_argument("--drop", action="append", metavar="RULE", default=[],
                        help="drop the rows that break a rule which is only tagged by default")  # fmt: skip
    parser.add_argument("--split", choices=("group", "official"), default="group",
                        help="official keeps the split of the authors where it is known to leak")  # fmt: skip
    parser.add_argument("--images", metavar="DIR", default="",
                        help="the folder of RAW, as RAW has it, in which images are found by their names")  # fmt: skip
    parser.add_argument("--over", type=source_folder, metavar="SOURCE", default=None,
                        help="the prepared source whose images a dataset without its own is about")  # fmt: skip
    parser.add_argument("--profiles", choices=("srgb", "ignore"), default=None,
                        help="ignore reads colours as they stand, whatever their profile (default srgb)")  # fmt: skip
    parser.add_argument("--shard", type=_shard, metavar="I/N", default=None,
                        help="do one share of the work, I from 0; whoever ends last joins the shares")  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", default=len(os.sched_getaffinity(0)),
                        help="processes (default: one for each core)")  # fmt: skip
    parser.add_argument("--list", nargs="?", const="", metavar="NAME",
                        help="the datasets, one a line; of one, all that is known and how to get it")  # fmt: skip
    parser.add_argument("--rules", action="store_true", help="the rules, what they do by default, and why")
    args = parser.parse_args(words)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.list:
        _card(console, data_prep.load(args.list).CARD)
    elif args.list is not None:
        console.print(_cards(), soft_wrap=False)
        console.print("skinvl prep --list NAME says more of one, and how to get it.")
    elif args.rules:
        console.print("A row that breaks a rule is dropped, or kept and tagged; --keep and --drop say otherwise.\n")
        _rules(console)
    if args.rules or args.list is not None:
        return 0
    if args.out is None:
        parser.error("DATASET, RAW and OUT are needed (or --list, or --rules)")
    if args.raw.exists():
        known = data_prep.load(args.dataset).CARD.parts
        for part in [part for part in args.part or () if part in known] or known[:1]:
            for sentence in data_prep.absent(args.dataset, args.raw, part):
                entry(console, part, sentence)
    account = prepare(
        args.dataset, args.raw, args.out, args.part, keep=args.keep, drop=args.drop,
        official=args.split == "official", images=args.images, profiles=args.profiles, over=args.over, shard=args.shard,
        workers=args.workers,
    )  # fmt: skip
    if account is None:
        console.print(f"{args.out}: this shard is done; the shard that ends last joins all of them")
    else:
        _report(console, args.out, account, args.profiles == "ignore")
    return 0


def _shard(text: str) -> tuple[int, int]:
    share = re.fullmatch(r"(\d+)/(\d+)", text)
    if not share or int(share[1]) >= int(share[2]):
        raise argparse.ArgumentTypeError(f"{text!r}; expected I/N with I from 0 to N - 1, such as 0/8")
    return int(share[1]), int(share[2])


def _report(console: Console, out: Path, account: Account, ignored: bool) -> None:
    kept, dropped = account.examples.total(), account.ledger.total()
    console.print(f"rows in {account.rows:,} = Examples out {kept:,} + ledger {dropped:,}")
    table = Table(box=None, show_header=False)
    for split, count in sorted(account.examples.items()):
        table.add_row(f"Examples in {split}", f"{count:,}")
    table.add_row("images", f"{account.images:,}")
    for profile, count in account.profiled.most_common():
        table.add_row(f"images {'tagged with' if ignored else 'converted to sRGB from'} {profile}", f"{count:,}")
    for fault, count in account.unusable.most_common():
        table.add_row(f"images whose colour profile cannot be used: {fault}", f"{count:,}")
    if account.joined:
        what = f"groups that share an image or an identity, joined; at most {account.largest:,} became one"
        table.add_row(what, f"{account.joined:,}")
        table.add_row("Examples that this moved nearer to training", f"{account.moved:,}")
    for rule, count in account.ledger.most_common():
        table.add_row(f"ledger: {rule}", f"{count:,}")
    for rule, count in account.lacking.most_common():
        table.add_row(f"images that kept rows go without: {rule}", f"{count:,}")
    for rule, count in account.tags.most_common():
        table.add_row(f"kept, tagged: {rule}", f"{count:,}")
    console.print(table)
    hint = "" if kept else "; no Example is left (ledger.jsonl says why; see --rules and --keep)"
    console.print(f"{out}: prepared{hint}. Its card.json holds licence and terms.")


def _rules(console: Console) -> None:
    for rule in RULES.values():
        entry(console, f"{rule.name} ({'dropped' if rule.drops else 'tagged'})", rule.reason)


def _cards() -> Table:
    table = narrow("dataset", right("images"), short("licence", 34), "use")
    for name in data_prep.names():
        card = data_prep.load(name).CARD
        table.add_row(name, card.published, card.licence.partition(" (")[0], card.use)
    return table


def _card(console: Console, card: Card) -> None:
    for head, text in (
        ("title", card.title),
        ("images, as published", card.published),
        ("licence", card.licence),
        ("terms", card.terms),
        ("parts, the first by default", ", ".join(card.parts)),
        ("splits", ", ".join(card.splits)),
        *([("its images are those of", ", ".join(card.over))] if card.over else []),
        ("address", card.address),
        ("how to get it", card.obtain),
        ("citation", card.citation),
    ):
        entry(console, head, text)
