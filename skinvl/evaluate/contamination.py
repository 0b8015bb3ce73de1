"""Which samples of a classification were trained on: they say nothing about new patients, and are not scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from skinvl.data import fingerprints, mixture
from skinvl.data.mixture import Row
from skinvl.data.source import used_images
from skinvl.evaluate.benchmarks import Sample, Task
from skinvl.score.predictions import key

RULE = "trained-on"


def guarded(task: Task, train: Sequence[Row], allow_leak: bool) -> tuple[Task, int]:
    """The task as `without` leaves its samples, or as it was where leaks are allowed, and how many were trained on."""
    apart = without(task.samples, train) if train else task.samples
    leaking = sum(sample.detail.startswith(RULE) for sample in apart)
    return (task if allow_leak else replace(task, samples=apart)), leaking


def without(samples: Sequence[Sample], train: Sequence[Row]) -> list[Sample]:
    """The samples, without a label where they share a group or an image with the train rows; the detail says which.

    Samples of a prepared source are compared as `mixture.leaks` does, by group, bytes, archive id and perceptual hash;
    those of a released CSV file by the bytes of their images and their archive ids.

    Raises:
        FileNotFoundError, ValueError: see `fingerprints.used`.
    """
    # A prepared source knows of each image what may give it away.
    prepared = [sample for sample in samples if (sample.root / "images.parquet").is_file()]
    rows = {sample.key: Row(sample.example, sample.root) for sample in prepared}
    leaks = mixture.leaks(train, {RULE: list(rows.values())})
    reasons = {key(leak.row.example): f"{RULE}: its {leak.kind} is that of {key(leak.twin.example)}" for leak in leaks}

    # Of a CSV file's images there are only the files.
    others = [sample for sample in samples if sample.key not in rows]
    known = _known(train) if others else {}
    for sample in others:
        marks = [mark for name in sample.example.images for mark in _marks(sample.root / name)]
        same = [known[mark] for mark in marks if mark in known]
        reasons |= {sample.key: f"{RULE}: it shows the image {same[0]}"} if same else {}

    return [
        replace(sample, label=None, detail=reasons[sample.key]) if sample.key in reasons else sample
        for sample in samples
    ]


def _known(train: Sequence[Row]) -> dict[str, str]:
    """Sha256 or archive id → image, of all that is trained on."""
    shown: dict[Path, dict[str, None]] = defaultdict(dict)
    for row in train:
        shown[row.root] |= dict.fromkeys(row.example.images)
    images: dict[str, str] = {}
    for root, paths in shown.items():
        rows, _ = used_images(root, pa.array(list(paths), pa.string()))
        for column in ("sha256", "archive"):
            marks = zip(rows[column].to_pylist(), rows["path"].to_pylist(), strict=True)
            images |= {mark: f"{root / path}" for mark, path in marks if mark}
    return images


def _marks(path: Path) -> list[str]:
    """The sha256 and the archive id of an image file, as far as it has them."""
    archive = fingerprints.archive_id(path.name)
    digest = fingerprints.sha256(path) if path.is_file() else None
    return [mark for mark in (digest, archive) if mark]
