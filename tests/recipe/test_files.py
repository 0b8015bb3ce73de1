"""A file or folder holds the new or what it held before, whatever happens in between; bad JSON is one message."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from skinvl.recipe import files

WRITERS: dict[str, tuple[Callable[[Path], None], bytes]] = {
    "bytes": (lambda path: files.write_bytes(path, b"new"), b"new"),
    "text": (lambda path: files.write_text(path, "né\n"), "né\n".encode()),
    "json": (lambda path: files.write_json(path, {"a": ["é"]}, indent=1), '{\n "a": [\n  "é"\n ]\n}\n'.encode()),
}


class HintedError(ValueError):
    """What a caller asks to be raised."""


class Killed(BaseException):
    """The end of a process, between two of its steps."""


def stop(*_: object) -> None:
    raise Killed


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_holds_what_was_written(kind: str, tmp_path: Path) -> None:
    write, expected = WRITERS[kind]
    for _ in range(2):  # in an empty folder, and over an older file
        write(tmp_path / "file")
        assert content(tmp_path) == {"file": expected}


@pytest.mark.parametrize("kind", WRITERS)
def test_killed_before_the_rename_a_file_is_as_it_was(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(Killed):
        WRITERS[kind][0](tmp_path / "file")
    assert content(tmp_path) == {"file": b"old"}


def test_of_a_block_that_fails_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail() -> None:
        with files.whole_file(tmp_path / "file") as partial:
            partial.write_bytes(b"half")
            assert content(tmp_path) == {"file": b"old", partial.name: b"half"}
            raise HintedError

    with pytest.raises(HintedError):
        fail()
    assert content(tmp_path) == {"file": b"old"}


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / ("x" * 255), b"new")
    assert content(tmp_path) == {"x" * 255: b"new"}


def test_any_text_becomes_json_that_reads_back(tmp_path: Path) -> None:
    value = {"half of a pair": "\ud83d", "line": "a\u2028b", "name": os.fsdecode(b"\xff")}
    files.write_json(tmp_path / "file", value)
    assert files.read_json(tmp_path / "file", "") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "file", {"loss": float("nan")}, allow_nan=False)
    assert files.read_json(tmp_path / "file", "") == value


def rewrite(path: Path, letter: bytes, times: int) -> None:
    for _ in range(times):
        files.write_bytes(path, letter * 200_000)


def test_two_processes_never_show_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"a" * 200_000)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=rewrite, args=(path, letter, 300)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        data = path.read_bytes()
        assert data in (b"a" * 200_000, b"b" * 200_000)
        seen.add(data[:1])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen == {b"a", b"b"}
    assert set(content(tmp_path)) == {"file"}


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path, durable: bool, shared: bool) -> None:
    path = tmp_path / "deep" / "folder"
    for name in ("first", "second"):
        with files.whole_folder(path, durable=durable, shared=shared) as partial:
            (partial / "in").mkdir()
            (partial / "in" / name).write_text(name)
            assert not (path / "in" / name).exists()
        assert {*content(path)} == {f"in/{name}", *([files.MANIFEST] if durable else [])}
        assert [item.name for item in path.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("durable", [False, True])
def test_of_a_folder_that_fails_nothing_is_left(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")

    def fail() -> None:
        with files.whole_folder(tmp_path / "folder", durable=durable) as partial:
            (partial / "half").write_text("half")
            raise HintedError

    with pytest.raises(HintedError):
        fail()
    assert content(tmp_path) == {"folder/old": b"old"}


def test_killed_before_either_rename_a_folder_is_as_it_was_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    with files.whole_folder(path) as partial:
        (partial / "old").write_text("old")
    rename = Path.rename
    for survived, whole in ((0, {"folder/old"}), (1, {".folder.gone/old"})):
        left = [survived]

        def killed(self: Path, target: Path, left: list[int] = left) -> Path:
            left[0] -= 1
            if left[0] < 0:
                stop()
            return rename(self, target)

        partial = files.partial_folder(path)
        partial.mkdir()
        (partial / "new").write_text("new")
        monkeypatch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            files.replace_folder(partial, path)
        monkeypatch.undo()
        assert {*content(tmp_path)} == {*whole, ".folder.partial/new"}
        with files.whole_folder(path) as again:  # what the killed one has left goes
            (again / "old").write_text("old")
        assert content(tmp_path) == {"folder/old": b"old"}


def test_a_manifest_holds_every_file_and_is_on_the_disk_before_the_folder_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, path = tmp_path / "made", tmp_path / "folder"
    (partial / "in").mkdir(parents=True)
    for name in ("a", "in/b", "training_args.bin", "README.md"):
        (partial / name).write_text(name)
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(files, "sync", lambda file: synced.append((file.name, path.exists())))
    files.appear(partial, path)
    assert synced == [("a", False), ("b", False), (files.MANIFEST, False), ("made", False), (tmp_path.name, True)]
    assert {*content(path)} == {"a", "in/b", files.MANIFEST}
    manifest = files.read_json(path / files.MANIFEST, "")
    assert manifest == {"files": {name: files.file_facts(path / name) for name in ("a", "in/b")}}


def test_a_folder_that_is_cleared_is_invisible_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    for name in (".folder.gone", "folder"):  # the first of a process that was killed
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    removed: list[bool] = []
    remove = shutil.rmtree

    def watched(folder: Path, ignore_errors: bool = False) -> None:
        removed.append(path.exists())
        remove(folder, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watched)
    files.clear(path)
    files.clear(path)  # which is not there
    assert removed[:2] == [True, False]
    assert not list(tmp_path.iterdir())


def test_digests_and_facts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * 40_000  # more than is read at once
    path.write_bytes(data)
    assert files.digest(path) == xxhash.xxh3_128_hexdigest(data)
    assert files.file_facts(path) == {"bytes": len(data), "xxh3_128": files.digest(path)}
    path.write_bytes(data[:-1] + b"\0")
    assert files.digest(path) != xxhash.xxh3_128_hexdigest(data)
    assert files.existing(tmp_path / "a" / "b") == tmp_path.resolve() == files.existing(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file; expected an object with a, b; make it again"),
        (b"{", "damaged, not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
               "expected an object with a, b; make it again"),
        (b'{"\xff"}', "damaged, not JSON ('utf-8' codec can't decode byte 0xff in position 2: invalid start byte); "
                      "expected an object with a, b; make it again"),
        (b"[" * 100_000, "damaged, not JSON (maximum recursion depth exceeded"),
        (b"[1]", "no a, b; expected an object with a, b; make it again"),
        (b'{"a": 1}', "no b; expected an object with a, b; make it again"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_message(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "file.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(HintedError) as error:
        files.read_json(path, "make it again", HintedError, ["a", "b"])
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_what_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[]")
    with pytest.raises(ValueError, match=r"file: holds a list; expected an object; make it again$") as error:
        files.read_json(tmp_path / "file", "make it again")
    assert type(error.value) is ValueError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON lines (Expecting property name enclosed in double quotes: line 2 column 1 (char 2)); "
              "expected an object with a; mend it"),
        ("", "not JSON lines (Expecting value"),
        ("3", "no a; expected an object with a; mend it"),
        ('{"b": 1}', "no a; expected an object with a; mend it"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_one_message(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(f'{{"a": "x\u2028y"}}\n{line}\n{{"a": 1}}\n', encoding="utf-8")
    rows = files.read_json_lines(path, "mend it", HintedError, ["a"])
    assert next(rows) == {"a": "x\u2028y"}
    with pytest.raises(HintedError) as error:
        next(rows)
    assert str(error.value).startswith(f"{path}:2: {message}")


def test_half_a_last_line_is_none_where_a_kill_may_have_left_it(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert list(files.read_json_lines(path, "mend it", unfinished=True)) == [{"a": 1}]
    with pytest.raises(ValueError, match=r"file\.jsonl:2: not JSON lines .*; expected a log's entry; mend it"):
        list(files.read_json_lines(path, "mend it", expected="a log's entry"))
    path.write_text(json.dumps({"a": 1}))
    assert list(files.read_json_lines(path, "mend it")) == [{"a": 1}]
