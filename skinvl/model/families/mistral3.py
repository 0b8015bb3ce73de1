"""Mistral 3, such as Ministral 3: images in their own shape, in the language row by rows that a token ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import (
    Mistral3Config,
    PixtralImageProcessor,
    PixtralProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from skinvl.model.families import Picture, ShapeError, Size, Thoughts, TinyTwin
from skinvl.model.families.llava import InRow

LAYER = -1  # the hidden states of the tower that its projector reads
# Where the published templates put in a system turn of their own.
OWN_SYSTEM_TURN = "if default_system_message != ''"
NO_SYSTEM_TURN = OWN_SYSTEM_TURN.replace("if ", "if false and ")


@dataclass(frozen=True, slots=True)
class ThinkingParts(Thoughts):
    """A thought is a part of the turn's content."""

    def with_thought(self, turn: dict[str, Any], thought: str) -> dict[str, Any]:
        return {**turn, "content": [{"type": "thinking", "thinking": thought}, *turn["content"]]}


class Mistral3(InRow):
    """Mistral 3 and Ministral 3."""

    model_type = "mistral3"
    image_token = "[IMG]"
    breaks = ("[IMG_BREAK]", "[IMG_END]")
    turn_open = "[/INST]"
    turn_close = "</s>"
    flash_attention = True
    # The templates of those that reason have a place for them; the others refuse such a part.
    thoughts = ThinkingParts("[/INST]", "[THINK]", "[/THINK]", marks=("[THINK]", "[/THINK]"), parser="mistral")

    def template(self, published: str, thinking: bool = False) -> str:
        # The system turn that is put in where none is given asks for thoughts, or names today's date.
        return (
            published.replace(NO_SYSTEM_TURN, OWN_SYSTEM_TURN)
            if thinking
            else published.replace(OWN_SYSTEM_TURN, NO_SYSTEM_TURN)
        )

    def expanded(self, processor: ProcessorMixin, picture: Picture) -> list[int]:
        tokenizer: Any = processor.tokenizer
        image, row_end, end = tokenizer.convert_tokens_to_ids([self.image_token, *self.breaks])
        rows, columns = self._tokens(processor, picture)
        return [*([*[image] * columns, row_end] * rows)[:-1], end]

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        mistral: Any = processor
        if image_tokens < 2:
            warnings.warn(
                f"data.image_tokens={image_tokens}: {self.model_type} ends each row of an image by a token, and the "
                "smallest image takes 2 tokens",
                stacklevel=2,
            )
        # A square takes the most of all images of one longest edge: n rows of n tokens and their end.
        token = mistral.patch_size * mistral.spatial_merge_size
        most = max((math.isqrt(4 * image_tokens + 1) - 1) // 2, 1)
        longest = min(most * token, mistral.image_processor.size["longest_edge"])
        return {"size": {"longest_edge": longest}, "patch_size": token}

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        mistral: Any = processor
        token, longest = image_arguments["patch_size"], image_arguments["size"]["longest_edge"]
        ratio = max(size[0] / longest, size[1] / longest)
        height, width = (math.floor(side / ratio) if ratio > 1 else side for side in size)
        if min(height, width) < 1:
            raise ShapeError(f"{size[1]} x {size[0]} px; within {longest} px a side it has no width left")
        rows, columns = (math.ceil(side / token) for side in (height, width))
        merge = mistral.spatial_merge_size
        return Picture(
            grid=(rows * merge, columns * merge),
            text_tokens=rows * (columns + 1),
            vision_tokens=rows * columns * merge**2,
        )

    def pixels(self, processor: ProcessorMixin, image: Any, image_arguments: dict[str, Any]) -> torch.Tensor:
        image_processor: Any = processor.image_processor
        pixels: torch.Tensor = image_processor(images=[image], return_tensors="pt", **image_arguments)["pixel_values"]
        return pixels[0]

    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        mistral: Any = processor
        grids = [[self._tokens(processor, picture) for picture in row] for row in pictures]
        self.require_images(processor, ids, [sum(rows * columns for rows, columns in row) for row in grids])
        flat = [tensor for row in tensors for tensor in row]
        if not flat:
            return {}
        sizes = torch.tensor([picture.grid for row in pictures for picture in row]) * mistral.patch_size
        if flat[0].dim() == 2:  # features, of one image after another
            return {"pixel_values": torch.cat(flat), "image_sizes": sizes}
        # Below and to the right of smaller images the batch is blank; the tower cuts that off.
        height, width = (max(tensor.shape[side] for tensor in flat) for side in (1, 2))
        padded = [
            torch.nn.functional.pad(tensor, (0, width - tensor.shape[2], 0, height - tensor.shape[1]))
            for tensor in flat
        ]
        return {"pixel_values": torch.stack(padded), "image_sizes": sizes}

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        self._require_known(config)
        return (picture.vision_tokens, config.vision_config.hidden_size)

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        # One image by itself: of several the tower would compute what each sees of the others, and mask it.
        states: torch.Tensor = tower(pixels[None].to(tower.device, tower.dtype)).last_hidden_state
        return states[0]

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        return BaseModelOutputWithPooling(last_hidden_state=features[None], hidden_states=(features[None],))

    def prepare(self, model: PreTrainedModel) -> None:
        self._require_known(model.config)

    def _tokens(self, processor: ProcessorMixin, picture: Picture) -> tuple[int, int]:
        """The rows and columns of an image's tokens."""
        mistral: Any = processor
        merge: int = mistral.spatial_merge_size
        return picture.grid[0] // merge, picture.grid[1] // merge

    def _require_known(self, config: PretrainedConfig) -> None:
        """Refuses a model that is none of those that this file is about.

        Raises:
            ValueError: it reads other layers of its tower.
        """
        if config.vision_feature_layer != LAYER:
            raise ValueError(
                f"a mistral3 base with vision_feature_layer {config.vision_feature_layer!r}; "
                f"skinvl/model/families/mistral3.py knows those with {LAYER}, such as Ministral 3"
            )


# The tiny twin: what only a random base needs.


INSTRUCTIONS = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set content -%}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'thinking' -%}
{{- '[THINK]' + part.thinking + '[/THINK]' -}}
{%- else -%}
{{- '[IMG]' if part.type == 'image' else part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endset -%}
{%- if message.role == 'system' -%}
{{- '[SYSTEM_PROMPT]' + content + '[/SYSTEM_PROMPT]' -}}
{%- elif message.role == 'user' -%}
{{- '[INST]' + content + '[/INST]' -}}
{%- else -%}
{{- content + '</s>' -}}
{%- endif -%}
{%- endfor -%}
"""


class TinyMistral3(TinyTwin):
    """A tower that turns by rows and columns, and a small Ministral 3, whose RoPE is stretched."""

    tokens = (
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[THINK]",
        "[/THINK]",
    )
    roles: ClassVar = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    template = INSTRUCTIONS

    def config(self, tokenizer: Any) -> PretrainedConfig:
        return Mistral3Config(
            text_config={
                "model_type": "ministral3",
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "max_position_embeddings": 8192,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": 16.0,
                    "original_max_position_embeddings": 512,
                    "max_position_embeddings": 8192,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "mscale_all_dim": 1.0,
                    "mscale": 1.0,
                    "llama_4_scaling_beta": 0.1,
                },
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "tie_word_embeddings": True,
            },
            vision_config={
                "model_type": "pixtral",
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "head_dim": 24,
                "image_size": 1540,
                "patch_size": 14,
            },
            image_token_index=tokenizer.convert_tokens_to_ids(Mistral3.image_token),
            vision_feature_layer=LAYER,
            spatial_merge_size=2,
            tie_word_embeddings=True,
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        return PixtralProcessor(
            image_processor=PixtralImageProcessor(size={"longest_edge": 1540}, patch_size={"height": 14, "width": 14}),
            tokenizer=tokenizer,
            patch_size=14,
            spatial_merge_size=2,
            chat_template=chat_template,
        )


FAMILY = Mistral3(TinyMistral3())
