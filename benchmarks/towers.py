"""Training two towers beside open_clip 3.3.0: `python benchmarks/towers.py [--only step cache …] [--quick]`.

- step: a step with one caption an image, beside open_clip's own;
- make: a step with MAKE's texts, beside its layout (image once, all 11 texts at 77 tokens) and a row for each pair;
- cache: cached gradients in 8 chunks, beside the step that keeps all activations;
- loader: images/s of decoding and augmenting, beside torchvision;
- cuda: images/s and peak memory at ViT-B/16, beside open_clip; left out, and said so, where there is no device.

Random weights, the same in all that stand beside each other (an open_clip model, converted), and the same fused AdamW.
Texts are random tokens of the lengths that SkinCAP's have in CLIP's tokenizer. The alternatives take turns after a step
each that does not count; medians are shown, of the processor's time, which other work hardly lengthens, and of the
clock's. Their losses on the first batch must be equal. Exit status 1: they are not.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import torch
from activations import kept_by
from open_clip.model import CLIP
from rich.console import Console
from rich.table import Table
from skincap import LENGTH, VOCABULARY, batch_of, caption_length, make_texts, padded, tokens
from towers_loader import loader
from towers_models import Ours, Size, Theirs
from transformers.utils.logging import disable_progress_bar

from skinvl.model import objectives
from skinvl.model.dual_batch import relation
from skinvl.model.objectives import NEGATIVE, Features, Pairing
from skinvl.recipe import towers

PLACES = 11  # texts of an image in MAKE's layout
CHUNKS = 8
STEP = Size(64, 112, (6, 384), (6, 256))
MAKE = Size(16, 112, (4, 384), (4, 256))
QUICK = Size(16, 48, (2, 64), (2, 64), 32)
LARGE = Size(4096, 224, (12, 768), (12, 512), 512)
console = Console(width=80)


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each alternative")
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs: no numbers to keep")
    chosen = parser.parse_args()
    disable_progress_bar()
    cores = len(os.sched_getaffinity(0))
    console.print(
        f"{platform.processor() or platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, open_clip {open_clip.__version__}"
    )
    if chosen.quick:
        console.print("--quick: of these sizes no ratio and no target means anything")
    for name in chosen.only:
        PARTS[name](2 if chosen.quick else chosen.repeats, quick=chosen.quick)


def step(repeats: int, *, quick: bool) -> None:
    """(a) One caption an image: of SkinCAP's lengths, and all of 77 tokens."""
    size = QUICK if quick else STEP
    for full, target in ((False, 0.95), (True, 1.0)):
        draw = random.Random(1)
        captions = [tokens(LENGTH if full else caption_length(draw), draw) for _ in range(size.images)]
        batch = batch_of(size.side, [[("caption", ids)] for ids in captions])
        theirs = Theirs(size)
        ours = Ours(theirs, size.images, towers.Objective(name="clip"))
        pixels, ids = batch.normalised(), padded(batch.texts)[batch.text]
        filled = sum(map(len, captions)) / len(captions)
        _compare(
            f"one caption an image, {filled:.0f} of {LENGTH} tokens; {size}; float32",
            {
                "skinvl": partial(ours.step, batch),
                "open_clip": partial(theirs.step, partial(theirs.one_caption, pixels, ids)),
            },
            {"open_clip": target},
            repeats,
        )


def make(repeats: int, *, quick: bool) -> None:
    """(b) MAKE's texts, the loss over all of them without weights and patches in all three."""
    size = QUICK if quick else MAKE
    batch = batch_of(size.side, make_texts(size.images, random.Random(1)))
    objective = towers.Objective.model_validate(
        {"name": "make", "aspects": ["caption", "ontology", "concepts", "sentences"], "weights": "none", "local": 0}
    )
    layouts = [Theirs(size) for _ in range(2)]
    ours = Ours(layouts[0], size.images, objective)
    related = relation(batch.keys, batch.owner, batch.text_keys, towers.Negatives())
    pairing = Pairing(batch.owner, batch.aspect, related)
    pixels, ids = batch.normalised(), padded(batch.texts)[batch.text]
    loaded = objectives.load(objective)

    # MAKE encodes 11 texts an image, those that it lacks as a start, an end and padding.
    number = torch.bincount(batch.owner)
    place = torch.arange(len(ids)) - (number.cumsum(0) - number)[batch.owner]
    rows = batch.owner * PLACES + place
    empty = torch.zeros(LENGTH, dtype=torch.int64)
    empty[:2] = torch.tensor([VOCABULARY - 2, VOCABULARY - 1])
    every = empty.repeat(size.images * PLACES, 1).index_put((rows,), ids)

    def as_make(model: CLIP) -> torch.Tensor:
        images, texts, scale = model(pixels, every)
        return loaded.loss(Features(images, texts[rows], scale), pairing, 0.0)

    repeated = pixels[batch.owner]

    def row_per_pair(model: CLIP) -> torch.Tensor:
        images, texts, scale = model(repeated, ids)
        logits = scale * images @ texts.T
        return _pairwise(logits, related, batch.owner)

    positions, copies = sum(len(batch.texts[text]) for text in batch.text), len(batch.text) - len(batch.texts)
    _compare(
        f"{len(batch.text)} texts, {copies} of them copies, of {positions / size.images:.0f} tokens an image; "
        f"{size}; float32",
        {
            "skinvl": partial(ours.step, batch),
            "MAKE's layout": partial(layouts[0].step, partial(as_make, layouts[0].model)),
            "a row for each pair": partial(layouts[1].step, partial(row_per_pair, layouts[1].model)),
        },
        {"MAKE's layout": 0.35, "a row for each pair": 0.30},
        repeats,
    )


def cache(repeats: int, *, quick: bool) -> None:
    """(c) Cached gradients in 8 chunks: time and kept activations."""
    size = QUICK if quick else STEP
    draw = random.Random(1)
    batch = batch_of(size.side, [[("caption", tokens(caption_length(draw), draw))] for _ in range(size.images)])
    theirs = Theirs(size)
    direct, cached = (
        Ours(theirs, at_once, towers.Objective(name="clip")) for at_once in (size.images, size.images // CHUNKS)
    )
    kept = {}
    for name, ours in (("direct", direct), ("cached", cached)):
        with kept_by(ours.model) as activations:
            ours.cached.gradients(batch, 0.0)
        ours.model.zero_grad()
        kept[name] = activations.most
    _compare(
        f"cached gradients in {CHUNKS} chunks; {size}; float32",
        {"cached": partial(cached.step, batch), "direct": partial(direct.step, batch)},
        {"direct": 1.5},
        repeats,
    )
    share = kept["cached"] / kept["direct"]
    console.print(
        f"kept activations {kept['cached'] / 2**20:,.1f} of {kept['direct'] / 2**20:,.1f} MiB: "
        f"{share:.3f}, {_verdict(share, 0.25)}\n"
    )


def cuda(repeats: int, *, quick: bool) -> None:
    """Images/s and peak memory on a GPU, in bfloat16 under autocast; open_clip with gradient checkpointing."""
    if not torch.cuda.is_available():
        console.print(f"No CUDA device here: images/s and peak memory of {LARGE} are not measured.\n")
        return
    size = QUICK if quick else LARGE
    device = torch.device("cuda")
    draw = random.Random(1)
    batch = batch_of(size.side, [[("caption", tokens(caption_length(draw), draw))] for _ in range(size.images)]).to(
        device
    )
    pixels, ids = batch.normalised(), padded(batch.texts).to(device)[batch.text]

    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16)

    table = Table(title=f"{torch.cuda.get_device_name()}; {size}; bfloat16")
    for column in ("", "images/s", "peak, GiB"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("skinvl", "open_clip"):
        theirs = Theirs(size, autocast)
        action: Callable[[], float]
        if name == "skinvl":
            ours = Ours(theirs, size.images // CHUNKS, towers.Objective(name="clip"))
            ours.model.to(device)
            action = partial(ours.step, batch)
            del ours
        else:
            theirs.model.to(device).set_grad_checkpointing()
            action = partial(theirs.step, partial(theirs.one_caption, pixels, ids))
        del theirs
        action()
        torch.cuda.reset_peak_memory_stats()
        seconds = [_timed(action)[1] for _ in range(repeats)]
        peak = torch.cuda.max_memory_allocated() / 2**30
        table.add_row(name, f"{size.images / statistics.median(seconds):,.0f}", f"{peak:.1f}")
        del action
        torch.cuda.empty_cache()
    console.print(table)


PARTS: dict[str, Callable[..., None]] = {"step": step, "make": make, "cache": cache, "loader": loader, "cuda": cuda}


def _compare(title: str, steps: dict[str, Callable[[], float]], targets: dict[str, float], repeats: int) -> None:
    """Prints the medians of steps that take turns, and the first one's share of those that have a target.

    Raises:
        SystemExit: their first losses differ.
    """
    first = {name: action() for name, action in steps.items()}
    if max(first.values()) - min(first.values()) > 1e-4:
        sys.exit(f"the first losses differ, so that this compares different things: {first}")

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, action in steps.items():
            seconds[name].append(_timed(action))
    processor, clock = (
        {name: statistics.median(pair[which] for pair in pairs) for name, pairs in seconds.items()} for which in (0, 1)
    )

    ours = next(iter(steps))
    console.print(f"{title}; {repeats} repeats; first loss {first[ours]:.6f}")
    table = Table()
    for column in ("", "CPU s", "wall s", f"{ours}, CPU", "wall", "target"):
        table.add_column(column, justify="right" if column else "left")
    for name in steps:
        ratio, walls = processor[ours] / processor[name], clock[ours] / clock[name]
        beside = [f"{ratio:.2f}", f"{walls:.2f}", _verdict(ratio, targets[name])] if name in targets else []
        table.add_row(name, f"{processor[name]:.2f}", f"{clock[name]:.2f}", *beside)
    console.print(table)


def _verdict(share: float, target: float) -> str:
    return f"≤ {target:.2f} {'met' if share <= target else 'missed'}"


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor and of the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    processor, clock = time.process_time(), time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - processor, time.perf_counter() - clock


def _pairwise(logits: torch.Tensor, related: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """The loss of clip.py from a row for each text with its own image, logits float32[N, N] of rows' images and texts.

    Another image that reads the same has no term of its own: its rows already have one for it.
    """
    low = torch.finfo(logits.dtype).min / 2
    own = logits.diagonal()
    negative = related[owner] == NEGATIVE
    to_texts = logits.masked_fill(~negative, low).logsumexp(dim=1)
    # Of an image with several rows one stands for it among the images of a text.
    first = torch.ones(len(owner), dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    to_images = logits.masked_fill(~(negative & first[:, None]), low).logsumexp(dim=0)
    return 0.5 * (torch.nn.functional.softplus(to_texts - own) + torch.nn.functional.softplus(to_images - own)).mean()


if __name__ == "__main__":
    main()
