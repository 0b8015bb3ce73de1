"""All that decides what `skinvl synth` asks, and the account of what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from skinvl.sources.asking.request import Request
from skinvl.sources.synthesis.programme import Programme, Unit
from skinvl.sources.synthesis.units import Share, units


class SynthesisError(ValueError):
    """A source that nothing can be made of, or an OUT that nothing can be made in; the message says what to do."""


@dataclass(frozen=True, slots=True)
class SynthesisJob:
    """What is asked, of what, by which model, and where it goes."""

    programme: Programme
    source: Path
    out: Path
    share: Share
    seed: int
    model: str  # as its endpoint knows it
    settings: str  # whatever else decides what is sent
    terms: str | None = None  # of the model, for what it writes; None is not stated
    verifier: str | None = None  # model that checks the pairs; None checks none

    def requests(self) -> Iterator[tuple[Unit, list[Request]]]:
        """Every unit of the share with what it is asked."""
        for unit in units(self.programme, self.source, self.share):
            yield unit, self.programme.requests(unit, self.seed, self.model, self.settings)

    @property
    def whole(self) -> SynthesisJob:
        """The job of all shards."""
        return replace(self, share=replace(self.share, index=0, of=1))

    @property
    def journals(self) -> Path:
        """The folder of the paid-for replies."""
        return self.out / "journal"

    @property
    def journal(self) -> Path:
        """The journal of this shard."""
        return self.journals / f"{self.share.index}-of-{self.share.of}.jsonl"


@dataclass(slots=True)
class RequestAccount:
    """What became of the requests."""

    requests: int = 0
    silent: int = 0  # units that no prompt fits, so that nothing was asked about them
    examples: Counter[str] = field(default_factory=Counter)  # by split
    kinds: Counter[str] = field(default_factory=Counter)  # Examples by kind of question
    ledger: Counter[str] = field(default_factory=Counter)  # by rule
    tags: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    images: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def rows(self) -> int:
        """Examples and ledger rows: one for each request, or for each pair where a request asks for several."""
        return self.examples.total() + self.ledger.total()


def refuse(source: Path, out: Path) -> None:
    """Refuses an OUT that cannot hold what is made of the source.

    Raises:
        SynthesisError: it lies in the source or around it, or holds something else.
    """
    source_path, out_path = source.resolve(), out.resolve()
    if source_path == out_path or source_path in out_path.parents or out_path in source_path.parents:
        raise SynthesisError(f"{out}: SOURCE ({source}) and OUT lie in one another; choose an OUT beside SOURCE")
    if out.is_file():
        raise SynthesisError(f"{out}: a file; expected a folder that is new, or an OUT of skinvl synth")
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if names and "journal" not in names:
        raise SynthesisError(
            f"{out}: not empty and no OUT of skinvl synth (it holds {', '.join(names[:3])}, …); choose another OUT"
        )
