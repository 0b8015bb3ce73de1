"""What sharing changes in what is learnt: `python benchmarks/quality.py RECIPE [--seeds 3] [key=value …]`.

Trains the recipe with `share_images` on and off for each seed, at the same number of conversations, and compares the
eval losses. A step computes the same either way; what differs is which conversations it sees: with sharing, all of an
image's.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table
from scipy.stats import t


def trained(recipe: str, overrides: list[str], seed: int, share: bool, runs: Path) -> tuple[float, float]:
    """The final eval loss of one run, and its minutes of training."""
    name = f"quality-{Path(recipe).stem}-{seed}-{'shared' if share else 'apart'}"
    command = [sys.executable, "-m", "skinvl", "sft", recipe, *overrides, f"run={name}", f"train.seed={seed}"]
    command += [f"share_images={str(share).lower()}", "train.disable_tqdm=true"]
    with (runs / f"{name}.log").open("w") as log:
        if subprocess.run(command, stdout=log, stderr=log).returncode:
            sys.exit((runs / f"{name}.log").read_text()[-3000:])
    summary = json.loads((Path("runs") / name / "summary.json").read_text(encoding="utf-8"))
    speed = summary["speed"]
    return summary["eval_loss"], speed["steps"] * speed["step_seconds"] / 60


def main() -> None:
    """Prints each seed's two losses, their mean difference with a 95 % interval, and the time both took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    table = Table("seed", "eval loss, shared", "eval loss, apart", "difference", "minutes, shared", "minutes, apart")
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, given.seeds + 1):
            (loss, minutes), (other, longer) = (
                trained(given.recipe, given.overrides, seed, share, Path(folder)) for share in (True, False)
            )
            differences.append(loss - other)
            values = (loss, other, loss - other)
            table.add_row(str(seed), *(f"{value:.4f}" for value in values), f"{minutes:.2f}", f"{longer:.2f}")
    Console().print(table)
    if given.seeds > 1:
        half = t.ppf(0.975, given.seeds - 1) * stdev(differences) / math.sqrt(given.seeds)
        print(f"shared minus apart: {mean(differences):+.4f} ± {half:.4f} (95 %, paired, n = {given.seeds})")


if __name__ == "__main__":
    main()
