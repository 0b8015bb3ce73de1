"""All that a recipe needs on its base: parameters, batches, a step on the meta device, what is kept on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from skinvl.model import adapter, precompute
from skinvl.model.base import base_dtype, blank_model, count_parameters
from skinvl.model.loaded import OpenBase
from skinvl.model.pack import Batch
from skinvl.plan import gpus, memory, workload
from skinvl.plan.memory import Memory
from skinvl.plan.meta_step import MetaStep, Trace
from skinvl.plan.workload import Assumed, Epoch
from skinvl.recipe.recipe import Recipe

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@dataclass(frozen=True, slots=True)
class Disk:
    """The features of a frozen tower."""

    images: int  # different ones that an epoch shows
    size: int  # bytes of all
    kept: bool  # whether they are; else the tower runs in every step
    flops: float  # to compute them once


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a recipe needs, before it is held against a GPU."""

    recipe: Recipe
    ranks: int
    remarks: tuple[str, ...]  # what was assumed
    counts: dict[str, adapter.Trained]
    parameters: int  # of the base
    shared: Epoch  # as the recipe has it
    apart: Epoch  # with each conversation on its own
    disk: Disk
    real: MetaStep  # the model as it is loaded
    stage: MetaStep  # the model as its step runs on the meta device: of a frozen tower only what comes out of it
    batch: Batch  # the largest
    image_ids: frozenset[int]
    trace: Trace  # of the largest batch
    double: Trace  # of twice as much
    rates: gpus.Rates

    @property
    def conversations(self) -> int:
        """Conversations of the largest batch."""
        return len(self.shared.largest.conversations)

    @property
    def logits(self) -> tuple[int, float]:
        """Trained tokens of the largest batch, and the bytes of their logits in float32: there are no others."""
        count = int(self.batch.supervised.sum())
        return count, float(count * self.stage.config.get_text_config().vocab_size * memory.FP32)

    def needed(self, trace: Trace | None = None, **changes: object) -> Memory:
        """The memory of each GPU, by another step or with other fields of the recipe that leave the step alone."""
        recipe = self.recipe.model_copy(update=changes)
        return memory.needed(recipe, memory.weights(replace(self.real, recipe=recipe)), trace or self.trace, self.ranks)

    def fitting(self, room: float) -> int:
        """The most conversations that a batch may have on a GPU of so many bytes; activations grow with them."""
        each = (self.double.peak - self.trace.peak) / self.conversations
        moving = self.trace.peak + room - self.needed().total
        return max(int((moving - (self.trace.peak - each * self.conversations)) // each), 0)

    def otherwise(self) -> Trace:
        """The step of the largest batch with activations kept, if the recipe computes them again, else the reverse."""
        trace = replace(self.stage, checkpointing=not self.stage.checkpointing).step(self.batch)
        return trace.before(self.trace.peaks[0])  # the tower's step, which is the same, may stand there

    def sharded(self) -> Trace:
        """The step of the largest batch under ZeRO-3, where PEFT's own forward runs and keeps more of dropout."""
        recipe = self.stage.recipe.model_copy(update={"train": {**self.stage.recipe.train, "deepspeed": "zero3"}})
        return replace(self.stage, recipe=recipe).step(self.batch).before(self.trace.peaks[0])

    def halved(self) -> float:
        """The share of the largest batch's positions that are left with half as many for each image."""
        ids = self.batch.ids
        images = int(torch.isin(ids, torch.tensor(sorted(self.image_ids))).sum())
        return float(1 - images / 2 / ids.numel())


def estimate(base: OpenBase, ranks: int, guess: Assumed, *, cuda: bool = True) -> Requirements:
    """What the recipe of a base needs on so many GPUs.

    Args:
        guess: the conversations where a source is not prepared.
        cuda: whether they are GPUs; else each is a process on a CPU.
    """
    recipe, config, family, chat, own = base.recipe, base.config, base.family, base.chat, base.own_tokenizer

    # An epoch: of the data as it lies there, or of assumed conversations.
    lacking = workload.missing(recipe)
    rows = workload.rows_of(chat, recipe) if own and not lacking else []
    remarks = [] if own else [f"{recipe.base.name} comes without tokenizer.json: the length of its texts is assumed"]
    if recipe.data.thoughts != "dropped":
        remarks.append(f"data.thoughts={recipe.data.thoughts}: conversations are counted with the thoughts of answers")
    if recipe.data.references == "drawn":
        remarks.append("data.references=drawn: conversations are counted with the longest of their answers")
    remarks += [f"not prepared, so that conversations are assumed: {', '.join(lacking)}"] if lacking else []
    if rows:
        shared, apart = (workload.drawn(recipe, chat, rows, ranks, share) for share in (recipe.share_images, False))
        images, numbers = workload.features(chat, config, rows)
    else:
        remarks.append("assumed: " + ", ".join(f"{key}={value:,}" for key, value in asdict(guess).items()))
        shared, apart = (workload.assumed(recipe, chat, guess, ranks, share) for share in (recipe.share_images, False))
        images, numbers = workload.guessed(chat, config, guess)

    # Whether a frozen tower runs once for all, and its features are read from then on.
    frozen = recipe.parts.vision.train == "frozen"
    size = numbers * base_dtype(recipe).itemsize
    kept = False
    if frozen and images:
        reason = precompute.refusal(recipe, family, size, epochs(recipe, shared))
        kept = reason is None and recipe.cache_gb != 0
        remarks += [f"vision features: {reason}, so that the tower runs in every step"] if reason else []

    # A step of the largest batch, and of twice as much: the difference is what each conversation adds.
    # One in fp16 is counted as in bf16, which takes the same room.
    counted = (
        recipe.model_copy(update={"train": {**recipe.train, "fp16": False}}) if recipe.train.get("fp16") else recipe
    )
    stage = MetaStep(counted, config, family, frozen and images > 0, checkpointing(recipe), cuda)
    real = replace(stage, cached=kept)
    dtype = base_dtype(counted) if stage.cached else None
    first, share = shared.largest, recipe.share_images
    largest, doubled = (
        workload.inputs(chat, config, planned, share, dtype) for planned in (first, workload.twice(first))
    )
    trace, double = stage.step(largest), stage.step(doubled)
    load = workload.load(chat, first, share)

    # The frozen tower runs apart from the step: once for each image, or before every step where nothing is kept.
    each, once = 0.0, 0.0
    if stage.cached and first.sizes:
        picture, pixels = next(iter(first.sizes.items()))
        tower = stage.tower(picture, workload.pixels(chat, pixels))
        once = tower.flops["vision"] * images
        if not kept:
            each = tower.flops["vision"] / picture.vision_tokens
            trace, double = trace.before(tower.peak * load.images), double.before(2 * tower.peak * load.images)

    return Requirements(
        recipe,
        ranks,
        tuple(remarks),
        adapter.check(replace(stage, cached=False).model(), family, recipe),
        count_parameters(blank_model(config)),
        shared,
        apart,
        Disk(images, size, kept, once),
        real,
        stage,
        largest,
        chat.image_ids,
        trace,
        double,
        gpus.rates(trace, load, each),
    )


def epochs(recipe: Recipe, epoch: Epoch) -> float:
    """How many epochs a run takes."""
    steps: int = recipe.train.get("max_steps", -1)
    if steps <= 0:
        return float(recipe.train.get("num_train_epochs", workload.EPOCHS))
    return float(steps * recipe.train.get("gradient_accumulation_steps", 1) / epoch.batches)


def checkpointing(recipe: Recipe) -> bool:
    """Whether a run computes its activations a second time; TRL does unless told."""
    return bool(recipe.train.get("activation_checkpointing", True))
