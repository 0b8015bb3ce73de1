"""What a recipe of two towers needs in memory and hours: a step in the chunks it is encoded in, an epoch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Column, Table

from skinvl.data import texts
from skinvl.data.draws import ImageSampler, part
from skinvl.data.texts import TextedImage
from skinvl.model import towers_adapter
from skinvl.model.adapter import Trained
from skinvl.model.base import count_parameters
from skinvl.model.cached_gradients import text_chunks
from skinvl.model.dual_inputs import TextTokenizer
from skinvl.model.text_lengths import fitted
from skinvl.plan import gpus, memory, workload
from skinvl.plan.dual_configs import blank, open_config
from skinvl.plan.gpus import GIB, Gpu
from skinvl.plan.memory import CONTEXT, FP32
from skinvl.plan.towers_step import Piece, TowersStep
from skinvl.recipe.towers import PretrainRecipe

SAMPLE = 4096  # images of an epoch whose texts are measured, in whole batches and at least one
FEATURES = 4  # times that a batch's features are there: made, gathered, differentiated, and their gradients


@dataclass(frozen=True, slots=True)
class AssumedTexts:
    """Images with their texts for want of data, their tokens as in 655 images of SkinCAP."""

    images: int = 10_000  # an epoch
    caption: int = 64
    ontology: int = 15
    concepts: int = 16
    sentence: int = 25
    sentences: int = 3  # of an image


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank encodes in a step."""

    images: int
    texts: int
    chunks: tuple[tuple[int, int], ...]  # distinct texts that are encoded together: how many, and of how many tokens
    aspects: tuple[str, ...]  # of the texts of an image like the average one

    @property
    def positions(self) -> int:
        """Positions of the text tower."""
        return sum(count * length for count, length in self.chunks)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a recipe of two towers needs, before it is held against a GPU."""

    recipe: PretrainRecipe
    ranks: int
    remarks: tuple[str, ...]
    counts: dict[str, Trained]
    parameters: int
    step: Step
    steps: int  # of an epoch
    items: dict[str, float]  # bytes on each GPU
    each: float  # bytes of activations that an image more at a time would take
    flops: dict[str, float]  # of one rank's step
    padded: float  # of one whose texts are all as long as the text tower reads

    @property
    def total(self) -> float:
        """Bytes on each GPU."""
        return sum(self.items.values())

    @property
    def work(self) -> float:
        """Operations of one rank's step."""
        return sum(self.flops.values())

    def at_once(self, room: float) -> int:
        """The most images at a time on a GPU of so many bytes."""
        return max(int(self.recipe.batch.at_once + (room - self.total) // self.each), 0)


def needs(recipe: PretrainRecipe, configs: Path | None, ranks: int, guess: AssumedTexts, folder: Path) -> Needs:
    """What a recipe needs on so many GPUs.

    Raises:
        BaseError: its base cannot be had.
        ValueError: an optimizer whose state is not known, or data that cannot be trained on.
    """
    require_counted(recipe)
    opened, own_tokenizer = open_config(recipe, configs, folder)
    stage, width = TowersStep(opened), opened.config.projection_dim

    # A step: of the data as it lies there, or of assumed texts.
    lacking = workload.missing(recipe)
    remarks = [] if own_tokenizer else [f"{recipe.base.name} comes without tokenizer: the lengths of texts are assumed"]
    remarks += [f"not prepared, so that texts are assumed: {', '.join(lacking)}"] if lacking else []
    if own_tokenizer and not lacking:
        step, steps = _drawn(recipe, opened.tokenizer, ranks)
    else:
        step, steps = _assumed(recipe, opened.tokenizer, ranks, guess)
        remarks.append(
            f"assumed: {guess.images:,} images an epoch; tokens of a caption {guess.caption}, ontology text "
            f"{guess.ontology}, concepts {guess.concepts}, each of {guess.sentences} sentences {guess.sentence}"
        )

    # The pieces of it: a chunk of images, one of texts at two lengths, and the loss over all.
    at_once = min(recipe.batch.at_once, step.images)
    images = stage.images(at_once, len(step.aspects))
    more = stage.images(2 * at_once, len(step.aspects))
    count, length = max(step.chunks, key=lambda chunk: chunk[0] * chunk[1])
    short, long = stage.texts(count, max(length // 2, 2)), stage.texts(count, length)
    loss = stage.loss(recipe.batch.images, step.aspects)

    # What is alive at its fullest: where all fits at a time, every chunk; else the last of images and of texts.
    direct = step.images <= recipe.batch.at_once
    text_peak = long.peak * (step.positions / (count * length) if direct else 1)
    model = stage.model
    trained = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    batch = step.images * 3 * opened.pixels.side**2
    every = recipe.batch.images * (1 + len(step.aspects)) * width * FP32
    moving = images.peak + text_peak + loss.peak
    items = {
        "weights, fp32": float(sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])),
        "gradients, fp32": float(sum(trained) * FP32),
        "optimizer": float(sum(memory.state(recipe, numbers) for numbers in trained)),
        "activations of images": images.peak,
        "activations of texts": text_peak,
        "the loss, over all images and texts": loss.peak,
        "features of all images and texts": float(every * FEATURES),
        "pixels of the batch": float(batch),
        "CUDA context": CONTEXT,
    }
    items["gradients, fp32"] = max(items["gradients, fp32"] - moving, 0.0)  # those that come as activations go

    # Operations: of all chunks but the last one the forward runs twice, if there is more than one.
    again_images = 0 if direct else step.images - at_once
    flops = {
        "images": (images.both * step.images + images.forward * again_images) / at_once,
        "texts": sum(
            _text_flops(short, long, count, length, chunk, again=not direct and number < len(step.chunks) - 1)
            for number, chunk in enumerate(step.chunks)
        ),
        "loss": loss.both,
    }
    whole = (step.texts, opened.tokenizer.length)
    padded = flops["images"] + flops["loss"] + _text_flops(short, long, count, length, whole, again=not direct)
    return Needs(
        recipe,
        ranks,
        tuple(remarks),
        towers_adapter.check(model, recipe),
        count_parameters(blank(opened.config)),
        step,
        steps,
        items,
        (more.peak - images.peak) / at_once + long.peak / count,
        flops,
        padded,
    )


def _text_flops(short: Piece, long: Piece, count: int, length: int, chunk: tuple[int, int], *, again: bool) -> float:
    """The operations of a chunk of texts, from those of two lengths: some grow with the tokens, some with their square.

    Args:
        again: whether its forward runs twice.
    """
    half = max(length // 2, 2)

    def grown(at_half: float, at_length: float) -> float:
        square = (at_length / length - at_half / half) / (length - half)
        return chunk[0] / count * chunk[1] * (at_length / length + square * (chunk[1] - length))

    return grown(short.both, long.both) + again * grown(short.forward, long.forward)


def _drawn(recipe: PretrainRecipe, tokenizer: TextTokenizer, ranks: int) -> tuple[Step, int]:
    """The average step of the first epoch as the trainer's sampler draws it, and how many there are."""
    loaded = texts.load(recipe.data.model_copy(update={"eval": []}), recipe.objective).train
    every = fitted(loaded, tokenizer, recipe.data.too_long).images
    batch = recipe.batch.images
    sampler = ImageSampler(every, recipe.train.get("seed", workload.SEED), batch)
    rows = [draw.row for draw in sampler]
    steps = [_of(recipe, tokenizer, [every[row] for row in part(rows[at : at + batch], 0, ranks)])
             for at in range(0, min(len(rows), max(SAMPLE, batch)), batch)]  # fmt: skip
    steps.sort(key=lambda step: step.positions)
    return steps[len(steps) // 2], len(rows) // batch


def _of(recipe: PretrainRecipe, tokenizer: TextTokenizer, images: Sequence[TextedImage]) -> Step:
    every = [text for image in images for text in image.texts]
    ids = sorted({tuple(ids) for ids in tokenizer([text.text for text in every])}, key=len)
    aspects = [text.aspect for text in every]
    average = [aspect for aspect in dict.fromkeys(aspects) for _ in range(round(aspects.count(aspect) / len(images)))]
    return Step(len(images), len(every), _chunks(recipe, tokenizer, [len(each) for each in ids]), tuple(average))


def _assumed(recipe: PretrainRecipe, tokenizer: TextTokenizer, ranks: int, guess: AssumedTexts) -> tuple[Step, int]:
    aspects: list[str] = []
    for name in recipe.objective.aspects:
        sentences = min(guess.sentences, recipe.objective.sentences)
        aspects += ["sentence"] * sentences if name == "sentences" else [name]
    images = max(recipe.batch.images // ranks, 1)
    lengths = [min(getattr(guess, aspect), tokenizer.length) for aspect in aspects] * images
    step = Step(images, len(lengths), _chunks(recipe, tokenizer, sorted(lengths)), tuple(aspects))
    return step, max(guess.images // recipe.batch.images, 1)


def _chunks(recipe: PretrainRecipe, tokenizer: TextTokenizer, lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """How many distinct texts are encoded together, and of how many tokens each, as `CachedGradients` has it."""
    chunks = text_chunks(lengths, recipe.batch.at_once, trims=tokenizer.trims)
    return tuple(
        (len(numbers), lengths[int(numbers[-1])] if tokenizer.trims else tokenizer.length) for numbers in chunks
    )


def require_counted(recipe: PretrainRecipe) -> None:
    """Refuses a recipe whose steps are not counted.

    Raises:
        ValueError: they are not; the message says what to do instead.
    """
    if recipe.generative:
        raise ValueError(
            f"{recipe.base.name}: a generative base, whose own tower reads images of any size, and its steps are not "
            "counted; skinvl pretrain --dry-run says what would train, and skinvl plan of an sft recipe with "
            "parts.vision what the tower takes"
        )
    if not recipe.reads_texts:
        raise ValueError(
            f"objective {recipe.objective.name}: its steps are not counted; plan the recipe with objective.name=clip, "
            "whose image tower takes at least as much, or lower batch.at_once until it fits"
        )


def show(recipe: PretrainRecipe, configs: Path | None, rented: Gpu, ranks: int, mfu: float, assume: str) -> None:
    """Prints parameters, what a step encodes, memory, whether that fits, hours and disk."""
    say, guess = Console(), assumption(assume)
    with TemporaryDirectory() as folder:
        needed = needs(recipe, configs, ranks, guess, Path(folder))
    say.print(f"{recipe.name} on {recipe.base.name}, {ranks} × {rented.name} ({rented.memory} GiB)", style="bold")
    for line in needed.remarks:
        say.print(line, style="yellow", markup=False, highlight=False)
    if recipe.bf16 and not rented.bf16:
        say.print(f"{rented.name} has no bf16: train.bf16=false, or another GPU", style="red")
    parts = Table("part", "train", Column("trainable", justify="right"), Column("of", justify="right"))
    for part_name, count in needed.counts.items():
        mode = getattr(recipe.towers, part_name).train
        parts.add_row(part_name, mode, f"{count.trainable:,}", f"{count.parameters:,}")
    say.print(parts)
    say.print(f"parameters of {recipe.base.name}: {needed.parameters:,}")
    _memory(say, needed, rented)
    _time(say, needed, rented, mfu)


def assumption(text: str) -> AssumedTexts:
    """The texts of `images=…,caption=…`; what it leaves out stays as in SkinCAP.

    Raises:
        ValueError: another key, or not a positive whole number.
    """
    numbers: dict[str, int] = {}
    known = [field.name for field in fields(AssumedTexts)]
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        if key not in known or not value.isdecimal() or int(value) < 1:
            raise ValueError(f"--assume {pair}: expected {', '.join(f'{name}=NUMBER' for name in known)}, each above 0")
        numbers[key] = int(value)
    return AssumedTexts(**numbers)


def _memory(say: Console, needed: Needs, gpu: Gpu) -> None:
    recipe, room = needed.recipe, gpu.memory * GIB
    at_once = min(recipe.batch.at_once, needed.step.images)
    table = Table("memory of each GPU", Column("GiB", justify="right"), title=f"{at_once} images at a time")
    for name, size in needed.items.items():
        if size:
            table.add_row(name, f"{size / GIB:,.2f}")
    table.add_row("all", f"{needed.total / GIB:,.2f}", style="bold")
    say.print(table)
    most = needed.at_once(room)
    if needed.total <= room:
        say.print(f"fits into {gpu.memory} GiB; the largest batch.at_once that would: about {most}")
        return
    say.print(f"does not fit: {needed.total / GIB:,.1f} GiB, and {gpu.name} has {gpu.memory}", style="bold red")
    if most:
        say.print(f"with batch.at_once={most} it would fit, and give the same result")
    elif not recipe.train.get("activation_checkpointing"):
        say.print("train.activation_checkpointing=true takes less")


def _time(say: Console, needed: Needs, gpu: Gpu, mfu: float) -> None:
    step, train = needed.step, needed.recipe.train
    table = Table(f"a step, each of {needed.ranks}", Column("", justify="right"))
    table.add_row("images", f"{step.images:,}")
    table.add_row("texts", f"{step.texts:,}")
    table.add_row("of these different, encoded once", f"{sum(count for count, _ in step.chunks):,}")
    table.add_row("positions of the text tower", f"{step.positions:,}")
    for name, flops in needed.flops.items():
        table.add_row(f"TFLOP: {name}", f"{flops / 1e12:,.1f}")
    table.add_row("TFLOP: all", f"{needed.work / 1e12:,.1f}", style="bold")
    table.add_row("TFLOP, were every text padded to the longest", f"{needed.padded / 1e12:,.1f}")
    say.print(table)
    steps = train.get("max_steps", -1)
    steps = steps if steps > 0 else int(needed.steps * train.get("num_train_epochs", workload.EPOCHS))
    hours = gpus.hours(needed.work * steps, gpu, mfu)
    say.print(f"an epoch: {needed.steps:,} steps")
    say.print(f"the whole run: {steps:,} steps, {hours:,.2f} hours at an MFU of {mfu:g}")
    if mfu == gpus.MFU:
        say.print(f"the MFU of {mfu:g} is an assumption (nothing was measured on a GPU); --mfu gives another")
    trained = sum(count.trainable for count in needed.counts.values()) * FP32
    say.print(f"on disk: each checkpoint {(trained + needed.items['optimizer']) / 1e9:,.2f} GB")
    say.print("decoding images may take longer than this: pretrain says how long a step waits for data")
