"""Answers and likelihoods for many conversations about one image, which is computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from skinvl.model import base
from skinvl.model.chat import Chat
from skinvl.model.decode import Decoder, stop_tokens
from skinvl.model.pack import Batch
from skinvl.recipe.recipe import Generation


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model said: its ids without the one that ended it, and why it ended."""

    ids: list[int]
    finish_reason: Literal["stop", "length"]
    tokens: int  # generated, with the one that ended it


@torch.no_grad()
def likelihoods(model: torch.nn.Module, batch: Batch) -> list[float]:
    """The log-likelihood of what is trained in each conversation, given what stands before it; natural logarithm.

    The sum over its tokens t of log p(t | the tokens and images before t).
    """
    batch = batch.to(next(model.parameters()).device)
    supervised = batch.supervised
    logits = base.logits(model, batch.inputs, supervised)
    losses = cross_entropy(logits, batch.targets[supervised], reduction="none").double()

    # Each loss counts for the conversation in whose span it lies.
    owner = torch.full_like(batch.targets, -1)
    for number, span in enumerate(batch.places):
        owner[span.row, span.start : span.end] = number
    sums = losses.new_zeros(len(batch.places)).index_add(0, owner[supervised], losses)
    return [-loss for loss in sums.tolist()]


def generate(
    model: torch.nn.Module, chat: Chat, batch: Batch, settings: Generation, seeds: Sequence[int] = ()
) -> list[Generated]:
    """The answer to each prompt, token by token; the keys and values of what prompts share are computed once.

    Args:
        batch: prompts that all show images, or none of which does.
        seeds: where tokens are drawn, one for each prompt: what is drawn does not depend on the rest of the batch.
    """
    ends = stops(model, chat)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    answers: list[list[int]] = [[] for _ in batch.places]
    unended = set(range(len(answers)))
    decoder = Decoder(model, chat)
    logits = decoder.read(batch)
    for number in range(settings.max_new_tokens):
        # An answer that has ended goes through the model with the others, and nothing more is taken from it.
        tokens = choose(logits, settings, generators)
        for prompt in unended:
            answers[prompt].append(tokens[prompt])
        unended = {prompt for prompt in unended if answers[prompt][-1] not in ends}
        if not unended or number + 1 == settings.max_new_tokens:
            break
        logits = decoder.step(tokens)
    return [
        Generated(ids, "length", len(ids)) if prompt in unended else Generated(ids[:-1], "stop", len(ids))
        for prompt, ids in enumerate(answers)
    ]


def stops(model: Any, chat: Chat) -> set[int]:
    """The tokens that end an answer of a loaded model."""
    return stop_tokens(chat, model.generation_config.eos_token_id)


def choose(logits: torch.Tensor, settings: Generation, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row of logits float32[B, V]: the likeliest one, or drawn by the row's own generator."""
    if not settings.do_sample:
        greedy: list[int] = logits.argmax(-1).tolist()
        return greedy
    scores = logits.cpu()
    ids = torch.empty(len(scores), 0, dtype=torch.long)
    if settings.temperature is not None:
        scores = TemperatureLogitsWarper(settings.temperature)(ids, scores)
    if settings.top_p is not None:
        scores = TopPLogitsWarper(settings.top_p)(ids, scores)
    return [
        int(torch.multinomial(shares, 1, generator=generator))
        for shares, generator in zip(scores.softmax(-1), generators, strict=True)
    ]
