"""The review of a synthesis as one HTML page: what came of how many requests, and a sample of each kind and outcome."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from skinvl.data import pages
from skinvl.data.example import inside
from skinvl.recipe.files import read_json_lines, write_bytes

EACH = 4  # records of each kind and outcome that are shown
SIDE = 320  # pixels of the longer side of an image in the page, shown at half of that: sharp on any screen
KEPT, TAGGED = "kept", "tagged"  # outcomes beside the rules that drop
# What a record must have; the rest of what is shown may be missing or null.
FIELDS = ("request", "unit", "image", "kind", "context", "prompt", "rule")
OTHERS = (
    *("id", "question", "answer", "detail", "tags", "verdict", "system", "reply", "programme", "version", "slot"),
    *("split", "model", "seed", "terms", "licence", "created", "finish", "prompt_tokens", "completion_tokens"),
    "attempts",
)


class ReviewError(ValueError):
    """A synthesis of which no review can be written."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A record as the page shows it, and what its filters ask."""

    kind: str
    outcome: str  # kept, tagged, or the rule that dropped it
    verdict: str  # of the second model: yes, no, unsure, unreadable, or nothing where none was asked
    record: Mapping[str, Any]
    picture: str | None  # a JPEG as data URI; None where there is none
    why: str  # why there is none


def write(out: Path, source: Path, seed: int = 0) -> Path:
    """The page, OUT/review.html, which needs nothing else; the same for the same records, images and seed.

    Args:
        source: where the images of dropped records lie, which OUT has not.

    Raises:
        ReviewError: there is no OUT/synthesis.jsonl, or it is not as this version writes it.
    """
    data = page(read(out / "synthesis.jsonl"), (out, source), seed).encode("utf-8", "replace")
    path = out / "review.html"
    write_bytes(path, data)
    return path


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines.

    Raises:
        ReviewError: no such file, or a line that is no record.
    """
    if not path.is_file():
        raise ReviewError(f"{path}: no such file; expected an OUT of skinvl synth, which writes it when it ends")
    expected, again = "what this version writes", "run skinvl synth again, which asks nothing anew"
    yield from read_json_lines(path, again, ReviewError, FIELDS, expected=expected)


def page(records: Iterable[Mapping[str, Any]], folders: Sequence[Path], seed: int = 0, each: int = EACH) -> str:
    """The review as HTML: counts of all records, and of each kind and outcome `each` that are drawn by seed.

    A record is an object with FIELDS: `request` is the id of its request, `unit` what it is about, `image` a path in
    one of the folders or null, `kind` the kind of question, `context` what the model alone was told by name, `prompt`
    the user turn, and `rule` the one that dropped it or null. Shown where they are there: `id` of the Example,
    `question`, `answer`, `detail` of the rule, `tags`, `verdict` {supported, reason} of the second model, `system`,
    `reply` as the model gave it, `programme`, `version`, `slot`, `split`, `model`, `seed`, `terms`, `licence`,
    `created` in seconds since 1970, `finish`, `prompt_tokens`, `completion_tokens` and `attempts` (OTHERS).
    """
    counts: Counter[tuple[str, str]] = Counter()
    tags: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    makers: Counter[str] = Counter()
    drawn: dict[tuple[str, str], list[tuple[int, int, Mapping[str, Any]]]] = {}

    # Of each kind and outcome a heap holds the records of the least draws, so that any number of records passes.
    for number, fields in enumerate(records):
        record = {**dict.fromkeys(OTHERS), **fields}
        stratum = record["kind"], _outcome(record)
        counts[stratum] += 1
        tags.update(record["tags"] or ())
        verdicts[_verdict(record)] += 1
        makers[_maker(record)] += 1
        heap = drawn.setdefault(stratum, [])
        entry = -_draw(record, seed), -number, record
        if len(heap) < each:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    # What is drawn, in the order of the page.
    outcomes = sorted(
        {outcome for _, outcome in counts}, key=lambda outcome: (outcome != KEPT, outcome != TAGGED, outcome)
    )
    picture = lru_cache(maxsize=None)(_picture)
    shown = [
        Shown(kind, outcome, _verdict(record), record, *picture(record["image"], tuple(folders)))
        for kind in sorted({kind for kind, _ in counts})
        for outcome in outcomes
        for *_, record in sorted(drawn.get((kind, outcome), ()), reverse=True)
    ]
    verdicts.pop("", None)
    template = pages.template(Path(__file__).with_name("review.html.j2"), when=_when)
    return template.render(
        counts=counts,
        kinds=sorted({kind for kind, _ in counts}),
        outcomes=outcomes,
        tags=_ranked(tags),
        verdicts=_ranked(verdicts),
        makers=_ranked(makers),
        shown=shown,
        seed=seed,
        each=each,
    )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _outcome(record: Mapping[str, Any]) -> str:
    return str(record["rule"] or (TAGGED if record["tags"] else KEPT))


def _verdict(record: Mapping[str, Any]) -> str:
    return str((record["verdict"] or {}).get("supported", ""))


def _maker(record: Mapping[str, Any]) -> str:
    programme = record["programme"] or "a programme of no name"
    version = f", version {record['version']}" if record["version"] else ""
    return f"{programme}{version}, by {record['model'] or 'no model'}"


def _draw(record: Mapping[str, Any], seed: int) -> int:
    """64 bits, by which the records of the least are drawn: the same whatever stands before."""
    name = f"{seed}\n{record['request']}\n{record['id']}"
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest())


def _picture(path: str | None, folders: tuple[Path, ...]) -> tuple[str | None, str]:
    """The image upright, small and without metadata, or why there is none."""
    if path is None:
        return None, "text alone"
    if not inside(path):
        return None, "no path in the source"
    paths = [folder / path for folder in folders if (folder / path).is_file()]
    if not paths:
        return None, "image not found"
    shown = pages.thumbnail(paths[0], SIDE)
    return shown.uri, shown.why


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
