"""Answers and likelihoods for many conversations about one image, which is computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from skinvl.model.attention import Span, Step
from skinvl.model.base import logits
from skinvl.model.chat import UNTRAINED, Chat, Encoded
from skinvl.model.pack import Collator, Group, Shown
from skinvl.recipe.recipe import Generation


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation as ids, and the images that it shows."""

    encoded: Encoded
    images: Shown


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model said: its ids without the one that ended it, and why it ended."""

    ids: list[int]
    finish_reason: Literal["stop", "length"]
    tokens: int  # generated, with the one that ended it


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations in rows, those about one image with it once: the model's inputs, and where each of them stands."""

    asked: tuple[Asked, ...]
    inputs: dict[str, Any]
    places: tuple[Span, ...]  # of each conversation, in the order they were given


def last_answer(encoded: Encoded) -> Encoded:
    """The conversation with nothing but its last answer trained."""
    end = next(i for i in range(len(encoded.ids), 0, -1) if encoded.labels[i - 1] != UNTRAINED)
    start = next(i for i in range(end, 0, -1) if encoded.labels[i - 1] == UNTRAINED)
    return replace(encoded, labels=[UNTRAINED] * start + encoded.labels[start:])


def prepare(collator: Collator, asked: Sequence[Asked]) -> Batch:
    """The batch of some conversations, prompts or whole ones.

    Where layers carry a state along the row it must not meet padding after a prompt: rows then end together.

    Raises:
        ImageError: an image cannot be read.
        CacheError: an image's features are gone or damaged.
    """
    encoded, shown = [one.encoded for one in asked], [one.images for one in asked]
    rows = collator.groups(encoded, shown)
    inputs = collator.lay(encoded, shown, rows, left=collator.chat.family.recurrent)
    return Batch(tuple(asked), inputs, _places(rows, inputs["spans"].spans))


def _places(rows: Sequence[Sequence[Group]], spans: Sequence[Span]) -> tuple[Span, ...]:
    found: dict[int, Span] = {}
    rest = iter(spans)
    for group in (group for row in rows for group in row):
        if group.prefix:
            next(rest)
        found |= {place: next(rest) for place in group.members}
    return tuple(found[place] for place in sorted(found))


@torch.no_grad()
def likelihoods(model: torch.nn.Module, batch: Batch) -> list[float]:
    """The log-likelihood of what is trained in each conversation, given what stands before it; natural logarithm.

    The sum over its tokens t of log p(t | the tokens and images before t).
    """
    inputs = _on(model, batch.inputs)
    targets = inputs.pop("shift_labels")
    inputs.pop("labels")
    owner = torch.full_like(targets, -1)
    for number, place in enumerate(batch.places):
        owner[place.row, place.start : place.end] = number
    supervised = targets != UNTRAINED
    found = logits(model, inputs, supervised)
    losses = cross_entropy(found, targets[supervised], reduction="none").double()
    sums = losses.new_zeros(len(batch.places)).index_add(0, owner[supervised], losses)
    return [-loss for loss in sums.tolist()]


@torch.no_grad()
def generate(
    model: torch.nn.Module, chat: Chat, batch: Batch, settings: Generation, seeds: Sequence[int] = ()
) -> list[Generated]:
    """The answer to each prompt, token by token; the keys and values of what prompts share are computed once.

    Args:
        batch: prompts that all show images, or none of which does.
        seeds: where tokens are drawn, one for each prompt: what is drawn does not depend on the rest of the batch.
    """
    inputs = _on(model, batch.inputs)
    for name in ("labels", "shift_labels"):
        inputs.pop(name)
    device = inputs["input_ids"].device
    rows = torch.tensor([place.row for place in batch.places], device=device)
    last = torch.tensor([place.end - 1 for place in batch.places], device=device)
    where = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    where[rows, last] = True
    config: Any = model.config
    cache = DynamicCache(config=config if chat.family.recurrent else None)
    found = logits(model, inputs, where, use_cache=True, past_key_values=cache)
    found = found[torch.argsort(torch.argsort(rows * where.shape[1] + last))]  # in the order of the prompts
    step = Step(_branch(model, chat, cache, batch.places, device))
    positions = inputs["position_ids"][..., rows, last][..., None]
    further = chat.family.step(inputs, rows, last)
    ends = stops(model, chat)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    said: list[list[int]] = [[] for _ in batch.places]
    open_ = set(range(len(said)))
    for number in range(settings.max_new_tokens):
        chosen = choose(found, settings, generators)
        for place, token in enumerate(chosen):
            if place in open_:
                said[place].append(token)
        open_ = {place for place in open_ if said[place][-1] not in ends}
        if not open_ or number + 1 == settings.max_new_tokens:
            break
        positions = positions + 1
        ids = torch.tensor(chosen, device=device)[:, None]
        given = {"input_ids": ids, "position_ids": positions, "spans": step, **further}
        found = logits(model, given, torch.ones_like(ids, dtype=torch.bool), use_cache=True, past_key_values=cache)
    return [
        Generated(ids if place in open_ else ids[:-1], "length" if place in open_ else "stop", len(ids))
        for place, ids in enumerate(said)
    ]


def stops(model: Any, chat: Chat) -> set[int]:
    """The tokens that end an answer: the template's end of turn, and what the base's generation config names."""
    named = model.generation_config.eos_token_id
    others = named if isinstance(named, list) else [] if named is None else [named]
    return {chat.tokenizer.convert_tokens_to_ids(chat.family.turn_close), *others}


def choose(found: torch.Tensor, settings: Generation, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row of logits float32[B, V]: the likeliest one, or drawn by the row's own generator."""
    if not settings.do_sample:
        greedy: list[int] = found.argmax(-1).tolist()
        return greedy
    scores = found.cpu()
    ids = torch.empty(len(scores), 0, dtype=torch.long)
    if settings.temperature is not None:
        scores = TemperatureLogitsWarper(settings.temperature)(ids, scores)
    if settings.top_p is not None:
        scores = TopPLogitsWarper(settings.top_p)(ids, scores)
    shares = scores.softmax(-1)
    return [int(torch.multinomial(one, 1, generator=by)) for one, by in zip(shares, generators, strict=True)]


def _branch(model: Any, chat: Chat, cache: DynamicCache, places: Sequence[Span], device: torch.device) -> torch.Tensor:
    """bool[B, K]: the cache then holds, for each branch, the keys and values of its prefix and its own, at its end."""
    own = [[*range(*place.prefix), *range(place.start, place.end)] for place in places]
    longest = max(map(len, own))
    index = torch.tensor([[0] * (longest - len(one)) + one for one in own], device=device)
    rows = torch.tensor([place.row for place in places], device=device)
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin):  # the state at the end of each row, a prompt of its own
            continue
        if not layer.get_seq_length():  # one that attends to images, where there are none
            continue
        for name in ("keys", "values"):
            whole = getattr(layer, name)
            if chat.family.branch(number, model.config):
                taken = whole.transpose(1, 2)[rows[:, None], index].transpose(1, 2)  # [B, G, K, D]
            else:
                taken = whole[rows]  # what the image gave, which all its branches read
            setattr(layer, name, taken.contiguous())
    lengths = torch.tensor([len(one) for one in own], device=device)
    return torch.arange(longest, device=device) >= longest - lengths[:, None]


def _on(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
