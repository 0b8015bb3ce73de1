"""Interrupted, repeated and shared work gives the same prepared source; what shares an image is one group."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

import data_prep
from data_prep import PrepError, llava
from skinvl.data.example import read
from skinvl.data.source import IMAGES_SCHEMA, read_images
from skinvl.sources.prepare import images
from skinvl.sources.prepare import steps as module
from skinvl.sources.prepare.folder import claimed
from skinvl.sources.prepare.steps import prepare
from skinvl.sources.prepare.writer import Account

ENTRIES = 9_000  # of five blocks


def download(folder: Path, entries: int = ENTRIES, images: int = 40) -> Path:
    """A LLaVA file about a few images, some of which are missing or broken, with rows that rules drop."""
    draw = random.Random(5)
    folder.mkdir(parents=True)
    for number in range(images):
        pixels = bytes(draw.randrange(256) for _ in range(48))
        Image.frombytes("RGB", (4, 4), pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"no image")
    with (folder / "talk.jsonl").open("w") as file:
        for number in range(entries):
            answer = "As the caption says, it is red." if number % 7 == 0 else f"It is red, case {number % 5000}."
            turns = [{"from": "human", "value": f"What is it, {number}?"}, {"from": "gpt", "value": answer}]
            image = {"image": f"{draw.randrange(images)}.png"} if number % 2 else {}
            file.write(json.dumps({"id": str(number), **image, "conversations": turns}) + "\n")
    return folder


def fingerprint(out: Path) -> dict[str, str]:
    """The SHA-256 of every file of a source by its path."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download(tmp_path_factory.mktemp("raw") / "llava")


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source that an uninterrupted run of one process makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    account = prepare("llava", raw, out)
    assert account is not None
    assert account.rows == ENTRIES
    assert account.examples["train"] > 5_000
    assert set(account.ledger) == {"caption-leak", "missing-image", "unreadable-image"}
    return out


def command(raw: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "skinvl", "prep", "llava", str(raw), str(out), *options]


def test_processes_give_what_one_process_gives(
    raw: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL_ROWS", 0)
    monkeypatch.setattr(module, "SMALL_IMAGES", 0)
    prepare("llava", raw, tmp_path / "out", workers=2)
    assert fingerprint(tmp_path / "out") == fingerprint(whole)


def test_shards_in_any_order_give_what_a_single_run_gives(raw: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = [prepare("llava", raw, out, shard=(index, 3)) for index in (2, 0, 1)]
    assert [account is None for account in ended] == [True, True, False]
    assert fingerprint(out) == fingerprint(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_shards_that_end_together_join_once(raw: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [subprocess.Popen(command(raw, out, "--shard", f"{index}/2")) for index in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert fingerprint(out) == fingerprint(whole)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 23))])
def test_a_run_that_is_killed_goes_on(seed: int, raw: Path, whole: Path, tmp_path: Path) -> None:
    out, draw = tmp_path / "out", random.Random(seed)
    workers = str(draw.choice((1, 2)))
    kills = 0
    for latest in (1.0, 4.5, 4.5, 4.5):  # the first comes before any run can have ended
        process = subprocess.Popen(command(raw, out, "--workers", workers), start_new_session=True)
        time.sleep(draw.uniform(0.8, latest))
        if process.poll() is None:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists() or fingerprint(out) == fingerprint(whole)
    subprocess.run(command(raw, out), check=True, stdout=subprocess.DEVNULL)
    assert kills
    assert fingerprint(out) == fingerprint(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_blocks_and_images_that_are_done_are_not_made_again(
    raw: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write, looked = module._write_looked, images.look

    def stop(*given: object) -> None:
        write(*given)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(module, "_write_looked", stop)
    with pytest.raises(PrepError, match=r"No space left on device .*The same command goes on where this one stopped"):
        prepare("llava", raw, out)
    monkeypatch.setattr(module, "_write_looked", write)
    monkeypatch.setattr(images, "look", lambda *given: pytest.fail("an image was looked at twice"))
    monkeypatch.setattr(llava, "conversation", lambda *given: pytest.fail("a row was converted twice"))
    prepare("llava", raw, out)
    assert fingerprint(out) == fingerprint(whole)
    assert looked is not images.look


def test_the_same_again_does_nothing_and_a_change_does_all(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = shutil.copytree(raw, tmp_path / "raw"), tmp_path / "out"
    first = prepare("llava", mine, out)
    monkeypatch.setattr(llava, "convert", lambda *given: pytest.fail("converted again"))
    assert prepare("llava", mine, out) == first
    monkeypatch.undo()
    shutil.copy(mine / "5.png", mine / "0.png")
    again = prepare("llava", mine, out)
    assert isinstance(first, Account)
    assert isinstance(again, Account)
    assert "missing-image" in first.ledger
    assert "missing-image" not in again.ledger
    kept = prepare("llava", mine, out, keep=["caption-leak"])
    assert isinstance(kept, Account)
    assert kept.tags["caption-leak"] > 0
    assert "caption-leak" not in kept.ledger


def test_work_of_other_settings_is_begun_anew_and_never_mixed(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert prepare("llava", raw, out, shard=(0, 2)) is None
    with pytest.raises(PrepError, match=r"\.out\.partial: holds the work of other settings.*remove the folder"):
        prepare("llava", raw, out, shard=(1, 2), keep=["caption-leak"])
    account = prepare("llava", raw, out, keep=["caption-leak"])
    assert isinstance(account, Account)
    assert "caption-leak" in account.tags


def test_two_runs_at_once_are_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        claimed(tmp_path / ".out.partial", "x", False),
        pytest.raises(PrepError, match="another skinvl prep is"),
    ):
        prepare("llava", raw, out)


def noise(seed: int, size: int = 96) -> Image.Image:
    draw = random.Random(seed)
    coarse = Image.frombytes("RGB", (6, 6), bytes(draw.randrange(256) for _ in range(108)))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


def table(folder: Path, rows: dict[str, str]) -> None:
    """patch16's table: slide and set by the tile's name."""
    kind = "tumor_skin_melanoma_melanoma"
    lines = [f"data/tiles/{kind}/{name}.jpg,{kind},{split},tumor" for name, split in rows.items()]
    (folder / "tiles-v2.csv").write_text("\n".join(["file,class,set,malignicy", *lines]) + "\n")


def splits(out: Path) -> dict[str, tuple[str, str]]:
    """(group, split) by the image's name."""
    return {
        Path(row.images[0]).stem: (row.group, row.split)
        for path in sorted(out.glob("*[nt].parquet"))  # train, validation, test
        for row in read(out, path.stem)
    }


def test_a_shared_image_joins_groups_and_moves_them_towards_training(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    noise(1).save(raw / "s1_1.jpg", quality=95)
    shutil.copy(raw / "s1_1.jpg", raw / "s2_1.jpg")  # the same bytes under another name
    noise(2).save(raw / "s2_2.jpg", quality=95)
    noise(2, 192).save(raw / "s3_1.jpg", quality=70)  # the same picture in other bytes
    noise(3).save(raw / "s4_1.jpg")
    table(raw, {"s1_1": "Test", "s2_1": "Validation", "s2_2": "Validation", "s3_1": "Train", "s4_1": "Test"})
    account = prepare("patch16", raw, out)
    assert splits(out) == {
        **dict.fromkeys(("s1_1", "s2_1", "s2_2", "s3_1"), ("s1", "train")),
        "s4_1": ("s4", "test"),
    }
    assert isinstance(account, Account)
    assert (account.joined, account.largest, account.moved) == (3, 3, 9)
    prepare("patch16", raw, out, official=True)
    assert splits(out) == {
        "s1_1": ("s1", "test"),
        **dict.fromkeys(("s2_1", "s2_2"), ("s1", "validation")),
        "s3_1": ("s1", "train"),
        "s4_1": ("s4", "test"),
    }


def test_a_mirrored_or_turned_image_joins_groups_too(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    noise(1).save(raw / "s1_1.jpg", quality=95)
    noise(1, 192).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(raw / "s2_1.jpg", quality=70)
    noise(1).transpose(Image.Transpose.ROTATE_270).save(raw / "s3_1.png")
    noise(2).save(raw / "s4_1.jpg")
    table(raw, {"s1_1": "Test", "s2_1": "Validation", "s3_1": "Train", "s4_1": "Test"})
    account = prepare("patch16", raw, out)
    assert splits(out) == {**dict.fromkeys(("s1_1", "s2_1", "s3_1"), ("s1", "train")), "s4_1": ("s4", "test")}
    assert isinstance(account, Account)
    assert (account.joined, account.largest) == (3, 3)
    images = read_images(out)
    assert images.schema.equals(IMAGES_SCHEMA)
    assert images["turned"].null_count == images["signs"].null_count == 0


def test_rows_that_are_added_later_only_move_others_into_training(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    order = ("test", "validation", "train")
    names = [f"s{number}_1" for number in range(60)]
    draw = random.Random(3)
    rows: dict[str, str] = {}
    before: dict[str, tuple[str, str]] = {}
    for start in range(0, len(names), 12):
        for name in names[start : start + 12]:
            noise(draw.randrange(30)).save(raw / f"{name}.jpg")
            rows[name] = draw.choice(("Train", "Validation", "Test"))
        table(raw, rows)
        prepare("patch16", raw, out)
        after = splits(out)
        assert all(order.index(after[name][1]) >= order.index(split) for name, (_, split) in before.items())
        before = after
    homes: dict[bytes, set[str]] = {}
    for name, (_, split) in before.items():
        homes.setdefault((raw / f"{name}.jpg").read_bytes(), set()).add(split)
    assert all(len(found) == 1 for found in homes.values())
    assert {split for _, split in before.values()} == {"train", "validation", "test"}


def test_the_split_of_the_authors_is_kept_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for number in range(40):
        noise(number).save(raw / f"bk{number}.png")
    lines = [f"dataset/bk{number}.png,What is it {number}?,Thing {number}." for number in range(40)]
    for file in ("VQA.csv", "MM-Skin_test.csv"):  # every image is on both sides
        (raw / file).write_text("\n".join(["image,question,answer", *lines]) + "\n")
    prepare("mm_skin", raw, out, ["vqa", "test"], official=True)
    assert {row.split for row in read(out, "test")} == {"test"}
    assert len(read(out, "test")) == len(read(out, "train")) == 40
    account = prepare("mm_skin", raw, out, ["vqa", "test"])
    assert isinstance(account, Account)
    test, train = ({row.group for row in read(out, split)} for split in ("test", "train"))
    assert test
    assert not test & train
    assert {row.split for row in read(out, "test")} == {"test"}
    with pytest.raises(PrepError, match="its authors give no split to keep"):
        prepare("ham10000", raw, out, official=True)


def test_drawings_that_look_alike_stay_apart() -> None:
    assert not data_prep.load("demo").CARD.alike


def isic_table(folder: Path, *rows: str) -> Path:
    """The archive's metadata: isic_id, patient_id, lesion_id; each image is another."""
    folder.mkdir(parents=True)
    lines = [f"ISIC_{number:07},{row},melanoma,malignant" for number, row in enumerate(rows, 1)]
    header = "isic_id,patient_id,lesion_id,diagnosis,benign_malignant"
    (folder / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    for number in range(1, len(rows) + 1):
        noise(number).save(folder / f"ISIC_{number:07}.jpg")
    return folder


def test_rows_that_share_any_identity_are_one_group_by_way_of_others_too(tmp_path: Path) -> None:
    """A lesion of which one image has a patient and another has none was in train and test."""
    rows = [f"IP_{number},IL_{number}" for number in range(30)] + [f",IL_{number}" for number in range(30)]
    out = tmp_path / "out"
    account = prepare("isic", isic_table(tmp_path / "raw", *rows), out)
    assert isinstance(account, Account)
    homes = splits(out)
    for number in range(30):
        assert homes[f"ISIC_{number + 1:07}"] == homes[f"ISIC_{number + 31:07}"]
        assert homes[f"ISIC_{number + 1:07}"][0] == f"IP_{number}"
    assert {split for _, split in homes.values()} == {"train", "test"}
    assert (account.joined, account.largest) == (60, 2)
    assert account.moved > 0
    kept = {row.images[0]: row.identities for split in ("train", "test") for row in read(out, split)}
    assert kept["images/ISIC_0000001.jpg"] == ("IP_0", "IL_0", "ISIC_0000001")
    assert kept["images/ISIC_0000031.jpg"] == ("IL_0", "ISIC_0000031")

    chain = ["IP_1,IL_1", ",IL_1", "IP_1,IL_2", "unknown,IL_2", "unknown,nan", ",unknown"]
    prepare("isic", isic_table(tmp_path / "chain", *chain), out)
    groups = {name: group for name, (group, _) in splits(out).items()}
    assert [groups[f"ISIC_{number:07}"] for number in range(1, 7)] == [*["IP_1"] * 4, "ISIC_0000005", "ISIC_0000006"]


def test_identities_join_rows_of_text_alone_and_a_name_that_prep_took_away_is_kept(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for number, name in enumerate(("bk1_1_a", "bk1_1_b", "bk2_1")):
        noise(number).save(raw / f"{name}.png")
    talk = [{"from": "human", "value": "<image><image>Which?"}, {"from": "gpt", "value": "The second."}]
    entry = {"image": ["bk1_1_a.png", "bk2_1.png"], "conversations": talk}
    (raw / "vqa_x.json").write_text(json.dumps([entry]))
    (raw / "MM-Skin_test.csv").write_text("image,question,answer\nbk1_1_b.png,What is it?,A nevus.\n")
    prepare("mm_skin", raw, out, ["json", "test"])
    made = [row for split in ("train", "test") if (out / f"{split}.parquet").exists() for row in read(out, split)]
    assert {row.group for row in made} == {"bk1_1 + bk2_1"}
    assert {row.identities for row in made} == {("bk1_1", "bk2_1"), ("bk1_1",)}
    assert {row.split for row in made} == {"train"}
