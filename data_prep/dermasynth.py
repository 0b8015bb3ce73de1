"""DermaSynth: questions and answers that language models wrote about images of open dermatology sets, and texts alone.

A part is read from the folder of its name in RAW, or from RAW itself where no folder has the name of a part. `response`
has one JSON object per image: image_id, image_path, and q1_general_ and q2_dataset_ question, response and prompt. A
response is a model's own text, mostly a fenced JSON object with `answer`, and with `question` for the question type
Creativity; the types stand in request files api_requests*.json, where these lie in RAW. `vqa` has one JSON object per
figure: image_id, image_path, api_response (text as above, or an object) with `qa_pairs` of numbered keys, or with one
`qa_pair`, which is of the authors' benchmark: split test. `self_instruct` and `knowledge` are tables with COLUMNS, as
Parquet, JSON list or JSON lines. The hub set eval1 is left out: RAW must hold images as files, not within a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep import Card, PrepError, digest, llava, photos, refuse_pointer
from skinvl.example import Dropped, Example, Facts, text
from skinvl.labels import diagnosis

CARD = Card(
    title="DermaSynth",
    address="https://huggingface.co/datasets/abdurrahimyilmaz/DermaSynth",
    licence="CC-BY-NC-4.0",
    terms="Research and other non-commercial use, with attribution; the images keep the licences of their own sets.",
    citation="Yilmaz et al., DermaSynth: Rich Synthetic Image-Text Pairs Using Open Access Dermatology Datasets, 2025, "
    "arXiv 2502.00196",
    obtain="RAW holds a folder for each part (response, vqa, self_instruct, knowledge) with the files of that part, "
    "or is itself the folder of one part; the images lie in RAW at any depth, under their names in image_path.",
    splits=("train", "test"),
    parts=("response", "vqa", "self_instruct", "knowledge"),
)

SLOTS = {"q1_general": "q1_general", "q2_dataset": "q2_dataset_specific"}  # prefix in a response, key in a request
COLUMNS = {
    "self_instruct": ("instruction", "input", "output", "is_classification"),
    "knowledge": ("disease_name", "question", "answer"),
}
REQUESTS = "api_requests"  # how the names of request files begin
NO_INPUT = ("", "<noinput>")
FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL | re.IGNORECASE)
ASKS_FOR_QUESTION = '"<question>"'  # stands in the prompts of the type Creativity, which show the form of the response
Fault = tuple[str, str]  # the rule that drops a row, and what was found


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer; `key` tells it from the others of its part."""

    key: tuple[str, ...]
    question: str
    answer: str
    group: str
    image: str | None = None
    split: str = "train"
    facts: Facts = field(default_factory=Facts)


def rows(raw: Path, part: str) -> int:
    """Two for each response, one for each pair of a figure (one where there is none), the records of the tables."""
    files = _files(raw, part)
    if part == "response":
        return len(files) * len(SLOTS)
    return sum(len(_figure(_object(path))) if part == "vqa" else llava.count(path) for path in files)


def convert(raw: Path, part: str) -> Iterator[Example | Dropped]:
    """One conversation per question.

    >>> import tempfile
    >>> entry = {"image_id": "ISIC_1", "image_path": "ham/ISIC_1.jpg", "q1_general_question": "What is seen?"}
    >>> entry |= {"q1_general_response": '```json {"answer": "A brown macule."} ```', "q2_dataset_response": "Sorry."}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "ISIC_1_response.json").write_text(json.dumps(entry))
    ...     row, dropped = convert(Path(folder), "response")
    >>> row.id, row.images, row.group, row.split, row.facts.kind
    ('response-32c7447a01d5c5d8', ('ham/ISIC_1.jpg',), 'ISIC_1', 'train', 'open')
    >>> [turn["content"][-1]["text"] for turn in row.messages]
    ['What is seen?', 'A brown macule.']
    >>> dropped.row, dropped.rule, dropped.detail
    ('ISIC_1_response.json q2_dataset', 'unparsable-answer', "no JSON object with an answer: 'Sorry.'")
    """
    images = photos(raw) if part in ("response", "vqa") else {}
    types = _types(raw) if part == "response" else {}
    first: dict[str, str] = {}
    for path in _files(raw, part):
        for where, pair in _read(path, path.relative_to(raw).as_posix(), part, types):
            name = f"{part}-{digest(*pair.key)}" if isinstance(pair, Pair) else ""
            if isinstance(pair, Pair) and not (pair.question and pair.answer):
                pair = "empty", "no question" if pair.answer else "no answer"
            elif name in first:
                pair = "duplicate", f"repeats {first[name]}"
            if isinstance(pair, tuple):
                yield Dropped(where, *pair)
                continue
            first[name] = where
            shown = (_placed(pair.image, images),) if pair.image else ()
            turns = text("user", pair.question, images=len(shown)), text("assistant", pair.answer)
            yield Example(name, "dermasynth", shown, turns, pair.group, pair.split, CARD.licence, pair.facts)


def _files(raw: Path, part: str) -> list[Path]:
    """The part's files, in the order of their paths; each has its content."""
    folders = [name for name in CARD.parts if (raw / name).is_dir()]
    if folders and part not in folders:
        raise PrepError(f"{raw}: no folder {part}; found {', '.join(folders)}. How to get {CARD.title}: {CARD.obtain}")
    suffixes = {".json"} if part in ("response", "vqa") else {".json", ".jsonl", ".parquet"}
    within = sorted((raw / part if folders else raw).rglob("*"))
    found = [path for path in within if path.suffix in suffixes and not path.name.startswith(REQUESTS)]
    if not found:
        raise PrepError(f"{raw}: no {' or '.join(sorted(suffixes))} file of {part}. How to get them: {CARD.obtain}")
    for path in found:
        refuse_pointer(path)
    return found


def _read(path: Path, where: str, part: str, types: Mapping[Any, str]) -> Iterator[tuple[str, Pair | Fault]]:
    if part == "response":
        entry = _object(path)
        yield from ((f"{where} {prefix}", _response(entry, prefix, types)) for prefix in SLOTS)
    elif part == "vqa":
        yield from ((f"{where} {number}", pair) for number, pair in enumerate(_figure(_object(path)), start=1))
    else:
        yield from ((place, _told(place, record, part)) for place, record in llava.entries(path))


def _object(path: Path) -> Mapping[str, Any] | Fault:
    """The JSON object in a file, with a text for image_id and for image_path."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return "malformed", f"not JSON in UTF-8: {error}"
    if not isinstance(entry, dict) or not all(_text(entry.get(name)) for name in ("image_id", "image_path")):
        return "malformed", "no object with a text for image_id and for image_path"
    return entry


def _text(value: object) -> str:
    """The text, or nothing; half of a surrogate pair is no text, since no file can hold it."""
    return value.strip() if isinstance(value, str) and not llava.LONE_SURROGATE.search(value) else ""


def _reply(said: object) -> Mapping[str, Any]:
    """What a model answered as JSON, fenced or not; empty where that cannot be read."""
    if isinstance(said, str):
        fenced = FENCED.search(said)
        try:
            said = json.loads(fenced[1] if fenced else said, strict=False)  # models leave line breaks in strings
        except (ValueError, RecursionError):
            return {}
    return said if isinstance(said, dict) else {}


def _response(entry: Mapping[str, Any] | Fault, prefix: str, types: Mapping[Any, str]) -> Pair | Fault:
    if isinstance(entry, tuple):
        return entry
    stored, prompt, said = (entry.get(f"{prefix}_{name}") for name in ("question", "prompt", "response"))
    reply = _reply(said)
    if not (answer := _text(reply.get("answer"))):
        return "unparsable-answer", f"no JSON object with an answer: {said!r:.120}"
    image, question = entry["image_id"].strip(), _text(stored)
    kind = types.get((image, prefix, question)) or ("creativity" if ASKS_FOR_QUESTION in _text(prompt) else "open")
    if kind == "creativity" or (kind == "open" and not prompt and "question" in reply):
        question = _text(reply.get("question"))
        if not question:
            return "unparsable-answer", "a question of the type Creativity was asked for, and none was given"
    return Pair((image, prefix, question), question, answer, image, entry["image_path"], facts=Facts(kind=kind))


def _types(raw: Path) -> dict[tuple[str, str, str], str]:
    """The question's type by image, slot and question, of the request files."""
    types: dict[tuple[str, str, str], str] = {}
    for path in sorted(raw.rglob(f"{REQUESTS}*.json")):
        refuse_pointer(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
            for request in data["requests"] if isinstance(data, dict) else data:
                for prefix, key in SLOTS.items():
                    if key in request:  # requests about figures of papers have none
                        asked, name = request[key]["question"].strip(), request[key]["question_type"]
                        types[request["image_id"], prefix, asked] = name.casefold()
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            expected = f"image_id, {', '.join(SLOTS.values())} (each question_type and question) in each of `requests`"
            raise PrepError(f"{path}: {type(error).__name__} {error}; expected {expected}") from error
    return types


def _figure(entry: Mapping[str, Any] | Fault) -> list[Pair | Fault]:
    """The pairs of a figure, at least one or the reason why there is none."""
    if isinstance(entry, tuple):
        return [entry]
    reply = _reply(entry.get("api_response"))
    if isinstance(pairs := reply.get("qa_pairs"), list) and pairs:
        return [_numbered(entry, pair) for pair in pairs]
    if isinstance(pair := reply.get("qa_pair"), dict):
        return [_benchmark(entry, pair)]
    return [("unparsable-answer", f"neither qa_pairs nor qa_pair: {entry.get('api_response')!r:.120}")]


def _numbered(entry: Mapping[str, Any], pair: object) -> Pair | Fault:
    found = pair if isinstance(pair, dict) else {}
    keys = sorted(key for key in found if re.fullmatch(r"(question|answer)(_\d+)?", key))
    if [key.partition("_")[0] for key in keys] != ["answer", "question"] or keys[0][6:] != keys[1][8:]:
        return "malformed", f"{pair!r:.120}; expected question_1 and answer_1, or another number"
    return _of_figure(entry, found[keys[1]], found[keys[0]], "open", "train")


def _benchmark(entry: Mapping[str, Any], pair: Mapping[str, Any]) -> Pair | Fault:
    if (options := pair.get("options")) is None:
        return _of_figure(entry, pair.get("question"), pair.get("answer"), "open", "test")
    letter = _text(pair.get("correct_answer")).rstrip(".):").upper()
    if not isinstance(options, dict) or letter not in options or not all(map(_text, options.values())):
        return "malformed", f"{pair!r:.200}; expected options by letter, and one of the letters as correct_answer"
    listed = "\n".join(f"{key}. {_text(option)}" for key, option in options.items())
    question = f"{_text(pair.get('question'))}\n{listed}" if _text(pair.get("question")) else ""
    return _of_figure(entry, question, f"{letter}. {_text(options[letter])}", "closed", "test")


def _of_figure(entry: Mapping[str, Any], question: object, answer: object, kind: str, split: str) -> Pair:
    image, asked = entry["image_id"].strip(), _text(question)
    return Pair((image, asked), asked, _text(answer), image, entry["image_path"], split, Facts(kind=kind))


def _told(where: str, record: object, part: str) -> Pair | Fault:
    """The pair of a table's record, which has no image."""
    found = record if isinstance(record, dict) else {}
    if missing := [name for name in COLUMNS[part] if name not in found]:
        listed = ", ".join(map(str, found)) or f"{record!r:.60}"
        raise PrepError(f"{where}: no {', '.join(missing)}; found {listed}; expected {', '.join(COLUMNS[part])}")
    if part == "knowledge":
        question, answer = _text(found["question"]), _text(found["answer"])
        disease = diagnosis(_text(found["disease_name"])) or None
        return Pair((question,), question, answer, f"knowledge {question}", facts=Facts(diagnosis=disease, kind="open"))
    task, given, answer = (_text(found[name]) for name in ("instruction", "input", "output"))
    question = task if given.casefold() in NO_INPUT else f"{task}\n\n{given}"
    kind = "closed" if str(found["is_classification"]).casefold() == "true" else "open"
    return Pair((question,), question if task else "", answer, f"self_instruct {task}", facts=Facts(kind=kind))


def _placed(path: str, images: Mapping[str, Sequence[str]]) -> str:
    """The image in RAW whose path ends most like the given one, which comes from another machine; else that one."""
    given = path.strip().replace("\\", "/").lstrip("/")
    parts = given.split("/")[::-1]
    same = [each for each in images.get(PurePosixPath(given).stem, ()) if each.split("/")[-1] == parts[0]]
    return max(same, key=lambda each: [*map(eq, each.split("/")[::-1], parts)], default=given)
