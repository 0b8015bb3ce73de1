"""A planted artefact that stands for a class: what taking its unit out brings back, and random units do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from skinvl.data.example import Facts
from skinvl.evaluate.concept.random_units import TOLERANCE, drawn
from skinvl.model.dictionary import Dictionary
from skinvl.score import suppression
from skinvl.score.compare import Resampling
from skinvl.score.concepts import ABSENT, MISSING, PRESENT
from skinvl.score.predictions import Classified
from skinvl.score.stats import Float
from skinvl.score.suppression import Suppressed

N, WIDTH, ARTEFACT = 160, 60, 2
CLASSES = ("nevus", "melanoma")
SETTINGS: dict[str, Any] = {"set": "drawn", "classes": list(CLASSES), "malignant": [False, True], "variant": "prompts"}
TRUE = np.arange(N) % 2
SHOWS = np.arange(N) // 2 % 2 == 1
TYPES = ("I", "VI")


def planted() -> tuple[Dictionary, Float]:
    """A dictionary whose units are the axes, and embeddings that are sums of a class, the artefact and noise."""
    generator = np.random.default_rng(0)
    units = np.abs(generator.normal(scale=0.08, size=(N, WIDTH)))
    units[np.arange(N), TRUE] += 1
    units[:, ARTEFACT] = np.where(SHOWS, generator.uniform(1.2, 2.4, N), 0.0)
    dictionary = Dictionary(WIDTH, WIDTH, "l1", 1)
    dictionary.directions.data.copy_(torch.eye(WIDTH))
    dictionary.encoder.data.copy_(torch.eye(WIDTH))
    return dictionary.requires_grad_(False), units / np.linalg.norm(units, axis=1, keepdims=True)


def classified(embeddings: Float) -> suppression.ClassifiedSet:
    """By two prompts, of which that of melanoma has learned the artefact."""
    prompts = np.zeros((2, WIDTH))
    prompts[0, 0], prompts[1, 1], prompts[1, ARTEFACT] = 1.0, 0.75, 0.66
    rows = [
        Classified(
            f"{row}", "drawn", f"{row // 2}", (), Facts(skin_type=TYPES[row // 4 % 2]), CLASSES[true], tuple(scores), ""
        )
        for row, (true, scores) in enumerate(zip(TRUE, (10 * embeddings @ prompts.T).tolist(), strict=True))
    ]
    return suppression.classified(rows, SETTINGS, "drawn")


def suppressed(unit: int = ARTEFACT) -> tuple[Suppressed, dict[str, Any]]:
    """What taking a unit out changes, beside ten draws of others."""
    dictionary, embeddings = planted()
    active = dictionary.units(torch.from_numpy(embeddings)).double().numpy()
    _, random = drawn(active, SHOWS, [unit], 10, 0)
    sides = [
        classified(dictionary.without(torch.from_numpy(embeddings), numbers).double().numpy())
        for numbers in ([unit], *(one.units for one in random))
    ]
    artefact = np.where(SHOWS, PRESENT, ABSENT).astype(np.int8)
    one = Suppressed(classified(embeddings), sides[0], sides[1:], artefact)
    return one, suppression.block("drawn", one, Resampling(200, 0))


def test_taking_the_planted_unit_out_brings_the_drop_back() -> None:
    _, block = suppressed()
    back = block["brought_back"]
    assert 0.3 < back["drop"]["value"] < 0.5  # most nevi with the artefact are taken for melanomas
    assert back["units"]["value"] == pytest.approx(1.0)
    assert back["random"]["high"] < 0.5
    assert back["beyond_random"]["low"] > 0
    shown, clean = block["parts"]["with"], block["parts"]["without"]
    assert shown["before"]["specificity"]["value"] == pytest.approx(1 - 2 * back["drop"]["value"])
    assert shown["after"]["specificity"]["value"] == 1
    assert shown["before"]["sensitivity"]["value"] == 1
    assert clean["before"]["accuracy"]["value"] == clean["after"]["accuracy"]["value"] == 1
    assert shown["random"]["beyond"]["difference"]["low"] > 0
    test = next(one for one in shown["tests"] if one["metric"] == "accuracy" and one["test"] == "McNemar")
    assert test["p"] < 1e-6
    assert (test["ours"], test["n"]) == (1.0, N // 2)


def test_another_unit_brings_nothing_back() -> None:
    _, block = suppressed(unit=5)
    back = block["brought_back"]
    assert back["units"]["value"] == pytest.approx(0.0, abs=0.05)
    assert back["beyond_random"]["low"] is None or back["beyond_random"]["low"] <= 0


def test_each_skin_type_has_its_change() -> None:
    _, block = suppressed()
    for value in TYPES:
        before, after, change = (block["skin_type"][side]["values"][value] for side in ("before", "after", "change"))
        assert after["value"] - before["value"] == pytest.approx(change["value"])
        assert before["n"] == N // 2
        assert change["value"] > 0.1


def test_without_a_drop_there_is_nothing_to_bring_back() -> None:
    one, _ = suppressed()
    same = Suppressed(one.after, one.before, one.random, one.artefact)
    assert suppression.block("drawn", same, Resampling(200, 0))["brought_back"]["units"] is None
    unknown = Suppressed(one.before, one.after, one.random, np.full(N, MISSING, np.int8))
    block = suppression.block("drawn", unknown, Resampling(200, 0))
    assert [*block["parts"]] == ["all"]
    assert block["brought_back"]["drop"] is None


def test_random_units_have_the_mass_of_those_that_they_stand_beside() -> None:
    active = np.random.default_rng(1).exponential(size=(50, 300)) * (np.arange(300) < 250)
    rows = np.arange(50) < 20
    wanted, draws = drawn(active, rows, [0, 1, 2], 8, 3)
    assert wanted == pytest.approx(active[rows][:, :3].sum(axis=1).mean())
    for one in draws:
        assert one.mass == pytest.approx(active[rows][:, list(one.units)].sum(axis=1).mean())
        assert abs(one.mass - wanted) <= TOLERANCE * wanted
        assert {*one.units}.isdisjoint({0, 1, 2})
        assert max(one.units) < 250  # none that is never active
    assert len({one.units for one in draws}) == 8
    assert drawn(active, rows, [0, 1, 2], 8, 3) == (wanted, draws)
