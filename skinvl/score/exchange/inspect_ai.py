"""inspect_ai's eval log as JSON, version 2, held to what inspect_ai 0.3.285 writes and reads.

A sample's id is the row's source and id; images are not in it, and scores are what `inspect score` makes. Files that
end in .eval are archives, which `inspect log convert --to json` turns into this form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import xxhash

from skinvl.data.pages import short
from skinvl.recipe.files import read_json
from skinvl.score.exchange import ExchangeError, Logged, LoggedAnswer
from skinvl.score.metrics import right_answers
from skinvl.score.predictions import Answer, key

VERSION = 2
AGAIN = "expected a log of inspect_ai as JSON; make one with inspect log convert --to json"
ENDS: dict[str, Literal["stop", "length"]] = {"stop": "stop", "unknown": "stop"}  # by itself; all else was cut
KNOWN = ("kind", "modality", "diagnosis", "malignancy", "skin_type", "sex", "age", "site")


def content(name: str, settings: Mapping[str, Any], rows: Sequence[Answer], when: datetime) -> str:
    """The log of a set's answers."""
    named = settings.get("adapter") or settings.get("model") or settings.get("base") or "skinvl"
    model = f"none/{short(str(named)).removeprefix('…/')}"  # of the provider that inspect_ai has for no model at all
    time, told = when.isoformat(), json.dumps([name, model, len(rows)])
    spec = {
        **{f"{what}_id": xxhash.xxh3_128_hexdigest(f"{what} {told}".encode()) for what in ("eval", "run", "task")},
        **{"created": time, "task": name, "model": model, "config": {"epochs": 1}},
        "dataset": {"name": name, "samples": len(rows), "sample_ids": [key(row) for row in rows], "shuffled": False},
    }
    log = {
        **{"version": VERSION, "status": "success", "eval": spec, "plan": {"name": "plan", "steps": [], "config": {}}},
        "results": {
            "total_samples": len(rows),
            "completed_samples": sum(row.answer is not None for row in rows),
            "scores": [],
        },
        "stats": {"started_at": time, "completed_at": time, "model_usage": {}},
        "samples": [_sample(row, model) for row in rows],
    }
    return json.dumps(log, ensure_ascii=False, indent=1) + "\n"


def _sample(row: Answer, model: str) -> dict[str, Any]:
    targets = right_answers(row) or [row.reference]
    user = {"role": "user", "content": row.question}
    metadata = {"source": row.source, "group": row.group, "images": [Path(path).name for path in row.images]}
    metadata |= {fact: value for fact in KNOWN if (value := getattr(row.facts, fact)) is not None}
    common = {"id": key(row), "epoch": 1, "input": row.question, "metadata": metadata, "scores": {}}
    common |= {"target": targets[0] if len(targets) == 1 else list(targets)}
    common |= {"choices": list(row.options)} if row.options else {}
    if row.answer is None:
        error = {"message": short(row.detail), "traceback": "", "traceback_ansi": ""}
        return {**common, "messages": [user], "output": {"model": model, "choices": []}, "error": error}
    parts = [{"type": "reasoning", "reasoning": row.thought}] if row.thought else []
    said: Any = [*parts, {"type": "text", "text": row.answer}] if parts else row.answer
    assistant = {"role": "assistant", "content": said, "source": "generate", "model": model}
    choice = {"message": assistant, "stop_reason": "max_tokens" if row.finish_reason == "length" else "stop"}
    usage = {"input_tokens": 0, "output_tokens": row.tokens, "total_tokens": row.tokens}
    output = {"model": model, "choices": [choice], "completion": row.answer, "usage": usage}
    return {**common, "messages": [user, assistant], "output": output}


def read(path: Path) -> Logged:
    """The samples of a log, by id.

    Raises:
        ExchangeError: it is no such log, or has several answers to a question.
    """
    if path.suffix == ".eval":
        raise ExchangeError(f"{path}: an archive; {AGAIN}")
    log = read_json(path, AGAIN, ExchangeError, ("version", "status", "eval", "samples"))
    if log["version"] != VERSION or not isinstance(log["samples"], list):
        raise ExchangeError(f"{path}: version {log['version']!r} of a log; expected {VERSION}, with samples")
    samples: dict[str | int, LoggedAnswer] = {}
    for number, sample in enumerate(log["samples"]):
        where = f"{path}: samples[{number}]"
        try:
            name, answer = sample["id"], _answer(sample, where)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ExchangeError(
                f"{where}: not as inspect_ai has it ({type(error).__name__}: {error}); {AGAIN}"
            ) from error
        if str(name) in samples:
            raise ExchangeError(f"{where}: {name!r} again, in epoch {sample.get('epoch')}; expected one epoch")
        samples[str(name)] = answer
    return Logged(str(log["eval"].get("model", "unknown")), samples)


def _answer(sample: Mapping[str, Any], where: str) -> LoggedAnswer:
    target = sample["target"][0] if isinstance(sample["target"], list) and sample["target"] else sample["target"]
    target = target if isinstance(target, str) else None
    output = sample["output"]
    if sample.get("error") or not output.get("choices"):
        detail = (sample.get("error") or {}).get("message") or "no output"
        return LoggedAnswer(where, target, None, "refused", f"error-in-log: {detail}")
    choice = output["choices"][0]
    said = choice["message"]["content"]
    parts = [{"type": "text", "text": said}] if isinstance(said, str) else said
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    thought = "\n".join(part["reasoning"] for part in parts if part["type"] == "reasoning") or None
    tokens = int((output.get("usage") or {}).get("output_tokens") or 0)
    return LoggedAnswer(where, target, text, ENDS.get(choice["stop_reason"], "length"), "", tokens, thought)
