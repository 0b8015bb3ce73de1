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

from skinvl.model.families import Family, Picture, ShapeError, Size

LONGEST_ASPECT = 200  # smart_resize refuses what is more elongated

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


class QwenVL(Family):
    """The part that all Qwen-VL models share; a subclass brings its configs and processors."""

    image_token = "<|image_pad|>"
    turn_open = "<|im_start|>assistant\n"
    turn_close = "<|im_end|>"
    one_row = True
    flash_attention = True
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
    tiny_template = CHATML
    parts: ClassVar = {
        "language": ("model.language_model", "lm_head"),
        "projector": ("model.visual.merger",),
        "vision": ("model.visual",),
    }

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        made: Any = processor.image_processor
        longest = image_tokens * (made.patch_size * made.merge_size) ** 2
        # Small images are enlarged to at least the shortest edge (an area, for all its name), each side rounded up:
        # from a quarter of the budget that cannot overshoot unless the image is very elongated, and picture refuses it.
        return {"size": {"shortest_edge": min(made.size["shortest_edge"], longest // 4), "longest_edge": longest}}

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        made: Any = processor.image_processor
        patch, merge = made.patch_size, made.merge_size
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
        made: Any = processor
        image, merge = made.tokenizer.convert_tokens_to_ids(self.image_token), made.image_processor.merge_size
        parts, cursor, place = [], 0, 0  # in the row, and what M-RoPE counts: an image takes its longer side of it
        for picture in pictures:
            start = ids.index(image, cursor)
            parts.append(torch.arange(place, place + start - cursor).expand(3, -1))
            place += start - cursor
            height, width = (side // merge for side in picture.grid[1:])
            grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
            parts.append(place + torch.cat([torch.zeros(1, height * width, dtype=torch.long), grid.flatten(1)]))
            place += max(height, width)
            cursor = start + picture.text_tokens
        parts.append(torch.arange(place, place + len(ids) - cursor).expand(3, -1))
        return torch.cat(parts, 1)

    def pixels(self, processor: ProcessorMixin, image: Any, image_arguments: dict[str, Any]) -> torch.Tensor:
        made: Any = processor.image_processor
        found: torch.Tensor = made(images=[image], return_tensors="pt", **image_arguments)["pixel_values"]
        return found

    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        image_positions = ids == processor.tokenizer.convert_tokens_to_ids(self.image_token)
        found, counts = image_positions.sum(-1).tolist(), [sum(one.text_tokens for one in row) for row in pictures]
        if found != counts:
            raise ValueError(f"image tokens per row: {found}; expected {counts} for the rows' images")
        flat = [tensor for row in tensors for tensor in row]
        if not flat:
            return {}
        return {
            "pixel_values": torch.cat(flat),
            "image_grid_thw": torch.tensor([one.grid for row in pictures for one in row]),
            "mm_token_type_ids": image_positions.long(),
        }

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        return (picture.vision_tokens, self.width(config.vision_config))

    def width(self, vision: PretrainedConfig) -> int:
        """How many numbers leave the tower for each patch."""
        width: int = vision.embed_dim
        return width

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hooks = [
            module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
            for module in self.within(tower)
        ]
        try:
            tower(pixels.to(tower.device, tower.dtype), grid_thw=torch.tensor([picture.grid], device=tower.device))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(seen, -1)

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        merger: Any = tower.merger
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=merger(features))

    def without_tower(self, config: PretrainedConfig) -> PretrainedConfig:
        found = copy.deepcopy(config)
        found.vision_config.depth = 0
        return found

    def tiny(self, tokenizer: Any) -> PretrainedConfig:
        return Qwen2VLConfig(
            text_config=self.tiny_text(tokenizer),
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

    def tiny_text(self, tokenizer: Any) -> dict[str, Any]:
        """The language part of `tiny`: grouped key-value heads of 32, turned by time, height and width (M-RoPE)."""
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

    def tiny_processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        return Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(),
            chat_template=chat_template,
        )


class Qwen2VL(QwenVL):
    """Qwen2-VL."""

    model_type = "qwen2_vl"


FAMILY = Qwen2VL()
