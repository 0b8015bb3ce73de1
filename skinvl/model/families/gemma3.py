"""Gemma 3, such as MedGemma: an image is 256 soft tokens that all see one another; most layers see a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from skinvl.model.families import Picture, Size, TinyTwin
from skinvl.model.families.llava import OneSize

PATCH = 14  # px; the processor does not know it, and every released tower has it


class Gemma3(OneSize):
    """Gemma 3."""

    model_type = "gemma3"
    image_token = "<start_of_image>"
    soft_token = "<image_soft_token>"
    turn_open = "<start_of_turn>model\n"
    turn_close = "<end_of_turn>"
    # An image lies within the prefix that is shared, whole, and no token of it sees a question: sharing is exact.
    looks_ahead = True
    flash_attention = False  # its kernels are causal
    trims = True

    def spelled(self, text: str) -> str:
        return text.replace(self.image_token, f"\n\n{self.image_token}{self.soft_token}<end_of_image>\n\n")

    def tokens_of(self, processor: ProcessorMixin) -> int:
        gemma: Any = processor
        tokens: int = gemma.image_seq_length
        return tokens

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        # Pan and scan would show further views of an elongated image.
        return {**super().image_arguments(processor, image_tokens), "do_pan_and_scan": False}

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        gemma: Any = processor
        side = gemma.image_processor.size["height"] // PATCH
        return Picture(grid=(side, side), text_tokens=self.tokens_of(processor), vision_tokens=side**2)

    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        inputs = super().inputs(processor, ids, pictures, tensors)
        image_positions = ids == processor.tokenizer.convert_tokens_to_ids(self.soft_token)
        return {**inputs, "token_type_ids": image_positions.long()} if inputs else {}

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        return (picture.text_tokens, config.vision_config.hidden_size)

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        return self.encode_each(tower, [picture], [pixels])[0]

    def encode_each(
        self, tower: PreTrainedModel, pictures: Sequence[Picture], pixels: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        picture = pictures[0]  # all are of one size
        states = tower(torch.stack(list(pixels)).to(tower.device, tower.dtype)).last_hidden_state
        patches = states.mT.reshape(len(pixels), -1, *picture.grid)  # [n, W, rows, columns]
        size = picture.grid[0] // round(picture.text_tokens**0.5)
        pooled: torch.Tensor = torch.nn.functional.avg_pool2d(patches, size)  # as the projector begins
        return list(pooled.flatten(2).mT)

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        config: Any = tower.config
        side = round(features.shape[1] ** 0.5)
        size = config.image_size // config.patch_size // side
        # Each soft token's features at all of its patches, whose mean the projector takes again.
        grid = features.reshape(len(features), side, side, -1)
        grid = grid.repeat_interleave(size, 1).repeat_interleave(size, 2)
        return BaseModelOutputWithPooling(last_hidden_state=grid.flatten(1, 2))


# The tiny twin: what only a random base needs.


TURNS = """\
{{- bos_token -}}
{%- set rest = messages -%}
{%- set opening = '' -%}
{%- if messages[0].role == 'system' -%}
{%- set rest = messages[1:] -%}
{%- set system = messages[0].content -%}
{%- set opening = (system if system is string else system[0].text) + '\\n\\n' -%}
{%- endif -%}
{%- for message in rest -%}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' -}}
{{- opening if loop.first else '' -}}
{%- if message.content is string -%}
{{- message.content | trim -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<start_of_image>' if part.type == 'image' else part.text | trim -}}
{%- endfor -%}
{%- endif -%}
{{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{{- '<start_of_turn>model\\n' if add_generation_prompt else '' -}}
"""


class TinyGemma3(TinyTwin):
    """A tower of 8 x 8 patches; most language layers see a window of 24 tokens."""

    tokens = (
        "<pad>",
        "<eos>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    )
    roles: ClassVar = {
        "bos": "<bos>",
        "eos": "<eos>",
        "pad": "<pad>",
        "boi": "<start_of_image>",
        "eoi": "<end_of_image>",
        "image": "<image_soft_token>",
    }
    template = TURNS

    def config(self, tokenizer: Any) -> PretrainedConfig:
        named = {name: tokenizer.convert_tokens_to_ids(self.roles[name]) for name in ("boi", "eoi", "image")}
        return Gemma3Config(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 48,
                "query_pre_attn_scalar": 48,
                "max_position_embeddings": 8192,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
                "sliding_window": 24,  # more than an image, less than a conversation
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 8 * PATCH,
                "patch_size": PATCH,
                "vision_use_head": False,
            },
            mm_tokens_per_image=16,
            **{f"{name}_token_index": token for name, token in named.items()},
            tie_word_embeddings=True,
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        side = 8 * PATCH
        return Gemma3Processor(
            image_processor=Gemma3ImageProcessor(size={"height": side, "width": side}),
            tokenizer=tokenizer,
            image_seq_length=16,
            chat_template=chat_template,
        )

    def prepare(self, model: PreTrainedModel) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("mm_input_projection_weight"):
                torch.nn.init.normal_(parameter, std=parameter.shape[0] ** -0.5)
            elif "language_model" in name and "post_" in name:  # the norms after a layer, which add one to their weight
                torch.nn.init.constant_(parameter, 3.0)  # or a token's own embedding drowns what layers say


FAMILY = Gemma3(TinyGemma3())
