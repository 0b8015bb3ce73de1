"""The little that two towers need on top of transformers' Trainer: whole batches, cached gradients, the scale."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skinvl.data.draws import BatchError, Draw, ImageSampler, part
from skinvl.data.texts import TextedImage
from skinvl.model import objectives, towers_adapter
from skinvl.model.cached_gradients import CachedGradients, Whole
from skinvl.model.dual_batch import DualBatch, DualCollator, TextedDataset, pool
from skinvl.model.objectives import EMPTY, NEGATIVE, POSITIVE
from skinvl.model.towers_loaded import LoadedTowers
from skinvl.recipe.towers import PretrainRecipe
from skinvl.train.loop import Loop

NAMED = 8  # images that a message names


class TowersTrainer(Loop):
    """A Trainer of towers: the images of a step are shared among the ranks, each of which has the whole gradient.

    Args:
        collator: what a TextedDataset gives → a batch.
        train: images.
        evaluation: those of each eval set.
        log: the JSON-lines file that every logged dictionary is appended to.

    Raises:
        BatchError: an epoch has less than a batch.
    """

    section = "towers"
    unreached = "Its tower is one that its head does not read"
    recipe: PretrainRecipe
    write: Callable[[Path], None] | None = None
    """What writes a part of the model that is left, where not all of it is."""

    def __init__(
        self,
        loaded: LoadedTowers[Any],
        args: TrainingArguments,
        collator: Any,
        train: Sequence[TextedImage],
        evaluation: Mapping[str, Sequence[TextedImage]],
        log: Path,
    ) -> None:
        recipe = loaded.recipe
        self.recipe, self.parts = recipe, recipe.towers
        args._n_gpu = min(args.n_gpu, 1)  # more GPUs are ranks
        super().__init__(
            model=loaded.model,
            args=args,
            data_collator=collator,
            train_dataset=TextedDataset(train),
            eval_dataset={name: TextedDataset(images) for name, images in evaluation.items()} or None,
            processing_class=Inputs(loaded),
        )
        # A step's gradients are whole on every rank; what wraps a model for several of them would average them again.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.sampler = ImageSampler(train, args.seed, recipe.batch.images)
        self.attention = str(loaded.facts["attention"])
        self.watch(log, recipe.early_stopping)

    def part_of(self, name: str) -> str:
        """The tower that a parameter belongs to, or the heads with the scale."""
        return towers_adapter.part_of(name)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """The weights that decay: matrices; neither norms, biases, single vectors nor the scale."""
        names: list[str] = super().get_decay_parameter_names(model)
        matrices = {name for name, weight in model.named_parameters() if weight.dim() > 1}
        return [name for name in names if name in matrices]

    def get_train_dataloader(self) -> EpochLoader:
        """The batches of this rank, each its part of what a step compares."""
        args = self.args
        return EpochLoader(
            self.train_dataset,
            batch_sampler=RankBatches(self.sampler, args.process_index, args.world_size),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            generator=torch.Generator(),  # its own, so that dropout is the same whatever loads the images
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """The batch of the next step."""
        started = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        waited = time.perf_counter() - started
        for batch in batches:
            self.throughput.batches(len(batch.names), *self.counted(batch), waited)
        return batches, None

    def counted(self, batch: Any) -> tuple[int, int]:
        """What a batch has of what is counted as tokens, and what is computed for these."""
        raise NotImplementedError

    def evaluate(
        self,
        eval_dataset: Mapping[str, TextedDataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """What is `measured` of each eval set, and the mean loss of all."""
        metrics: dict[str, float] = {}
        losses, started = list[float](), time.monotonic()
        self.model.eval()
        for name in self.eval_dataset if eval_dataset is None else eval_dataset:
            values = self.measured(name)
            losses.append(values["loss"])
            metrics |= {f"{metric_key_prefix}_{name}_{key}": value for key, value in values.items()}
        metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        metrics[f"{metric_key_prefix}_runtime"] = round(time.monotonic() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measured(self, name: str) -> dict[str, float]:
        """The loss of an eval set's fixed sample, how many images are in it, and what else tells of it."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0 to 1."""
        return float(self.state.global_step / max(self.state.max_steps, 1))

    # What transformers would count of a batch, which it expects to be a dictionary.

    def floating_point_ops(self, inputs: Any) -> int:
        """Nothing: transformers' rule knows of one sequence, and here are two towers."""
        return 0


class DualTrainer(TowersTrainer):
    """A Trainer of two towers: the loss compares all images of a step with all their texts, over all ranks.

    Args:
        train: images with texts that the text tower reads.
        evaluation: those of each eval set.
        log: the JSON-lines file that every logged dictionary is appended to.

    Raises:
        BatchError: an epoch has less than a batch, or an eval set nothing to be told apart.
    """

    def __init__(
        self,
        loaded: LoadedTowers[Any],
        args: TrainingArguments,
        train: Sequence[TextedImage],
        evaluation: Mapping[str, Sequence[TextedImage]],
        log: Path,
    ) -> None:
        recipe = loaded.recipe
        objective = objectives.load(recipe.objective)
        collator = DualCollator(loaded.tokenizer, loaded.pixels, recipe.data.augmentation, args.seed, objective.places)
        super().__init__(loaded, args, collator, train, evaluation, log)
        model: Any = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
        self.cached = CachedGradients(
            model, loaded.tokenizer, objective, recipe.negatives, recipe.batch.at_once, loaded.autocast
        )
        self.pools = {name: pool(name, images, recipe, args.seed) for name, images in evaluation.items()}
        self._read: dict[str, DualBatch] = {}  # this rank's share of a pool, once its images are decoded
        self._tally: Counter[str] = Counter()  # of the steps since the log was last written
        self._steps = 0
        self.add_callback(ClampedScale(self))

    def dead_layers(self) -> list[str]:
        """The layers whose LoRA has no gradient."""
        return towers_adapter.dead_pairs(self.model)

    def counted(self, batch: DualBatch) -> tuple[int, int]:
        """The tokens of a batch's texts, and the positions that the text tower computes for them."""
        tokens = sum(len(batch.texts[number]) for number in batch.text.tolist())
        return tokens, self.cached.positions(batch)

    def training_step(
        self, model: torch.nn.Module, inputs: DualBatch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of the batches of all ranks, float32[]; every gradient is there then.

        Raises:
            TrainingError: the loss is not a number; the message names the images of this rank's batch.
            BatchError: nothing in the batch is to be told apart.
        """
        self.model.train()
        self.images_seen = True
        try:
            whole = self.cached.gradients(inputs.to(self.args.device), self.progress)
        except BatchError as error:
            names = ", ".join(inputs.names[:NAMED]) + ", …" * (len(inputs.names) > NAMED)
            raise BatchError(
                f"step {self.state.global_step + 1}, with {names}: {error}; raise batch.images, train on more than one "
                "patient, or set negatives.… to keep"
            ) from error
        if not whole.loss.isfinite():
            self.refuse_loss(inputs.names, "look at these images and their texts with skinvl show")
        self._tally.update(whole.tally)
        self._steps += 1
        return whole.loss

    @property
    def pair_names(self) -> list[str]:
        """What the log calls pairs beside an image's own texts that are no negatives."""
        verdicts = self.recipe.negatives.model_dump()
        return [f"{reason}_{verdict}" for reason, verdict in verdicts.items() if verdict != "keep"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a dictionary; with a loss also the scale, and by reason how many pairs of a step are no negatives."""
        if "loss" in logs:
            logs["scale"] = float(self.cached.model.scale.value().detach())
            logs |= {reason.replace(" ", "_"): count / self._steps for reason, count in sorted(self._tally.items())}
            self._tally, self._steps = Counter(), 0
        super().log(logs, start_time)

    def measured(self, name: str) -> dict[str, float]:
        """The loss and R@1 of an eval set's pool over all ranks, and the images in it, on which both depend."""
        cached = replace(self.cached, at_once=self.recipe.evaluate.batch_size)
        whole = cached.evaluated(self._share(name).to(self.args.device), self.progress)
        return {"loss": float(whole.loss), "R@1": recall_at_1(whole), "images": float(len(self.pools[name]))}

    def _share(self, name: str) -> DualBatch:
        """What this rank encodes of a pool."""
        if name not in self._read:
            own = part(self.pools[name], self.args.process_index, self.args.world_size)
            self._read[name] = self.data_collator([(image, None) for image in own])
        return self._read[name]


class Inputs:
    """What prepares texts and images, in the form in which a Trainer saves it beside the weights."""

    def __init__(self, loaded: LoadedTowers[Any]) -> None:
        self._loaded = loaded

    def save_pretrained(self, folder: str) -> None:
        """Writes tokenizer and image processor into a folder."""
        self._loaded.tokenizer.save(Path(folder))
        self._loaded.pixels.save(Path(folder))


class RankBatches:
    """The batches of one rank in the epoch that a sampler draws: its part of each step."""

    def __init__(self, sampler: ImageSampler, rank: int, ranks: int) -> None:
        self.sampler, self.rank, self.ranks = sampler, rank, ranks

    def __len__(self) -> int:
        return len(self.sampler) // self.sampler.batch

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = list(self.sampler)
        for start in range(0, len(draws), self.sampler.batch):
            yield list(part(draws[start : start + self.sampler.batch], self.rank, self.ranks))

    def set_epoch(self, epoch: int) -> None:
        """Has the next iteration draw this epoch."""
        self.sampler.set_epoch(epoch)


class EpochLoader(DataLoader[DualBatch]):
    """A data loader that tells its sampler which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer; of a loader that skips what a resumed run has done, it finds the sampler itself."""
        batches: Any = self.batch_sampler
        batches.set_epoch(epoch)


class ClampedScale(TrainerCallback):
    """Keeps the scale within its limits after every step."""

    def __init__(self, trainer: DualTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.trainer.spec("heads").train != "frozen":
            self.trainer.cached.model.scale.clamp_()


def recall_at_1(whole: Whole) -> float:
    """The mean of both directions' share of images (of texts) whose nearest text (image) is a right one.

    Pairs that are ignored are out of the way, and a tie with a wrong one is none.
    """
    relation = whole.pairing.relation
    similarities = whole.features.images @ whole.features.texts.T
    right = similarities.masked_fill(relation != POSITIVE, -torch.inf)
    wrong = similarities.masked_fill(relation != NEGATIVE, -torch.inf)
    to_text, to_image = ((right.amax(axis) > wrong.amax(axis)).double() for axis in (1, 0))
    return float((to_text.mean() + to_image[whole.pairing.aspect != EMPTY].mean()) / 2)
