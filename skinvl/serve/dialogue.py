"""A conversation with a run, and with the base it was trained on: answers as they appear, and how likely classes are.

An answer is token for token what `skinvl generate` gives for the same conversation. A follow-up computes only what is
new in it: the keys and values of all before it are kept, the image's among them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, TextStreamer

from skinvl.data import pixels
from skinvl.data.example import Example, Message, text
from skinvl.data.mixture import Row
from skinvl.evaluate import engine
from skinvl.model import infer
from skinvl.model.attention import Step
from skinvl.model.base import logits
from skinvl.model.chat import Encoded
from skinvl.model.infer import Asked
from skinvl.model.loaded import LoadedModel
from skinvl.recipe import recipe, run
from skinvl.recipe.recipe import Generation, Recipe
from skinvl.score.stats import Float

NOTICE = "Research use only. Not a diagnosis. Not a medical device."

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class DialogueError(ValueError):
    """What cannot be asked: a folder that is no run, a conversation that is too long, a class list that is none."""


def resolve(name: str, overrides: Sequence[str], base: bool = False) -> tuple[Recipe, Path | None]:
    """The recipe of what is asked, and the folder of its run, if it has one.

    As `run.evaluated`: the folder of a run is its adapter, the name of a recipe its base. The folder that skinvl merge
    wrote into a run is asked as that run is, on the merged weights.

    Args:
        base: whether to leave the adapter out.

    Raises:
        DialogueError, RunError, RecipeError: it is none of these, or an override does not fit.
    """
    path = Path(name)
    if not (path / "config.json").is_file() or (path / "recipe.yaml").is_file():
        found, out = run.evaluated(name, overrides)
        return found.model_copy(update={"init_adapter": None} if base else {}), out if path.is_dir() else None
    if not (path / "merge.json").is_file() or not (path.parent / "recipe.yaml").is_file():
        raise DialogueError(
            f"{path}: a model, but not in the folder of the run that it was merged from, which says how it is asked; "
            f"give a recipe's name and base={path}"
        )
    if base:
        raise DialogueError(f"{path}: --base asks the base of a run without its adapter; give {path.parent}")
    found, _ = run.evaluated(str(path.parent), overrides)
    merged = {"base": recipe.load_base(str(path)), "init_adapter": None, "quantization": None}
    return found.model_copy(update=merged), path.parent


def readable(words: str) -> str:
    """The words without control characters: a base can say any, and a terminal would obey them."""
    return _CONTROL.sub("", words)


def told(name: str, asked: LoadedModel) -> str:
    """What is asked, in one line: the run, its adapter and base, and how answers are made."""
    facts, settings = asked.facts, asked.recipe.evaluate.generation
    base = facts["base"]
    parts = [
        name,
        f"adapter {facts['adapter'][:8]}" if facts["adapter"] else "no adapter",
        f"base {base['model']}" + (f" at {base['commit'][:8]}" if base["commit"] else ""),
        "nf4" if facts["quantization"] else facts["precision"],
        facts["device"],
        f"drawn with seed {settings.seed}" if settings.do_sample else "greedy",
    ]
    return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class DialogueReply:
    """An answer and what it took."""

    question: str
    answer: str
    finish_reason: Literal["stop", "length", "stopped"]  # its own end, max_new_tokens, or whoever asked
    prompt_tokens: int  # of the whole conversation before it, images included
    cached_tokens: int  # of these, those whose keys and values were kept
    completion_tokens: int  # with the one that ended it
    seconds: float


@dataclass(slots=True)
class _Kept:
    """Keys and values of the conversation so far, and what the next token needs beside its own."""

    cache: DynamicCache
    ids: list[int]  # of which every layer holds them; a forward that broke off leaves some layers with more
    further: dict[str, torch.Tensor]


class Dialogue:
    """One conversation: turns about images, each answered with all before it in sight.

    Args:
        base: whether the adapter is switched off for it; the other conversations with the model keep theirs.

    Attributes:
        messages: the turns so far.
        reply: the last answer, once it is whole; None before.
    """

    def __init__(self, asked: LoadedModel, generation: Generation, base: bool = False) -> None:
        self.asked, self.generation, self.base = asked, generation, base
        self.messages: list[Message] = []
        self.images: list[Path] = []
        self.reply: DialogueReply | None = None
        self._kept: _Kept | None = None
        self._stop = False

    def anew(self) -> Dialogue:
        """Another conversation with the same model, without a turn."""
        return Dialogue(self.asked, self.generation, self.base)

    def forget(self) -> None:
        """Nothing; the keys and values are freed, and the next turn computes them again."""
        self._kept = None

    def stop(self) -> None:
        """Nothing; the answer under way ends with its next token."""
        self._stop = True

    def ask(self, question: str, images: Sequence[Path] = ()) -> Iterator[str]:
        """The answer, in pieces of whole words as they appear; `reply` then holds it.

        A turn that fails, or whose pieces are not read to their end, has not been.

        Args:
            images: new ones, which the question is about as well as about those of earlier turns.

        Raises:
            DialogueError: too long for the base, or for the memory.
            ChatError, ImageError: it cannot be asked.
        """
        began, self.reply, self._stop = time.perf_counter(), None, False
        shown = [*self.images, *(path.absolute() for path in images)]
        turn = text("user", question, len(images))
        encoded = self._prompt([*self.messages, turn], shown)
        said: list[int] = []
        ended: Literal["stop", "length", "stopped"] | None = None
        words: Any = _Words(self.asked.chat.tokenizer)
        ends = infer.stops(self.asked.model, self.asked.chat)
        draws = [torch.Generator().manual_seed(self._seed(len(self.messages)))]
        found, cached = self._read(encoded, shown)
        position = self._positions(encoded)[..., -1:]
        while ended is None:
            said += infer.choose(found, self.generation, draws)
            if said[-1] in ends:
                ended = "stop"
            elif len(said) == self.generation.max_new_tokens:
                ended = "length"
            elif self._stop:
                ended = "stopped"
            if ended != "stop":
                words.put(torch.tensor(said[-1:]))
            if ended is None:
                position = position + 1
                found = self._step(said[-1], position)
            else:
                words.end()
            if piece := words.taken():
                yield piece
        answer = self.asked.chat.tokenizer.decode(said[:-1] if ended == "stop" else said, skip_special_tokens=True)
        # Llama's template trims what it is given; a conversation is the same under every template.
        self.messages += [turn, text("assistant", answer.strip())]
        self.images = shown
        self.reply = DialogueReply(
            question, answer, ended, len(encoded.ids), cached, len(said), time.perf_counter() - began
        )

    def _example(self, messages: Sequence[Message], images: Sequence[Path]) -> Example:
        turns = (*messages, text("assistant", "?"))
        return Example("ask", "ask", tuple(map(str, images)), turns, "ask", "ask", "none")

    def _seed(self, turns: int) -> int:
        example = self._example((text("user", "?"),), ())
        return engine.seed_of(engine.Question(f"turn-{turns // 2 + 1}", Row(example, Path())), self.generation)

    def _prompt(self, messages: Sequence[Message], images: Sequence[Path]) -> Encoded:
        chat = self.asked.chat
        encoded = chat.prompt(self._example(messages, images), [pixels.size(path) for path in images])
        most, room = self._config.get_text_config().max_position_embeddings, self.generation.max_new_tokens
        if len(encoded.ids) + room > most:
            raise DialogueError(
                f"the conversation is too long: {len(encoded.ids):,} tokens and up to {room:,} of an answer; this base "
                f"reads {most:,}. Begin a new one, or ask for shorter answers with evaluate.generation.max_new_tokens"
            )
        return encoded

    def _positions(self, encoded: Encoded) -> torch.Tensor:
        chat = self.asked.chat
        return chat.family.positions(chat.processor, encoded.ids, encoded.pictures)[..., None, :]

    def _read(self, encoded: Encoded, shown: Sequence[Path]) -> tuple[torch.Tensor, int]:
        """The logits of what follows a prompt, float[1, V], and how many of its tokens were read before."""
        if (shared := self._shared(encoded.ids)) and self._kept is not None:
            kept, new = self._kept, encoded.ids[shared:]
            family, config = self.asked.chat.family, self._config
            layers: list[Any] = kept.cache.layers
            for number, layer in enumerate(layers):
                if layer.get_seq_length() and family.branch(number, config):
                    layer.keys, layer.values = layer.keys[:, :, :shared], layer.values[:, :, :shared]
            del kept.ids[shared:]
            spans = _Behind(torch.ones(1, shared, dtype=torch.bool, device=self._device))
            return self._forward(kept, new, self._positions(encoded)[..., shared:], spans), shared
        given = infer.prepare(self.asked.collator, [Asked(encoded, tuple(shown))]).inputs
        spans, positions = given.pop("spans"), given.pop("position_ids")
        for name in ("input_ids", "labels", "shift_labels"):
            given.pop(name)
        given = {name: one.to(self._device) for name, one in given.items()}
        row, last = (torch.tensor([place], device=self._device) for place in (0, len(encoded.ids) - 1))
        cache = DynamicCache(config=self._config) if self.asked.chat.family.recurrent else DynamicCache()
        self._kept = _Kept(cache, [], self.asked.chat.family.step(given, row, last))
        return self._forward(self._kept, encoded.ids, positions, spans, given), 0

    def _shared(self, ids: Sequence[int]) -> int:
        """How many of the ids need not be read again: none where a new image is among the others."""
        if self._kept is None or not self.asked.chat.family.shares:
            return 0
        limit = min(len(ids) - 1, len(self._kept.ids))
        common = next((i for i in range(limit) if ids[i] != self._kept.ids[i]), limit)
        return 0 if self.asked.chat.image_id in ids[common:] else common

    def _step(self, token: int, position: torch.Tensor) -> torch.Tensor:
        assert self._kept is not None
        keys = torch.ones(1, len(self._kept.ids), dtype=torch.bool, device=self._device)
        return self._forward(self._kept, [token], position, Step(keys))

    @torch.no_grad()
    def _forward(
        self, kept: _Kept, ids: list[int], positions: torch.Tensor, spans: Any, given: dict[str, Any] | None = None
    ) -> torch.Tensor:
        """The logits of what follows the ids, float[1, V]; their keys and values are then kept."""
        model = self.asked.model
        if given is None:  # of what stands behind the images every token needs the same
            given = {name: one.expand(-1, len(ids), *one.shape[2:]) for name, one in kept.further.items()}
        inputs = {"input_ids": torch.tensor([ids], device=self._device), "position_ids": positions.to(self._device)}
        where = torch.zeros(1, len(ids), dtype=torch.bool, device=self._device)
        where[0, -1] = True
        try:
            with _side(self.asked, self.base):
                found = logits(
                    model, {**inputs, "spans": spans, **given}, where, use_cache=True, past_key_values=kept.cache
                )
        except torch.OutOfMemoryError as error:
            raise DialogueError(
                f"the conversation is too long for the memory of the {self._device.type} device: {len(ids):,} new "
                "tokens. Begin a new one, or show fewer images"
            ) from error
        kept.ids += ids
        return found

    @property
    def _config(self) -> Any:
        return self.asked.model.config

    @property
    def _device(self) -> torch.device:
        return next(self.asked.model.parameters()).device


@contextmanager
def _side(asked: LoadedModel, base: bool) -> Iterator[None]:
    """The model in its precision, with its adapter and what was trained in full, or without either."""
    model = asked.model
    with model.disable_adapter() if base and isinstance(model, PeftModel) else nullcontext(), asked.autocast():
        yield


class _Behind(Step):
    """Several new tokens of one row: each sees all that was cached before them, and of them those up to itself."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """Attention of [1, H, Q, D] queries to [1, G, K, D] keys and values, [1, Q, H, D]."""
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        if window is not None:
            mask = mask.triu(keys - queries - window + 1)
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
        return found.transpose(1, 2)


class _Words(TextStreamer):
    """Tokens → text as soon as words are whole, so that neither a word nor a character is ever shown in part."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.ready = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.ready += text

    def taken(self) -> str:
        """What became ready since this was last asked."""
        found, self.ready = self.ready, ""
        return found


def weigh(asked: LoadedModel, images: Sequence[Path], question: str, names: Sequence[str], base: bool = False) -> Float:
    """float[C]: the log-likelihood of each name and its end, natural logarithm; all on one image prefix.

    Raises:
        ChatError, ImageError: it cannot be asked.
    """
    shown, turn = tuple(path.absolute() for path in images), text("user", question, len(images))
    sizes, given = [pixels.size(path) for path in shown], []
    for name in names:
        turns = (turn, text("assistant", name))
        encoded = asked.chat.encode(Example(name, "ask", tuple(map(str, shown)), turns, "ask", "ask", "none"), sizes)
        given.append(Asked(infer.last_answer(encoded), shown))
    with _side(asked, base):
        return np.array(infer.likelihoods(asked.model, infer.prepare(asked.collator, given)))
