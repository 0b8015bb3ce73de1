"""Qwen3.5: as Qwen3-VL without its deepstack; most language layers carry a state along the row (gated delta rule)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, Qwen3_5Config
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from skinvl.model import recurrence
from skinvl.model.families import Thoughts
from skinvl.model.families.qwen2_vl import QwenVL
from skinvl.model.families.qwen3_vl import TinyQwen3VL


class Qwen35(QwenVL):
    """Qwen3.5, and Qwen3.6 and Qwen3.8, which have the same model type."""

    model_type = "qwen3_5"
    # An answer without a thought: the published templates write this block where thinking is switched off.
    turn_open = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    first_turn = "<|im_start|>user\n"
    recurrent = True
    trims = True
    thoughts = Thoughts("<|im_start|>assistant\n<think>\n", "", "\n</think>\n\n", "\n</think>\n\n", parser="qwen3")

    def template(self, published: str, thinking: bool = False) -> str:
        # Published, its caller decides whether the generation prompt opens a thought, and only answers after the last
        # question keep theirs, or an empty one: what an earlier answer is trained on would not be what its question is
        # asked with. Qwen3.8's has a sentence on how hard to think for the system turn, but for a medium effort.
        if "enable_thinking" not in published:
            return published
        for before in (False, True):
            published = published.removeprefix(_pin(before))
        return _pin(thinking) + published.replace("{%- if loop.index0 > ns.last_query_index %}", "{%- if true %}")

    def prepare(self, model: PreTrainedModel) -> None:
        super().prepare(model)
        recurrence.use(model, Qwen3_5GatedDeltaNet)

    def width(self, vision: PretrainedConfig) -> int:
        width: int = vision.hidden_size
        return width


def _pin(thinking: bool) -> str:
    settings = {"enable_thinking": str(thinking).lower(), "preserve_thinking": "true", "reasoning_effort": "'medium'"}
    return "".join(f"{{%- set {name} = {value} -%}}\n" for name, value in settings.items())


# The tiny twin: what only a random base needs.


# As the published ones write a conversation, once `template` has settled them.
THINKING = """\
{%- for message in messages -%}
{%- set content -%}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{%- endset -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{{- '<think>\\n' + message.reasoning_content | default('') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content | trim + '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n<think>\\n' if add_generation_prompt else '' -}}
{{- '\\n</think>\\n\\n' if add_generation_prompt and enable_thinking is false else '' -}}
"""


class TinyQwen35(TinyQwen3VL):
    """Every second language layer attends; the others carry a state, which outlives a hundred tokens."""

    tokens = (*TinyQwen3VL.tokens, "<think>", "</think>")
    template = THINKING

    def config(self, tokenizer: Any) -> PretrainedConfig:
        text = self.text(tokenizer)
        text |= {
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "head_dim": 64,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,  # grouped, as in the larger models
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
        }
        # A quarter of each head turns: 8 frequencies, in turns of time, height and width.
        text["rope_parameters"] |= {
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        }
        return Qwen3_5Config(
            text_config=text,
            vision_config={
                "depth": 4,
                "hidden_size": 96,
                "out_hidden_size": 128,
                "intermediate_size": 192,
                "num_heads": 4,
                "patch_size": 16,
                "num_position_embeddings": 64,
            },
            tie_word_embeddings=True,
            **self.token_ids(tokenizer),
        )

    def prepare(self, model: PreTrainedModel) -> None:
        # A new model forgets within a few tokens, and what it reads of its state is scaled to one size however little
        # that is: rounding decides. Here the heads remember from one token to a hundred, and find what they look for.
        config = model.config.get_text_config()
        size = config.linear_num_key_heads * config.linear_key_head_dim
        for name, parameter in model.named_parameters():
            values = parameter.data
            if name.endswith(".A_log"):
                values.copy_(torch.linspace(-4.6, 0.0, len(values)))
            elif name.endswith(".conv1d.weight"):
                torch.nn.init.normal_(values, std=0.2)
                values[..., -1] += 1
            elif name.endswith(".in_proj_qkv.weight"):
                values[size : 2 * size] = values[:size] + 0.5 * values[size : 2 * size]


FAMILY = Qwen35(TinyQwen35())
