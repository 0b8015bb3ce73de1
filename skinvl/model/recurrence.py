"""Layers that carry a state along the row, over spans: a branch goes on from the state at the end of its prefix.

A gated delta rule (Yang et al. 2025, arXiv:2412.06464) reads a row from left to right. Here it reads each span of a
packed row by itself: first those without a prefix, from an empty state; then the branches, each from the state, and the
last positions of the convolution, that its prefix ended with. So a prefix is read once, its state's gradient is the sum
of those of its branches, and no conversation of a row remembers another. Spans with as many chunks are read together:
what they lack to the end of a chunk is all that is computed for nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import softplus

from skinvl.model.attention import Span, Spans, Step

# What has kernels for a GPU: the package that transformers imports, and the name that it is installed by.
KERNELS = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"}
CHUNK = 64  # positions that transformers' rule, and that of flash-linear-attention, reads at once


@dataclass(frozen=True, slots=True)
class Together:
    """S spans of as many chunks, the longest of L positions; places are of the flattened rows, P stands for none.

    Attributes:
        places: int64[S, W + L], each span's positions behind the W before it, as its conversation has them.
        inside: int64[N] in [0, S · L), where the positions of the spans themselves lie among S · L; N of them.
        own: int64[N], their places.
        start: int64[S], the numbers of the states that they begin with; None where these are empty.
        numbers: int64[S], the numbers of the spans themselves, by which their last states are found again.
    """

    places: torch.Tensor
    inside: torch.Tensor
    own: torch.Tensor
    start: torch.Tensor | None
    numbers: torch.Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """How the spans of a batch are read: those without a prefix, then those with one, which need the states before."""

    steps: tuple[Together, ...]
    ends: torch.Tensor  # int64[B, W + 1], the last places of each conversation
    last: torch.Tensor  # int64[B], the number of its span


def use(model: nn.Module, kind: type[nn.Module]) -> None:
    """Has the layers of a kind, a gated delta net of transformers, read the `spans` that the model is given."""
    for module in model.modules():
        if isinstance(module, kind):
            module.forward = MethodType(forward, module)


def sentence(model: nn.Module, device: torch.device) -> str:
    """What a GPU lacks to run the layers of a model that carry a state by kernels; empty where it lacks nothing."""
    carries = any(getattr(module.forward, "__func__", None) is forward for module in model.modules())
    missing = [name for module, name in KERNELS.items() if importlib.util.find_spec(module) is None]
    if device.type != "cuda" or not carries or not missing:
        return ""
    return (
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: the layers that carry a state "
        "run in plain PyTorch, with the same numbers and slower; pip install 'skinvl[linear]'"
    )


def forward(
    self: Any,
    hidden_states: torch.Tensor,
    cache_params: Any = None,
    attention_mask: torch.Tensor | None = None,
    *,
    spans: Spans | Step | None = None,
    **settings: Any,
) -> torch.Tensor:
    """The layer's output float[R, T, W] for hidden states float[R, T, W]; that of padding means nothing.

    A cache then holds the state of every conversation, in the order of the spans that they end with. Without spans, or
    for one more token of each row, it is the module's own forward.

    Raises:
        ValueError: spans of other rows.
    """
    if spans is None or isinstance(spans, Step):
        output: torch.Tensor = type(self).forward(self, hidden_states, cache_params, attention_mask, **settings)
        return output
    if spans.shape != tuple(hidden_states.shape[:2]):
        raise ValueError(
            f"a state along spans: {tuple(hidden_states.shape[:2])} positions with spans of {spans.shape}; a packed "
            "batch must reach every layer with its own spans"
        )
    library = sys.modules[type(self).__module__]  # its rule and convolution, or the kernels that stand for them
    before = self.conv_kernel_size - 1
    reading = read(spans, before, hidden_states.device)

    # What is linear, of all positions at once; one more of zeros stands where there is none.
    mixed = _and_none(self.in_proj_qkv(hidden_states))
    gate = self.in_proj_z(hidden_states).reshape(-1, self.head_v_dim)
    beta = _and_none(self.in_proj_b(hidden_states).sigmoid())
    decay = -self.A_log.float().exp() * softplus(self.in_proj_a(hidden_states).float() + self.dt_bias)
    decay = _and_none(decay)

    # Convolution and rule, span by span: a position of zeros neither decays a state nor adds to it.
    states: torch.Tensor | None = None
    outputs: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    numbers: list[torch.Tensor] = []
    for some in reading.steps:
        if some.start is not None and states is None:
            states = torch.cat(ends)[torch.argsort(torch.cat(numbers))]
        convolved = library.causal_conv1d_fn(
            _at(mixed, some.places).transpose(1, 2),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation=self.activation,
        )
        convolved = convolved[:, :, before:].transpose(1, 2)
        sizes = (self.key_dim, self.key_dim, self.value_dim)
        widths = (self.head_k_dim, self.head_k_dim, self.head_v_dim)
        query, key, value = (
            part.reshape(*part.shape[:2], -1, width)
            for part, width in zip(convolved.split(sizes, dim=-1), widths, strict=True)
        )
        places = some.places[:, before:]
        output, end = library.torch_chunk_gated_delta_rule(
            query,
            key,
            value,
            g=_at(decay, places),
            beta=_at(beta, places),
            initial_state=None if some.start is None or states is None else states.index_select(0, some.start),
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        outputs.append(output.flatten(0, 1).index_select(0, some.inside))
        ends.append(end)
        numbers.append(some.numbers)

    if cache_params is not None:
        every = torch.cat(ends)[torch.argsort(torch.cat(numbers))]
        size = self.conv_kernel_size
        cache_params.update_conv_state(_at(mixed, reading.ends).transpose(1, 2), self.layer_idx, conv_kernel_size=size)
        cache_params.update_recurrent_state(every[reading.last], self.layer_idx)

    # Back to the rows.
    core = outputs[0].new_zeros(len(mixed) - 1, *outputs[0].shape[1:])
    core = core.index_copy(0, torch.cat([some.own for some in reading.steps]), torch.cat(outputs))
    normed = self.norm(core.reshape(-1, self.head_v_dim), gate)
    projected: torch.Tensor = self.out_proj(normed.reshape(*hidden_states.shape[:2], -1))
    return projected


def read(spans: Spans, before: int, device: torch.device) -> Reading:
    """How layers whose convolution looks at so many positions before its own read the spans."""
    key = ("reading", before, device)
    if key not in spans.kept:
        spans.kept[key] = _reading(spans, before, device)
    reading: Reading = spans.kept[key]
    return reading


def conversations(spans: Sequence[Span]) -> list[Span]:
    """The spans that a conversation ends with: all but prefixes, in their order."""
    prefixes = {(span.row, *span.prefix) for span in spans if span.prefix[1] > span.prefix[0]}
    return [span for span in spans if (span.row, span.start, span.end) not in prefixes]


def _reading(spans: Spans, before: int, device: torch.device) -> Reading:
    width = spans.shape[1]
    nowhere = spans.shape[0] * width

    def places(span: Span) -> list[int]:
        """The places of a span's conversation up to its end, those of the prefix first."""
        own = [*range(*span.prefix), *range(span.start, span.end)]
        return [span.row * width + position for position in own]

    # Spans with as many chunks together, those without a prefix first.
    number_of = {(span.row, span.start, span.end): number for number, span in enumerate(spans.spans)}
    begun = [span.prefix[1] > span.prefix[0] for span in spans.spans]
    alike: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for number, span in enumerate(spans.spans):
        alike[begun[number], -(-(span.end - span.start) // CHUNK)].append(number)
    first = [number for (later, _), some in sorted(alike.items()) if not later for number in some]
    order = {number: place for place, number in enumerate(sorted(first))}
    steps = []
    for (later, _), some in sorted(alike.items()):
        lengths = [spans.spans[number].end - spans.spans[number].start for number in some]
        longest = max(lengths)
        rows: list[list[int]] = []
        inside: list[int] = []
        own: list[int] = []
        for place, (number, length) in enumerate(zip(some, lengths, strict=True)):
            every = [nowhere] * before + places(spans.spans[number])
            rows.append(every[-(before + length) :] + [nowhere] * (longest - length))
            inside += range(place * longest, place * longest + length)
            own += every[-length:]
        prefixes = [number_of[spans.spans[number].row, *spans.spans[number].prefix] for number in some if later]
        steps.append(
            Together(
                places=torch.tensor(rows, device=device),
                inside=torch.tensor(inside, device=device),
                own=torch.tensor(own, device=device),
                start=torch.tensor([order[number] for number in prefixes], device=device) if later else None,
                numbers=torch.tensor(some, device=device),
            )
        )

    # Where each conversation ends, for what goes on from it.
    whole = conversations(spans.spans)
    ends = [([nowhere] * (before + 1) + places(span))[-(before + 1) :] for span in whole]
    last = [number_of[span.row, span.start, span.end] for span in whole]
    return Reading(tuple(steps), torch.tensor(ends, device=device), torch.tensor(last, device=device))


def _and_none(of_rows: torch.Tensor) -> torch.Tensor:
    """float[P + 1, …] of float[R, T, …], all places of the rows, and zeros behind them."""
    flat = of_rows.flatten(0, 1)
    return torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])


def _at(flat: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """float[S, L, …], the rows of flat float[P + 1, …] at places int64[S, L]."""
    # Indexing by a tensor has a backward that is many times slower.
    return flat.index_select(0, places.flatten()).view(*places.shape, *flat.shape[1:])
