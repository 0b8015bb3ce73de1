"""DermaVQA: what patients asked online, with their photos, and what several doctors answered; closed questions on it.

Parts: `m3g`, `m3g-zh` and `m3g-es` are the queries and answers in English, Chinese and Spanish (MEDIQA-M3G 2024), `das`
the closed questions in English (DermaVQA-DAS, MEDIQA-MAGIC 2025). Expected, at any depth: JSON lists train*.json,
valid*.json and test*.json of queries (encounter_id, image_ids, query_title_en, query_content_en, responses with
author_id, content_en, completeness of 0, 0.5 or 1 and contains_freq_ans; other languages likewise); for `das` also
train_cvqa.json and its like (encounter_id and an option's number for each question) and
closedquestions_definitions*.json; the photos, by their names.

A query is one conversation with all photos of its encounter. Its answer is the most complete response, of several the
one that says what most say, of these the first; all responses are its references, weighted by their completeness. The
queries of the split train were written in Chinese, and a machine translated them.

The 27 closed questions are 9, some of them asked again for further sites: what is chosen for a question and its
repeats is one set. "Not mentioned" fills repeats that are not used, and is right only where nothing else is. An
Example's id is the encounter's with the part or the question: ENC00863-m3g, ENC00863-CQID011.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data_prep import SUFFIXES, Card, Photos, PrepError, Shard, find, is_text, llava, refuse_pointer, seeded
from skinvl.data.example import Dropped, Example, Facts, Reference, text
from skinvl.data.questions import Missing

CARD = Card(
    title="DermaVQA (MEDIQA-M3G 2024) and DermaVQA-DAS (MEDIQA-MAGIC 2025)",
    address="https://osf.io/p8bfu",
    licence="none stated (research only)",
    terms="The authors state no licence in their repositories: research use, never redistribute.",
    citation="Yim et al., DermaVQA: A Multilingual Visual Question Answering Dataset for Dermatology, MICCAI 2024; Yim "
    "et al., DermaVQA-DAS, 2025, arXiv 2512.24340",
    obtain="download the images from the address, and the queries of each split from osf.io/jgbtm, krj8g and y82bn; "
    "RAW holds train*.json, valid*.json and test*.json, for the part das also train_cvqa.json and its like and "
    "closedquestions_definitions*.json, and the photos IMG_<encounter>_<number>, all at any depth.",
    splits=("train", "validation", "test"),
    parts=("m3g", "m3g-zh", "m3g-es", "das"),
    released="sound",
    archive="dermavqa",
    by_name=True,
    published="2,945",
    use="research",
)

SPLITS = {"train": "train", "valid": "validation", "test": "test"}
LANGUAGES = {"m3g": "en", "m3g-zh": "zh", "m3g-es": "es", "das": "en"}
DEFINITIONS = "closedquestions_definitions*.json"
WITHDRAWN = re.compile(r"\[\s*(?:deleted|removed)(?:\s+by\s+\w+)?\s*\]", re.IGNORECASE)  # as Reddit has it
_TIMES = r"(?:\d+|one|two|three|four|several)(?: ?(?:to|or|-|–) ?(?:\d+|two|three|four))? times?"
DOSE = re.compile(
    r"\d ?(?:mg|mcg|[µμ]g|g|ml|iu|units?|mililitros?|miligramos?|gramos?)(?![a-z])|\d ?(?:毫克|微克|毫升|克|片|粒)"
    rf"|\b(?:once|twice|thrice|{_TIMES}) ?(?:a |per |each |every )?(?:day|daily|week|weekly|night)\b"
    r"|\bevery \d+ hours\b|\b[bqt]\.?i\.?d\b"
    r"|\b(?:una?|dos|tres|cuatro|\d+) ve(?:z|ces) (?:al|por|cada) (?:d[ií]a|semana)|\bcada \d+ horas\b"
    r"|[每一][日天晚周] ?[\d一二两三四] ?次|[\d一二两三四] ?次 ?[/每] ?[日天]",
    re.IGNORECASE,
)
QUESTIONS = {  # the kind of each closed question, by the part of its ids that its repeats share
    "CQID010": "extent",
    "CQID011": "site",
    "CQID012": "size",
    "CQID015": "onset",
    "CQID020": "morphology",
    "CQID025": "itch",
    "CQID034": "colour",
    "CQID035": "count",
    "CQID036": "texture",
}
FROM_TEXT = ("CQID015", "CQID025")  # what no photo shows: the patient's words belong to the question
NOT_MENTIONED = "not mentioned"
SEVERAL = ("Choose all that apply.", "Name every option that applies.")
SINGLE = ("Choose one option.", "Pick the option that fits.")


@dataclass(frozen=True, slots=True)
class Encounter:
    """A query as its file has it."""

    id: str
    images: tuple[str, ...]
    entry: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A closed question, and the ids of it and its repeats."""

    words: str
    options: tuple[str, ...]
    ids: tuple[str, ...]


def rows(raw: Path, part: str) -> int:
    """The queries; of `das` the encounters with closed questions times these."""
    each = len(QUESTIONS) if part == "das" else 1
    return sum(llava.count(path) for path in _files(raw, part == "das").values()) * each


def absent(raw: Path, part: str) -> list[str]:
    """What is said of the splits that have no file."""
    files = _files(raw, part == "das")
    like = "_cvqa.json" if part == "das" else "*.json"
    lacking = [f"{name}{like}" for name, split in SPLITS.items() if split not in files]
    return [f"no file {', '.join(lacking)}, so that its split has no rows"] if lacking else []


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
    """One conversation per query, or the nine closed questions of each encounter that has them.

    >>> import json, tempfile
    >>> replies = [("u1", "Scabies, perhaps.", 0.5, 0.0), ("u2", "It is scabies: use permethrin.", 1.0, 1.0)]
    >>> names = ("author_id", "content_en", "completeness", "contains_freq_ans")
    >>> query = {"encounter_id": "ENC1", "image_ids": ["IMG_ENC1_1.jpg", "IMG_ENC1_2.jpg"], "query_title_en": "Itch"}
    >>> query |= {"query_content_en": "What is it?", "responses": [dict(zip(names, reply)) for reply in replies]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "valid.json").write_text(json.dumps([query]))
    ...     (row,) = convert(Path(folder), "m3g")
    >>> row.id, row.group, row.split, row.images
    ('ENC1-m3g', 'ENC1', 'validation', ('IMG_ENC1_1.jpg', 'IMG_ENC1_2.jpg'))
    >>> [part["text"] for message in row.messages for part in message["content"]][2:]
    ['Itch\\n\\nWhat is it?', 'It is scabies: use permethrin.']
    >>> row.references[1]
    Reference(text='Scabies, perhaps.', weight=0.5, author='u1', completeness=0.5)
    """
    shard = shard or Shard()
    photos = Photos(raw, shard)
    if part == "das":
        yield from _closed(raw, photos, shard)
        return
    language = LANGUAGES[part]
    for split, path in _files(raw, False).items():
        for where, entry in llava.entries(path, shard):
            answered = _answered(entry, language)
            if isinstance(answered, Missing):
                yield Dropped(where, answered.rule, answered.detail)
                continue
            encounter, query, answers = answered
            best = answers[0]
            tags = ["machine-translated"] * (split == "train" and language != "zh")
            tags += ["incomplete-answer"] * (best.completeness is not None and best.completeness < 1)
            tags += ["dosage"] * any(answer.weight > 0 and DOSE.search(answer.text) for answer in answers)
            images, other_ending = _shown(photos, encounter)
            yield Example(
                id=f"{encounter.id}-{part}",
                source="dermavqa",
                images=images,
                messages=(text("user", query, images=len(images)), text("assistant", best.text)),
                group=encounter.id,
                split=split,
                licence=CARD.licence,
                facts=Facts(modality="clinical", kind="open"),
                tags=(*other_ending, *tags),
                references=answers if len(answers) > 1 else (),
            )


def _files(raw: Path, closed: bool) -> dict[str, Path]:
    """The one file of each split that there is, by split.

    Raises:
        PrepError: none at all, or several of a split.
    """
    files: dict[str, Path] = {}
    for path in sorted(raw.rglob("*.json")):
        split = next((split for name, split in SPLITS.items() if path.name.startswith(name)), None)
        if split is None or ("cvqa" in path.name) != closed:
            continue
        if split in files:
            raise PrepError(
                f"{raw}: {files[split].relative_to(raw)} and {path.relative_to(raw)} are both of the split {split}; "
                "leave one in RAW: of the test queries the corrected ones"
            )
        refuse_pointer(path)
        files[split] = path
    if not files:
        names = "train_cvqa.json or its like" if closed else "train*.json, valid*.json or test*.json"
        raise PrepError(f"{raw}: no file {names} in it or below it. How to get {CARD.title}: {CARD.obtain}")
    return {split: files[split] for split in SPLITS.values() if split in files}


def _words(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value.strip() if isinstance(value, str) and is_text(value) else ""


def _encounter(entry: object) -> Encounter | Missing:
    if not isinstance(entry, dict) or not (name := _words(entry, "encounter_id")):
        return Missing("no object with an encounter_id", "malformed")
    images = entry.get("image_ids")
    if not isinstance(images, list) or not all(isinstance(image, str) and is_text(image) for image in images):
        return Missing(f"image_ids is {images!r:.80}; expected a list of names", "malformed")
    if not images:
        return Missing("the encounter names no photo", "missing-image")
    return Encounter(name, tuple(images), entry)


def _answered(entry: object, language: str) -> tuple[Encounter, str, tuple[Reference, ...]] | Missing:
    """The encounter, what its patient wrote, and the answers."""
    if isinstance(encounter := _encounter(entry), Missing):
        return encounter
    if isinstance(query := _query(encounter, language), Missing):
        return query
    if isinstance(answers := _answers(encounter.entry, language), Missing):
        return answers
    return encounter, query, answers


def _query(encounter: Encounter, language: str) -> str | Missing:
    """What the patient wrote: the title, and what stands below it."""
    written = [_words(encounter.entry, f"query_{name}_{language}") for name in ("title", "content")]
    if withdrawn := next(filter(WITHDRAWN.fullmatch, written), None):
        return Missing(f"the query reads {withdrawn}", "withdrawn")
    query = "\n\n".join(dict.fromkeys(filter(None, written)))
    return query or Missing(f"no query_title_{language} and no query_content_{language}")


def _answers(entry: Mapping[str, Any], language: str) -> tuple[Reference, ...] | Missing:
    """The best answer, then the others in the order of the file."""
    responses = entry.get("responses") or []
    if not isinstance(responses, list) or not all(isinstance(response, dict) for response in responses):
        return Missing(f"responses is {responses!r:.80}; expected a list of objects", "malformed")
    answers, ranks = [], []
    for response in responses:
        words, complete = _words(response, f"content_{language}"), response.get("completeness")
        if not words or WITHDRAWN.fullmatch(words):  # which is no answer
            continue
        known = isinstance(complete, int | float) and 0 <= complete <= 1
        weight = float(complete) if known else 1.0
        author = _words(response, "author_id") or None
        answers.append(Reference(words, weight, author, weight if known else None))
        ranks.append((weight, known, response.get("contains_freq_ans") == 1))
    if not answers:
        return Missing(f"none of {len(responses)} responses has words in content_{language}", "no-answer")
    best = ranks.index(max(ranks))
    if answers[best].weight <= 0:
        return Missing(f"none of {len(responses)} responses answers the question: completeness is 0", "no-answer")
    return answers[best], *answers[:best], *answers[best + 1 :]


def _shown(photos: Photos, encounter: Encounter) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The photos, and a tag where one ends otherwise than its name; a name without an ending says nothing of it."""
    images, tags = photos.shown(*encounter.images)
    return images, tags if all(Path(name).suffix.lower() in SUFFIXES for name in encounter.images) else ()


# The closed questions.


def _closed(raw: Path, photos: Photos, shard: Shard) -> Iterator[Example | Dropped]:
    questions = _questions(find(raw, DEFINITIONS, CARD))
    encounters: dict[str, Encounter] = {}
    for path in _files(raw, False).values():
        for _, entry in llava.entries(path):
            if not isinstance(read := _encounter(entry), Missing):
                encounters.setdefault(read.id, read)
    for split, path in _files(raw, True).items():
        for where, entry in llava.entries(path, shard):
            name = _words(entry, "encounter_id") if isinstance(entry, dict) else ""
            if (encounter := encounters.get(name)) is None:
                detail = f"no query of the encounter {name!r:.60} names its photos"
                yield from (Dropped(f"{where} {parent}", "unknown-value", detail) for parent in questions)
                continue
            for parent, question in questions.items():
                made = _asked(encounter, entry, parent, question)
                if isinstance(made, Missing):
                    yield Dropped(f"{where} {parent}", made.rule, made.detail)
                    continue
                asked, right = made
                lines = _lines(question.options)
                images, tags = _shown(photos, encounter)
                if parent in FROM_TEXT:
                    tags = *tags, *["machine-translated"] * (split == "train"), "text-grounded"
                yield Example(
                    id=f"{encounter.id}-{parent}",
                    source="dermavqa",
                    images=images,
                    messages=(
                        text("user", "\n".join((asked, *lines)), images=len(images)),
                        text("assistant", "\n".join(lines[number] for number in right)),
                    ),
                    group=encounter.id,
                    split=split,
                    licence=CARD.licence,
                    facts=Facts(modality="clinical", kind=QUESTIONS[parent]),
                    tags=tags,
                    options=question.options,
                    right=right,
                )


def _lines(options: tuple[str, ...]) -> list[str]:
    return [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]


def _asked(
    encounter: Encounter, gold: Mapping[str, Any], parent: str, question: Question
) -> tuple[str, tuple[int, ...]] | Missing:
    """What is asked, before the options, and the numbers of the right ones."""
    numbers = set()
    for name in question.ids:
        if name not in gold:
            continue
        value = str(gold[name])
        if not re.fullmatch("[0-9]{1,3}", value) or int(value) >= len(question.options):
            expected = f"a number from 0 to {len(question.options) - 1}"
            return Missing(f"{name} is {gold[name]!r:.40}; expected {expected}", "malformed")
        numbers.add(int(value))
    if not numbers:
        return Missing(f"no option is given for {question.ids[0]}")
    padding = {number for number, option in enumerate(question.options) if option.casefold() == NOT_MENTIONED}
    right = tuple(sorted(numbers - padding or numbers))
    how = seeded("dermavqa", encounter.id, parent).choice(SEVERAL if len(question.ids) > 1 else SINGLE)
    asked = f"{question.words} {how}"
    if parent not in FROM_TEXT:
        return asked, right
    query = _query(encounter, LANGUAGES["das"])
    return query if isinstance(query, Missing) else (f"{query}\n\n{asked}", right)


def _questions(path: Path) -> dict[str, Question]:
    """The closed questions by the part of their ids that repeats share.

    Raises:
        PrepError: one of them is not defined, or not as expected.
    """
    questions: dict[str, Question] = {}
    for where, entry in llava.entries(path):
        name = _words(entry, "qid") if isinstance(entry, dict) else ""
        parent = name.partition("-")[0]
        if parent not in QUESTIONS:
            continue
        # A repeat is numbered: "2 Where is the affected area?".
        words = re.sub(r"^\d+[.)]?\s+", "", _words(entry, "question_en"))
        listed = entry.get("options_en")
        options = tuple(str(option).strip() for option in listed) if isinstance(listed, list) else ()
        earlier = questions.get(parent, Question(words, options, ()))
        sound = 2 <= len({*options}) == len(options) <= len(ascii_uppercase) and all(map(is_text, options))
        if not words or not sound or not all(options) or options != earlier.options:
            raise PrepError(
                f"{path.parent / where} {name}: question_en {words!r:.60} and options_en {listed!r:.120}; expected a "
                f"question, and 2 to {len(ascii_uppercase)} options, the same for all repeats of {parent}"
            )
        questions[parent] = Question(earlier.words, options, (*earlier.ids, name))
    if missing := [parent for parent in QUESTIONS if parent not in questions]:
        raise PrepError(f"{path}: no question {', '.join(missing)}; expected {', '.join(QUESTIONS)}. {CARD.obtain}")
    return {parent: questions[parent] for parent in QUESTIONS}
