"""Qwen3-VL: as Qwen2-VL, with features of several tower layers added to the first language layers (deepstack)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.utils.generic import ModelOutput

from skinvl.model.families.qwen2_vl import QwenVL, TinyQwenVL


class Qwen3VL(QwenVL):
    """Qwen3-VL."""

    model_type = "qwen3_vl"
    parts: ClassVar = {**QwenVL.parts, "projector": ("model.visual.merger", "model.visual.deepstack_merger_list")}

    def width(self, vision: PretrainedConfig) -> int:
        width: int = vision.hidden_size * (len(vision.deepstack_visual_indexes) + 1)
        return width

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        mergers: Any = tower.deepstack_merger_list
        *early, last = features.chunk(len(mergers) + 1, -1)
        return BaseModelOutputWithDeepstackFeatures(
            **super().read(tower, last),
            deepstack_features=[merger(part.contiguous()) for merger, part in zip(mergers, early, strict=True)],
        )


# The tiny twin: what only a random base needs.


class TinyQwen3VL(TinyQwenVL):
    """Two tower layers whose features go to the first two language layers."""

    def config(self, tokenizer: Any) -> PretrainedConfig:
        text = self.text(tokenizer)
        text["head_dim"] = 48
        text["rope_parameters"] |= {"mrope_section": [8, 8, 8], "mrope_interleaved": True}
        return Qwen3VLConfig(
            text_config=text,
            vision_config={
                "depth": 4,
                "hidden_size": 96,
                "out_hidden_size": 128,
                "intermediate_size": 192,
                "num_heads": 4,
                "patch_size": 16,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [1, 3],  # tower layers 1 and 3 go to language layers 0 and 1
            },
            tie_word_embeddings=True,
            **self.token_ids(tokenizer),
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        middle = [0.5, 0.5, 0.5]
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(
                patch_size=16,
                image_mean=middle,
                image_std=middle,
                size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
            ),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(),
            chat_template=chat_template,
        )


FAMILY = Qwen3VL(TinyQwen3VL())
