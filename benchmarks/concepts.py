"""A step of a sparse dictionary beside a dense autoencoder's: `python benchmarks/concepts.py [--quick]`.

The dense one is the same two products with a ReLU between, forward, backward and the same fused Adam, with nothing kept
sparse: what any step of a dictionary that is not sparse costs at least. The three take turns after a step each that
does not count; medians are shown, of the processor's time where there is no GPU, and of the clock's. Targets: topk at
most 1.25, batch-topk at most 1.5 times the dense step's clock. Exit status 1: one is missed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from skinvl.model import dictionary_fit
from skinvl.model.dictionary import Kind
from skinvl.model.dictionary_fit import FitSettings

TARGETS: dict[Kind, float] = {"topk": 1.25, "batch-topk": 1.5}
console = Console(width=80)


def main() -> int:
    """0 where both targets are met, and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="numbers of an embedding")
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024, help="images of a step")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each")
    parser.add_argument("--quick", action="store_true", help="next to nothing, to see that it runs: no numbers to keep")
    args = parser.parse_args()
    if args.quick:
        args.width, args.units, args.k, args.batch = 32, 128, 4, 64
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(args.batch, args.width, generator=generator).to(device)

    steps: dict[str, Callable[[], object]] = {"dense": dense(embeddings, args.units)}
    for kind in TARGETS:
        steps[kind] = sparse(embeddings, FitSettings(kind, args.units, args.k, 1, args.batch))
    clock: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(1 + args.repeats):
        for name, step in steps.items():
            wall, own = time.perf_counter(), time.process_time()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                clock[name].append(time.perf_counter() - wall)
                processor[name].append(time.process_time() - own)

    title = f"{device.type}, {args.batch} images of {args.width} numbers, {args.units:,} units, k {args.k}"
    table = Table("step", "clock, ms", "times the dense", "processor, ms", "times the dense", title=title)
    ratios = {}
    for name in steps:
        medians = [statistics.median(times[name]) for times in (clock, processor)]
        beside = [statistics.median(times["dense"]) for times in (clock, processor)]
        ratios[name] = medians[0] / beside[0]
        cells = [f"{value:.{places}f}" for pair in zip(medians, beside, strict=True) for value, places in
                 ((1e3 * pair[0], 1), (pair[0] / pair[1], 2))]  # fmt: skip
        table.add_row(name, *cells)
    console.print(table)
    if args.quick:
        console.print("--quick: of these sizes no ratio and no target means anything")
        return 0
    missed = [name for name, most in TARGETS.items() if ratios[name] > most]
    console.print(f"missed: {', '.join(missed)}" if missed else "both targets are met")
    return int(bool(missed))


def dense(embeddings: torch.Tensor, units: int) -> Callable[[], object]:
    """A step of two products with a ReLU between."""
    width, device = embeddings.shape[1], embeddings.device
    model = torch.nn.Sequential(torch.nn.Linear(width, units), torch.nn.ReLU(), torch.nn.Linear(units, width))
    model.to(device)
    adam = torch.optim.Adam(model.parameters(), 5e-4, fused=True)

    def step() -> None:
        adam.zero_grad()
        (embeddings - model(embeddings)).square().mean().backward()
        adam.step()

    return step


def sparse(embeddings: torch.Tensor, settings: FitSettings) -> Callable[[], object]:
    """A step of a dictionary, its directions kept at length one."""
    dictionary = dictionary_fit.start(embeddings, settings, torch.Generator().manual_seed(0))
    adam = torch.optim.Adam(dictionary.parameters(), settings.learning_rate, fused=True)
    scaled = dictionary.scaled(embeddings)
    return lambda: dictionary_fit.step(dictionary, adam, scaled)


if __name__ == "__main__":
    raise SystemExit(main())
