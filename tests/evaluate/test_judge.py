"""Claims judged by models behind a server on loopback: what is asked, paid for once, counted, and said of the judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers import faulty
from helpers.faulty import Asked, Said, completion, failure
from skinvl.data.example import Facts
from skinvl.evaluate import judge
from skinvl.score import judgements
from skinvl.score.judgements import VERDICTS, Judge, JudgedAnswer
from skinvl.score.predictions import Answer, PredictionJournal

SAID = "It is brown. Its border is blue; it hurts."
WORDS = {"brown": "supported", "blue": "contradicted", "hurts": "extra"}


def row(number: int, said: str | None = SAID, reference: str = "Brown, with a smooth red border.") -> Answer:
    facts = (("/a.png",), f"What is seen, case {number}?", reference, Facts(), said)
    return Answer(str(number), "s", f"g{number // 2}", *facts, "stop" if said else "refused", "", 9, 0)


def answered(run: Path, rows: Sequence[Answer]) -> Path:
    made = PredictionJournal(run / "eval" / "answers" / "drawn.jsonl", {}, Answer)
    made.begin()
    made.write(rows, 0)
    made.finish([f"s/{one.id}" for one in rows])
    return run


def claimed(asked: Asked) -> list[str]:
    text = asked.body["messages"][1]["content"].split("Claims of another answer:\n")[1].split("\n\n")[0]
    return text.splitlines()


def strict(asked: Asked) -> Said:
    found = [next((verdict for word, verdict in WORDS.items() if word in claim), "partly") for claim in claimed(asked)]
    return completion(json.dumps({"verdicts": found}))


def run(folder: Path, plan: Callable[[Asked], Said], *more: str) -> tuple[int, faulty.Faulty]:
    with faulty.running(plan) as server:
        code = judge.main([str(folder), "--model", "m", "--endpoint", server.address, "--resamples", "100", *more])
        return code, server


def numbers(folder: Path) -> dict[str, dict[str, object]]:
    block: dict[str, dict[str, object]] = json.loads((folder / "judge.json").read_text())["sets"]["drawn"]
    return block


def test_claims_are_judged_against_the_reference_and_every_number_says_by_whom(tmp_path: Path) -> None:
    rows = [*(row(number) for number in range(20)), row(20, None), row(21, "—"), row(22, reference="")]
    folder = answered(tmp_path / "run", rows)
    code, server = run(folder, strict)
    assert (code, len(server.requests)) == (0, 20)  # nothing is asked of what claims nothing, or has no reference
    prompt = server.requests[0].body["messages"][1]["content"]
    assert "Reference:\n- Brown, with a smooth red border." in prompt
    assert claimed(server.requests[0]) == ["1. It is brown.", "2. Its border is blue;", "3. it hurts."]
    block = json.loads((folder / "judge.json").read_text())["sets"]["drawn"]
    (of,) = block["judges"]
    assert (block["answers"], block["claims"], block["kappa"], of["unjudged"]) == (20, 60, None, {})
    shares = {name: number["value"] for name, number in of["numbers"].items()}
    assert shares == pytest.approx(
        {"supported": 1 / 3, "partly": 0, "contradicted": 1 / 3, "extra": 1 / 3, judgements.FREE: 0}
    )
    assert {number["groups"] for number in of["numbers"].values()} == {10}
    for number in of["numbers"].values():
        assert number["judge"].startswith("m (served as stub-1), prompt ")
        assert number["judge"].endswith(tuple("0123456789"))  # the day of its replies
    assert "m (served as stub-1), prompt" in (folder / "judge.md").read_text()


def test_what_was_judged_is_not_paid_for_again_and_a_budget_stops_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = answered(tmp_path / "run", [row(number) for number in range(12)])
    code, first = run(folder, strict, "--max-requests", "5", "--concurrency", "1")
    assert (code, len(first.requests)) == (1, 5)
    assert "5" in capsys.readouterr().err
    assert not (folder / "judge.json").exists()  # no number of a part
    code, second = run(folder, strict)
    assert (code, len(second.requests)) == (0, 7)
    code, third = run(folder, strict)
    assert (code, len(third.requests)) == (0, 0)
    code, other = run(folder, strict, "--temperature", "0")  # another way of asking is another judgement
    assert (code, len(other.requests)) == (0, 12)


def test_two_judges_judge_the_same_claims_and_kappa_tells_how_far_they_agree(tmp_path: Path) -> None:
    folder = answered(tmp_path / "run", [row(number) for number in range(20)])

    def lenient(asked: Asked) -> Said:
        if asked.body["model"] == "m":
            return strict(asked)
        return completion(json.dumps({"verdicts": ["supported" for _ in claimed(asked)]}))

    assert run(folder, lenient, "--second-model", "n")[0] == 0
    block = json.loads((folder / "judge.json").read_text())["sets"]["drawn"]
    assert [of["numbers"]["supported"]["value"] for of in block["judges"]] == pytest.approx([1 / 3, 1])
    assert block["kappa"]["value"] == pytest.approx(0)  # one of them says the same of all
    assert "; n (served" in block["kappa"]["judge"]
    # The twin: judges who say the same have a κ of 1.
    other = answered(tmp_path / "other", [row(number) for number in range(20)])
    assert run(other, strict, "--second-model", "n")[0] == 0
    assert json.loads((other / "judge.json").read_text())["sets"]["drawn"]["kappa"]["value"] == 1


def test_what_a_judge_refuses_or_garbles_is_counted_and_in_no_share(tmp_path: Path) -> None:
    folder = answered(tmp_path / "run", [row(number) for number in range(20)])

    def moody(asked: Asked) -> Said:
        number = int(asked.body["messages"][1]["content"].split("case ")[1].split("?")[0])
        if number == 0:
            return failure(400, "no")
        if number == 1:
            return completion(json.dumps({"verdicts": ["supported"]}))  # of three claims
        if number == 2:
            return completion("", finish="content_filter")
        return strict(asked)

    assert run(folder, moody)[0] == 0
    (of,) = json.loads((folder / "judge.json").read_text())["sets"]["drawn"]["judges"]
    assert of["unjudged"] == {"refusal": 1, "request-refused": 1, "unreadable-reply": 1}
    assert (of["numbers"]["supported"]["n"], of["numbers"]["supported"]["unscored"]) == (51, 9)
    assert (of["numbers"][judgements.FREE]["n"], of["numbers"][judgements.FREE]["unscored"]) == (17, 3)


def test_verdicts_are_read_strictly() -> None:
    assert judge.verdicts('Well: {"verdicts": ["extra", "partly"]}', 2) == ("extra", "partly")
    for reply in ('{"verdicts": ["extra"]}', '{"verdicts": ["extra", "true"]}', '{"verdicts": "extra"}', "extra", "[]"):
        assert judge.verdicts(reply, 2) is None


def test_nothing_is_asked_that_was_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(judge.JudgeError, match=r"no answer with a reference to judge; make some with skinvl generate"):
        judge.main([str(tmp_path), "--model", "m", "--endpoint", "http://127.0.0.1:9/v1"])
    for words in (["run"], ["run", "--model", "m"], ["run", "--model", "m", "--endpoint", "x", "--second-model", "m"]):
        with pytest.raises(SystemExit):
            judge.main(words)


def test_a_group_is_taken_whole() -> None:
    one = Judge("m", ("m",), "0" * 32, ("2026-01-01", "2026-01-02"))
    alike = [JudgedAnswer(row(number), ("a", "b"), ((VERDICTS[number // 2 % 2],) * 2,), ("",)) for number in range(40)]
    apart = [JudgedAnswer(row(number), ("a", "b"), (VERDICTS[:2],), ("",)) for number in range(40)]
    widths = []
    for judged in (alike, apart):
        number = judgements.block(judged, [one], 100, 0)["judges"][0]["numbers"]["supported"]
        assert number["value"] == 0.5
        widths.append(number["high"] - number["low"])
    assert widths[0] > 0.3
    assert one.label == "m, prompt 000000000000, 2026-01-01 to 2026-01-02"
