"""The pieces of a two-tower step on the meta device: the very towers and loss, with shapes and without numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel

from skinvl.model import objectives, towers_adapter
from skinvl.model.dual import DualEncoder
from skinvl.model.objectives import CAPTION, CONCEPTS, NEGATIVE, ONTOLOGY, POSITIVE, SENTENCE, Features, Pairing
from skinvl.model.towers_loaded import OpenTowers
from skinvl.plan.counter import Casts, Counted
from skinvl.plan.dual_configs import blank
from skinvl.recipe.towers import PretrainRecipe

ASPECT = {"caption": CAPTION, "ontology": ONTOLOGY, "concepts": CONCEPTS, "sentence": SENTENCE}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward and backward takes."""

    peak: float  # most bytes alive at once beside the weights
    forward: float  # floating-point operations
    both: float  # of the forward and the backward


@dataclass(frozen=True)
class TowersStep:
    """Two towers whose steps are taken on the meta device.

    Args:
        cuda: whether dropout keeps what it keeps on a GPU.
    """

    opened: OpenTowers
    cuda: bool = True

    @property
    def recipe(self) -> PretrainRecipe:
        """The recipe that they train by."""
        return self.opened.recipe

    @cached_property
    def model(self) -> PeftModel | DualEncoder:
        """The towers with what trains of them, fp32."""
        fresh = self.recipe.model_copy(update={"init_adapter": None})
        attached = towers_adapter.attach(blank(self.opened.config), fresh)
        attached.train()
        if self.recipe.train.get("activation_checkpointing"):
            dual: Any = attached.get_base_model() if isinstance(attached, PeftModel) else attached
            again = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), self._casts[-1])}
            dual.activation_checkpointing_enable(again)
        return attached

    @cached_property
    def _casts(self) -> list[Casts]:
        return []

    def images(self, count: int, texts: int) -> Piece:
        """So many images at a time, with as many texts to each as the objective's alignment is made with."""
        objective = objectives.load(self.recipe.objective)
        side, dual = self.opened.pixels.side, self._dual

        def forward() -> list[torch.Tensor]:
            pixels = torch.empty(count, 3, side, side, device="meta")
            made = dual.encode_images(pixels, patches=objective.needs_patches)
            if made.patches is None:
                return [made.embeddings]
            attending = torch.empty(count * texts, made.embeddings.shape[1], device="meta", requires_grad=True)
            owner = torch.arange(count).repeat_interleave(texts)
            return [made.embeddings, objective.local(made.patches, attending, owner)]

        return self._piece(forward)

    def texts(self, count: int, length: int) -> Piece:
        """So many texts of one length."""
        ids = torch.zeros(count, length, dtype=torch.int64)
        if (eos := self.opened.config.eos_token_id) is not None:
            ids[:, -1] = eos
        return self._piece(lambda: [self._dual.encode_texts(ids, torch.ones_like(ids))])

    def loss(self, images: int, aspects: Sequence[str]) -> Piece:
        """The loss of so many images, each with a text of every aspect named."""
        objective = objectives.load(self.recipe.objective)
        each, width = len(aspects), self.opened.config.projection_dim
        owner = torch.arange(images).repeat_interleave(each)
        relation = torch.full((images, images * each), NEGATIVE, dtype=torch.int8)
        relation[owner, torch.arange(len(owner))] = POSITIVE
        aspect = torch.tensor([ASPECT[name] for name in aspects]).repeat(images)

        def forward() -> list[torch.Tensor]:
            rows, texts = (
                torch.empty(count, width, device="meta", requires_grad=True) for count in (images, len(owner))
            )
            similarity = torch.empty(relation.shape, device="meta") if objective.needs_ontology else None
            local = (
                torch.empty(len(owner), width, device="meta", requires_grad=True) if objective.needs_patches else None
            )
            bias = self._dual.scale.bias
            features = Features(rows, texts, self._dual.scale.value(), bias, local)
            return [objective.loss(features, Pairing(owner, aspect, relation, similarity), 0.0)]

        return self._piece(forward, bf16=False)

    @property
    def _dual(self) -> DualEncoder:
        dual: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(dual, DualEncoder)
        return dual

    def _piece(self, forward: Callable[[], list[torch.Tensor]], *, bf16: bool | None = None) -> Piece:
        count = Counted()
        casts = Casts(self.recipe.bf16 if bf16 is None else bf16, self.cuda, count)
        self._casts.append(casts)
        for parameter in [*self.model.parameters(), *self.model.buffers()]:
            parameter.grad = None
            count.resident(parameter)
        with count:
            with casts:
                outputs = forward()
            casts.end_forward()
            once = sum(count.flops)
            trained = [output for output in outputs if output.requires_grad]
            if trained:
                torch.autograd.backward(trained, [torch.empty_like(output) for output in trained])
        piece = Piece(max(count.peaks), once, sum(count.flops))
        for parameter in self.model.parameters():
            parameter.grad = None
        return piece
