"""What a classification asks: the images of a benchmark and their classes, from a prepared source or a CSV file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from skinvl.data import labels
from skinvl.data.example import SCALARS, Example, Facts, read, text, words
from skinvl.data.match import match
from skinvl.data.normal import APOSTROPHES, unmarked
from skinvl.data.questions import choices
from skinvl.data.source import source_folder, source_name
from skinvl.evaluate import released_csv, text_lists
from skinvl.evaluate.released_csv import BenchmarkError as BenchmarkError
from skinvl.evaluate.released_csv import Labelled
from skinvl.recipe import strict
from skinvl.recipe.recipe import ClassSpec
from skinvl.score import predictions
from skinvl.score.predictions import Classified

GRADES = get_args(labels.Malignancy)
ANSWER = "answer"  # the label that is no fact
CONCEPT = "concept:"  # how a label begins that says whether an expert sees what follows
CONCEPTS = "concepts"  # the label of all of labels.SKINCON_CONCEPTS, a set for each
ABSENT, PRESENT = "no", "yes"
UNCLASSED = 0.02  # of a set's rows, at most, may name a class that is none of its list
SHOWN = 30  # values of other classes that a message names at most
FOLDER_WORDS = {"photos", "pictures"}  # what a class's folder holds, and no part of the class: files leave them out
MANY = 256  # classes that are inferred from data at most; more are free text
QUESTIONS = {
    "diagnosis": "What is the most likely diagnosis?",
    "malignancy": "Is the finding {classes}?",
    "class": "Which of these classes fits the lesion: {classes}?",
    "category": "Which group of skin diseases does the image show?",
    "tumor": "Is the tissue {classes}?",
    "modality": "What kind of medical image is this?",
    "skin_type": "What is the Fitzpatrick skin type?",
    "sex": "What is the sex of the patient?",
    "site": "Where on the body is this?",
    **{
        name: f"Under the dermatoscope, which of these describes the {name.replace('_', ' ')}: {{classes}}?"
        for name in labels.DERM7PT_CRITERIA
    },
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to classify: an image, or images that belong together, or one question where the answer is the label.

    The Example asks the task's question, and its last answer is the true class (of a sample without one, "unknown").
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
        self, scores: Sequence[float] | None, detail: str = "", answer: str | None = None, classes: Sequence[str] = ()
    ) -> Classified:
        """What was predicted of it, or the reason why nothing was.

        Args:
            answer: what the model said to a prompt, which is matched to the classes.
        """
        matched = match(answer, classes) if answer is not None else None
        return Classified(
            id=self.example.id,
            source=self.example.source,
            group=self.example.group,
            images=tuple(str((self.root / name).absolute()) for name in self.example.images),
            facts=self.example.facts,
            label=self.label,
            scores=None if scores is None else tuple(map(float, scores)),
            detail=detail,
            answer=answer,
            outcome=matched.outcome if matched else None,
            choice=matched.choice if matched else None,
        )


@dataclass(frozen=True, slots=True)
class Task:
    """The samples of one split, and what is known of their classes."""

    name: str  # of its predictions
    classes: tuple[str, ...]
    benchmark: str | None  # a key of labels.CLASSES or labels.BEGINNINGS
    malignant: tuple[bool, ...] | None  # of each class; None where that is not known of all
    question: str | None  # None where each sample asks its own
    samples: list[Sample]
    blind: bool = False  # whether samples without a label are classified too

    def asks(self, sample: Sample) -> bool:
        """Whether a sample is classified."""
        return sample.label is not None or self.blind


def expanded(specs: Sequence[ClassSpec]) -> list[ClassSpec]:
    """The specs, and for one with the label `concepts` one for each of the concepts."""
    return [
        spec.model_copy(update={"label": label})
        for spec in specs
        for label in ([CONCEPT + name for name in labels.SKINCON_CONCEPTS] if spec.label == CONCEPTS else [spec.label])
    ]


def load(spec: ClassSpec, split: str | None = None) -> Task:
    """The task of a spec, on its own split or another one; the classes are always those of its own.

    Facts are of images: several conversations about the same images are one sample. Where the label is `answer`, every
    conversation is a sample.

    Raises:
        BenchmarkError: the spec does not fit its source; the message says what was found and what was expected.
        FileNotFoundError: no such source or split.
    """
    # What the classes are called, and where a row names its own, is read off the spec's own split, whichever is loaded.
    spec, split = _with_classes(spec), split or spec.split
    rows, root = _rows(spec, split)
    own = rows if split == spec.split else _rows(spec, spec.split)[0]
    benchmark = _benchmark(spec, own)
    field = _field(spec, benchmark)
    wanted = _values(field, benchmark)
    rows, own = ([row if row.value else wanted(row) for row in labelled] for labelled in (rows, own))
    if benchmark in labels.BY_VIEW and not spec.blind:
        rows = [row for row in rows if row.value]
    listed = tuple(spec.classes or ()) or labels.CLASSES.get(benchmark or "", ())
    listed = listed or ((ABSENT, PRESENT) if field.startswith(CONCEPT) else ())
    classes = _classes(spec, benchmark, listed, own)

    # Values become classes, and rows samples: one for each set of images, or each row where it asks its own question.
    grades = labels.GRADES.get(benchmark or "", {}) if field == "malignancy" else {}
    sentences = field == ANSWER or labels.ASKED.get(benchmark or "") == field
    matcher = _ClassMatcher(classes, grades, sentences)
    if listed or split == spec.split:
        _check_classes(f"{spec.source} {split}", rows, matcher, chosen=bool(spec.classes))
    samples = [_sample(row, root, matcher) for row in rows] if field == ANSWER else _merged(rows, root, matcher)
    if not any(sample.label for sample in samples) and not spec.blind:
        why = samples[0].detail if samples else "no row is asked it"
        raise BenchmarkError(
            f"{spec.source} {split}: none of its {len(samples)} samples has one of the classes {choices(classes)} "
            f"({why}); give the benchmark, the label or the classes that fit, or blind: true where none is known"
        )

    question = spec.question or _question(field, benchmark, classes)
    source = Path(spec.source).stem if _is_table(spec) else source_name(root)  # the file has the converter's name
    asked = [replace(sample, example=replace(_asking(sample, question, field), source=source)) for sample in samples]
    return Task(name(spec), classes, benchmark, labels.malignant(classes), question, asked, spec.blind)


def lacking(verb: str) -> str:
    """What a verb says where a recipe names no set."""
    return (
        f"evaluate.classify: names no set, so that there is nothing to {verb}; name one in the recipe, or on the "
        'command line: "evaluate.classify=[{source: ham10000, split: test}]"'
    )


def settings(task: Task, spec: ClassSpec, split: str, path: Path) -> dict[str, Any]:
    """What the settings of predictions hold of their task, whatever predicts.

    Args:
        path: where the predictions will lie.
    """
    return {
        "set": path.stem,
        "rows": len(task.samples),
        "source": spec.source,
        "split": split,
        "benchmark": task.benchmark,
        "classes": list(task.classes),
        "malignant": task.malignant and list(task.malignant),
    }


def name(spec: ClassSpec) -> str:
    """What the predictions of a spec are called: its source, and what tells it from others of that source.

    >>> name(ClassSpec(source="data/demo", label="answer", where={"kind": "colour"}))
    'demo-colour'
    >>> name(ClassSpec(source="derm7pt", benchmark="derm7pt_streaks"))
    'derm7pt_streaks'
    """
    path = Path(spec.source)
    stem = path.stem if _is_table(spec) else path.name
    if spec.benchmark and spec.benchmark.startswith(f"{stem}_"):  # one of several benchmarks of the source
        stem = spec.benchmark
    parts = [stem, *(spec.where[key] for key in sorted(spec.where))]
    parts += [spec.label] if spec.label not in (ANSWER, "diagnosis") else []
    parts += [spec.split] if spec.split != "test" else []
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-.")


def names(specs: Sequence[ClassSpec]) -> list[str]:
    """The name of each spec.

    Raises:
        BenchmarkError: two have the same.
    """
    names = [name(spec) for spec in specs]
    if twice := [called for called, count in Counter(names).items() if count > 1]:
        raise BenchmarkError(
            f"evaluate.classify: two sets are called {twice[0]}, and their predictions lie in a file of that name; "
            "let them differ in source, split, label or where, or give one through a link of another name"
        )
    return names


def _is_table(spec: ClassSpec) -> bool:
    return spec.source.casefold().endswith(".csv")


def _with_classes(spec: ClassSpec) -> ClassSpec:
    """The spec with the classes of its file as its own.

    Raises:
        BenchmarkError: it lists classes besides, or the file has fewer than two.
        TextListError: no such file or list.
    """
    if spec.class_file is None:
        return spec
    if spec.classes:
        raise BenchmarkError(f"{spec.source}: class_file={spec.class_file} and classes are given; expected one of them")
    classes = list(text_lists.read(spec.class_file))
    if len(classes) < 2:
        raise BenchmarkError(f"{spec.source} class_file={spec.class_file}: one class; expected at least two")
    return spec.model_copy(update={"classes": classes, "class_file": None})


def _rows(spec: ClassSpec, split: str) -> tuple[list[Labelled], Path]:
    """The rows of a split that `where` leaves, and the folder that their image paths start from."""
    _check(spec)
    if _is_table(spec):
        root = Path(spec.images) if spec.images else Path(spec.source).parent
        rows = list(released_csv.read(Path(spec.source), root, split, spec.classes or ()))
    else:
        root = source_folder(spec.source)
        rows = [Labelled(example, None) for example in read(root, split)]
    if not rows:
        raise BenchmarkError(f"{spec.source} {split}: no rows; expected a split that holds some")
    for key, value in sorted(spec.where.items()):
        counts = Counter(_fact(row.example.facts, key) for row in rows)
        rows = [row for row in rows if _fact(row.example.facts, key) == value]
        if not rows:
            shown = ", ".join(f"{other} ({count})" for other, count in counts.most_common(8))
            raise BenchmarkError(f"{spec.source} {split}: no row where {key} is {value!r}; found {shown}")
    return rows, root


def _check(spec: ClassSpec) -> None:
    known = list(SCALARS)
    for key in spec.where:
        if key not in known:
            raise BenchmarkError(f"{spec.source} where.{key}: {strict.unknown(key, known)}")
    if spec.label == CONCEPTS:
        raise BenchmarkError(
            f"{spec.source} label={CONCEPTS}: only skinvl classify asks of each concept; name one: label={CONCEPT}scale"
        )
    if spec.label not in (ANSWER, *known) and not spec.label.startswith(CONCEPT):
        raise BenchmarkError(
            f"{spec.source} label={spec.label}: {strict.unknown(spec.label, [ANSWER, CONCEPT + 'NAME', *known])}"
        )
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
        name = labels.benchmark(spec.benchmark)
        if name is None:
            known = [*labels.CLASSES, *labels.BEGINNINGS]
            raise BenchmarkError(f"{spec.source} benchmark={spec.benchmark}: {strict.unknown(spec.benchmark, known)}")
        return name
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

    def valued(row: Labelled) -> Labelled:
        if row.detail:
            return row
        if field.startswith(CONCEPT):
            value = _seen(row.example.facts, field.removeprefix(CONCEPT))
            return replace(row, value=value, detail="" if value else f"whether it shows {field} is not known")
        if field == ANSWER or (asked and row.example.id.endswith(f"-{field}")):
            return replace(row, value=" ".join(words(row.example.messages[-1]).split()))
        if asked:
            return replace(row, detail=f"its question {field!r}, whose answer says the class, is not in the source")
        value = _fact(row.example.facts, field)
        return replace(row, value=value, detail="" if value else f"its {field} is not known")

    return valued


def _seen(facts: Facts, concept: str) -> str | None:
    """Whether an expert sees the concept; None where that is not known."""
    return PRESENT if concept in facts.present else ABSENT if concept in facts.absent else None


def _classes(
    spec: ClassSpec, benchmark: str | None, listed: tuple[str, ...], rows: Sequence[Labelled]
) -> tuple[str, ...]:
    """The classes: those listed, of the benchmark, or every value of the rows, in the order of the alphabet."""
    if listed:
        if len({_key(name) for name in listed}) < len(listed):
            raise BenchmarkError(f"{spec.source} classes: {choices(listed)}: the same class twice; expected each once")
        return listed

    # Known in part, or not at all: what the rows say besides is a class too, as it is spelt most often.
    begun = labels.BEGINNINGS.get(benchmark or "", ())
    values = Counter(value for row in rows if row.value and (value := row.value.rstrip(" .")))
    known, spelt = _ClassMatcher(begun), dict[str, str]()
    for value, _ in values.most_common():
        if known.label(value) is None:
            spelt.setdefault(_key(value), value)

    inferred = (*begun, *(spelt[key] for key in sorted(spelt)))
    if not 2 <= len(inferred) <= MANY:
        shown = ", ".join(map(repr, list(spelt.values())[:4])) or rows[0].detail
        raise BenchmarkError(
            f"{spec.source} label={spec.label}: {len(inferred)} different values ({shown:.200}); expected 2 to {MANY} "
            "classes; narrow the rows by where, name a benchmark, or list the classes"
        )
    return inferred


def _key(value: str) -> str:
    return " ".join(unmarked(value.translate(APOSTROPHES)).casefold().split()).rstrip(" .")


def _bare(value: str) -> str:
    return " ".join(word for word in _key(value).split() if word not in FOLDER_WORDS) or _key(value)


class _ClassMatcher:
    """The class that a value of a source means: by its spelling, then by the canonical name, never by likeness."""

    def __init__(
        self, classes: Sequence[str], grades: Mapping[str, str] | None = None, sentences: bool = False
    ) -> None:
        self.classes, self.grades, self.sentences = tuple(classes), grades or {}, sentences
        self.spelt = {_key(name): name for name in classes}
        shared = Counter(map(_bare, classes))
        self.bare = {_bare(name): name for name in classes if shared[_bare(name)] == 1}
        canonical = Counter(map(labels.diagnosis, map(_key, classes)))
        self.named = {plain: name for name in classes if canonical[plain := labels.diagnosis(_key(name))] == 1}

    def label(self, value: str) -> str | None:
        """One of the classes; None where the value is none of them."""
        key = _key(value)
        label = self.grades.get(key) or self.spelt.get(key) or self.bare.get(_bare(value))
        label = label or self.named.get(labels.diagnosis(key))
        if label or not self.sentences:
            return label
        return match(value, self.classes).choice  # of a sentence such as "The tile shows no tumor."

    def of(self, row: Labelled) -> tuple[str | None, str]:
        """The label of a row, or why it has none."""
        if not row.value:
            return None, row.detail or "it has no label"
        label = self.label(row.value)
        return label, "" if label else f"{row.value!r:.120} is none of the classes"


def _check_classes(where: str, rows: Sequence[Labelled], matcher: _ClassMatcher, chosen: bool) -> None:
    """Stops where a list of classes is not that of the set: nothing that a set holds may silently go unscored.

    What the set does not say counts as little as a grade that its benchmark leaves out. Classes that a recipe chose may
    be some of the set's, but then each of them is there: one that is not was spelt otherwise.

    Raises:
        BenchmarkError: too many rows name a class that is none of the list, or not one class; the values are named.
    """
    named = [row for row in rows if row.value or row.detail.startswith(released_csv.NO_CLASS)]
    fitting = [matcher.of(row)[0] for row in named]
    others = Counter(
        repr(row.value) if row.value else row.detail.partition(": ")[2]
        for row, label in zip(named, fitting, strict=True)
        if label is None and not (matcher.grades and row.value in GRADES)
    )
    if others.total() > UNCLASSED * len(named) and not (chosen and {*matcher.classes} <= {*fitting}):
        shown = ", ".join(f"{value:.120} ({count})" for value, count in others.most_common(SHOWN))
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise BenchmarkError(
            f"{where}: {others.total()} of {len(named)} rows are of none of the classes {choices(matcher.classes)}: "
            f"{shown}{more}; expected at most {UNCLASSED:.0%}. Give the benchmark or the classes that the set has, or "
            "take these rows out of it"
        )


def _question(field: str, benchmark: str | None, classes: Sequence[str]) -> str | None:
    """What is asked of every image; None where each asks its own."""
    if field == ANSWER:
        return None
    if field.startswith(CONCEPT):
        return f"Does the image show this feature: {field.removeprefix(CONCEPT)}?"
    kind = labels.ASKED.get(benchmark or "", field)
    return QUESTIONS.get(kind, "Which of these fits the image: {classes}?").format(classes=choices(classes))


def _sample(row: Labelled, root: Path, matcher: _ClassMatcher) -> Sample:
    label, why = matcher.of(row)
    return Sample(row.example, root, label, why or row.detail)


def _merged(rows: Sequence[Labelled], root: Path, matcher: _ClassMatcher) -> list[Sample]:
    """One sample for each set of images that is shown, in the order in which they come."""
    sets: dict[tuple[str, ...], list[Labelled]] = defaultdict(list)
    for row in rows:
        sets[tuple(sorted(row.example.images)) or (row.example.id, "")].append(row)
    return [_agreed(same, root, matcher) for same in sets.values()]


def _agreed(rows: Sequence[Labelled], root: Path, matcher: _ClassMatcher) -> Sample:
    """The sample of rows that show the same images: the class that they agree on."""
    # A row that names no class comes last: others are asked about something else, and what is said of those tells more.
    samples = [_sample(row, root, matcher) for row in sorted(rows, key=lambda row: row.value is None)]
    labelled = {sample.label: sample for sample in samples if sample.label}
    sample = replace(next(iter(labelled.values()), samples[0]), example=rows[0].example)
    if len(labelled) > 1:
        return replace(sample, label=None, detail=f"conflicting-labels: {', '.join(sorted(map(str, labelled)))}")
    if not sample.example.images and not sample.detail:
        return replace(sample, label=None, detail="no-image: the conversation shows none")
    return sample


def _asking(sample: Sample, question: str | None, field: str) -> Example:
    """The sample's Example with the task's question as its last, and its class as the answer."""
    example = sample.example
    if question is None:
        return example
    answer = text("assistant", sample.label or "unknown")
    if field == ANSWER:  # what was said before may matter
        shown = sum(part["type"] == "image" for part in example.messages[-2]["content"])
        return replace(example, messages=(*example.messages[:-2], text("user", question, shown), answer))
    system = tuple(message for message in example.messages[:1] if message["role"] == "system")
    asked = text("user", question, len(example.images))
    facts = Facts(**{**asdict(example.facts), "kind": field})
    return replace(example, messages=(*system, asked, answer), facts=facts)
