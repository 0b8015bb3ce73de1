"""The log of a training, JSON lines: rewound when it is resumed, averaged and drawn when it has ended."""

from __future__ import annotations

import json
import math
from pathlib import Path

from skinvl.recipe.files import read_json_lines, write_text

HINT = "mend the line or remove it"  # where a log cannot be read


def rewind(log: Path, step: int) -> None:
    """Cuts off what the log holds after `step`, from which a resumed run writes on."""
    kept = []
    for entry in read_json_lines(log, HINT, unfinished=True) if log.is_file() else ():
        if entry["step"] > step or "train_runtime" in entry:  # the first of what follows the last step
            break
        kept.append(json.dumps(entry) + "\n")
    write_text(log, "".join(kept))


def mean(log: Path, name: str) -> float:
    """The mean of a number that is logged with every train loss, over the steps that it is of; NaN where there is none.

    What an entry does not name, such as pairs that its steps had none of, is 0 there.
    """
    total, last = 0.0, 0
    for entry in read_json_lines(log, HINT):
        if "loss" in entry:
            total += entry.get(name, 0.0) * (entry["step"] - last)
            last = entry["step"]
    return total / last if last else math.nan


def plot_losses(log: Path, path: Path, unit: str = "loss (nats per supervised token)") -> None:
    """Draws the train loss and every eval loss of the log over the steps, into the PNG at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in read_json_lines(log, HINT):
        for key, value in entry.items():
            if key == "loss" or (key.startswith("eval_") and key.endswith("_loss")):
                curves.setdefault("train" if key == "loss" else key.removesuffix("_loss"), []).append(
                    (entry["step"], value)
                )
    if len([name for name in curves if name != "train"]) == 2:  # one source, of which "eval" is the same again
        curves.pop("eval")
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in curves.items():
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, marker="." if name != "train" else None, label=name.replace("_", " "))
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
