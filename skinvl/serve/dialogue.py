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
from transformers import TextStreamer

from skinvl.data.example import Example, Message, text
from skinvl.data.mixture import Row
from skinvl.evaluate import engine
from skinvl.model import infer
from skinvl.model.decode import Decoder
from skinvl.model.loaded import LoadedModel
from skinvl.model.row import EncodedRow, encode_last_answer, encode_prompt
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
        trained, out = run.evaluated(name, overrides)
        return trained.model_copy(update={"init_adapter": None} if base else {}), out if path.is_dir() else None
    if not (path / "merge.json").is_file() or not (path.parent / "recipe.yaml").is_file():
        raise DialogueError(
            f"{path}: a model, but not in the folder of the run that it was merged from, which says how it is asked; "
            f"give a recipe's name and base={path}"
        )
    if base:
        raise DialogueError(f"{path}: --base asks the base of a run without its adapter; give {path.parent}")
    trained, _ = run.evaluated(str(path.parent), overrides)
    merged = {"base": recipe.load_base(str(path)), "init_adapter": None, "quantization": None}
    return trained.model_copy(update=merged), path.parent


def readable(words: str) -> str:
    """The words without control characters: a base can say any, and a terminal would obey them."""
    return _CONTROL.sub("", words)


def caption(name: str, loaded: LoadedModel) -> str:
    """What is asked, in one line: the run, its adapter and base, and how answers are made."""
    facts, settings = loaded.facts, loaded.recipe.evaluate.generation
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
    thought: str | None  # what stood before the answer, and was not shown


@dataclass(slots=True)
class _Kept:
    """What was read of the conversation so far, with its keys and values."""

    decoder: Decoder
    ids: list[int]  # of which every layer has them; a forward that broke off leaves some layers with more


class Dialogue:
    """One conversation: turns about images, each answered with all before it in sight.

    Args:
        base: whether the adapter is switched off for it; the other conversations with the model keep theirs.

    Attributes:
        messages: the turns so far.
        thoughts: of each answer among them.
        reply: the last answer, once it is whole; None before.
    """

    def __init__(self, loaded: LoadedModel, generation: Generation, base: bool = False) -> None:
        self.loaded, self.generation, self.base = loaded, generation, base
        self.messages: list[Message] = []
        self.thoughts: list[str | None] = []
        self.images: list[Path] = []
        self.reply: DialogueReply | None = None
        self._kept: _Kept | None = None
        self._stop = False

    def anew(self) -> Dialogue:
        """Another conversation with the same model, without a turn."""
        return Dialogue(self.loaded, self.generation, self.base)

    def forget(self) -> None:
        """Frees the keys and values; the next turn computes them again."""
        self._kept = None

    def stop(self) -> None:
        """Ends the answer under way with its next token."""
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
        prompt = self._prompt([*self.messages, turn], shown)
        chat = self.loaded.chat
        ends = infer.stops(self.loaded.model, chat)
        generators = [torch.Generator().manual_seed(self._seed(len(self.messages)))]
        words: Any = _Words(chat.tokenizer)
        within, (begin, end), thinks = chat.begins_within, chat.marks, chat.begins_within
        ids: list[int] = []
        ended: Literal["stop", "length", "stopped"] | None = None
        logits, cached = self._read(prompt)
        while ended is None:
            ids += infer.choose(logits, self.generation, generators)
            if ids[-1] in ends:
                ended = "stop"
            elif len(ids) == self.generation.max_new_tokens:
                ended = "length"
            elif self._stop:
                ended = "stopped"

            # The next token is on its way before what is whole of the words so far goes out; of a thought nothing does.
            if ids[-1] in (begin, end):
                within, thinks = ids[-1] == begin, True
            elif ended != "stop" and not within:
                words.put(torch.tensor(ids[-1:]))
            if ended is None:
                logits = self._step(ids[-1])
            else:
                words.end()
            piece = words.taken().lstrip("\n") if thinks else words.taken()
            if piece:
                thinks = False
                yield piece

        thought, answer = chat.thought_and_answer(ids[:-1] if ended == "stop" else ids)
        # Llama's template trims what it is given; a conversation is the same under every template.
        self.messages += [turn, text("assistant", answer.strip())]
        self.thoughts.append(thought)
        self.images = shown
        self.reply = DialogueReply(
            question, answer, ended, len(prompt.encoded.ids), cached, len(ids), time.perf_counter() - began, thought
        )

    def _example(self, messages: Sequence[Message], images: Sequence[Path]) -> Example:
        turns = (*messages, text("assistant", "?"))
        paths, thoughts = tuple(map(str, images)), (*self.thoughts, None)
        return Example("ask", "ask", paths, turns, "ask", "ask", "none", thoughts=thoughts)

    def _seed(self, turns: int) -> int:
        example = self._example((text("user", "?"),), ())
        return engine.seed_of(engine.Question(f"turn-{turns // 2 + 1}", Row(example, Path())), self.generation)

    def _prompt(self, messages: Sequence[Message], images: Sequence[Path]) -> EncodedRow:
        prompt = encode_prompt(self.loaded.chat, Row(self._example(messages, images), Path()))
        tokens, room = len(prompt.encoded.ids), self.generation.max_new_tokens
        most = self._config.get_text_config().max_position_embeddings
        if tokens + room > most:
            raise DialogueError(
                f"the conversation is too long: {tokens:,} tokens and up to {room:,} of an answer; this base "
                f"reads {most:,}. Begin a new one, or ask for shorter answers with evaluate.generation.max_new_tokens"
            )
        return prompt

    def _read(self, prompt: EncodedRow) -> tuple[torch.Tensor, int]:
        """The logits of what follows a prompt, float32[1, V], and how many of its tokens were read before."""
        encoded, kept = prompt.encoded, self._kept
        if kept is not None and (shared := self._shared(encoded.ids, kept.ids)):
            family, processor = self.loaded.chat.family, self.loaded.chat.processor
            positions = family.positions(processor, encoded.ids, encoded.pictures)[..., None, shared:]
            new = encoded.ids[shared:]
            del kept.ids[shared:]
            with self._reading(len(new)):
                logits = kept.decoder.follow(new, positions, shared)
            kept.ids += new
            return logits, shared
        batch = self.loaded.collator.pack([prompt])
        self._kept = None  # its memory is free before the prompt needs as much
        decoder = Decoder(self.loaded.model, self.loaded.chat)
        with self._reading(len(encoded.ids)):
            logits = decoder.read(batch)
        self._kept = _Kept(decoder, list(encoded.ids))
        return logits, 0

    def _shared(self, ids: Sequence[int], kept: Sequence[int]) -> int:
        """How many of the ids need not be read again: none where a new image is among the others."""
        chat = self.loaded.chat
        if chat.family.recurrent:  # a state cannot be taken back to what stood before
            return 0
        limit = min(len(ids) - 1, len(kept))
        common = next((i for i in range(limit) if ids[i] != kept[i]), limit)
        return common if chat.image_ids.isdisjoint(ids[common:]) else 0

    def _step(self, token: int) -> torch.Tensor:
        """The logits of what follows one more token, float32[1, V]."""
        assert self._kept is not None
        with self._reading(1):
            logits = self._kept.decoder.step([token])
        self._kept.ids.append(token)
        return logits

    @contextmanager
    def _reading(self, tokens: int) -> Iterator[None]:
        """The model on this conversation's side, about to read so many tokens.

        Raises:
            DialogueError: the memory is full.
        """
        try:
            with _side(self.loaded, self.base):
                yield
        except torch.OutOfMemoryError as error:
            device = next(self.loaded.model.parameters()).device
            raise DialogueError(
                f"the conversation is too long for the memory of the {device.type} device: {tokens:,} new "
                "tokens. Begin a new one, or show fewer images"
            ) from error

    @property
    def _config(self) -> Any:
        return self.loaded.model.config


@contextmanager
def _side(loaded: LoadedModel, base: bool) -> Iterator[None]:
    """The model in its precision, with its adapter and what was trained in full, or without either."""
    model = loaded.model
    with model.disable_adapter() if base and isinstance(model, PeftModel) else nullcontext(), loaded.autocast():
        yield


class _Words(TextStreamer):
    """Tokens → text as soon as words are whole, so that neither a word nor a character is ever shown in part."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.ready = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.ready += text

    def taken(self) -> str:
        """What became ready since this was last asked."""
        ready, self.ready = self.ready, ""
        return ready


def likelihoods(
    loaded: LoadedModel, images: Sequence[Path], question: str, names: Sequence[str], base: bool = False
) -> Float:
    """float[C]: the log-likelihood of each name and its end, natural logarithm; all on one image prefix.

    Raises:
        ChatError, ImageError: it cannot be loaded.
    """
    shown, turn = tuple(str(path.absolute()) for path in images), text("user", question, len(images))
    named = [Example(name, "ask", shown, (turn, text("assistant", name)), "ask", "ask", "none") for name in names]
    rows = [encode_last_answer(loaded.chat, Row(example, Path())) for example in named]
    with _side(loaded, base):
        return np.array(infer.likelihoods(loaded.model, loaded.collator.pack(rows)))
