"""lmms-eval's sample log, JSON lines, held to what lmms-eval 0.7.3 writes (`…_samples_<task>.jsonl`).

Its samples have no id of the dataset but a number, so that a log is matched by the order of rows and by its targets.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import xxhash

from skinvl.recipe.files import read_json_lines
from skinvl.score.exchange import ExchangeError, Logged, LoggedAnswer
from skinvl.score.metrics import exact_match
from skinvl.score.predictions import Answer, key

AGAIN = "expected a file that lmms-eval wrote with --log_samples for one generate_until task"


def content(name: str, settings: Mapping[str, Any], rows: Sequence[Answer], when: datetime) -> str:
    """A line for each row that was answered; the form has no word for one that could not be asked."""
    answered = [(number, row) for number, row in enumerate(rows) if row.answer is not None]
    return "".join(json.dumps(_line(number, row), ensure_ascii=False) + "\n" for number, row in answered)


def _line(number: int, row: Answer) -> dict[str, Any]:
    score, _ = exact_match.statistics(row.answer or "", row)
    return {
        "doc_id": number,
        "target": row.reference,
        "filtered_resps": row.answer or "",
        "token_counts": [{"output_tokens": row.tokens}],
        "doc_hash": xxhash.xxh3_128_hexdigest(
            "\n".join((key(row), row.question, row.reference)).encode(errors="replace")
        ),
        "exact_match_score": score,
        "input": row.question,
    }


def read(path: Path) -> Logged:
    """The samples of a log, by number.

    Raises:
        ExchangeError: it is no such log, or has several answers to a question.
    """
    if not path.is_file():
        raise ExchangeError(f"{path}: no such file; {AGAIN}")
    samples: dict[str | int, LoggedAnswer] = {}
    keys = ("doc_id", "target", "filtered_resps")
    for line, sample in enumerate(read_json_lines(path, AGAIN, ExchangeError, keys), 1):
        where, number, said = f"{path}:{line}", sample["doc_id"], sample["filtered_resps"]
        if isinstance(said, list) and len(said) == 1:
            said = said[0]
        if not isinstance(said, str):
            raise ExchangeError(f"{where}: filtered_resps is {said!r:.80}, not one answer in words; {AGAIN}")
        if type(number) is not int or number in samples:
            raise ExchangeError(f"{where}: doc_id {number!r} again, or no number; expected each sample once")
        counts = sample.get("token_counts")
        counted = counts[0] if isinstance(counts, list) and counts and isinstance(counts[0], dict) else {}
        tokens = counted.get("output_tokens")
        samples[number] = LoggedAnswer(
            where, _target(sample["target"]), said, "stop", tokens=tokens if isinstance(tokens, int) else 0
        )
    return Logged("unknown", samples)


def _target(text: object) -> str:
    """The reference, the first of several, which a log has as Python writes a list."""
    try:
        listed = ast.literal_eval(str(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return str(text)
    return str(listed[0]) if isinstance(listed, list) and listed else str(text)
