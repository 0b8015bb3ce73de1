"""What a job would ask, without asking it: how many requests, by source, split, slot and kind of question."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.table import Table

from skinvl.sources.asking import journal
from skinvl.sources.synthesis.job import SynthesisJob


@dataclass(slots=True)
class Tally:
    """Counts of requests; each of the Counters sums to `requests`."""

    units: int = 0
    silent: int = 0  # units that no prompt fits, so that nothing is asked about them
    answered: int = 0  # requests that have an outcome in a journal already
    sources: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # by slot and kind

    @property
    def requests(self) -> int:
        """How many there are."""
        return self.kinds.total()

    def table(self) -> Table:
        """The counts as one reads them."""
        table = Table("requests", "", "count")
        table.columns[2].justify = "right"
        for name, counts in (("source", self.sources), ("split", self.splits)):
            for value, count in sorted(counts.items()):
                table.add_row(name, value, f"{count:,}")
            table.add_section()
        for (slot, kind), count in sorted(self.kinds.items()):
            table.add_row(slot, kind, f"{count:,}")
        table.add_section()
        table.add_row("all", "", f"{self.requests:,}")
        table.add_row("answered already", "", f"{self.answered:,}")
        return table


def tally(job: SynthesisJob) -> Tally:
    """The counts of the job's share.

    Raises:
        FileNotFoundError, ValueError: see `units.units`.
    """
    ids = journal.Ids()
    for id, _ in journal.read(job.journals):
        ids.add(id)
    counts = Tally()
    for unit, requests in job.requests():
        counts.units += 1
        counts.silent += not requests
        for request in requests:
            counts.sources[unit.source] += 1
            counts.splits[unit.split] += 1
            counts.kinds[request.slot, request.kind] += 1
            counts.answered += request.id in ids
    return counts
