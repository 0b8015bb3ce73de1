"""Masked latent modelling: an image tower sees a part of an image's patches and is to know what a teacher sees in all.

    L = w_masked · mean_m (1 − cos(ŷ_m, y_m)) + w_visible · mean_v (1 − cos(ŷ_v, y_v)) + w_cls · (1 − cos(ŷ_c, y_c))

y are the frozen teacher's embeddings of the whole image: of each patch, through its head, and of the image (c). The
tower reads the visible patches alone; ŷ_v and ŷ_c are linear in what it makes of them and of CLS (their mean, where a
tower has none). ŷ_m come from mask tokens that, each at its place, attend to these in a few layers of cross-attention:
the regressor, which is thrown away with the linear layer after. As CAE v2 (Zhang et al. 2022, arXiv:2211.09799) and
PanDerm's code describe it; that each kind's mean has a weight of its own is ours, they take one mean over all tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from skinvl.data.draws import Draw
from skinvl.data.texts import TextedImage
from skinvl.model import ranks, towers
from skinvl.model.augment import Augmentation
from skinvl.model.dual import DualEncoder, DualEncoderConfig
from skinvl.model.dual_batch import drawn
from skinvl.model.dual_inputs import PixelFormat
from skinvl.model.hub import BaseError
from skinvl.model.towers_loaded import LoadedTowers, load_towers, snapshot
from skinvl.recipe import run
from skinvl.recipe.base import load_base
from skinvl.recipe.run import RunError
from skinvl.recipe.towers import Objective, PretrainRecipe

LEAST_BLOCK = 12  # a block has at least one in so many of the patches, and
ELONGATED = 0.3  # sides in a ratio from this one to its inverse: both as BEiT's, whose code is MIT


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """b images of one rank, and which patches of each the tower does not see."""

    pixels: torch.Tensor  # uint8[b, 3, H, W]
    visible: torch.Tensor  # int64[b, V], numbers of patches, ascending
    masked: torch.Tensor  # int64[b, M]
    names: tuple[str, ...]

    def __getitem__(self, rows: slice) -> MaskedBatch:
        return MaskedBatch(self.pixels[rows], self.visible[rows], self.masked[rows], self.names[rows])

    def to(self, device: torch.device | str) -> MaskedBatch:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def pin_memory(self) -> MaskedBatch:
        """The same with its tensors in page-locked memory, from which a GPU copies fast."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MaskedBatch:
        return replace(self, pixels=change(self.pixels), visible=change(self.visible), masked=change(self.masked))


@dataclass(frozen=True, slots=True)
class MaskingCollator:
    """What a TextedDataset gives → MaskedBatch; pixels and masks depend on the Draw and the seed alone."""

    format: PixelFormat
    augmentation: Augmentation
    seed: int
    grid: int  # patches of a side
    count: int  # of the masked ones

    def __call__(self, items: Sequence[tuple[TextedImage, Draw | None]]) -> MaskedBatch:
        """The batch.

        Raises:
            ImageError: an image cannot be read.
        """
        patches = self.grid**2
        masks = torch.zeros(len(items), patches, dtype=torch.bool)
        for row, (image, draw) in enumerate(items):
            epoch = image.name if draw is None else f"{draw.epoch}-{draw.row}-{draw.copy}"
            generator = random.Random(f"{self.seed}-{epoch}-mask")
            masks[row, block_mask(self.grid, self.count, generator)] = True
        numbers = masks.int().argsort(stable=True, dim=1)  # the visible ones first, each kind ascending
        cut = patches - self.count
        pictures = [drawn(image, draw, self.format, self.augmentation, self.seed) for image, draw in items]
        names = tuple(image.name for image, _ in items)
        return MaskedBatch(self.format.batch(pictures), numbers[:, :cut], numbers[:, cut:], names)


def block_mask(grid: int, count: int, generator: random.Random) -> list[int]:
    """The numbers of exactly `count` of grid × grid patches, in blocks; of the last block as many as are left."""
    masked: dict[int, None] = {}
    least = max(grid**2 // LEAST_BLOCK, 1)
    while len(masked) < count:
        area = generator.uniform(least, max(least, count - len(masked)))
        ratio = math.exp(generator.uniform(math.log(ELONGATED), -math.log(ELONGATED)))
        height, width = (min(max(round(math.sqrt(area * each)), 1), grid) for each in (ratio, 1 / ratio))
        top, left = generator.randint(0, grid - height), generator.randint(0, grid - width)
        block = [row * grid + column for row in range(top, top + height) for column in range(left, left + width)]
        new = [number for number in block if number not in masked]
        masked |= dict.fromkeys(new[: count - len(masked)])
    return sorted(masked)


class Regressor(nn.Module):
    """From what a tower makes of the visible patches to the teacher's latents, at the masked places too."""

    places: torch.Tensor  # float32[P, W]

    def __init__(self, width: int, heads: int, layers: int, grid: int, target: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(CrossLayer(width, heads) for _ in range(layers))
        self.after = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, target)
        self.register_buffer("places", places(grid, width), persistent=False)
        nn.init.normal_(self.token, std=0.02)

    def forward(
        self, hidden: torch.Tensor, before: int, batch: MaskedBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents of the masked patches float[b, M, D], of the visible ones float[b, V, D], of the image float[b, D].

        Args:
            hidden: float[b, before + V, W], what the tower makes of what it sees.
            before: positions before the patches.
        """
        hidden = self.norm(hidden)
        own, patches = hidden[:, :before], hidden[:, before:]
        seen = torch.cat([own, patches + self.places[batch.visible]], 1)
        queries = self.token + self.places[batch.masked]
        for layer in self.layers:
            queries = layer(queries, seen)
        image = own[:, 0] if before else patches.mean(1)
        return self.decoder(self.after(queries)), self.decoder(patches), self.decoder(image)


class CrossLayer(nn.Module):
    """Queries attend to what is seen, and to nothing else."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """float[b, M, W] of queries float[b, M, W] and what is seen float[b, T, W]."""
        queries = queries + self.attention(self.before(queries), seen, seen, need_weights=False)[0]
        made: torch.Tensor = queries + self.mlp(queries)
        return made


def places(grid: int, width: int) -> torch.Tensor:
    """float32[grid², W], sines and cosines of a patch's row and column, a half of the numbers each."""
    frequencies = 1e4 ** -(torch.arange(0, width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([waves.repeat_interleave(grid, 0), waves.repeat(grid, 1)], 1)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen image tower with its head, of the same patches."""

    loaded: LoadedTowers

    @torch.no_grad()
    def latents(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the patches float32[b, P, D] and of the images float32[b, D], of pixels uint8[b, 3, H, W]."""
        model: Any = self.loaded.model
        with self.loaded.autocast():
            made = model.encode_images(self.loaded.pixels.normalised(pixels), patches=True)
        return made.patches, made.embeddings


@dataclass(frozen=True, slots=True)
class Latents:
    """A student with its regressor, a teacher, and what the loss of a batch is."""

    student: LoadedTowers  # a DualEncoder with a `regressor`
    teacher: Teacher
    settings: Objective

    @property
    def model(self) -> DualEncoder:
        """The student's model."""
        assert isinstance(self.student.model, DualEncoder)
        return self.student.model

    def losses(self, batch: MaskedBatch) -> torch.Tensor:
        """float32[3], the means over the batch's images of 1 − cosine: masked patches, visible ones, the image."""
        patches, image = self.teacher.latents(batch.pixels)
        model, pixels = self.model, self.student.pixels.normalised(batch.pixels)
        regressor: Any = model.regressor
        with self.student.autocast():
            made = regressor(read_visible(model, pixels, batch.visible), model.images.before, batch)
        rows = torch.arange(len(patches), device=patches.device)[:, None]
        wanted = patches[rows, batch.masked], patches[rows, batch.visible], image
        pairs = zip(made, wanted, strict=True)
        return torch.stack([1 - cosine_similarity(ours.float(), theirs, dim=-1).mean() for ours, theirs in pairs])

    def weighed(self, losses: torch.Tensor) -> torch.Tensor:
        """float32[], the loss of the `losses`."""
        settings = self.settings
        weights = losses.new_tensor([settings.masked_weight, settings.visible_weight, settings.cls_weight])
        return (weights * losses).sum()

    def gradients(self, batch: MaskedBatch, images: int, at_once: int) -> torch.Tensor:
        """float32[3], the `losses` of all ranks' batches; adds the gradient to `.grad` of all that trains.

        Each image's loss is its own, so that neither chunks nor ranks change the sum.

        Args:
            batch: that of this rank, on the model's device; it may hold no image while others do.
            images: of the batches of all ranks.
            at_once: whose activations are kept at a time.
        """
        total = torch.zeros(3, device=batch.pixels.device)
        for start in range(0, len(batch.names), at_once):
            chunk = batch[start : start + at_once]
            losses = self.losses(chunk) * (len(chunk.names) / images)
            torch.autograd.backward(self.weighed(losses))
            total += losses.detach()
        ranks.sum_gradients([weight for weight in self.model.parameters() if weight.requires_grad])
        return ranks.summed(total)


def read_visible(model: DualEncoder, pixels: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """float[b, before + V, W], what a tower makes of some patches of pixels float[b, 3, H, W], and of no others.

    Args:
        visible: int64[b, V], the numbers of these patches.
    """
    before = model.images.before

    def chosen(module: nn.Module, arguments: Any, output: Any) -> Any:
        whole = output[0] if isinstance(output, tuple) else output
        first = torch.arange(before, device=visible.device).expand(len(visible), -1)
        places_kept = torch.cat([first, visible + before], 1)[..., None].expand(-1, -1, whole.shape[-1])
        picked = whole.gather(1, places_kept)
        return (picked, *output[1:]) if isinstance(output, tuple) else picked

    tower: Any = model.image_tower
    hook = tower.embeddings.register_forward_hook(chosen)
    try:
        hidden, _ = model.images.read_images(tower, pixels, pool=False)
    finally:
        hook.remove()
    return hidden


def grid_of(config: DualEncoderConfig) -> tuple[int, int]:
    """The side of a config's images in pixels, and that of a patch."""
    image, _ = config.image_and_text
    return towers.of_image(image.model_type).side(image), int(image.patch_size)


def teacher_of(recipe: PretrainRecipe, device: torch.device) -> tuple[Teacher, str]:
    """The teacher of a recipe, and a digest of its weights.

    Raises:
        BaseError, RunError: it cannot be had.
    """
    name = str(recipe.objective.teacher)
    if (Path(name) / run.RECIPE).is_file():
        own = run.finished_towers(Path(name)).adapted()
    elif Path(name).parts[0] == "runs":
        raise RunError(
            f"objective.teacher: {name} is no finished run; train it first (tiny-latent's is what make pretrain "
            "makes), or name another run or base"
        )
    else:
        clip = Objective(name="clip")
        own = recipe.model_copy(update={"base": load_base(name, "dual"), "init_adapter": None, "objective": clip})
    loaded = load_towers(own, device)
    loaded.model.requires_grad_(False)
    return Teacher(loaded), loaded.facts["adapter"] or snapshot(own).fingerprint()


def lay_regressor(model: DualEncoder, teacher: Teacher, settings: Objective) -> MaskingSizes:
    """Lays a fresh regressor on a model as `regressor`, and freezes what of its tower no patch goes through.

    Raises:
        BaseError: a tower that cannot read a part of its patches, or a teacher of other patches.
    """
    config = model.config
    assert isinstance(config, DualEncoderConfig)
    side, patch = grid_of(config)
    image, _ = config.image_and_text
    if image.model_type == "siglip2_vision_model" or getattr(image, "use_relative_position_bias", False):
        raise BaseError(
            f"objective latent: an image tower of type {image.model_type} that attends by a mask or by relative "
            "positions, of which a part of the patches has no own; give a base with CLIP's, SigLIP's or PanDerm's tower"
        )
    theirs: Any = teacher.loaded.model
    other = grid_of(theirs.config)
    if other != (side, patch):
        raise BaseError(
            f"objective.teacher: {settings.teacher} sees {other[0]} px in patches of {other[1]}, and the tower {side} "
            f"px in patches of {patch}; expected the same. Give another teacher or base"
        )
    grid = side // patch
    count = round(grid**2 * settings.masked_share)
    if not 0 < count < grid**2:
        raise BaseError(
            f"objective.masked_share: {settings.masked_share} of {grid**2} patches are {count}; expected some masked "
            "and some visible"
        )
    model.regressor = Regressor(
        image.hidden_size, image.num_attention_heads, settings.regressor_layers, grid, theirs.config.projection_dim
    ).to(model.device)
    for name in model.images.pools:
        module: Any = model.image_tower.get_submodule(name)
        module.requires_grad_(False)
    return MaskingSizes(grid, count)


@dataclass(frozen=True, slots=True)
class MaskingSizes:
    """How images are masked: patches of a side, and how many of all the tower does not see."""

    grid: int
    count: int
