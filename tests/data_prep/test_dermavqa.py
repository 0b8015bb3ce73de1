from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import PrepError, dermavqa
from helpers.converted import converted
from helpers.raws import image, prepared, said
from skinvl.data.example import Dropped, Reference
from skinvl.data.options import chosen

NOT = "Not mentioned"
OPTIONS = {
    "CQID010": ["single spot", "limited area", "widespread", NOT],
    "CQID011": ["head", "neck", "upper extremities", "back", "other (please specify)", NOT],
    "CQID012": ["size of thumb nail", "size of palm", "larger area", NOT],
    "CQID015": ["within hours", "within days", "multiple years", NOT],
    "CQID020": ["raised or bumpy", "flat", "warty", NOT],
    "CQID025": ["yes", "no", NOT],
    "CQID034": ["normal skin color", "red", "brown", NOT],
    "CQID035": ["single", "multiple", NOT],
    "CQID036": ["smooth", "rough", NOT],
}
REPEATS = {"CQID011": 6, "CQID012": 6, "CQID020": 9}
QUERY: dict[str, Any] = {"image_ids": ["IMG_ENC1_1.jpg", "IMG_ENC1_2.jpg"], "responses": []}
QUERY |= {f"query_title_{language}": f"Rash {language}" for language in ("en", "zh", "es")}
QUERY |= {f"query_content_{language}": f"What is it {language}?" for language in ("en", "zh", "es")}


def qids() -> list[str]:
    """The 27 ids as published."""
    return [f"{parent}-{number:03d}" for parent in OPTIONS for number in range(1, REPEATS.get(parent, 1) + 1)]


def definitions() -> list[dict[str, Any]]:
    return [
        {
            "qid": name,
            "question_type_en": "type",
            "question_en": f"{int(name[-3:])} Where is it?" if name[:7] in REPEATS else "How is it?",
            "options_en": OPTIONS[name[:7]],
        }
        for name in qids()
    ]


def gold(encounter: str, **answers: object) -> dict[str, object]:
    """Gold as published: an index for each of the 27 ids, the last option where nothing else is said."""
    padded = {name: len(OPTIONS[name[:7]]) - 1 for name in qids()}
    return {"encounter_id": encounter, **padded, **{name.replace("_", "-"): value for name, value in answers.items()}}


def reply(author: str, words: str, completeness: object, frequent: float = 0.0) -> dict[str, object]:
    contents = {f"content_{language}": f"{words} {language}" for language in ("en", "zh", "es")}
    return {"author_id": author, "completeness": completeness, "contains_freq_ans": frequent, **contents}


def query(encounter: str, *responses: dict[str, object], **changes: object) -> dict[str, object]:
    return {"encounter_id": encounter, **QUERY, "responses": list(responses), **changes}


def put(path: Path, entries: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")


def raw(folder: Path, **files: list[dict[str, object]]) -> Path:
    """A download of the given files, such as train=… and valid_cvqa=…, with definitions and the photos of ENC1."""
    root = folder / "raw"
    for name, entries in files.items():
        put(root / f"{name}.json", entries)
    put(root / "closedquestions_definitions_imageclef2025.json", definitions())
    for number in (1, 2):
        image(root / "images_train" / f"IMG_ENC1_{number}.jpg")
    return root


def test_the_answer_is_the_most_complete_and_the_others_are_references(tmp_path: Path) -> None:
    responses = (
        *(reply("a", "Perhaps eczema", 0.5, 1.0), reply("b", "Scabies", 1.0), reply("c", "Itch mites", 1.0, 1.0)),
        reply("d", "See someone", 0.0),
    )
    root = raw(tmp_path, valid=[query("ENC1", *responses)])
    examples, ledger = converted(dermavqa, root, "m3g")
    (row,) = examples.values()
    assert ledger == []
    assert (row.id, row.group, row.split, row.tags) == ("ENC1-m3g", "ENC1", "validation", ())
    assert row.images == ("images_train/IMG_ENC1_1.jpg", "images_train/IMG_ENC1_2.jpg")
    assert [part["type"] for part in row.messages[0]["content"]] == ["image", "image", "text"]
    assert row.messages[0]["content"][-1]["text"] == "Rash en\n\nWhat is it en?"
    assert row.references == (
        Reference("Itch mites en", 1.0, "c", 1.0),
        Reference("Perhaps eczema en", 0.5, "a", 0.5),
        Reference("Scabies en", 1.0, "b", 1.0),
        Reference("See someone en", 0.0, "d", 0.0),
    )


def test_languages_are_parts_and_what_a_machine_translated_is_tagged(tmp_path: Path) -> None:
    entry = query("ENC1", reply("a", "Scabies", 1.0))
    root = raw(tmp_path, train=[entry], test=[{**entry, "encounter_id": "ENC2"}])
    for part, tags in (("m3g", ["machine-translated"]), ("m3g-zh", []), ("m3g-es", ["machine-translated"])):
        examples, _ = converted(dermavqa, root, part)
        language = part.partition("-")[2] or "en"
        assert said_last(examples[f"ENC1-{part}"]) == f"Scabies {language}"
        assert list(examples[f"ENC1-{part}"].tags) == tags
        assert examples[f"ENC2-{part}"].tags == ()  # people translated the test
        assert examples[f"ENC2-{part}"].split == "test"
        assert examples[f"ENC2-{part}"].references == ()


def said_last(row: Any) -> str:
    return str(row.messages[-1]["content"][0]["text"])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"query_title_en": "[deleted by user]"}, "withdrawn"),
        ({"query_content_en": " [removed] "}, "withdrawn"),
        ({"query_content_en": "[Deleted]"}, "withdrawn"),
        ({"query_title_en": "", "query_content_en": ""}, "unknown-value"),
        ({"responses": [reply("a", "", 1.0) | {"content_en": "[deleted]"}]}, "no-answer"),
        ({"responses": []}, "no-answer"),
        ({"responses": [reply("a", "No idea", 0.0)]}, "no-answer"),
        ({"responses": "x"}, "malformed"),
        ({"image_ids": []}, "missing-image"),
        ({"image_ids": "x"}, "malformed"),
        ({"encounter_id": ""}, "malformed"),
    ],
)
def test_what_has_no_question_or_no_answer(tmp_path: Path, changes: dict[str, object], rule: str) -> None:
    entry = query("ENC1", reply("a", "Scabies", 1.0)) | changes
    examples, (row,) = converted(dermavqa, raw(tmp_path, valid=[entry]), "m3g")
    assert (examples, row.rule, row.row) == ({}, rule, "valid.json[0]")


def test_a_response_that_was_withdrawn_is_none_of_the_references(tmp_path: Path) -> None:
    removed = reply("b", "", 1.0) | {"content_en": "[removed]"}
    root = raw(tmp_path, valid=[query("ENC1", removed, reply("a", "Half", 0.5), reply("c", "Less", 0.0))])
    examples, _ = converted(dermavqa, root, "m3g")
    assert [reference.author for reference in examples["ENC1-m3g"].references] == ["a", "c"]
    assert examples["ENC1-m3g"].tags == ("incomplete-answer",)
    unjudged = raw(tmp_path / "unjudged", valid=[query("ENC1", reply("a", "Half", 0.5), reply("b", "New", None))])
    (row,) = converted(dermavqa, unjudged, "m3g")[0].values()
    assert row.references[0] == Reference("New en", 1.0, "b", None)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        *((text, True) for text in ("Take 10 mg of it", "250mg", "twice a day", "three times daily", "every 8 hours")),
        *(
            (text, True)
            for text in ("1-2 times per day", "使用每日两次", "口服2片", "dos veces al día", "cada 12 horas")
        ),
        *((text, False) for text in ("A cream", "5 months ago", "grade 2", "2 good signs", "see a doctor", "两次复发")),
    ],
)
def test_advice_with_a_dose_is_tagged(tmp_path: Path, words: str, found: bool) -> None:
    root = raw(tmp_path, valid=[query("ENC1", reply("a", "Scabies", 1.0), reply("b", words, 0.5))])
    (row,) = converted(dermavqa, root, "m3g")[0].values()
    assert row.tags == ("dosage",) * found  # it may be drawn
    root = raw(tmp_path / "never", valid=[query("ENC1", reply("a", "Scabies", 1.0), reply("b", words, 0.0))])
    (row,) = converted(dermavqa, root, "m3g")[0].values()
    assert row.tags == ()  # it is never trained on


def closed(folder: Path, *entries: dict[str, object], split: str = "train", **changes: object) -> Path:
    entry = query("ENC1", reply("a", "Scabies", 1.0)) | changes
    return raw(folder, **{split: [entry], f"{split}_cvqa": list(entries)})


def test_a_question_and_its_repeats_are_one_set(tmp_path: Path) -> None:
    answers = {"CQID011_001": 3, "CQID011_002": 0, "CQID011_003": 3, "CQID010_001": "2", "CQID036_001": 0}
    examples, ledger = converted(dermavqa, closed(tmp_path, gold("ENC1", **answers)), "das")
    assert ledger == []
    assert sorted(examples) == [f"ENC1-{parent}" for parent in OPTIONS]
    rights = {name[5:]: row.right for name, row in examples.items()}
    assert rights["CQID011"] == (0, 3)  # the padding of the other four repeats is none of it
    assert rights["CQID010"] == (2,)
    assert rights["CQID012"] == (3,)  # "Not mentioned" alone is the answer
    for row in examples.values():
        question, answer = said(row)
        assert row.options == tuple(OPTIONS[row.id[5:]])
        assert chosen(answer, question, row.options) == frozenset(row.right)
        assert "1 Where" not in question
    assert said(examples["ENC1-CQID011"])[1] == "A. head\nD. back"
    assert examples["ENC1-CQID020"].facts.kind == "morphology"


def test_what_no_photo_shows_is_asked_with_the_words_of_the_patient(tmp_path: Path) -> None:
    examples, _ = converted(dermavqa, closed(tmp_path, gold("ENC1")), "das")
    told = {name: row for name, row in examples.items() if "What is it en?" in said(row)[0]}
    assert sorted(told) == ["ENC1-CQID015", "ENC1-CQID025"]
    assert {row.tags for row in told.values()} == {("machine-translated", "text-grounded")}
    assert {row.tags for name, row in examples.items() if name not in told} == {()}
    valid, _ = converted(dermavqa, closed(tmp_path / "valid", gold("ENC1"), split="valid"), "das")
    assert valid["ENC1-CQID015"].tags == ("text-grounded",)
    root = closed(tmp_path / "withdrawn", gold("ENC1"), query_content_en="[removed]")
    rest, ledger = converted(dermavqa, root, "das")
    assert len(rest) == 7
    assert [(row.row, row.rule) for row in ledger] == [
        ("train_cvqa.json[0] CQID015", "withdrawn"),
        ("train_cvqa.json[0] CQID025", "withdrawn"),
    ]


def test_gold_that_means_nothing(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = [gold("ENC1", CQID010_001=9), gold("ENC1", CQID010_001=True)]
    entries += [gold("ENC9"), {"encounter_id": "ENC1"}]
    _, ledger = converted(dermavqa, closed(tmp_path, *entries), "das")
    rules: dict[str, list[str]] = {}
    for row in ledger:
        rules.setdefault(row.row.split()[0], []).append(row.rule)
    assert rules["train_cvqa.json[0]"] == rules["train_cvqa.json[1]"] == ["malformed"]
    assert rules["train_cvqa.json[2]"] == rules["train_cvqa.json[3]"] == ["unknown-value"] * 9


def test_prep_keeps_not_mentioned_and_the_official_split(tmp_path: Path) -> None:
    """It is a placeholder where it is all that is said; as one of the options of a question it is an answer."""
    root = closed(tmp_path, gold("ENC1"))
    total, examples, ledger = prepared("dermavqa", root, "das")
    assert (total, len(examples), ledger) == (9, 9, [])
    total, examples, ledger = prepared("dermavqa", raw(tmp_path / "m3g", test=[query("ENC1", reply("a", "It", 1.0))]))
    assert (total, ledger, [row.split for row in examples.values()]) == (1, [], ["test"])


def test_a_photo_that_is_missing_leaves_the_others(tmp_path: Path) -> None:
    root = raw(tmp_path, valid=[query("ENC1", reply("a", "Scabies", 1.0))])
    (root / "images_train" / "IMG_ENC1_2.jpg").unlink()
    _, examples, _ = prepared("dermavqa", root)
    assert examples["ENC1-m3g"].images == ("images/images_train/IMG_ENC1_1.jpg",)
    assert examples["ENC1-m3g"].tags == ("fewer-images",)


def test_names_without_an_ending_are_found_and_another_ending_is_tagged(tmp_path: Path) -> None:
    bare = query("ENC1", reply("a", "Scabies", 1.0), image_ids=["IMG_ENC1_1"])
    (row,) = converted(dermavqa, raw(tmp_path, valid=[bare]), "m3g")[0].values()
    assert (row.images, row.tags) == (("images_train/IMG_ENC1_1.jpg",), ())
    other = bare | {"image_ids": ["IMG_ENC1_1.png"]}
    (row,) = converted(dermavqa, raw(tmp_path / "other", valid=[other]), "m3g")[0].values()
    assert row.tags == ("other-ending",)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    root = raw(tmp_path, test=[], test_corrected=[])
    with pytest.raises(PrepError, match=r"test\.json and test_corrected\.json are both of the split test; leave one"):
        dermavqa.rows(root, "m3g")
    with pytest.raises(PrepError, match=r"no file train_cvqa\.json or its like"):
        dermavqa.rows(root, "das")
    root = closed(tmp_path / "other", gold("ENC1"))
    assert dermavqa.absent(root, "das") == ["no file valid_cvqa.json, test_cvqa.json, so that its split has no rows"]
    path = root / "closedquestions_definitions_imageclef2025.json"
    put(path, definitions()[:-1])
    with pytest.raises(PrepError, match=r"no question CQID036; expected CQID010, "):
        list(dermavqa.convert(root, "das"))
    for value in (["one"], "abc", ["a", "a"], ["a", ""], 7):
        put(path, [*definitions()[:-1], {**definitions()[-1], "options_en": value}])
        with pytest.raises(PrepError, match=r"imageclef2025\.json\[26\] CQID036-001: question_en 'How is it\?' and"):
            list(dermavqa.convert(root, "das"))
    put(path, [{**entry, "options_en": OPTIONS["CQID010"]} if entry["qid"] == "CQID011-004" else entry
               for entry in definitions()])  # fmt: skip
    with pytest.raises(PrepError, match="the same for all repeats of CQID011"):
        list(dermavqa.convert(root, "das"))


def test_dropped_rows_name_their_place(tmp_path: Path) -> None:
    rows = list(dermavqa.convert(raw(tmp_path, train=[{}], test=[query("ENC1")]), "m3g"))
    assert [row.row for row in rows if isinstance(row, Dropped)] == ["train.json[0]", "test.json[0]"]
