"""Attention over spans: a prefix that several conversations share, then each of them, which sees the prefix and itself.

A row's queries are cut into spans, and every span attends to [its prefix; itself], causally and aligned to the lower
right: the last query sees every key. No mask of the row's size is made, and nothing is computed for padding. Where a
layer has a sliding window, that counts in these keys, which are the positions of the conversation on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_flash_attention_utils import _flash_attention_forward, flash_attn_supports_top_left_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass(frozen=True, slots=True)
class Span:
    """Positions start to end of a row, and those of the prefix before them in the same row; an empty one has none.

    `whole` are stretches of it whose positions see one another, later ones too: images, in some architectures.
    """

    row: int
    start: int
    end: int
    prefix: tuple[int, int] = (0, 0)
    whole: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Spans:
    """The spans of a batch of rows int64[R, T]; a position in none is padding, whose output is zero."""

    spans: tuple[Span, ...]
    shape: tuple[int, int]
    kept: dict[Any, Any] = field(default_factory=dict)  # what every layer needs again

    def mask(self, span: Span, window: int | None, device: torch.device) -> torch.Tensor | None:
        """bool[Q, K]: which keys each query of a span sees; None where a causal mask says it all."""
        length, before = span.end - span.start, span.prefix[1] - span.prefix[0]
        short = window is None or before + length <= window
        if not before and not span.whole and short:
            return None
        whole = tuple((start - span.start, end - span.start) for start, end in span.whole)
        key = (length, before, None if short else window, whole, device)
        if key not in self.kept:
            ones = torch.ones(length, before + length, dtype=torch.bool, device=device)
            seen = ones.tril(before)
            for start, end in whole:
                seen[start:end, before + start : before + end] = True
            self.kept[key] = seen if window is None else seen & ones.triu(before - window + 1)
        mask: torch.Tensor = self.kept[key]
        return mask

    def looking_back(self) -> Spans:
        """The same where every position sees earlier ones alone."""
        if "looking back" not in self.kept:
            self.kept["looking back"] = Spans(tuple(replace(span, whole=()) for span in self.spans), self.shape)
        spans: Spans = self.kept["looking back"]
        return spans

    def varlen(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Queries int64[Q] and keys int64[K], places in the flattened rows, and what flash-attention's kernels take.

        Raises:
            ValueError: positions that see later ones, which these kernels cannot do.
        """
        if any(span.whole for span in self.spans):
            raise ValueError(
                "flash-attention is causal, and positions of these rows see later ones; use attention=sdpa"
            )
        if device not in self.kept:
            width = self.shape[1]
            queries = [torch.arange(span.start, span.end) + span.row * width for span in self.spans]
            keys = [
                torch.cat([torch.arange(*span.prefix) + span.row * width, own])
                for span, own in zip(self.spans, queries, strict=True)
            ]
            # What the kernels call cumulative lengths: where each span's queries, and its keys, end.
            settings: dict[str, Any] = {}
            for name, parts in (("q", queries), ("k", keys)):
                ends = [0, *accumulate(len(part) for part in parts)]
                settings[f"cu_seq_lens_{name}"] = torch.tensor(ends, dtype=torch.int32, device=device)
                settings[f"max_length_{name}"] = max(len(part) for part in parts)
            self.kept[device] = torch.cat(queries).to(device), torch.cat(keys).to(device), settings
        arguments: tuple[torch.Tensor, torch.Tensor, dict[str, Any]] = self.kept[device]
        return arguments


@dataclass(slots=True)
class Step:
    """One new token for each of B rows: `keys` bool[B, K] tells which of the first K cached positions are its own.

    Those are its last ones, so that a window counts back from the end. What was cached after these, one position a
    step, is every row's own.
    """

    keys: torch.Tensor

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """Attention of [B, H, 1, D] queries to [B, G, K + steps, D] keys and values, [B, 1, H, D]."""
        own = torch.nn.functional.pad(self.keys, (0, key.shape[2] - self.keys.shape[1]), value=True)
        if window is not None:
            own, key, value = own[:, -window:], key[:, :, -window:], value[:, :, -window:]
        # Heads that share keys are queries of one another's here: nothing is repeated for them.
        shared = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
        output = scaled_dot_product_attention(shared, key, value, attn_mask=own[:, None, None], scale=scaling)
        return output.reshape(query.shape).transpose(1, 2)


class FollowUp(Step):
    """Several new tokens of one row: each sees all that was cached before them, and of them those up to itself."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """Attention of [1, H, Q, D] queries to [1, G, K, D] keys and values, [1, Q, H, D]."""
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        if window is not None:
            mask = mask.triu(keys - queries - window + 1)
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2)


def use(model: PreTrainedModel, kernel: str) -> None:
    """Has the model's language layers attend, from here on, over the `spans` that its forward is given.

    The vision tower keeps the kernel that the model was loaded with.

    Raises:
        ValueError: a flash-attention that aligns causal masks to the upper left; a branch would not see its prefix.
    """
    if kernel == "flash_attention_2" and flash_attn_supports_top_left_mask():
        raise ValueError("flash-attn older than 2.1 aligns causal masks to the upper left; install 2.1 or newer")
    name = f"spans {kernel}"
    AttentionInterface.register(name, partial(attend, kernel=kernel))
    model.config.get_text_config()._attn_implementation = name


def kernel_of(model: PreTrainedModel) -> str:
    """The kernel that `use` was given."""
    return str(model.config.get_text_config()._attn_implementation).removeprefix("spans ")


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kernel: str,
    spans: Spans | Step | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of [R, H, T, D] queries to [R, G, T, D] keys and values, [R, T, H, D]: transformers' own signature.

    Cross-attention, which is not causal, goes to torch's own attention with the mask that its model made.

    Raises:
        ValueError: no spans, or those of other rows: the branches of a row would see one another.
    """
    if not getattr(module, "is_causal", False):
        across: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
        return across
    rows, length = query.shape[0], query.shape[2]
    if isinstance(spans, Step):
        return spans.attend(query, key, value, scaling, sliding_window), None
    if spans is None or spans.shape != (rows, length):
        raise ValueError(
            f"attention over spans: {rows} x {length} queries with spans of {spans and spans.shape}; "
            "a packed batch must reach every layer with its own spans"
        )
    if not getattr(module, "looks_ahead", True):  # of a family in which some layers do
        spans = spans.looking_back()
    if kernel in ("sdpa", "eager"):
        attention = partial(scaled_dot_product_attention, scale=scaling, dropout_p=dropout)
        with sdpa_kernel(SDPBackend.MATH) if kernel == "eager" else nullcontext():
            return _in_precision(query, key, value, spans, sliding_window, attention), None

    # Flash-attention: the spans one after another in a single row, each with its prefix's keys before its own.
    queries, keys, lengths = spans.varlen(query.device)
    flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]  # [R * T, heads, D]
    q, k, v = (tensor[index][None] for tensor, index in zip(flat, (queries, keys, keys), strict=True))
    # transformers' own attention function would ask for the kernel by the name in the config, which is ours.
    output = _flash_attention_forward(
        q,
        k,
        v,
        attention_mask=None,
        query_length=len(queries),
        is_causal=True,
        dropout=dropout,
        softmax_scale=scaling,
        sliding_window=sliding_window,
        target_dtype=get_target_dtype(query, module),
        attn_implementation=kernel,
        **lengths,
    )
    whole = output.new_zeros(rows * length, *output.shape[2:]).index_copy(0, queries, output[0])
    return whole.unflatten(0, (rows, length)), None


def _in_precision(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    window: int | None,
    attention: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """As `over_spans`, in the dtype of the queries; on a CPU computed in float32."""
    dtype = query.dtype
    # The backward of torch's attention in bf16 takes twice as long on a CPU as in fp32, casts included.
    with torch.autocast(query.device.type, enabled=False):
        if query.device.type == "cpu":
            query, key, value = query.float(), key.float(), value.float()
        return over_spans(query, key, value, spans, window, attention).to(dtype)


def over_spans(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    window: int | None,
    attention: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Attention of [R, H, T, D] queries to [R, G, T, D] keys and values, span by span, [R, T, H, D].

    Args:
        attention: of one span to its prefix and itself; called as torch's `scaled_dot_product_attention` is.
    """
    repeats = query.shape[1] // key.shape[1]
    queries, keys, values = (_cut(part, spans) for part in (query, repeat_kv(key, repeats), repeat_kv(value, repeats)))
    outputs: list[list[torch.Tensor]] = [[] for _ in range(spans.shape[0])]  # of the spans of each row
    for span in spans.spans:
        own, before = (span.row, span.start, span.end), (span.row, *span.prefix)
        q, k, v = queries[own], keys[own], values[own]
        mask = spans.mask(span, window, query.device)
        if span.prefix[1] > span.prefix[0]:
            k, v = torch.cat([keys[before], k], 2), torch.cat([values[before], v], 2)
        outputs[span.row].append(attention(q, k, v, attn_mask=mask, is_causal=mask is None))

    # What stands in a row before and after its spans is padding.
    begin = {span.row: span.start for span in reversed(spans.spans)}
    rows = [torch.cat(parts, 2) for parts in outputs]
    after = [spans.shape[1] - begin[number] - row.shape[2] for number, row in enumerate(rows)]
    padded = [torch.nn.functional.pad(row, (0, 0, begin[number], after[number])) for number, row in enumerate(rows)]
    return torch.cat(padded).transpose(1, 2)


def _cut(states: torch.Tensor, spans: Spans) -> dict[tuple[int, int, int], torch.Tensor]:
    """[1, H, T', D] of [R, H, T, D] by row, start and end of each span; those of a row follow one another.

    Cut at once: of a slice by itself the backward is a whole tensor of zeros.
    """
    pieces = {}
    for number, row in enumerate(torch.split(states, 1)):
        own = [span for span in spans.spans if span.row == number]
        lengths = [own[0].start, *(span.end - span.start for span in own), row.shape[2] - own[-1].end]
        for span, piece in zip(own, torch.split(row, lengths, 2)[1:], strict=False):
            pieces[number, span.start, span.end] = piece
    return pieces
