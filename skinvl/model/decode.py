"""Answers token by token: prompts are read once, and what was read is never computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from skinvl.model import recurrence
from skinvl.model.attention import FollowUp, Span, Spans, Step
from skinvl.model.base import logits
from skinvl.model.chat import Chat
from skinvl.model.pack import Batch
from skinvl.recipe.files import read_json


def stop_tokens(chat: Chat, eos: int | list[int] | None) -> set[int]:
    """The tokens that end an answer: the template's end of turn, and those that the base's generation config names.

    Args:
        eos: the `eos_token_id` of that config.
    """
    others = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return {chat.tokenizer.convert_tokens_to_ids(chat.family.turn_close), *others}


def stop_tokens_in(folder: Path, chat: Chat, error: type[ValueError] = ValueError) -> set[int]:
    """The tokens that end an answer of the weights in a folder, whose generation config is read where there is one.

    Raises:
        ValueError: the config cannot be read; of the kind of `error`.
    """
    file = folder / "generation_config.json"
    hint = "put the folder of the weights back as it was"
    return stop_tokens(chat, read_json(file, hint, error).get("eos_token_id") if file.is_file() else None)


class Decoder:
    """A model that has read some prompts and goes on from all of them at once, one token each at a time.

    Attributes:
        cache: the keys and values of all that was read, of each prompt at its end.
    """

    def __init__(self, model: Any, chat: Chat) -> None:
        self.model, self.chat = model, chat
        self.cache = DynamicCache(config=model.config if chat.family.recurrent else None)
        self._behind: Step  # which of the cached keys the next token of each prompt sees
        self._positions: torch.Tensor  # of each prompt's last token, int64[B, 1] or int64[3, B, 1]
        self._further: dict[str, torch.Tensor]  # what the model needs beside a token and its position

    @torch.no_grad()
    def read(self, batch: Batch) -> torch.Tensor:
        """The logits of what follows each prompt, float32[B, V]; what prompts share is computed once.

        Args:
            batch: prompts that all show images, or none of which does.
        """
        batch = batch.to(self._device)
        rows = torch.tensor([span.row for span in batch.places], device=self._device)
        last = torch.tensor([span.end - 1 for span in batch.places], device=self._device)
        where = torch.zeros_like(batch.ids, dtype=torch.bool)
        where[rows, last] = True
        row_by_row = logits(self.model, batch.inputs, where, use_cache=True, past_key_values=self.cache)

        self._behind = Step(self._branch(batch.places, batch.spans))
        self._positions = batch.inputs["position_ids"][..., rows, last][..., None]
        self._further = self.chat.family.step(batch.inputs, rows, last)
        return row_by_row[torch.argsort(torch.argsort(rows * where.shape[1] + last))]  # in the order of the prompts

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits of what follows one more token of each prompt, float32[B, V]."""
        self._positions = self._positions + 1
        ids = torch.tensor(tokens, device=self._device)[:, None]
        return self._forward(ids, self._positions, self._behind, self._further)

    @torch.no_grad()
    def follow(self, ids: Sequence[int], positions: torch.Tensor, kept: int) -> torch.Tensor:
        """The logits of what follows more tokens of the only prompt there is, float32[1, V].

        Args:
            positions: of these tokens, int64[1, T] or int64[3, 1, T].
            kept: so many tokens before them stay as they were read; what came after these is forgotten.
        """
        layers: list[Any] = self.cache.layers
        for number, layer in enumerate(layers):
            # A forward that broke off has left some layers with more tokens than others.
            if layer.get_seq_length() and self.chat.family.branch(number, self.model.config):
                layer.keys, layer.values = layer.keys[:, :, :kept], layer.values[:, :, :kept]
        # Of what stands behind the images every token needs the same.
        further = {name: value.expand(-1, len(ids), *value.shape[2:]) for name, value in self._further.items()}
        behind = FollowUp(torch.ones(1, kept, dtype=torch.bool, device=self._device))
        positions = positions.to(self._device)
        next_logits = self._forward(torch.tensor([ids], device=self._device), positions, behind, further)

        self._behind = Step(torch.ones(1, kept + len(ids), dtype=torch.bool, device=self._device))
        self._positions = positions[..., -1:]
        return next_logits

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, spans: Spans | Step, further: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The logits of what follows the last of the ids of each row, float32[B, V]; their keys are then cached."""
        inputs = {"input_ids": ids, "position_ids": positions, "spans": spans, **further}
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[:, -1] = True
        return logits(self.model, inputs, where, use_cache=True, past_key_values=self.cache)

    def _branch(self, spans: Sequence[Span], laid: Spans) -> torch.Tensor:
        """bool[B, K]: the cache then holds, for each prompt, the keys and values of its prefix and its own, at its end.

        Where a prompt has fewer than K of them, what stands before them is not its own.
        """
        own = [[*range(*span.prefix), *range(span.start, span.end)] for span in spans]
        longest = max(map(len, own))
        index = torch.tensor([[0] * (longest - len(columns)) + columns for columns in own], device=self._device)
        rows = torch.tensor([span.row for span in spans], device=self._device)
        lying = {(span.row, span.start): place for place, span in enumerate(recurrence.conversations(laid.spans))}
        states: Any = torch.tensor([lying[span.row, span.start] for span in spans], device=self._device)
        layers: list[Any] = self.cache.layers
        for number, layer in enumerate(layers):
            if isinstance(layer, LinearAttentionCacheLayerMixin):  # a state for each prompt, as they lie in the rows
                layer.reorder_cache(states)
                continue
            if not layer.get_seq_length():  # one that attends to images, where there are none
                continue
            for name in ("keys", "values"):
                cached = getattr(layer, name)
                if self.chat.family.branch(number, self.model.config):
                    branch = cached.transpose(1, 2)[rows[:, None], index].transpose(1, 2)  # [B, G, K, D]
                else:
                    branch = cached[rows]  # what the image gave, which all its prompts read
                setattr(layer, name, branch.contiguous())
        lengths = torch.tensor([len(columns) for columns in own], device=self._device)
        return torch.arange(longest, device=self._device) >= longest - lengths[:, None]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device
