"""A sample of predictions for a report: the worst and best of each set and some of the others, with small images."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from scipy.special import softmax

from skinvl.data import pages
from skinvl.data.example import Facts
from skinvl.data.pages import Thumbnail, short
from skinvl.score import predictions, probabilities
from skinvl.score.metrics import has_reference, option_set, right_answers, tokens, words
from skinvl.score.predictions import Answer, Classified, PredictionError

EACH = 20  # predictions of a set that are shown as its worst, as its best, and drawn from the others
SIDE = 240  # pixels of the longer side of an image in the page, shown at half of that: sharp on any screen
IMAGES = 4  # most of one row that are shown
TOP = 3  # classes of a row whose probability is shown


@dataclass(frozen=True, slots=True)
class PredictionText:
    """What the page says of one prediction."""

    score: float | None  # 0 to 1, better when higher; None where it is not scored, and so neither best nor worst
    outcome: str  # right, partly right, wrong, no answer or not scored
    summary: str  # the score in words
    lines: list[tuple[str, str]]  # what was asked, expected and answered, each after the word that names it


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """What was predicted of a set, and how the page says it."""

    name: str
    rows: Sequence[Any]  # all Answer, or all Classified
    describe: Callable[[Any], PredictionText]


@dataclass(frozen=True, slots=True)
class PredictionCard:
    """One prediction as the page shows it, and what its filters ask."""

    set: str
    pick: str  # worst, best or random
    id: str
    source: str
    facts: Facts
    text: PredictionText
    images: list[Thumbnail]
    more: int  # images that are not shown


def scored(folder: Path, sets: Mapping[str, Mapping[str, Any]]) -> Iterator[ScoredRows]:
    """The predictions of the scored sets, from RUN/eval; none of a set whose predictions are gone.

    Raises:
        PredictionError: a file of predictions is damaged, or is not what was scored.
        ClassError: classifications contradict themselves.
    """
    for name, blocks in sets.items():
        path = folder / "answers" / f"{name}.jsonl"
        if blocks.get("answers") and path.is_file():
            _, answers = predictions.read(path, Answer)
            _check(path, len(answers), blocks["answers"]["rows"])
            yield ScoredRows(name, answers, _answered)
        path = folder / "classes" / f"{name}.jsonl"
        if blocks.get("classes") and path.is_file():
            settings, rows = predictions.read(path, Classified)
            classes, question = settings["classes"], settings.get("question") or ""
            _check(path, len(rows), blocks["classes"]["rows"])
            probabilities.truth(rows, classes, str(path))
            yield ScoredRows(f"{name} (classes)", rows, partial(_classified, classes=classes, question=question))


def sample(sets: Iterable[ScoredRows], seed: int) -> Iterator[PredictionCard]:
    """The predictions to show of each set."""
    small = lru_cache(maxsize=None)(thumbnail)
    for each in sets:
        yield from _chosen(each.name, each.rows, each.describe, small, seed)


def _check(path: Path, rows: int, scored: int) -> None:
    """Refuses predictions that are not those that were scored, told by their count."""
    if rows != scored:
        raise PredictionError(
            f"{path}: {rows:,} rows, but scores.json counts {scored:,}; score the run again with skinvl score"
        )


def _chosen(
    name: str,
    rows: Sequence[Any],
    describe: Callable[[Any], PredictionText],
    small: Callable[[str], Thumbnail],
    seed: int,
) -> Iterator[PredictionCard]:
    """The rows of the lowest scores, of the highest, and some of the others; each row once, ties drawn."""
    # In a drawn order, so that which of equal rows are shown is drawn too.
    drawn = [(describe(row), row) for row in rows]
    random.Random(f"{seed}-{name}").shuffle(drawn)
    scored = sorted((pair for pair in drawn if pair[0].score is not None), key=lambda pair: pair[0].score or 0.0)

    # The same row is never worst and best, nor drawn again.
    each = min(EACH, len(scored) // 2)
    worst, best = scored[:each], scored[len(scored) - each :][::-1]
    taken = {predictions.key(row) for _, row in (*worst, *best)}
    others = [pair for pair in drawn if predictions.key(pair[1]) not in taken]
    for pick, pairs in (("worst", worst), ("best", best), ("random", others[:EACH])):
        for text, row in pairs:
            images = [small(path) for path in row.images[:IMAGES]]
            yield PredictionCard(name, pick, row.id, row.source, row.facts, text, images, len(row.images) - len(images))


def _answered(row: Answer) -> PredictionText:
    lines = [("Question", row.question), ("Reference", row.reference)]
    lines += [(f"Reference of weight {other.weight:g}", other.text) for other in row.references[1:]]
    lines += [("Thought", row.thought)] if row.thought else []
    if row.answer is None:
        return PredictionText(None, "no answer", "not asked", [*lines, ("Not asked", short(row.detail))])
    lines.append(("Answer", row.answer))
    if not has_reference(row):
        return PredictionText(None, "not scored", "a reference without words", lines)
    if row.options:
        score, exact, is_read, _ = option_set.statistics(row.answer, row)
        same, what = exact == 1, "credit" if is_read else "not read, credit"
    else:
        score, what = tokens.statistics(row.answer, row)[2], "token F1"
        same = words(row.answer) in map(words, right_answers(row))
    outcome = "right" if same else "partly right" if score else "wrong" if words(row.answer) else "no answer"
    cut = ", cut off at the longest length" if row.finish_reason == "length" else ""
    return PredictionText(score, outcome, f"{what} {score:.3f}{cut}", lines)


def _classified(row: Classified, classes: Sequence[str], question: str) -> PredictionText:
    """The probability of a class is the softmax over the scores of all; without scores, what the prompt gave counts."""
    lines = [("Question", question)] if question else []
    lines.append(("True class", row.label or "none of the classes"))
    shares = [] if row.scores is None else softmax(row.scores).tolist()
    ranked = sorted(zip(row.scores or (), shares, classes, strict=False), key=lambda scored: -scored[0])
    if ranked:
        lines.append(("Probability", ", ".join(f"{name} {share:.3f}" for _, share, name in ranked[:TOP])))
    if row.answer is not None:
        lines.append(("Prompted answer", row.answer))
        lines.append(("Matched", row.choice or str(row.outcome)))
    if row.detail:
        lines.append(("Detail", short(row.detail)))
    if row.label is None or (not shares and row.outcome is None):
        return PredictionText(None, "not scored", "no label or no scores", lines)
    if not shares:
        right = row.choice == row.label
        return PredictionText(float(right), "right" if right else "wrong", "by the prompted answer", lines)
    score = shares[classes.index(row.label)]
    outcome = "right" if ranked[0][2] == row.label else "wrong"  # of equals the first, as score has it
    return PredictionText(score, outcome, f"probability of the true class {score:.3f}", lines)


def thumbnail(path: str) -> Thumbnail:
    """The image upright and small, without metadata."""
    return pages.thumbnail(Path(path), SIDE)
