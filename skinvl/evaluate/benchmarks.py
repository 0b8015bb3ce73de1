"""What a classification asks: the images of a benchmark and their classes, from a prepared source or a CSV file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import get_args

from skinvl.data import labels
from skinvl.data.example import Example, Facts, read, text, words
from skinvl.data.match import match
from skinvl.data.normal import APOSTROPHES, unmarked
from skinvl.data.questions import choices
from skinvl.data.source import source_folder, source_name
from skinvl.evaluate import released_csv
from skinvl.evaluate.released_csv import BenchmarkError as BenchmarkError
from skinvl.evaluate.released_csv import Labelled
from skinvl.recipe import strict
from skinvl.recipe.recipe import ClassSpec
from skinvl.score import predictions
from skinvl.score.predictions import Classified

GRADES = get_args(labels.Malignancy)
ANSWER = "answer"  # the label that is no fact
UNCLASSED = 0.02  # of a set's rows, at most, may name a class that is none of its list
SHOWN = 30  # values of other classes that a message names at most
FOLDER_WORDS = {"photos", "pictures"}  # what a class's folder holds, and no part of the class: files leave them out
MANY = 256  # classes that are inferred from data at most; more are free text
QUESTIONS = {
    "diagnosis": "What is the most likely diagnosis?",
    "malignancy": "Is the finding {classes}?",
    "category": "Which group of skin diseases does the image show?",
    "tumor": "Is the tissue {classes}?",
    "modality": "What kind of medical image is this?",
    "skin_type": "What is the Fitzpatrick skin type?",
    "sex": "What is the sex of the patient?",
    "site": "Where on the body is this?",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to classify: an image, or images that belong together, or one question where the answer is the label.

    The Example asks the task's question, and its last answer is the true class (of a case without one, "unknown").
    """

    example: Example
    root: Path  # the folder that its image paths start from
    label: str | None  # one of the task's classes; None where it has none of them, and is not scored
    detail: str  # why there is no label, or that an image is missing; else empty

    @property
    def key(self) -> str:
        """As `predictions.key`."""
        return predictions.key(self.example)

    def record(
        self, scores: Sequence[float] | None, detail: str = "", said: str | None = None, classes: Sequence[str] = ()
    ) -> Classified:
        """What was predicted of it, or the reason why nothing was.

        Args:
            said: the answer to a prompt, which is matched to the classes.
        """
        matched = match(said, classes) if said is not None else None
        return Classified(
            id=self.example.id,
            source=self.example.source,
            group=self.example.group,
            images=tuple(str((self.root / name).absolute()) for name in self.example.images),
            facts=self.example.facts,
            label=self.label,
            scores=None if scores is None else tuple(map(float, scores)),
            detail=detail,
            answer=said,
            outcome=matched.outcome if matched else None,
            choice=matched.choice if matched else None,
        )


@dataclass(frozen=True, slots=True)
class Task:
    """The cases of one split, and what is known of their classes."""

    name: str  # of its predictions
    classes: tuple[str, ...]
    benchmark: str | None  # a key of labels.CLASSES or labels.BEGINNINGS
    malignant: tuple[bool, ...] | None  # of each class; None where that is not known of all
    question: str | None  # None where each case asks its own
    cases: list[Sample]


def load(spec: ClassSpec, split: str | None = None) -> Task:
    """The task of a spec, on its own split or another one; the classes are always those of its own.

    Facts are of images: several conversations about the same images are one case. Where the label is `answer`, every
    conversation is a case.

    Raises:
        BenchmarkError: the spec does not fit its source; the message says what was found and what was expected.
        FileNotFoundError: no such source or split.
    """
    split = split or spec.split
    rows, root = _rows(spec, split)
    own = rows if split == spec.split else _rows(spec, spec.split)[0]
    benchmark = _benchmark(spec, own)
    field = _field(spec, benchmark)
    wanted = _values(field, benchmark)
    rows, own = ([row if row.value else wanted(row) for row in some] for some in (rows, own))
    listed = tuple(spec.classes or ()) or labels.CLASSES.get(benchmark or "", ())
    classes = _classes(spec, benchmark, listed, own)
    grades = labels.GRADES.get(benchmark or "", {}) if field == "malignancy" else {}
    fit = _Fit(classes, grades, said=field == ANSWER or labels.ASKED.get(benchmark or "") == field)
    if listed or split == spec.split:
        _check_classes(f"{spec.source} {split}", rows, fit, chosen=bool(spec.classes))
    question = spec.question or _question(field, benchmark, classes)
    cases = [_case(row, root, fit) for row in rows] if field == ANSWER else _merged(rows, root, fit)
    if not any(case.label for case in cases):
        raise BenchmarkError(
            f"{spec.source} {split}: none of its {len(cases)} cases has one of the classes {choices(classes)} "
            f"({cases[0].detail}); give the benchmark, the label or the classes that fit"
        )
    source = Path(spec.source).stem if _is_table(spec) else source_name(root)  # the file has the converter's name
    asked = [replace(case, example=replace(_asking(case, question, field), source=source)) for case in cases]
    return Task(name(spec), classes, benchmark, labels.malignant(classes), question, asked)


def name(spec: ClassSpec) -> str:
    """What the predictions of a spec are called: its source, and what tells it from others of that source.

    >>> name(ClassSpec(source="data/demo", label="answer", where={"kind": "colour"}))
    'demo-colour'
    """
    path = Path(spec.source)
    parts = [path.stem if _is_table(spec) else path.name, *(spec.where[key] for key in sorted(spec.where))]
    parts += [spec.label] if spec.label not in (ANSWER, "diagnosis") else []
    parts += [spec.split] if spec.split != "test" else []
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-.")


def names(specs: Sequence[ClassSpec]) -> list[str]:
    """The name of each spec.

    Raises:
        BenchmarkError: two have the same.
    """
    found = [name(spec) for spec in specs]
    if twice := [one for one, count in Counter(found).items() if count > 1]:
        raise BenchmarkError(
            f"evaluate.classify: two sets are called {twice[0]}, and their predictions lie in a file of that name; "
            "let them differ in source, split, label or where, or give one through a link of another name"
        )
    return found


def _is_table(spec: ClassSpec) -> bool:
    return spec.source.casefold().endswith(".csv")


def _rows(spec: ClassSpec, split: str) -> tuple[list[Labelled], Path]:
    """The rows of a split that `where` leaves, and the folder that their image paths start from."""
    _check(spec)
    if _is_table(spec):
        root = Path(spec.images) if spec.images else Path(spec.source).parent
        rows = list(released_csv.read(Path(spec.source), root, split))
    else:
        root = source_folder(spec.source)
        rows = [Labelled(example, None) for example in read(root, split)]
    if not rows:
        raise BenchmarkError(f"{spec.source} {split}: no rows; expected a split that holds some")
    for key, value in sorted(spec.where.items()):
        there = Counter(_fact(row.example.facts, key) for row in rows)
        rows = [row for row in rows if _fact(row.example.facts, key) == value]
        if not rows:
            found = ", ".join(f"{one} ({count})" for one, count in there.most_common(8))
            raise BenchmarkError(f"{spec.source} {split}: no row where {key} is {value!r}; found {found}")
    return rows, root


def _check(spec: ClassSpec) -> None:
    known = [one.name for one in fields(Facts)]
    for key in spec.where:
        if key not in known:
            raise BenchmarkError(f"{spec.source} where.{key}: {strict.unknown(key, known)}")
    if spec.label not in (ANSWER, *known):
        raise BenchmarkError(f"{spec.source} label={spec.label}: {strict.unknown(spec.label, [ANSWER, *known])}")
    if _is_table(spec) and spec.label not in (ANSWER, "diagnosis"):
        raise BenchmarkError(f"{spec.source} label={spec.label}: a CSV has no label but its categories; leave it out")
    if not _is_table(spec) and spec.images is not None:
        raise BenchmarkError(f"{spec.source} images={spec.images}: only a CSV has its images elsewhere; leave it out")
    if spec.benchmark and spec.classes:
        raise BenchmarkError(f"{spec.source}: benchmark={spec.benchmark} and classes are given; expected one of them")


def _fact(facts: Facts, field: str) -> str | None:
    value = getattr(facts, field)
    return f"{value:g}" if isinstance(value, float) else value


def _benchmark(spec: ClassSpec, rows: Sequence[Labelled]) -> str | None:
    """The benchmark that is named, or that the source is, where its own label is asked for.

    Raises:
        BenchmarkError: an unknown one is named.
    """
    if spec.benchmark:
        found = labels.benchmark(spec.benchmark)
        if found is None:
            known = [*labels.CLASSES, *labels.BEGINNINGS]
            raise BenchmarkError(f"{spec.source} benchmark={spec.benchmark}: {strict.unknown(spec.benchmark, known)}")
        return found
    if spec.classes or (spec.label != "diagnosis" and not _is_table(spec)):
        return None
    if _is_table(spec):
        return released_csv.benchmark(Path(spec.source))
    return labels.benchmark(source_folder(spec.source).name) or labels.benchmark(rows[0].example.source)


def _field(spec: ClassSpec, benchmark: str | None) -> str:
    """Where the class stands: a fact, `answer`, or the name of the question whose answer says it."""
    if _is_table(spec):
        return "malignancy" if benchmark in {*labels.GRADES, "fitzpatrick17k"} else "diagnosis"
    if spec.label != "diagnosis" or benchmark is None:
        return spec.label
    return "malignancy" if benchmark in labels.GRADES else labels.ASKED.get(benchmark, "diagnosis")


def _values(field: str, benchmark: str | None) -> Callable[[Labelled], Labelled]:
    """What finds the class of a row that does not say it yet, and may not know."""
    asked = labels.ASKED.get(benchmark or "") == field

    def found(row: Labelled) -> Labelled:
        if row.detail:
            return row
        if field == ANSWER or (asked and row.example.id.endswith(f"-{field}")):
            return replace(row, value=" ".join(words(row.example.messages[-1]).split()))
        if asked:
            return replace(row, detail=f"its question {field!r}, whose answer says the class, is not in the source")
        value = _fact(row.example.facts, field)
        return replace(row, value=value, detail="" if value else f"its {field} is not known")

    return found


def _classes(
    spec: ClassSpec, benchmark: str | None, listed: tuple[str, ...], rows: Sequence[Labelled]
) -> tuple[str, ...]:
    """The classes: those listed, of the benchmark, or every value of the rows, in the order of the alphabet."""
    if listed:
        if len({_key(one) for one in listed}) < len(listed):
            raise BenchmarkError(f"{spec.source} classes: {choices(listed)}: the same class twice; expected each once")
        return listed
    begun = labels.BEGINNINGS.get(benchmark or "", ())
    values = Counter(value for row in rows if row.value and (value := row.value.rstrip(" .")))
    known, spelt = _Fit(begun), dict[str, str]()
    for value, _ in values.most_common():
        if known.label(value) is None:
            spelt.setdefault(_key(value), value)
    found = (*begun, *(spelt[key] for key in sorted(spelt)))
    if not 2 <= len(found) <= MANY:
        shown = ", ".join(map(repr, list(spelt.values())[:4])) or rows[0].detail
        raise BenchmarkError(
            f"{spec.source} label={spec.label}: {len(found)} different values ({shown:.200}); expected 2 to {MANY} "
            "classes; narrow the rows by where, name a benchmark, or list the classes"
        )
    return found


def _key(value: str) -> str:
    return " ".join(unmarked(value.translate(APOSTROPHES)).casefold().split()).rstrip(" .")


def _bare(value: str) -> str:
    return " ".join(word for word in _key(value).split() if word not in FOLDER_WORDS) or _key(value)


class _Fit:
    """The class that a value of a source means: by its spelling, then by the canonical name, never by likeness."""

    def __init__(self, classes: Sequence[str], grades: Mapping[str, str] | None = None, said: bool = False) -> None:
        self.classes, self.grades, self.said = tuple(classes), grades or {}, said
        self.spelt = {_key(one): one for one in classes}
        shared = Counter(map(_bare, classes))
        self.bare = {_bare(one): one for one in classes if shared[_bare(one)] == 1}
        canonical = Counter(map(labels.diagnosis, map(_key, classes)))
        self.named = {plain: one for one in classes if canonical[plain := labels.diagnosis(_key(one))] == 1}

    def label(self, value: str) -> str | None:
        """One of the classes; None where the value is none of them."""
        key = _key(value)
        found = self.grades.get(key) or self.spelt.get(key) or self.bare.get(_bare(value))
        found = found or self.named.get(labels.diagnosis(key))
        if found or not self.said:
            return found
        return match(value, self.classes).choice  # of a sentence such as "The tile shows no tumor."

    def of(self, row: Labelled) -> tuple[str | None, str]:
        """The label of a row, or why it has none."""
        if not row.value:
            return None, row.detail or "it has no label"
        found = self.label(row.value)
        return found, "" if found else f"{row.value!r:.120} is none of the classes"


def _check_classes(where: str, rows: Sequence[Labelled], fit: _Fit, chosen: bool) -> None:
    """Stops where a list of classes is not that of the set: nothing that a set holds may silently go unscored.

    What the set does not say counts as little as a grade that its benchmark leaves out. Classes that a recipe chose may
    be some of the set's, but then each of them is there: one that is not was spelt otherwise.

    Raises:
        BenchmarkError: too many rows name a class that is none of the list, or not one class; the values are named.
    """
    said = [row for row in rows if row.value or row.detail.startswith(released_csv.NO_CLASS)]
    fitting = [fit.of(row)[0] for row in said]
    others = Counter(
        repr(row.value) if row.value else row.detail.partition(": ")[2]
        for row, label in zip(said, fitting, strict=True)
        if label is None and not (fit.grades and row.value in GRADES)
    )
    if others.total() > UNCLASSED * len(said) and not (chosen and {*fit.classes} <= {*fitting}):
        shown = ", ".join(f"{value:.120} ({count})" for value, count in others.most_common(SHOWN))
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise BenchmarkError(
            f"{where}: {others.total()} of {len(said)} rows are of none of the classes {choices(fit.classes)}: "
            f"{shown}{more}; expected at most {UNCLASSED:.0%}. Give the benchmark or the classes that the set has, or "
            "take these rows out of it"
        )


def _question(field: str, benchmark: str | None, classes: Sequence[str]) -> str | None:
    """What is asked of every image; None where each asks its own."""
    if field == ANSWER:
        return None
    kind = labels.ASKED.get(benchmark or "", field)
    return QUESTIONS.get(kind, "Which of these fits the image: {classes}?").format(classes=choices(classes))


def _case(row: Labelled, root: Path, fit: _Fit) -> Sample:
    label, why = fit.of(row)
    return Sample(row.example, root, label, why or row.detail)


def _merged(rows: Sequence[Labelled], root: Path, fit: _Fit) -> list[Sample]:
    """One case for each set of images that is shown, in the order in which they come."""
    sets: dict[tuple[str, ...], list[Labelled]] = defaultdict(list)
    for row in rows:
        sets[tuple(sorted(row.example.images)) or (row.example.id, "")].append(row)
    return [_one(some, root, fit) for some in sets.values()]


def _one(rows: Sequence[Labelled], root: Path, fit: _Fit) -> Sample:
    """The case of rows that show the same images: the class that they agree on."""
    # A row that names no class comes last: others are asked about something else, and what is said of those tells more.
    cases = [_case(row, root, fit) for row in sorted(rows, key=lambda row: row.value is None)]
    found = {case.label: case for case in cases if case.label}
    case = replace(next(iter(found.values()), cases[0]), example=rows[0].example)
    if len(found) > 1:
        return replace(case, label=None, detail=f"conflicting-labels: {', '.join(sorted(map(str, found)))}")
    if not case.example.images and not case.detail:
        return replace(case, label=None, detail="no-image: the conversation shows none")
    return case


def _asking(case: Sample, question: str | None, field: str) -> Example:
    """The case's Example with the task's question as its last, and its class as the answer."""
    example = case.example
    if question is None:
        return example
    answer = text("assistant", case.label or "unknown")
    if field == ANSWER:  # what was said before may matter
        shown = sum(part["type"] == "image" for part in example.messages[-2]["content"])
        return replace(example, messages=(*example.messages[:-2], text("user", question, shown), answer))
    system = tuple(one for one in example.messages[:1] if one["role"] == "system")
    asked = text("user", question, len(example.images))
    facts = Facts(**{**asdict(example.facts), "kind": field})
    return replace(example, messages=(*system, asked, answer), facts=facts)
