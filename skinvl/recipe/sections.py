"""The recipe's sections `lora`, `quantization` and `train`: checked against the classes whose fields they name.

What skinvl decides itself is refused with the key that decides instead, so that nothing is accepted and then ignored.
"""

from __future__ import annotations

import dataclasses
import types
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from skinvl.recipe.strict import Fault, shown, unknown

RecipeKind = Literal["sft", "pretrain"]  # the verb that trains a recipe
_QUANTIZATION: dict[str, Any] = {
    "load_in_4bit": Literal[True],
    "bnb_4bit_quant_type": Literal["nf4", "fp4"],
    "bnb_4bit_compute_dtype": Literal["bfloat16", "float16", "float32"],
    "bnb_4bit_use_double_quant": bool,
    "bnb_4bit_quant_storage": Literal["uint8", "bfloat16", "float16", "float32"],
}
_LORA = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "init_lora_weights")
_NARROWED: dict[str, Any] = {
    "init_lora_weights": Literal[
        True, "gaussian", "orthogonal", "pissa"
    ],  # others change base weights and do not reload exactly
    "bf16": bool,  # null would mean true in TRL and false elsewhere
    "fp16": bool,
    "deepspeed": str,
}


def _table(reasons: dict[str, str]) -> dict[str, str]:
    return {key: reason for reason, keys in reasons.items() for key in keys.split()}


_OF_BOTH = _table(
    {
        "data and the mixture decide": "remove_unused_columns label_names",
        "NaN is always shown": "logging_nan_inf_filter",
        "runs/<run>/ holds all output; run decides": "output_dir",
        "resume decides": "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint",
        "checkpoints are complete, so that resume=auto works": "save_only_model",
        "seed decides": "data_seed",
        "the verb decides": "do_train do_eval do_predict",
        "bf16 and fp16 decide": "fp16_full_eval bf16_full_eval",
        "torchrun decides": "local_rank",
        "a run is published after it was evaluated": "push_to_hub hub_token hub_private_repo hub_model_id "
        "hub_strategy hub_always_push hub_revision",
        "gone in transformers 5; warmup_steps below 1 is a ratio": "warmup_ratio",
        "its new name is activation_checkpointing": "gradient_checkpointing gradient_checkpointing_kwargs",
    }
)
_LORA_OWNED = _table(
    {
        "module names change with the base; r and lora_alpha hold for every part": "rank_pattern alpha_pattern",
        "base decides": "base_model_name_or_path revision",
        "skinvl sets it": "task_type inference_mode peft_type peft_version auto_mapping",
    }
)
_PLACES = (
    "target_modules exclude_modules modules_to_save target_parameters layers_to_transform layers_pattern "
    "trainable_token_indices bias"
)
_OWNED: dict[RecipeKind, dict[str, dict[str, str]]] = {
    "sft": {
        "quantization": _table(
            {
                "skinvl trains on bf16 or 4-bit bases; use load_in_4bit": "load_in_8bit",
                "parts decide: only frozen or LoRA language layers are quantised": "llm_int8_skip_modules",
                "a setting of 8-bit bases, which skinvl does not train": "llm_int8_threshold llm_int8_has_fp16_weight "
                "llm_int8_enable_fp32_cpu_offload",
            }
        ),
        "lora": _LORA_OWNED | _table({"parts decide, for every base alike": _PLACES}),
        "train": _OF_BOTH
        | _table(
            {
                "data.max_tokens decides": "max_length",
                "data.too_long decides": "truncation_mode",
                "data and the mixture decide": "dataset_text_field dataset_kwargs dataset_num_proc shuffle_dataset",
                "skinvl makes the rows of a batch itself": "packing packing_strategy padding_free "
                "pad_to_multiple_of eval_packing",
                "the sampler keeps an image's conversations together": "train_sampling_strategy length_column_name "
                "group_by_length accelerator_config dataloader_in_order",
                "every conversation is used": "dataloader_drop_last",
                "the loss is the mean over the assistant's tokens on all ranks": "loss_type completion_only_loss "
                "assistant_only_loss label_smoothing_factor average_tokens_across_devices",
                "evaluation within a run computes the loss alone": "prediction_loss_only eval_do_concat_batches "
                "eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics",
                "base decides": "model_init_kwargs chat_template_path eos_token pad_token",
                "code from the hub is never run": "trust_remote_code",
                "no family of skinvl has experts": "router_aux_loss_coef",
                "its fused loss does not fit the rows of skinvl": "use_liger_kernel liger_kernel_config",
                "training keeps no key-value cache": "use_cache",
                "its noise grows with the length of a row, which is not the data's": "neftune_noise_alpha",
                "parts decide": "optim_target_modules",
                "lower per_device_train_batch_size and raise gradient_accumulation_steps": "auto_find_batch_size",
                "set deepspeed to a name in ds_configs/": "fsdp fsdp_config parallelism_config",
            }
        ),
    },
    "pretrain": {
        "lora": _LORA_OWNED | _table({"towers decide, for every base alike": _PLACES}),
        "train": _OF_BOTH
        | _table(
            {
                "set bf16: true or false": "fp16",
                "batch.images are compared in a step, batch.at_once of them in memory": "per_device_train_batch_size "
                "gradient_accumulation_steps auto_find_batch_size",
                "evaluate.during are compared, evaluate.batch_size at a time": "per_device_eval_batch_size",
                "two towers fit one GPU with batch.at_once; ranks by torchrun": "deepspeed fsdp fsdp_config "
                "parallelism_config",
                "the sampler makes the batches": "train_sampling_strategy length_column_name group_by_length "
                "accelerator_config dataloader_in_order",
                "a smaller last batch would have another loss; it is always left out": "dataloader_drop_last",
                "objective decides": "label_smoothing_factor average_tokens_across_devices",
                "evaluation within a run computes retrieval and loss alone": "prediction_loss_only "
                "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
                "batch_eval_metrics",
                "a setting of language models": "use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha "
                "include_num_input_tokens_seen",
                "towers decide": "optim_target_modules",
                "skinvl sums the gradients of the ranks itself": "ddp_find_unused_parameters ddp_bucket_cap_mb "
                "ddp_broadcast_buffers ddp_static_graph",
                "a step runs in chunks of many lengths, each of which would be compiled anew": "torch_compile "
                "torch_compile_backend torch_compile_mode",
                "batch.at_once bounds the memory": "torch_empty_cache_steps",
            }
        ),
    },
}


def check(section: str, values: dict[str, Any], kind: RecipeKind = "sft") -> list[Fault]:
    """The faults of one of the sections `lora`, `quantization` and `train` of a recipe of that kind."""
    if section == "quantization":
        fields = _QUANTIZATION
        missing = "load_in_4bit" not in values
        faults = (
            [Fault((section,), "load_in_4bit is missing; set it to true, or quantization to null")] if missing else []
        )
    else:
        fields, faults = _hugging_face(section, kind), []
    owned = _OWNED[kind][section]
    for key, value in values.items():
        if key in owned:
            faults.append(Fault((section, key), f"not taken: {owned[key]}"))
        elif key not in fields:
            faults.append(Fault((section, key), unknown(key, [field for field in fields if field not in owned])))
        elif not _fits(fields[key], value):
            faults.append(Fault((section, key), f"found {shown(value)}; expected {_expected(fields[key])}"))
    return faults


def _hugging_face(section: str, kind: RecipeKind) -> dict[str, Any]:
    """The fields of peft.LoraConfig, trl.SFTConfig or transformers.TrainingArguments, each with what it takes."""
    config: Any
    if section == "lora":
        from peft import LoraConfig

        config = LoraConfig
    elif kind == "pretrain":
        from transformers import TrainingArguments

        config = TrainingArguments
    else:
        from trl.trainer.sft_config import SFTConfig

        config = SFTConfig
    hints = get_type_hints(config)
    annotations = {}
    for field in dataclasses.fields(config):
        if section == "train" or field.name in _LORA:
            choices = field.metadata.get("choices")
            hint = Literal[tuple(choices)] if choices else hints[field.name]
            annotations[field.name] = _NARROWED.get(field.name, _by_value(hint))
    return annotations


def _arms(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _by_value(annotation: Any) -> Any:
    """`SchedulerType | str` takes any text; its enum knows which text is meant."""
    arms = _arms(annotation)
    enums = [arm for arm in arms if isinstance(arm, type) and issubclass(arm, Enum)]
    if not enums:
        return annotation
    values = tuple(member.value for enum in enums for member in enum)
    return Union[*(arm for arm in arms if arm not in enums and arm is not str), Literal[values]]


def _fits(annotation: Any, value: Any) -> bool:
    """Whether pydantic takes the value as it is, without turning it into another."""
    try:
        TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _expected(annotation: Any) -> str:
    """What a type takes, in the words of an error."""
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    words = []
    for arm in _arms(annotation):
        if get_origin(arm) is Literal:
            words += [str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(arm)]
        elif arm in plain:
            words.append(plain[arm])
        elif get_origin(arm) is list and set(get_args(arm)) <= set(plain):
            words.append(f"a list of {', '.join(plain[item] for item in get_args(arm))}")
        else:
            words.append({dict: "a mapping", list: "a list"}.get(get_origin(arm) or arm, str(arm)))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
