"""Attention over spans equals attention with a mask, whichever kernel computes it."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils

from helpers import runs
from skinvl.data import mixture
from skinvl.model import attention
from skinvl.model.attention import FollowUp, Span, Spans, Step, attend
from skinvl.train.trainer import token_losses

SPANS = Spans(
    (
        Span(0, 0, 5),
        Span(0, 5, 9, (0, 5)),
        Span(0, 9, 12, (0, 5)),
        Span(0, 12, 20),
        Span(1, 3, 9),  # behind padding, and before it
        Span(1, 9, 10, (3, 9)),
    ),
    (2, 20),
)
CAUSAL: Any = SimpleNamespace(is_causal=True, config=SimpleNamespace(), modules=lambda: [torch.nn.Linear(1, 1)])


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries of 4 heads, keys and values of 2."""
    torch.manual_seed(0)
    return [torch.randn(2, heads, 20, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int = 99, spans: Spans = SPANS
) -> torch.Tensor:
    """The same through one mask of bool[R, 1, T, T], place by place; padding gives zeros."""
    seen = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    for one in spans.spans:
        places = [*range(*one.prefix), *range(one.start, one.end)]  # in the order of the conversation on its own
        for number, place in enumerate(places):
            for other, earlier in enumerate(places):
                together = any(start <= place < end and start <= earlier < end for start, end in one.whole)
                if place >= one.start and other > number - window and (other <= number or together):
                    seen[one.row, 0, place, earlier] = True
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    empty = ~seen.any(-1, keepdim=True)
    output = scaled_dot_product_attention(query, key, value, attn_mask=seen | empty, scale=0.3)
    return output.masked_fill(empty, 0).transpose(1, 2)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Those of a weighted sum of the output."""
    torch.manual_seed(1)
    return torch.autograd.grad((output * torch.randn(output.shape)).sum(), inputs)


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What flash-attention computes of [tokens, heads, D] and cumulative lengths: causal, aligned lower right."""
    assert causal
    parts = []
    for (q0, q1), (k0, k1) in zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True):
        assert q1 - q0 <= max_seqlen_q
        assert k1 - k0 <= max_seqlen_k
        query, key, value = (one.transpose(0, 1) for one in (q[q0:q1], k[k0:k1], v[k0:k1]))
        groups = len(query) // len(key)
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        seen = torch.ones(q1 - q0, k1 - k0).tril(k1 - k0 - q1 + q0).bool()
        if window_size[0] >= 0:
            seen &= torch.ones(q1 - q0, k1 - k0).triu(k1 - k0 - q1 + q0 - window_size[0]).bool()
        parts.append(scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=softmax_scale))
    return torch.cat(parts, 1).transpose(0, 1)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers finds a flash_attn package whose kernel is `varlen`; everything around it is transformers' own."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    vars(package).update(flash_attn_func=None, flash_attn_varlen_func=varlen, flash_attn_with_kvcache=None)
    vars(padding).update(pad_input=None, unpad_input=None)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(modeling_flash_attention_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.usefixtures("flash")
def test_spans_are_what_a_mask_says(kernel: str) -> None:
    inputs = tensors()
    expected = dense(*inputs)
    found, _ = attend(CAUSAL, *inputs, None, kernel=kernel, spans=SPANS, scaling=0.3)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    upper = Spans(tuple(Span(one.row, one.start, one.end) for one in SPANS.spans), SPANS.shape)
    blind, _ = attend(CAUSAL, *inputs, None, kernel=kernel, spans=upper, scaling=0.3)
    assert not torch.allclose(blind, expected, atol=1e-2)


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("window", [1, 3, 5, 8])
@pytest.mark.usefixtures("flash")
def test_a_window_counts_in_the_conversation_and_not_in_the_row(kernel: str, window: int) -> None:
    inputs = tensors()
    expected = dense(*inputs, window)
    settings = {"kernel": kernel, "spans": Spans(SPANS.spans, SPANS.shape), "scaling": 0.3}
    wide, _ = attend(CAUSAL, *inputs, None, **settings)
    found, _ = attend(CAUSAL, *inputs, None, sliding_window=window, **settings)  # with what the wide one kept
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    other, _ = attend(CAUSAL, *inputs, None, sliding_window=window + 1, **settings)
    assert min(float((found - one).abs().max()) for one in (wide, other)) > 0.05 or window == 8


@pytest.mark.parametrize("window", [None, 2, 7])
def test_positions_of_an_image_see_one_another(window: int | None) -> None:
    shown = ((1, 4),), ((6, 8),), (), ((13, 15), (16, 19)), ((4, 8),), ()
    spans = Spans(tuple(replace(one, whole=some) for one, some in zip(SPANS.spans, shown, strict=True)), SPANS.shape)
    inputs = tensors()
    for kernel in ("sdpa", "eager"):
        found, _ = attend(CAUSAL, *inputs, None, kernel=kernel, spans=spans, scaling=0.3, sliding_window=window)
        torch.testing.assert_close(found, dense(*inputs, window or 99, spans))
        blind, _ = attend(CAUSAL, *inputs, None, kernel=kernel, spans=SPANS, scaling=0.3, sliding_window=window)
        assert not torch.allclose(found, blind, atol=1e-2)


@pytest.mark.usefixtures("flash")
def test_a_flash_kernel_refuses_positions_that_see_later_ones() -> None:
    spans = Spans((replace(SPANS.spans[0], whole=((1, 4),)), *SPANS.spans[1:]), SPANS.shape)
    with pytest.raises(ValueError, match=r"flash-attention is causal.*use attention=sdpa"):
        attend(CAUSAL, *tensors(), None, kernel="flash_attention_2", spans=spans, scaling=0.3)


@pytest.mark.parametrize("window", [None, 1, 4, 6, 9])
def test_a_step_is_the_last_query_of_its_conversation(window: int | None) -> None:
    """Two rows of 5 and 8 cached positions, 2 of which were steps."""
    query, key, value = (one[:, :, :10].detach() for one in tensors())
    lengths = torch.tensor([5, 8])
    step = Step(torch.arange(8) >= 8 - lengths[:, None])
    found, _ = attend(
        CAUSAL, query[:, :, -1:], key, value, None, kernel="sdpa", spans=step, scaling=0.3, sliding_window=window
    )
    for row, length in enumerate(lengths.tolist()):
        own = slice(10 - min(length + 2, window or 99), 10)
        k, v = (one[row, :, own].repeat_interleave(2, 0) for one in (key, value))
        expected = scaled_dot_product_attention(query[row, :, -1:], k, v, scale=0.3)
        torch.testing.assert_close(found[row], expected.transpose(0, 1))


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


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(
    "family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", pytest.param("qwen3_5", marks=pytest.mark.slow)]
)
def test_a_model_on_a_flash_kernel_trains_as_on_torch(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family)
    model, batch = runs.attached(one), runs.batch(one, mixture.load(one.data).train[:8])
    found = []
    for kernel in ("sdpa", "flash_attention_2"):
        attention.use(model.get_base_model(), kernel)
        assert attention.kernel_of(model.get_base_model()) == kernel
        model.zero_grad()
        batch.inputs["spans"] = Spans(batch.spans.spans, batch.spans.shape)
        losses, _ = token_losses(model, batch)
        losses.sum().backward()
        found.append([losses.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_a_flash_kernel_that_aligns_to_the_upper_left_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "flash_attn_supports_top_left_mask", lambda: True)
    with pytest.raises(ValueError, match=r"older than 2\.1 aligns causal masks to the upper left"):
        attention.use(runs.attached(runs.make(tmp_path, "qwen2_vl")).get_base_model(), "flash_attention_2")


@pytest.mark.parametrize("window", [None, 5])
def test_new_tokens_see_what_they_would_see_in_one_row(window: int | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    mask = mask if window is None else mask.triu(1 - window)
    whole = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    found = FollowUp(torch.ones(1, 6, dtype=torch.bool)).attend(query[:, :, 6:], key, value, 0.3, window)
    assert torch.allclose(found, whole[:, :, 6:].transpose(1, 2), atol=1e-6)
