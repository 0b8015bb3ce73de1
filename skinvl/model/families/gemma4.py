"""Gemma 4: an image keeps its shape within one of five budgets; the last layers may read the keys of earlier ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextAttention
from transformers.utils.generic import ModelOutput

from skinvl.model.families import Picture, ShapeError, Size, Thoughts, TinyTwin
from skinvl.model.families.llava import InRow

BUDGETS = (70, 140, 280, 560, 1120)  # soft tokens; the image processor takes no other
TURN = "<|turn>model\n"
NO_THOUGHT = "<|channel>thought\n<channel|>"  # what the larger ones are asked to answer behind, where none is wanted
OPENING = r"{{- '<|turn>' + role + '\n' }}"  # where the published templates open a turn
# What stands behind it then, in the words of the published ones.
THOUGHT = r"""
{%- if role == 'model' -%}
{%- set own_thought = message.get('reasoning') or message.get('reasoning_content') -%}
{%- if enable_thinking and own_thought -%}
{{- '<|channel>thought\n' + own_thought + '\n<channel|>' -}}
{%- elif empty_thought and not enable_thinking -%}
{{- '<|channel>thought\n<channel|>' -}}
{%- endif -%}
{%- endif -%}"""


class Gemma4(InRow):
    """Gemma 4 without experts: E2B, E4B and 31B."""

    model_type = "gemma4"
    image_token = "<|image|>"
    turn_open = TURN
    turn_close = "<turn|>"
    # In some layers of some sizes, which `prepare` tells from the others. An image lies within the prefix, whole.
    looks_ahead = True
    flash_attention = False  # its kernels are causal, and take no head as wide as those of the global layers
    trims = True
    thoughts = Thoughts(
        TURN, "<|channel>thought\n", "\n<channel|>", marks=("<|channel>", "<channel|>"), parser="gemma4"
    )
    parts: ClassVar = {
        "language": ("model.language_model", "lm_head"),
        "projector": ("model.embed_vision",),
        "vision": ("model.vision_tower",),
        "audio": ("model.audio_tower", "model.embed_audio"),  # of the small ones; it is kept, and nothing trains it
    }

    def template(self, published: str, thinking: bool = False) -> str:
        # Published, its caller decides whether the generation prompt asks for a thought and, of the larger ones, ends
        # with an empty one, which no earlier answer is shown with; the thought of an answer is left out, or of the last
        # alone kept. What an answer is trained on would not be what its question is asked with.
        for before in (False, True):
            for empty in (False, True):
                published = published.removeprefix(_pin(before, empty))
        if THOUGHT not in published:
            published = published.replace(OPENING, OPENING + THOUGHT)
            theirs = "{%- set thinking_text = message.get('reasoning') or message.get('reasoning_content') -%}"
            published = published.replace(theirs, "{%- set thinking_text = none -%}")
        return _pin(thinking, "{%- if not enable_thinking" in published) + published

    def opens(self, template: str) -> str:
        return TURN + NO_THOUGHT if template.startswith(_pin(False, True)) else TURN

    def spelled(self, text: str) -> str:
        return text.replace(self.image_token, f"<|image>{self.image_token}<image|>")

    def image_arguments(self, processor: ProcessorMixin, image_tokens: int) -> dict[str, Any]:
        if image_tokens < BUDGETS[0]:
            warnings.warn(
                f"data.image_tokens={image_tokens}: the smallest budget of {self.model_type} is {BUDGETS[0]}, and an "
                "image is enlarged to it",
                stacklevel=2,
            )
        return {"max_soft_tokens": max((budget for budget in BUDGETS if budget <= image_tokens), default=BUDGETS[0])}

    def picture(self, processor: ProcessorMixin, size: Size, image_arguments: dict[str, Any]) -> Picture:
        image_processor: Any = processor.image_processor
        patch, pooling = image_processor.patch_size, image_processor.pooling_kernel_size
        if max(size) > (tokens := image_arguments["max_soft_tokens"]) * min(size):
            raise ShapeError(f"{size[1]} x {size[0]} px; {tokens} tokens in a row would not be as elongated")
        height, width = get_aspect_ratio_preserving_size(*size, patch, tokens * pooling**2, pooling)
        grid = (height // patch, width // patch)
        return Picture(grid, grid[0] * grid[1] // pooling**2, grid[0] * grid[1])

    def pixels(self, processor: ProcessorMixin, image: Any, image_arguments: dict[str, Any]) -> torch.Tensor:
        image_processor: Any = processor.image_processor
        made = image_processor(images=[image], return_tensors="pt", **image_arguments)
        own = (made["image_position_ids"][0] != -1).all(-1)  # the rest is padding to the budget
        pixels: torch.Tensor = made["pixel_values"][0][own]
        return pixels

    def inputs(
        self,
        processor: ProcessorMixin,
        ids: torch.Tensor,
        pictures: Sequence[Sequence[Picture]],
        tensors: Sequence[Sequence[torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        gemma: Any = processor
        self.require_images(processor, ids, [sum(picture.text_tokens for picture in row) for row in pictures])
        shown = [picture for row in pictures for picture in row]
        flat = [tensor for row in tensors for tensor in row]
        if not flat:
            return {}
        if len(flat[0]) != shown[0].vision_tokens:
            flat = [_folded(tensor, gemma.image_processor.pooling_kernel_size**2) for tensor in flat]
        # Padded to the longest of the batch, where the processor pads to the budget.
        longest = max(picture.vision_tokens for picture in shown)
        rest = [longest - picture.vision_tokens for picture in shown]
        pad = torch.nn.functional.pad
        places = [pad(_places(picture), (0, 0, 0, more), value=-1) for picture, more in zip(shown, rest, strict=True)]
        return {
            "pixel_values": torch.stack([pad(each, (0, 0, 0, more)) for each, more in zip(flat, rest, strict=True)]),
            "image_position_ids": torch.stack(places),
            "mm_token_type_ids": (ids == gemma.tokenizer.convert_tokens_to_ids(self.image_token)).long(),
        }

    def features(self, config: PretrainedConfig, picture: Picture) -> tuple[int, ...]:
        return (picture.text_tokens, config.vision_config.hidden_size)

    def encode(self, tower: PreTrainedModel, picture: Picture, pixels: torch.Tensor) -> torch.Tensor:
        # One image by itself needs no padding.
        places = _places(picture)[None].to(tower.device)
        states: torch.Tensor = tower(pixels[None].to(tower.device), pixel_position_ids=places).last_hidden_state
        return states

    def read(self, tower: PreTrainedModel, features: torch.Tensor, **inputs: torch.Tensor) -> ModelOutput:
        config: Any = tower.config
        own = (inputs["pixel_position_ids"] != -1).all(-1)
        tokens = features[own].reshape(-1, config.pooling_kernel_size**2 * features.shape[-1])
        return BaseModelOutputWithPooling(last_hidden_state=tokens[:, : config.hidden_size])

    def prepare(self, model: PreTrainedModel) -> None:
        text: Any = model.config.text_config
        for name, value, known in (
            ("enable_moe_block", text.enable_moe_block, (False, None)),
            ("use_bidirectional_attention", text.use_bidirectional_attention, ("vision", None)),
        ):
            if value not in known:
                raise ValueError(
                    f"a gemma4 base with {name} {value!r}; skinvl/model/families/gemma4.py knows those with "
                    f"{' or '.join(map(repr, known))}, such as gemma4-e2b and gemma4-31b: layers of experts are no "
                    "linear layers that LoRA could adapt"
                )
        ahead = text.use_bidirectional_attention == "vision"
        for module in model.modules():
            if isinstance(module, Gemma4TextAttention):
                module.looks_ahead = ahead and module.is_sliding  # type: ignore[assignment]

    def kernels(self, kernel: str) -> str | dict[str, str]:
        # transformers refuses PyTorch's own attention for a model whose audio tower has none by it
        # (findings/gemma4-audio-refuses-sdpa.sh).
        return {"": kernel, "audio_config": "eager"}

    def left_out(self, config: PretrainedConfig) -> str:
        text: Any = config.text_config
        first = text.num_hidden_layers - text.num_kv_shared_layers
        if first == text.num_hidden_layers:
            return ""
        kept = [number for number, mode in enumerate(text.kv_sharing_modes) if mode == "store"]
        return (
            f"layers {first} to {text.num_hidden_layers - 1} attend to the keys and values of layers "
            f"{' and '.join(map(str, kept))}: they have no k_proj and v_proj, and none is adapted there"
        )


def _pin(thinking: bool, empty: bool) -> str:
    settings = {"enable_thinking": thinking, "empty_thought": empty}
    return "".join(f"{{%- set {name} = {str(value).lower()} -%}}\n" for name, value in settings.items())


def _places(picture: Picture) -> torch.Tensor:
    """int64[P, 2], of each patch its column and its row."""
    rows, columns = picture.grid
    return torch.stack([torch.arange(columns).repeat(rows), torch.arange(rows).repeat_interleave(columns)], -1)


def _folded(features: torch.Tensor, patches: int) -> torch.Tensor:
    """float[T · patches, W'] of features float[T, W]: a token's over the patches that it is the mean of.

    The model counts an image's tokens by the rows that it is given for the tower.
    """
    width = -(-features.shape[1] // patches)
    padded = torch.nn.functional.pad(features, (0, width * patches - features.shape[1]))
    return padded.reshape(-1, width)


# The tiny twin: what only a random base needs.


# As the published ones of the larger sizes write a conversation.
TURNS = """\
{{- bos_token -}}
{%- set rest = messages -%}
{%- if enable_thinking or messages[0].role == 'system' -%}
{{- '<|turn>system\\n' + ('<|think|>\\n' if enable_thinking else '') -}}
{%- if messages[0].role == 'system' -%}
{%- set rest = messages[1:] -%}
{{- messages[0].content | trim -}}
{%- endif -%}
{{- '<turn|>\\n' -}}
{%- endif -%}
{%- for message in rest -%}
{%- set role = 'model' if message.role == 'assistant' else 'user' -%}
{{- '<|turn>' + role + '\\n' }}
{%- if message.content is string -%}
{{- message.content | trim -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<|image|>' if part.type == 'image' else part.text | trim -}}
{%- endfor -%}
{%- endif -%}
{{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|turn>model\\n' -}}
{%- if not enable_thinking -%}
{{- '<|channel>thought\\n<channel|>' -}}
{%- endif -%}
{%- endif -%}
"""


class TinyGemma4(TinyTwin):
    """A tower that pools 3 x 3 patches; two of four language layers have keys, global ones no values, of their own."""

    tokens = (
        "<pad>",
        "<eos>",
        "<bos>",
        "<|think|>",
        "<|turn>",
        "<turn|>",
        "<|channel>",
        "<channel|>",
        "<|image>",
        "<|image|>",
        "<image|>",
        "<|audio>",
        "<|audio|>",
        "<audio|>",
        "<|video|>",
    )
    roles: ClassVar = {
        "bos": "<bos>",
        "eos": "<eos>",
        "pad": "<pad>",
        "boi": "<|image>",
        "image": "<|image|>",
        "eoi": "<image|>",
        "boa": "<|audio>",
        "audio": "<|audio|>",
        "eoa": "<audio|>",
    }
    template = TURNS

    def config(self, tokenizer: Any) -> PretrainedConfig:
        named = {
            name: tokenizer.convert_tokens_to_ids(self.roles[name])
            for name in ("boi", "image", "eoi", "boa", "audio", "eoa")
        }
        return Gemma4Config(
            text_config={
                "vocab_size": len(tokenizer),
                "vocab_size_per_layer_input": len(tokenizer),
                "hidden_size": 128,
                "hidden_size_per_layer_input": 16,
                "intermediate_size": 192,
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_global_key_value_heads": 1,
                "head_dim": 32,
                "global_head_dim": 48,
                "attention_k_eq_v": True,
                "use_double_wide_mlp": True,
                "use_bidirectional_attention": "vision",
                "final_logit_softcapping": 30.0,
                "max_position_embeddings": 8192,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
                "sliding_window": 80,  # more than an image, less than a conversation
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 24,
                "patch_size": 4,
                "position_embedding_size": 256,
                "use_clipped_linears": True,
                "standardize": True,
            },
            audio_config={
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "subsampling_conv_channels": [4, 4],
                "output_proj_dims": 32,
            },
            video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
            eoa_token_index=named.pop("eoa"),
            **{f"{name}_token_id": token for name, token in named.items()},
            tie_word_embeddings=True,
        )

    def processor(self, tokenizer: Any, chat_template: str) -> ProcessorMixin:
        return Gemma4Processor(
            feature_extractor=Gemma4AudioFeatureExtractor(),
            image_processor=Gemma4ImageProcessor(patch_size=4),
            tokenizer=tokenizer,
            video_processor=Gemma4VideoProcessor(),
            chat_template=chat_template,
        )

    def prepare(self, model: PreTrainedModel) -> None:
        tower: Any = model.get_submodule("model.vision_tower")
        torch.nn.init.zeros_(tower.std_bias)
        torch.nn.init.ones_(tower.std_scale)
        torch.nn.init.normal_(tower.patch_embedder.position_embedding_table, std=0.1)


FAMILY = Gemma4(TinyGemma4())
