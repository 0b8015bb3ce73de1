"""The training of an image tower on a teacher's latents (skinvl/model/latent.py), over the loop of two towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from skinvl.data.draws import part
from skinvl.data.texts import TextedImage
from skinvl.model import latent, ranks
from skinvl.model.dual import DualEncoder
from skinvl.model.dual_batch import TextedDataset, sampled
from skinvl.model.latent import Latents, MaskedBatch, MaskingCollator, Teacher
from skinvl.model.towers_loaded import LoadedTowers
from skinvl.train.dual_trainer import TowersTrainer

LOSSES = ("masked", "visible", "cls")  # as the weights of the recipe name them


class LatentTrainer(TowersTrainer):
    """A Trainer of an image tower, whose regressor stands in the model while it trains, and in checkpoints.

    Args:
        teacher: on the device of the model.

    Raises:
        BaseError: the tower cannot read a part of its patches, or the teacher has others.
        BatchError: an epoch has less than a batch.
    """

    unreached = "Its tower is one that the regressor does not read"

    def __init__(
        self,
        loaded: LoadedTowers,
        teacher: Teacher,
        args: TrainingArguments,
        train: Sequence[TextedImage],
        evaluation: Mapping[str, Sequence[TextedImage]],
        log: Path,
    ) -> None:
        recipe, model = loaded.recipe, loaded.model
        assert isinstance(model, DualEncoder)
        masking = latent.lay_regressor(model, teacher, recipe.objective)
        self.latents = Latents(loaded, teacher, recipe.objective)
        collator = MaskingCollator(loaded.pixels, recipe.data.augmentation, args.seed, masking.grid, masking.count)
        super().__init__(loaded, args, collator, train, evaluation, log)
        self.samples = {name: sampled(images, recipe.evaluate.during, args.seed) for name, images in evaluation.items()}
        self._losses = torch.zeros(len(LOSSES))  # of the steps since the log was last written
        self._steps = 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model; the regressor, which only the training needs, into checkpoints alone."""
        model: Any = self.latents.model
        regressor = model.regressor
        if not _internal_call:
            del model.regressor
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            model.regressor = regressor

    def part_of(self, name: str) -> str:
        """The image tower, the regressor included, which trains at its rate."""
        return "image" if name.startswith("regressor.") else super().part_of(name)

    def counted(self, batch: MaskedBatch) -> tuple[int, int]:
        """The patches of a batch, and the positions that the image tower computes for them."""
        images, visible = batch.visible.shape
        before: int = self.latents.model.images.before
        return images * (visible + batch.masked.shape[1]), images * (before + visible)

    def training_step(
        self, model: torch.nn.Module, inputs: MaskedBatch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of the batches of all ranks, float32[]; every gradient is there then.

        Raises:
            TrainingError: the loss is not a number; the message names the images of this rank's batch.
        """
        self.model.train()
        self.images_seen = True
        recipe = self.recipe
        losses = self.latents.gradients(inputs.to(self.args.device), recipe.batch.images, recipe.batch.at_once)
        loss = self.latents.weighed(losses)
        if not loss.isfinite():
            self.refuse_loss(inputs.names, "look at these images")
        self._losses += losses.cpu()
        self._steps += 1
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a dictionary; with a loss also 1 − cosine of masked patches, visible patches and images."""
        if "loss" in logs:
            logs |= dict(zip(LOSSES, (self._losses / max(self._steps, 1)).tolist(), strict=True))
            self._losses, self._steps = torch.zeros(len(LOSSES)), 0
        super().log(logs, start_time)

    @torch.no_grad()
    def measured(self, name: str) -> dict[str, float]:
        """The losses of an eval set's sample over all ranks, masked the same each time, and the images in it."""
        images = self.samples[name]
        own: Any = part(images, self.args.process_index, self.args.world_size)
        losses = torch.zeros(len(LOSSES), device=self.args.device)
        loader: Any = DataLoader(
            TextedDataset(own),
            batch_size=self.recipe.evaluate.batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        for batch in loader if own else ():
            losses += self.latents.losses(batch.to(self.args.device)) * (len(batch.names) / len(images))
        losses = ranks.summed(losses)
        named = dict(zip(LOSSES, losses.tolist(), strict=True))
        return {"loss": float(self.latents.weighed(losses)), **named, "images": float(len(images))}
