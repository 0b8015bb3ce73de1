"""Classification: scikit-learn's numbers, formulas by hand, and mistakes that cannot be made any more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from skinvl.data.example import Facts
from skinvl.score import class_report, classification, curves, probabilities, slices
from skinvl.score.classification import ClassifiedSet
from skinvl.score.predictions import Classified
from skinvl.score.stats import Bootstrap, Mask

CLASSES = ["nevus", "melanoma", "keratosis", "carcinoma", "scar"]
MALIGNANT = [False, True, False, True, False]
SETTINGS: dict[str, Any] = {
    "classes": CLASSES,
    "label_tokens": [2, 3, 4, 5, 1],
    "prior": [-2.0, -6.0, -7.0, -8.0, -3.0],
    "benchmark": None,
    "malignant": MALIGNANT,
    "question": "Which?",
}


def drawn(count: int = 300, seed: int = 0, classes: int = 5, missing: float = 0.1) -> list[Classified]:
    """Rows whose scores know something of the true class; one of the classes occurs nowhere as a label."""
    draw = np.random.default_rng(seed)
    rows = []
    for place in range(count):
        true = int(draw.choice(classes - 1, p=[0.5, 0.2, 0.2, 0.1]))
        scores = draw.normal(size=classes) * 2 - 6
        scores[true] += 2
        choice = CLASSES[int(draw.integers(classes))] if draw.random() < 0.5 else CLASSES[true]
        outcome: Literal["matched", "none"] = "none" if draw.random() < missing else "matched"
        facts = Facts(sex=["female", "male", None][place % 3], age=float(place % 90))
        rows.append(
            Classified(
                *(f"r{place}", "s", f"g{place // 2}", (), facts, CLASSES[true], tuple(scores.tolist()), "", "said"),
                outcome,
                choice if outcome == "matched" else None,
            )
        )
    return rows


def classified_set(
    tmp_path: Path, rows: Sequence[Classified], validation: Sequence[Classified] = (), **settings: Any
) -> ClassifiedSet:
    for name, group in (("set", rows), ("set.validation", validation)):
        if group:
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in group))
            (tmp_path / f"{name}.json").write_text(json.dumps(SETTINGS | settings))
    return classification.classified_set(tmp_path / "set.jsonl")


def block(one: ClassifiedSet, resamples: int = 0) -> dict[str, Any]:
    return class_report.block(one, classification.bootstrap(one.rows, resamples, 0))


def every(one: ClassifiedSet) -> Mask:
    return np.ones(len(one.rows), np.bool_)


def value(found: dict[str, Any], variant: str, metric: str) -> float:
    number: float = found["variants"][variant][metric]["value"]
    return number


def test_numbers_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rows = drawn()
    found = block(classified_set(tmp_path, rows))
    true = np.array([CLASSES.index(row.label or "") for row in rows])
    chances = softmax(np.array([row.scores for row in rows]), axis=1)
    said, present = chances.argmax(axis=1), [0, 1, 2, 3]
    expected = {
        "accuracy": sk.accuracy_score(true, said),
        "balanced_accuracy": sk.recall_score(true, said, labels=present, average="macro"),
        "macro_f1": sk.f1_score(true, said, labels=present, average="macro"),
        "weighted_f1": sk.f1_score(true, said, labels=present, average="weighted"),
        "top_3": sk.top_k_accuracy_score(true, chances, k=3, labels=range(5)),
        "auroc": np.mean([sk.roc_auc_score(true == one, chances[:, one]) for one in present]),
        "auroc_malignant": sk.roc_auc_score(np.isin(true, [1, 3]), chances[:, 1] + chances[:, 3]),
        "auprc": np.mean([sk.average_precision_score(true == one, chances[:, one]) for one in present]),
        "brier": np.mean([sum((chances[i, c] - (true[i] == c)) ** 2 for c in range(5)) for i in range(len(true))]),
        "sensitivity": np.mean([MALIGNANT[one] for one in said[np.isin(true, [1, 3])]]),
        "specificity": np.mean([not MALIGNANT[one] for one in said[~np.isin(true, [1, 3])]]),
    }
    confidence, right = chances.max(axis=1), said == true
    bins = curves.bins(confidence)
    expected["ece"] = sum(
        (bins == one).mean() * abs(right[bins == one].mean() - confidence[bins == one].mean()) for one in set(bins)
    )
    for metric, theirs in expected.items():
        assert value(found, "sum", metric) == pytest.approx(theirs, abs=1e-9), metric
    assert set(found["variants"]["sum"]) == {*expected, "aurc"}
    assert found["confusion"]["sum"] == sk.confusion_matrix(true, said, labels=range(5)).tolist()
    for place, name in enumerate(CLASSES[:4]):
        per = found["per_class"][name]
        assert per["precision"]["value"] == pytest.approx(sk.precision_score(true == place, said == place))
        assert per["recall"]["value"] == pytest.approx(sk.recall_score(true == place, said == place))
        assert per["f1"]["value"] == pytest.approx(sk.f1_score(true == place, said == place))
        assert per["auroc"]["value"] == pytest.approx(sk.roc_auc_score(true == place, chances[:, place]))
        assert per["recall"]["n"] == (true == place).sum()
    nothing = {"value": None, "low": None, "high": None, "method": None, "n": 0, "groups": 0, "unscored": 0}
    assert found["per_class"]["scar"]["recall"] == nothing
    assert found["per_class"]["scar"]["f1"]["value"] is None


def test_one_class_alone_has_no_area(tmp_path: Path) -> None:
    rows = [row for row in drawn() if row.label == CLASSES[0]]
    found = block(classified_set(tmp_path, rows))
    assert found["variants"]["sum"]["auroc"]["value"] is found["variants"]["sum"]["auprc"]["value"] is None
    assert found["per_class"][CLASSES[0]]["auroc"]["value"] is None
    one = classified_set(tmp_path, rows)
    confidence, positive = one.variants["sum"].confidence, np.ones(len(rows), np.bool_)
    draws = classification.bootstrap(one.rows, 40, seed=2)
    roc, precision = curves.areas(confidence, positive, draws, positive)
    assert np.isnan(roc).all()
    assert np.isnan(precision).all()


def test_two_classes_give_the_areas_of_two_classes(tmp_path: Path) -> None:
    rows = [replace(row, scores=(row.scores or ())[:2], outcome=None, choice=None) for row in drawn()]
    rows = [row for row in rows if row.label in CLASSES[:2]]
    found = block(
        classified_set(tmp_path, rows, classes=CLASSES[:2], label_tokens=[1, 1], prior=[0, 0], malignant=None)
    )
    true = np.array([row.label == "melanoma" for row in rows])
    chances = softmax(np.array([row.scores for row in rows]), axis=1)[:, 1]
    assert value(found, "sum", "auroc") == pytest.approx(sk.roc_auc_score(true, chances))
    assert value(found, "sum", "brier") == pytest.approx(2 * sk.brier_score_loss(true, chances))
    assert "top_3" not in found["variants"]["sum"]
    assert "prompted" not in found["variants"]
    assert (found["valid"], found["outcomes"]) == (None, None)


def test_intervals_are_those_of_rows_drawn_by_group(tmp_path: Path) -> None:
    one = classified_set(tmp_path, drawn(16))
    draws = classification.bootstrap(one.rows, 40, seed=2)
    found = classification.estimates(one, "sum", draws, every(one))
    said, chances = one.variants["sum"].predicted, one.variants["sum"].probabilities
    assert chances is not None
    _, true, _ = classification.by_class(one, one.variants["sum"], draws, every(one))
    assert (true[:, :4] == 0).any()  # a class vanishes from some of the resamples
    for column in range(draws.size):
        places = np.repeat(np.arange(16), draws.counts[draws.of, column])
        true, guess = one.true[places], said[places]
        present = sorted(set(true.tolist()))  # what vanished is left out of the means
        assert found["macro_f1"].values[column] == pytest.approx(
            sk.f1_score(true, guess, labels=present, average="macro")
        )
        assert found["balanced_accuracy"].values[column] == pytest.approx(
            sk.recall_score(true, guess, labels=present, average="macro")
        )
        areas = [sk.roc_auc_score(true == c, chances[places, c]) for c in present]
        assert found["auroc"].values[column] == pytest.approx(np.mean(areas))


def test_variants_by_their_formulas(tmp_path: Path) -> None:
    rows = drawn(40)
    one = classified_set(tmp_path, rows, drawn(60, seed=1))
    scores = np.array([row.scores for row in rows])
    fitted = one.variants["calibrated"].temperature
    assert fitted is not None
    readings = {
        "sum": scores,
        "mean": scores / SETTINGS["label_tokens"],
        "prior": scores - SETTINGS["prior"],
        "calibrated": scores / fitted,
    }
    assert list(one.variants) == [*readings, "prompted"]
    for name, reading in readings.items():
        chances = one.variants[name].probabilities
        assert chances is not None
        np.testing.assert_allclose(chances, softmax(reading, axis=1))
        assert (one.variants[name].predicted == reading.argmax(axis=1)).all()
    assert (one.variants["mean"].predicted != one.variants["sum"].predicted).any()
    assert (one.variants["prior"].predicted != one.variants["sum"].predicted).any()


def test_temperature_and_threshold_are_fitted_on_validation_rows_alone(tmp_path: Path) -> None:
    rows, validation = drawn(200), drawn(150, seed=1)
    before = block(classified_set(tmp_path, rows, validation))
    wrong = [replace(row, label="scar") for row in rows]
    after = block(classified_set(tmp_path, wrong, validation))
    temperature = before["reliability"]["calibrated"]["temperature"]
    assert after["reliability"]["calibrated"]["temperature"] == temperature
    assert after["threshold"]["value"] == before["threshold"]["value"]
    assert before["reliability"]["sum"]["temperature"] is None
    true = np.array([CLASSES.index(row.label or "") for row in validation])
    scores = np.array([row.scores for row in validation])
    assert temperature == pytest.approx(curves.temperature(scores, true))
    confidence = softmax(scores / temperature, axis=1).max(axis=1)
    assert before["threshold"]["value"] == pytest.approx(curves.threshold(confidence))
    assert before["threshold"]["coverage"] == pytest.approx(0.8, abs=0.12)
    assert before["threshold"]["risk"] < 1 - value(before, "sum", "accuracy")
    assert value(before, "calibrated", "ece") < value(before, "sum", "ece")
    assert value(before, "calibrated", "accuracy") == value(before, "sum", "accuracy")


def test_without_validation_nothing_is_fitted(tmp_path: Path) -> None:
    found = block(classified_set(tmp_path, drawn(50)))
    assert "calibrated" not in found["variants"]
    assert found["threshold"] is None
    assert found["risk_coverage"][-1]["coverage"] == 1.0


def test_a_probe_has_one_variant(tmp_path: Path) -> None:
    rows = [replace(row, answer=None, outcome=None, choice=None) for row in drawn(50)]
    found = block(classified_set(tmp_path, rows, label_tokens=None, prior=None, probe=0.1))
    assert list(found["variants"]) == ["sum"]


def test_prompts_are_one_variant_and_nothing_is_made_of_what_they_lack(tmp_path: Path) -> None:
    rows = [replace(row, answer=None, outcome=None, choice=None) for row in drawn(50)]
    settings = {"variant": "prompts", "label_tokens": None, "prior": None}
    one = classified_set(tmp_path, rows, drawn(60, seed=1), **settings)
    assert list(one.variants) == ["prompts", "calibrated"]
    np.testing.assert_allclose(one.variants["prompts"].probabilities, softmax([row.scores for row in rows], axis=1))
    found = block(one)
    assert found["headline"] == "prompts"
    assert found["spread"] == {}
    assert found["risk_coverage"]
    assert found["reliability"].keys() == {"prompts", "calibrated"}


def test_areas_are_of_the_difference_of_scores_where_probabilities_round_to_one(tmp_path: Path) -> None:
    """Scores of 100 × cosine: of two classes the difference ranks rows that both have a probability of 1."""
    draw = np.random.default_rng(0)
    rows = []
    for place in range(80):
        true = place % 2
        scores = (0.0, 60 + 20 * float(draw.normal()) + 15 * true)
        rows.append(Classified(f"r{place}", "s", f"g{place}", (), Facts(), ["benign", "malignant"][true], scores, ""))
    two = {"classes": ["benign", "malignant"], "malignant": [False, True], "label_tokens": None, "prior": None}
    found = block(classified_set(tmp_path, rows, variant="prompts", **two))
    true, difference = [row.label == "malignant" for row in rows], [(row.scores or ())[1] for row in rows]
    assert value(found, "prompts", "auroc") == pytest.approx(sk.roc_auc_score(true, difference), abs=1e-12)
    saturated = softmax([row.scores for row in rows], axis=1)[:, 1]
    assert len(set(saturated.tolist())) < 40  # what a ranking by probabilities would take for ties

    # Of five classes the log-odds are those of the probabilities, to rounding.
    many = classified_set(tmp_path, drawn(100))
    variant = many.variants["sum"]
    chances = variant.probabilities
    assert chances is not None
    np.testing.assert_allclose(variant.log_odds, np.log(chances) - np.log1p(-chances), atol=1e-9)


def test_unparsed_answers_are_wrong_and_no_class_of_their_own(tmp_path: Path) -> None:
    rows = drawn(missing=0.4)
    found = block(classified_set(tmp_path, rows))
    true = [row.label for row in rows]
    said = [row.choice or "none" for row in rows]
    present = sorted(set(map(str, true)))
    ours = value(found, "prompted", "macro_f1")
    assert ours == pytest.approx(sk.f1_score(true, said, labels=present, average="macro"))
    as_released = sk.f1_score(true, said, average="macro")  # with "none" as one more class, whose F1 is 0
    assert as_released < ours - 0.05
    right = np.mean([one == other for one, other in zip(true, said, strict=True)])
    assert value(found, "prompted", "accuracy") == pytest.approx(right)
    assert found["valid"]["value"] == pytest.approx(np.mean([one != "none" for one in said]))
    assert found["outcomes"]["none"] == said.count("none") > 50
    assert [row[-1] for row in found["confusion"]["prompted"]] == [
        sum(one == name and other == "none" for one, other in zip(true, said, strict=True)) for name in CLASSES
    ]
    assert "auroc" not in found["variants"]["prompted"]


def test_an_unparsed_answer_recognised_neither_malignant_nor_benign(tmp_path: Path) -> None:
    plain = drawn(4)
    labels = ["melanoma", "melanoma", "nevus", "nevus"]
    choices = ["carcinoma", None, "scar", None]
    rows = [
        replace(row, label=label, choice=choice, outcome="matched" if choice else "ambiguous")
        for row, label, choice in zip(plain, labels, choices, strict=True)
    ]
    found = block(classified_set(tmp_path, rows))
    assert value(found, "prompted", "sensitivity") == 0.5
    assert value(found, "prompted", "specificity") == 0.5


def test_accuracy_hides_missed_cancers_and_sensitivity_does_not(tmp_path: Path) -> None:
    rows = [replace(row, label="nevus" if place % 10 else "melanoma") for place, row in enumerate(drawn(100))]
    rows = [replace(row, scores=(0.0, -5.0, -5.0, -5.0, -5.0)) for row in rows]
    found = block(classified_set(tmp_path, rows))
    assert value(found, "sum", "accuracy") == 0.9 == found["majority"]["value"]
    assert (value(found, "sum", "sensitivity"), value(found, "sum", "balanced_accuracy")) == (0.0, 0.5)


@pytest.mark.parametrize("malignant", [None, [False, True, None, True, False]])
def test_malignancy_that_is_not_known_has_no_number(tmp_path: Path, malignant: list[bool | None] | None) -> None:
    assert "sensitivity" not in block(classified_set(tmp_path, drawn(20), malignant=malignant))["variants"]["sum"]


def test_rows_that_cannot_be_scored_are_counted_with_their_reasons(tmp_path: Path) -> None:
    rows = drawn(20)
    rows[0] = replace(rows[0], label=None, detail="label 'cyst' is no class")
    rows[1] = replace(rows[1], scores=None, detail="no image", outcome=None, choice=None, answer=None)
    rows[2] = replace(rows[2], scores=None, detail="no image", outcome=None, choice=None, answer=None)
    rows[3] = replace(rows[3], outcome=None, choice=None, answer=None)
    found = block(classified_set(tmp_path, rows))
    assert (found["rows"], found["unscored"]) == (20, 3)
    assert found["reasons"] == {"label 'cyst' is no class": 1, "no image": 2}
    counts = {name: (one["accuracy"]["n"], one["accuracy"]["unscored"]) for name, one in found["variants"].items()}
    assert counts == {"sum": (17, 3), "mean": (17, 3), "prior": (17, 3), "prompted": (16, 4)}
    assert sum(map(sum, found["confusion"]["sum"])) == 17


def test_a_set_in_which_nothing_can_be_scored(tmp_path: Path) -> None:
    rows = [replace(row, label=None, detail="no such class") for row in drawn(5)]
    found = block(classified_set(tmp_path, rows), resamples=100)
    nothing = {"value": None, "low": None, "high": None, "method": None, "n": 0, "groups": 0, "unscored": 5}
    assert found["variants"]["sum"]["accuracy"] == nothing
    assert found["majority"]["value"] is None
    assert found["risk_coverage"] == []
    asked_nothing = [replace(row, scores=None, outcome=None, choice=None) for row in rows]
    assert block(classified_set(tmp_path, asked_nothing))["headline"] is None


def test_the_prompted_variant_alone(tmp_path: Path) -> None:
    rows = [replace(row, scores=None, detail="not asked for") for row in drawn(30)]
    found = block(classified_set(tmp_path, rows))
    assert (found["headline"], found["unscored"]) == ("prompted", 0)
    assert found["risk_coverage"] == []
    assert set(found["per_class"]["nevus"]) == {"precision", "recall", "f1"}


def test_contradictions_are_one_message(tmp_path: Path) -> None:
    rows = drawn(3)
    with pytest.raises(
        probabilities.ClassError, match=r"row s/r0: label 'cyst' is none of the classes nevus, melanoma"
    ):
        classified_set(tmp_path, [replace(rows[0], label="cyst"), *rows[1:]])
    with pytest.raises(probabilities.ClassError, match=r"row s/r1: scores \[nan, .* expected 5 finite numbers"):
        classified_set(tmp_path, [rows[0], replace(rows[1], scores=(float("nan"), 0.0, 0.0, 0.0, 0.0))])
    with pytest.raises(probabilities.ClassError, match="expected 5 finite numbers"):
        classified_set(tmp_path, [replace(rows[0], scores=(0.0, 1.0))])
    (tmp_path / "other").mkdir()
    classified_set(tmp_path, rows, rows)
    (tmp_path / "set.validation.json").write_text(json.dumps(SETTINGS | {"classes": CLASSES[::-1]}))
    with pytest.raises(probabilities.ClassError, match="its classes differ from those of set"):
        classification.classified_set(tmp_path / "set.jsonl")


def test_slices_name_the_worst_and_the_gap(tmp_path: Path) -> None:
    rows = drawn(200)
    rows = [
        replace(
            row, facts=Facts(skin_type="I" if place % 2 else "VI"), choice=row.label, scores=None, outcome="matched"
        )
        for place, row in enumerate(rows)
    ]
    worse = [
        replace(row, choice="scar") if row.facts.skin_type == "VI" and place % 4 == 0 else row
        for place, row in enumerate(rows)
    ]
    found = block(classified_set(tmp_path, worse), resamples=300)["slices"]["skin_type"]
    assert found["metric"] == "balanced_accuracy"
    assert found["worst"] == "VI"
    values = {name: one["value"] for name, one in found["values"].items()}
    assert values["I"] == 1.0
    assert found["gap"]["value"] == pytest.approx(1 - values["VI"])
    assert 0 < found["gap"]["low"] < found["gap"]["value"] < found["gap"]["high"] < 1


def test_one_known_group_is_no_evidence_of_fairness(tmp_path: Path) -> None:
    rows = [replace(row, facts=Facts(skin_type="II" if place < 60 else None)) for place, row in enumerate(drawn(100))]
    found = block(classified_set(tmp_path, rows))["slices"]["skin_type"]
    assert set(found["values"]) == {"II", "unknown"}
    assert (found["worst"], found["gap"]) == (None, None)


def test_a_slice_with_few_cases_or_groups_has_no_number(tmp_path: Path) -> None:
    def kind(place: int) -> str:
        return "few" if place < 8 else "one patient" if place < 40 else "many" if place < 70 else "more"

    rows = [
        replace(row, facts=Facts(site=kind(place)), group="same" if kind(place) == "one patient" else row.group)
        for place, row in enumerate(drawn(100))
    ]
    found = block(classified_set(tmp_path, rows))["slices"]["site"]
    assert found["values"]["few"] is None
    assert found["values"]["one patient"] is None
    assert found["values"]["many"]["n"] == 30
    assert found["worst"] in ("many", "more")


def test_ages_are_sliced_in_bands() -> None:
    ages = {0: "<20", 19.9: "<20", 20: "20-39", 39.9: "20-39", 40: "40-59", 79: "60-79", 80: "80+", 101: "80+"}
    for age, band in ages.items():
        row = replace(drawn(1)[0], facts=Facts(age=age))
        assert slices.fact(row, "age") == band
    assert slices.fact(replace(drawn(1)[0], facts=Facts()), "age") == "unknown"


def test_what_few_sources_know_is_a_slice_where_any_row_knows_it(tmp_path: Path) -> None:
    rows = drawn(120)
    by_field = block(classified_set(tmp_path, rows))["slices"]
    assert [*by_field] == [*slices.FIELDS, "sex × age"]
    known = [
        replace(row, facts=Facts(tone=f"MILK {place % 2}", views=views, institution="Vienna" if place < 40 else None))
        for place, row in enumerate(rows)
        for views in [
            ("dermoscopic", "clinical close-up")[:: 1 if place % 3 else -1] if place % 4 else ("dermoscopic",)
        ]
    ]
    by_field = block(classified_set(tmp_path, known))["slices"]
    assert [*by_field] == [*slices.FIELDS, "institution", "tone", "views"]
    assert [*by_field["tone"]["values"]] == ["MILK 0", "MILK 1"]
    assert by_field["tone"]["gap"] is not None
    counts = {view: number["n"] for view, number in by_field["views"]["values"].items()}
    assert counts == {"clinical close-up + dermoscopic": 90, "dermoscopic": 30}  # in whatever order they are shown
    assert {name: number["n"] for name, number in by_field["institution"]["values"].items()} == {
        **{"Vienna": 40, "unknown": 80},
    }


def test_a_bootstrap_of_many_classes_stays_small(tmp_path: Path) -> None:
    names = [f"class {place}" for place in range(300)]
    draw = np.random.default_rng(0)
    rows = [
        replace(row, label=names[place % 300], scores=tuple(draw.normal(size=300).tolist()), outcome=None, choice=None)
        for place, row in enumerate(drawn(600))
    ]
    one = classified_set(tmp_path, rows, classes=names, label_tokens=None, prior=None, malignant=None)
    found = classification.estimates(one, "sum", Bootstrap(range(600), 50), every(one))
    assert found["accuracy"].value < 0.05
