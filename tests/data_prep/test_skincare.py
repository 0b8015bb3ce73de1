from __future__ import annotations

import csv
from pathlib import Path

import pytest

from data_prep import PrepError, ddi, fitzpatrick17k, in_archive, skincare, skincon, split_of
from helpers.converted import converted
from helpers.raws import image, prepared, said
from skinvl.data import licences
from skinvl.data.example import Facts

MD5 = "0a" * 16
ROW = {"id": "1", "skincap_file_path": "1.png", "ori_file_path": f"{MD5}.jpg", "disease": "Psoriasis"}
ROW |= {"skin_tone": "", "caption_zh": "膝部斑块。", "caption_zh_polish": "膝部有鳞屑性斑块。"}
ROW |= {"caption_zh_polish_en": "Scaly plaques on the knee. The diagnosis is psoriasis."}
ROW |= {"Do not consider this image": "0"}


def raw(folder: Path, *changes: dict[str, str]) -> Path:
    """The CSV file of SkinCAP with its flags, and its photos."""
    rows = [{**ROW, **dict.fromkeys(map(str.title, skincon.CONCEPTS), "0"), **change} for change in changes]
    root = folder / "raw"
    root.mkdir(parents=True)
    with (root / "skincap_v240623.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        image(root / "skincap" / row["skincap_file_path"])
    return root


def cot(folder: Path, **texts: str) -> Path:
    """The tree of SkinCoT, of one class, with the same texts in both languages."""
    root = folder / "raw" / "SkinCoT"
    for name, words in texts.items():
        image(root / "images" / "Psoriasis pictures" / f"{name}.jpg")
        for language in ("EN", "ZH"):
            path = root / language / "Psoriasis pictures" / f"{name}.jpg.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(words, encoding="utf-8")
    return folder / "raw"


def test_captions_in_two_languages(tmp_path: Path) -> None:
    root = raw(tmp_path, {"Scale": "1", "Wheal": "", "skin_tone": "34"}, {"skincap_file_path": "2.png"})
    examples, ledger = converted(skincare, root, "caption")
    assert ledger == []
    row = examples["1-caption"]
    assert said(row)[1] == ROW["caption_zh_polish_en"]
    assert row.images == ("skincap/1.png",)
    assert (row.facts.diagnosis, row.facts.skin_type, row.facts.kind) == ("psoriasis", "III-IV", "description")
    assert row.facts.present == ("scale",)
    assert "wheal" not in row.facts.absent
    assert len(row.facts.absent) == 46
    chinese, _ = converted(skincare, root, "caption-zh")
    assert said(chinese["1-caption-zh"])[1] == "膝部有鳞屑性斑块。"
    assert said(chinese["1-caption-zh"])[0] in skincare.DESCRIBE_ZH


def test_what_should_not_be_considered_or_has_no_caption(tmp_path: Path) -> None:
    changes = {"Do not consider this image": "1"}, {"caption_zh_polish_en": " "}, {"skincap_file_path": ".."}
    root = raw(tmp_path, *changes[:2])
    _, ledger = converted(skincare, root, "caption")
    assert [row.rule for row in ledger] == ["not-considered", "empty"]
    assert [row.row for row in ledger] == ["skincap_v240623.csv:2", "skincap_v240623.csv:3"]


@pytest.mark.parametrize(
    ("ending", "tagged"),
    [
        ("It is consistent with eczema. See a doctor.", True),
        ("The diagnosis is Eczema.", True),
        ("Consider psoriasis or eczema.", False),
        ("The diagnosis is pustular psoriasis.", False),
        ("A biopsy should rule out eczema.", False),
        ("Eczema-like plaques are seen.", False),
        ("Eczema was suspected. Later it spread. It itches.", False),
        ("A biopsy is advised.", False),
    ],
)
def test_an_ending_against_the_label_is_tagged_and_kept(tmp_path: Path, ending: str, tagged: bool) -> None:
    caption = f"Scaly plaques on the knee. {ending}"
    other = {"disease": "eczema", "skincap_file_path": "2.png"}
    root = raw(tmp_path, {"caption_zh_polish_en": caption}, other)
    for part in ("caption", "caption-zh"):
        examples, _ = converted(skincare, root, part)
        assert examples[f"1-{part}"].tags == ("contrary-diagnosis",) * tagged
    examples, _ = converted(skincare, root, "caption")
    assert said(examples["1-caption"])[1] == caption  # never changed


def test_the_photos_names_in_their_own_sets(tmp_path: Path) -> None:
    """F17k's and DDI's converters know these photos by the same names, in the same splits."""
    rows = (
        *({}, {"skincap_file_path": "2.png", "ori_file_path": "images/000007.png"}),
        *({"skincap_file_path": f"{MD5}.png", "ori_file_path": ""}, {"skincap_file_path": "000009.png"}),
        {"skincap_file_path": "000008.png", "ori_file_path": "x.png"},
    )
    examples, _ = converted(skincare, raw(tmp_path, *rows), "caption")
    groups = {name.removesuffix("-caption"): row.group for name, row in examples.items()}
    assert groups["1"] == groups[MD5] == in_archive(fitzpatrick17k.CARD.archive, MD5)
    assert groups["2"] == in_archive(ddi.CARD.archive, "000007.png")
    assert groups["000008"] == "000008.png"  # six figures of SkinCAP's own may be any photo
    assert examples["1-caption"].identities == (groups["1"], "1.png")
    assert examples["1-caption"].split == split_of(MD5)
    assert examples["2-caption"].split == split_of("000007.png")


def test_reasoning_is_a_thought_where_the_text_tells_its_end(tmp_path: Path) -> None:
    texts = {"a": "Silvery scale.\n\n**Final Diagnosis:** Psoriasis.", "b": "Scale speaks for psoriasis.", "c": " "}
    root = cot(tmp_path, **texts, **{MD5: "红斑。\n诊断:银屑病"})
    for part in ("cot", "cot-zh"):
        examples, ledger = converted(skincare, root, part)
        assert [(row.row.rpartition("/")[2], row.rule) for row in ledger] == [("c.jpg.txt", "empty")]
        thought, plain, chinese = (examples[f"Psoriasis pictures/{name}.jpg-{part}"] for name in ("a", "b", MD5))
        assert (thought.thoughts, said(thought)[1]) == (("Silvery scale.",), "Psoriasis.")
        assert (plain.thoughts, said(plain)[1]) == ((), texts["b"])
        assert (chinese.thoughts, said(chinese)[1]) == (("红斑。",), "银屑病")
        assert [row.facts.kind for row in (thought, plain)] == ["diagnosis", "reasoning"]
        assert {row.tags for row in examples.values()} == {("label-conditioned",)}
        assert chinese.group == in_archive("fitzpatrick17k", MD5)
        assert thought.facts == Facts(modality="clinical", kind="diagnosis")  # a class of 23 is no diagnosis
        assert thought.images == ("SkinCoT/images/Psoriasis pictures/a.jpg",)
        assert (said(thought)[0] in skincare.DIAGNOSE_ZH) == (part == "cot-zh")


def test_a_text_that_lies_outside_is_not_read(tmp_path: Path) -> None:
    root = cot(tmp_path, a="Silvery scale.")
    (tmp_path / "secret").write_text("What lies outside.")
    path = root / "SkinCoT" / "EN" / "Psoriasis pictures" / "a.jpg.txt"
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    examples, (row,) = converted(skincare, root, "cot")
    assert (examples, row.rule) == ({}, "unsafe-path")


def test_prep_joins_both_languages_of_a_photo(tmp_path: Path) -> None:
    total, examples, _ = prepared("skincare", cot(tmp_path, a="Silvery scale.\nConclusion: psoriasis."), "cot")
    assert (total, len(examples)) == (1, 1)
    (row,) = examples.values()
    assert row.thoughts == ("Silvery scale.",)
    assert row.tags == ("label-conditioned",)


def test_a_tree_without_its_folders_and_a_table_without_its_columns(tmp_path: Path) -> None:
    root = raw(tmp_path, {})
    with pytest.raises(PrepError, match="expected one folder EN beside a folder images; found none"):
        skincare.rows(root, "cot")
    assert skincare.absent(root, "caption") == []
    path = root / "skincap_v240623.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("ori_file_path", "x").replace("skin_tone", "y"))
    (sentence,) = skincare.absent(root, "caption")
    assert "no column ori_file_path or imageid or ddi_file or md5hash, skin_tone or fitzpatrick_scale" in sentence
    path.write_text(path.read_text(encoding="utf-8").replace("caption_zh_polish_en", "z"))
    with pytest.raises(PrepError, match="no column caption_zh_polish_en; found id, "):
        list(skincare.convert(root, "caption"))


def test_of_terms_that_contradict_one_another_the_strictest_hold() -> None:
    """The two licences alone would permit a public model; the gate permits no derivatives."""
    terms = licences.read(skincare.CARD.licence)
    assert (terms.derivatives, terms.commercial) == (False, False)
    base = licences.read("Apache-2.0")
    assert licences.chosen(base, {"skincare": terms}).private
    milder = licences.read("CC-BY-NC-SA-4.0, CC-BY-4.0")
    assert not licences.chosen(base, {"skincare": milder}).private
    with pytest.raises(licences.LicenceError, match="allows no derivatives"):
        licences.chosen(base, {"skincare": terms}, "cc-by-nc-sa-4.0")
