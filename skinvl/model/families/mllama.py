"""Llama 3.2 Vision: an image is one token in the language row; some layers attend to its tiles from there on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    MllamaConfig,
    MllamaImageProcessor,
    MllamaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.image_processing_mllama import (
    build_aspect_ratio_mask,
    convert_aspect_ratios_to_ids,
    get_optimal_tiled_canvas,
)
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)
from transformers.utils.generic import ModelOutput

from skinvl.model.families import Family, Picture, Size, TinyTwin

PATCH = 14  # px; the image processor does not know it, and every released tower has it
TOKEN = 28  # px: the side of the square that one token stands for in Qwen2-VL, so that one budget fits all families


class Mllama(Family):
    """Llama 3.2 Vision."""

    model_type = "mllama"
    image_token = "<|image|>"
    turn_open = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    turn_close = "<|eot_id|>"
    one_row = False  # every position of a row reads all of the row's images
    caches = False  # 98 MB of features for each image
    flash_attention = False
    parts: ClassVar = {
        "language": ("model.language_model", "lm_head"),
        "projector": ("model.multi_modal_projector",),
        "vision": ("model.vision_model",),
    }

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        image_processor: Any = processor.image_processor
        tile = (image_processor.size["height"] // TOKEN) ** 2
        return {"max_image_tiles": min(max(image_tokens // tile, 1), image_processor.max_image_tiles)}

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        image_processor: Any = processor.image_processor
        tile = image_processor.size["height"]
        height, width = get_optimal_tiled_canvas(*size, image_arguments["max_image_tiles"], tile)
        positions = (tile // PATCH) ** 2 + 1
        # The tower pads each tile to a multiple of 8 positions, and every image to all the tiles it was built for.
        return Picture(
            grid=(int(height) // tile, int(width) // tile),
            text_tokens=1,
            vision_tokens=image_processor.max_image_tiles * (positions + -positions % 8),
        )

    def positions(self, processor: ProcessorMixin, ids: Sequence[int], pictures: Sequence[Picture]) -> torch.Tensor:
        return torch.arange(len(ids))

    def pixels(self, processor: ProcessorMixin, image: Any, image_arguments: dict[str, Any]) -> torch.Tensor:
        image_processor: Any = processor.image_processor
        rows, columns = self.picture(processor, (image.height, image.width), image_arguments).grid
        tiles: torch.Tensor = image_processor(images=[[image]], return_tensors="pt", **image_arguments)["pixel_values"]
        return tiles[0, 0, : rows * columns]

    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        image_processor: Any = processor.image_processor
        image_id = processor.tokenizer.convert_tokens_to_ids(self.image_token)
        counts, expected = (ids == image_id).sum(-1).tolist(), [len(row) for row in pictures]
        if counts != expected:
            raise ValueError(f"image tokens per row: {counts}; expected {expected}, one for each image of the row")
        flat = [tensor for row in tensors for tensor in row]
        if not flat:
            return {}
        # Ids, masks and tile embeddings count in the tiles that the model was built for, whatever the budget is.
        tiles = image_processor.max_image_tiles
        values = flat[0].new_zeros(len(pictures), max(counts), tiles, *flat[0].shape[1:])
        for row, images in enumerate(tensors):
            for number, tensor in enumerate(images):
                values[row, number, : len(tensor)] = tensor

        # Which of an image's tiles there are, and from which token on the row's text may read them.
        grids = [[(picture.grid[0], picture.grid[1]) for picture in row] for row in pictures]
        mask = convert_sparse_cross_attention_mask_to_dense(
            [get_cross_attention_token_mask(row, image_id) for row in ids.tolist()],
            num_tiles=[[rows * columns for rows, columns in row] for row in grids],
            max_num_tiles=tiles,
            length=ids.shape[1],
        )
        return {
            "pixel_values": values,
            "aspect_ratio_ids": convert_aspect_ratios_to_ids(grids, tiles),
            "aspect_ratio_mask": build_aspect_ratio_mask(grids, tiles),
            "cross_attention_mask": torch.from_numpy(mask),
        }

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        vision: Any = config.vision_config
        positions = (vision.image_size // vision.patch_size) ** 2 + 1
        # Of the tiles that the image does not fill too: tokens that stand before it read them.
        return (vision.max_num_tiles, positions, vision.vision_output_dim)

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        return self.encode_each(tower, [picture], [pixels])[0]

    def encode_each(
        self, tower: PreTrainedModel, pictures: Sequence[Picture], pixels: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        config: Any = tower.config
        tiles = pixels[0].new_zeros(len(pixels), 1, config.max_num_tiles, *pixels[0].shape[1:])
        for row, each in enumerate(pixels):
            tiles[row, 0, : len(each)] = each
        grids = [[(picture.grid[0], picture.grid[1])] for picture in pictures]
        outputs = tower(
            tiles.to(tower.device),
            aspect_ratio_ids=convert_aspect_ratios_to_ids(grids, config.max_num_tiles).to(tower.device),
            aspect_ratio_mask=build_aspect_ratio_mask(grids, config.max_num_tiles).to(tower.device),
        )
        return list(outputs.last_hidden_state[:, 0])

    def shown(self, picture: Picture, features: torch.Tensor) -> torch.Tensor:
        return features[: picture.grid[0] * picture.grid[1]].flatten(0, 1)

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        return BaseModelOutput(last_hidden_state=features)

    def without_tower(self, config: PretrainedConfig) -> PretrainedConfig:
        config = copy.deepcopy(config)
        config.vision_config.num_hidden_layers = config.vision_config.num_global_layers = 0
        return config

    def branch(self, layer: int, config: PretrainedConfig) -> bool:
        return layer not in config.text_config.cross_attention_layers

    def step(self, inputs: Mapping[str, torch.Tensor], rows: torch.Tensor, last: torch.Tensor) -> dict[str, Any]:
        mask = inputs.get("cross_attention_mask")
        return {} if mask is None else {"cross_attention_mask": mask[rows, last][:, None]}

    def prepare(self, model: PreTrainedModel) -> None:
        model.get_submodule("model.language_model").register_forward_pre_hook(
            _hide_padding(model.config), with_kwargs=True
        )


def _hide_padding(config: PretrainedConfig) -> Any:
    """A hook that keeps a row's text from reading the blank images that only the shape of the batch asks for.

    A token that stands before its row's images is masked from all of them, and the architecture then lets it attend
    to every one, blank ones included; a row without images would read nothing but blanks. Alone in a batch, the row
    has no blanks: those columns are masked here, and a row of blanks alone reads zeros, which add nothing.
    """
    vision = config.vision_config
    per_tile = (vision.image_size // vision.patch_size) ** 2 + 1
    per_image = vision.max_num_tiles * per_tile

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask, states = kwargs.get("cross_attention_mask"), kwargs.get("cross_attention_states")
        if mask is None or states is None:
            return None
        rows = kwargs["full_text_row_masked_out_mask"].bool()  # [B, 1, T, 1]: tokens that some image is meant for
        tiles = ((mask[..., ::per_tile] == 0) & rows).any(dim=2)  # bool[B, 1, images * tiles]
        seen = tiles.view(mask.shape[0], -1, vision.max_num_tiles).any(-1)  # bool[B, images]
        if seen.all():
            return None
        reads = seen.any(-1)  # bool[B]: whether a row reads any image

        # The blank images of such a row are masked; all that the other rows could read becomes zero.
        hidden = (~seen & reads[:, None]).repeat_interleave(per_image, dim=1)[:, None, None]  # bool[B, 1, 1, columns]
        states = states.view(mask.shape[0], -1, *states.shape[1:]) * reads.view(-1, 1, 1, 1)
        kwargs["cross_attention_mask"] = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
        kwargs["cross_attention_states"] = states.flatten(0, 1)
        return args, kwargs

    return hook


# The tiny twin: what only a random base needs.


HEADERS = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<|image|>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt else '' -}}
"""


class TinyMllama(TinyTwin):
    """Tiles of 4 x 4 patches; two of six language layers attend to them, through gates that are open."""

    tokens = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",  # the last id: one past the rows of lm_head
    )
    roles: ClassVar = {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "pad": "<|finetune_right_pad_id|>"}
    template = HEADERS

    def config(self, tokenizer: Any) -> PretrainedConfig:
        image = tokenizer.convert_tokens_to_ids(Mllama.image_token)
        return MllamaConfig(
            text_config={
                "vocab_size": image,
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "cross_attention_layers": [1, 4],
                "max_position_embeddings": 16384,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 4,
                "num_global_layers": 2,
                "attention_heads": 4,
                "image_size": 56,
                "patch_size": PATCH,
                "max_num_tiles": 4,
                "intermediate_layers_indices": [0, 2],
                "vision_output_dim": 64 * 3,  # the last layer and the two intermediate ones
            },
            image_token_index=image,
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        return MllamaProcessor(
            image_processor=MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=4),
            tokenizer=tokenizer,
            chat_template=chat_template,
        )

    def prepare(self, model: PreTrainedModel) -> None:
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1] in (
                "gate",
                "gate_attn",
                "gate_ffn",
                "cross_attn_attn_gate",
                "cross_attn_mlp_gate",
            ):
                torch.nn.init.constant_(parameter, 0.5)


FAMILY = Mllama(TinyMllama())
