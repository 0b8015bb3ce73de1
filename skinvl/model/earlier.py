"""An adapter that was made before: whether its settings mean here what they meant there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

# Fields of a LoRA config that change how it was trained, found or loaded, and not what it computes; which modules it
# adapts is said by the names of its weights.
FREE = frozenset((
    *("lora_dropout", "task_type", "auto_mapping", "peft_type", "peft_version", "inference_mode", "runtime_config"),
    *("base_model_name_or_path", "revision", "megatron_core", "qalora_group_size", "eva_config"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
))  # fmt: skip
BY_RECIPE = ("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias")
# Starts that leave the base as it is, so that the weights in the file are all of the adapter.
STARTS = (True, False, "gaussian", "orthogonal", "eva")


def difference(config: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Why the weights of an adapter would mean something else under a recipe; empty where they would not.

    Args:
        config: what its adapter_config.json holds.
        recipe: its section `lora`.
    """
    defaults, ours = vars(LoraConfig()), LoraConfig(**recipe)
    if (kind := config.get("peft_type")) != "LORA":
        return f"its peft_type is {kind}, and skinvl knows LORA alone"
    if config.get("target_modules") == DUMMY_TARGET_MODULES:
        return ""  # it adapts no layer, so that its settings mean nothing

    # What the recipe decides.
    for key in BY_RECIPE:
        before, now = config.get(key, defaults[key]), getattr(ours, key)
        if before != now:
            return f"made with {key}={before}, the recipe has {now}; set lora.{key}"

    # PiSSA takes the same part of the base away each time; other starts that change it are not repeated exactly.
    start = config.get("init_lora_weights", True)
    if (start == "pissa") != (ours.init_lora_weights == "pissa"):
        return (
            f"made with init_lora_weights={start}, the recipe has {ours.init_lora_weights}; PiSSA changes the base, so "
            "that both or neither must have it"
        )
    if start not in (*STARTS, "pissa"):
        return f"made with init_lora_weights={start}, which changed its base; merge it into that base, and start there"

    # Everything else must be as PEFT has it by default. A null says in every field that nothing was set.
    for key, value in sorted(config.items()):
        if key in FREE or key in BY_RECIPE or key == "init_lora_weights" or value is None:
            continue
        if key not in defaults:
            return f"made with {key}={value}, a setting that is not known here; update peft, or take another adapter"
        if value != defaults[key]:
            return f"made with {key}={value}, which no recipe can set; merge it into its base, and start there"
    return ""
