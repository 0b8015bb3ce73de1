"""How long scoring takes: `python benchmarks/score.py [--rows 100000] [--classified 100000] [--ranked 10000]`.

Answers of real length with facts, three rows a group, through all metrics that need no data of their own, and
classified rows through all variants; intervals from 1,000 resamples, by kind, modality and source, and every slice.
Beside it the same resamples of the same table summed row by row, on a sample, extrapolated: the sums must be equal.
First, ranks of as many queries in as large a pool of random embeddings; those of a sample must be those in float64.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import time

import numpy as np

from skinvl.data.example import Facts
from skinvl.data.workers import Workers
from skinvl.recipe.recipe import Evaluate
from skinvl.score import answers, class_report, classification, metrics, probabilities, ranking
from skinvl.score.predictions import Answer, Classified
from skinvl.score.stats import RESAMPLES, Bootstrap

WORDS = 22  # of an open answer, as in MM-Skin
SAMPLE = 10  # resamples that are summed row by row
VOCABULARY = 5_000
DIMENSIONS = 512  # of an embedding
LOOKED_AT = 20  # queries that are ranked in float64 too


def main() -> None:
    """Prints seconds by phase, and the ratio to summing row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="free answers")
    parser.add_argument("--classified", type=int, default=100_000, help="classified rows")
    parser.add_argument("--classes", type=int, default=8, help="classes of these")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--ranked", type=int, default=10_000, help="queries, and embeddings that they are ranked in")
    parser.add_argument("--only", choices=["ranks"], help="this part alone")
    given = parser.parse_args()
    _ranks(given.ranked)
    if given.only:
        return
    draw = random.Random(0)
    rows = [_answer(number, draw) for number in range(given.rows)]
    chosen = [metrics.load(name) for name in Evaluate().metrics]

    started = time.perf_counter()
    with Workers(given.workers) as crew:
        measured = answers.measure(rows, chosen, crew)
    statistics = time.perf_counter() - started
    started = time.perf_counter()
    draws = answers.bootstrap(rows, RESAMPLES, 0)
    drawing = time.perf_counter() - started
    started = time.perf_counter()
    block = answers.block(measured, {}, draws)
    intervals = time.perf_counter() - started
    shown = sum(len(some) for field in block["by"].values() for some in field.values()) + len(block["metrics"])
    print(f"{given.rows:,} answers in {len(draws.counts):,} groups, {given.workers} processes")
    print(
        f"statistics of rows {statistics:.1f} s, {RESAMPLES:,} resamples {drawing:.1f} s, "
        f"{shown} numbers and their intervals {intervals:.1f} s"
    )
    print(f"together {statistics + drawing + intervals:.1f} s")

    started = time.perf_counter()
    whole = draws.sums(measured.table)
    product = time.perf_counter() - started
    members: list[list[int]] = [[] for _ in range(len(draws.counts))]
    for place, group in enumerate(draws.of.tolist()):
        members[group].append(place)
    started = time.perf_counter()
    for number in range(1, 1 + SAMPLE):
        drawn = np.repeat(np.arange(len(members)), draws.counts[:, number])
        places = np.concatenate([members[group] for group in drawn.tolist()])
        np.testing.assert_allclose(measured.table[places].sum(axis=0), whole[number], rtol=1e-9)
    loop = (time.perf_counter() - started) / SAMPLE * RESAMPLES
    print(f"sums of all resamples {product:.2f} s; row by row {loop:.0f} s, {loop / product:.0f} times as long")

    started = time.perf_counter()
    classified = _classified(given.classified, given.classes)
    prepared = time.perf_counter() - started
    started = time.perf_counter()
    blocks = class_report.block(classified, Bootstrap([row.group for row in classified.rows]))
    seconds = time.perf_counter() - started
    print(
        f"{given.classified:,} rows of {given.classes} classes, {len(blocks['variants'])} variants: {seconds:.1f} s "
        f"(made in {prepared:.1f} s)"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def _ranks(size: int) -> None:
    generator = np.random.default_rng(0)
    sides = [generator.standard_normal((size, DIMENSIONS), np.float32) for _ in range(2)]
    queries, pool = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    right = ranking.relevant([[number, (number + 7) % size] for number in range(size)], size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    started, used = time.perf_counter(), time.process_time()
    ranked = ranking.ranks(queries, pool, right)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ranking.estimates(ranked, size, Bootstrap(range(size)), np.ones(size, np.bool_))
    intervals = time.perf_counter() - started

    exact = queries[:LOOKED_AT].astype(np.float64) @ pool.T.astype(np.float64)
    for number, similarities in enumerate(exact):
        own = right.indices[right.indptr[number] : right.indptr[number + 1]]
        others = np.delete(similarities, own)
        assert abs(1 + (others > similarities[own].max()).sum() - ranked[number]) <= 1  # what float32 cannot tell apart
    print(
        f"ranks of {size:,} in {size:,} × {DIMENSIONS}: {seconds:.1f} s ({cpu:.1f} s of CPU), {peak / 1024:.0f} MiB at "
        f"most, {(peak - before) / 1024:.0f} of them for it; intervals {intervals:.1f} s"
    )


def _answer(number: int, draw: random.Random) -> Answer:
    facts = Facts(
        modality=draw.choice(["clinical", "dermoscopy", "pathology"]),
        skin_type=draw.choice([None, "I", "II", "III", "IV", "V", "VI"]),
        age=draw.choice([None, *map(float, range(5, 95))]),
        sex=draw.choice([None, "female", "male"]),
        site=draw.choice([None, *(f"site {place}" for place in range(20))]),
        kind=draw.choice(["diagnosis", "malignancy", "modality", "site", "skin_type"]),
    )
    if draw.random() < 0.5:
        reference, said = draw.choice(["yes", "no"]), draw.choice(["Yes.", "no"])
    else:
        words = [f"word{draw.randrange(VOCABULARY)}" for _ in range(WORDS)]
        reference = " ".join(words) + "."
        said = " ".join(word if draw.random() < 0.6 else f"word{draw.randrange(VOCABULARY)}" for word in words) + "."
    source = f"source {number % 4}"
    return Answer(str(number), source, str(number // 12), (), "What?", reference, facts, said, "stop", "", WORDS, 0)


def _classified(count: int, classes: int) -> classification.ClassifiedSet:
    generator = np.random.default_rng(0)
    names = [f"class {place}" for place in range(classes)]
    true = generator.integers(0, classes, count)
    scores = generator.normal(size=(count, classes)) - 5
    scores[np.arange(count), true] += 1.5
    rows = [
        Classified(
            str(place), "s", str(place // 3), (), Facts(), names[label], tuple(some), "", "x", "matched", names[0]
        )
        for place, (label, some) in enumerate(zip(true.tolist(), scores.tolist(), strict=True))
    ]
    settings = {"classes": names, "label_tokens": [2] * classes, "prior": [-5.0] * classes}
    held = rows[: count // 10], true[: count // 10]
    read = probabilities.read(rows, true, settings, held)
    malignant = np.arange(classes) % 2 == 1
    temperature = read["calibrated"].temperature or 1.0
    fitted = probabilities.fitted(*held, classes, temperature)
    return classification.ClassifiedSet(rows, settings, true, read, malignant, 0.5, fitted)


if __name__ == "__main__":
    main()
