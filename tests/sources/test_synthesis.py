"""Journals become a prepared source: every request is an Example or a row of the ledger, and again with no request."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.synthesised import KNOWN, SAID, prepared, reply
from skinvl.data.example import read, splits, words, write
from skinvl.data.source import read_card, read_images
from skinvl.sources.asking import journal
from skinvl.sources.asking.journal import Journal
from skinvl.sources.asking.outcomes import Outcomes
from skinvl.sources.asking.request import Failure, Outcome, Reply, Request
from skinvl.sources.reading.verification import verification
from skinvl.sources.synthesis import programme
from skinvl.sources.synthesis.job import RequestAccount, SynthesisError, SynthesisJob, refuse
from skinvl.sources.synthesis.output import assemble, checks, unanswered
from skinvl.sources.synthesis.programme import Unit
from skinvl.sources.synthesis.units import Share


def made(tmp_path: Path, name: str = "dermasynth", **changes: Any) -> SynthesisJob:
    source = tmp_path / "source"
    if not source.exists():
        prepared(source)
    job = SynthesisJob(programme.load(name), source, tmp_path / "out", Share(), 0, "m", "768 px")
    return replace(job, **changes)


def answer(job: SynthesisJob, outcome: Callable[[Unit, Request], Outcome | None]) -> list[tuple[Unit, Request]]:
    """Every request of the job; the journal holds what the function gives for each."""
    job.journals.mkdir(parents=True, exist_ok=True)
    asked = [(unit, request) for unit, requests in job.requests() for request in requests]
    with Journal(job.journal) as file:
        for unit, request in asked:
            if (found := outcome(unit, request)) and request.id not in file.ids:
                file.append(request.id, found)
    return asked


def assembled(job: SynthesisJob, **given: Any) -> RequestAccount:
    with Outcomes(job.out, journal.read(job.journals)) as outcomes:
        return assemble(job, outcomes, **given)


def plain(_: Unit, request: Request) -> Reply:
    return reply() if request.question else reply({"question": "What colour is the patch?", "answer": SAID})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_replies_become_examples_of_the_images_they_are_about(tmp_path: Path) -> None:
    job = made(tmp_path)
    asked = answer(job, plain)
    account = assembled(job)
    assert account.requests == account.rows == len(asked) == 8
    assert account.examples == {"train": 6, "test": 2}
    assert (account.prompt_tokens, account.completion_tokens, account.images) == (7200, 640, 4)
    found = {example.id: example for split in splits(job.out) for example in read(job.out, split)}
    assert set(found) == {request.id for _, request in asked}
    for unit, request in asked:
        one = found[request.id]
        assert one.images == (unit.image,)
        assert (one.group, one.split, one.source) == (unit.group, unit.split, "drawn-dermasynth")
        assert one.facts == replace(KNOWN, kind=request.kind)
        assert words(one.messages[0]) == (request.question or "What colour is the patch?")
        assert words(one.messages[1]) == SAID
        assert one.licence == "CC-BY-4.0"


def test_out_is_a_source_like_any_other(tmp_path: Path) -> None:
    job = made(tmp_path, terms="Apache-2.0")
    answer(job, plain)
    assembled(job)
    assert {path.name for path in job.out.iterdir() if path.name[0] != "."} == {
        *("train.parquet", "test.parquet", "images", "images.parquet", "card.json"),
        *("ledger.jsonl", "synthesis.jsonl", "journal"),
    }
    images = read_images(job.out)
    assert images.equals(read_images(job.source))
    for path in images["path"].to_pylist():
        assert (job.out / path).samefile(job.source / path)  # a link takes no room
    card = read_card(job.out)
    assert card["split"] == "group"
    assert card["citation"] == "Nobody 2026"
    assert card["licence"] == read(job.out, "train")[0].licence == "CC-BY-4.0, Apache-2.0"
    assert card["rows"] == sum(card["examples"].values()) + sum(card["ledger"].values()) == 8
    assert card["synthesis"]["model"] == "m"
    assert card["synthesis"]["terms"] == "Apache-2.0"


@pytest.mark.slow
def test_the_datasets_library_reads_out(tmp_path: Path) -> None:
    from datasets import load_dataset

    job = made(tmp_path)
    answer(job, plain)
    assembled(job)
    found = load_dataset("parquet", data_files=str(job.out / "train.parquet"), split="train")
    assert len(found) == 6
    assert found[0]["messages"][0]["content"][0]["type"] == "image"


def test_every_request_without_an_answer_has_a_reason(tmp_path: Path) -> None:
    job = made(tmp_path)
    rest: list[Outcome | None] = [
        None,
        Failure("request-refused", "400: too large", 1),
        reply("Too short."),
        Reply("no JSON at all", "m", "stop", 9, 9, 0.0),
        reply(f"{SAID} The patient is 63 years old."),
        Reply('{"answer": "cut', "m", "length", 9, 99, 0.0),
        reply("I'm sorry, but I can't help with that request, since it asks for a medical judgement of a picture."),
    ]
    order = iter(rest)

    def outcome(unit: Unit, request: Request) -> Outcome | None:
        return next(order) if request.question else plain(unit, request)

    while True:  # a seed with which all are asked the same way: by a question that is given
        asked = [request for _, requests in job.requests() for request in requests]
        if all(request.question for request in asked[:7]) and asked[2].kind != "lesion":
            break
        job = replace(job, seed=job.seed + 1)
    order = iter([*rest, reply()])
    answer(job, outcome)
    account = assembled(job)
    assert account.requests == account.rows == 8
    assert account.ledger == {
        **{"unanswered": 1, "request-refused": 1, "too-short": 1, "unparsable": 2, "leaks-context": 1, "refusal": 1}
    }
    ledger = lines(job.out / "ledger.jsonl")
    assert [row["rule"] for row in ledger] == [
        *("unanswered", "request-refused", "too-short", "unparsable", "leaks-context", "unparsable", "refusal"),
    ]
    assert ledger[1]["detail"] == "400: too large"
    for row, request in zip(ledger, asked, strict=False):
        assert row["row"] == f"{request.unit} {request.slot} {request.id}"


def test_a_record_says_how_a_pair_came_about(tmp_path: Path) -> None:
    job = made(tmp_path, seed=5, terms="Qwen licence")
    asked = answer(job, lambda u, r: plain(u, r) if u.id != "images/1.jpg" else Failure("request-failed", "503", 6))
    account = assembled(job)
    records = {line["request"]: line for line in lines(job.out / "synthesis.jsonl")}
    assert len(records) == account.rows == 8
    for unit, request in asked:
        line = records[request.id]
        assert line["prompt"] == request.prompt
        assert line["context"] == dict(request.context)
        assert (line["image"], line["slot"], line["kind"]) == (unit.image, request.slot, request.kind)
        assert (line["programme"], line["version"], line["seed"], line["asked"]) == ("dermasynth", 1, 5, "m")
        assert line["terms"] == "Qwen licence"
        if unit.id == "images/1.jpg":
            assert (line["id"], line["rule"], line["detail"], line["reply"]) == (None, "request-failed", "503", None)
            assert line["attempts"] == 6
            continue
        assert line["id"] == request.id
        assert (line["rule"], line["model"], line["created"]) == (None, "m-2026", 1_760_000_000.5)
        assert (line["prompt_tokens"], line["completion_tokens"], line["finish"]) == (900, 80, "stop")
        assert json.loads(line["reply"])["answer"] == line["answer"] == SAID


def test_a_reply_of_several_pairs_gives_as_many_rows(tmp_path: Path) -> None:
    job = made(tmp_path, "caption_vqa")
    rows = [row for row in read(job.source, "train") if row.images]
    write(job.source, "train", [replace(row, id=f"caption-{row.id}") for row in rows])  # of 3 images; 1 is without
    pairs = [{"question": f"What is seen in part {n}?", "answer": SAID} for n in (1, 2)]
    short = {"question": "What is seen in part 3?", "answer": "Skin"}

    def outcome(unit: Unit, _: Request) -> Reply:
        return reply({"pairs": [] if unit.id == "images/0.jpg" else [*pairs, short]})

    asked = answer(job, outcome)
    account = assembled(job)
    assert (account.requests, account.silent, len(asked)) == (3, 1, 3)
    assert account.examples == {"train": 4}
    assert account.ledger == {"no-pairs": 1, "too-short": 2}
    ids = [example.id for example in read(job.out, "train")]
    assert ids == [f"{request.id}-{n}" for unit, request in asked if unit.id != "images/0.jpg" for n in (1, 2)]
    assert account.prompt_tokens == 2700  # once for a request


TASKS = ["Name three causes of itching in old age.", "Explain what a biopsy shows.", "Compare two kinds of eczema."]


def told(task: str) -> dict[str, str]:
    return {"question": task, "answer": "It depends on the patient, the history and on what an examination shows."}


def test_tasks_that_say_the_same_are_kept_once(tmp_path: Path) -> None:
    job = made(tmp_path, "self_instruct", share=Share(count=3), terms="Apache-2.0")
    pairs = [[told(TASKS[0]), told(TASKS[1])], [told(TASKS[0].upper())], [told(TASKS[2])]]
    order = iter(pairs)
    answer(job, lambda *_: reply({"pairs": next(order)}))
    account = assembled(job)
    assert account.examples == {"train": 3}
    assert account.ledger == {"near-duplicate": 1}
    assert account.images == 0
    examples = read(job.out, "train")
    assert {example.images for example in examples} == {()}
    assert {example.licence for example in examples} == {"Apache-2.0"}  # of seeds alone; nothing of the source is in it
    assert len({example.group for example in examples}) == 2
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> Any:
        asked.extend(texts)
        return np.ones((len(texts), 2))

    assert assembled(job, embed=embed).ledger == {"near-duplicate": 3}
    assert asked == [TASKS[0], TASKS[1], TASKS[0].upper(), TASKS[2]]


def test_the_same_about_an_image_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    slot = "{name: NAME, prompts: [{name: p, kind: overview, questions: [What is seen here]}]}"
    path.write_text(
        f"version: 1\nunit: image\nsystem: x\nprompt: '{{{{ question }}}} {{{{ form }}}}'\n"
        f"slots:\n  - {slot.replace('NAME', 'a')}\n  - {slot.replace('NAME', 'b')}\n"
    )
    job = made(tmp_path, str(path))
    answer(job, lambda _, r: reply(SAID if r.slot == "a" else SAID.replace("There is a", "there is THE")))
    account = assembled(job)
    assert account.examples.total() == 4  # the same words about another image are no repetition
    assert account.ledger == {"near-duplicate": 4}


def test_a_second_model_has_the_last_word(tmp_path: Path) -> None:
    job = made(tmp_path, verifier="judge")
    asked = answer(job, plain)
    with Outcomes(job.out, journal.read(job.journals)) as outcomes:
        wanted = list(checks(job, outcomes))
        assert unanswered(job, outcomes) == len(wanted) == 8
    verdicts: list[Outcome] = [
        *(reply({"supported": "yes", "reason": "fine"}) for _ in range(4)),
        reply({"supported": "no", "reason": "The border is even."}),
        reply({"supported": "unsure", "reason": "Blurred."}),
        Failure("request-failed", "503"),
    ]
    with Journal(job.journal) as file:
        for request, one in zip(wanted, verdicts, strict=False):
            file.append(request.id, one)
    with Outcomes(job.out, journal.read(job.journals)) as outcomes:
        assert unanswered(job, outcomes) == 1
    account = assembled(job)
    assert account.examples.total() == 7
    assert account.ledger == {"unsupported": 1}
    assert account.tags["unverified"] == 3
    assert account.verdicts == {"yes": 4, "no": 1, "unsure": 1}
    assert account.prompt_tokens == 7200  # of what was written; the journal has those of checking
    records = lines(job.out / "synthesis.jsonl")
    assert records[4]["verdict"] == {"supported": "no", "reason": "The border is even."}
    assert (records[4]["rule"], records[4]["detail"]) == ("unsupported", "The border is even.")
    assert records[5]["tags"][-1] == "unverified"
    assert records[6]["verdict"] is None
    assert read_card(job.out)["synthesis"]["verifier"] == "judge"
    first = verification(asked[0][1], wanted_pair(asked[0][1]), "judge")
    assert first.id == wanted[0].id
    without = assembled(replace(job, verifier=None))
    assert without.examples.total() == 8


def wanted_pair(request: Request) -> Any:
    from skinvl.sources.reading.replies import QAPair

    return QAPair(request.question or "What colour is the patch?", SAID)


def test_a_reply_outlives_a_failure_and_the_first_of_several_counts(tmp_path: Path) -> None:
    first, second = reply("first"), reply("second")
    found = [("0a" * 16, Failure("a", "b")), ("0a" * 16, first), ("0a" * 16, second), ("0a" * 16, Failure("c", "d"))]
    with Outcomes(tmp_path, found) as outcomes:
        assert len(outcomes) == 1
        assert outcomes.get("0a" * 16) == first
        assert outcomes.get("0b" * 16) is None
    assert list(tmp_path.iterdir()) == []


def digests(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_out_is_made_again_of_the_journals_alone(tmp_path: Path) -> None:
    job = made(tmp_path)
    answer(job, plain)
    assembled(job)
    before = digests(job.out)
    for name in ("train.parquet", "images.parquet", "card.json"):
        (job.out / name).unlink()
    (job.out / "old.parquet").write_bytes((job.out / "test.parquet").read_bytes())
    (job.out / "images" / "left.jpg").write_bytes(b"of an older source")
    assembled(job)
    assert digests(job.out) == before


def test_what_is_killed_while_out_is_made_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    job = made(tmp_path)
    answer(job, plain)
    assembled(job)
    before = digests(job.out)
    rename = Path.rename
    for last in range(1, 7):
        done = Counter[str]()

        def killed(self: Path, target: Path, last: int = last, done: Counter[str] = done) -> Path:
            done["renamed"] += 1
            if done["renamed"] == last:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                assembled(job)
        assert not (job.out / "card.json").exists()  # so that it does not pass for whole
        if splits(job.out):
            assert (job.out / "images.parquet").exists()
        assembled(job)
        assert digests(job.out) == before


def test_an_older_out_stays_while_its_successor_fails(tmp_path: Path) -> None:
    job = made(tmp_path)
    answer(job, plain)
    assembled(job)
    before = digests(job.out)
    (job.source / "images" / "2.jpg").rename(tmp_path / "away.jpg")
    with pytest.raises(SynthesisError, match=r"images/2\.jpg: gone since it was asked about; put it back"):
        assembled(job)
    assert {path: one for path, one in digests(job.out).items() if not path.startswith(".partial")} == before


def test_images_are_copied_where_links_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", link)
    job = made(tmp_path)
    answer(job, plain)
    assembled(job)
    image = "images/0.jpg"
    assert (job.out / image).read_bytes() == (job.source / image).read_bytes()
    assert not (job.out / image).samefile(job.source / image)


def test_shards_make_what_one_process_makes(tmp_path: Path) -> None:
    whole = made(tmp_path)
    answer(whole, plain)
    assembled(whole)
    parts = [
        replace(whole, out=tmp_path / "shards", share=replace(whole.share, index=index, of=3)) for index in range(3)
    ]
    for number, part in enumerate(parts):
        answer(part, plain)
        with Outcomes(part.out, journal.read(part.journals)) as outcomes:
            assert (unanswered(part, outcomes) == 0) == (number == 2)
    assert {path.name for path in parts[0].journals.iterdir()} == {"0-of-3.jsonl", "1-of-3.jsonl", "2-of-3.jsonl"}
    assembled(parts[1])
    one, other = digests(whole.out), digests(parts[0].out)
    assert {k: v for k, v in one.items() if "journal" not in k} == {
        k: v for k, v in other.items() if "journal" not in k
    }


def test_nothing_takes_the_place_of_an_older_out(tmp_path: Path) -> None:
    job = made(tmp_path)
    answer(job, plain)
    assembled(job)
    before = digests(job.out)
    with pytest.raises(SynthesisError, match="none of these 8 requests has an outcome; give the programme, model"):
        assembled(replace(job, seed=1))
    with pytest.raises(SynthesisError, match="no prompt of caption_vqa fits what is known of its 4 images, such as a"):
        assembled(replace(job, programme=programme.load("caption_vqa")))
    assert {path: one for path, one in digests(job.out).items() if not path.startswith(".partial")} == before


def test_replies_to_other_settings_are_left_alone(tmp_path: Path) -> None:
    job = made(tmp_path)
    answer(job, plain)
    asked = {request.id for _, requests in job.requests() for request in requests}
    other = replace(job, seed=1)
    answer(replace(other, share=Share(limit=1)), plain)
    account = assembled(other)
    assert account.ledger == {"unanswered": 6}
    assert account.examples.total() == 2
    assert not {line["request"] for line in lines(job.out / "synthesis.jsonl")} & asked
    assert pq.read_table(job.out / "images.parquet").num_rows == 1


def test_half_a_surrogate_in_a_reply_stops_nothing(tmp_path: Path) -> None:
    job = made(tmp_path)
    bad = Reply('{"question": "What is \\ud800 here?", "answer": "A patch \\udfff of skin."}', "m", "stop", 1, 1, 0.0)
    answer(job, lambda u, r: bad if r.slot == "general" else plain(u, r))
    account = assembled(job)
    assert account.rows == 8
    assert account.examples.total() == 4


def test_out_is_refused_where_something_else_is(tmp_path: Path) -> None:
    source = prepared(tmp_path / "source")
    refuse(source, tmp_path / "new")
    (tmp_path / "out" / "journal").mkdir(parents=True)
    refuse(source, tmp_path / "out")
    for bad in (source, source / "within", tmp_path):
        with pytest.raises(SynthesisError, match="lie in one another"):
            refuse(source, bad)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(SynthesisError, match=r"no OUT of skinvl synth \(it holds thesis\.tex"):
        refuse(source, tmp_path / "other")
    with pytest.raises(SynthesisError, match="a file"):
        refuse(source, tmp_path / "other" / "thesis.tex")
