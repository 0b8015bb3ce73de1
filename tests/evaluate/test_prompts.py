"""Prompts of classes: what they say, what they refuse, and the one embedding that they come to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from skinvl.data import labels
from skinvl.evaluate import prompts, text_lists
from skinvl.evaluate.prompts import NEUTRAL, PromptError
from skinvl.evaluate.text_lists import TextListError


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_neutral_templates_claim_nothing_and_every_benchmark_has_prompts() -> None:
    assert len(NEUTRAL) == len({*NEUTRAL}) >= 5
    assert all(template.count("{c}") == 1 for template in NEUTRAL)
    assert not any(word in template for template in NEUTRAL for word in ("cancer", "lesion", "disease", "disorder"))
    for classes in labels.CLASSES.values():
        made = prompts.make(classes, "neutral", synonyms=True)
        assert [names[0] for names in made.names] == list(classes)
        texts = made.texts
        assert len(texts) == len({*texts}) == len(NEUTRAL) * sum(map(len, made.names))


def test_synonyms_are_names_and_codes_of_datasets_are_none() -> None:
    (names, own) = prompts.names_of(("Melanoma", "BCC"), synonyms=True)
    assert names[0] == "Melanoma"
    assert {"malignant melanoma", "melanoma in situ"} <= {*names}
    assert "MEL" not in names
    assert "melanoma" not in names[1:]  # the same but for case
    assert own[0] == "BCC"  # what the user calls it
    assert prompts.names_of(("Melanoma", "nevus"), synonyms=False) == (("Melanoma",), ("nevus",))


def test_two_classes_of_one_name_are_refused_with_both_named() -> None:
    with pytest.raises(PromptError, match=r"'melanoma' and 'malignant melanoma': both are called 'malignant melanoma'"):
        prompts.names_of(("nevus", "melanoma", "malignant melanoma"), synonyms=True)
    assert len(prompts.names_of(("nevus", "melanoma", "malignant melanoma"), synonyms=False)) == 3
    with pytest.raises(PromptError, match=r"'Nevus' and 'nevus'"):
        prompts.names_of(("Nevus", "nevus"), synonyms=False)


def test_names_weigh_alike_and_templates_within_them() -> None:
    made = prompts.Prompts(("a {c}", "b {c}"), (("x",), ("y", "z")))
    generator = np.random.default_rng(0)
    vectors = {text: generator.normal(size=4).astype(np.float32) for text in made.texts}
    whole = prompts.embeddings(made, vectors)
    u = {text: unit(vector.astype(np.float64)) for text, vector in vectors.items()}
    assert whole.whole[0] == pytest.approx(unit(u["a x"] + u["b x"]))
    assert whole.whole[1] == pytest.approx(unit((u["a y"] + u["b y"]) / 2 + (u["a z"] + u["b z"]) / 2))
    assert whole.by_template[1] == pytest.approx(np.stack([u["b x"], unit(u["b y"] + u["b z"])]))
    assert made.choices[0] == (0, 0)
    assert {*made.choices} == {(0, 0), (0, 1)}  # a class of one name has no other
    second = made.choices.index((0, 1))
    assert whole.by_choice[second][1] == pytest.approx(unit(u["a z"] + u["b z"]))
    assert whole.by_choice[second][0] == pytest.approx(whole.whole[0])
    assert prompts.embeddings(prompts.Prompts(("{c}",), (("x",),)), {"x": vectors["a x"]}).by_choice.shape == (0, 1, 4)

    # A single vector that is not of length one must not outweigh the others.
    longer = prompts.embeddings(made, vectors | {"a x": vectors["a x"] * 9})
    assert longer.whole == pytest.approx(whole.whole)


def test_templates_come_from_lines_or_json(tmp_path: Path) -> None:
    lines = tmp_path / "mine.txt"
    lines.write_text("# mine\nan image of {c}\n\n  {c},   close up \n")
    assert prompts.templates_of(str(lines)) == ("an image of {c}", "{c}, close up")
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(["{c}", "#{c}"]))
    assert prompts.templates_of(str(plain)) == ("{c}", "#{c}")
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"templates": ["x {c}"], "classes": {"two": ["benign", "malignant"]}}))
    assert prompts.templates_of(str(both)) == ("x {c}",)
    assert text_lists.read(f"{both}#classes.two") == ("benign", "malignant")

    lines.write_text("a photo of a class\n")
    with pytest.raises(PromptError, match=r"mine.txt: 'a photo of a class' has no \{c\}"):
        prompts.templates_of(str(lines))
    for name, content, message in (
        (f"{both}#classes.three", None, r"no key 'three'; found two"),
        (f"{both}#classes", None, r"found dict where a list"),
        (str(tmp_path / "gone.txt"), None, r"no such file"),
        (str(plain), "[1]", r"a list of texts was expected"),
        (str(plain), "[", r"not UTF-8, or not JSON"),
        (str(plain), '["{c}", "{c} "]', r"'\{c\}' twice"),
        (str(plain), "[]", r"empty"),
    ):
        if content is not None:
            plain.write_text(content)
        with pytest.raises(TextListError, match=message):
            text_lists.read(name, "")


def test_the_released_protocol_makes_prompts(shared: Path) -> None:
    """Its eight templates with every list of its classes, as the file has them; near-twins by their own names alone."""
    released = shared / "zeroshot" / "released_protocol.json"
    lists = json.loads(released.read_text())["classes"]
    assert len(lists) == 7
    for key, classes in lists.items():
        assert text_lists.read(f"{released}#classes.{key}") == tuple(classes)
        made = prompts.make(classes, str(released), synonyms=False)
        assert len(made.templates) == 8
        assert len(made.texts) == 8 * len(classes)
        assert made.choices == []
    assert not {*NEUTRAL} & {*made.templates}
    with pytest.raises(PromptError, match=r"'melanoma' and 'malignant melanoma'"):
        prompts.make(lists["fitzpatrick17k_114"], "neutral", synonyms=True)
