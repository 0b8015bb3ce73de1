"""Whether an image tower learns by masked latents: `python benchmarks/latent.py [--seeds 3] [key=value …]`.

Trains tiny-clip, the teacher; then, for each seed, tiny-latent from a base with other random weights. A linear probe of
the tower (all labels of the train split) tells what drawn lesions show, in the test split: of the tower as it was, of
what masked latents have made of it, and of the teacher. Intervals take the drawings' groups whole; differences are of
the same rows. Other settings are those of the recipes, which nothing here was chosen by.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from skinvl.data.example import read
from skinvl.model import tiny_towers
from skinvl.score.classification import classified_set
from skinvl.score.stats import RESAMPLES, Bootstrap, Float

KINDS = ("colour", "count", "size", "border", "symmetry", "site")
console = Console(width=120)


def main() -> int:
    """0 where, of every seed, the probe of colours is better after the training, its interval above 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of tiny-latent")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of both trainings (default: the recipes')")
    given = parser.parse_intermixed_args()
    steps = [f"train.max_steps={given.steps}"] if given.steps else []
    table = Table("kind", "teacher", *(f"seed {seed}, before and after" for seed in range(1, given.seeds + 1)))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run("prep", "demo", "data/raw/demo", "data/demo")
        run("pretrain", "tiny-clip", *steps)
        taught = probed("runs/tiny-clip--tiny-clip")
        texts = sorted({part["text"] for one in read(Path("data/demo"), "train") for turn in one.messages
                        for part in turn["content"] if part["type"] == "text"})  # fmt: skip
        columns = []
        for seed in range(1, given.seeds + 1):
            base = tiny_towers.build("clip", Path(f"bases/seed-{seed}").absolute(), texts=texts, seed=seed)
            of_seed = [f"base={base}", f"train.seed={seed}"]
            run("pretrain", "tiny-latent", *of_seed, *steps, *given.overrides, f"run=latent-{seed}")
            before = probed("tiny-latent", *of_seed, f"run=before-{seed}", at=f"runs/before-{seed}")
            after = probed(f"runs/latent-{seed}")
            columns.append((before, after))
    for kind in KINDS:
        pairs = (f"{before[kind][0].mean():.3f} {after[kind][0].mean():.3f}" for before, after in columns)
        table.add_row(kind, f"{taught[kind][0].mean():.3f}", *pairs)
    table.add_section()
    gained = {
        what: [difference(*pair, kinds) for pair in columns] for what, kinds in (("colour", KINDS[:1]), ("all", KINDS))
    }
    for what, numbers in gained.items():
        table.add_row(
            f"{what}: after − before", "", *(f"{value:+.3f} [{low:.3f}, {high:.3f}]" for value, low, high in numbers)
        )
    console.print(table)
    return int(any(low <= 0 for _, low, _ in gained["colour"]))


Probed = dict[str, tuple[Float, list[tuple[str, str]]]]  # kind → whether each row is right, and its group


def probed(name: str, *words: str, at: str | None = None) -> Probed:
    """What a probe of the tower makes of the test rows of each kind."""
    sets = ", ".join(f"{{source: demo, split: test, label: answer, where: {{kind: {kind}}}}}" for kind in KINDS)
    run("probe", name, *words, f"evaluate.classify=[{sets}]", "evaluate.probe.shares=[100]")
    found: Probed = {}
    for kind in KINDS:
        classified = classified_set(Path(at or name) / "eval" / "classes" / f"demo-{kind}.probe-tower-100.jsonl")
        right = (next(iter(classified.variants.values())).predicted == classified.true).astype(np.float64)
        found[kind] = right, [(row.source, row.group) for row in classified.rows]
    return found


def difference(before: Probed, after: Probed, kinds: Sequence[str]) -> tuple[float, float, float]:
    """By how much more of the rows of some kinds are right, with its interval."""
    gained = np.concatenate([after[kind][0] - before[kind][0] for kind in kinds])
    draws = Bootstrap([group for kind in kinds for group in before[kind][1]], RESAMPLES, 0)
    every = np.ones(len(gained), np.bool_)
    sums = draws.sums(np.stack([gained, np.ones(len(gained))], axis=1), every)
    number = draws.estimate(sums[:, 0] / sums[:, 1], every).number()
    return number["value"], number["low"], number["high"]


def run(*words: str) -> None:
    """Runs a verb, silently; what it said is shown where it fails."""
    command = [sys.executable, "-m", "skinvl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")


if __name__ == "__main__":
    sys.exit(main())
