"""Classified rows of three classes, two of them malignant, on disk as a run has them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from skinvl.data.example import Facts
from skinvl.score.predictions import Classified

CLASSES = ["nevus", "melanoma", "carcinoma"]
SETTINGS: dict[str, Any] = {"classes": CLASSES, "benchmark": None, "malignant": [False, True, True], "question": "?"}


def drawn(count: int, seed: int) -> list[Classified]:
    """Rows whose scores know something of the class, two of a group."""
    draw, rows = np.random.default_rng(seed), []
    for place in range(count):
        true = int(draw.choice(3, p=[0.6, 0.25, 0.15]))
        scores = draw.normal(size=3) * 1.5
        scores[true] += 1.5
        identity = (f"{seed}-{place}", "s", f"{seed}-{place // 2}", (), Facts())
        rows.append(Classified(*identity, CLASSES[true], tuple(scores.tolist()), "", None, None, None))
    return rows


def written(path: Path, rows: list[Classified], validation: list[Classified], **settings: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, group in (("set", rows), ("set.validation", validation)):
        if group:
            (path / f"{name}.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in group))
            (path / f"{name}.json").write_text(json.dumps(SETTINGS | settings))
    return path / "set.jsonl"
