"""How many bytes of activations a training step keeps for its way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Activations:
    """Bytes that the graph keeps of what is no weight, a storage once, and the most at a time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self.users: Counter[int] = Counter()
        self.bytes = self.most = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Saved:
        """What autograd holds for a tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.weights:
            return tensor
        self.users[storage.data_ptr()] += 1
        if self.users[storage.data_ptr()] == 1:
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
        return _Saved(self, tensor)

    def unpack(self, saved: torch.Tensor | _Saved) -> torch.Tensor:
        """The tensor again."""
        return saved.tensor if isinstance(saved, _Saved) else saved


class _Saved:
    """A tensor that the graph keeps until it drops this."""

    def __init__(self, activations: Activations, tensor: torch.Tensor) -> None:
        self.activations, self.tensor = activations, tensor

    def __del__(self) -> None:
        storage, activations = self.tensor.untyped_storage(), self.activations
        activations.users[storage.data_ptr()] -= 1
        if not activations.users[storage.data_ptr()]:
            activations.bytes -= storage.nbytes()


@contextmanager
def kept_by(model: torch.nn.Module) -> Iterator[Activations]:
    """Counts what the graphs that are made within keep."""
    activations = Activations(model)
    with torch.autograd.graph.saved_tensors_hooks(activations.pack, activations.unpack):
        yield activations
