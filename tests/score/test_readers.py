"""Reader studies: nothing on a page tells what must not be known, κ by others' code, readers and cases both random."""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from skinvl.data.example import Facts
from skinvl.score import score
from skinvl.score.predictions import Answer, Classified
from skinvl.score.readers import kappa, multireader, results, study
from skinvl.score.readers.cases import Case, StudyError, cases
from skinvl.score.stats import Bootstrap

_SPEC = importlib.util.spec_from_file_location(
    "benchmarks_coverage_of_readers", Path(__file__).parents[2] / "benchmarks" / "coverage.py"
)
assert _SPEC
assert _SPEC.loader
coverage: Any = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = coverage
_SPEC.loader.exec_module(coverage)

CLASSES = ["nevus", "melanoma", "keratosis"]
SETTINGS: dict[str, Any] = {
    **{"classes": CLASSES, "label_tokens": [2, 3, 4], "prior": [-2.0, -6.0, -7.0], "benchmark": None},
    **{"malignant": [False, True, False], "question": "Which?"},
}
READERS = ["ann", "ben", "cleo"]


def photo(path: Path, number: int) -> str:
    """A photo whose metadata and name say what readers must not know."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010E] = f"melanoma of patient-{number}"
    Image.fromarray(noise).save(path, "JPEG", exif=exif, comment=b"melanoma")
    return str(path)


def rows_of(folder: Path, count: int = 24, turn: int = 0) -> list[Classified]:
    """Rows of which `turn` changes label, answer, path and id, and nothing that may be shown."""
    rows = []
    for number in range(count):
        label = CLASSES[(number + turn) % 3]
        scores = tuple(float(-2 - (name != CLASSES[(number * (turn + 1)) % 3])) for name in CLASSES)
        image = photo(folder / f"turn-{turn}" / f"{label}-{number}.jpg", number)
        name = f"{label}-ISIC_{turn}{number:04d}"
        rows.append(
            Classified(name, f"ham{turn}", f"patient-{turn}-{number // 2}", (image,), Facts(), label, scores, "")
        )
    return rows


def put(run: Path, rows: Sequence[Classified | Answer], settings: dict[str, Any] = SETTINGS, name: str = "ham") -> Path:
    path = run / "eval" / ("classes" if isinstance(rows[0], Classified) else "answers") / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    path.with_suffix(".json").write_text(json.dumps(settings))
    return path


def fill(folder: Path, reader: str, readings: dict[str, str]) -> None:
    lines = ["case,reading", *(f"{name},{reading}" for name, reading in readings.items())]
    (folder / reader / "readings.csv").write_text("\n".join(lines) + "\n")


def key_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads(study.key_path(folder).read_text())["cases"])


# The study.


def test_nothing_on_a_page_tells_what_is_not_shown(tmp_path: Path) -> None:
    pages = []
    for turn in (0, 1):
        rows = rows_of(tmp_path / "images", turn=turn)
        put(tmp_path / f"run{turn}", rows)
        folder = tmp_path / f"study{turn}"
        said = study.write(tmp_path / f"run{turn}", folder, READERS, None, seed=5)
        assert "24 cases for 3 readers (ann, ben, cleo)" in said
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert [str(path.relative_to(folder)) for path in files] == [
            f"{reader}/{name}" for reader in READERS for name in ("readings.csv", "study.html")
        ]
        pages.append([path.read_text() for path in files])
        for text in pages[-1]:
            assert not re.search(rf"ISIC|patient|ham\d|turn-|{re.escape(str(tmp_path))}", text)
    # Other labels, answers, paths, ids and groups, and every byte that a reader gets is the same.
    assert pages[0] == pages[1]
    assert key_of(tmp_path / "study0") != key_of(tmp_path / "study1")

    # Twin: a page that did show the label would not be.
    broken = [text.replace("</h2>", f" {turn}</h2>") for turn, page in enumerate(pages) for text in page]
    assert broken[: len(broken) // 2] != broken[len(broken) // 2 :]


def test_images_are_encoded_anew_and_stand_under_the_name_of_the_case(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "images", 6)
    put(tmp_path / "run", rows)
    study.write(tmp_path / "run", tmp_path / "study", ["ann", "ben"], None, 0)
    assert Image.open(rows[0].images[0]).getexif()[0x010E] == "melanoma of patient-0"
    shown, orders = {}, []
    for reader in ("ann", "ben"):
        text = (tmp_path / "study" / reader / "study.html").read_text()
        found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="image 1 of (\w+)"', text)
        orders.append([name for _, name in found])
        assert orders[-1] == [
            line["case"] for line in csv.DictReader((tmp_path / "study" / reader / "readings.csv").open())
        ]
        shown |= {name: base64.b64decode(data) for data, name in found}
    for name, case in key_of(tmp_path / "study").items():
        image = Image.open(io.BytesIO(shown[name]))
        assert not image.getexif()
        assert not {"comment", "exif", "icc_profile"} & set(image.info)
        own = np.asarray(Image.open(case["images"][0])).astype(float)
        assert np.corrcoef(np.asarray(image).astype(float).ravel(), own.ravel())[0, 1] > 0.8
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]  # each reader's own
    study.write(tmp_path / "run", tmp_path / "again", ["ann", "ben"], None, 0)
    assert key_of(tmp_path / "again") == key_of(tmp_path / "study")
    study.write(tmp_path / "run", tmp_path / "other", ["ann", "ben"], None, 1)
    assert key_of(tmp_path / "other").keys() != key_of(tmp_path / "study").keys()


def test_cases_are_drawn_and_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "images", 12)
    rows[3] = replace(rows[3], images=(str(tmp_path / "gone.jpg"),))
    rows[4] = replace(rows[4], label=None, detail="no class")
    put(tmp_path, rows)
    said = study.write(tmp_path, tmp_path / "all", ["ann"], None, 0)
    assert "10 cases for 1 readers" in said
    assert "1 rows left out without a class or scores" in said
    assert "1 rows left out with an image that cannot be read (missing-image)" in said
    assert "4 cases" in study.write(tmp_path, tmp_path / "some", ["ann"], 4, 0)
    with pytest.raises(StudyError, match="is there already, and may hold readings"):
        study.write(tmp_path, tmp_path / "some", ["ann"], 4, 0)
    with pytest.raises(StudyError, match="501 cases; expected at most 500, which --cases N draws"):
        study.write(tmp_path, tmp_path / "new", ["ann"], 501, 0)
    for names in (["ann", "ann"], ["../ann"], [""]):
        with pytest.raises(StudyError, match="expected names of letters"):
            study.write(tmp_path, tmp_path / "new", names, None, 0)
    put(tmp_path, rows, name="more")
    with pytest.raises(StudyError, match=r"2 sets could be read \(classes/ham.jsonl, classes/more.jsonl\)"):
        study.write(tmp_path, tmp_path / "new", ["ann"], None, 0)
    with pytest.raises(StudyError, match="no classes and no answers"):
        study.write(tmp_path / "none", tmp_path / "new", ["ann"], None, 0)
    assert not (tmp_path / "new").exists()


def answer(number: int, question: str, reference: str, said: str, kind: str, image: str) -> Answer:
    common = {"finish_reason": "stop", "detail": "", "tokens": 3, "seed": 0}
    return Answer(f"r{number}", "demo", f"g{number}", (image,), question, reference, Facts(kind=kind), said, **common)


def test_closed_questions_have_the_answers_of_their_kind_and_options_as_choices(tmp_path: Path) -> None:
    image = photo(tmp_path / "a.jpg", 0)
    listed = "Which is it?\nA. Nevus\nB. Melanoma"
    put(tmp_path, [
        answer(0, "Is it raised?", "Yes", "yes.", "raised", image),
        answer(1, "Is it raised?", "no", "maybe", "raised", image),
        answer(2, listed, "B. Melanoma", "A", "choice", image),
        answer(3, "Describe it.", "A brown macule with a darker rim.", "brown", "open", image),
        answer(4, "Where?", "Back", "Back", "site", image),  # all of its kind say the same: nothing to choose among
    ], {})  # fmt: skip
    found, left_out = cases(tmp_path / "eval/answers/ham.jsonl")
    assert [case.choices for case in found] == [("no", "Yes"), ("no", "Yes"), ("Nevus", "Melanoma")]
    assert [case.right for case in found] == [(1,), (0,), (1,)]
    assert [case.model for case in found] == [1, None, 0]
    assert sum(left_out.values()) == 2


# Readings.


@pytest.fixture
def made(tmp_path: Path) -> Path:
    put(tmp_path, rows_of(tmp_path / "images"))
    study.write(tmp_path, tmp_path / "study", READERS, None, 0)
    return tmp_path


def test_readings_are_numbers_or_words_and_an_empty_one_is_not_read(made: Path) -> None:
    key = key_of(made / "study")
    names = list(key)
    said = {name: ("2", " Melanoma ", "MELANOMA", "")[place % 4] for place, name in enumerate(names)}
    fill(made / "study", "ann", said)
    (made / "study/ben/readings.csv").write_text(
        "\ufeffCase;Reading\r\n" + "".join(f"{name};1\r\n" for name in reversed(names))
    )
    score.main([str(made), "--readings", str(made / "study"), "--resamples", "100"])
    numbers = json.loads((made / "readers.json").read_text())
    assert numbers["absent"] == ["cleo"]
    assert numbers["cases"] == 24
    assert numbers["read_by_all"] == 18
    ann = numbers["readers"]["ann"]
    assert (ann["accuracy"]["n"], ann["accuracy"]["unscored"]) == (18, 6)
    melanomas = [place for place, name in enumerate(names) if key[name]["right"] == [1]]
    assert ann["accuracy"]["value"] == pytest.approx(sum(place % 4 < 3 for place in melanomas) / 18)
    assert (ann["sensitivity"]["value"], ann["specificity"]["value"]) == (1.0, 0.0)
    assert numbers["readers"]["ben"]["sensitivity"]["value"] == 0.0
    assert numbers["readers"]["ben"]["specificity"]["value"] == 1.0  # a nevus said to be one, and so a keratosis
    text = (made / "readers.md").read_text()
    assert "nothing yet by cleo" in text
    assert "mean of the readers" in text


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (
            ["case,reading", "{0},4", "*"],
            r"csv:2: reading '4' of case {0}; expected a number from 1 to 3, the words of",
        ),
        (["case,reading", "{0},mel", "*"], r"csv:2: reading 'mel' of case {0}"),
        (["case,reading", "{0},1", "{0},2", "*"], r"csv:3: case {0} again, after line 2; expected each case once"),
        (["case,reading", "XXXXX,1", "{0},1", "*"], r"csv:2: case 'XXXXX'; expected one of the 24 names of the study"),
        (["case,reading", "{0},1"], r"csv: no line for 23 cases \({1}\); expected each, read or not"),
        (["case,reading", "{0},1,2", "*"], r"csv:2: 3 cells; expected 2, case and reading"),
        (["{0},1", "*"], r"csv:1: '{0}, 1'; expected the head case,reading"),
        ([""], r"csv:1: 'nothing'; expected the head"),
        (["case,reading", "{0},4", "{1},5", "*"], r"csv:2: .*\(and 1 more faults in this file\)"),
    ],
)
def test_what_a_csv_cannot_say_is_named_by_line(made: Path, lines: list[str], fault: str) -> None:
    names = list(key_of(made / "study"))
    text = "\n".join(lines).format(*names)
    rest = [name for name in names if name not in text]
    text = text.replace("*", "\n".join(f"{name}," for name in rest))
    (made / "study/ben/readings.csv").write_text(text + "\n")
    with pytest.raises(StudyError, match="ben/readings." + fault.format(*names)):
        results.write(made, made / "study", 100, 0)
    assert not (made / "readers.json").exists()


def test_readings_of_another_study_or_none_are_refused(made: Path) -> None:
    with pytest.raises(StudyError, match="none of 3 readers has filled in"):
        results.write(made, made / "study", 100, 0)
    (made / "study/ben/readings.csv").write_bytes("case,reading\nJ\xe4ger,1\n".encode("latin-1"))
    with pytest.raises(StudyError, match=r"not UTF-8 \(byte 14\)"):
        results.write(made, made / "study", 100, 0)
    put(made, rows_of(made / "images", 23))
    with pytest.raises(StudyError, match="is of other predictions"):
        results.write(made, made / "study", 100, 0)
    with pytest.raises(StudyError, match=r"nothing.key.json: no such file"):
        results.write(made, made / "nothing", 100, 0)


# κ.

# Ten cases in five categories by fourteen readers: the example of Fleiss' κ that textbooks and Wikipedia work out.
WORKED = np.array([
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
])  # fmt: skip


def test_fleiss_kappa_is_that_of_the_worked_example() -> None:
    readings = np.array([np.repeat(np.arange(5), counts) for counts in WORKED])
    assert readings.shape == (10, 14)
    estimate = kappa.fleiss(readings, Bootstrap(list(range(10)), 200))
    assert estimate.value == pytest.approx(0.210, abs=5e-4)
    # From its counts by the formula.
    each = ((WORKED**2).sum(axis=1) - 14) / (14 * 13)
    chance = ((WORKED.sum(axis=0) / 140) ** 2).sum()
    assert estimate.value == pytest.approx((each.mean() - chance) / (1 - chance), rel=1e-12)
    # Twin: Cohen's κ, mean over pairs, is another number.
    pairs = [cohen_kappa_score(readings[:, one], readings[:, other]) for one in range(14) for other in range(one)]
    assert np.mean(pairs) != pytest.approx(estimate.value, abs=1e-3)


def test_cohens_kappa_is_scikit_learns_in_the_data_and_in_each_resample() -> None:
    draw = np.random.default_rng(3)
    one = draw.integers(0, 4, 90)
    other = np.where(draw.random(90) < 0.6, one, draw.integers(0, 4, 90))
    other[:5] = kappa.UNREAD
    groups = [number // 3 for number in range(90)]
    draws = Bootstrap(groups, 50)
    estimate = kappa.cohen(one, other, draws)
    assert estimate.value == pytest.approx(cohen_kappa_score(one[5:], other[5:]), rel=1e-12)
    assert (estimate.n, estimate.unscored) == (85, 5)
    for resample in (1, 17, 50):
        again = np.repeat(np.arange(90), draws.counts[draws.of, resample])
        again = again[again >= 5]
        assert estimate.values[resample] == pytest.approx(cohen_kappa_score(one[again], other[again]), rel=1e-12)
    number = estimate.number()
    assert number["low"] < number["value"] < number["high"]
    # Twin: κ of what was not read as a category of its own is another.
    assert cohen_kappa_score(one, other) != pytest.approx(estimate.value, abs=1e-3)


def test_kappa_of_one_category_is_none() -> None:
    same = np.zeros(20, np.int64)
    assert kappa.cohen(same, same, Bootstrap(list(range(20)), 100)).number()["value"] is None
    assert kappa.fleiss(np.stack([same] * 3, axis=1), Bootstrap(list(range(20)), 100)).number()["value"] is None


# Readers and cases both random.


def simulated(seed: int, groups: int = 30, readers: int = 5) -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(seed)
    of = np.repeat(np.arange(groups), np.resize([1, 2, 3], groups))
    hard = draw.normal(size=groups)[of]
    right = draw.normal(size=(len(of), readers)) + hard[:, None] + draw.normal(size=readers) * 0.5 > -0.5
    model = draw.normal(size=len(of)) + hard > -0.8
    return right, model, of


def test_the_comparison_is_obuchowski_and_rocketts_by_hand() -> None:
    right, model, of = simulated(0)
    rows = np.ones(len(of), bool)
    rows[4] = False
    number = multireader.against_model(right, model, rows, of)

    def figures(kept: Any) -> Any:
        return np.array([model[kept].mean() - right[kept, reader].mean() for reader in range(5)])

    every = figures(rows)
    jack = np.array([figures(rows & (of != group)) for group in range(30)])
    covariance = np.cov(jack.T) * 29**2 / 30
    shared = np.mean([covariance[one, other] for one in range(5) for other in range(5) if one != other])
    between = sum((psi - every.mean()) ** 2 for psi in every) / 4
    total = between + 5 * max(shared, 0)
    assert number.value == pytest.approx(every.mean(), rel=1e-12)
    assert number.error == pytest.approx((total / 5) ** 0.5, rel=1e-10)
    assert number.df == pytest.approx(min(29, total**2 / (between**2 / 4)), rel=1e-10)
    # Twin: readers taken for all that there are, as if cases alone were drawn.
    assert number.error != pytest.approx((covariance.sum() / 25) ** 0.5, rel=1e-2)
    plain = number.number()
    assert plain["low"] < plain["value"] < plain["high"]
    assert (plain["method"], plain["readers"]) == (multireader.METHOD, 5)
    assert (plain["p"] < 0.05) == (plain["low"] > 0 or plain["high"] < 0)


def test_readers_who_are_alike_by_chance_have_no_interval_narrower_than_their_cases_allow() -> None:
    right, _, of = simulated(2, readers=1)
    alike = np.repeat(right, 3, axis=1)[:, :3].copy()
    alike[:2] = [[True, False, False], [False, True, True]]
    number = multireader.readers_alone(alike, np.ones(len(of), bool), of)
    jack = np.array([alike[of != group].mean() for group in range(30)])
    fixed = (29 / 30 * np.square(jack - jack.mean()).sum()) ** 0.5
    assert number.error >= fixed * (1 - 1e-9)
    # Theirs alone would be narrower where readers' figures are the same, and their errors apart.
    draw = np.random.default_rng(5)
    apart = np.stack([draw.permutation(np.repeat([True, False], [24, 6])) for _ in range(3)], axis=1)
    narrow = multireader.readers_alone(apart, np.ones(30, bool), np.arange(30))
    jack = np.array([apart[np.arange(30) != group].mean() for group in range(30)])
    assert narrow.error == pytest.approx((29 / 30 * np.square(jack - jack.mean()).sum()) ** 0.5)
    assert narrow.df == 29


def test_one_reader_few_groups_and_readers_alike_have_no_interval() -> None:
    right, _, of = simulated(1)
    rows = np.ones(len(of), bool)
    assert multireader.readers_alone(right[:, :1], rows, of).number()["method"] == "too few readers (1)"
    assert multireader.readers_alone(right, of < 9, of).number()["method"] == "too few groups (9)"
    assert multireader.readers_alone(np.ones_like(right), rows, of).number()["method"] == "groups alike"
    assert multireader.readers_alone(right, rows & False, of).number()["value"] is None
    alone = multireader.readers_alone(right, rows, of)
    assert alone.value == pytest.approx(right.mean(axis=0).mean())
    assert 0 <= alone.number()["low"] < alone.number()["high"] <= 1


@pytest.mark.parametrize("beside", [False, True])
def test_the_simulation_of_readers_has_its_truth(beside: bool) -> None:
    """Very many readers of many groups come near it, so that the table of docs/evaluation.md is of the right number."""
    draw = np.random.default_rng(3)
    number, truth = coverage._readers(draw, 600, lambda of: Bootstrap([], 0), readers=800, beside=beside)
    assert number.value == pytest.approx(truth, abs=0.04)


def test_intervals_cover_the_mean_of_readers_who_could_have_read() -> None:
    """With the table's setting; readers taken for all that there are cover it far too rarely."""
    found = []
    for seed in range(1_000):
        draw = np.random.default_rng(seed)
        number, truth = coverage._readers(draw, 20, lambda of: Bootstrap([], 0), readers=5, beside=True)
        narrow = replace(number, error=number.error / 2)
        found.append([one.number()["low"] <= truth <= one.number()["high"] for one in (number, narrow)])
    covered, twin = np.mean(found, axis=0)
    assert covered >= 0.90
    assert twin < 0.85


def test_choices_that_are_spelt_alike_are_one_category() -> None:
    common: dict[str, Any] = {"images": (), "right": (0,), "model": 0}
    asked = [
        Case("?", ("Nevus", "Scar"), key="a", group=("s", "1"), **common),
        Case("?", ("scar", "nevus"), key="b", group=("s", "2"), **common),
    ]
    block = results.block(asked, ["ann", "ben"], np.array([[0, 0], [1, 1]]), 100, 0)
    assert block["cohen"][0]["kappa"]["value"] is None  # both said nevus both times
    assert block["readers"]["ann"]["accuracy"]["value"] == 0.5
    assert block["together"].keys() == {"accuracy"}
