"""Qwen2-VL, and what Qwen2.5-VL and Qwen3-VL share with it: an image stands in the language row, patch by patch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils.generic import ModelOutput

from skinvl.model.families import Family, Picture, ShapeError, Size, TinyTwin

LONGEST_ASPECT = 200  # smart_resize refuses what is more elongated


class QwenVL(Family):
    """The part that all Qwen-VL models share; a subclass brings its configs and processors."""

    image_token = "<|image_pad|>"
    turn_open = "<|im_start|>assistant\n"
    turn_close = "<|im_end|>"
    one_row = True
    flash_attention = True
    parts: ClassVar = {
        "language": ("model.language_model", "lm_head"),
        "projector": ("model.visual.merger",),
        "vision": ("model.visual",),
    }

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        image_processor: Any = processor.image_processor
        longest = image_tokens * (image_processor.patch_size * image_processor.merge_size) ** 2
        # Small images are enlarged to at least the shortest edge (an area, for all its name), each side rounded up:
        # from a quarter of the budget that cannot overshoot unless the image is very elongated, and picture refuses it.
        shortest = min(image_processor.size["shortest_edge"], longest // 4)
        return {"size": {"shortest_edge": shortest, "longest_edge": longest}}

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        image_processor: Any = processor.image_processor
        patch, merge = image_processor.patch_size, image_processor.merge_size
        edges = image_arguments["size"]
        if max(size) > LONGEST_ASPECT * min(size):
            raise ShapeError(f"{size[1]} x {size[0]} px; expected sides of at most {LONGEST_ASPECT} to 1")
        height, width = smart_resize(
            *size, factor=patch * merge, min_pixels=edges["shortest_edge"], max_pixels=edges["longest_edge"]
        )
        grid = (1, height // patch, width // patch)
        patches = grid[1] * grid[2]
        tokens, budget = patches // merge**2, edges["longest_edge"] // (patch * merge) ** 2
        if tokens > budget:
            raise ShapeError(
                f"{size[1]} x {size[0]} px takes {tokens} tokens; expected at most {budget} (data.image_tokens)"
            )
        return Picture(grid=grid, text_tokens=tokens, vision_tokens=patches)

    def positions(self, processor: ProcessorMixin, ids: Sequence[int], pictures: Sequence[Picture]) -> torch.Tensor:
        qwen: Any = processor
        image, merge = qwen.tokenizer.convert_tokens_to_ids(self.image_token), qwen.image_processor.merge_size
        parts, cursor = [], 0  # in the row
        position = 0  # as M-RoPE counts: an image takes its longer side of it
        for picture in pictures:
            # The text before the image counts on, alike in time, height and width.
            start = ids.index(image, cursor)
            parts.append(torch.arange(position, position + start - cursor).expand(3, -1))
            position += start - cursor

            # The image stands at one time, its tokens at their rows and columns.
            height, width = (side // merge for side in picture.grid[1:])
            grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
            parts.append(position + torch.cat([torch.zeros(1, height * width, dtype=torch.long), grid.flatten(1)]))
            position += max(height, width)
            cursor = start + picture.text_tokens
        parts.append(torch.arange(position, position + len(ids) - cursor).expand(3, -1))
        return torch.cat(parts, 1)

    def pixels(self, processor: ProcessorMixin, image: Any, image_arguments: dict[str, Any]) -> torch.Tensor:
        image_processor: Any = processor.image_processor
        patches: torch.Tensor = image_processor(images=[image], return_tensors="pt", **image_arguments)["pixel_values"]
        return patches

    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        image_positions = ids == processor.tokenizer.convert_tokens_to_ids(self.image_token)
        counts = image_positions.sum(-1).tolist()
        expected = [sum(picture.text_tokens for picture in row) for row in pictures]
        if counts != expected:
            raise ValueError(f"image tokens per row: {counts}; expected {expected} for the rows' images")
        flat = [tensor for row in tensors for tensor in row]
        if not flat:
            return {}
        return {
            "pixel_values": torch.cat(flat),
            "image_grid_thw": torch.tensor([picture.grid for row in pictures for picture in row]),
            "mm_token_type_ids": image_positions.long(),
        }

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        return (picture.vision_tokens, self.width(config.vision_config))

    def width(self, vision: PretrainedConfig) -> int:
        """How many numbers leave the tower for each patch."""
        width: int = vision.embed_dim
        return width

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        return self.encode_each(tower, [picture], [pixels])[0]

    def encode_each(
        self, tower: PreTrainedModel, pictures: Sequence[Picture], pixels: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        hooks = [
            merger.register_forward_pre_hook(lambda merger, inputs: features.append(inputs[0]))
            for merger in self.within(tower)
        ]
        try:
            grids = torch.tensor([picture.grid for picture in pictures], device=tower.device)
            tower(torch.cat(list(pixels)).to(tower.device, tower.dtype), grid_thw=grids)
        finally:
            for hook in hooks:
                hook.remove()
        return list(torch.split(torch.cat(features, -1), [picture.vision_tokens for picture in pictures]))

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        merger: Any = tower.merger
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=merger(features))

    def without_tower(self, config: PretrainedConfig) -> PretrainedConfig:
        config = copy.deepcopy(config)
        config.vision_config.depth = 0
        return config


class Qwen2VL(QwenVL):
    """Qwen2-VL."""

    model_type = "qwen2_vl"


# The tiny twin: what only a random base needs.


CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""


class TinyQwenVL(TinyTwin):
    """What the twins of all Qwen-VL models share."""

    tokens: tuple[str, ...] = (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    roles: ClassVar = {"eos": "<|im_end|>", "pad": "<|endoftext|>"}
    template = CHATML

    def text(self, tokenizer: Any) -> dict[str, Any]:
        """The language part of a config: grouped key-value heads of 32, turned by time, height and width (M-RoPE)."""
        return {
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }

    def token_ids(self, tokenizer: Any) -> dict[str, Any]:
        """The ids by which a config knows the vision tokens."""
        names = ("image_pad", "video_pad", "vision_start", "vision_end")
        keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in zip(keys, names, strict=True)}


class TinyQwen2VL(TinyQwenVL):
    """Two tower layers, four language layers."""

    def config(self, tokenizer: Any) -> PretrainedConfig:
        return Qwen2VLConfig(
            text_config=self.text(tokenizer),
            vision_config={
                "depth": 2,
                "embed_dim": 96,
                "hidden_size": 128,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 14,
            },
            tie_word_embeddings=True,
            **self.token_ids(tokenizer),
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        return Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(),
            chat_template=chat_template,
        )


FAMILY = Qwen2VL(TinyQwen2VL())
