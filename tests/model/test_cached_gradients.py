"""How many images are in memory at a time decides neither the loss nor a gradient, with dropout too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers import batches
from skinvl.model.cached_gradients import CachedGradients
from skinvl.model.dual import DualEncoder


def gradients(towers: CachedGradients, given: Any, seed: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient by cached gradients."""
    towers.model.zero_grad()
    torch.manual_seed(seed)
    loss = towers.gradients(given, 0.3).loss
    return float(loss), {name: w.grad for name, w in towers.model.named_parameters() if w.grad is not None}


def direct(towers: CachedGradients, given: Any, seed: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient by autograd alone."""
    towers.model.zero_grad()
    torch.manual_seed(seed)
    loss = batches.in_one_graph(towers, given, 0.3)
    loss.backward()
    return float(loss.detach()), {
        name: torch.zeros_like(w) if w.grad is None else w.grad
        for name, w in towers.model.named_parameters()
        if w.requires_grad
    }


def differences(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, float]:
    """How far each gradient is from the other, relative to its length, or to a hundredth of the longest one's."""
    assert first.keys() == second.keys()
    least = 1e-2 * max(float(gradient.norm()) for gradient in first.values())
    return {
        name: float((gradient - second[name]).norm() / gradient.norm().clamp(min=least))
        for name, gradient in first.items()
    }


@pytest.mark.parametrize(
    ("family", "objective"),
    [("clip", "clip"), ("siglip", "siglip"), ("beit_bert", "make"), ("clip", "make-ontology")],
)
def test_chunks_give_the_gradients_of_one_graph_with_dropout(family: str, objective: str) -> None:
    towers = batches.cached(family, objective, 3, dropout=True)
    given = batches.batch(towers.tokenizer, 7)
    loss, one_graph = direct(towers, given)
    one_graph, after = {name: gradient.clone() for name, gradient in one_graph.items()}, torch.get_rng_state()
    other = direct(towers, given, seed=2)[0]
    assert abs(other - loss) > 1e-4  # dropout does something
    again, chunked = gradients(towers, given)
    assert torch.equal(torch.get_rng_state(), after)  # the next batch has other random numbers
    assert again == pytest.approx(loss, rel=1e-6)
    assert max(differences(one_graph, chunked).values()) < 1e-5
    assert chunked["scale.log"] != 0


def test_forgetting_the_random_numbers_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    towers = batches.cached("clip", "clip", 3, dropout=True)
    given = batches.batch(towers.tokenizer, 7)
    _, one_graph = direct(towers, given)
    one_graph = {name: gradient.clone() for name, gradient in one_graph.items()}
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert max(differences(one_graph, gradients(towers, given)[1]).values()) > 1e-2


@pytest.mark.parametrize("objective", ["clip", "make"])
def test_what_is_in_memory_at_a_time_changes_nothing(objective: str) -> None:
    towers = batches.cached("clip", objective, 64)
    given = batches.batch(towers.tokenizer, 7)
    loss, whole = gradients(towers, given)
    whole = {name: gradient.clone() for name, gradient in whole.items()}
    for at_once in (1, 3):
        again, chunked = gradients(replace(towers, at_once=at_once), given)
        assert again == pytest.approx(loss, rel=1e-6)
        assert max(differences(whole, chunked).values()) < 1e-5


def test_nothing_is_encoded_twice_that_need_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"images": 0, "texts": 0}

    def counted(name: str, function: Any) -> Any:
        def run(model: DualEncoder, inputs: torch.Tensor, *args: Any, **named: Any) -> Any:
            seen[name] += len(inputs)
            return function(model, inputs, *args, **named)

        return run

    monkeypatch.setattr(DualEncoder, "encode_images", counted("images", DualEncoder.encode_images))
    monkeypatch.setattr(DualEncoder, "encode_texts", counted("texts", DualEncoder.encode_texts))
    towers = batches.cached("clip", "clip", 7)
    given = batches.batch(towers.tokenizer, 7, texts=1)
    texts = len(given.texts)

    def encoded(at_once: int) -> dict[str, int]:
        seen.update(images=0, texts=0)
        gradients(replace(towers, at_once=at_once), given)
        return dict(seen)

    assert encoded(7) == {"images": 7, "texts": texts}
    assert encoded(2) == {"images": 13, "texts": texts + 2 * ((texts - 1) // 2)}  # the last chunk of each is kept
    towers.model.text_tower.requires_grad_(False)
    towers.model.text_head.requires_grad_(False)
    assert encoded(2) == {"images": 13, "texts": texts}
    assert towers.model.text_head.projection.weight.grad is None
    towers.model.image_tower.requires_grad_(False)
    towers.model.image_head.requires_grad_(False)
    assert encoded(2) == {"images": 7, "texts": texts}
    assert towers.model.scale.log.grad is not None


def test_texts_of_about_one_length_are_encoded_together() -> None:
    towers = batches.cached("clip", "clip", 32)
    given = replace(batches.batch(towers.tokenizer, 2), texts=[[5] * (3 + 41 * index % 70) for index in range(70)])
    chunks = towers.text_chunks(given)
    assert sorted(torch.cat(chunks).tolist()) == list(range(70))
    assert all(len(chunk) <= 32 for chunk in chunks)
    longest = [len(given.texts[chunk[-1]]) for chunk in chunks]
    assert longest == sorted(longest)
    real = sum(map(len, given.texts))
    assert real < towers.positions(given) < 1.35 * real < 70 * 72
    padded = batches.cached("siglip", "siglip", 32)
    assert padded.positions(given) == 70 * padded.tokenizer.length  # its tower pools at the last position


def test_autocast_is_the_same_in_both_passes() -> None:
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    towers = batches.cached("clip", "clip", 3, autocast=autocast)
    given = batches.batch(towers.tokenizer, 7)
    loss, one_graph = direct(towers, given)
    one_graph = {name: gradient.clone() for name, gradient in one_graph.items()}
    exact = direct(replace(towers, autocast=partial(torch.autocast, "cpu", enabled=False)), given)[0]
    assert loss != pytest.approx(exact, rel=1e-5)  # bf16 is seen
    again, chunked = gradients(towers, given)
    assert again == pytest.approx(loss, rel=1e-6)
    assert max(differences(one_graph, chunked).values()) < 1e-2  # sums of bf16 in another order


def test_lora_and_copied_heads_get_the_same_gradients() -> None:
    lora = LoraConfig(
        r=2,
        lora_dropout=0.1,
        init_lora_weights=False,
        target_modules=r".*(q|v)_proj",
        modules_to_save=["image_head", "scale"],
    )
    peft_model: Any = get_peft_model(batches.model("clip"), lora)
    towers = batches.cached("clip", "clip", 3, model=peft_model.get_base_model())
    given = batches.batch(towers.tokenizer, 7)
    loss, one_graph = direct(towers, given)
    one_graph = {name: gradient.clone() for name, gradient in one_graph.items()}
    again, chunked = gradients(towers, given)
    assert again == pytest.approx(loss, rel=1e-6)
    assert max(differences(one_graph, chunked).values()) < 1e-5
    assert "scale.modules_to_save.default.log" in chunked
    assert sum("lora_B" in name for name in chunked) == 8


def test_a_loss_that_is_no_number_leaves_the_gradients_alone() -> None:
    towers = batches.cached("clip", "clip", 3)
    given = batches.batch(towers.tokenizer, 7)
    with torch.no_grad():
        towers.model.image_head.projection.weight[0, 0] = torch.nan
    loss, left = gradients(towers, given)
    assert loss != loss
    assert not left


def test_an_evaluation_has_the_loss_and_no_graph() -> None:
    towers = batches.cached("clip", "make", 3)
    given = batches.batch(towers.tokenizer, 7)
    whole = towers.evaluated(given, 0.3)
    assert float(whole.loss) == pytest.approx(gradients(towers, given)[0], rel=1e-6)
    assert not whole.features.images.requires_grad
    assert whole.tally["same_group ignore"] > 0
