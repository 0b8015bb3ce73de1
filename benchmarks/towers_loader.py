"""What it takes to load an image for two towers: part `loader` of towers.py.

JPEG files of drawn photos, read, cropped, recoloured and normalised, the same augmentation in both: `mild`, which crops
and changes brightness and contrast. Beside it torchvision's RandomResizedCrop, ColorJitter, ToTensor and Normalize on
what Pillow reads. One thread; the two take turns.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision import transforms

from skinvl.model import augment
from skinvl.model.dual_inputs import PixelFormat

FILES = 24
QUALITY = 90  # of JPEG
TARGETS = {1024: 2.0, 512: 1.0}  # pixels a side → times torchvision's images/s
FORMAT = PixelFormat(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def loader(repeats: int, *, quick: bool, photos: Path | None = None) -> None:
    """(d) Images/s of decoding, cropping and normalising, beside torchvision's pipeline with the same augmentation.

    Args:
        photos: JPEG files to measure in place of drawn ones, as they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        sets = {side: drawn(Path(folder), side, 4 if quick else FILES) for side in TARGETS} if photos is None else {}
        if photos is not None:
            sets[0] = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _compare(sets, repeats)
        finally:
            torch.set_num_threads(threads)


def _compare(sets: dict[int, list[Path]], repeats: int) -> None:
    table = Table(title=f"loading JPEG files, mild augmentation, {FORMAT.side} px, one thread, {repeats} repeats")
    for column in ("files", "KB each", "skinvl, images/s", "torchvision", "times", "target"):
        table.add_column(column, justify="right")
    for side, paths in sets.items():
        loads: tuple[Callable[[Path], torch.Tensor], ...] = (ours, torchvisions())
        seconds: tuple[list[float], ...] = ([], [])
        for _ in range(repeats + 1):  # the first of each does not count
            for load, taken in zip(loads, seconds, strict=True):
                taken.append(_seconds(load, paths))
        speeds = [len(paths) / statistics.median(taken[1:]) for taken in seconds]
        times = speeds[0] / speeds[1]
        target = f"≥ {TARGETS[side]:.1f} {'met' if times >= TARGETS[side] else 'missed'}" if side else ""
        size = statistics.mean(path.stat().st_size for path in paths) / 1000
        name = f"{len(paths)} of {side} px" if side else f"{len(paths)} photos"
        table.add_row(name, f"{size:.0f}", *(f"{speed:.0f}" for speed in speeds), f"{times:.2f}", target)
    Console(width=80).print(table)


def ours(path: Path) -> torch.Tensor:
    """float32[3, 224, 224], as skinvl loads an image."""
    picture = augment.augmented(path, FORMAT, "mild", random.Random(str(path)))
    return FORMAT.normalised(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])[0]


def torchvisions() -> Callable[[Path], torch.Tensor]:
    """The same by torchvision's transforms."""
    changes = augment.CHANGES["mild"]
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                FORMAT.side, changes.scale, changes.ratio, transforms.InterpolationMode.BICUBIC
            ),
            transforms.ColorJitter(changes.brightness, changes.contrast),
            transforms.ToTensor(),
            transforms.Normalize(FORMAT.mean, FORMAT.std),
        ]
    )

    def load(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            pixels: torch.Tensor = pipeline(image.convert("RGB"))
        return pixels

    return load


def drawn(folder: Path, side: int, count: int) -> list[Path]:
    """Files of pictures with the spectrum of photos, amplitudes that fall with the frequency, and a sensor's noise."""
    generator = np.random.default_rng(side)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    paths = []
    for number in range(count):
        shared = np.fft.rfft2(generator.standard_normal((side, side))) / frequency**1.2
        channels = []
        for level in (190, 150, 130):  # of skin
            own = np.fft.rfft2(generator.standard_normal((side, side))) / frequency**1.2
            grey = np.fft.irfft2(shared + 0.2 * own, (side, side))
            channels.append(level + 35 * grey / grey.std() + 2 * generator.standard_normal((side, side)))
        pixels = np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{side}_{number:02}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=QUALITY)
    return paths


def _seconds(load: Callable[[Path], torch.Tensor], paths: Sequence[Path]) -> float:
    """Seconds of the processor, which other work hardly lengthens."""
    started = time.process_time()
    for path in paths:
        load(path)
    return time.process_time() - started
