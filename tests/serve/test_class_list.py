"""Which classes a word names, and when their probabilities are called calibrated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from skinvl.data import labels
from skinvl.serve import class_list
from skinvl.serve.class_list import ClassList, ClassListError

FACTS = {"adapter": "a", "template": "t", "image_tokens": 16}


def scored(folder: Path, **changes: Any) -> Path:
    """A run whose scores.json has one classified set."""
    block = {
        "classes": ["nevus", "melanoma"],
        "benchmark": None,
        "reliability": {"calibrated": {"temperature": 2.5, "bins": []}, "sum": {"temperature": None, "bins": []}},
        "threshold": {"value": 0.6, "coverage": 0.8, "risk": 0.1},
        "settings": {**FACTS, "question": "Which is it?"},
        **changes,
    }
    folder.mkdir(exist_ok=True)
    sets = {"mine": {"classes": block}, "answers": {"answers": {}}}
    (folder / "scores.json").write_text(json.dumps({"sets": sets}))
    return folder


def test_a_set_of_the_run_brings_its_question_and_what_was_fitted(tmp_path: Path) -> None:
    run = scored(tmp_path / "run")
    found = class_list.load("mine", run, FACTS)
    assert found == ClassList("mine", ("nevus", "melanoma"), "Which is it?", 2.5, 0.6)
    for key in FACTS:  # fitted for another model, template or image budget
        other = class_list.load("mine", run, {**FACTS, key: None})
        assert (other.temperature, other.least) == (None, None)
    bare = scored(tmp_path / "bare", reliability={"sum": {"temperature": None}}, threshold=None)
    assert class_list.load("mine", bare, FACTS).temperature is None
    assert class_list.load("mine", scored(tmp_path / "open", threshold=None), FACTS).least is None


def test_a_benchmark_is_the_run_s_own_set_where_it_was_classified(tmp_path: Path) -> None:
    run = scored(tmp_path / "run", benchmark="ham10000")
    assert class_list.load("HAM", run, FACTS).temperature == 2.5
    plain = class_list.load("ham", None, FACTS)
    assert plain.names == labels.CLASSES["ham10000"]
    assert (plain.question, plain.temperature) == ("What is the most likely diagnosis?", None)
    assert class_list.load("ddi", tmp_path, FACTS).question == "Is the finding Non-Malignant or Malignant?"
    assert class_list.load("patch16", None, FACTS).question == "Is the tissue nontumor or tumor?"
    with pytest.raises(ClassListError, match=r"--labels hamm: no file, and no list of classes; .*ham10000"):
        class_list.load("hamm", None, FACTS)
    with pytest.raises(ClassListError, match=r"--labels mskcc: no file"):  # only begins its list
        class_list.load("mskcc", None, FACTS)


def test_a_file_holds_a_class_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("# moles\nnevus\n\n  melanoma \n")
    found = class_list.load(str(file), None, FACTS)
    assert found == ClassList("mine", ("nevus", "melanoma"), "Which of these fits the image: nevus or melanoma?")
    for words in ("nevus\n", "Nevus\nnevus\nscar\n"):
        file.write_text(words)
        with pytest.raises(ClassListError, match="expected at least two, one on each line, each once"):
            class_list.load(str(file), None, FACTS)


def test_probabilities_say_what_they_are_worth() -> None:
    scores = np.array([-1.0, -2.0])
    fitted = ClassList("mine", ("a", "b"), "Which?", 2.0, 0.6)
    shares, told = class_list.probabilities(fitted, scores, "Which?")
    assert shares.tolist() == pytest.approx(softmax(scores / 2).tolist())
    assert told == "Calibrated on validation images of mine (temperature 2.00)."
    _, told = class_list.probabilities(ClassList("mine", ("a", "b"), "Which?", 2.0, 0.7), scores, "Which?")
    assert told.endswith("Too unsure to answer: below the threshold of 0.70 that was fitted there.")
    shares, told = class_list.probabilities(fitted, scores, "What?")
    assert shares.tolist() == pytest.approx(softmax(scores).tolist())
    assert told.startswith("Not calibrated (its temperature was fitted for another question)")
    _, told = class_list.probabilities(ClassList("mine", ("a", "b"), "Which?"), scores, "Which?")
    assert told.startswith("Not calibrated (no temperature was fitted)")
