"""A set's predictions, made by several ranks at once, and gone on with where a kill stopped them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from accelerate import PartialState
from rich.console import Console

from skinvl.data.progress import Progress, share
from skinvl.score.predictions import PredictionJournal


class Keyed(Protocol):
    """What is predicted; its key is that of its row."""

    @property
    def key(self) -> str:
        """As `predictions.key`."""


Item = TypeVar("Item", bound=Keyed)


def ranks() -> PartialState:
    """The processes that torchrun started, or this one alone."""
    return PartialState(cpu=not torch.cuda.is_available())  # without which it knows of no ranks on a CPU


def predict(
    journal: PredictionJournal,
    items: Sequence[Item],
    cut: Callable[[list[Item]], list[list[Item]]],
    predicted: Callable[[list[list[Item]]], Iterable[Sequence[Any]]],
    state: PartialState,
    say: Console,
) -> list[Any]:
    """The finished rows of the journal, one for each item; ranks share the items that it lacked.

    Args:
        cut: items → blocks that are predicted together.
        predicted: blocks → the rows of each.
    """
    if state.is_main_process:
        journal.begin()
    state.wait_for_everyone()
    done = journal.done()
    left = [item for item in items if item.key not in done]
    state.wait_for_everyone()  # all have read what there is before any of them adds to it
    if done and left:
        say.print(f"{journal.path}: {len(done):,} of {len(items):,} were answered before")
    mine = cut(left)[state.process_index :: state.num_processes]
    title = share(f"{journal.path.parent.name}/{journal.path.stem}", state.process_index, state.num_processes)
    with Progress(title, sum(map(len, mine)), say) as progress:
        for rows in predicted(mine):
            journal.write(rows, state.process_index)
            progress.advance(len(rows))
    state.wait_for_everyone()
    if state.is_main_process and not journal.path.is_file():
        journal.finish([item.key for item in items])
    state.wait_for_everyone()
    return list(journal.done().values())
