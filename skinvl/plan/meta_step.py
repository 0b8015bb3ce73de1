"""One training step on the meta device: the very model, batch and loss, with shapes and without numbers.

What a step keeps and computes follows from shapes alone, so that it can be counted where the step itself could never
run. Whole numbers that steer the model (ids, grids, spans) stay real; a weight or an activation is only its shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from skinvl.model import adapter
from skinvl.model.attention import Spans, over_spans
from skinvl.model.base import base_dtype, blank_model, logits
from skinvl.model.families import Family, Picture
from skinvl.model.pack import Batch
from skinvl.plan.counter import Casts, Counted
from skinvl.recipe.recipe import Recipe

KERNEL = "spans on the meta device"
LEAST = 3  # layers of a shortened model, and twice its period: the first and last must not stand for all between


@dataclass(frozen=True, slots=True)
class Trace:
    """What one step takes."""

    peaks: tuple[float, ...]  # bytes alive at once: before the language layers, in them, after their backward
    flops: dict[str, float]  # by what of a batch they grow with: positions, pairs, trained, vision

    @property
    def peak(self) -> float:
        """Most bytes alive at once beside the weights: activations, and gradients as they come."""
        return max(self.peaks)

    def before(self, size: float) -> Trace:
        """The same, where something else takes so many bytes before the language layers begin."""
        return Trace((max(self.peaks[0], size), *self.peaks[1:]), self.flops)


@dataclass(frozen=True, slots=True)
class MetaStep:
    """The model whose step is taken on the meta device, and how.

    Args:
        cached: whether `pixel_values` are features of a frozen tower.
        checkpointing: whether the layers' activations are computed a second time in the backward.
        cuda: whether dropout keeps what it keeps on a GPU.
    """

    recipe: Recipe
    config: PretrainedConfig
    family: Family
    cached: bool
    checkpointing: bool
    cuda: bool = True

    def model(self, layers: int | None = None) -> Any:
        """The base with its adapter on the meta device, in the dtypes it trains in; of its layers so many, or all."""
        config = self.family.without_tower(self.config) if self.cached else self.config
        blank = self._blank(config)
        language: Any = blank.get_submodule(self.family.parts["language"][0])
        language.layers = language.layers[:layers]
        blank.config.get_text_config()._attn_implementation = KERNEL
        self.family.prepare(blank)
        recipe = self.recipe.model_copy(update={"init_adapter": None})
        return adapter.attach(blank, self.family, recipe, cached=self.cached)

    def step(self, batch: Batch, *, whole: bool = False) -> Trace:
        """What one forward and backward of a batch takes.

        Of a model whose layers repeat only a few are run: each repetition adds the same.

        Args:
            batch: as the collator makes it; of its `pixel_values` only the shape and dtype matter.
            whole: whether all layers are run.
        """
        blank: Any = blank_model(self.config).get_submodule(self.family.parts["language"][0])
        period = _period([_kind(layer) for layer in blank.layers])
        few = LEAST if period == 1 else 2 * period
        if whole or 2 * few >= len(blank.layers):
            return self._step(batch, None)
        short, long = self._step(batch, few), self._step(batch, 2 * few)
        times = (len(blank.layers) - few) / few
        return Trace(
            tuple(a + (b - a) * times for a, b in zip(short.peaks, long.peaks, strict=True)),
            {key: short.flops[key] + (long.flops[key] - short.flops[key]) * times for key in long.flops},
        )

    def tower(self, picture: Picture, pixels: torch.Tensor) -> Trace:
        """What the tower takes for one image without a backward, from its pixels to what its projector gets."""
        blank = self._blank(self.config)
        (name,) = self.family.parts["vision"]
        tower = blank.get_submodule(name).eval()
        count = Counted()
        for parameter in [*tower.parameters(), *tower.buffers()]:
            count.resident(parameter)
        with count, Casts(self.recipe.precision != "fp32", self.cuda, count), torch.no_grad():
            self.family.encode(tower, picture, pixels.to("meta"))
        return Trace(tuple(count.peaks), {"vision": float(sum(count.flops))})

    def _blank(self, config: PretrainedConfig) -> Any:
        blank = blank_model(config)
        for parameter in blank.parameters():  # buffers stay as they are
            parameter.data = parameter.data.to(base_dtype(self.recipe))
        return blank

    def _step(self, batch: Batch, layers: int | None) -> Trace:
        peft_model = self.model(layers)
        base = peft_model.get_base_model()
        count = Counted()
        casts = Casts(self.recipe.precision != "fp32", self.cuda, count)
        casts.head, casts.positions = base.get_output_embeddings().weight, batch.ids.numel()
        AttentionInterface.register(KERNEL, partial(_attend, casts))
        peft_model.train()
        if self.checkpointing:
            again = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), casts)}
            base.activation_checkpointing_enable(again)
            peft_model.enable_input_require_grads()
        for parameter in [*peft_model.parameters(), *peft_model.buffers()]:
            count.resident(parameter)
        language = base.get_submodule(self.family.parts["language"][0])
        language.layers[0].register_forward_pre_hook(partial(_enter, count), with_kwargs=True)
        inputs, supervised = dict(batch.inputs), batch.supervised
        with count:
            if "pixel_values" in inputs:
                inputs["pixel_values"] = torch.empty_like(inputs["pixel_values"], device="meta")
            with casts:
                trained = logits(peft_model, inputs, supervised)
            casts.end_forward()
            torch.autograd.backward(cross_entropy(trained, batch.targets[supervised], reduction="none").sum())
        return Trace(tuple(count.peaks), casts.shares())


def _enter(count: Counted, module: nn.Module, inputs: Any, settings: dict[str, Any]) -> None:
    """Counts what follows as the language layers', until the gradient of what enters them is there."""
    if count.phase > 0:  # under checkpointing the layer is entered again
        return
    count.phase = 1
    entering: Any = inputs[0] if inputs else settings["hidden_states"]
    if entering.requires_grad:
        entering.register_hook(lambda gradient: count.leave())


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    return (type(layer), *((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()))


def _period(kinds: Sequence[Any]) -> int:
    """After how many layers their kinds repeat; the number of all where they do not."""
    return next(
        period
        for period in range(1, len(kinds) + 1)
        if len(kinds) % period == 0 and all(kind == kinds[number % period] for number, kind in enumerate(kinds))
    )


def _attend(
    casts: Casts,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    spans: Spans | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as `attention.attend` has it on a GPU: span by span, each to its prefix and itself."""
    if not getattr(module, "is_causal", False):
        across: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **settings
        )
        return across
    assert spans is not None

    def counted(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        return casts.attention(query, key, value, is_causal, "pairs")

    return over_spans(query, key, value, spans, sliding_window, counted), None
