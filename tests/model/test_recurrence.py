"""A state that branches go on from: outputs, gradients and last states are those of each conversation alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from helpers import tiny
from skinvl.model import recurrence
from skinvl.model.attention import Span, Spans

# Prefixes shorter than the convolution, of a whole chunk, and longer; branches of one position to three chunks.
SPANS = Spans(
    (
        Span(0, 0, 70),
        Span(0, 70, 75, (0, 70)),
        Span(0, 75, 215, (0, 70)),
        Span(0, 215, 230),
        Span(0, 230, 232),
        Span(0, 232, 233, (230, 232)),
        Span(0, 233, 300, (230, 232)),
        Span(1, 0, 64),
        Span(1, 64, 128, (0, 64)),
        Span(1, 128, 131, (0, 64)),
    ),
    (2, 300),
)


@cache
def layer() -> Any:
    """A layer of the tiny base that reads spans."""
    model = tiny.model("qwen3_5", prepared=False)
    (first, *_) = (one.linear_attn for one in model.model.language_model.layers if one.block_type == "linear_attention")
    recurrence.use(model, type(first))
    return first


def hidden(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 300, 128, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def joined(of_rows: torch.Tensor, span: Span) -> torch.Tensor:
    """A conversation's positions as one row of their own."""
    return torch.cat([of_rows[span.row, slice(*span.prefix)], of_rows[span.row, span.start : span.end]])[None]


def found(given: torch.Tensor, spans: Spans = SPANS) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The outputs of the spans, and the gradients of a loss to which each adds otherwise."""
    layer().zero_grad()
    spans.kept.clear()
    output = layer()(given, spans=spans)
    _loss([output[span.row, span.start : span.end] for span in SPANS.spans]).backward()
    return output, gradients(given)


def gradients(given: torch.Tensor) -> dict[str, torch.Tensor]:
    assert given.grad is not None
    return {"given": given.grad} | {name: one.grad for name, one in layer().named_parameters() if one.grad is not None}


def _loss(parts: list[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros(())
    for number, part in enumerate(parts):
        weights = torch.linspace(0.5, 1.5, part.numel()).view_as(part) * (-1) ** number
        total = total + (part * weights).sum()
    return total


@cache
def expected() -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The same of each conversation alone, by the module's own forward."""
    layer().zero_grad()
    given = hidden()
    parts = [layer()(joined(given, span))[0, span.prefix[1] - span.prefix[0] :] for span in SPANS.spans]
    _loss(parts).backward()
    return [part.detach() for part in parts], gradients(given)


def distance(ours: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a gradient from those of conversations alone."""
    theirs = expected()[1]
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def test_outputs_and_gradients_are_those_of_each_conversation_alone() -> None:
    parts, _ = expected()
    output, ours = found(hidden())
    for span, part in zip(SPANS.spans, parts, strict=True):
        assert torch.allclose(output[span.row, span.start : span.end], part, atol=1e-5), span
    assert distance(ours) < 1e-5


def no_state(some: recurrence.Together) -> recurrence.Together:
    """Has branches begin with nothing."""
    return recurrence.Together(some.places, some.inside, some.own, None, some.numbers)


def no_positions(some: recurrence.Together) -> recurrence.Together:
    """Has the convolution see nothing before a branch."""
    places = some.places.clone()
    places[:, :3] = 600
    return recurrence.Together(places, some.inside, some.own, some.start, some.numbers)


def other_state(some: recurrence.Together) -> recurrence.Together:
    """Has branches begin with another prefix's state."""
    start = None if some.start is None else (some.start + 1) % 4
    return recurrence.Together(some.places, some.inside, some.own, start, some.numbers)


@pytest.mark.parametrize("broken", [no_state, no_positions, other_state])
def test_a_branch_that_does_not_go_on_from_its_prefix_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[recurrence.Together], recurrence.Together]
) -> None:
    whole = recurrence.read

    def read(*given: Any) -> recurrence.Reading:
        reading = whole(*given)
        steps = tuple(one if one.start is None else broken(one) for one in reading.steps)
        return recurrence.Reading(steps, reading.ends, reading.last)

    monkeypatch.setattr(recurrence, "read", read)
    parts, _ = expected()
    output, ours = found(hidden())
    branches = [(span, part) for span, part in zip(SPANS.spans, parts, strict=True) if span.prefix[1]]
    wrong = [(output[span.row, span.start : span.end] - part).abs().max().item() for span, part in branches]
    assert max(wrong) > 1e-3
    assert distance(ours) > 1e-3


def test_a_prefix_is_read_once_and_little_else_is_read_for_nothing() -> None:
    reading = recurrence.read(SPANS, 3, torch.device("cpu"))
    own = torch.cat([some.own for some in reading.steps])
    assert sorted(own.tolist()) == [*range(300), *range(300, 431)]  # every position of a span, and once
    for some in reading.steps:
        chunks = -(-(some.places.shape[1] - 3) // recurrence.CHUNK)
        assert len(some.own) > (chunks - 1) * recurrence.CHUNK * len(some.numbers)


def test_a_cache_then_holds_the_state_of_every_conversation() -> None:
    config = tiny.model("qwen3_5").config
    given = hidden()
    cache_ = DynamicCache(config=config)
    number = layer().layer_idx
    with torch.no_grad():
        layer()(given, cache_params=cache_, spans=SPANS)
        whole = recurrence.conversations(SPANS.spans)
        assert [span.start for span in whole] == [70, 75, 215, 232, 233, 64, 128]
        for place, span in enumerate(whole):
            alone = DynamicCache(config=config)
            layer()(joined(given, span), cache_params=alone)
            for name in ("conv_states", "recurrent_states"):
                ours, theirs = (getattr(each.layers[number], name)[0] for each in (cache_, alone))
                assert torch.allclose(ours[place], theirs[0], atol=1e-5), (name, span)


def test_spans_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 300\) positions with spans of \(1, 300\); a packed batch must reach"):
        layer()(hidden(), spans=Spans((), (1, 300)))


def test_on_a_gpu_without_kernels_one_line_says_which_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, there = torch.device("cuda"), set(recurrence.KERNELS)
    monkeypatch.setattr(recurrence.importlib.util, "find_spec", lambda name: name if name in there else None)
    assert recurrence.sentence(layer(), gpu) == ""
    there.remove("fla")
    line = recurrence.sentence(layer(), gpu)
    assert line.startswith("flash-linear-attention is not installed: the layers that carry a state run in plain")
    assert "skinvl[linear]" in line
    there.clear()
    assert recurrence.sentence(layer(), gpu).startswith("flash-linear-attention and causal-conv1d are not installed")
    assert recurrence.sentence(layer(), torch.device("cpu")) == ""
    assert recurrence.sentence(torch.nn.Linear(1, 1), gpu) == ""
