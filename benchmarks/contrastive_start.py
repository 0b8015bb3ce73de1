"""What a contrastive start brings a generative base: `python benchmarks/contrastive_start.py [--seeds 3] [--epochs 2]`.

For each seed the drawn recipe `tiny` is trained twice with LoRA on its vision tower too, for the same steps: from the
base as it is, and from the tower that `skinvl pretrain tiny-clip base=tiny-qwen2_vl` trained before. Closed accuracy
in the test split, answers generated; differences are of the same rows, their intervals take the drawings' groups whole.
The start is not free: it takes steps of its own, on the same images and on captions that answer some of the questions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LORA = "lora={r: 32, lora_alpha: 64, lora_dropout: 0.0}"
VISION = "parts.vision.train=lora"
FEWER = ["data.eval=[]", "train.eval_strategy=no", "train.save_strategy=no", "train.report_to=none"]
ASKED = ["evaluate.classify=[]", "evaluate.control_rows=0"]


def main() -> None:
    """Prints the closed accuracy of both, and their difference, of each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2, help="of sft, with and without the start")
    parser.add_argument("--start", type=float, default=20, help="epochs of the contrastive training")
    given = parser.parse_args()
    table = Table("seed", "as it is", "from the start", "difference", "n", "groups")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run("prep", "demo", "data/raw/demo", "data/demo")
        for seed in range(1, given.seeds + 1):
            of_seed = [f"train.seed={seed}", *FEWER]
            sft = ["tiny", VISION, LORA, f"train.num_train_epochs={given.epochs}", *of_seed]
            start = ["tiny-clip", "base=tiny-qwen2_vl", "towers.image.train=lora", LORA, "data.image_tokens=16"]
            run("pretrain", *start, f"train.num_train_epochs={given.start}", *of_seed, f"run=start-{seed}")
            run("sft", *sft, f"run=plain-{seed}")
            run("sft", *sft, f"init_adapter=runs/start-{seed}/adapter", f"run=started-{seed}")
            for name in ("plain", "started"):
                run("eval", f"runs/{name}-{seed}", "data.eval=[{source: demo, split: test}]", *ASKED)
            run("score", f"runs/started-{seed}", "--against", f"runs/plain-{seed}")
            scores = json.loads(Path(f"runs/started-{seed}/scores.json").read_text(encoding="utf-8"))
            test = next(one for one in scores["comparison"]["tests"] if one["metric"] == "closed_accuracy")
            counts = f"{test['n']:,}", f"{test['groups']:,}"
            table.add_row(str(seed), f"{test['theirs']:.3f}", f"{test['ours']:.3f}", shown(test["difference"]), *counts)
    Console(width=100).print(table)


def shown(number: dict[str, Any]) -> str:
    """A difference with its interval."""
    return f"{number['value']:+.3f} [{number['low']:+.3f}, {number['high']:+.3f}]"


def run(*words: str) -> None:
    """Runs a verb, silently; what it said is shown where it fails."""
    done = subprocess.run([sys.executable, "-m", "skinvl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")


if __name__ == "__main__":
    main()
