"""DermaSynth: questions and answers that language models wrote about images of open dermatology sets, and texts alone.

A part is read from the folder of its name in RAW, or from RAW itself where no folder has the name of a part. `response`
has one JSON object per image: image_id, image_path, and q1_general_ and q2_dataset_ question, response and prompt. A
response is a model's own text, mostly a fenced JSON object with `answer`, and with `question` for the question type
Creativity; the types stand in request files api_requests*.json, where these lie in RAW. `vqa` has one JSON object per
figure: image_id, image_path, api_response (text as above, or an object) with `qa_pairs` of numbered keys, or with one
`qa_pair`, which is of the authors' benchmark: split test. The other parts are tables with COLUMNS, as Parquet, JSON
list or JSON lines: `self_instruct`, `knowledge` and `mcq` of text alone, and `eval1`, Parquet only, with the images
within, named `FILE.parquet#ROW`. `mcq` and `eval1` are benchmarks: split test, whatever the hub calls theirs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data_prep import Card, Photos, PrepError, Shard, digest, is_text, llava, refuse_pointer, taken
from skinvl.data import reply_json
from skinvl.data.example import Dropped, Example, Facts, text
from skinvl.data.labels import diagnosis

CARD = Card(
    title="DermaSynth",
    address="https://huggingface.co/datasets/abdurrahimyilmaz/DermaSynth",
    licence="CC-BY-NC-4.0",
    terms="Research and other non-commercial use, with attribution; the images keep the licences of their own sets.",
    citation="Yilmaz et al., DermaSynth: Rich Synthetic Image-Text Pairs Using Open Access Dermatology Datasets, 2025, "
    "arXiv 2502.00196",
    obtain="RAW holds a folder for each part (response, vqa, self_instruct, knowledge, eval1, mcq) with the files of "
    "that part, or is itself the folder of one part; the images lie in RAW at any depth, under their names in "
    "image_path, but those of eval1 within its Parquet files.",
    splits=("train", "test"),
    parts=("response", "vqa", "self_instruct", "knowledge", "eval1", "mcq"),
    archive="dermasynth",
    by_name=True,
    released="sound",
    published="45,205",
    use="non-commercial",
)

SLOTS = {"q1_general": "q1_general", "q2_dataset": "q2_dataset_specific"}  # prefix in a response, key in a request
COLUMNS = {
    "self_instruct": ("instruction", "input", "output", "is_classification"),
    "knowledge": ("disease_name", "question", "answer"),
    "eval1": ("question", "answer", "img_path"),
    "mcq": ("question", "choices", "answer"),
}
ENDINGS = {"response": (".json",), "vqa": (".json",), "eval1": (".parquet",)}  # the other parts are tables of any kind
REQUESTS = "api_requests"  # how the names of request files begin
NO_INPUT = ("", "<noinput>")
LETTERED = re.compile(r"\(?([A-Z])[.):]+\s*")  # how a choice or an answer may begin
ASKS_FOR_QUESTION = '"<question>"'  # stands in the prompts of the type Creativity, which show the form of the response
OPEN, CLOSED = Facts(kind="open"), Facts(kind="closed")
Fault = tuple[str, str]  # the rule that drops a row, and what was found


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer; `key` tells it from the others of its part."""

    key: tuple[str, ...]
    question: str
    answer: str
    group: str
    image: str | None = None
    split: str = "train"
    facts: Facts = OPEN


def rows(raw: Path, part: str) -> int:
    """Two for each response, one for each pair of a figure (one where there is none), the records of the tables."""
    files = _files(raw, part)
    if part == "response":
        return len(files) * len(SLOTS)
    return sum(len(_figure(_object(path))) if part == "vqa" else llava.count(path) for path in files)


def convert(raw: Path, part: str, shard: Shard | None = None) -> Iterator[Example | Dropped]:
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
    photos = Photos(raw, shard) if part in ("response", "vqa") else None
    if shard and shard.images and not photos:
        raise PrepError(
            f"--images {shard.images}: {part} names no images to look for; leave it out, or name other parts"
        )
    types = _types(raw) if part == "response" else {}
    for where, exchange in _exchanges(raw, part, types, shard or Shard()):
        if isinstance(exchange, Exchange) and not (exchange.question and exchange.answer):
            exchange = "empty", "no question" if exchange.answer else "no answer"
        if isinstance(exchange, tuple):
            yield Dropped(where, *exchange)
            continue
        name = f"{part}-{digest(*exchange.key)}"
        shown: tuple[str, ...] = (exchange.image,) if exchange.image else ()
        tags: tuple[str, ...] = ()
        if photos and exchange.image:  # the path is of another machine
            shown, tags = photos.shown(exchange.image.strip().replace("\\", "/").lstrip("/"))
        messages = text("user", exchange.question, images=len(shown)), text("assistant", exchange.answer)
        yield Example(
            *(name, "dermasynth", shown, messages, exchange.group, exchange.split, CARD.licence, exchange.facts, tags)
        )


def _files(raw: Path, part: str) -> list[Path]:
    """The part's files, in the order of their paths."""
    folders = [name for name in CARD.parts if (raw / name).is_dir()]
    if folders and part not in folders:
        raise PrepError(f"{raw}: no folder {part}; found {', '.join(folders)}. How to get {CARD.title}: {CARD.obtain}")
    endings = ENDINGS.get(part, (".json", ".jsonl", ".parquet"))
    within = sorted((raw / part if folders else raw).rglob("*"))
    files = [path for path in within if path.suffix in endings and not path.name.startswith(REQUESTS)]
    if not files:
        raise PrepError(f"{raw}: no {' or '.join(endings)} file of {part}. How to get them: {CARD.obtain}")
    return files


def _exchanges(raw: Path, part: str, types: Mapping[Any, str], shard: Shard) -> Iterator[tuple[str, Exchange | Fault]]:
    """(where, what was read there) of the records that the shard takes."""
    if part in ("response", "vqa"):
        for path in taken(_files(raw, part), shard):
            entry, where = _object(path), path.relative_to(raw).as_posix()
            if part == "response":
                yield from ((f"{where} {prefix}", _response(entry, prefix, types)) for prefix in SLOTS)
            else:
                yield from ((f"{where} {number}", exchange) for number, exchange in enumerate(_figure(entry), start=1))
        return
    expected = frozenset(COLUMNS[part])
    for path in _files(raw, part):
        refuse_pointer(path)
        before = shard.record + 1
        for where, record in llava.entries(path, shard):
            if not isinstance(record, dict) or not expected <= record.keys():
                raise _no_record(where, record, COLUMNS[part])
            if part == "eval1":
                yield where, _pictured(record, f"{path.relative_to(raw).as_posix()}#{shard.record - before}")
            else:
                yield where, READERS[part](record)


def _no_record(where: str, record: object, columns: Sequence[str]) -> PrepError:
    keys = list(record) if isinstance(record, dict) else []
    missing = ", ".join(name for name in columns if name not in keys)
    listed = ", ".join(name if name.isprintable() else ascii(name) for name in keys) or f"{record!r:.60}"
    return PrepError(f"{where}: no {missing}; found {listed}; expected {', '.join(columns)}")


def _object(path: Path) -> Mapping[str, Any] | Fault:
    """The JSON object in a file, with a text for image_id and for image_path."""
    refuse_pointer(path)
    try:
        entry = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return "malformed", f"not JSON in UTF-8: {error}"
    if not isinstance(entry, dict) or not all(_text(entry.get(name)) for name in ("image_id", "image_path")):
        return "malformed", "no object with a text for image_id and for image_path"
    return entry


def _text(value: object) -> str:
    """The text, or nothing; half of a surrogate pair is no text, since no file can hold it."""
    return value.strip() if isinstance(value, str) and is_text(value) else ""


def _reply(response: object) -> Mapping[str, Any]:
    """What a model answered as JSON, its last object where there are several; empty where that cannot be read."""
    value = reply_json.last_object(response) if isinstance(response, str) else response
    return value if isinstance(value, dict) else {}


def _response(entry: Mapping[str, Any] | Fault, prefix: str, types: Mapping[Any, str]) -> Exchange | Fault:
    if isinstance(entry, tuple):
        return entry
    stored, prompt, response = (entry.get(f"{prefix}_{name}") for name in ("question", "prompt", "response"))
    reply = _reply(response)
    if not (answer := _text(reply.get("answer"))):
        return "unparsable-answer", f"no JSON object with an answer: {response!r:.120}"
    image, question = entry["image_id"].strip(), _text(stored)
    kind = types.get((image, prefix, question)) or ("creativity" if ASKS_FOR_QUESTION in _text(prompt) else "open")
    if kind == "creativity" or (kind == "open" and not prompt and "question" in reply):
        question = _text(reply.get("question"))
        if not question:
            return "unparsable-answer", "a question of the type Creativity was asked for, and none was given"
    return Exchange((image, prefix, question), question, answer, image, entry["image_path"], facts=Facts(kind=kind))


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


def _figure(entry: Mapping[str, Any] | Fault) -> list[Exchange | Fault]:
    """What was asked about a figure, at least one exchange or the reason why there is none."""
    if isinstance(entry, tuple):
        return [entry]
    reply = _reply(entry.get("api_response"))
    if isinstance(pairs := reply.get("qa_pairs"), list) and pairs:
        return [_numbered(entry, pair) for pair in pairs]
    if isinstance(pair := reply.get("qa_pair"), dict):
        return [_benchmark(entry, pair)]
    return [("unparsable-answer", f"neither qa_pairs nor qa_pair: {entry.get('api_response')!r:.120}")]


def _numbered(entry: Mapping[str, Any], pair: object) -> Exchange | Fault:
    fields = pair if isinstance(pair, dict) else {}
    keys = sorted(key for key in fields if re.fullmatch(r"(question|answer)(_\d+)?", key))
    if [key.partition("_")[0] for key in keys] != ["answer", "question"] or keys[0][6:] != keys[1][8:]:
        return "malformed", f"{pair!r:.120}; expected question_1 and answer_1, or another number"
    return _of_figure(entry, fields[keys[1]], fields[keys[0]], "open", "train")


def _benchmark(entry: Mapping[str, Any], pair: Mapping[str, Any]) -> Exchange | Fault:
    if (options := pair.get("options")) is None:
        return _of_figure(entry, pair.get("question"), pair.get("answer"), "open", "test")
    if (answer := _lettered(options, pair.get("correct_answer"))) is None:
        return "malformed", f"{pair!r:.200}; expected options by letter, and one of the letters as correct_answer"
    return _of_figure(entry, _listed(pair.get("question"), answer[0]), answer[1], "closed", "test")


def _listed(question: object, choices: str) -> str:
    return f"{_text(question)}\n{choices}" if _text(question) else ""


def _lettered(choices: object, answer: object) -> tuple[str, str] | None:
    """The choices as lines `A. text`, and that of the answer, which is a letter, a text, both, or a number from 0."""
    # Every choice with its letter, which it may also hold itself.
    if isinstance(choices, list) and len(choices) <= len(ascii_uppercase):
        choices = dict(zip(ascii_uppercase, choices, strict=False))
    # Parquet gives every record the keys of all records.
    filled = {key: option for key, option in choices.items() if option is not None} if isinstance(choices, dict) else {}
    options = {str(key).strip(" ().:").upper(): _text(option) for key, option in filled.items()}
    if not 2 <= len(options) == len(filled) or not all(options) or not all(options.values()):
        return None
    marks = {key: LETTERED.match(option) for key, option in options.items()}
    if all(mark and mark[1] == key for key, mark in marks.items()):  # all of them: one alone may be "C. albicans"
        options = {key: LETTERED.sub("", option, count=1) for key, option in options.items()}
    lines = [f"{key}. {option}" for key, option in options.items()]

    # The one line that the answer means.
    answer_text = str(answer) if isinstance(answer, int) else _text(answer)
    forms = {answer_text.casefold(), LETTERED.sub(r"\1. ", answer_text, count=1).casefold()}
    matches = [
        line
        for line, (key, option) in zip(lines, options.items(), strict=True)
        if forms & {line.casefold(), option.casefold()} or answer_text.strip(" ().:").upper() == key
    ]
    if not matches and re.fullmatch("[0-9]{1,2}", answer_text):
        matches = lines[int(answer_text) :][:1]
    return ("\n".join(lines), matches[0]) if len(matches) == 1 else None


def _of_figure(entry: Mapping[str, Any], question: object, answer: object, kind: str, split: str) -> Exchange:
    image, asked = entry["image_id"].strip(), _text(question)
    return Exchange((image, asked), asked, _text(answer), image, entry["image_path"], split, Facts(kind=kind))


@lru_cache(maxsize=4096)
def _about(disease: str) -> Facts:
    return Facts(diagnosis=diagnosis(disease) or None, kind="open")


def _fact(record: Mapping[str, Any]) -> Exchange:
    question, facts = _text(record["question"]), _about(_text(record["disease_name"]))
    return Exchange((question,), question, _text(record["answer"]), f"knowledge {question}", facts=facts)


def _task(record: Mapping[str, Any]) -> Exchange:
    task, input_text = _text(record["instruction"]), _text(record["input"])
    question = task if input_text.casefold() in NO_INPUT else f"{task}\n\n{input_text}"
    facts = CLOSED if str(record["is_classification"]).casefold() == "true" else OPEN
    return Exchange(
        (question,), question if task else "", _text(record["output"]), f"self_instruct {task}", facts=facts
    )


def _choice(record: Mapping[str, Any]) -> Exchange | Fault:
    if (answer := _lettered(record["choices"], record["answer"])) is None:
        detail = f"choices {record['choices']!r:.200} and answer {record['answer']!r:.80}"
        return "unparsable-answer", f"{detail}; expected two or more texts, and the letter, number or text of one"
    question = _listed(record["question"], answer[0])
    return Exchange((question,), question, answer[1], f"mcq {_text(record['question'])}", split="test", facts=CLOSED)


def _pictured(record: Mapping[str, Any], image: str) -> Exchange | Fault:
    """What was asked in a record that holds an image; equal images are one group."""
    cell = record["img_path"]
    data = cell.get("bytes") if isinstance(cell, dict) else None
    if not data or not isinstance(data, bytes):
        return "missing-image", f"{image} holds no bytes of an image"
    group, question = hashlib.sha256(data).hexdigest(), _text(record["question"])
    return Exchange((group, question), question, _text(record["answer"]), group, image, "test", OPEN)


READERS: Mapping[str, Callable[[Mapping[str, Any]], Exchange | Fault]]
READERS = {"self_instruct": _task, "knowledge": _fact, "mcq": _choice}
