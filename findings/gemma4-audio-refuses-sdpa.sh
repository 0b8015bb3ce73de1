#!/usr/bin/env bash
# Gemma 4 with its audio tower loads by default and is refused by the name of the attention that it then runs with.
#
# Versions: transformers 5.23.0, torch 2.15.0, Python 3.11, Linux x86-64.
#
# Loaded without `attn_implementation`, Gemma 4 takes PyTorch's attention ("sdpa") for its language model and its vision
# tower, and its own ("eager") for its audio tower, which has no other. Asked for by name, "sdpa" raises a ValueError
# that names the audio tower: what the default chose part by part is then asked of every part. A script that trains on
# images and asks for "sdpa", as most do to be sure of it, cannot load E2B and E4B, whose configs have that tower; without it, as
# in the larger sizes, the same call loads. A dictionary that names the audio tower's own attention loads too, and
# gives the default's choice.
#
# The script needs no GPU, no weights and nothing of skinvl: it installs both packages into a temporary folder (some GB)
# and makes small random models. It exits 1 if that is not as described here.
#
# Output seen:
#   transformers 5.23.0, torch 2.15.0
#   with audio, by default: language sdpa, vision sdpa, audio eager
#   with audio, "sdpa": ValueError of Gemma4AudioModel
#   with audio, {"": "sdpa", "audio_config": "eager"}: language sdpa, vision sdpa, audio eager
#   without audio, "sdpa": language sdpa, vision sdpa
#   as described: the name of what the default runs with is refused
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.15.0 transformers==5.23.0 numpy

cat > "$work/show.py" <<'PYTHON'
import logging
import sys

logging.disable(logging.WARNING)

import torch
import transformers
from transformers import AutoModelForImageTextToText, Gemma4Config

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
TEXT = {**SMALL, "vocab_size": 64, "vocab_size_per_layer_input": 64, "num_key_value_heads": 1, "head_dim": 16,
        "global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
VISION = {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64}
AUDIO = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": [4, 4],
         "output_proj_dims": 16}
IDS = {"image_token_id": 3, "video_token_id": 4, "audio_token_id": 5, "boi_token_id": 6, "eoi_token_id": 7,
       "boa_token_id": 8, "eoa_token_index": 9}


def shown(audio: bool, wanted: object) -> str:
    config = Gemma4Config(text_config=dict(TEXT), vision_config=dict(VISION), audio_config=AUDIO if audio else None, **IDS)
    given = {} if wanted is None else {"attn_implementation": wanted}
    try:
        model = AutoModelForImageTextToText.from_config(config, **given)
    except ValueError as error:
        said = f"ValueError of {str(error).split()[0]}"
    else:
        parts = {"language": model.model.language_model, "vision": model.model.vision_tower, "audio": model.model.audio_tower}
        said = ", ".join(f"{name} {part.config._attn_implementation}" for name, part in parts.items() if part is not None)
    name = "by default" if wanted is None else str(wanted).replace("'", '"') if isinstance(wanted, dict) else f'"{wanted}"'
    print(f"{'with' if audio else 'without'} audio, {name}: {said}")
    return said


print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}")
default = shown(True, None)
named = shown(True, "sdpa")
apart = shown(True, {"": "sdpa", "audio_config": "eager"})
without = shown(False, "sdpa")
if not (default == apart and "sdpa" in default and named.startswith("ValueError of Gemma4Audio") and "Error" not in without):
    print("the behaviour has changed")
    sys.exit(1)
print("as described: the name of what the default runs with is refused")
PYTHON
"$work/venv/bin/python" -W ignore "$work/show.py"
