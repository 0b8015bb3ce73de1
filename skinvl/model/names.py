"""What weights that an earlier transformers saved are called in the model of today."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

WRAPPER = "base_model.model."  # what PEFT puts before every name of the base


def of_base(stored: Iterable[str], blank: PreTrainedModel) -> dict[str, str]:
    """What the tensors of a base's files are called in its model, as `from_pretrained` decides it."""
    mapping = get_model_conversion_mapping(blank)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    state, prefix = blank.state_dict(), blank.base_model_prefix
    parameters = {}
    for name in sorted(stored, key=dot_natural_key):  # some renamings depend on what they have seen
        renamed, converted = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, converted = rename_source_key(name, [], [], prefix, state)
        if renamed in state and converted is None:
            parameters[name] = renamed
    return parameters


def of_adapter(keys: Iterable[str], blank: PreTrainedModel) -> tuple[dict[str, str], list[str]]:
    """Today's name of each weight of an adapter with its key in the file, and the keys for which there is none.

    PEFT names a LoRA weight after the layer that it adapts, and a weight trained in full as the base does.
    """
    # The weight of the base by which each is named, and what LoRA has beside it.
    parts = {}
    for key in sorted(keys):
        layer, lora, role = key.removeprefix(WRAPPER).partition(".lora_")
        parts[key] = (f"{layer}.weight", lora + role) if lora else (layer, "")
    parameters = of_base({weight for weight, _ in parts.values()}, blank)

    # No two of them are one weight.
    names: dict[str, str] = {}
    nowhere = []
    for key, (weight, lora) in parts.items():
        parameter = parameters.get(weight, "")
        name = f"{WRAPPER}{parameter.removesuffix('.weight') if lora else parameter}{lora}"
        if not parameter or name in names:
            nowhere.append(key)
        else:
            names[name] = key
    return names, nowhere
