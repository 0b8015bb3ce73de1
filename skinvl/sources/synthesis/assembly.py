"""A prepared source from requests and their outcomes, in a folder of its own until it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinvl.data.example import SCHEMA, Dropped, Example, splits, table, text, validate
from skinvl.data.source import IMAGES_SCHEMA, read_card, read_images
from skinvl.recipe.files import write_json
from skinvl.sources import rules
from skinvl.sources.asking.outcomes import Outcomes
from skinvl.sources.asking.request import Failure, Outcome, Reply, Request
from skinvl.sources.prepare.writer import WORDS
from skinvl.sources.reading import screening
from skinvl.sources.reading.replies import QAPair
from skinvl.sources.reading.verification import Verdict, verdict, verification
from skinvl.sources.rules import LONGEST_DETAIL
from skinvl.sources.synthesis.job import RequestAccount, SynthesisError, SynthesisJob
from skinvl.sources.synthesis.programme import Unit

BATCH = 2_000  # Examples that are written at once
INHERITED = ("address", "citation", "obtain", "split", "released", "alike", "drawn")  # of the source's card
BY_IMAGE = ("archive",)  # as well, where images and their names come from it
UNSUPPORTED = "unsupported"  # the rule that drops what the second model finds wrong
UNVERIFIED = "unverified"  # the tag of what it did not settle


@dataclass(frozen=True, slots=True)
class CheckedPair:
    """A pair with the rule that drops it, if one does, and the verdict of the second model, if it was asked."""

    pair: QAPair
    rule: str | None
    detail: str
    tags: tuple[str, ...]
    verdict: Verdict | None = None


def checked_pairs(
    job: SynthesisJob, outcomes: Outcomes, unit: Unit, request: Request, reply: Reply
) -> Iterator[CheckedPair]:
    """The pairs of a reply as the rules of `screening` and the second model have it; not yet whether one repeats."""
    for screened in screening.screen(request, reply, unit.facts):
        rule, detail, tags, opinion = screened.rule, screened.detail, screened.tags, None
        if rule is None and job.verifier is not None:
            outcome = outcomes.get(verification(request, screened.pair, job.verifier).id)
            opinion = verdict(outcome) if isinstance(outcome, Reply) else None
            if opinion and opinion.supported == "no":
                rule, detail, tags = UNSUPPORTED, opinion.reason[:LONGEST_DETAIL], ()
            elif opinion is None or opinion.supported != "yes":
                tags = (*tags, UNVERIFIED)
        yield CheckedPair(screened.pair, rule, detail, tags, opinion)


class Assembly:
    """The source while it is made; see `take` and `finish`.

    Args:
        folder: it holds `images/` and nothing else.
        twins: for each pair of text alone that `checked_pairs` does not drop, whether an earlier one is like it.
    """

    def __init__(
        self, job: SynthesisJob, outcomes: Outcomes, folder: Path, twins: Iterator[bool], stack: ExitStack
    ) -> None:
        self.account = RequestAccount()
        self._job, self._outcomes, self._folder, self._twins, self._stack = job, outcomes, folder, twins, stack
        self._ledger, self._records = (
            stack.enter_context((folder / name).open("w", encoding="utf-8", errors="backslashreplace"))
            for name in ("ledger.jsonl", "synthesis.jsonl")
        )
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._batches: dict[str, list[Example]] = {}  # by split
        self._sameness: set[int] = set()  # by the kept conversations, as rules.sameness has it
        self._shown: list[str] = []  # paths of images
        self._licences: set[str] = set()

    def take(self, unit: Unit, request: Request) -> None:
        """Makes Examples of what came of the request, or rows of the ledger.

        Raises:
            SynthesisError: its image is gone.
        """
        self.account.requests += 1
        row, outcome = f"{unit.id} {request.slot} {request.id}", self._outcomes.get(request.id)
        if outcome is None:
            self._drop(Dropped(row, "unanswered", "no outcome yet; the same command goes on"))
        elif isinstance(outcome, Failure):
            self._drop(Dropped(row, outcome.rule, outcome.detail))
            self._record(unit, request, outcome, {"rule": outcome.rule, "detail": outcome.detail})
        else:
            self.account.prompt_tokens += outcome.prompt_tokens
            self.account.completion_tokens += outcome.completion_tokens
            several = request.question is None and request.schema["properties"].keys() == {"pairs"}
            for number, checked in enumerate(checked_pairs(self._job, self._outcomes, unit, request, outcome), start=1):
                self._settle(unit, request, outcome, checked, f"{request.id}-{number}" if several else request.id)

    def finish(self) -> RequestAccount:
        """What became of all that was taken, which is on disk now, with the table of images and the card."""
        for split in self._batches:
            self._write(split)
        images = IMAGES_SCHEMA.empty_table()
        if self._shown:
            images = read_images(self._job.source)
            images = images.filter(pc.is_in(images["path"], pa.array(self._shown)))
        pq.write_table(images, self._folder / "images.parquet")
        self.account.images = len(self._shown)
        write_json(self._folder / "card.json", _card(self._job, self.account, sorted(self._licences)))
        return self.account

    def _settle(self, unit: Unit, request: Request, reply: Reply, checked: CheckedPair, name: str) -> None:
        rule, detail = checked.rule, checked.detail

        # Whether it repeats is known only now, in the order of the requests.
        example = _example(self._job, unit, request, checked, name)
        if rule is None and self._repeats(example):
            rule, detail = "near-duplicate", "an earlier one asks and says nearly the same"
        if rule is None:
            self._keep(example)
        else:
            self._drop(Dropped(f"{unit.id} {request.slot} {name}", rule, detail))

        # Kept or not, the record says how it came about.
        opinion = asdict(checked.verdict) if checked.verdict else None
        if checked.verdict:
            self.account.verdicts[checked.verdict.supported] += 1
        known = {"id": name, "question": checked.pair.question, "answer": checked.pair.answer, "verdict": opinion}
        self._record(unit, request, reply, {**known, "rule": rule, "detail": detail, "tags": checked.tags})

    def _repeats(self, example: Example) -> bool:
        if not example.images:
            return next(self._twins)
        key = rules.sameness(example)
        twin = key in self._sameness
        self._sameness.add(key)
        return twin

    def _keep(self, example: Example) -> None:
        validate(example)
        for image in example.images:
            if image not in self._shown[-1:]:  # the requests about an image come one after another
                _link(self._job.source / image, self._folder / image)
                self._shown.append(image)

        self._licences.add(example.licence)
        self.account.examples[example.split] += 1
        self.account.kinds[example.facts.kind or ""] += 1
        self.account.tags.update(example.tags)
        batch = self._batches.setdefault(example.split, [])
        batch.append(example)
        if len(batch) == BATCH:
            self._write(example.split)

    def _drop(self, row: Dropped) -> None:
        self.account.ledger[row.rule] += 1
        self._ledger.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")

    def _record(self, unit: Unit, request: Request, outcome: Outcome, known: Mapping[str, Any]) -> None:
        """Writes all that is known of a pair, or of a failure, as a line of synthesis.jsonl."""
        job, got = self._job, asdict(outcome)
        line = {
            **{"id": None, "request": request.id, "unit": unit.id, "image": request.image, "split": unit.split},
            **{"slot": request.slot, "kind": request.kind, "source": unit.source},
            **{"programme": job.programme.name, "version": job.programme.version, "seed": job.seed},
            **{"asked": job.model, "settings": job.settings, "terms": job.terms},
            **{"licence": _licence(unit.licence, job.terms)},
            **{"system": request.system, "context": request.context, "prompt": request.prompt},
            **{"question": request.question, "answer": None, "reply": got.pop("text", None), "verdict": None},
            **{"tags": (), **got, **known},
        }
        self._records.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _write(self, split: str) -> None:
        if split not in self._writers:
            path = self._folder / f"{split}.parquet"
            self._writers[split] = self._stack.enter_context(pq.ParquetWriter(path, SCHEMA, use_dictionary=WORDS))
        self._writers[split].write_table(table(self._batches[split]))
        self._batches[split] = []


def take_place(made: Path, out: Path) -> None:
    """Moves what was made into OUT, in place of all but its journals; the card comes last, which says it is whole.

    OUT cannot be renamed whole, since the journals within it are written to meanwhile.
    """
    for name in ("card.json", *(f"{split}.parquet" for split in splits(out))):
        (out / name).unlink(missing_ok=True)
    for path in sorted(made.iterdir(), key=lambda path: (path.name == "card.json", path.name)):
        if (out / path.name).is_dir():
            shutil.rmtree(out / path.name)
        path.rename(out / path.name)
    made.rmdir()


def _example(job: SynthesisJob, unit: Unit, request: Request, checked: CheckedPair, name: str) -> Example:
    images = (request.image,) if request.image else ()
    turns = text("user", checked.pair.question, images=len(images)), text("assistant", checked.pair.answer)
    source, licence = f"{unit.source}-{job.programme.name}", _licence(unit.licence, job.terms)
    facts = replace(unit.facts, kind=request.kind)
    return Example(name, source, images, turns, unit.group, unit.split, licence, facts, checked.tags, unit.identities)


def _licence(source: str, terms: str | None) -> str:
    """Under what a conversation stands: the images or tasks that it is made of, and the terms of what wrote it."""
    return ", ".join(dict.fromkeys(filter(None, (source, terms)))) or "none stated"


def _card(job: SynthesisJob, account: RequestAccount, licences: list[str]) -> dict[str, Any]:
    card, name = read_card(job.source), job.source.resolve().name
    return {
        "source": f"{name}-{job.programme.name}",
        "title": f"{card.get('title', name)}, asked by the programme {job.programme.name}",
        "licence": ", ".join(licences) or _licence(str(card.get("licence", "")), job.terms),
        **{key: card[key] for key in INHERITED + BY_IMAGE * (job.programme.unit == "image") if key in card},
        "terms": " ".join(filter(None, (card.get("terms"), job.terms and f"Written by {job.model}: {job.terms}."))),
        "parts": [job.programme.name],
        "splits": sorted(account.examples),
        "synthesis": {
            "programme": job.programme.name,
            "version": job.programme.version,
            "model": job.model,
            "terms": job.terms,
            "seed": job.seed,
            "settings": job.settings,
            "verifier": job.verifier,
            "verdicts": dict(sorted(account.verdicts.items())),
            "requests": account.requests,
            "silent": account.silent,
            "prompt_tokens": account.prompt_tokens,
            "completion_tokens": account.completion_tokens,
        },
        "rows": account.rows,
        "examples": dict(sorted(account.examples.items())),
        "kinds": dict(sorted(account.kinds.items())),
        "ledger": dict(sorted(account.ledger.items())),
        "tags": dict(sorted(account.tags.items())),
        "images": account.images,
    }


def _link(image: Path, there: Path) -> None:
    """Puts the image there too: as a link where the disk allows it, else as a copy."""
    there.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(image, there)
    except FileNotFoundError as error:
        raise SynthesisError(
            f"{image}: gone since it was asked about; put it back and run the same command again, which asks nothing "
            "twice"
        ) from error
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(image, there)
