"""The cases of a reader study: rows of one set's predictions with what may be chosen, what is right, and the model's.

A classified set gives its classes as choices. A set of answers gives its closed questions: of multiple choice the
options, of the others the references that questions of their kind have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skinvl.data.match import choice_letter
from skinvl.score import classification
from skinvl.score.metrics import closed_accuracy, multiple_choice, right_answers, words
from skinvl.score.predictions import Answer, Classified, key, read

MOST = 60  # choices that a reader can be asked to choose among
WHICH = "Which of these does it show?"


class StudyError(ValueError):
    """A reader study that cannot be made, or readings that are not of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row as readers are asked about it, and what they must not see of it."""

    question: str
    choices: tuple[str, ...]
    images: tuple[str, ...]
    key: str  # its source and id
    group: tuple[str, str]  # what intervals take whole: with the source, the patient, lesion or figure
    right: tuple[int, ...]  # numbers of the choices that are right
    model: int | None  # the choice of the model; None where it made none, which is wrong
    malignant: tuple[bool, ...] | None = None  # of each choice; None where that is not known of all


def predictions(where: Path) -> Path:
    """The one file of predictions of a run that readers could be given, or the file itself.

    Raises:
        StudyError: there is none, or there are several.
    """
    if where.is_file():
        return where
    folders = [where / "eval" / name for name in ("classes", "answers")]
    paths = [path for folder in folders for path in sorted(folder.glob("*.jsonl")) if not path.name.startswith(".")]
    paths = [path for path in paths if not path.stem.endswith(".validation")]
    if not paths:
        raise StudyError(f"{where / 'eval'}: no classes and no answers; make them with: make eval RUN={where}")
    if len(paths) > 1:
        listed = ", ".join(str(path.relative_to(where / "eval")) for path in paths)
        raise StudyError(
            f"{where}: {len(paths)} sets could be read ({listed}); name the file of one instead of the run: "
            f"skinvl score {paths[0]} --study …"
        )
    return paths[0]


def cases(path: Path) -> tuple[list[Case], Counter[str]]:
    """The cases of a file of predictions in its order, and how many of its rows are none, by reason.

    Raises:
        StudyError: there are none.
        PredictionError, ClassError: the predictions cannot be read.
    """
    left_out: Counter[str] = Counter()
    found = list(_classified(path, left_out) if path.parent.name == "classes" else _answered(path, left_out))
    if not found:
        why = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it has no rows"
        raise StudyError(f"{path}: no row can be a case of a reader study ({why})")
    return found, left_out


def _classified(path: Path, left_out: Counter[str]) -> Iterator[Case]:
    """Rows with a true class, an image and a reading by the headline variant."""
    classified = classification.classified_set(path)
    headline = next(iter(classified.variants.values()), None)
    classes = tuple(classified.classes)
    malignant = None if classified.malignant is None else tuple(classified.malignant.tolist())
    for number, row in enumerate(classified.rows):
        if row.label is None or headline is None or not headline.rows[number]:
            left_out["without a class or scores"] += 1
        elif not row.images:
            left_out["without an image"] += 1
        else:
            said = int(headline.predicted[number])
            model = said if said < len(classes) else None
            yield _case(row, WHICH, classes, (classes.index(row.label),), model, malignant)


def _answered(path: Path, left_out: Counter[str]) -> Iterator[Case]:
    """Closed questions about images that were answered."""
    _, rows = read(path, Answer)
    by_kind: dict[str | None, dict[tuple[str, ...], str]] = {}
    for row in rows:
        if closed_accuracy.counts(row):
            by_kind.setdefault(row.facts.kind, {}).setdefault(words(row.reference), row.reference)
    for row in rows:
        options = multiple_choice.options(row.question)
        choices, right, model = (), (), None  # type: tuple[str, ...], tuple[int, ...], int | None
        if multiple_choice.counts(row):
            letters = list(options)
            choices = tuple(options.values())
            chosen = [choice_letter(text, options).choice for text in right_answers(row)]
            right = tuple(sorted({letters.index(letter) for letter in chosen if letter is not None}))
            said = choice_letter(row.answer or "", options).choice
            model = None if said is None else letters.index(said)
        elif closed_accuracy.counts(row):
            of_kind = dict(sorted(by_kind[row.facts.kind].items()))
            choices = tuple(of_kind.values())
            wanted = {words(text) for text in right_answers(row)}
            right = tuple(number for number, spoken in enumerate(of_kind) if spoken in wanted)
            model = next((number for number, spoken in enumerate(of_kind) if spoken == words(row.answer or "")), None)
        if not choices:
            left_out["no closed questions"] += 1
        elif not 2 <= len(choices) <= MOST or not right:
            left_out[f"with fewer than 2 or more than {MOST} answers to choose among"] += 1
        elif not row.images or row.answer is None:
            left_out["without an image or an answer"] += 1
        else:
            yield _case(row, row.question, choices, right, model)


def _case(
    row: Classified | Answer,
    question: str,
    choices: Sequence[str],
    right: tuple[int, ...],
    model: int | None,
    malignant: tuple[bool, ...] | None = None,
) -> Case:
    return Case(question, tuple(choices), row.images, key(row), (row.source, row.group), right, model, malignant)
