"""What torch is asked to compute and to keep, counted operation by operation, on tensors without numbers."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# What autocast runs in bf16, and what in fp32; torch keeps these lists in C++.
LOWER = {
    *(functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.mm),
    *(torch.addmm, torch.baddbmm, functional.conv1d, functional.conv2d, functional.conv3d),
}
UPPER = {functional.layer_norm, functional.group_norm, functional.softmax, torch.softmax, functional.log_softmax}
IN_PLACE = {aten.addmm_: aten.addmm}  # torch's formulas know no product that is added in place
INDEXING = (
    *(aten.index.Tensor, aten.index_put.default),
    *(aten.index_put_.default, aten._index_put_impl_.default),
)


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: bytes alive at once and floating-point operations, in each of three phases.

    Tensors of whole numbers stay on the CPU, and are real: a model asks them how long its rows are.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = 0
        self.alive = 0
        self.peaks = [0.0, 0.0, 0.0]
        self.flops = [0.0, 0.0, 0.0]
        self.known: dict[int, int] = {}  # bytes of each storage

    def leave(self) -> None:
        """Begins the third phase: the language layers' backward is over."""
        self.phase = 2
        self.peaks[2] = max(self.peaks[2], self.alive)

    def resident(self, tensor: torch.Tensor) -> None:
        """Knows this tensor as one that was there before, and counts nothing."""
        self._add(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        meta = [leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is aten._to_copy.default and (meta[0] or not _dtype(args, kwargs).is_floating_point):
            kwargs = {**kwargs, "device": None}  # each stays where it is
        elif any(meta) and not all(meta):
            if func in INDEXING:
                args = (args[0], _indices(args[1]), *args[2:])
            args, kwargs = tree_map_only(torch.Tensor, _meta, (args, kwargs))

        # Whole numbers that a model counts for itself are real as well.
        result = func(*args, **kwargs)
        if func._overloadpacket is aten.arange and result.is_meta and not result.is_floating_point():
            result = func(*args, **{**kwargs, "device": "cpu"})

        if count := flop_registry.get(IN_PLACE.get(func._overloadpacket, func._overloadpacket)):
            self.flops[self.phase] += count(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf, None)
        return result

    def _add(self, tensor: torch.Tensor, size: int | None) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        self.known[storage._cdata] = storage.nbytes() if size is None else size
        self.alive += self.known[storage._cdata]
        self.peaks[self.phase] = max(self.peaks[self.phase], self.alive)
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.alive -= self.known.pop(key)


class Casts(TorchFunctionMode):
    """Within: autocast, attention and dropout as a GPU would have them, which the meta device does not."""

    def __init__(self, bf16: bool, cuda: bool, count: Counted) -> None:
        super().__init__()
        self.bf16, self.cuda, self.count = bf16, cuda, count
        self.head: torch.Tensor | None = None  # the weight of lm_head
        self.positions = 0  # of the language rows
        self.cache: dict[int, torch.Tensor] = {}  # bf16 copies of trained weights, which autocast keeps for a forward
        self.forward = True
        self.operations: Counter[str] = Counter()  # by what of a batch they grow with; the rest do with positions

    def end_forward(self) -> None:
        """Ends the forward: what is computed from here on is computed a second time, or is a backward."""
        self.forward = False
        self.cache.clear()

    def shares(self) -> dict[str, float]:
        """The operations by what of a batch they grow with."""
        positions = self.count.flops[1] - sum(self.operations.values())
        vision = self.count.flops[0] + self.count.flops[2] + self.operations["vision"]
        return {
            "positions": positions,
            "pairs": float(self.operations["pairs"]),
            "trained": float(self.operations["trained"]),
            "vision": vision,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key, value = args[:3]
            return self.attention(query, key, value, bool(kwargs.get("is_causal")), None)
        if func is functional.dropout and self.cuda and args[0].is_meta:
            rate, training = kwargs.get("p", args[1] if len(args) > 1 else 0.5), kwargs.get("training", True)
            return torch.native_dropout(args[0], rate, training)[0] if training and rate else args[0]
        if func is torch.tensor:
            kwargs = {**kwargs, "device": None}  # a list of numbers
        if func in LOWER:
            args, kwargs = tree_map_only(torch.Tensor, self._lower, (args, kwargs))
        elif func in UPPER and self.bf16:
            args, kwargs = tree_map_only(torch.Tensor, _upper, (args, kwargs))
        if func is functional.linear and self.count.phase == 1:
            self._linear(*args[:2])
        return func(*args, **kwargs)

    def _lower(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.bf16 or not tensor.is_meta or tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(torch.bfloat16)
        if id(tensor) not in self.cache:
            self.cache[id(tensor)] = tensor.to(torch.bfloat16)
        return self.cache[id(tensor)]

    def _linear(self, states: torch.Tensor, weight: torch.Tensor) -> None:
        rows = states.numel() // states.shape[-1]
        kind = "trained" if weight is self.head else "vision" if rows != self.positions else None
        if kind is not None:
            times = 1 + (self.forward and states.requires_grad) + (self.forward and weight.requires_grad)
            self.operations[kind] += 2 * rows * weight.numel() * times

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, kind: str | None
    ) -> torch.Tensor:
        """Attention of [R, H, Q, D] queries, of whose operations `kind` is what they grow with."""
        lowered = [self._lower(tensor) for tensor in (query, key, value)]
        length, width = query.shape[-2:]  # what counts later must not hold the query itself
        pairs = math.prod(query.shape[:-2]) * (length * (length + 1) // 2 if causal else length * key.shape[-2])

        def count(products: int) -> None:
            work = 2 * pairs * products * width
            self.count.flops[self.count.phase] += work
            if kind is not None:
                self.operations[kind] += work

        output: torch.Tensor = _Attention.apply(*lowered, count)
        return output


class _Attention(torch.autograd.Function):
    """Attention that keeps its inputs, its output and a number for each query: flash-attention, on any device."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, count: Callable[[int], None]) -> torch.Tensor:
        output: torch.Tensor = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        ctx.count = count
        count(2)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        ctx.count(5)  # one of them is computed a second time
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else tensor.to("meta")


def _dtype(args: Any, kwargs: Any) -> torch.dtype:
    dtype: torch.dtype = kwargs.get("dtype") or args[0].dtype
    return dtype


def _indices(indices: Any) -> list[Any]:
    """Indices without masks, whose results have a length that only numbers can tell."""
    without_masks: list[Any] = []
    for index in indices:
        masks = index is not None and not index.is_meta and index.dtype == torch.bool
        without_masks += index.nonzero(as_tuple=True) if masks else [index]
    return without_masks


def _upper(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_meta and tensor.dtype == torch.bfloat16 else tensor
