"""Every converter: the shards of a conversion are the conversion, whatever process does which of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_ddi
import test_derm1m
import test_derm7pt
import test_derm12345
import test_dermasynth
import test_dermavqa
import test_dicom
import test_fitzpatrick17k
import test_ham10000
import test_isic
import test_llava
import test_milk10k
import test_mm_skin
import test_pad_ufes_20
import test_passion
import test_patch16
import test_scin
import test_skincare
import test_skincon
import test_slice_3d

import data_prep
from data_prep import Shard, demo, isic, milk10k
from helpers import dicoms
from helpers.raws import image, table
from skinvl.data.example import Dropped, Example

MANY = range(7)
SHARDS = 3
Numbered = list[tuple[int, Example | Dropped]]  # each with the number of its record


def _ddi(raw: Path) -> list[Path]:
    return [test_ddi.raw(raw, *({"DDI_file": f"{number % 5}.png"} for number in MANY))]


def _demo(raw: Path) -> list[Path]:
    demo.rows(raw / "drawn", "all")
    return [raw / "drawn"]


def _derm12345(raw: Path) -> list[Path]:
    splits = ("train", "test")
    test_derm12345.raw(raw, *({"image_id": f"DERM_{number}", "split": splits[number % 2]} for number in MANY))
    table(raw / "metadata.csv", [{**test_derm12345.ARCHIVE, "isic_id": f"ISIC_{number % 5}"} for number in MANY])
    return [raw]


def _derm1m(raw: Path) -> list[Path]:
    labels = ("Tinea corporis", "No definitive diagnosis", "Psoriasis")
    for name in ("Derm1M_v2_pretrain.csv", "Derm1M_v2_validation.csv"):
        rows = [{"filename": f"edu/{number % 5}.jpg", "disease_label": labels[number % 3]} for number in MANY]
        test_derm1m.put(raw, *rows, name=name)
    return [raw]


def _derm7pt(raw: Path) -> list[Path]:
    places = {"train": [0, 1, 4], "valid": [2], "test": [3, 5]}
    return [test_derm7pt.put(raw, [test_derm7pt.case(number % 5) for number in MANY], places)]


def _dermasynth(raw: Path) -> list[Path]:
    reply = test_dermasynth.fenced
    for number in MANY:
        name = f"{number}.json"
        entry = test_dermasynth.response(f"i{number % 5}", reply(answer=f"{number}") if number % 3 else "no")
        test_dermasynth.put(raw / "response" / name, entry)
        pairs = [{f"question_{pair}": "Why?", f"answer_{pair}": "So."} for pair in range(number % 4)]
        entry = {"image_id": f"i{number}", "image_path": "i.jpg", "api_response": {"qa_pairs": pairs}}
        test_dermasynth.put(raw / "vqa" / name, entry)
    tasks = [{"instruction": f"{number % 5}", "input": "", "output": "x" * (number % 4)} for number in MANY]
    facts = [{"disease_name": "Acne", "question": f"{number % 5}?", "answer": "x" * (number % 4)} for number in MANY]
    tests = [{"question": f"{number % 5}?", "choices": ["x", "y"], "answer": number % 3} for number in MANY]
    _parquets(raw / "self_instruct", [{**task, "is_classification": False} for task in tasks])
    _parquets(raw / "eval1", [test_dermasynth.pictured(f"{number}?", b"x" * (number % 4)) for number in MANY])
    test_dermasynth.put(raw / "knowledge" / "a.json", facts)
    for name, part in (("knowledge", facts), ("mcq", tests)):
        (raw / name).mkdir(exist_ok=True)
        (raw / name / "b.jsonl").write_text("\n\n".join(map(json.dumps, part)))
    return [raw]


def _parquets(folder: Path, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=2)


def _dermnet(raw: Path) -> list[Path]:
    for number in MANY:
        image(raw / ("train", "test")[number % 2] / "Eczema Photos" / f"{number}.jpg")
    return [raw]


def _dicom(raw: Path) -> list[Path]:
    for number in MANY:
        dicoms.write(
            raw / f"{number}.dcm", test_dicom.photo(PatientID=str(number % 5), Modality=("DMS", "CT")[number % 2])
        )
    (raw / "README").write_text("no image")
    return [raw]


def _fitzpatrick17k(raw: Path) -> list[Path]:
    return [test_fitzpatrick17k.raw(raw, *({"md5hash": f"{number % 5}"} for number in MANY))]


def _ham10000(raw: Path) -> list[Path]:
    return [test_ham10000.raw(raw, *({"image_id": f"ISIC_{number % 5}"} for number in MANY))]


def _isic(raw: Path) -> list[Path]:
    rows = [{**test_isic.ROW, "isic_id": f"ISIC_{number % 5}"} for number in MANY]
    hot = {**dict.fromkeys(test_isic.CLASSES, "0.0"), "NV": "1.0"}
    known = {"age_approx": "", "anatom_site_general": "", "lesion_id": "", "sex": ""}
    table(raw / "csv" / "metadata.csv", rows)
    table(raw / "csv" / isic.TRUTH, [{"image": f"ISIC_{number % 5}", **hot} for number in MANY])
    table(raw / "csv" / isic.METADATA, [{"image": f"ISIC_{number}", **known} for number in MANY])
    (raw / "records.json").write_text(json.dumps(rows))
    (raw / "records.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    return [raw / "csv", raw / "records.json", raw / "records.jsonl"]


def _llava(raw: Path) -> list[Path]:
    entries = [{"conversations": test_llava.turns("x", "y" * (number % 4))} for number in MANY]
    raw.mkdir()
    (raw / "list.json").write_text(json.dumps(entries))
    (raw / "lines.jsonl").write_text("\n\n".join(map(json.dumps, entries)))
    return [raw / "list.json", raw / "lines.jsonl"]


def _milk10k(raw: Path) -> list[Path]:
    images = [row for number in MANY for row in test_milk10k.pair(number)]
    truth = [test_milk10k.hot(number % 5, "BCC" if number % 2 else "NV") for number in MANY]
    table(raw / milk10k.METADATA, images)
    table(raw / milk10k.TRUTH, truth)
    table(raw / milk10k.SUPPLEMENT, [{"isic_id": row["isic_id"], "diagnosis_full": "Nevus"} for row in images[::3]])
    table(raw / milk10k.BLIND, images)
    test_milk10k.archived(raw, images, test_milk10k.LEVELS)
    return [raw]


def _mm_skin(raw: Path) -> list[Path]:
    asked = [(f"dataset/bk1_{number % 5}.png", "Why?", "So." * (number % 4)) for number in MANY]
    captions = [(f"bk1_{number}.png", "c" * (number % 4), "skin", "", "", "") for number in MANY]
    entries = [test_mm_skin.talk("x", "y" * (number % 4)) for number in MANY]
    for name in ("VQA.csv", "MM-Skin_test.csv"):
        test_mm_skin.table(raw / name, ("image", "question", "answer"), *asked)
    test_mm_skin.table(raw / "caption.csv", test_mm_skin.CAPTIONS, *captions)
    for name in ("a", "test"):
        (raw / f"vqa_{name}.json").write_text(json.dumps(entries))
        rows = [(f"{number % 5}.jpg", "[]", f"['class {number}']") for number in MANY]
        test_mm_skin.table(raw / "classification" / f"{name}.csv", test_mm_skin.COLUMNS, *rows)
    return [raw]


def _pad_ufes_20(raw: Path) -> list[Path]:
    table(raw / "metadata.csv", [{**test_pad_ufes_20.ROW, "img_id": f"{number % 5}.png"} for number in MANY])
    return [raw]


def _passion(raw: Path) -> list[Path]:
    subjects = [test_passion.subject(f"AA{number % 5}") for number in MANY]
    photos = [f"AA{subject}_{number}.jpg" for subject in range(4) for number in range(3 * subject)]
    return [test_passion.put(raw, subjects, photos, test=("AA2",))]


def _patch16(raw: Path) -> list[Path]:
    file = test_patch16.ROW["file"].removesuffix("1.jpg")
    return [test_patch16.raw(raw, *({"file": f"{file}{number % 5}.jpg"} for number in MANY))]


def _scin(raw: Path) -> list[Path]:
    labels = {f"{number}": "{'Eczema': 1.0}" * (number % 2) for number in MANY}
    return [test_scin.raw(raw, labels, *({"case_id": f"{number % 5}"} for number in MANY))]


def _slice_3d(raw: Path) -> list[Path]:
    return [test_slice_3d.raw_folder(raw, *({"isic_id": f"ISIC_{number % 5}"} for number in MANY))]


def _dermavqa(raw: Path) -> list[Path]:
    names = [f"ENC{number % 5}" for number in MANY]
    reply = test_dermavqa.reply("a", "Scabies", 1.0), test_dermavqa.reply("b", "Twice a day", 0.5)
    queries = [test_dermavqa.query(name, *reply[: number % 3]) for number, name in enumerate(names)]
    gold = [test_dermavqa.gold(name, CQID011_001=number) for number, name in enumerate(names)]
    return [test_dermavqa.raw(raw, train=queries[:4], valid=queries[4:], train_cvqa=gold[:3], test_cvqa=gold[3:])]


def _skincare(raw: Path) -> list[Path]:
    flags = ("0", "1", "0")
    rows = [{"skincap_file_path": f"{number % 5}.png", "Scale": "1"} for number in MANY]
    test_skincare.raw(
        raw, *({**row, "Do not consider this image": flags[number % 3]} for number, row in enumerate(rows))
    )
    return [test_skincare.cot(raw, **{f"{number}": f"Scale.\nDiagnosis: {'x' * (number % 3)}" for number in MANY})]


def _skincon(raw: Path) -> list[Path]:
    for part, ending in (("fitzpatrick17k", "jpg"), ("ddi", "png")):
        names = [f"{number % 5}.{ending}" for number in MANY]
        rows = [{"image": name, "scale": f"{number % 2}", "scar": "1"} for number, name in enumerate(names)]
        test_skincon.raw(raw, *rows, part=part)
    return [raw / "raw"]


# Every converter has its raw files here; each part has seven records or more.
RAWS: dict[str, Callable[[Path], list[Path]]] = {
    "ddi": _ddi,
    "demo": _demo,
    "derm12345": _derm12345,
    "derm1m": _derm1m,
    "derm7pt": _derm7pt,
    "dermasynth": _dermasynth,
    "dermavqa": _dermavqa,
    "dermnet": _dermnet,
    "dicom": _dicom,
    "fitzpatrick17k": _fitzpatrick17k,
    "ham10000": _ham10000,
    "isic": _isic,
    "llava": _llava,
    "milk10k": _milk10k,
    "mm_skin": _mm_skin,
    "pad_ufes_20": _pad_ufes_20,
    "passion": _passion,
    "patch16": _patch16,
    "scin": _scin,
    "skincare": _skincare,
    "skincon": _skincon,
    "slice_3d": _slice_3d,
}


def numbered(name: str, raw: Path, part: str, shard: Shard) -> Numbered:
    """The outcomes of a shard, each with the number of the record that it comes from."""
    return [(shard.record, outcome) for outcome in data_prep.load(name).convert(raw, part, shard)]


def in_order(outcomes: Iterable[tuple[int, Example | Dropped]]) -> Numbered:
    return sorted(outcomes, key=lambda row: row[0])


@pytest.mark.parametrize("name", data_prep.names())
def test_the_union_of_the_shards_is_the_whole(name: str, tmp_path: Path) -> None:
    assert name in RAWS, f"data_prep/{name}.py is new: give it a raw folder here"
    converter = data_prep.load(name)
    seen = set()
    for raw in RAWS[name](tmp_path / "raw"):
        for part in converter.CARD.parts if raw.is_dir() else converter.CARD.parts[:1]:
            seen.add(part)
            whole = numbered(name, raw, part, all_of_it := Shard(block=1))
            assert [outcome for _, outcome in whole] == list(converter.convert(raw, part))
            assert len(whole) == converter.rows(raw, part)
            assert all_of_it.record + 1 >= len(MANY)
            shards = [Shard(index, SHARDS, block=1) for index in range(SHARDS)]
            shares = [numbered(name, raw, part, shard) for shard in shards]
            assert all(record % SHARDS == index for index, share in enumerate(shares) for record, _ in share)
            assert in_order(row for share in shares for row in share) == whole
            assert {shard.record for shard in shards} == {all_of_it.record}
    assert seen == set(converter.CARD.parts)


@pytest.mark.parametrize("name", data_prep.names())
def test_blocks_that_are_done_are_left_out(name: str, tmp_path: Path) -> None:
    assert name in RAWS, f"data_prep/{name}.py is new: give it a raw folder here"
    converter = data_prep.load(name)
    for raw in RAWS[name](tmp_path / "raw"):
        for part in converter.CARD.parts if raw.is_dir() else converter.CARD.parts[:1]:
            whole = numbered(name, raw, part, Shard(block=1))
            left = [row for row in whole if row[0] // 2 not in (0, 2)]
            assert len(left) < len(whole)
            assert numbered(name, raw, part, Shard(block=2, done={0, 2})) == left
            assert numbered(name, raw, part, Shard(1, 2, block=2, done={1})) == [
                row for row in whole if row[0] // 2 % 2 and row[0] // 2 != 1
            ]
