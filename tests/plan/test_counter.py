"""What is counted of torch's operations: bytes while they are alive, and products."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn import functional

from skinvl.plan.counter import Casts, Counted


def test_bytes_count_from_birth_to_death_and_a_storage_once() -> None:
    count = Counted()
    weight = torch.empty(100, device="meta")
    count.resident(weight)
    with count:
        made = weight * 2
        assert count.alive == 400
        view = made.view(10, 10)[2:]
        assert count.alive == 400
        other = weight.view(10, 10).bfloat16()
        assert count.alive == 600
        del made
        assert count.alive == 600  # the view holds it
        del view
        gc.collect()
        assert count.alive == 200
        count.phase = 1
        assert torch.cat([other, other]).shape == (20, 10)
    assert count.peaks == [600, 600, 0]
    del other
    assert count.alive == 0


def test_products_are_counted_in_their_phase() -> None:
    count = Counted()
    with count:
        a = torch.empty(3, 4, device="meta")
        a @ torch.empty(4, 5, device="meta")
        count.phase = 1
        a.t() @ a
    assert count.flops == [2 * 3 * 4 * 5, 2 * 4 * 3 * 4, 0]


def test_whole_numbers_stay_real() -> None:
    with Counted():
        places = torch.arange(3, device="meta")
        assert places.tolist() == [0, 1, 2]
        table = torch.empty(5, 7, device="meta")
        assert table[places].is_meta
        assert table[torch.tensor([True, False, True, True, False])].shape == (3, 7)
        assert (places.to("meta") + 1).tolist() == [1, 2, 3]
        assert (table[0] * torch.ones(7)).is_meta


def test_autocast_is_that_of_a_gpu() -> None:
    count = Counted()
    weight = torch.nn.Parameter(torch.empty(6, 4, device="meta"))
    given = torch.empty(2, 4, device="meta")
    casts = Casts(True, True, count)
    with casts:
        assert functional.linear(given, weight).dtype == torch.bfloat16
        assert (given @ weight.t()).dtype == torch.bfloat16
        kept = casts.cache[id(weight)]
        functional.linear(given, weight)
        assert casts.cache[id(weight)] is kept
        assert functional.layer_norm(given.bfloat16(), (4,)).dtype == torch.float32
    casts.end_forward()
    assert not casts.cache
    with Casts(False, True, count):
        assert functional.linear(given, weight).dtype == torch.float32
        assert functional.layer_norm(given.bfloat16(), (4,)).dtype == torch.bfloat16


@pytest.mark.parametrize(("cuda", "kept"), [(True, 1), (False, 4)])
def test_dropout_keeps_a_byte_a_number_on_a_gpu(cuda: bool, kept: int) -> None:
    count = Counted()
    given = torch.empty(1000, device="meta", requires_grad=True)
    count.resident(given)
    with count, Casts(False, cuda, count):
        out = functional.dropout(given, 0.5)
        assert functional.dropout(given, 0.5, training=False) is given
    gc.collect()
    assert count.alive == 4000 + kept * 1000
    assert out.requires_grad


@pytest.mark.parametrize("causal", [True, False])
def test_attention_keeps_no_square(causal: bool) -> None:
    count = Counted()
    casts = Casts(False, True, count)
    query, key = (
        torch.empty(1, 2, length, 8, device="meta", requires_grad=True) for length in (6, 6 if causal else 10)
    )
    count.resident(query)
    count.resident(key)
    count.phase = 1
    with count:
        found = casts.attention(query, key, key, causal, "pairs")
        pairs = 2 * (21 if causal else 60)
        assert count.alive == found.nbytes + 2 * 6 * 4
        assert count.flops[1] == casts.operations["pairs"] == 4 * pairs * 8
        torch.autograd.backward(found.sum())
    assert count.flops[1] == casts.operations["pairs"] == 14 * pairs * 8
    assert query.grad is not None
    assert query.grad.shape == query.shape
