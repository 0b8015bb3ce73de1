"""Logs of other evaluations: what they write, by hand as their packages have it, and a way there and back."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from skinvl.data.example import Facts, Reference
from skinvl.score import exchange, score
from skinvl.score.exchange import ExchangeError
from skinvl.score.predictions import Answer, read


def row(number: int, answer: str | None, **changes: Any) -> Answer:
    finish: Any = "stop" if answer is not None else "refused"
    detail = "" if answer is not None else "missing-image: /home/someone/a.jpg"
    made = Answer(
        **{"id": f"r{number}", "source": "demo", "group": f"g{number // 2}", "images": ("/home/someone/a.jpg",)},
        **{
            "question": f"Question {number}?",
            "reference": f"Reference {number}",
            "facts": Facts(kind="site", age=40.0),
        },
        **{"answer": answer, "finish_reason": finish, "detail": detail, "tokens": 3, "seed": 0},
    )
    return replace(made, **changes)


ROWS = [
    row(0, "Reference 0"),
    row(1, "No", thought="hmm", finish_reason="length"),
    row(2, None),
    row(3, "", references=(Reference("Reference 3"), Reference("Another"))),
    row(4, "B", options=("x", "y"), right=(1,)),
    row(5, "größer\n\"quoted\"", reference="Größer"),
]  # fmt: skip


def put(run: Path, rows: list[Answer], name: str = "demo") -> Path:
    path = run / "eval/answers" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in rows))
    path.with_suffix(".json").write_text(json.dumps({"base": "/home/someone/bases/tiny"}))
    return path


def numbers(run: Path) -> dict[str, Any]:
    score.main([str(run), "--resamples", "100", "--workers", "1"])
    return dict(json.loads((run / "scores.json").read_text())["sets"]["demo"]["answers"]["metrics"])


@pytest.mark.parametrize("form", exchange.names())
def test_answers_go_there_and_back_and_score_the_same(tmp_path: Path, form: str) -> None:
    run, log, back = tmp_path / "run", tmp_path / "log.json", tmp_path / "back"
    path = put(run, ROWS)
    assert score.main([str(run), "--export", form, str(log)]) == 0
    assert score.main([str(path), "--take", form, str(log), str(back)]) == 0
    settings, rows = read(back / "eval/answers/demo.jsonl", Answer)
    assert settings["engine"] == form
    assert [one.answer for one in rows] == [one.answer for one in ROWS]
    assert [one.reference for one in rows] == [one.reference for one in ROWS]
    assert numbers(back) == numbers(run)
    assert "/home/someone" not in log.read_text()
    with pytest.raises(ExchangeError, match="is there already"):
        exchange.take(form, run, log, back)
    # Twins: another answer in the log is another number, and another reference is refused.
    text = log.read_text()
    log.write_text(text.replace("größer", "kleiner"))
    exchange.take(form, run, log, tmp_path / "changed")
    assert numbers(tmp_path / "changed") != numbers(run)
    log.write_text(text.replace('"Reference 0"', '"Reference 9"'))
    with pytest.raises(ExchangeError, match="but demo/r0 has the reference 'Reference 0'"):
        exchange.take(form, run, log, tmp_path / "other")


# As inspect_ai 0.3.285 writes a log, what we do not read left out.
INSPECT: dict[str, Any] = {
    **{"version": 2, "status": "success", "eval": {"model": "mockllm/model", "task": "demo"}},
    "samples": [
        {"id": "demo/r0", "epoch": 1, "input": "Question 0?", "target": "Reference 0",
         "output": {"model": "m", "choices": [{"message": {"content": "Yes it is", "role": "assistant"},
                                              "stop_reason": "stop"}], "completion": "Yes it is"}, "scores": {}},
        {"id": "r1", "epoch": 1, "input": "Question 1?", "target": ["Reference 1", "No"],
         "output": {"model": "m", "usage": {"output_tokens": 7}, "choices": [{
             "message": {"role": "assistant", "content": [{"type": "reasoning", "reasoning": "hmm", "redacted": False},
                                                          {"type": "text", "text": "No"}]},
             "stop_reason": "max_tokens"}]}},
        {"id": "demo/r2", "epoch": 1, "input": "Question 2?", "target": "Reference 2",
         "output": {"model": "m", "choices": [], "completion": ""},
         "error": {"message": "ValueError('no image')", "traceback": "", "traceback_ansi": ""}},
    ],
}  # fmt: skip


def test_a_log_of_inspect_is_read_as_it_is_written(tmp_path: Path) -> None:
    put(tmp_path, ROWS)
    log = tmp_path / "log.json"
    log.write_text(json.dumps(INSPECT))
    assert "3 of them" not in exchange.take("inspect_ai", tmp_path, log, tmp_path / "a")
    settings, rows = read(tmp_path / "a/eval/answers/demo.jsonl", Answer)
    assert settings["model"] == "mockllm/model"
    assert [one.answer for one in rows] == ["Yes it is", "No", None, None, None, None]
    assert (rows[1].finish_reason, rows[1].thought, rows[1].tokens) == ("length", "hmm", 7)
    assert rows[2].detail == "error-in-log: ValueError('no image')"
    assert rows[3].detail == "not-in-log: log.json"
    assert rows[0].group == "g0"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 1}, "version 1 of a log; expected 2"),
        ({"samples": [INSPECT["samples"][0]] * 2}, r"samples\[1\]: 'demo/r0' again, in epoch 1"),
        ({"samples": [{**INSPECT["samples"][0], "id": "x"}]}, r"samples\[0\]: sample 'x' is none of the 6 rows"),
        ({"samples": [{**INSPECT["samples"][0], "target": "y"}]}, "the target is 'y', but demo/r0 has the reference"),
        ({"samples": [{"id": "demo/r0"}]}, r"samples\[0\]: not as inspect_ai has it \(KeyError: 'target'\)"),
    ],
)
def test_what_is_no_log_of_the_questions_is_refused(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    put(tmp_path, ROWS)
    log = tmp_path / "log.json"
    log.write_text(json.dumps({**INSPECT, **change}))
    with pytest.raises(ExchangeError, match=fault):
        exchange.take("inspect_ai", tmp_path, log, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ExchangeError, match=r"an archive; .* --to json"):
        exchange.take("inspect_ai", tmp_path, tmp_path / "log.eval", tmp_path / "a")


# As lmms-eval 0.7.3 writes samples: an answer, one that a filter changed, and those of likelihoods.
LMMS = [
    {"doc_id": 0, "target": "Reference 0", "filtered_resps": "Yes it is", "token_counts": [None], "doc_hash": "h",
     "exact_match": 0.0, "input": "Question 0?"},
    {"doc_id": 3, "target": "['Reference 3', 'Another']", "resps": ["No <think>"], "filtered_resps": "No",
     "token_counts": [{"output_tokens": 5}], "doc_hash": "h", "exact_match": 1.0, "input": "Question 3?"},
]  # fmt: skip
LIKELIHOODS = {"doc_id": 1, "target": "x", "filtered_resps": [["-1.0", "True"], ["-2.0", "False"]], "input": "?"}


def test_a_log_of_lmms_eval_is_read_as_it_is_written(tmp_path: Path) -> None:
    put(tmp_path, ROWS)
    log = tmp_path / "samples.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in LMMS))
    assert "4 of them without an answer" in exchange.take("lmms_eval", tmp_path, log, tmp_path / "a")
    _, rows = read(tmp_path / "a/eval/answers/demo.jsonl", Answer)
    assert [one.answer for one in rows] == ["Yes it is", None, None, "No", None, None]
    assert rows[3].tokens == 5
    for line, fault in (
        (LIKELIHOODS, r"samples.jsonl:3: filtered_resps is .*, not one answer in words"),
        (LMMS[0], r"samples.jsonl:3: doc_id 0 again"),
        ({**LMMS[0], "doc_id": 9}, r"samples.jsonl:3: sample 9 is none of the 6 rows"),
        ({**LMMS[0], "doc_id": 1}, "has the reference 'Reference 1'"),
        ({"doc_id": 4}, "samples.jsonl:3: no target, filtered_resps"),
    ):
        log.write_text("".join(json.dumps(one) + "\n" for one in (*LMMS, line)))
        with pytest.raises(ExchangeError, match=fault):
            exchange.take("lmms_eval", tmp_path, log, tmp_path / "b")


def test_forms_and_sets_must_be_there(tmp_path: Path) -> None:
    put(tmp_path, ROWS)
    with pytest.raises(ExchangeError, match=r"inspect: no form of logs; did you mean inspect_ai\?"):
        exchange.export("inspect", tmp_path, tmp_path / "x")
    put(tmp_path, ROWS, "other")
    with pytest.raises(ExchangeError, match=r"2 sets of answers \(demo.jsonl, other.jsonl\)"):
        exchange.export("inspect_ai", tmp_path, tmp_path / "x")
    with pytest.raises(ExchangeError, match="no answers"):
        exchange.export("inspect_ai", tmp_path / "none", tmp_path / "x")
    with pytest.raises(SystemExit):
        score.main([str(tmp_path), "--export", "inspect_ai", "x", "--readings", "y"])
