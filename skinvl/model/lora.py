"""LoRA on linear layers by one autograd function: what PEFT computes, in fewer passes over memory and with less kept.

y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ, where both small products are added into what the base gives, in place, forward and
backward; for the backward it keeps the input, the product of rank r and a bit for each number of a dropout mask.
Layers that read the same input are computed together, with one product by their stacked A, where nothing drops.

PEFT's modules, names and files stay as they are, and so does its forward wherever a layer is more than that.
"""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

# Layers of one module that it calls with the same input, in the order in which it calls them.
SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
)
ACROSS = {"cross_attention_states", "key_value_states"}  # of a module that takes these, keys and values read them
GATHER = 0x0102040810204080  # times eight bytes of 0 or 1: their bits in the highest byte


class Adapted(nn.Module):
    """What a LoRA layer of PEFT becomes: its forward is one autograd function where it does no more than LoRA."""

    siblings: Siblings | None = None

    def forward(self, x: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        """The layer's output, [..., in] → [..., out]."""
        if args or settings:
            return self._pefts(x, *args, **settings)
        together = self.siblings
        if together is not None and (output := together.take(self, x)) is not None:
            return output
        if not self.takes(x):
            return self._pefts(x)
        if together is None or not together.take_all(x):
            return _apply(x, (self,))[0]
        return together.compute(self, x)

    def _pefts(self, x: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        output: torch.Tensor = super().forward(x, *args, **settings)
        return output

    def takes(self, x: torch.Tensor) -> bool:
        """Whether the layer is LoRA at work, and nothing else, on this input."""
        layer: Any = self
        if layer.disable_adapters or layer.merged or torch.compiler.is_compiling() or beyond(layer):
            return False
        cast = layer.cast_input_dtype_enabled and x.dtype != _pair(layer)[0].weight.dtype
        return not cast or _autocast(x) is not None  # else PEFT computes in the adapter's precision


class AdaptedLinear(Adapted, lora.Linear):
    """LoRA on nn.Linear."""


class AdaptedLinear4bit(Adapted, LoraLinear4bit):
    """LoRA on a layer of 4-bit weights."""


class Siblings:
    """Layers that read the same input, all computed when the first of them is called."""

    def __init__(self, layers: tuple[Adapted, ...]) -> None:
        self.layers = layers
        self.clear()

    def clear(self, *hooked: Any) -> None:
        """Forgets the outputs that no layer was asked for."""
        self.input: torch.Tensor | None = None
        self.version = 0
        self.outputs: dict[Adapted, torch.Tensor] = {}

    def take_all(self, x: torch.Tensor) -> bool:
        """Whether the layers can be computed together: while training, where each is plain LoRA and nothing drops."""
        return torch.is_grad_enabled() and all(layer.takes(x) and not _rate(layer) for layer in self.layers)

    def compute(self, layer: Adapted, x: torch.Tensor) -> torch.Tensor:
        """The output of one layer; those of the others wait until they are called with the very tensor."""
        self.outputs = dict(zip(self.layers, _apply(x, self.layers), strict=True))
        self.input, self.version = x, x._version
        return self.outputs.pop(layer)

    def take(self, layer: Adapted, x: torch.Tensor) -> torch.Tensor | None:
        """The output of a layer that waits for it, once."""
        if self.input is not x or self.version != x._version or not torch.is_grad_enabled():
            return None
        output = self.outputs.pop(layer, None)
        if not self.outputs:
            self.clear()
        return output


def use(model: nn.Module) -> None:
    """Has the LoRA layers of a model compute by one autograd function, wherever that can be.

    Under ZeRO-3 none does: it gathers a weight when its module is called, and lora_A and lora_B would not be.
    """
    if is_deepspeed_zero3_enabled():
        return
    for module in model.modules():
        if type(module) is lora.Linear and type(module.base_layer) is nn.Linear and not module.fan_in_fan_out:
            module.__class__ = AdaptedLinear
        elif type(module) is LoraLinear4bit and type(module.base_layer) is Linear4bit:
            module.__class__ = AdaptedLinear4bit
    for parent in model.modules():
        for names in SAME_INPUT:
            layers = tuple(layer for name in names if isinstance(layer := getattr(parent, name, None), Adapted))
            if len(layers) > 1 and ACROSS & inspect.signature(parent.forward).parameters.keys():
                layers = tuple(layer for layer in layers if layer is not getattr(parent, names[0], None))
            if len(layers) > 1:
                siblings = Siblings(layers)
                for layer in layers:
                    layer.siblings = siblings
                parent.register_forward_hook(siblings.clear, always_call=True)


def sentence(model: nn.Module) -> str | None:
    """Which forward how many LoRA layers of a model have; None where it has none."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        return None
    reasons = Counter(beyond(layer) if isinstance(layer, Adapted) else _left(layer) for layer in layers)
    ours = reasons[None]
    others = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if reason)
    text = f"LoRA: {ours:,} of {len(layers):,} layers by one product each"
    return f"{text}; {others} by PEFT's own forward" if others else text


def beyond(layer: Any) -> str | None:
    """What a LoRA layer has that is more than a plain adapter on frozen weights; None if nothing."""
    names = _active(layer)
    if len(names) != 1:
        return "with several adapters, or none"
    (name,) = names
    base, down, up = layer.base_layer, *_pair(layer)
    if name in layer.lora_variant:
        return "with DoRA or its like"
    if layer.lora_bias[name]:
        return "with a bias of their own"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "on weights that train"
    dropout = layer.lora_dropout[name]
    if type(dropout) not in (nn.Identity, nn.Dropout) or getattr(dropout, "p", 0) == 1:
        return "with another dropout"
    if any(_hooked(module) for module in (base, down, up)):
        return "whose modules have hooks"
    return None


def _left(layer: Any) -> str:
    """Why a layer was left as PEFT made it."""
    return "under ZeRO-3" if is_deepspeed_zero3_enabled() else f"on {type(layer.get_base_layer()).__name__}"


def _hooked(module: Any) -> bool:
    """Whether something happens when the module is called that its weights alone do not do."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in module.__dict__


def _active(layer: Any) -> list[str]:
    """The names of a layer's adapters that are at work."""
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _pair(layer: Any) -> tuple[nn.Linear, nn.Linear]:
    name = _active(layer)[0]
    return layer.lora_A[name], layer.lora_B[name]


def _scale(layer: Any) -> float:
    return float(layer.scaling[_active(layer)[0]])


def _rate(layer: Any) -> float:
    """The share of its input that a layer's dropout drops now."""
    dropout = layer.lora_dropout[_active(layer)[0]]
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def _autocast(x: torch.Tensor) -> torch.dtype | None:
    kind = x.device.type
    usable = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if usable else None


def _apply(x: torch.Tensor, layers: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    weights = [module.weight for layer in layers for module in _pair(layer)]
    outputs: tuple[torch.Tensor, ...] = _OneProduct.apply(x, layers, *weights)
    return outputs


class _OneProduct(torch.autograd.Function):
    """The outputs of adapted layers that read the same input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: tuple[Any, ...], *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # The base, by its own module; what it returns is ours to add to.
        outputs = tuple(layer.base_layer(x) for layer in layers)
        dtype = _autocast(x) or outputs[0].dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        downs, ups = weights[::2], weights[1::2]

        # Down to the rank: one product for all, or for one layer of what its mask leaves. A small product lies on its
        # side, [r, rows]: on a CPU that takes a third of the time.
        rate, bits = _rate(layers[0]), None
        if rate:
            mask = _drawn(rows, rate)
            bits = _packed(mask)
            small = downs[0].to(dtype) @ mask.to(dtype).mul_(rows).T
        else:
            small = _stacked(downs, dtype) @ rows.T
        ctx.scales = tuple(_scale(layer) / (1 - rate) for layer in layers)

        # And up again, into the outputs.
        smalls = torch.split(small, [down.shape[0] for down in downs])
        for output, part, up, scale in zip(outputs, smalls, ups, ctx.scales, strict=True):
            to = output.dtype
            output.view(-1, output.shape[-1]).addmm_(part.T.to(to), up.T.to(to), alpha=scale)
        ctx.save_for_backward(rows, small, bits, *weights)
        ctx.layers, ctx.shape, ctx.dtype = layers, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        rows, small, bits, *weights = ctx.saved_tensors
        dtype, ranks = rows.dtype, [down.shape[0] for down in weights[::2]]
        of_weights: list[torch.Tensor | None] = [None] * len(weights)

        # Each layer that something was asked of: through its base, and down to the rank.
        through, smalls, used = None, [], []
        for number, (layer, part) in enumerate(zip(ctx.layers, small.split(ranks), strict=True)):
            if (gradient := gradients[number]) is None:
                continue
            gradient = gradient.reshape(-1, gradient.shape[-1])
            if ctx.needs_input_grad[0]:
                weight = _base_weight(layer.base_layer, dtype)
                if through is None:
                    through = gradient.to(weight.dtype) @ weight
                else:
                    through.addmm_(gradient.to(through.dtype), weight.to(through.dtype))
                del weight
            gradient, up = gradient.to(dtype), weights[2 * number + 1]
            smalls.append((up.to(dtype).T @ gradient.T).mul_(ctx.scales[number]))
            used.append(number)
            of_weights[2 * number + 1] = (part @ gradient).mul_(ctx.scales[number]).T.to(up.dtype).contiguous()
        if not used:
            return None, None, *of_weights

        # All of them at once: to the input, and to A.
        gradient = torch.cat(smalls) if len(smalls) > 1 else smalls[0]
        downs = [weights[2 * number] for number in used]
        mask = None if bits is None else _unpacked(bits, rows)
        if through is not None:
            down = _stacked(downs, through.dtype)
            if mask is None:
                through.addmm_(gradient.T.to(through.dtype), down)
            else:
                through.addcmul_(gradient.T.to(through.dtype) @ down, mask.to(through.dtype))
        products = gradient @ (rows if mask is None else mask.mul_(rows))
        for number, product in zip(used, products.split([ranks[number] for number in used]), strict=True):
            of_weights[2 * number] = product.to(weights[2 * number].dtype)
        return None if through is None else through.to(ctx.dtype).view(ctx.shape), None, *of_weights


def _stacked(downs: Any, dtype: torch.dtype) -> torch.Tensor:
    return (torch.cat(tuple(downs)) if len(downs) > 1 else downs[0]).to(dtype)


def _base_weight(base: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a base layer, [out, in], as its own backward would have it."""
    if not isinstance(base, Linear4bit):
        return base.weight.to(dtype)
    weight: Any = base.weight
    whole: torch.Tensor = dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
    return whole.to(base.compute_dtype or dtype)


def _drawn(rows: torch.Tensor, rate: float) -> torch.Tensor:
    """A mask of the shape of `rows`, uint8, 0 at a share of `rate` to 16 bits, by torch's generator of their device.

    Four numbers of 16 bits are drawn at once: on a CPU in a sixth of the time of one of 53 bits for each.
    """
    count = rows.numel()
    noise = torch.empty(-(-count // 4), dtype=torch.int64, device=rows.device).random_(-(2**63), None)
    return noise.view(torch.int16)[:count].ge_(round(rate * 2**16) - 2**15).to(torch.uint8).view(rows.shape)


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """A mask in a bit for each of its values, uint8[⌈n / 8⌉]."""
    flat = mask.flatten()
    if flat.numel() % 8:
        flat = nn.functional.pad(flat, (0, -flat.numel() % 8))
    return ((flat.view(torch.int64) * GATHER) >> 56).to(torch.uint8)


def _unpacked(bits: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The mask in packed bits, 0 and 1 in the shape and dtype of `like`."""
    byte = torch.arange(256, device=bits.device)[:, None]
    table = (byte >> torch.arange(8, device=bits.device) & 1).to(like.dtype)  # of every byte its eight numbers
    return table.index_select(0, bits.int()).flatten()[: like.numel()].view(like.shape)
