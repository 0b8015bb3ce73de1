"""The numbers of what models judged of the claims of answers: shares of verdicts, and how far two judges agree.

Every number names who judged: the model, the digest of the prompt, and the days on which it replied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skinvl.score import tables
from skinvl.score.predictions import Answer
from skinvl.score.readers import kappa
from skinvl.score.readers.kappa import UNREAD
from skinvl.score.stats import Bootstrap, Int

VERDICTS = ("supported", "partly", "contradicted", "extra")
CONTRADICTED = VERDICTS.index("contradicted")
FREE = "answers without a contradicted claim"
HEAD = ("judge", "of", "value", "n", "groups", "unscored")


@dataclass(frozen=True, slots=True)
class Judge:
    """Who judged, as every number says it."""

    model: str  # as it was asked for
    served: tuple[str, ...]  # what the server called it
    prompt: str  # digest of the prompt and all that was sent with it
    days: tuple[str, str] | None  # first and last of its replies, UTC; None where there is none

    @property
    def label(self) -> str:
        """In one line."""
        days = "no reply" if self.days is None else " to ".join(dict.fromkeys(self.days))
        served = f" (served as {', '.join(self.served)})" if self.served and self.served != (self.model,) else ""
        return f"{self.model}{served}, prompt {self.prompt[:12]}, {days}"


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """An answer, its claims, and what each judge said of them."""

    row: Answer
    claims: tuple[str, ...]
    verdicts: tuple[tuple[str, ...] | None, ...]  # of each judge, a verdict for each claim; None where it gave none
    reasons: tuple[str, ...]  # of each judge the rule why there are none, else empty


def block(judged: Sequence[JudgedAnswer], judges: Sequence[Judge], resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of a set: of each judge the share of claims by verdict and of answers, and κ of two judges.

    Claims are rows and their groups those of their answers, so that an interval takes a patient's claims whole.
    """
    claims = [(number, place) for number, one in enumerate(judged) for place in range(len(one.claims))]
    groups = [(one.row.source, one.row.group) for one in judged]
    by_claim = Bootstrap([groups[number] for number, _ in claims], resamples, seed)
    by_answer = Bootstrap(groups, resamples, seed)
    columns = [_column(judged, claims, at) for at in range(len(judges))]

    of_judges = []
    for at, (judge, column) in enumerate(zip(judges, columns, strict=True)):
        known, missed = column != UNREAD, int((column == UNREAD).sum())
        verdicts = {
            name: by_claim.share(column == place, known, missed).number() for place, name in enumerate(VERDICTS)
        }
        is_judged = np.array([one.verdicts[at] is not None for one in judged], np.bool_)
        free = np.array([VERDICTS[CONTRADICTED] not in (one.verdicts[at] or ()) for one in judged], np.bool_)
        numbers = {**verdicts, FREE: by_answer.share(free, is_judged, int((~is_judged).sum())).number()}
        reasons = Counter(one.reasons[at] for one in judged if one.reasons[at])
        named = {name: {**number, "judge": judge.label} for name, number in numbers.items()}
        of_judges.append({"judge": judge.label, "numbers": named, "unjudged": dict(sorted(reasons.items()))})
    return {
        "answers": len(judged),
        "claims": len(claims),
        "judges": of_judges,
        "kappa": {
            **kappa.cohen(columns[0], columns[1], by_claim).number(),
            "judge": "; ".join(judge.label for judge in judges),
        }
        if len(columns) == 2
        else None,
    }


def shown(numbers: Mapping[str, Any]) -> Iterator[tables.Titled]:
    """A table for each set of a judge.json."""
    for name, of in numbers["sets"].items():
        rows = []
        for one in of["judges"]:
            rows += [_row(one["judge"], what, number) for what, number in one["numbers"].items()]
        if of["kappa"] is not None:
            rows.append(_row(of["kappa"]["judge"], "Cohen's κ of the judges", of["kappa"]))
        title = f"{numbers['run']}: {name}, {of['claims']:,} claims of {of['answers']:,} answers"
        yield title, HEAD, rows


def _row(judge: str, what: str, number: Mapping[str, Any]) -> list[str]:
    return [judge, what, tables.number(number), *(f"{number[count]:,}" for count in ("n", "groups", "unscored"))]


def _column(judged: Sequence[JudgedAnswer], claims: Sequence[tuple[int, int]], at: int) -> Int:
    """int[C]: the verdict of a judge on each claim; UNREAD where it gave none."""
    column = np.full(len(claims), UNREAD, np.int64)
    for row, (number, place) in enumerate(claims):
        if (verdicts := judged[number].verdicts[at]) is not None:
            column[row] = VERDICTS.index(verdicts[place])
    return column
