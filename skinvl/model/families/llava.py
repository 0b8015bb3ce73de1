"""LLaVA-1.5 on Mistral, such as LLaVA-Med v1.5: a CLIP tower of one size, whose patches stand in the language row."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    LlavaConfig,
    LlavaImageProcessor,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from skinvl.model.families import Family, Picture, Size, TinyTwin

PATCH = 14  # px; older processors do not know it, and every released tower has it
LAYER = -2  # the hidden states of the tower that its projector reads, without the class token

# The published turn format: a system turn stands before the question that follows it.
INSTRUCTIONS = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- '<<SYS>>\\n' + (message.content if message.content is string else message.content[0].text) -}}
{{- '\\n<</SYS>>\\n\\n' -}}
{%- elif message.role == 'user' -%}
{{- '[INST] ' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<image>\\n' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{{- ' [/INST]' -}}
{%- else -%}
{{- ' ' + (message.content if message.content is string else message.content[0].text) + '</s>' -}}
{%- endif -%}
{%- endfor -%}
"""


class InRow(Family):
    """What families share whose images stand in the language row and count there as its text does, one by one."""

    one_row = True
    parts: ClassVar = {
        "language": ("model.language_model", "lm_head"),
        "projector": ("model.multi_modal_projector",),
        "vision": ("model.vision_tower",),
    }

    def positions(self, processor: ProcessorMixin, ids: Sequence[int], pictures: Sequence[Picture]) -> torch.Tensor:
        return torch.arange(len(ids))

    def require_images(self, processor: ProcessorMixin, ids: torch.Tensor, expected: Sequence[int]) -> None:
        """Refuses rows that have not so many image tokens each.

        Raises:
            ValueError: another count.
        """
        token = processor.tokenizer.convert_tokens_to_ids(self.soft_token or self.image_token)
        if (counts := (ids == token).sum(-1).tolist()) != list(expected):
            raise ValueError(f"image tokens per row: {counts}; expected {list(expected)} for the rows' images")

    def without_tower(self, config: PretrainedConfig) -> PretrainedConfig:
        config = copy.deepcopy(config)
        config.vision_config.num_hidden_layers = 0
        return config


class OneSize(InRow):
    """What families share whose tower reads images of one size: each takes as many tokens, whatever the budget is."""

    @abstractmethod
    def tokens_of(self, processor: ProcessorMixin) -> int:
        """The positions that an image takes in the language row."""

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        if (tokens := self.tokens_of(processor)) > image_tokens:
            warnings.warn(
                f"data.image_tokens={image_tokens}: {self.model_type} reads images of one size, and each of them takes "
                f"{tokens} tokens",
                stacklevel=3,
            )
        return {}

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
        self.require_images(processor, ids, [sum(picture.text_tokens for picture in row) for row in pictures])
        flat = [tensor for row in tensors for tensor in row]
        return {"pixel_values": torch.stack(flat)} if flat else {}


class Llava(OneSize):
    """LLaVA-1.5 with Mistral."""

    model_type = "llava"
    image_token = "<image>"
    turn_open = "[/INST]"
    turn_close = "</s>"
    flash_attention = True
    prefix_space = True

    def template(self, published: str, thinking: bool = False) -> str:
        # That of a language model alone, which conversions leave beside the weights, shows no image.
        if self.image_token not in published:
            return INSTRUCTIONS
        # The published one knows no turn that is a string. And some engines begin a text themselves, others do not;
        # none begins one twice.
        listed = "message['content'][0]['text']"
        if "is string" not in published:
            published = published.replace(listed, f"(message['content'] if message['content'] is string else {listed})")
        return published if "bos_token" in published else "{{- bos_token -}}\n" + published

    def prepare_processor(self, processor: ProcessorMixin) -> None:
        llava: Any = processor
        images = llava.image_processor
        side = images.crop_size["height"]
        # Trained on images padded to a square; the published processor cuts the ends off instead.
        llava.image_processor = LlavaImageProcessor(
            do_pad=True,
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            resample=images.resample,
            image_mean=images.image_mean,
            image_std=images.image_std,
        )
        llava.patch_size = llava.patch_size or PATCH
        llava.num_additional_image_tokens, llava.vision_feature_select_strategy = 1, "default"

    def tokens_of(self, processor: ProcessorMixin) -> int:
        llava: Any = processor
        tokens: int = (llava.image_processor.crop_size["height"] // llava.patch_size) ** 2
        return tokens

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        tokens = self.tokens_of(processor)
        side = round(tokens**0.5)
        return Picture(grid=(side, side), text_tokens=tokens, vision_tokens=tokens + 1)

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        self._require_known(config)
        return (picture.text_tokens, config.vision_config.hidden_size)

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        return self.encode_each(tower, [picture], [pixels])[0]

    def encode_each(
        self, tower: PreTrainedModel, pictures: Sequence[Picture], pixels: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        outputs = tower(torch.stack(list(pixels)).to(tower.device, tower.dtype), output_hidden_states=LAYER)
        return list(outputs.hidden_states[LAYER][:, 1:])

    def unread(self, vision: PretrainedConfig) -> tuple[str, ...]:
        layers = range(vision.num_hidden_layers + 1 + LAYER, vision.num_hidden_layers)
        return (*(f"encoder.layers.{layer}" for layer in layers), "post_layernorm")

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        states = torch.nn.functional.pad(features, (0, 0, 1, 0))  # the model takes the class token away
        return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=(states,) * -LAYER)

    def prepare(self, model: PreTrainedModel) -> None:
        self._require_known(model.config)

    def _require_known(self, config: PretrainedConfig) -> None:
        """Refuses a model that is none of those that this file is about.

        Raises:
            ValueError: it reads other layers of its tower, or speaks another language model's turns.
        """
        for name, value, expected in (
            ("text_config.model_type", config.text_config.model_type, "mistral"),
            ("vision_feature_layer", config.vision_feature_layer, LAYER),
            ("vision_feature_select_strategy", config.vision_feature_select_strategy, "default"),
        ):
            if value != expected:
                raise ValueError(
                    f"a llava base with {name} {value!r}; skinvl/model/families/llava.py knows those with "
                    f"{expected!r}, such as LLaVA-Med v1.5"
                )


# The tiny twin: what only a random base needs.


class TinyLlava(TinyTwin):
    """A CLIP tower of 4 x 4 patches and a small Mistral."""

    tokens = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
    roles: ClassVar = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    template = INSTRUCTIONS

    def config(self, tokenizer: Any) -> PretrainedConfig:
        return LlavaConfig(
            text_config={
                "model_type": "mistral",
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "max_position_embeddings": 8192,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_window": None,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "model_type": "clip_vision_model",
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 4 * PATCH,
                "patch_size": PATCH,
            },
            image_token_index=tokenizer.convert_tokens_to_ids(Llava.image_token),
            vision_feature_layer=LAYER,
            vision_feature_select_strategy="default",
            image_seq_length=16,
            tie_word_embeddings=False,
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        side = 4 * PATCH
        return LlavaProcessor(
            image_processor=LlavaImageProcessor(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True
            ),
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template,
        )


FAMILY = Llava(TinyLlava())
