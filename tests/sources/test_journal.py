"""The journal: what was handed to it is there, whatever happens to the process; what is not its own is told."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from skinvl.sources.asking import journal
from skinvl.sources.asking.journal import Ids, Journal, JournalError, Spent, read
from skinvl.sources.asking.request import Failure, Outcome, Reply

REPLY = Reply('{"answer": "ein Fleck\n – braun"}', "stub-1", "stop", 300, 20, 1.5, 2)
FAILURE = Failure("request-refused", "400: too long", 1)


def id_of(number: int) -> str:
    return f"{number:032x}"


def filled(folder: Path, *numbers: int, name: str = "0-of-1") -> Path:
    with Journal(folder / f"{name}.jsonl") as one:
        for number in numbers:
            one.append(id_of(number), FAILURE if number % 2 else REPLY)
    return folder / f"{name}.jsonl"


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "journal", 0, 1)
    found: list[tuple[str, Outcome]] = list(read(path.parent))
    assert found == [(id_of(0), REPLY), (id_of(1), FAILURE)]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "id": id_of(0),
        "reply": {
            "text": REPLY.text, "model": "stub-1", "finish": "stop", "prompt_tokens": 300, "completion_tokens": 20,
            "created": 1.5, "attempts": 2,
        },
    }  # fmt: skip
    assert json.loads(lines[1])["failure"]["rule"] == "request-refused"


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path = filled(tmp_path, 0, 1, 2)
    with Journal(path) as one:
        assert id_of(1) in one.ids
        assert id_of(3) not in one.ids
        assert one.spent == Spent(2, 600, 40, 300, 20)
        assert one.spent.tokens == 640
        one.append(id_of(4), Reply("", "m", "stop", 700, 1, 0.0))
        assert one.spent == Spent(3, 1300, 41, 700, 20)
        one.append(id_of(6), Reply("", "m", "stop", 1, 2, 0.0))
        assert one.spent == Spent(4, 1301, 43, 700, 20)
    assert [id for id, _ in read(tmp_path)] == [id_of(number) for number in (0, 1, 2, 4, 6)]


def test_a_line_is_with_the_system_before_sync(tmp_path: Path) -> None:
    with Journal(tmp_path / "0-of-1.jsonl") as one:
        one.append(id_of(0), REPLY)
        assert [id for id, _ in read(tmp_path)] == [id_of(0)]


def test_no_id_has_two_outcomes(tmp_path: Path) -> None:
    path = filled(tmp_path, 0)
    with Journal(path) as one, pytest.raises(JournalError, match="has an outcome already"):
        one.append(id_of(0), REPLY)
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("size", [1, 50, 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, size: int) -> None:
    path = filled(tmp_path, 0, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + (b'{"id":"' + b"0" * 200_000)[:size])
    assert len(list(read(tmp_path))) == 2
    with Journal(path) as one:
        assert path.read_bytes() == whole
        one.append(id_of(2), REPLY)
    assert [id for id, _ in read(tmp_path)] == [id_of(0), id_of(1), id_of(2)]


def test_a_journal_that_is_one_torn_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "0-of-1.jsonl").write_bytes(b'{"id')
    assert len(filled(tmp_path, 7).read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        *(b"\0\0\0\n", b"[]\n", b"{}\n", b'{"id": 5}\n', b'{"id": "12", "failure": {"rule": "a", "detail": "b"}}\n'),
        b'{"id": "%s", "reply": {"words": ""}}\n' % (b"0" * 32),
    ],
)
def test_a_line_of_another_kind_is_named(tmp_path: Path, line: bytes) -> None:
    path = filled(tmp_path, 0)
    path.write_bytes(path.read_bytes() + line + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"0-of-1.jsonl:2 not a line of a journal .*restore the file, or delete"):
        Journal(path)
    with pytest.raises(JournalError, match=":2 "):
        list(read(tmp_path))
    assert path.read_bytes() == before


def test_there_is_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "0-of-1.jsonl"
    with Journal(path):
        with pytest.raises(JournalError, match="another skinvl synth writes to it"):
            Journal(path)
        with Journal(tmp_path / "1-of-2.jsonl"):  # a shard of its own
            pass
    with Journal(path):  # free again
        pass


def test_what_any_shard_has_is_known(tmp_path: Path) -> None:
    filled(tmp_path, 0, 1, name="0-of-1")
    with Journal(tmp_path / "1-of-2.jsonl") as one:
        assert id_of(0) in one.ids
        assert one.spent == Spent()  # each shard pays for itself
        with pytest.raises(JournalError):
            one.append(id_of(1), REPLY)


def test_an_id_of_two_shards_is_read_once(tmp_path: Path) -> None:
    line = filled(tmp_path, 0, name="0-of-1").read_bytes()
    (tmp_path / "0-of-2.jsonl").write_bytes(line + line)
    assert len(list(read(tmp_path))) == 1
    with Journal(tmp_path / "1-of-2.jsonl") as one:
        assert len(one.ids) == 1


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = filled(tmp_path, 0)
    before = path.read_bytes()
    code = f"""
import resource
from pathlib import Path
from skinvl.sources.asking.journal import Journal, JournalError
from skinvl.sources.asking.request import Reply
with Journal(Path({str(path)!r})) as one:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 100}, resource.RLIM_INFINITY))
    try:
        one.append("f" * 32, Reply("x" * 500, "m", "stop", 1, 1, 0.0))
    except JournalError as error:
        print(error)
    assert "f" * 32 not in one.ids
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "File too large; make room and run the same command again" in said
    assert path.read_bytes() == before


def test_sync_takes_it_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    with Journal(tmp_path / "0-of-1.jsonl") as one:
        assert synced == [str(tmp_path)]  # its name
        one.append(id_of(0), REPLY)
        assert len(synced) == 1
        one.sync()
        assert synced[1:] == [str(one.path)]


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    one = Journal(tmp_path / "0-of-1.jsonl")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(JournalError, match=r"Input/output error; what was written last"):
        one.sync()


def test_ids_are_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MERGED", 7)
    draw = random.Random(5)
    ids, known = Ids(), set()
    pool = [draw.randbytes(16) for _ in range(60)] + [bytes([number]) + bytes(15) for number in range(20)]
    pool += [bytes(15) + bytes([number]) for number in range(20)] + [
        bytes(14) + bytes([number, 0]) for number in (1, 2)
    ]
    draw.shuffle(pool)
    for key in pool:
        assert (key.hex() in ids) == (key in known), key
        if key not in known:
            ids.add(key.hex())
            known.add(key)
        assert len(ids) == len(known)
    assert all(key.hex() in ids for key in known)


def test_ids_take_little_memory() -> None:
    tracemalloc.start()
    ids = Ids()
    for number in range(3 * journal.MERGED):
        ids.add(id_of(number * 7919))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 20 * 3 * journal.MERGED
