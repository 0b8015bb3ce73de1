"""Which cases of a classification were trained on: they say nothing about new patients, and are not scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from skinvl.data import fingerprints, mixture
from skinvl.data.mixture import Row
from skinvl.data.source import used_images
from skinvl.evaluate.benchmarks import Sample
from skinvl.score.predictions import key

RULE = "trained-on"


def without(cases: Sequence[Sample], train: Sequence[Row]) -> list[Sample]:
    """The cases, without a label where they share a group or an image with the train rows; the detail says which.

    Cases of a prepared source are compared as `mixture.leaks` does, by group, bytes, archive id and perceptual hash;
    those of a released CSV file by the bytes of their images and their archive ids.

    Raises:
        FileNotFoundError, ValueError: see `fingerprints.used`.
    """
    rows = {case.key: Row(case.example, case.root) for case in cases if (case.root / "images.parquet").is_file()}
    found = mixture.leaks(train, {RULE: list(rows.values())})
    why = {key(leak.row.example): f"{RULE}: its {leak.kind} is that of {key(leak.twin.example)}" for leak in found}
    others = [case for case in cases if case.key not in rows]
    if others:
        known = _known(train)
        for case in others:
            same = [known[mark] for name in case.example.images for mark in _marks(case.root / name) if mark in known]
            why |= {case.key: f"{RULE}: it shows the image {same[0]}"} if same else {}
    return [replace(case, label=None, detail=why[case.key]) if case.key in why else case for case in cases]


def _known(train: Sequence[Row]) -> dict[str, str]:
    """Sha256 or archive id → image, of all that is trained on."""
    shown: dict[Path, dict[str, None]] = defaultdict(dict)
    for row in train:
        shown[row.root] |= dict.fromkeys(row.example.images)
    found: dict[str, str] = {}
    for root, paths in shown.items():
        images, _ = used_images(root, pa.array(list(paths), pa.string()))
        for column in ("sha256", "archive"):
            marks = zip(images[column].to_pylist(), images["path"].to_pylist(), strict=True)
            found |= {mark: f"{root / path}" for mark, path in marks if mark}
    return found


def _marks(path: Path) -> list[str]:
    archive = fingerprints.archive_id(path.name)
    digest = fingerprints.sha256(path) if path.is_file() else None
    return [mark for mark in (digest, archive) if mark]
