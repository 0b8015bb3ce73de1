"""A run that has ended as its files have it, with the terms of all that went into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinvl.data import licences
from skinvl.data.example import splits
from skinvl.data.licences import Terms
from skinvl.data.source import read_card, source_folder
from skinvl.recipe import provenance
from skinvl.recipe.base import load_base
from skinvl.recipe.files import digest, read_json, read_json_lines
from skinvl.recipe.provenance import Provenance
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.run import CONFIG, Run, TowersRun, adapter_digest, begun, finished, finished_towers
from skinvl.recipe.towers import PretrainRecipe


class RecordError(ValueError):
    """A run that has not ended, or whose files cannot be read."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a prepared source's own card says; `anew` where it was prepared again after it was trained on."""

    name: str
    title: str
    address: str
    terms: Terms
    says: str
    citation: str
    examples: dict[str, int]
    ledger: dict[str, int]
    anew: bool
    converter: str


@dataclass(frozen=True, slots=True)
class Record:
    """A run that has ended, as its files have it."""

    path: Path
    recipe: Recipe | PretrainRecipe
    provenance: Provenance
    summary: dict[str, Any]
    steps: int | None
    scores: dict[str, Any] | None
    ledger: Counter[str]
    sources: tuple[Source, ...]
    unknown: dict[str, Terms]  # of an adapter that it went on from and of which no run is at hand
    base: Terms
    trained: Path  # the folder of its adapter, or of the whole model that it trained
    adapter: str  # digest of that folder's config and weights

    @property
    def whole(self) -> bool:
        """Whether it made a whole model, and no adapter."""
        return not (self.trained / CONFIG).is_file()

    @property
    def terms(self) -> dict[str, Terms]:
        """The terms of all data that went into it, by name."""
        return {**{source.name: source.terms for source in self.sources}, **self.unknown}


def read(run: Path, rights: Mapping[str, str] | None = None) -> Record:
    """The record of a run.

    Args:
        rights: licences of what states none, and permissions for data that may not be derived from, by the source's
            name or "base", as who publishes vouches for.

    Raises:
        RecordError: its data is gone, its scores are of another adapter, or a file cannot be read.
        RunError: it has not ended.
    """
    unused = dict(rights or {})  # each is taken out where it is used
    trained = begun(run)
    folder = finished_towers(run).trained if isinstance(trained, TowersRun) else finished(run).adapter
    sources, unknown = _lineage(trained, unused)
    base = licences.of_base(trained.recipe.base, trained.provenance.base.model_type, unused)
    adapter = adapter_digest(folder)
    record = Record(
        path=run,
        recipe=trained.recipe,
        provenance=trained.provenance,
        summary=_json(run / "summary.json") if (run / "summary.json").is_file() else {},
        steps=max(_lines(run / "log.jsonl", "step"), default=None),
        scores=_scores(run, folder, adapter),
        ledger=Counter(_lines(run / "ledger.jsonl", "rule")),
        sources=tuple(sources.values()),
        unknown=unknown,
        base=base,
        trained=folder,
        adapter=adapter,
    )
    if unused:
        asked = [name for name, terms in record.terms.items() if not (terms.known and terms.derivatives)]
        asked += [licences.BASE] * (not base.known)
        raise RecordError(
            f"--rights {next(iter(unused))}: neither a base whose terms are not known nor a source whose terms are not "
            f"known or permit no derivatives; those are {', '.join(asked) or 'none'}"
        )
    return record


def merged(run: Path, record: Record) -> dict[str, Any]:
    """What merge.json says of RUN/merged.

    Raises:
        RecordError: there is no merged model, or it is of another adapter.
    """
    path = run / "merged" / "merge.json"
    if not path.is_file():
        raise RecordError(f"{path}: no such file; merge first, with skinvl merge {run}")
    facts = _json(path)
    if facts.get("adapter") != record.adapter:
        raise RecordError(f"{path}: of another adapter than {run / 'adapter'}; merge again, with skinvl merge {run}")
    return facts


def source(location: str, trained: Mapping[str, str] | None = None, rights: dict[str, str] | None = None) -> Source:
    """What the card of a prepared source says, and the licences that its conversations carry.

    Args:
        location: as a recipe names it.
        trained: digests of the files that were trained on.
        rights: licences of what states none, or permits no derivatives; the one that is used is taken out.

    Raises:
        RecordError: the source is gone.
    """
    root = source_folder(location)
    card = read_card(root)
    if not card:
        raise RecordError(
            f"{root / 'card.json'}: no such file, and with it the licence of what was trained on; put the source back, "
            "or run this from the folder in which the training began"
        )
    files = [root / f"{split}.parquet" for split in splits(root)]
    terms = licences.of_source(root)
    if not (terms.known and terms.derivatives) and rights and root.name in rights:
        terms = licences.read(rights.pop(root.name))
    return Source(
        name=root.name,
        title=card.get("title", root.name),
        address=card.get("address", ""),
        terms=terms,
        says=card.get("terms", ""),
        citation=card.get("citation", "") if card.get("citation") != "none needed" else "",
        examples=card.get("examples", {}),
        ledger=card.get("ledger", {}),
        anew=any(trained[str(file)] != digest(file) for file in files if trained and str(file) in trained),
        converter=card.get("source", ""),
    )


def _lineage(run: Run | TowersRun, rights: dict[str, str]) -> tuple[dict[str, Source], dict[str, Terms]]:
    """The sources of a run, of what it went on from and of what taught it; the terms of what has no sources here."""
    specs, adapter = run.recipe.data.train, run.recipe.init_adapter
    sources = {spec.source: source(spec.source, run.provenance.data, rights) for spec in specs}
    unknown: dict[str, Terms] = {}

    # What taught an image tower, or what a vision tower began as: a run, or a base of two towers.
    others: tuple[str | None, ...] = (run.recipe.parts.vision.init,) if isinstance(run, Run) else ()
    if isinstance(run, TowersRun):
        others = run.recipe.text_base, run.recipe.objective.teacher
    for other in filter(None, others):
        before = next((at for at in (Path(other), Path(other).parent) if (at / provenance.FILE).is_file()), None)
        if before is not None:
            earlier, more = _lineage(begun(before), rights)
            sources, unknown = {**earlier, **sources}, unknown | more
        pair = begun(before).recipe.base if before is not None else load_base(other, "dual")
        if pair != run.recipe.base:  # whose terms are looked at apart
            own = {licences.BASE: rights.pop(pair.name)} if pair.name in rights else {}
            unknown[pair.name] = licences.of_base(pair, "dual", own)

    # What it went on from.
    if adapter is None:
        return sources, unknown
    above = Path(adapter).parent
    if (above / provenance.FILE).is_file():
        earlier, more = _lineage(begun(above), rights)
        return {**earlier, **sources}, unknown | more
    name = above.name if Path(adapter).is_dir() else adapter
    return sources, unknown | {name: licences.read(rights.pop(name, None))}


def _scores(run: Path, folder: Path, adapter: str) -> dict[str, Any] | None:
    path = run / "scores.json"
    if not path.is_file():
        return None
    scores = _json(path)
    try:
        for name, block in scores["sets"].items():
            for what, scored in block.items():
                if scored["settings"].get("adapter") != adapter:
                    raise RecordError(
                        f"{path}: {name} ({what}) was asked of another {folder.name} than {folder}; evaluate it "
                        f"again, with make eval RUN={run}"
                    )
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not as this version writes it; score again with skinvl score {run}") from error
    return scores


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "make it again with the verb that wrote it", RecordError)


def _lines(path: Path, key: str) -> Iterator[Any]:
    """What stands under the key in each line; nothing where there is no file."""
    if path.is_file():
        yield from (line[key] for line in read_json_lines(path, "mend or remove the line", RecordError, [key]))
