"""MILK10k: pairs in one conversation, the levels as turns, tone on its own scale, blind lesions without an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from data_prep import PrepError, milk10k
from helpers.converted import converted
from helpers.raws import image, prepared, said, table
from skinvl.data import licences
from skinvl.data.example import Dropped, Example, words
from skinvl.data.labels import MILK10K_CODES
from skinvl.sources.prepare.steps import prepare

IMAGE = {"attribution": "Medical University of Vienna", "copyright_license": "CC-BY-NC", "image_manipulation": ""}
IMAGE |= {"age_approx": "55", "sex": "female", "skin_tone_class": "3", "site": "lower_extremity"}
LEVELS = ("Malignant", "Malignant adnexal epithelial proliferations - Follicular", "Basal cell carcinoma")
LEVELS += ("Basal cell carcinoma, Nodular", "")


def pair(number: int, **more: str) -> list[dict[str, str]]:
    """The rows of a lesion's two images."""
    views = ("clinical: close-up", "dermoscopic")
    return [
        {"lesion_id": f"IL_{number}", "image_type": view, "isic_id": f"ISIC_{number}{place}", **IMAGE, **more}
        for place, view in enumerate(views)
    ]


def hot(number: int, *codes: str) -> dict[str, str]:
    return {"lesion_id": f"IL_{number}", **{code: f"{float(code in codes)}" for code in MILK10K_CODES}}


def put(
    raw: Path,
    images: list[dict[str, str]],
    truth: list[dict[str, str]],
    fine: Mapping[str, str] | None = None,
    nested: str = "",
) -> Path:
    """RAW in the published layout, images and all; `fine` are diagnoses by isic_id."""
    table(raw / milk10k.METADATA, images)
    table(raw / milk10k.TRUTH, truth)
    if fine:
        table(raw / milk10k.SUPPLEMENT, [{"isic_id": name, "diagnosis_full": value} for name, value in fine.items()])
    for row in images:
        image(raw / "MILK10k_Training_Input" / nested / row["lesion_id"] / f"{row['isic_id']}.jpg")
    return raw


def archived(raw: Path, images: list[dict[str, str]], levels: tuple[str, ...], **more: str) -> None:
    """The archive's own table of the same images."""
    named = {f"diagnosis_{number}": level for number, level in enumerate(levels, 1)}
    keys = ("isic_id", "lesion_id", "image_type")
    table(raw / "metadata.csv", [{**{key: row[key] for key in keys}, **named, **more} for row in images])


def answers(example: Example) -> list[str]:
    return [words(turn) for turn in example.messages if turn["role"] == "assistant"]


def test_a_pair_is_one_conversation_with_its_views(tmp_path: Path) -> None:
    images = [row for number in range(20) for row in pair(number)]
    fine = {row["isic_id"]: "Basal cell carcinoma" for row in images}
    raw = put(tmp_path, images, [hot(number, "BCC") for number in range(20)], fine)
    archived(raw, images, LEVELS, diagnosis_confirm_type="histopathology")
    examples, ledger = converted(milk10k, raw, "challenge")
    assert ledger == []
    assert len(examples) == 20 * 5
    row = examples["IL_7-diagnosis"]
    assert [part["type"] for part in row.messages[0]["content"]] == ["image", "image", "text"]
    assert sorted(row.images) == [f"MILK10k_Training_Input/IL_7/ISIC_7{place}.jpg" for place in range(2)]
    assert row.facts.modality is None
    assert (row.group, set(row.identities)) == ("IL_7", {"IL_7", "ISIC_70", "ISIC_71"})
    assert "basal cell carcinoma" in said(row)[1]
    assert row.facts.diagnosis == "basal cell carcinoma"
    # Every conversation about a lesion shows its images in one order, which differs between lesions.
    for example in examples.values():
        assert example.images == examples[f"{example.id.partition('-')[0]}-diagnosis"].images
        views = tuple({"0": "clinical close-up", "1": "dermoscopic"}[path[-5]] for path in example.images)
        assert example.facts.views == views
    assert len({row.facts.views for row in examples.values()}) == 2
    assert {row.split for row in examples.values()} == {"train", "validation"}


def test_which_image_is_which(tmp_path: Path) -> None:
    images = [row for number in range(40) for row in pair(number)]
    examples, _ = converted(milk10k, put(tmp_path, images, [hot(number, "NV") for number in range(40)]), "challenge")
    counts: Counter[tuple[bool, str]] = Counter()
    for number in range(40):
        row = examples[f"IL_{number}-view"]
        assert [part["type"] for part in row.messages[0]["content"]] == ["text", "image", "text"] * 2 + ["text"]
        question, answer = said(row)
        plain = any(question.endswith(asked) for asked in milk10k.CLINICAL)
        assert plain or any(question.endswith(asked) for asked in milk10k.DERMOSCOPIC)
        named = row.facts.views[["first" in answer, "second" in answer].index(True)]
        assert named == ("clinical close-up" if plain else "dermoscopic")
        counts[plain, answer.split()[-2]] += 1
    assert len(counts) == 4  # asked both ways, and both are first now and then


def test_the_levels_are_turns(tmp_path: Path) -> None:
    raw = put(tmp_path, pair(1) + pair(2), [hot(1, "BCC"), hot(2, "BCC")])
    archived(raw, pair(1), LEVELS, diagnosis_confirm_type="histopathology")
    examples, ledger = converted(milk10k, raw, "challenge")
    row = examples["IL_1-hierarchy"]
    assert [turn["role"] for turn in row.messages] == ["user", "assistant"] * 4
    assert sum(part["type"] == "image" for part in row.messages[0]["content"]) == 2
    assert all(level in answer for level, answer in zip(LEVELS, answers(row), strict=False))
    assert answers(row)[0] in ("Malignant.", "It is Malignant.")
    questions = [words(turn) for turn in row.messages[::2]]
    assert not any(level in question for question in questions for level in LEVELS if level)
    assert Dropped(f"{milk10k.TRUTH}:3 hierarchy", "no-hierarchy", "diagnosis_1 to diagnosis_5 have 0 levels") in ledger
    assert row.facts.confirmed == "histopathology"
    assert examples["IL_2-class"].facts.confirmed is None
    assert "histopathology" not in " ".join(words(turn) for made in examples.values() for turn in made.messages)
    assert examples["IL_1-diagnosis"].facts.diagnosis == "basal cell carcinoma"
    assert "basal cell carcinoma, nodular" in said(examples["IL_1-diagnosis"])[1]


def test_tone_is_never_a_skin_type_and_the_institution_never_spoken(tmp_path: Path) -> None:
    images = pair(1, skin_tone_class="0") + pair(2, skin_tone_class="5.0") + pair(3, skin_tone_class="")
    examples, _ = converted(milk10k, put(tmp_path, images, [hot(n, "MEL") for n in (1, 2, 3)]), "challenge")
    facts = [examples[f"IL_{number}-class"].facts for number in (1, 2, 3)]
    assert [fact.tone for fact in facts] == ["MILK 0", "MILK 5", None]
    assert {fact.skin_type for fact in facts} == {None}
    assert {fact.institution for fact in facts} == {"Medical University of Vienna"}
    assert (facts[0].site, facts[0].age, facts[0].sex) == ("lower extremity", 55.0, "female")
    spoken = " ".join(words(turn) for row in examples.values() for turn in row.messages)
    assert not any(word in spoken for word in ("Vienna", "MILK", "tone", "extremity"))
    with pytest.raises(PrepError, match=r"skin_tone_class: found '6'; expected 0, 0\.0, 1, "):
        converted(milk10k, put(tmp_path, pair(4, skin_tone_class="6"), [hot(4, "MEL")]), "challenge")


def test_collisions_have_a_class_and_no_diagnosis(tmp_path: Path) -> None:
    name = "Collision - At least one malignant proliferation"
    raw = put(tmp_path, pair(1), [hot(1, "MAL_OTH")], {"ISIC_10": name, "ISIC_11": name})
    archived(raw, pair(1), ("Malignant", "Malignant other", name))
    examples, ledger = converted(milk10k, raw, "challenge")
    assert {name.partition("-")[2] for name in examples} == {"class", "malignancy", "hierarchy", "view"}
    assert [(row.rule, row.row.split()[1]) for row in ledger] == [("collision", "diagnosis")]
    assert examples["IL_1-class"].facts.diagnosis is None
    assert examples["IL_1-class"].facts.malignancy == "malignant"
    assert "other malignant proliferation" in said(examples["IL_1-class"])[1]
    assert not any("ollision" in answer for answer in answers(examples["IL_1-hierarchy"]))


@pytest.mark.parametrize(
    ("code", "fine", "diagnosis", "danger"),
    [
        ("NV", "Nevus, dermal", "nevus", "benign"),
        ("AKIEC", "Solar or actinic keratosis", "actinic keratosis", "premalignant"),
        ("AKIEC", "Squamous cell carcinoma in situ", "squamous cell carcinoma in situ", "malignant"),
        ("AKIEC", "", None, "premalignant"),
        ("BEN_OTH", "Juvenile xanthogranuloma", "juvenile xanthogranuloma", "benign"),
        ("BKL", "Solar lentigo", "solar lentigo", "benign"),
        ("SCCKA", "", None, "malignant"),
        ("MEL", "Melanoma metastasis", "melanoma metastasis", "malignant"),
    ],
)
def test_fine_names_and_classes(tmp_path: Path, code: str, fine: str, diagnosis: str | None, danger: str) -> None:
    raw = put(tmp_path, pair(1), [hot(1, code)], {"ISIC_10": fine, "ISIC_11": fine})
    examples, _ = converted(milk10k, raw, "challenge")
    row = examples["IL_1-class"]
    assert MILK10K_CODES[code] in said(row)[1]
    assert (row.facts.diagnosis, row.facts.malignancy) == (diagnosis, danger)
    assert ("IL_1-diagnosis" in examples) == bool(fine)


def test_labels_that_contradict_are_rows_of_the_ledger(tmp_path: Path) -> None:
    fine = {"ISIC_20": "Nevus", "ISIC_21": "Melanoma"}
    images = [*pair(1), *pair(2), *pair(3), *pair(5)]
    raw = put(tmp_path, images, [hot(1, "NV", "MEL"), hot(2, "NV"), hot(3), hot(4, "NV")], fine)
    archived(raw, pair(3), ("Indeterminate", "Indeterminate melanocytic proliferations", "Melanocytic lesion"))
    examples, ledger = converted(milk10k, raw, "challenge")
    assert len(examples) + len(ledger) == 5 * 5  # one has no image, and one no row in the ground truth
    found = {(row.row.partition(":")[2], row.rule): row.detail for row in ledger}
    assert found["2 class", "unknown-value"] == "the ground truth names 2 classes: MEL, NV"
    assert found["3 diagnosis", "several-diagnoses"] == "its images have the diagnoses melanoma, nevus"
    assert found["4 class", "unknown-value"] == "the ground truth names 0 classes: none"
    assert found["4 malignancy", "indeterminate"] == "diagnosis_1 is 'Indeterminate'"
    assert Counter(rule for where, rule in found if where.startswith("5 ")) == {"missing-image": 5}
    assert Dropped(f"{milk10k.METADATA}:8 class", "unknown-value", "the ground truth names 0 classes: none") in ledger
    assert "IL_5-view" in examples


def test_a_folder_that_is_nested_twice_and_a_copy_of_it(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", pair(1), [hot(1, "NV")], nested="MILK10k_Training_Input")
    _, examples, ledger = prepared("milk10k", raw)
    assert {row.rule for row in ledger} == {"unknown-value", "no-hierarchy"}
    assert all("MILK10k_Training_Input/MILK10k_Training_Input/IL_1/" in path for path in examples["IL_1-view"].images)
    put(tmp_path / "raw", pair(1), [hot(1, "NV")])
    assert len(prepared("milk10k", raw)[1]) == 3


def test_an_image_that_is_missing_leaves_the_other_with_its_view(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", pair(1) + pair(2), [hot(1, "NV"), hot(2, "NV")])
    (raw / "MILK10k_Training_Input" / "IL_1" / "ISIC_10.jpg").unlink()
    _, examples, ledger = prepared("milk10k", raw)
    row = examples["IL_1-class"]
    assert row.tags == ("fewer-images",)
    assert (len(row.images), row.facts.views) == (1, ("dermoscopic",))
    assert "IL_1-view" not in examples  # which is which of one means nothing
    assert [row.rule for row in ledger if row.row.endswith("IL_1-view")] == ["missing-image"]
    alone = prepare("milk10k", raw, tmp_path / "alone", keep=["missing-image"], drop=["fewer-images"])
    assert alone is not None
    assert alone.tags["missing-image"]


def test_what_a_model_saw_is_a_tag_wherever_its_column_stands(tmp_path: Path) -> None:
    gel, hair, pen = milk10k.MONET
    images = pair(1, **{gel: "0.2", hair: "0.7"}) + pair(2, **{gel: "", hair: "0.1"})
    raw = put(tmp_path, images, [hot(1, "NV"), hot(2, "NV")])
    table(raw / milk10k.SUPPLEMENT, [{"isic_id": "ISIC_20", "diagnosis_full": "Nevus", pen: "0.5"}])
    examples, _ = converted(milk10k, raw, "challenge")
    assert (examples["IL_1-class"].tags, examples["IL_2-class"].tags) == (("hair",), ("pen",))
    spoken = " ".join(words(turn) for row in examples.values() for turn in row.messages)
    assert not any(f" {word}" in spoken for word in ("hair", "gel", "pen ", "0."))
    put(tmp_path / "b", pair(1, **{gel: "much"}), [hot(1, "NV")])
    with pytest.raises(PrepError, match="found 'much'; expected a number from 0 to 1"):
        converted(milk10k, tmp_path / "b", "challenge")


def test_altered_images_are_tagged_and_synthetic_ones_left_out(tmp_path: Path) -> None:
    images = pair(1, image_manipulation="altered") + pair(2, image_manipulation="synthetic")
    examples, ledger = converted(milk10k, put(tmp_path, images, [hot(1, "NV"), hot(2, "NV")]), "challenge")
    assert {row.tags for row in examples.values()} == {("altered-image",)}
    assert Counter(row.rule for row in ledger)["synthetic-image"] == 5


def test_each_image_has_its_licence(tmp_path: Path) -> None:
    images = pair(1)
    images[1]["copyright_license"] = "CC-BY"
    examples, _ = converted(milk10k, put(tmp_path, images + pair(2), [hot(1, "NV"), hot(2, "NV")]), "challenge")
    both = examples["IL_1-class"].licence
    assert {*both.split(", ")} == {"CC-BY-NC-4.0", "CC-BY-4.0"}
    assert licences.read(both).id == "cc-by-nc-4.0"
    assert examples["IL_2-class"].licence == "CC-BY-NC-4.0"


def test_blind_lesions_are_asked_only_what_is_known_of_them(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", pair(1), [hot(1, "NV")])
    table(raw / milk10k.BLIND, pair(8) + pair(9))
    for row in pair(8) + pair(9):
        image(raw / "MILK10k_Test_Input" / row["lesion_id"] / f"{row['isic_id']}.jpg")
    account = prepare("milk10k", raw, tmp_path / "out", ["blind"])
    assert account is not None
    assert account.examples == {"test": 2}
    examples, ledger = converted(milk10k, raw, "blind")
    assert ledger == []
    assert sorted(examples) == ["IL_8-view", "IL_9-view"]
    facts = examples["IL_8-view"].facts
    assert (facts.diagnosis, facts.malignancy, facts.tone) == (None, None, "MILK 3")
    assert {row.split for row in examples.values()} == {"test"}
    assert sorted(examples["IL_8-view"].images) == [f"MILK10k_Test_Input/IL_8/ISIC_8{place}.jpg" for place in range(2)]


def test_the_archives_table_alone(tmp_path: Path) -> None:
    images = [*pair(1), {**pair(2)[0], "lesion_id": ""}, {**pair(3)[1], "image_type": "RCM: macroscopic"}]
    archived(tmp_path, images, LEVELS, attribution="Hospital Clinic", anatom_site_1="Head and neck")
    examples, ledger = converted(milk10k, tmp_path, "archive")
    assert len(examples) + len(ledger) == 3 * 4
    row = examples["IL_1-diagnosis"]
    assert (row.facts.institution, row.facts.site, row.facts.malignancy) == (
        "Hospital Clinic",
        "head or neck",
        "malignant",
    )
    assert (examples["ISIC_20-diagnosis"].group, examples["ISIC_20-diagnosis"].facts.modality) == (
        "ISIC_20",
        "clinical",
    )
    assert examples["IL_3-diagnosis"].facts.views == ()
    assert [row.detail for row in ledger] == ["image_type is 'clinical: close-up'", "image_type is 'RCM: macroscopic'"]
    table(tmp_path / "other.csv", [{"isic_id": "x", "diagnosis": ""}])
    with pytest.raises(PrepError, match=r"expected one table of the archive.*; found metadata\.csv, other\.csv"):
        converted(milk10k, tmp_path, "archive")


def test_columns_that_no_table_has_are_named(tmp_path: Path) -> None:
    raw = put(tmp_path, pair(1), [hot(1, "NV")])
    (sentence,) = milk10k.absent(raw, "challenge")
    start = (
        f"{milk10k.METADATA}: no column diagnosis_full or diagnosis_3, diagnosis_1, diagnosis_confirm_type, MONET_gel"
    )
    assert sentence.startswith(start)
    archived(raw, pair(1), LEVELS, diagnosis_confirm_type="histopathology")
    assert milk10k.absent(raw, "challenge")[0].startswith(f"{milk10k.METADATA}, metadata.csv: no column MONET_gel")
    assert milk10k.absent(raw, "blind") == []
