"""The rows of a recipe that its base can be shown, each laid out once before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from rich.console import Console

from skinvl.data import references
from skinvl.data.example import Dropped
from skinvl.data.mixture import Row, Sets
from skinvl.model.chat import Chat
from skinvl.model.lengths import preflight

MOVED = ("moved-to-train", "left-out-of-eval")  # the rules of `Sets.moved`


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """The rows of a recipe that the model can be shown, and the ledger of those that it cannot."""

    train: list[Row]
    evaluation: dict[str, list[Row]]
    dropped: list[Dropped]

    @property
    def all(self) -> list[Row]:
        """Those of every set."""
        return [*self.train, *chain.from_iterable(self.evaluation.values())]


def checked(chat: Chat, sets: Sets, say: Console, drawn: bool = False) -> CheckedRows:
    """The rows that will be seen, and the ledger of those that will not.

    Args:
        drawn: whether the train rows are shown with any of their references; those that cannot be are then left out.

    Raises:
        ValueError: a set has no row left; the message gives the commonest reason.
    """
    say_shared(say, sets.moved, sets.leaking)
    for why, count in Counter(row.detail for row in sets.without).items():
        say.print(f"{count:,} conversations are not trained on ({why})", markup=False)
    kept: list[list[Row]] = []
    ledger: list[Dropped] = []
    for name, rows in [("train", sets.train), *sets.evaluation.items()]:
        several = drawn and not kept  # the train rows, which come first
        report = preflight(chat, [(row.example, row.root) for row in rows], several)
        kept.append([rows[length.index] for length in report.kept])
        ledger += [*report.dropped, *report.unfit]
        say.print(report.table(name))
        if several:
            kept[-1] = [
                replace(row, example=references.only(row.example, sorted(length.references)))
                for row, length in zip(kept[-1], report.kept, strict=True)
            ]
            count = sum(bool(row.example.references) for row in kept[-1])
            say.print(f"{count:,} have several answers, of which an epoch draws one; tokens are those of the longest")
        if not kept[-1]:
            reason = f"; the first: {report.dropped[0].rule}: {report.dropped[0].detail}" if rows else ""
            raise ValueError(f"{name}: none of {len(rows)} rows can be used{reason}")
    count = sum(any(row.example.thoughts) for row in kept[0])
    if count or chat.thinking is not None:
        say.print(f"{count:,} of {len(kept[0]):,} train conversations have thoughts before answers: {chat.thoughts}")
    return CheckedRows(kept[0], dict(zip(sets.evaluation, kept[1:], strict=True)), ledger)


def say_shared(say: Console, ledger: Sequence[Dropped], leaking: int) -> None:
    """Prints how many eval conversations share a group or an image with the train set, and what came of it.

    Args:
        ledger: of which those that the mixture moved are counted.
        leaking: those that were kept.
    """
    for rule, count in Counter(row.rule for row in ledger if row.rule in MOVED).items():
        what = "moved to the train set" if rule == "moved-to-train" else "left out"
        say.print(f"{count:,} eval conversations share a group or an image with the train set: {what}")
    if leaking:
        say.print(
            f"allow_leak: {leaking:,} eval conversations share a group or an image with the train set; "
            "what is measured on them says nothing about new patients",
            style="red",
        )
