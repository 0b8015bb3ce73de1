"""Attention over spans equals attention with a mask, whichever kernel computes it."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from skinvl.attention import Span, Spans, attend

SPANS = Spans(
    (
        Span(0, 0, 5),
        Span(0, 5, 9, (0, 5)),
        Span(0, 9, 12, (0, 5)),
        Span(0, 12, 20),
        Span(1, 0, 6),
        Span(1, 6, 7, (0, 6)),
    ),
    (2, 20),
)
CAUSAL: Any = SimpleNamespace(is_causal=True)


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries of 4 heads, keys and values of 2."""
    torch.manual_seed(0)
    return [torch.randn(2, heads, 20, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The same through one mask of bool[R, 1, T, T]; padding gives zeros."""
    seen = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    for one in SPANS.spans:
        seen[one.row, 0, one.start : one.end, slice(*one.prefix)] = True
        length = one.end - one.start
        seen[one.row, 0, one.start : one.end, one.start : one.end] = torch.ones(length, length).tril().bool()
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    empty = ~seen.any(-1, keepdim=True)
    output = scaled_dot_product_attention(query, key, value, attn_mask=seen | empty, scale=0.3)
    return output.masked_fill(empty, 0).transpose(1, 2)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Those of a weighted sum of the output."""
    torch.manual_seed(1)
    return torch.autograd.grad((output * torch.randn(output.shape)).sum(), inputs)


def varlen(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: None,
    *,
    scaling: float,
    is_causal: bool,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What flash-attention's kernels compute from cumulative lengths: causal, aligned to the lower right."""
    assert is_causal
    parts = []
    starts = zip(pairwise(cu_seq_lens_q.tolist()), pairwise(cu_seq_lens_k.tolist()), strict=True)
    for (q0, q1), (k0, k1) in starts:
        assert q1 - q0 <= max_length_q
        assert k1 - k0 <= max_length_k
        q, k, v = query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1]
        seen = torch.ones(q1 - q0, k1 - k0).tril(k1 - k0 - q1 + q0).bool()
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling))
    return torch.cat(parts, 2).transpose(1, 2), None


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flash_attention_2"])
def test_spans_are_what_a_mask_says(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", varlen)
    inputs = tensors()
    expected = dense(*inputs)
    found, _ = attend(CAUSAL, *inputs, None, kernel=kernel, spans=SPANS, scaling=0.3)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    upper = Spans(tuple(Span(one.row, one.start, one.end) for one in SPANS.spans), SPANS.shape)
    blind, _ = attend(CAUSAL, *inputs, None, kernel=kernel, spans=upper, scaling=0.3)
    assert not torch.allclose(blind, expected, atol=1e-2)


def test_bf16_stays_bf16_and_is_computed_in_fp32() -> None:
    inputs = tensors(torch.bfloat16)
    found, _ = attend(CAUSAL, *inputs, None, kernel="sdpa", spans=SPANS, scaling=0.3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, dense(*(one.float() for one in inputs)).bfloat16())


@pytest.mark.parametrize("spans", [None, Spans(SPANS.spans, (2, 21))])
def test_queries_without_their_spans_are_refused(spans: Spans | None) -> None:
    with pytest.raises(ValueError, match=r"2 x 20 queries with spans of .*must reach every layer"):
        attend(CAUSAL, *tensors(), None, kernel="sdpa", spans=spans)


def test_cross_attention_keeps_its_mask() -> None:
    query, key, value = tensors()
    module: Any = SimpleNamespace(num_key_value_groups=2)
    mask = torch.zeros(2, 1, 20, 20).masked_fill(torch.arange(20) > 10, float("-inf"))
    found, _ = attend(module, query, key, value, mask, kernel="sdpa", spans=SPANS, scaling=0.3)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(found, expected)
