"""Answers by vLLM, where it is installed: the same prompts, the same rows; the adapter served as LoRA."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Any

from peft import LoraConfig

from skinvl.data.pixels import ImageError
from skinvl.evaluate.engine import Question, answer, seed_of
from skinvl.model.adapter import todays_keys
from skinvl.model.base import base_dtype
from skinvl.model.chat import Chat, ChatError, Encoded
from skinvl.model.decode import stop_tokens_in
from skinvl.model.loaded import open_with_adapter
from skinvl.model.row import encode_prompt
from skinvl.model.ways_out import RANKS, not_in_vllm
from skinvl.recipe.recipe import ImageChange, Recipe
from skinvl.score.predictions import Answer


class EngineError(ValueError):
    """vLLM is not there, cannot serve the adapter, or made another prompt of what it was asked."""


class Vllm:
    """An engine, as `engine.Engine`.

    Raises:
        AdapterError: the adapter does not fit the base.
        EngineError: vLLM is not installed, the recipe trains more than LoRA on the language model, or an earlier
            transformers named the adapter's weights.
    """

    def __init__(self, recipe: Recipe) -> None:
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise EngineError(
                f"evaluate.engine=vllm: it cannot be imported ({error}); install it with pip install 'skinvl[vllm]', "
                "or use evaluate.engine=transformers"
            ) from error
        base = open_with_adapter(recipe)
        if reason := not_in_vllm(base.family.model_type, recipe, alone=base.adapter is None):
            raise EngineError(f"evaluate.engine=vllm: {reason}; use evaluate.engine=transformers")
        if base.adapter and any(name != key for name, key in todays_keys(base.adapter, base.config).items()):
            raise EngineError(  # a weight that vLLM finds no layer for would be left out without a word
                f"evaluate.engine=vllm: the weights of {base.adapter} have names of an earlier transformers, and what "
                "vLLM makes of those is not known; use evaluate.engine=transformers"
            )
        self.chat, self.generation = base.chat, recipe.evaluate.generation
        self.ends = sorted(stop_tokens_in(base.path, base.chat, EngineError))
        lora_rank = LoraConfig.from_pretrained(str(base.adapter)).r if base.adapter else 16
        self.lora = LoRARequest("run", 1, str(base.adapter)) if base.adapter else None
        self.facts = {**base.facts, "vllm": importlib.metadata.version("vllm")}
        self.params = vllm.SamplingParams
        self.llm = vllm.LLM(
            model=str(base.path),
            tokenizer=str(base.adapter or base.path),
            dtype=str(base_dtype(recipe)).removeprefix("torch."),
            enable_lora=self.lora is not None,
            max_lora_rank=next(rank for rank in RANKS if rank >= lora_rank),
            limit_mm_per_prompt={"image": 8},
            mm_processor_kwargs=base.chat.image_arguments,
            enable_prefix_caching=True,  # questions about one image follow one another
        )

    def seeing(self, change: ImageChange) -> Vllm:
        """As Engine."""
        other = copy.copy(self)
        other.chat = self.chat.seeing(change)
        return other

    def answers(self, blocks: Sequence[Sequence[Question]]) -> Iterator[list[Answer]]:
        """As Engine.

        Raises:
            EngineError: vLLM made other tokens of a prompt than were trained.
        """
        for block in blocks:
            # Prompts are ours, token by token; vLLM makes the pixels, and with them as many image tokens as it means.
            asked, prompts, answers = [], [], []
            for question in block:
                row = question.row
                try:
                    encoded = encode_prompt(self.chat, row).encoded
                    images = [self.chat.upright(row.root / name) for name in row.example.images]
                except (ChatError, ImageError) as error:
                    answers.append(answer(question, None, "refused", str(error)))
                    continue
                asked.append((question, encoded))
                prompt: dict[str, Any] = {"prompt_token_ids": unexpanded(self.chat, encoded)}
                prompts.append({**prompt, "multi_modal_data": {"image": images}} if images else prompt)

            # What it read is held against what the base was trained to read: another processor would go unnoticed.
            params = [self._params(question) for question, _ in asked]
            outputs: Any = self.llm.generate(prompts, params, lora_request=self.lora, use_tqdm=False) if asked else []
            for (question, encoded), output in zip(asked, outputs, strict=True):
                if list(output.prompt_token_ids) != encoded.ids:
                    raise EngineError(
                        f"{question.key}: vLLM asked {len(output.prompt_token_ids)} tokens, other than the "
                        f"{len(encoded.ids)} that the base was trained to read; its processor makes something else of "
                        "the images. Use evaluate.engine=transformers"
                    )
                completion = output.outputs[0]
                thought, text = self.chat.thought_and_answer(completion.token_ids)
                reason, seed = completion.finish_reason, seed_of(question, self.generation)
                tokens = len(completion.token_ids)
                answers.append(answer(question, text, reason, tokens=tokens, seed=seed, thought=thought))
            yield answers

    def _params(self, question: Question) -> Any:
        generation = self.generation
        drawn = {
            "temperature": generation.temperature or 1.0,
            "top_p": generation.top_p or 1.0,
            "seed": seed_of(question, generation),
        }
        return self.params(
            max_tokens=generation.max_new_tokens,
            stop_token_ids=self.ends,
            **(drawn if generation.do_sample else {"temperature": 0.0}),
        )


def unexpanded(chat: Chat, encoded: Encoded) -> list[int]:
    """The ids of a prompt with one image token for each image, as the template writes them."""
    ids: list[int] = []
    pictures = iter(encoded.pictures)
    left = 0  # further tokens of the image under way
    for token in encoded.ids:
        if left:
            left -= 1
            continue
        if token == chat.image_id:
            left = next(pictures).text_tokens - 1
        ids.append(token)
    return ids
