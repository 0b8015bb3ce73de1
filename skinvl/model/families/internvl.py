"""InternVL 3 and 3.5 in Hugging Face's form: tiles of an image and, of several, a view of the whole beside them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.utils.chat_template_utils import render_jinja_template
from transformers.utils.generic import ModelOutput

from skinvl.model.families import Picture, Size, TinyTwin
from skinvl.model.families.llava import InRow

PATCH = 14  # px; the processor does not know it, and every released tower has it
MERGE = 2  # patches along each side of the square that one token stands for
TEXT = ("qwen2", "qwen3")  # the language models of InternVL3 and of InternVL3.5; its others are mixtures of experts

# What the published templates write of two turns, by description: they were not at hand.
ASKED: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    {"role": "user", "content": [{"type": "text", "text": "R"}]},
]
WRITTEN = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nQ<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
)


class InternVL(InRow):
    """InternVL3 and InternVL3.5, of whichever dense language model."""

    model_type = "internvl"
    image_token = "<IMG_CONTEXT>"
    turn_open = "<|im_start|>assistant\n"
    turn_close = "<|im_end|>"
    flash_attention = True

    def template(self, published: str, thinking: bool = False) -> str:
        rendered: Any = render_jinja_template([ASKED], chat_template=published, add_generation_prompt=True)
        written: str = rendered[0][0]  # of the first conversation; beside them stands what was generated
        if written != WRITTEN:
            raise ValueError(
                f"the chat template of this internvl base writes {written!r} of two turns; expected {WRITTEN!r}. "
                "Use the base's repository in Hugging Face's form (…-HF, …-hf), or put its chat_template.jinja there"
            )
        return published

    def spelled(self, text: str) -> str:
        return text.replace(self.image_token, f"<img>{self.image_token}</img>")

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        internvl: Any = processor
        each = internvl.image_seq_length
        if each > image_tokens:
            warnings.warn(
                f"data.image_tokens={image_tokens}: {self.model_type} reads tiles of one size, and the one that an "
                f"image has at least takes {each} tokens",
                stacklevel=2,
            )
        # Several tiles come with a view of the whole, which takes as many tokens as any of them.
        tiles = min(image_tokens // each - 1, internvl.image_processor.max_patches)
        return {"crop_to_patches": True, "min_patches": 1, "max_patches": max(tiles, 1)}

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        internvl: Any = processor
        side = internvl.image_processor.size["height"]
        columns, rows = get_optimal_tiled_canvas(size, (side, side), 1, image_arguments["max_patches"])
        tiles = _views(rows, columns)
        return Picture(
            grid=(rows, columns),
            text_tokens=tiles * internvl.image_seq_length,
            vision_tokens=tiles * ((side // PATCH) ** 2 + 1),
        )

    def pixels(self, processor: ProcessorMixin, image: Any, image_arguments: dict[str, Any]) -> torch.Tensor:
        image_processor: Any = processor.image_processor
        tiles: torch.Tensor = image_processor(images=[image], return_tensors="pt", **image_arguments)["pixel_values"]
        return tiles

    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        self.require_images(processor, ids, [sum(picture.text_tokens for picture in row) for row in pictures])
        flat = [tensor for row in tensors for tensor in row]
        return {"pixel_values": torch.cat(flat)} if flat else {}

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        self._require_known(config)
        return (picture.vision_tokens - _views(*picture.grid), config.vision_config.hidden_size)

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        return self.encode_each(tower, [picture], [pixels])[0]

    def encode_each(
        self, tower: PreTrainedModel, pictures: Sequence[Picture], pixels: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        states = tower(torch.cat(list(pixels)).to(tower.device, tower.dtype)).last_hidden_state[:, 1:]
        tiles = torch.split(states, [_views(*picture.grid) for picture in pictures])
        return [each.flatten(0, 1) for each in tiles]

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        config: Any = tower.config
        patches = (config.image_size[0] // PATCH) * (config.image_size[1] // PATCH)
        states = features.reshape(-1, patches, features.shape[-1])
        # The model takes the class token away.
        return BaseModelOutputWithPooling(last_hidden_state=torch.nn.functional.pad(states, (0, 0, 1, 0)))

    def prepare(self, model: PreTrainedModel) -> None:
        self._require_known(model.config)

    def _require_known(self, config: PretrainedConfig) -> None:
        """Refuses a model that is none of those that this file is about.

        Raises:
            ValueError: it reads other layers of its tower, or has a language model of another kind.
        """
        for name, value, expected in (
            ("text_config.model_type", config.text_config.model_type, TEXT),
            ("vision_feature_layer", config.vision_feature_layer, (-1,)),
            ("vision_feature_select_strategy", config.vision_feature_select_strategy, ("default",)),
            ("downsample_ratio", config.downsample_ratio, (1 / MERGE,)),
        ):
            if value not in expected:
                raise ValueError(
                    f"an internvl base with {name} {value!r}; skinvl/model/families/internvl.py knows those with "
                    f"{' or '.join(map(repr, expected))}, such as InternVL3.5-8B"
                )


def _views(rows: int, columns: int) -> int:
    """How many tiles show an image: of several one more shows it whole."""
    return rows * columns + (rows * columns > 1)


# The tiny twin: what only a random base needs.


# As the published ones are described to write a conversation.
LINES = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<IMG_CONTEXT>\\n' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""


class TinyInternVL(TinyTwin):
    """Tiles of 4 x 4 patches, 4 tokens each, and a small Qwen3."""

    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    roles: ClassVar = {
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "start_image": "<img>",
        "end_image": "</img>",
        "context_image": "<IMG_CONTEXT>",
        "video": "<video>",
    }
    template = LINES

    def config(self, tokenizer: Any) -> PretrainedConfig:
        return InternVLConfig(
            text_config={
                "model_type": "qwen3",
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "max_position_embeddings": 8192,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "attention_bias": True,
                "image_size": [4 * PATCH, 4 * PATCH],
                "patch_size": [PATCH, PATCH],
            },
            image_token_id=tokenizer.convert_tokens_to_ids(InternVL.image_token),
            image_seq_length=4,
            tie_word_embeddings=False,
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        side = {"height": 4 * PATCH, "width": 4 * PATCH}
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(size=side),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(size=side),
            image_seq_length=4,
            chat_template=chat_template,
        )

    def prepare(self, model: PreTrainedModel) -> None:
        # Layers of a new tower add a tenth of what they say, and its positions are alike.
        for name, parameter in model.named_parameters():
            if name.endswith((".lambda_1", ".lambda_2")):
                torch.nn.init.constant_(parameter, 1.0)
            elif name.endswith((".position_embeddings", ".cls_token")):
                torch.nn.init.normal_(parameter, std=0.2)


FAMILY = InternVL(TinyInternVL())
