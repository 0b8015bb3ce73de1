"""A base with an adapter merged into it, tensor by tensor: the base's own files, names and shards, in bf16."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft import LoraConfig
from peft.tuners.lora import Linear
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from skinvl.model import adapter, names, ways_out
from skinvl.model.base import base_dtype, blank_model, quantization, read_config
from skinvl.model.families import Family
from skinvl.recipe.files import read_json, write_json
from skinvl.recipe.recipe import Recipe

Onto = Literal["bf16", "dequantized"]
INDEX = "model.safetensors.index.json"
AGAIN = "download the base again"
_FLOATS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}  # bytes of a number, by its name in a safetensors header
_WHOLE = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
_LORA = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector")


class MergingError(ValueError):
    """A base and an adapter that cannot become one model."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in the files of a base."""

    file: str
    name: str  # in the file
    parameter: str | None  # in the model; None where the model has no place for it, or makes several of it
    dtype: str  # as the header of the file has it
    shape: tuple[int, ...]

    @property
    def floating(self) -> bool:
        """Whether it is written in bf16; counts and masks stay as they are."""
        return self.dtype in _FLOATS

    @property
    def bytes(self) -> int:
        """What it takes once it is written."""
        return (2 if self.floating else _WHOLE[self.dtype]) * torch.Size(self.shape).numel()


class Merging:
    """The tensors of a base with an adapter merged into them, each computed when it is asked for.

    Raises:
        MergingError: a key of the adapter has no place in the base, one is missing, or the base's files are damaged or
            quantised.
    """

    def __init__(self, base: Path, trained: Path, recipe: Recipe, device: torch.device) -> None:
        self.base, self.trained, self.device = base, trained, device
        self.dtype = base_dtype(recipe)  # what the base was loaded in: what bf16 cannot hold was never trained on
        config, self.family = read_config(base)
        if getattr(config, "quantization_config", None) is not None:
            raise MergingError(f"{base}: its weights are stored quantised; give the base that they were made from")
        self.lora = LoraConfig.from_pretrained(str(trained))
        if self.lora.init_lora_weights != "pissa":  # which changes the base; any other start is overwritten here
            self.lora.init_lora_weights = False

        # The base: its tensors, the layers that training had in 4 bits, and those that LoRA can have adapted.
        blank = blank_model(config)
        self.stored = stored(base, blank)
        self.quantised = _quantised(config, self.family, recipe)
        self.modules = {name: module for name, module in blank.named_modules() if isinstance(module, nn.Linear)}

        if reason := ways_out.unmergeable(blank, self.family, recipe):
            raise MergingError(f"{trained}: {reason}; use the adapter as it is, or train without lora_bias")

        # The adapter: every key of it has a place there, and none that the recipe trains is missing.
        self.layers, self.full = self._keys(blank)
        _require_whole(config, self.family, recipe, trained)

    @property
    def keys(self) -> int:
        """The keys of the adapter, each of which goes into a tensor of the base."""
        return sum(map(len, self.layers.values())) + len(self.full)

    @property
    def bytes(self) -> int:
        """What the written weights take."""
        return sum(tensor.bytes for tensor in self.stored)

    def tensors(self, onto: Onto) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter of the model with its merged value; nothing is rounded yet."""
        for file in dict.fromkeys(tensor.file for tensor in self.stored):
            with safe_open(self.base / file, "pt") as shard:
                for stored in self.stored:
                    if stored.file == file and stored.parameter is not None:
                        yield stored.parameter, self._merged(shard, stored, onto)

    def write(self, out: Path, onto: Onto) -> None:
        """Writes the weights into the folder, in the base's shards and with their index.

        One tensor is in memory at a time, beside the pages of the shard that is read.
        """
        for file in dict.fromkeys(tensor.file for tensor in self.stored):
            of_file = [tensor for tensor in self.stored if tensor.file == file]
            with safe_open(self.base / file, "pt") as shard, (out / file).open("wb") as written:
                for stored in _header(written, of_file):
                    merged = self._merged(shard, stored, onto)
                    merged = (merged.bfloat16() if stored.floating else merged).cpu().contiguous()
                    written.write(merged.reshape(-1).view(torch.uint8).numpy().data)

        # Sizes change where the base was not in bf16; what lies in which shard does not.
        if (self.base / INDEX).is_file():
            index = read_json(self.base / INDEX, AGAIN, MergingError)
            index["metadata"] = {**index.get("metadata", {}), "total_size": self.bytes}
            index["weight_map"] = {
                tensor.name: tensor.file for tensor in sorted(self.stored, key=lambda tensor: tensor.name)
            }
            write_json(out / INDEX, index)

    def _keys(self, blank: PreTrainedModel) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """The adapter's keys: those of each LoRA layer by what they are, and those of weights trained in full."""
        with safe_open(self.trained / "adapter_model.safetensors", "pt") as weights:
            shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        parameters = {tensor.parameter for tensor in self.stored}
        expected_shapes = {name: tuple(value.shape) for name, value in blank.state_dict().items()}

        # Each key is a parameter of its own, trained in full, or one of those that a LoRA layer has.
        layers: dict[str, dict[str, str]] = defaultdict(dict)
        full = {}
        unknown = []
        for key, shape in shapes.items():
            name = key.removeprefix(names.WRAPPER)
            role = next((role for role in _LORA if name.endswith("." + role)), None)
            layer = name.removesuffix(f".{role}")
            if role is None and name in parameters and expected_shapes[name] == shape:
                full[name] = key
            elif role is not None and layer in self.modules and f"{layer}.weight" in parameters:
                layers[layer][role] = key
            else:
                unknown.append(key)
        if unknown:
            raise MergingError(
                f"{self.trained}: {len(unknown)} of its {len(shapes)} weights have no place in {self.base} (first: "
                f"{unknown[0]}, {shapes[unknown[0]]}); it was made for another base"
            )

        # Of a LoRA layer both matrices are there, of the base's widths.
        for layer, keys in layers.items():
            module = self.modules[layer]
            pair = (shapes.get(keys.get("lora_A.weight", "")), shapes.get(keys.get("lora_B.weight", "")))
            expected = ((self.lora.r, module.in_features), (module.out_features, self.lora.r))
            if pair != expected:
                raise MergingError(f"{self.trained}: {layer} has lora_A and lora_B {pair}; expected {expected}")
        return dict(layers), full

    def _merged(self, shard: Any, stored: Stored, onto: Onto) -> torch.Tensor:
        """The merged tensor: float32 where the adapter or the quantisation changes it, else as it was trained on."""
        tensor: torch.Tensor = shard.get_tensor(stored.name)
        if stored.parameter is None or not stored.floating:
            return tensor
        if stored.parameter in self.full:
            return self._trained(self.full[stored.parameter])

        # As the base's weight was when the adapter trained on it.
        tensor = tensor.to(self.dtype)
        layer, _, kind = stored.parameter.rpartition(".")
        if kind == "weight" and onto == "dequantized" and layer in self.quantised:
            tensor = _dequantised(tensor, self.quantised[layer], self.device)

        # With what the adapter adds to it.
        if kind == "weight" and layer in self.layers:
            return self._merged_layer(layer, tensor, None)[0]
        if kind == "bias" and "lora_B.bias" in self.layers.get(layer, {}):
            module = self.modules[layer]
            weight = tensor.new_zeros(module.out_features, module.in_features)
            return self._merged_layer(layer, weight, tensor)[1]
        return tensor

    def _merged_layer(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> list[torch.Tensor]:
        """Weight and bias of a layer after PEFT has merged its LoRA, float32: LoRA, rsLoRA, DoRA and PiSSA alike."""
        module, keys = self.modules[name], self.layers[name]

        # The layer of the base, and PEFT's LoRA around it.
        with torch.device("meta"):
            plain: Any = nn.Linear(module.in_features, module.out_features, bias=bias is not None)
        plain.weight = nn.Parameter(weight.to(self.device, copy=True), requires_grad=False)
        if bias is not None:
            plain.bias = nn.Parameter(bias.to(self.device).float(), requires_grad=False)
        config = copy.copy(self.lora)
        config.lora_bias = bias is not None
        # PiSSA subtracts from the weight here, in the precision that the weight was trained in.
        layer = Linear(plain, "default", config, r=self.lora.r, lora_alpha=self.lora.lora_alpha)
        plain.weight.data = plain.weight.data.float()

        # What was trained takes the place of what the layer starts with.
        layer.lora_A["default"].weight.data = self._trained(keys["lora_A.weight"])
        layer.lora_B["default"].weight.data = self._trained(keys["lora_B.weight"])
        if bias is not None:
            layer.lora_B["default"].bias.data = self._trained(keys["lora_B.bias"])
        if "lora_magnitude_vector" in keys:
            layer.lora_magnitude_vector["default"].weight.data = self._trained(keys["lora_magnitude_vector"])

        with torch.no_grad():
            layer.merge()
        if not all(parameter.isfinite().all() for parameter in plain.parameters()):
            raise MergingError(f"{self.trained}: {name} holds a number that is not finite; the training went wrong")
        return [parameter.data for parameter in (plain.weight, plain.bias) if parameter is not None]

    def _trained(self, key: str) -> torch.Tensor:
        """A weight of the adapter, float32."""
        with safe_open(self.trained / "adapter_model.safetensors", "pt") as weights:
            weight: torch.Tensor = weights.get_tensor(key)
        return weight.to(self.device).float()


def stored(base: Path, blank: PreTrainedModel) -> list[Stored]:
    """The tensors in the files of a base, in the order they lie there, each with its name in the model.

    Published bases have names of earlier transformers; the library's own table says what a model calls them today.

    Raises:
        MergingError: the files are not what the index says, or hold weights that are quantised.
    """
    files = ["model.safetensors"]
    named: Mapping[str, str] = {}
    if (base / INDEX).is_file():
        named = read_json(base / INDEX, AGAIN, MergingError, ["weight_map"])["weight_map"]
        files = sorted(set(named.values()))
    if absent := [file for file in files if not (base / file).is_file()]:
        raise MergingError(
            f"{base / absent[0]}: no such file; the weights of a base are safetensors. Download it again"
        )

    # What lies in the files, by their headers alone: file, dtype and shape of each tensor.
    headers: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for file in files:
        try:
            with safe_open(base / file, "pt") as shard:
                for name in shard.offset_keys():
                    view = shard.get_slice(name)
                    headers[name] = (file, view.get_dtype(), tuple(view.get_shape()))
        except SafetensorError as error:
            raise MergingError(f"{base / file}: damaged ({error}); download the base again") from error
    wrong = {name for name, file in named.items() if name not in headers or headers[name][0] != file}
    if wrong:
        name = min(wrong)
        raise MergingError(f"{base / INDEX}: says that {name} is in {named[name]}; it is not. Download the base again")
    if packed := [name for name, (_, dtype, _) in headers.items() if dtype not in (*_FLOATS, *_WHOLE)]:
        raise MergingError(
            f"{base}: {packed[0]} is {headers[packed[0]][1]}, quantised; give the base that it was made from"
        )

    parameters = names.of_base(headers, blank)
    return [Stored(file, name, parameters.get(name), dtype, shape) for name, (file, dtype, shape) in headers.items()]


def _quantised(base: PretrainedConfig, family: Family, recipe: Recipe) -> dict[str, Any]:
    """The layers that training quantised, as they are before they have a weight; none without quantization."""
    if (config := quantization(recipe, family)) is None:
        return {}
    blank = blank_model(base)
    AutoHfQuantizer.from_config(config, pre_quantized=False).preprocess_model(model=blank, device_map=None)
    return {name: layer for name, layer in blank.named_modules() if isinstance(layer, Linear4bit)}


def _dequantised(weight: torch.Tensor, layer: Any, device: torch.device) -> torch.Tensor:
    """The weight after it went through the 4 bits of a quantised layer, float32."""
    settings = {**layer.weight.__dict__, "module": None}  # which would keep the state of every layer
    packed: Any = Params4bit(weight, requires_grad=False, **settings)
    packed = packed.to(device)
    packed.quant_state.dtype = torch.float32  # of what comes back; bf16 would round it a second time
    dequantised: torch.Tensor = dequantize_4bit(packed.data, packed.quant_state)
    return dequantised


def _require_whole(base: PretrainedConfig, family: Family, recipe: Recipe, trained: Path) -> None:
    """Refuses an adapter that does not hold all that the recipe trains.

    Raises:
        AdapterError: it lacks a weight.
    """
    fresh = recipe.model_copy(update={"init_adapter": None})
    adapter.require_whole(adapter.attach(blank_model(base), family, fresh), trained)


def _header(file: BinaryIO, tensors: list[Stored]) -> list[Stored]:
    """Writes a file's header, and says in which order the bytes of its tensors are to follow.

    Source: the safetensors format. Its library writes a file from tensors that are all in memory.
    """
    # The widest first, so that each is aligned.
    ordered = sorted(tensors, key=lambda tensor: -(2 if tensor.floating else _WHOLE[tensor.dtype]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.bytes
        dtype = "BF16" if tensor.floating else tensor.dtype
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return ordered
