"""`skinvl prep`: a raw download → a prepared source, with an account of every row."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

import data_prep
from data_prep import CONTROL_TOKENS, Card, Converter, PrepError
from skinvl.example import Dropped, Example, Message, inside, words, write, write_jsonl

# What Pillow's decoders raise on files that are damaged, cut or no image at all.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(slots=True)
class Account:
    """What became of the rows of a source."""

    rows: int = 0
    examples: dict[str, list[Example]] = field(default_factory=dict)  # by split
    ledger: list[Dropped] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)  # control token → Examples with it in their text

    @property
    def kept(self) -> int:
        """Examples over all splits."""
        return sum(len(examples) for examples in self.examples.values())


class Pictures:
    """The images of RAW, each checked and placed once however many questions it has."""

    def __init__(self, raw: Path, out: Path) -> None:
        self.raw, self.out = raw, out
        self._seen: dict[str, tuple[str, str] | None] = {}

    def problem(self, path: str) -> tuple[str, str] | None:
        """None once the image lies in `out/images`, else the rule that it breaks and what was found.

        Symbolic links inside RAW are followed: they are its owner's, and large collections are often linked.
        """
        if path not in self._seen:
            self._seen[path] = self._place(path)
        return self._seen[path]

    def _place(self, path: str) -> tuple[str, str] | None:
        if not inside(path):
            return "unsafe-path", f"{path} leaves the raw folder"
        source = self.raw / path
        if not source.is_file():
            return "missing-image", path
        if data_prep.is_pointer(source):
            return "unreadable-image", f"{path}: a Git LFS pointer"
        try:
            with Image.open(source) as picture:
                picture.load()
        except DAMAGED as error:
            return "unreadable-image", f"{path}: {type(error).__name__}: {error}"
        target = self.out / "images" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                os.link(source.resolve(), target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, target)
        return None


def main(arguments: list[str]) -> int:
    """0 when the source is prepared or the list printed.

    Raises:
        PrepError: raw files, output folder or converter do not allow it; OUT is as it was before.
    """
    parser = argparse.ArgumentParser(prog="skinvl prep", description="Turn a raw download into a prepared source.")
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="a name of skinvl prep --list")
    parser.add_argument("raw", nargs="?", type=Path, metavar="RAW", help="where the download lies")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder for the prepared source")
    parser.add_argument("--part", action="append", metavar="NAME", help="what of RAW to convert; may be repeated")
    parser.add_argument("--images", choices=("required", "optional"), default="required",
                        help="optional keeps rows whose image is missing, as text alone")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="the datasets, their licences and how to get them")
    given = parser.parse_args(arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if given.list:
        console.print(_cards(), soft_wrap=False)
        return 0
    if given.out is None:
        parser.error("DATASET, RAW and OUT are needed (or --list)")
    account = prepare(given.dataset, given.raw, given.out, given.part, given.images == "optional")
    _report(console, given.out, account)
    return 0


def prepare(
    name: str, raw: Path, out: Path, parts: Sequence[str] | None = None, images_optional: bool = False
) -> Account:
    """What became of each row of RAW; OUT then holds the prepared source, in place of an older one.

    Args:
        parts: names of the card's parts; None is the first.
        images_optional: keep rows whose image is missing, as text alone.

    Raises:
        PrepError: see `main`.
    """
    converter = data_prep.load(name)
    card = converter.CARD
    parts = tuple(dict.fromkeys(parts or card.parts[:1]))
    if unknown := [part for part in parts if part not in card.parts]:
        raise PrepError(f"{name} has no part {', '.join(unknown)}; its parts are {', '.join(card.parts)}")
    if not raw.exists() and not card.drawn:
        raise PrepError(f"{raw}: no such file or folder. How to get {card.title} ({card.address}): {card.obtain}")
    _refuse_out(raw, out)
    out = out.absolute()
    partial, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
    try:
        for left in (path for path in (partial, old) if path.exists()):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        account = _convert(name, converter, raw, partial, parts, images_optional)
        for split, examples in account.examples.items():
            write(partial, split, examples)
        write_jsonl(partial / "ledger.jsonl", account.ledger)
        record = json.dumps(_record(name, card, parts, images_optional, account), indent=2, ensure_ascii=False)
        (partial / "card.json").write_text(record + "\n", encoding="utf-8")
        if out.exists():
            out.rename(old)
        partial.rename(out)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise PrepError(
            f"{error.filename or out}: {error.strerror or error} while preparing {name} into {out}; "
            "free or permit the path, or choose another OUT"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return account


def _convert(
    name: str, converter: Converter, raw: Path, partial: Path, parts: Sequence[str], images_optional: bool
) -> Account:
    account = Account()
    ids: set[str] = set()
    pictures = Pictures(raw.parent if raw.is_file() else raw, partial)
    bar = Console(stderr=True)
    for part in parts:
        account.rows += (rows := converter.rows(raw, part))
        outcomes = track(converter.convert(raw, part), f"{name} {part}", rows, console=bar, disable=not bar.is_terminal)
        for number, outcome in enumerate(outcomes, start=1):
            result = outcome
            if isinstance(outcome, Example):
                result = _imaged(outcome, f"{part} row {number}: {outcome.id}", pictures, images_optional)
            if isinstance(result, Dropped):
                account.ledger.append(result)
                continue
            if result.id in ids:
                raise PrepError(f"data_prep/{name}.py, a fault of the converter: two Examples are called {result.id!r}")
            ids.add(result.id)
            account.examples.setdefault(result.split, []).append(result)
            spoken = "\n".join(words(message) for message in result.messages)
            account.tokens.update(token for token in CONTROL_TOKENS if token in spoken)
    if account.rows != account.kept + len(account.ledger):
        raise PrepError(
            f"data_prep/{name}.py, a fault of the converter: {account.rows:,} rows in, but {account.kept:,} Examples "
            f"and {len(account.ledger):,} ledger rows out; expected exactly one for every row"
        )
    return account


def _imaged(example: Example, row: str, pictures: Pictures, images_optional: bool) -> Example | Dropped:
    """The Example with its images in place, or why it has none."""
    problems = [problem for path in example.images if (problem := pictures.problem(path))]
    for rule, detail in problems:
        if not (images_optional and rule == "missing-image"):
            return Dropped(row, rule, detail)
    if problems:
        return replace(example, images=(), messages=tuple(map(_text_alone, example.messages)))
    return replace(example, images=tuple(f"images/{path}" for path in example.images))


def _text_alone(message: Message) -> Message:
    return {"role": message["role"], "content": [part for part in message["content"] if part["type"] == "text"]}


def _refuse_out(raw: Path, out: Path) -> None:
    one, other = raw.resolve(), out.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise PrepError(f"{out}: RAW ({raw}) and OUT lie in one another; choose an OUT beside RAW")
    if out.is_file():
        raise PrepError(f"{out}: a file; expected a folder that is new, empty or a prepared source")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names and not {"card.json", "ledger.jsonl"} <= names:
        raise PrepError(
            f"{out}: not empty and not a prepared source (it holds {', '.join(sorted(names)[:3])}, …); "
            "choose another OUT, or empty it yourself"
        )


def _record(name: str, card: Card, parts: Sequence[str], images_optional: bool, account: Account) -> dict[str, object]:
    return {
        "source": name,
        **asdict(card),
        "parts": list(parts),
        "images": "optional" if images_optional else "required",
        "rows": account.rows,
        "examples": {split: len(examples) for split, examples in sorted(account.examples.items())},
        "ledger": dict(sorted(Counter(row.rule for row in account.ledger).items())),
        "control_tokens": dict(sorted(account.tokens.items())),
    }


def _report(console: Console, out: Path, account: Account) -> None:
    console.print(f"rows in {account.rows:,} = Examples out {account.kept:,} + ledger {len(account.ledger):,}")
    table = Table(box=None, show_header=False)
    for split, examples in sorted(account.examples.items()):
        table.add_row(f"Examples in {split}", f"{len(examples):,}")
    for rule, count in Counter(row.rule for row in account.ledger).most_common():
        table.add_row(f"ledger: {rule}", f"{count:,}")
    for token, count in account.tokens.most_common():
        table.add_row(f"flagged, kept: text with {token}", f"{count:,}")
    console.print(table)
    hint = "" if account.kept else "; no Example is left (ledger.jsonl says why; see --images optional)"
    console.print(f"{out}: prepared{hint}. Its card.json holds licence and terms.")


def _cards() -> Table:
    table = Table("dataset", "licence and terms", "parts (first is default)", "how to get it")
    for name in data_prep.names():
        card = data_prep.load(name).CARD
        what, how = f"{card.licence}. {card.terms}", f"{card.address}: {card.obtain}"
        table.add_row(name, what, ", ".join(card.parts), how)
    table.columns[3].overflow = "fold"  # an address is of no use with its end cut off
    return table
