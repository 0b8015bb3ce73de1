"""The same two towers with random weights as open_clip trains them and as skinvl does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from skincap import LENGTH, VOCABULARY

from skinvl.model import objectives
from skinvl.model.cached_gradients import CachedGradients
from skinvl.model.dual import MOST, DualEncoder
from skinvl.model.dual_batch import DualBatch
from skinvl.model.dual_inputs import TextTokenizer
from skinvl.model.open_clip import dual_encoder
from skinvl.model.open_clip_layout import layout
from skinvl.recipe import towers

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Size:
    """Two towers and a batch."""

    images: int
    side: int
    image: tuple[int, int]  # layers, width
    text: tuple[int, int]
    dim: int = 256

    def __str__(self) -> str:
        (image, width), (text, inner) = self.image, self.text
        return f"{self.images} images of {self.side} px, ViT {image} x {width} of 16 px, text {text} x {inner}"


class Theirs:
    """open_clip's model and its training step, as its train.py takes it."""

    def __init__(self, size: Size, autocast: Autocast = nullcontext) -> None:
        torch.manual_seed(0)
        (layers, width), (depth, inner) = size.image, size.text
        vision = CLIPVisionCfg(layers=layers, width=width, patch_size=16, image_size=size.side)
        text = CLIPTextCfg(vocab_size=VOCABULARY, width=inner, heads=inner // 64, layers=depth)
        self.model = CLIP(size.dim, vision, text)
        self.loss = ClipLoss()
        self.optimizer: torch.optim.Optimizer | None = None
        self.autocast = autocast

    def step(self, forward: Callable[[], torch.Tensor]) -> float:
        """The loss of a step."""
        self.optimizer = self.optimizer or adamw(self.model)
        self.optimizer.zero_grad()
        with self.autocast():
            loss = forward()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MOST)
        return float(loss.detach())

    def one_caption(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The loss of images with a text each."""
        images, texts, scale = self.model(pixels, ids)
        loss: torch.Tensor = self.loss(images, texts, scale)
        return loss


class Ours:
    """The same weights in a DualEncoder, and its training step."""

    def __init__(self, theirs: Theirs, at_once: int, objective: towers.Objective) -> None:
        architecture = layout(theirs.model.state_dict(), {}, Vocabulary(), {}, "a random model")
        converted = dual_encoder(theirs.model.state_dict(), architecture, False, "a random model")
        with tempfile.TemporaryDirectory() as folder:
            converted.save_pretrained(folder)
            self.model = DualEncoder.from_pretrained(folder, dtype=torch.float32).train()
        tokenizer = TextTokenizer(Vocabulary(), LENGTH)
        self.cached = CachedGradients(
            self.model, tokenizer, objectives.load(objective), towers.Negatives(), at_once, theirs.autocast
        )
        self.optimizer: torch.optim.Optimizer | None = None

    def step(self, batch: DualBatch) -> float:
        """The loss of a step."""
        self.optimizer = self.optimizer or adamw(self.model)
        self.optimizer.zero_grad()
        loss = self.cached.gradients(batch, 0.0).loss
        self.optimizer.step()
        self.model.scale.clamp_()
        return float(loss)


class Vocabulary(SimpleNamespace):
    """What is asked of CLIP's tokenizer by what gets tokens."""

    bos_token_id, eos_token_id, pad_token_id, padding_side = VOCABULARY - 2, VOCABULARY - 1, 0, "right"

    def __len__(self) -> int:
        return VOCABULARY


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW of DermLIP's settings, without decay of vectors and of the scale."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": 0.1},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
