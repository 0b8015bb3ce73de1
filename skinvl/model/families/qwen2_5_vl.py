"""Qwen2.5-VL: as Qwen2-VL, with most layers of the vision tower attending within windows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput
from transformers.vision_utils import get_vision_window_index

from skinvl.model.families.qwen2_vl import QwenVL, TinyQwenVL


class Qwen25VL(QwenVL):
    """Qwen2.5-VL."""

    model_type = "qwen2_5_vl"

    def width(self, vision: PretrainedConfig) -> int:
        width: int = vision.hidden_size
        return width

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        config: Any = tower.config
        merger: Any = tower.merger
        index, _ = get_vision_window_index(
            inputs["grid_thw"], config.spatial_merge_size, config.window_size, config.patch_size
        )
        # The tower leaves its patches in the order of its windows.
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=merger(features)[index.argsort()])


# The tiny twin: what only a random base needs.


class TinyQwen25VL(TinyQwenVL):
    """Four windows of the tower to an image, and whole-image attention in every second of its layers."""

    def config(self, tokenizer: Any) -> PretrainedConfig:
        return Qwen2_5_VLConfig(
            text_config=self.text(tokenizer),
            vision_config={
                "depth": 4,
                "hidden_size": 96,
                "out_hidden_size": 128,
                "intermediate_size": 192,
                "num_heads": 4,
                "patch_size": 14,
                "window_size": 56,  # px: a demo image is cut into four windows
                "fullatt_block_indexes": [1, 3],
            },
            tie_word_embeddings=False,
            **self.token_ids(tokenizer),
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(),
            chat_template=chat_template,
        )


FAMILY = Qwen25VL(TinyQwen25VL())
