"""Annotations of another source's images: all that the source below says of an image holds for what lies over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import PrepError, fitzpatrick17k, split_of
from data_prep.skincon import CONCEPTS
from helpers.raws import table
from helpers.sources import photo
from skinvl.data import licences, mixture
from skinvl.data.example import Example, read, splits, write
from skinvl.data.source import read_card, read_images
from skinvl.recipe.recipe import Data, SourceSpec
from skinvl.sources import prep
from skinvl.sources.prepare.steps import prepare

NAMES = [f"{number:032x}" for number in range(9)]
TEST = [name for name in NAMES if split_of(name) == "test"]
LABELS = {"fitzpatrick_scale": "5", "label": "psoriasis", "nine_partition_label": "inflammatory", "qc": ""}
LABELS |= {"three_partition_label": "non-neoplastic"}


def photos(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """Fitzpatrick17k prepared, of some photos."""
    raw = folder / "fitzpatrick17k-raw"
    table(raw / fitzpatrick17k.FILE, [{"md5hash": name, **LABELS} for name in names])
    (raw / "images").mkdir()
    for number, name in enumerate(names):
        photo(number, 64).save(raw / "images" / f"{name}.jpg", quality=95)
    prepare("fitzpatrick17k", raw, folder / "fitzpatrick17k")
    return folder / "fitzpatrick17k"


def concept_table(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """SkinCon's table of these photos."""
    flags = dict.fromkeys(CONCEPTS, "0") | {"scale": "1", "plaque": "1"}
    ignored = "Do not consider this image"
    rows = [{"ImageID": f"{name}.jpg", **flags, ignored: "0"} for name in names]
    table(folder / "annotations_fitzpatrick17k.csv", rows)
    return folder


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("below"))


@pytest.fixture(scope="module")
def over(below: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SkinCon over them, with a photo that they do not have."""
    folder = tmp_path_factory.mktemp("over")
    account = prepare("skincon", concept_table(folder / "raw", [*NAMES, "ff"]), folder / "out", over=below)
    assert account is not None
    assert account.rows == 4 * 10
    assert account.ledger == {"not-below": 4}
    return folder / "out"


def rows(source: Path) -> dict[str, Example]:
    return {row.id: row for split in splits(source) for row in read(source, split)}


def test_it_has_what_the_source_below_says_of_an_image(below: Path, over: Path) -> None:
    assert TEST  # else the splits would tell nothing
    under = {row.group: row for row in rows(below).values()}
    for row in rows(over).values():
        first = under[row.id.partition("-")[0]]
        assert (row.images, row.group, row.split, row.identities) == (first.images, first.group, first.split, ())
        assert row.licence == "none stated (research only), CC-BY-NC-SA-3.0"
        assert (row.facts.skin_type, row.facts.diagnosis, row.facts.kind) == ("V", "psoriasis", "concept")
        assert row.facts.present == ("plaque", "scale")
    ledger = [json.loads(line) for line in (over / "ledger.jsonl").read_text().splitlines()]
    assert ledger[0]["detail"] == "ff.jpg: no image of that name in the source below, fitzpatrick17k"


def test_images_are_links_with_the_same_rows_in_their_table(below: Path, over: Path) -> None:
    assert read_images(over).sort_by("path").equals(read_images(below).sort_by("path"))
    for path in read_images(over)["path"].to_pylist():
        assert (below / path).samefile(over / path)


def test_the_card_says_both_terms_and_what_lies_below(below: Path, over: Path) -> None:
    card, under = read_card(over), read_card(below)
    assert card["licence"] == "none stated (research only), CC-BY-NC-SA-3.0"
    assert "Of the images: Non-commercial use" in card["terms"]
    assert card["below"] == {"source": "fitzpatrick17k", "stamp": under["stamp"]}
    assert card["archive"] == "fitzpatrick17k"
    terms = licences.of_source(over)
    assert (terms.known, terms.research, terms.commercial) == (True, True, False)  # the stricter of the two
    assert not licences.of_source(below).research


def test_the_leak_guard_knows_the_images_again(below: Path, over: Path, tmp_path: Path) -> None:
    def data(train: Path, evaluation: Path, split: str) -> Data:
        train_spec, eval_spec = (SourceSpec(source=str(p), split=s) for p, s in ((train, "train"), (evaluation, split)))
        return Data(train=[train_spec], eval=[eval_spec], image_tokens=16, max_tokens=256)

    assert mixture.load(data(over, below, "test")).moved == []
    with pytest.raises(ValueError, match=r"all \d+ conversations of fitzpatrick17k share a group or an image"):
        mixture.load(data(over, below, "train"))

    # By the images alone too, as where no archive says that equal names mean the same.
    other = shutil.copytree(over, tmp_path / "other")
    (other / "card.json").write_text(json.dumps(read_card(other) | {"archive": ""}))
    trained, asked = (mixture.rows(SourceSpec(source=str(source), split="train")) for source in (other, below))
    leaks = mixture.leaks(trained, {"below": asked})
    assert len(leaks) == len(asked)
    assert {leak.kind for leak in leaks} == {"sha256"}


def test_it_is_up_to_date_until_the_source_below_changes(tmp_path: Path) -> None:
    source, raw, out = photos(tmp_path), concept_table(tmp_path / "raw"), tmp_path / "out"
    first = prepare("skincon", raw, out, over=source)
    made = (out / "card.json").stat().st_mtime_ns
    assert prepare("skincon", raw, out, over=source) == first
    assert (out / "card.json").stat().st_mtime_ns == made
    stamp = read_card(out)["stamp"]
    shutil.rmtree(tmp_path / "fitzpatrick17k-raw")
    photos(tmp_path, NAMES[:5])
    again = prepare("skincon", raw, out, over=source)
    assert again is not None
    assert again.ledger == {"not-below": 4 * 4}
    assert read_card(out)["stamp"] != stamp


def test_an_image_that_is_gone_is_missing_and_a_row_of_its_own_is_no_way_out(tmp_path: Path) -> None:
    source, raw = photos(tmp_path), concept_table(tmp_path / "raw")
    (source / "images" / "images" / f"{NAMES[0]}.jpg").unlink()
    account = prepare("skincon", raw, tmp_path / "out", over=source)
    assert account is not None
    assert account.ledger == {"missing-image": 4}


def test_a_split_that_the_source_below_keeps_is_kept(tmp_path: Path) -> None:
    source, raw = photos(tmp_path), concept_table(tmp_path / "raw")
    card = read_card(source)
    (source / "card.json").write_text(json.dumps(card | {"split": "official"}))
    prepare("skincon", raw, tmp_path / "out", over=source)
    assert read_card(tmp_path / "out")["split"] == "official"


def test_two_images_of_a_name_are_not_guessed(tmp_path: Path) -> None:
    source, raw = photos(tmp_path), concept_table(tmp_path / "raw", NAMES[:1])
    twin = (f"images/again/{NAMES[0]}.jpg",)
    changed = [replace(row, images=twin) if row.group == NAMES[1] else row for row in read(source, "train")]
    assert twin in {row.images for row in changed}
    write(source, "train", changed)
    account = prepare("skincon", raw, tmp_path / "out", over=source)
    assert account is not None
    assert account.ledger == {"not-below": 4}
    assert "several images of that name" in (tmp_path / "out" / "ledger.jsonl").read_text()


def test_shards_give_what_one_run_gives(below: Path, over: Path, tmp_path: Path) -> None:
    raw, out = concept_table(tmp_path / "raw", [*NAMES, "ff"]), tmp_path / "out"
    assert [prepare("skincon", raw, out, over=below, shard=(index, 2)) is None for index in (1, 0)] == [True, False]
    assert rows(out) == rows(over)


def test_what_cannot_lie_over_it(below: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = concept_table(tmp_path / "raw")
    with pytest.raises(PrepError, match=r"^data/fitzpatrick17k: no prepared source; skincon has no images and lies "
                       r"over those of fitzpatrick17k\. Prepare them with skinvl prep fitzpatrick17k RAW"):  # fmt: skip
        prepare("skincon", raw, tmp_path / "out")
    with pytest.raises(PrepError, match="prepared from fitzpatrick17k; the part ddi of skincon lies over ddi"):
        prepare("skincon", raw, tmp_path / "out", ["ddi"], over=below)
    with pytest.raises(PrepError, match="the parts fitzpatrick17k, ddi each lie over a source of their own"):
        prepare("skincon", raw, tmp_path / "out", ["fitzpatrick17k", "ddi"])
    with pytest.raises(PrepError, match="ham10000 has images of its own and lies over no other source"):
        prepare("ham10000", raw, tmp_path / "out", over=below)
    with pytest.raises(PrepError, match=r"the source below .* and OUT lie in one another; choose an OUT beside"):
        prepare("skincon", raw, below / "skincon", over=below)
    with pytest.raises(PrepError, match="skincon has no part dd1; its parts are fitzpatrick17k, ddi"):
        prepare("skincon", raw, tmp_path / "out", ["dd1"])
    assert not (tmp_path / "out").exists()


def test_on_the_command_line_the_part_follows_from_the_source(
    below: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = concept_table(tmp_path / "raw")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fitzpatrick17k").symlink_to(below)
    assert prep.main(["skincon", str(raw), "data/skincon"]) == 0  # where it lies by default
    assert prep.main(["skincon", str(raw), "data/named", "--over", "fitzpatrick17k"]) == 0
    assert rows(Path("data/named")) == rows(Path("data/skincon"))
    assert prep.main(["--list", "skincon"]) == 0
    assert "its images are those of: fitzpatrick17k, ddi" in " ".join(capsys.readouterr().out.split())
