"""What a job, its source and the paid-for replies make: a prepared source, whole, and again without any request."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from skinvl.sources.asking.outcomes import Outcomes
from skinvl.sources.asking.request import Reply, Request
from skinvl.sources.reading import likeness
from skinvl.sources.reading.verification import verification
from skinvl.sources.synthesis.assembly import Assembly, CheckedPair, checked_pairs, take_place
from skinvl.sources.synthesis.job import RequestAccount, SynthesisError, SynthesisJob

# float[N, D] of N texts; None where they can only be compared as spelt
Embed = Callable[[Sequence[str]], NDArray[np.float64] | None]


def assemble(job: SynthesisJob, outcomes: Outcomes, embed: Embed | None = None) -> RequestAccount:
    """What became of every request of all shards; OUT then holds the prepared source, in place of an older one.

    A request without an outcome becomes a row `unanswered` of the ledger.

    Raises:
        SynthesisError: an image of the source is gone, or no request has an outcome; an older OUT is as it was.
        FileNotFoundError, ValueError: see `source.read_images` and `units.units`.
    """
    job = job.whole
    partial = job.out / ".partial"
    twins = iter(_twins(job, outcomes, embed))
    with (job.out / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # shards that end together do this one after another
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        (partial / "images").mkdir(parents=True)
        with ExitStack() as stack:
            made = Assembly(job, outcomes, partial, twins, stack)
            for unit, requests in job.requests():
                made.account.silent += not requests
                for request in requests:
                    made.take(unit, request)
            account = made.finish()

        # An older source gives way only to one that has something in it.
        _refuse_nothing(job, account)
        take_place(partial, job.out)
    return account


def unanswered(job: SynthesisJob, outcomes: Outcomes) -> int:
    """How many requests of all shards have no outcome yet, those of the second model with them."""
    asked = sum(outcomes.get(request.id) is None for _, requests in job.whole.requests() for request in requests)
    return asked + sum(outcomes.get(request.id) is None for request in checks(job.whole, outcomes))


def checks(job: SynthesisJob, outcomes: Outcomes) -> Iterator[Request]:
    """What the second model is asked: about each pair of the share that is not dropped."""
    if job.verifier is None:
        return
    for request, checked in _kept(job, outcomes):
        yield verification(request, checked.pair, job.verifier)


def _refuse_nothing(job: SynthesisJob, account: RequestAccount) -> None:
    if not account.requests:
        named = f", such as a caption: a conversation whose id begins {job.programme.captions!r}"
        raise SynthesisError(
            f"{job.source}: no prompt of {job.programme.name} fits what is known of its {account.silent:,} "
            f"{job.programme.unit}s{named if job.programme.captions else ''}; choose another source or --programme"
        )
    if account.ledger["unanswered"] == account.requests:
        raise SynthesisError(
            f"{job.journals}: none of these {account.requests:,} requests has an outcome; give the programme, model, "
            "seed and sizes that were asked with"
        )


def _twins(job: SynthesisJob, outcomes: Outcomes, embed: Embed | None) -> list[bool]:
    """For each pair of text alone that is not dropped, in order, whether its task nearly repeats an earlier one."""
    if job.programme.unit == "image":
        return []
    tasks = [checked.pair.question for _, checked in _kept(job, outcomes)]
    vectors = embed(tasks) if embed and tasks else None
    return [original is not None for original in likeness.repeats(tasks, vectors)]


def _kept(job: SynthesisJob, outcomes: Outcomes) -> Iterator[tuple[Request, CheckedPair]]:
    for unit, requests in job.requests():
        for request in requests:
            outcome = outcomes.get(request.id)
            if isinstance(outcome, Reply):
                yield from (
                    (request, checked)
                    for checked in checked_pairs(job, outcomes, unit, request, outcome)
                    if not checked.rule
                )
