"""Benchmarks from what the converters make and from the released CSV files: every class, every refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import data_prep
from helpers.raws import image, table
from skinvl.data import labels
from skinvl.data.example import Example, Facts, Message, text, validate, words, write
from skinvl.data.labels import CLASSES
from skinvl.evaluate import benchmarks
from skinvl.evaluate.benchmarks import BenchmarkError, load
from skinvl.recipe.recipe import ClassSpec

ISIC_2019, DERM12345 = labels.ISIC_2019_CODES, labels.DERM12345_CODES


def spec(source: Path | str, **more: Any) -> ClassSpec:
    return ClassSpec(source=str(source), **more)


def source(folder: Path, rows: Iterable[Example], split: str = "test") -> Path:
    """The rows as a split of a prepared source, without its images."""
    folder.mkdir(exist_ok=True)
    write(folder, split, [replace(row, split=split) for row in rows])
    return folder


def converted(tmp_path: Path, converter: str, part: str, name: str = "") -> Path:
    """What a converter makes of tmp_path/raw, as the test split of the source `name`."""
    made = data_prep.load(converter).convert(tmp_path / "raw", part)
    return source(tmp_path / (name or converter), (row for row in made if isinstance(row, Example)))


def found(task: benchmarks.Task) -> dict[str, str | None]:
    """The label of each sample, by the stem of its image."""
    assert len({sample.example.id for sample in task.samples}) == len(task.samples)
    for sample in task.samples:
        validate(sample.example)
        assert (sample.label is None) == bool(sample.detail)
        assert words(sample.example.messages[-1]) == (sample.label or "unknown")
        assert words(sample.example.messages[-2]) == task.question
    return {Path(sample.example.images[0]).stem: sample.label for sample in task.samples}


def blank(columns: Iterable[str], **values: str) -> dict[str, str]:
    return {**dict.fromkeys(columns, ""), **values}


def test_ham10000_has_its_seven_classes(tmp_path: Path) -> None:
    from data_prep.ham10000 import COLUMNS, FILE

    codes = enumerate([*labels.HAM_CODES, "nv"])
    rows = [blank(COLUMNS, lesion_id=f"L{place}", image_id=f"i{place}", dx=code) for place, code in codes]
    table(tmp_path / "raw" / FILE, rows)
    task = load(spec(converted(tmp_path, "ham10000", "vqa")))
    said = ("Actinic Keratoses", "Basal Cell Carcinoma", "Benign Keratosis", "Dermatofibroma", "Melanoma", "Nevus")
    assert found(task) == {f"i{place}": name for place, name in enumerate([*said, "Vascular lesions", "Nevus"])}
    assert (task.name, task.benchmark, task.classes) == ("ham10000", "ham10000", CLASSES["ham10000"])
    assert task.malignant == (False, False, True, True, False, False, False)
    assert task.question == "What is the most likely diagnosis?"
    assert {sample.example.facts.kind for sample in task.samples} == {"diagnosis"}


def test_pad_ufes_20_has_its_six_classes(tmp_path: Path) -> None:
    from data_prep.pad_ufes_20 import COLUMNS

    codes = [*labels.PAD_CODES]
    rows = [blank(COLUMNS, patient_id="P", img_id=f"{code}.png", diagnostic=code, itch="True") for code in codes]
    table(tmp_path / "raw" / "metadata.csv", rows)
    task = load(spec(converted(tmp_path, "pad_ufes_20", "vqa"), benchmark="PAD-6"))
    assert {stem: labels.canonical(str(name)) for stem, name in found(task).items()} == labels.PAD_CODES
    assert task.classes == CLASSES["pad_ufes_20"]


def test_ddi_calls_all_that_is_not_malignant_so(tmp_path: Path) -> None:
    from data_prep.ddi import COLUMNS, FILE

    given = {"a": ("True", "melanoma"), "b": ("False", "scar"), "c": ("False", "actinic-keratosis")}
    rows = [dict(zip(COLUMNS, (f"{stem}.png", "12", *value), strict=True)) for stem, value in given.items()]
    table(tmp_path / "raw" / FILE, rows)
    task = load(spec(converted(tmp_path, "ddi", "vqa")))
    assert found(task) == {"a": "Malignant", "b": "Non-Malignant", "c": "Non-Malignant"}
    assert task.malignant == (False, True)
    assert task.question == "Is the finding Non-Malignant or Malignant?"


def archive(tmp_path: Path, rows: Iterable[Mapping[str, str]], name: str) -> Path:
    columns = ("isic_id", "diagnosis", "benign_malignant", "copyright_license")
    table(tmp_path / "raw" / "metadata.csv", [{**blank(columns), **row} for row in rows])
    return converted(tmp_path, "isic", "archive", name)


def test_hiba_has_two_grades_and_leaves_out_a_third(tmp_path: Path) -> None:
    rows = [
        {"isic_id": "a", "diagnosis": "melanoma", "benign_malignant": "malignant"},
        {"isic_id": "b", "diagnosis": "nevus", "benign_malignant": "benign"},
        {"isic_id": "c", "diagnosis": "actinic keratosis"},
    ]
    task = load(spec(archive(tmp_path, rows, "hiba")))
    assert found(task) == {"a": "malignant", "b": "benign", "c": None}
    assert "'premalignant' is none of the classes" in task.samples[2].detail


def test_bcn20000_has_its_twelve_classes(tmp_path: Path) -> None:
    names = [*CLASSES["bcn20000"] * 5, "lentigo NOS"]
    rows = [{"isic_id": f"i{place}", "diagnosis": name} for place, name in enumerate(names)]
    task = load(spec(archive(tmp_path, rows, "bcn"), benchmark="BCN20000-12"))
    assert [*found(task).values()] == [*CLASSES["bcn20000"] * 5, None]
    assert task.malignant is None  # nobody says what `other` is


def test_mskcc_has_the_classes_of_its_rows_beside_those_that_are_known(tmp_path: Path) -> None:
    names = ("lentigo NOS", "nevus", "atypical melanocytic proliferation", "Scar")
    rows = [{"isic_id": f"i{place}", "diagnosis": name} for place, name in enumerate(names)]
    task = load(spec(archive(tmp_path, rows, "mskcc")))
    assert task.classes == (*labels.BEGINNINGS["mskcc"], "atypical melanocytic proliferation", "scar")
    assert [*found(task).values()] == ["lentigo NOS", "nevus", "atypical melanocytic proliferation", "scar"]


def test_isic2019_has_its_eight_classes(tmp_path: Path) -> None:
    from data_prep.isic import METADATA, TRUTH

    truth = [{"image": code, **{one: str(float(one == code)) for one in ISIC_2019}} for code in ISIC_2019]
    table(tmp_path / "raw" / TRUTH, truth)
    columns = ("age_approx", "anatom_site_general", "lesion_id", "sex")
    table(tmp_path / "raw" / METADATA, [blank(("image", *columns), image=code) for code in ISIC_2019])
    task = load(spec(converted(tmp_path, "isic", "2019", "isic2019")))
    names = {stem: labels.canonical(str(name)) for stem, name in found(task).items()}
    assert names == {code: labels.canonical(name) for code, name in ISIC_2019.items()}
    assert {*found(task).values()} == {*CLASSES["isic2019"]}


def test_fitzpatrick17k_reads_its_third_class_from_the_answers(tmp_path: Path) -> None:
    from data_prep.fitzpatrick17k import COLUMNS, FILE, WRONG

    rows = [
        blank(COLUMNS, md5hash=f"{grade}{copy}", three_partition_label=grade, label="x", fitzpatrick_scale="2")
        for grade in CLASSES["fitzpatrick17k"]
        for copy in range(12)  # open and closed forms of the question
    ]
    rows.append(blank(COLUMNS, md5hash="wrong", three_partition_label="benign", label="x", qc=WRONG))
    table(tmp_path / "raw" / FILE, rows)
    task = load(spec(converted(tmp_path, "fitzpatrick17k", "vqa")))
    assert found(task) == {f"{grade}{copy}": grade for grade in task.classes for copy in range(12)} | {"wrong": None}
    assert task.samples[-1].detail == "its question 'malignancy', whose answer says the class, is not in the source"


def test_patch16_tells_tumor_from_none(tmp_path: Path) -> None:
    from data_prep.patch16 import COLUMNS, FILE, TISSUES

    rows = [
        dict(zip(COLUMNS, (f"data/{name}_{copy}.jpg", name, "Test", name.partition("_")[0]), strict=True))
        for name in TISSUES
        for copy in range(4)
    ]
    table(tmp_path / "raw" / FILE, rows)
    task = load(spec(converted(tmp_path, "patch16", "vqa")))
    assert found(task) == {Path(row["file"]).stem: row["malignicy"] for row in rows}
    assert task.question == "Is the tissue nontumor or tumor?"


def test_dermnet_has_its_23_classes(tmp_path: Path) -> None:
    for place, name in enumerate(CLASSES["dermnet"]):
        for copy in range(3):
            image(tmp_path / "raw" / "test" / name.replace(" ", "  ", 1) / f"i{place}-{copy}.jpg")
    task = load(spec(converted(tmp_path, "dermnet", "vqa")))
    expected = {f"i{place}-{copy}": name for place, name in enumerate(task.classes) for copy in range(3)}
    assert found(task) == expected
    assert len(task.classes) == 23


def test_derm12345_has_its_subclasses_and_not_its_main_classes(tmp_path: Path) -> None:
    from data_prep.derm12345 import COLUMNS, FILES

    rows = [
        blank(COLUMNS, image_id=code, patient_id=code, split="test", label=code, main_class_1="melanoma")
        for code in DERM12345
    ]
    table(tmp_path / "raw" / FILES[0], [{**rows[0], "split": "train", "image_id": "other"}])
    table(tmp_path / "raw" / FILES[1], rows)
    task = load(spec(converted(tmp_path, "derm12345", "vqa")))
    assert {stem: name for stem, name in found(task).items() if stem != "other"} == DERM12345


def labelled(
    name: str, image: str | tuple[str, ...] = "a.png", answer: str = "Red.", group: str = "g", **facts: Any
) -> Example:
    shown = (image,) if isinstance(image, str) else image
    messages: tuple[Message, ...] = (text("user", "Which colour?", len(shown)), text("assistant", answer))
    return Example(name, "drawn", shown, messages, group, "test", "CC0-1.0", Facts(**facts))


def others(count: int, **facts: Any) -> list[Example]:
    """Rows of a known class: so many that a few of none are no reason to stop."""
    return [labelled(f"other{number}", f"other{number}.png", answer="Red", **facts) for number in range(count)]


def test_an_image_counts_once_however_many_questions_it_has(tmp_path: Path) -> None:
    rows = [labelled(f"a{number}", diagnosis="nevus") for number in range(3)]
    rows += [labelled("b", "b.png", diagnosis="melanoma"), labelled("both", ("a.png", "b.png"), diagnosis="melanoma")]
    rows += [labelled("turned", ("b.png", "a.png"), diagnosis="melanoma"), labelled("text", (), diagnosis="nevus")]
    task = load(spec(source(tmp_path / "drawn", rows)))
    assert [(one.example.id, one.label) for one in task.samples] == [
        ("a0", "nevus"),
        ("b", "melanoma"),
        ("both", "melanoma"),
        ("text", None),
    ]
    assert task.samples[3].detail == "no-image: the conversation shows none"
    assert task.classes == ("melanoma", "nevus")
    assert task.malignant == (True, False)
    assert task.benchmark is None


def test_what_is_said_against_itself_is_not_scored(tmp_path: Path) -> None:
    rows = [
        labelled("a", diagnosis="nevus"),
        labelled("b", diagnosis="melanoma"),
        labelled("c", "c.png", diagnosis="nevus"),
    ]
    task = load(spec(source(tmp_path / "drawn", [*rows, labelled("d", "d.png", diagnosis=None)])))
    assert [one.label for one in task.samples] == [None, "nevus", None]
    assert task.samples[0].detail == "conflicting-labels: melanoma, nevus"
    assert task.samples[2].detail == "its diagnosis is not known"


def test_an_answer_is_a_label_of_its_conversation(tmp_path: Path) -> None:
    rows = [
        labelled("a", answer="Red."),
        labelled("b", answer="red"),
        labelled("c", "c.png", answer="Blue", kind="colour"),
    ]
    task = load(spec(source(tmp_path / "drawn", rows), label="answer"))
    assert task.classes == ("Blue", "Red")
    assert [one.label for one in task.samples] == ["Red", "Red", "Blue"]
    assert task.question is None
    assert words(task.samples[0].example.messages[0]) == "Which colour?"
    asked = load(spec(tmp_path / "drawn", label="answer", question="Colour?", classes=["red", "blue"]))
    assert [(one.label, words(one.example.messages[-2])) for one in asked.samples][2] == ("blue", "Colour?")
    assert asked.samples[2].example.messages[-2]["content"][0]["type"] == "image"


def test_a_listed_class_is_found_in_a_sentence(tmp_path: Path) -> None:
    rows = [labelled("a", answer="It is red."), labelled("b", "b.png", answer="The lesion is not red, it is blue.")]
    rows += [labelled("c", "c.png", answer="Red or blue."), labelled("d", "d.png", answer="Green.")]
    task = load(spec(source(tmp_path / "drawn", rows), label="answer", classes=["red", "blue"]))
    assert [one.label for one in task.samples] == ["red", "blue", None, None]
    assert task.samples[3].detail == "'Green.' is none of the classes"


def test_a_diagnosis_is_one_of_the_classes_by_its_name_and_not_by_likeness(tmp_path: Path) -> None:
    names = ("benign keratosis", "nevus sebaceus", "not a melanoma", "Melanoma, NOS", "nevi")
    rows = [labelled(f"{place}", f"{place}.png", diagnosis=name) for place, name in enumerate(names)]
    task = load(spec(source(tmp_path / "drawn", rows + others(100, diagnosis="nevus")), benchmark="isic2019"))
    labels = [sample.label for sample in task.samples][:5]
    assert labels == ["Benign Keratosis-like Lesions", None, None, "Melanoma", "Nevus"]


def test_where_keeps_rows_and_any_fact_can_be_the_label(tmp_path: Path) -> None:
    rows = [
        labelled("a", "a.png", sex="male", site="arm", age=40.0),
        labelled("b", "b.png", sex="female", site="leg", age=40.0),
        labelled("c", "c.png", sex="female", site="leg", age=50.5),
    ]
    folder = source(tmp_path / "drawn", rows)
    task = load(spec(folder, label="site", where={"age": "40"}))
    assert [one.label for one in task.samples] == ["arm", "leg"]
    assert task.name == "drawn-40-site"
    assert task.question == "Where on the body is this?"
    assert load(spec(folder, label="age", classes=["40", "50.5"])).samples[2].label == "50.5"


def test_the_classes_of_another_split_are_those_of_the_specs_own(tmp_path: Path) -> None:
    folder = source(tmp_path / "drawn", [labelled("a", diagnosis="nevus"), labelled("b", "b.png", diagnosis="scar")])
    source(folder, [labelled("c", diagnosis="nevus"), labelled("d", "d.png", diagnosis="eczema")], "train")
    task = load(spec(folder), "train")
    assert task.classes == ("nevus", "scar")
    assert [one.label for one in task.samples] == ["nevus", None]
    assert task.name == load(spec(folder)).name == "drawn"


def test_a_system_turn_stays(tmp_path: Path) -> None:
    rows = [labelled("a", diagnosis="nevus"), labelled("b", "b.png", diagnosis="scar")]
    rows[0] = replace(rows[0], messages=(text("system", "Be brief."), *rows[0].messages))
    task = load(spec(source(tmp_path / "drawn", rows)))
    assert [one["role"] for one in task.samples[0].example.messages] == ["system", "user", "assistant"]


def test_a_benchmark_is_known_by_its_names() -> None:
    counts = {"HAM10000-7": "ham10000", "PAD-6": "pad_ufes_20", "DDI-2": "ddi", "HIBA-2": "hiba", "MSKCC": "mskcc"}
    counts |= {"Fitzpatrick17k-3": "fitzpatrick17k", "ISIC2019-8": "isic2019", "ISIC 2019": "isic2019"}
    counts |= {"Patch16-2": "patch16", "Dermnet-23": "dermnet", "BCN20000-12": "bcn20000", "derm12345": "derm12345"}
    assert {name: labels.benchmark(name) for name in counts} == counts
    assert labels.benchmark("isic") is labels.benchmark("ham10000_mine") is labels.benchmark("paddle", True) is None
    assert labels.benchmark("Fitzpatrick17k_3class_test", begins=True) == "fitzpatrick17k"


def test_every_spelling_is_of_a_class_and_every_table_of_a_benchmark() -> None:
    every = {" ".join(one.casefold().split()) for classes in CLASSES.values() for one in classes}
    known = every | {labels.diagnosis(one) for one in every}
    assert {*labels.SPELLINGS} - known <= {"squamous cell carcinoma in situ"}  # of MSKCC and other lists
    assert {*labels.GRADES, *labels.ASKED} <= {*CLASSES}
    for name, grades in labels.GRADES.items():
        assert {*grades.values()} == {*CLASSES[name]}
    assert {*labels.ALIASES.values()} == {*CLASSES, *labels.BEGINNINGS}


def test_malignancy_is_given_only_where_it_is_known_of_every_class() -> None:
    assert labels.malignant(CLASSES["fitzpatrick17k"]) == (False, False, True)
    derm12345 = labels.malignant([*DERM12345.values()])
    assert derm12345 is not None
    assert sum(derm12345) == 11
    assert {labels.malignant(CLASSES[name]) for name in ("bcn20000", "patch16", "dermnet")} == {None}
    assert labels.malignant(["melanoma", "eczema"]) is None
    known = {
        name: {one for one, bad in zip(CLASSES[name], labels.malignant(CLASSES[name]) or (), strict=True) if bad}
        for name in ("milk10k", "derm7pt", "derm7pt_5")
    }
    assert known["derm7pt"] == known["derm7pt_5"] == {"melanoma", "basal cell carcinoma"}
    assert known["milk10k"] == {labels.MILK10K_CODES[code] for code in ("BCC", "MAL_OTH", "MEL", "SCCKA")}


def test_names_tell_specs_of_one_source_apart() -> None:
    specs = [spec("data/demo", label="answer", where={"kind": "colour"}), spec("demo", label="site"), spec("demo")]
    specs += [spec("x/HAM10000_test.csv"), spec("demo", split="validation")]
    assert benchmarks.names(specs) == ["demo-colour", "demo-site", "demo", "HAM10000_test", "demo-validation"]
    with pytest.raises(BenchmarkError, match=r"two sets are called demo"):
        benchmarks.names([spec("demo"), spec("data/demo")])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"benchmark": "ham1000"}, r"benchmark=ham1000: unknown; did you mean ham10000\?"),
        ({"label": "diagnosys"}, r"label=diagnosys: unknown; did you mean diagnosis\?"),
        ({"where": {"sexx": "male"}}, r"where.sexx: unknown; did you mean sex\?"),
        ({"where": {"sex": "males"}}, r"no row where sex is 'males'; found male \(2\)"),
        ({"label": "sex"}, r"label=sex: 1 different values \('male'\); expected 2 to 256 classes"),
        ({"label": "modality"}, r"label=modality: 0 different values \(its modality is not known\)"),
        ({"benchmark": "dermnet"}, r"none of its 2 samples has one of the classes .*'category'"),
        ({"benchmark": "ddi", "classes": ["a", "b"]}, r"benchmark=ddi and classes are given; expected one"),
        ({"classes": ["nevus", "Nevus "]}, r"the same class twice"),
        ({"images": "x"}, r"images=x: only a CSV has its images elsewhere"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    rows = [labelled("a", diagnosis="nevus", sex="male"), labelled("b", "b.png", diagnosis="scar", sex="male")]
    with pytest.raises(BenchmarkError, match=message):
        load(spec(source(tmp_path / "drawn", rows), **more))


def test_free_text_is_no_class(tmp_path: Path) -> None:
    rows = [labelled(str(number), answer=f"It is number {number}.") for number in range(300)]
    with pytest.raises(BenchmarkError, match=r"300 different values .* narrow the rows by where"):
        load(spec(source(tmp_path / "drawn", rows), label="answer"))


def test_a_source_or_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = source(tmp_path / "drawn", [labelled("a", diagnosis="nevus")])
    with pytest.raises(FileNotFoundError, match="no such split; it has the splits: test"):
        load(spec(folder, split="train"))
    with pytest.raises(BenchmarkError, match="no such file; expected the CSV of a released"):
        load(spec(tmp_path / "HAM10000_test.csv"))


RELEASED = {
    "HAM10000_test": (1511, (908, 217, 171, 93, 44, 43, 35)),
    "DDI_2class_test": (132, (98, 34)),
    "BCN20000_test": (3790, (1170, 802, 704, 238, 220, 210, 132, 128, 71, 61, 30, 24)),
}


@pytest.mark.parametrize("stem", RELEASED)
def test_the_released_files_are_read_as_they_are(shared: Path, stem: str) -> None:
    task = load(spec(shared / "mm_skin" / "classification" / f"{stem}.csv"))
    count, counts = RELEASED[stem]
    assert len(task.samples) == len({one.example.id for one in task.samples}) == count
    assert tuple(Counter(one.label for one in task.samples)[name] for name in task.classes) == counts
    assert task.classes == CLASSES[task.benchmark or ""]
    assert task.name == stem
    for one in task.samples[:50]:
        validate(one.example)
        assert one.detail.startswith("missing-image: ")
        assert one.example.group == Path(one.example.images[0]).stem


def released(tmp_path: Path, body: str, name: str = "HAM10000_test.csv") -> Path:
    path = tmp_path / "classification" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(body.encode("utf-8"))
    return path


def test_images_of_a_csv_are_found_also_without_their_first_folder(tmp_path: Path) -> None:
    image(tmp_path / "images" / "HAM" / "a.jpg")
    image(tmp_path / "images" / "b.jpg")
    body = "image,atributes,categories\nHAM/a.jpg,[],['nevus']\nHAM/b.jpg,[],\"['Benign  Keratosis']\"\n"
    path = released(tmp_path, body + "HAM/c.jpg,[],['Melanoma']\n../d.jpg,[],['Melanoma']\n,[],['Nevus']\n")
    samples = load(spec(path, images=str(tmp_path / "images"))).samples
    assert [one.example.images for one in samples] == [("HAM/a.jpg",), ("b.jpg",), ("HAM/c.jpg",), (), ()]
    assert [one.label for one in samples] == ["Nevus", "Benign Keratosis", "Melanoma", None, None]
    assert [one.detail.partition(":")[0] for one in samples] == ["", "", "missing-image", "unsafe-path", "unsafe-path"]
    assert all((one.root / one.example.images[0]).is_file() for one in samples[:2])


def test_a_row_of_a_csv_without_one_class_is_not_scored(tmp_path: Path) -> None:
    fields = ("[]", "['nevus', 'melanoma']", "nevus", "__import__('os')", "['lupus']", "[1]", "[" * 3_000, "['Nevus']")
    quoted = [f'{number}.jpg,"{field}"' for number, field in enumerate(fields)]
    quoted += [f"{number}.jpg,['Nevus']" for number in range(len(fields), 400)]
    path = released(tmp_path, "\ufeffimage,categories\r\n" + "\r\n".join(quoted) + "\r\n")
    samples = load(spec(path)).samples
    assert [one.label for one in samples] == [None] * 7 + ["Nevus"] * 393
    why = ["no-class", "several-classes", "malformed", "malformed", "'lupus' is none of the classes"]
    assert [one.detail.partition(":")[0] for one in samples][:7] == [*why, "malformed", "malformed"]


# How MM-Skin's files write classes whose folders have longer names.
SPELT = {
    "Acne and rosacea": "Acne and Rosacea Photos",
    "Atopic dermatitis": "Atopic Dermatitis Photos",
    "Bullous disease": "Bullous Disease Photos",
    "Eczema": "Eczema Photos",
    "Hair loss  alopecia and other hair diseases": "Hair Loss Photos Alopecia and other Hair Diseases",
    "Herpes hpv and other stds": "Herpes HPV and other STDs Photos",
    "Poison ivy  and other contact dermatitis": "Poison Ivy Photos and other Contact Dermatitis",
    "Vasculitis": "Vasculitis Photos",
    "Psoriasis Lichen Planus and related diseases": "Psoriasis pictures Lichen Planus and related diseases",
}


def test_a_class_is_known_without_what_its_folder_holds(tmp_path: Path) -> None:
    values = [*SPELT, *CLASSES["dermnet"]]
    body = "".join(f"D/{number}.jpg,[],['{value}']\n" for number, value in enumerate(values))
    task = load(spec(released(tmp_path, "image,atributes,categories\n" + body, "Dermnet_test.csv")))
    assert task.classes == CLASSES["dermnet"]
    assert [one.label for one in task.samples] == [*SPELT.values(), *CLASSES["dermnet"]]


def test_a_file_that_does_not_say_its_benchmark_has_its_classes(tmp_path: Path) -> None:
    body = "image,atributes,categories\nISIC/ISIC_0000001.jpg,[],['Vascular Lesions']\nI/b.jpg,[],['Nevus']\n"
    task = load(spec(released(tmp_path, body, "ISIC_test.csv")))
    assert (task.benchmark, task.classes) == ("isic2019", CLASSES["isic2019"])
    assert [one.label for one in task.samples] == ["Vascular Lesions", "Nevus"]


@pytest.mark.parametrize("strangers", [2, 3])
def test_a_set_of_which_too_much_is_of_no_class_stops_with_the_values(tmp_path: Path, strangers: int) -> None:
    values = ["['Nevus']"] * (100 - strangers) + ["['Naevus cellularis']"] * (strangers - 1) + ["[]"]
    body = "image,categories\n" + "".join(f"{number}.jpg,{value}\n" for number, value in enumerate(values))
    if strangers == 2:
        assert sum(one.label is None for one in load(spec(released(tmp_path, body))).samples) == 2
        return
    message = r"HAM10000_test.csv test: 3 of 100 rows are of none of the classes .*'Naevus cellularis' \(2\), .*\(1\)"
    with pytest.raises(BenchmarkError, match=message):
        load(spec(released(tmp_path, body)))


def test_classes_of_another_split_are_no_reason_to_stop_unless_they_are_listed(tmp_path: Path) -> None:
    folder = source(tmp_path / "drawn", [labelled("a", diagnosis="nevus"), labelled("b", "b.png", diagnosis="scar")])
    source(folder, [labelled("c", diagnosis="nevus"), labelled("d", "d.png", diagnosis="eczema")], "train")
    assert [one.label for one in load(spec(folder), "train").samples] == ["nevus", None]
    with pytest.raises(BenchmarkError, match=r"train: 1 of 2 rows are of none of the classes .*'eczema' \(1\)"):
        load(spec(folder, classes=["nevus", "scar"]), "train")


def test_accents_and_apostrophes_tell_no_classes_apart(tmp_path: Path) -> None:
    names = ("Behçet's disease", "Behcet\u2019s disease", "Sjogren syndrome")
    folder = source(tmp_path / "drawn", [labelled(name, f"{name}.png", diagnosis=name) for name in names])
    task = load(spec(folder, classes=["behcets disease", "Sjögren syndrome"]))
    assert [one.label for one in task.samples] == ["behcets disease", "behcets disease", "Sjögren syndrome"]
    assert len(load(spec(folder)).classes) == 2
    signs = source(tmp_path / "signs", [labelled(name, f"{name}.png", site=name) for name in ("<5 mm", ">5 mm")])
    assert load(spec(signs, label="site")).classes == ("<5 mm", ">5 mm")


def test_chosen_classes_may_be_some_of_the_sets_but_none_that_it_does_not_have(tmp_path: Path) -> None:
    names = ("nevus", "scar", "eczema")
    folder = source(tmp_path / "drawn", [labelled(name, f"{name}.png", diagnosis=name) for name in names])
    assert [one.label for one in load(spec(folder, classes=["nevus", "scar"])).samples] == ["nevus", "scar", None]
    with pytest.raises(BenchmarkError, match=r"2 of 3 rows are of none of the classes nevus or scarring: 'scar' \(1\)"):
        load(spec(folder, classes=["nevus", "scarring"]))


def test_a_csv_may_say_its_sets_and_repeat_an_image(tmp_path: Path) -> None:
    body = "image,attributes,categories,set\na.jpg,[],['x'],Test\nb.jpg,[],['y'],test\nc.jpg,[],['x'],training\n"
    path = released(tmp_path, body + "a.jpg,[],['x'],test\na.jpg,[],['y'],val\n", "mine.csv")
    task = load(spec(path))
    assert (task.benchmark, task.classes) == (None, ("x", "y"))
    assert [(one.example.id, one.label) for one in task.samples] == [("a.jpg", "x"), ("b.jpg", "y")]
    assert [one.label for one in load(spec(path), "train").samples] == ["x"]
    assert [one.label for one in load(spec(path), "validation").samples] == ["y"]


def test_tiles_of_one_slide_are_one_group(tmp_path: Path) -> None:
    body = "image,categories\nP/tumor_skin_ws_44_1.jpg,['tumor']\nP/tumor_skin_ws_44_2.jpg,['tumor']\n"
    task = load(spec(released(tmp_path, body + "P/nontumor_ws_45_1.jpg,['nontumor']\n", "Patch16_2class_test.csv")))
    assert [one.example.group for one in task.samples] == ["tumor_skin_ws_44", "tumor_skin_ws_44", "nontumor_ws_45"]
    assert task.question == "Is the tissue nontumor or tumor?"


def test_a_zero_shot_csv_numbers_its_classes(tmp_path: Path) -> None:
    """`image_path,label,diag`: the classes are those of a list in the order of the labels, or of diag."""
    image(tmp_path / "images" / "a.jpg")
    body = "image_path,label,diag\nx/a.jpg,1,BCC\nISIC_0000001.jpg,0.0,nevus\nb.jpg,1,BCC\nc.jpg,,nevus\n"
    body += "".join(f"n{number}.jpg,0,nevus\n" for number in range(60))
    path = released(tmp_path, body, "mine.csv")
    task = load(spec(path, images=str(tmp_path / "images"), classes=["mole", "basal cell carcinoma"]))
    assert task.classes == ("mole", "basal cell carcinoma")
    assert [one.label for one in task.samples[:4]] == ["basal cell carcinoma", "mole", "basal cell carcinoma", None]
    assert task.malignant == (False, True)
    assert task.samples[0].example.images == ("a.jpg",)
    assert task.samples[1].example.group == "ISIC_0000001"
    assert task.samples[3].detail.startswith("malformed: label is ''")
    assert load(spec(path)).classes == ("BCC", "nevus")

    listed = tmp_path / "classes.json"
    listed.write_text('{"mine": ["nevus", "bcc"], "two": ["x", "y"]}')
    assert load(spec(path, class_file=f"{listed}#mine")).classes == ("nevus", "bcc")
    for more, message in (
        ({"classes": ["bcc", "nevus"]}, r"label 0 is 'nevus' by its column diag and 'bcc' by the list"),
        ({"class_file": f"{listed}#two", "classes": ["x", "y"]}, r"class_file=.* and classes are given"),
        ({"benchmark": "ham10000", "class_file": f"{listed}#two"}, r"benchmark=ham10000 and classes are given"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            load(spec(path, **more))
    with pytest.raises(BenchmarkError, match=r"label 2, and a list of 2 classes, 0 to 1"):
        load(spec(released(tmp_path, body + "d.jpg,2,x\n", "mine.csv"), classes=["x", "y"]))
    for body in ("image_path,label\na.jpg,0\n", "image_path,label,diag\na.jpg,0,x\nb.jpg,0,y\nc.jpg,1,z\n"):
        with pytest.raises(BenchmarkError, match=r"does not give each label a name of its own"):
            load(spec(released(tmp_path, body, "mine.csv")))

    body = "image_path,diag,split,label\na.jpg,x,train,0\nb.jpg,y,test,1\nc.jpg,x,test,0\n"
    assert [one.label for one in load(spec(released(tmp_path, body, "mine.csv"))).samples] == ["y", "x"]


@pytest.mark.parametrize(
    ("body", "more", "message"),
    [
        ("image_path,diag\na,b\n", {}, r"no column label; found image_path, diag; .* or image_path, label and diag"),
        ("image,label\na,b\n", {}, r"no column categories; found image, label; expected image, categories"),
        ("", {}, r"no column image and no categories; found nothing"),
        ("image,categories\na.jpg,['Nevus'],3\n", {}, r"HAM10000_test.csv:2: 3 fields; expected 2"),
        ("image,categories\na.jpg,['Nevus']\n", {"split": "train"}, r"no row of the split 'train'; found test"),
        ("image,categories,set\na.jpg,['Nevus'],tset\n", {}, r":2 set: found 'tset'; expected one of train"),
        ("image,categories\na.jpg,['Nevus']\n", {"label": "site"}, r"a CSV has no label but its categories"),
        ('image,categories\n"a.jpg,x\n', {}, r"not UTF-8 CSV"),
        ("image,categories\n", {}, r"no row of the split 'test'; found no rows"),
    ],
)
def test_a_file_that_is_none_of_the_released_is_refused(
    tmp_path: Path, body: str, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        load(spec(released(tmp_path, body), **more))


def pair(case: int, kind: str, answer: str, images: tuple[str, ...], **facts: Any) -> Example:
    """A question of derm7pt as its converter makes it."""
    shown = tuple(f"{case}/{name}.jpg" for name in images)
    talk = (text("user", f"{kind}?", images=len(shown)), text("assistant", answer))
    return Example(f"{case}-{kind}", "derm7pt", shown, talk, f"{case}", "test", "none", Facts(kind=kind, **facts))


CASES = [
    *(pair(1, "diagnosis", "The diagnosis is blue nevus.", ("c", "d")), pair(1, "site", "back", ("c",))),
    *(pair(1, "streaks", "absent", ("d",)), pair(1, "pigment_network", "atypical", ("d",))),
    *(pair(2, "diagnosis", "The diagnosis is lentigo.", ("c", "d")), pair(2, "streaks", "irregular", ("d",))),
    *(pair(3, "diagnosis", "melanoma", ("c", "d")), pair(3, "pigment_network", "typical", ("d",))),
]


def test_derm7pt_has_its_diagnoses_five_classes_and_seven_criteria(tmp_path: Path) -> None:
    folder = source(tmp_path / "derm7pt", CASES)
    labelled = {}
    for benchmark in ("derm7pt", "derm7pt_5", "derm7pt_streaks", "derm7pt_pigment_network"):
        task = load(spec(folder, benchmark=benchmark))
        assert task.name == benchmark
        assert task.classes == CLASSES[benchmark]
        labelled[benchmark] = {sample.example.group: sample.label for sample in task.samples}
        # What is asked of the other view is no sample without a label.
        views = {"derm7pt": ("c", "d"), "derm7pt_5": ("c", "d")}.get(benchmark, ("d",))
        assert {tuple(Path(name).stem for name in sample.example.images) for sample in task.samples} == {views}
        assert {sample.detail for sample in task.samples} == {""}
    assert labelled == {
        "derm7pt": {"1": "blue nevus", "2": "lentigo", "3": "melanoma"},
        "derm7pt_5": {"1": "nevus", "2": "miscellaneous", "3": "melanoma"},
        "derm7pt_streaks": {"1": "absent", "2": "irregular"},
        "derm7pt_pigment_network": {"1": "atypical", "3": "typical"},
    }
    assert load(spec(folder, benchmark="derm7pt_streaks")).question == (
        "Under the dermatoscope, which of these describes the streaks: absent, regular or irregular?"
    )
    assert {labels.benchmark("Derm7pt-15"), labels.benchmark("derm7pt")} == {"derm7pt"}
    assert len({*benchmarks.names([spec(folder), spec(folder, benchmark="derm7pt_streaks")])}) == 2


def test_the_criteria_are_those_of_the_converter_and_the_concepts_too() -> None:
    from data_prep import derm7pt, skincon

    assert {name: {*values} for name, values in derm7pt.CRITERIA.items()} == {
        name: {*values} for name, values in labels.DERM7PT_CRITERIA.items()
    }
    assert len({*labels.SKINCON_CONCEPTS}) == 22
    assert {*labels.SKINCON_CONCEPTS} < {*skincon.CONCEPTS}


def test_a_concept_is_a_class_of_its_own(tmp_path: Path) -> None:
    seen = [(("scale",), ("erythema",)), (("erythema", "scale"), ()), ((), ("scale",)), ((), ())]
    rows = [
        replace(pair(case, kind, "Yes.", ("d",), present=present, absent=absent), source="skincon")
        for case, (present, absent) in enumerate(seen)
        for kind in ("list", "present")
    ]
    folder = source(tmp_path / "skincon", rows)
    task = load(spec(folder, label="concept:scale"))
    assert (task.name, task.classes) == ("skincon-concept-scale", ("no", "yes"))
    assert task.question == "Does the image show this feature: scale?"
    assert [sample.label for sample in task.samples] == ["yes", "yes", "no", None]
    assert "concept:scale is not known" in task.samples[3].detail
    with pytest.raises(BenchmarkError, match="none of its 4 samples has one of the classes"):
        load(spec(folder, label="concept:scabs"))
    with pytest.raises(BenchmarkError, match="only skinvl classify asks of each concept"):
        load(spec(folder, label="concepts"))
    each = benchmarks.expanded([spec(folder), spec(folder, label="concepts")])
    assert len(each) == 23
    assert each[1].label == "concept:papule"
    assert len({*benchmarks.names(each)}) == 23


def test_a_blind_set_is_classified_only_where_it_is_called_so(tmp_path: Path) -> None:
    rows = [replace(pair(case, "view", "The first.", ("c", "d")), source="milk10k") for case in range(3)]
    folder = source(tmp_path / "milk10k", rows)
    with pytest.raises(BenchmarkError, match=r"its question 'class'.*or blind: true where none is known"):
        load(spec(folder))
    task = load(spec(folder, blind=True))
    assert (task.blind, task.classes, [sample.label for sample in task.samples]) == (
        *(True, CLASSES["milk10k"], [None] * 3),
    )
    assert all(sample.detail for sample in task.samples)
    with pytest.raises(BenchmarkError, match="list the classes"):
        load(spec(folder, blind=True, label="sex"))
