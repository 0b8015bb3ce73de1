"""The images of a run through its frozen vision tower once, all of them before training begins, shared among ranks."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from safetensors import safe_open
from torch.utils.data import DataLoader, Dataset
from transformers import PretrainedConfig

from skinvl.data.mixture import Row
from skinvl.data.progress import Progress, share
from skinvl.model.base import (
    attention_kernel,
    autocast,
    base_dtype,
    blank_model,
    count_parameters,
    load_tower,
    tower_names,
)
from skinvl.model.chat import Chat
from skinvl.model.families import Family, Picture
from skinvl.model.feature_cache import Cache, CacheError, buffer
from skinvl.model.lengths import sizes
from skinvl.model.loaded import OpenBase
from skinvl.recipe.files import existing, read_json, write_text
from skinvl.recipe.recipe import Recipe

ROOT = Path("cache") / "vision"
GB = 10**9
STALE = 3600.0  # seconds after which a half-written file is nobody's work any more


@dataclass(frozen=True, slots=True)
class Kept:
    """The features of a run's images, how many of them this process has just computed, and what all that took."""

    cache: Cache
    computed: int
    seconds: float


def once(base: OpenBase, rows: Sequence[Row], passes: float, say: Console) -> Kept | None:
    """The features of every image of these rows, on disk; None where the tower is to run in every step instead.

    Args:
        passes: how often the run sees each image.

    Raises:
        CacheError: there is no room for them.
    """
    recipe, config, chat = base.recipe, base.config, base.chat
    if recipe.parts.vision.train != "frozen" or recipe.cache_gb == 0:
        return None

    # What of it there would be, and whether it is worth keeping.
    pictures, size = _pictures(base, rows)
    if not pictures:
        return None
    what = f"vision features of {len(pictures):,} images: {_bytes(size)}"
    if why := refusal(recipe, chat.family, size, passes):
        say.print(f"{what}; {why}, so that the tower runs in every step")
        return None

    # Where: a folder for all that decides what the tower makes of an image, with room for what is not there yet.
    started = time.monotonic()
    about = json.dumps(_about(base), indent=2, sort_keys=True, default=str)
    shape = partial(chat.family.features, config)
    cache = Cache(ROOT / xxhash.xxh3_64_hexdigest(about.encode()), base_dtype(recipe), shape)
    room = _room(cache)
    if recipe.cache_gb is None and size > room / 2:
        say.print(
            f"{what}, more than half of the {_bytes(room)} that {ROOT} has room for: the tower runs in every step"
        )
        return None
    if size > room:
        raise _no_room(len(pictures), size, room)
    say.print(f"{what}, each computed once and kept in {cache.folder}")
    if PartialState().is_main_process:
        cache.folder.mkdir(parents=True, exist_ok=True)
        write_text(cache.folder / "about.json", about)
        for path in cache.folder.glob("*/*.partial"):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink(missing_ok=True)

    computed = _fill(cache, pictures, base, say)
    saved = tower_size(config, chat.family) * base_dtype(recipe).itemsize
    seconds = time.monotonic() - started
    say.print(
        f"{computed:,} of them computed now, in {seconds:,.1f} s; the tower is not loaded, which saves {_bytes(saved)}"
    )
    return Kept(cache, computed, seconds)


def require_room(base: OpenBase, rows: Sequence[Row]) -> None:
    """Checks that the features that a recipe asks for fit on the disk.

    Which of them are kept already is not known without the tower's weights: all that is kept is taken for theirs.

    Raises:
        CacheError: they do not.
    """
    recipe = base.recipe
    if recipe.parts.vision.train != "frozen" or not recipe.cache_gb:
        return
    pictures, size = _pictures(base, rows)
    room = shutil.disk_usage(existing(ROOT)).free + sum(path.stat().st_size for path in ROOT.glob("*/*/*.safetensors"))
    if room < size <= recipe.cache_gb * GB:
        raise _no_room(len(pictures), size, room)


def _pictures(base: OpenBase, rows: Sequence[Row]) -> tuple[dict[Path, Picture], int]:
    """Each image of the rows as the tower gets it, and the bytes of all their features."""
    chat = base.chat
    pictures = {
        row.root / name: chat.picture(size)
        for row in rows
        for name, size in zip(row.example.images, sizes(row.root, row.example), strict=True)
    }
    numbers = sum(math.prod(chat.family.features(base.config, picture)) for picture in pictures.values())
    return pictures, numbers * base_dtype(base.recipe).itemsize


def _no_room(images: int, size: int, room: int) -> CacheError:
    return CacheError(
        f"vision features of {images:,} images: {_bytes(size)}; {ROOT} has room for {_bytes(room)}. Make some, or link "
        "cache/ to another disk"
    )


def tower_size(config: PretrainedConfig, family: Family) -> int:
    """The parameters of a base that nothing needs once its images' features are known."""
    whole, rest = (count_parameters(blank_model(each)) for each in (config, family.without_tower(config)))
    return whole - rest


def refusal(recipe: Recipe, family: Family, size: int, passes: float) -> str | None:
    """Why these features are not kept, whatever the disk has room for."""
    if recipe.cache_gb is not None:
        return f"cache_gb={recipe.cache_gb:g} is less" if size > recipe.cache_gb * GB else None
    enough = f"cache_gb={math.ceil(size / GB)} would keep them"
    if not family.caches:
        return f"{family.model_type} keeps them only when asked ({enough})"
    return f"the run sees an image {passes:.2g} times ({enough})" if passes < 2 else None


def _room(cache: Cache) -> int:
    """Bytes that the cache may grow to, by what the first rank sees: to a later one the disk may look fuller."""
    cached = sum(path.stat().st_size for path in cache.folder.glob("*/*.safetensors"))
    room: int = broadcast_object_list([shutil.disk_usage(existing(ROOT)).free + cached])[0]
    return room


def _bytes(count: float) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / 10**6:,.1f} MB"


def _about(base: OpenBase) -> dict[str, Any]:
    """All that decides what the tower makes of an image."""
    recipe, chat = base.recipe, base.chat
    processor: Any = chat.processor
    return {
        "tower": _fingerprint(base.path, base.family),
        "config": read_json(base.path / "config.json", "download the base again")["vision_config"],
        "profiles": chat.profiles,
        "image_processor": {**processor.image_processor.to_dict(), **chat.image_arguments},
        "dtype": str(base_dtype(recipe)),
        "attention": attention_kernel(recipe.attention, chat.family),
        "device": PartialState().device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _fingerprint(base: Path, family: Family) -> str:
    """Digest of the tower's weights as they lie in the base's files, its projector included where it lies within."""
    ours = tower_names(family)
    digest, seen = xxhash.xxh3_128(), 0
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            for name in sorted(filter(ours.match, opened.keys())):
                tensor = opened.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(buffer(tensor))
                seen += 1
    if not seen:
        raise CacheError(f"{base}: no weight of a vision tower in its safetensors files; set cache_gb=0")
    return digest.hexdigest()


class _Pixels(Dataset[tuple[Path, torch.Tensor | None]]):
    """The pixels of each image whose features are not there, or not whole; None for the others."""

    def __init__(self, cache: Cache, chat: Chat, pictures: Sequence[tuple[Path, Picture]]) -> None:
        self.cache, self.chat, self.pictures = cache, chat, pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Path, torch.Tensor | None]:
        path, picture = self.pictures[index]
        if self.cache.read(path, picture) is not None:
            return path, None
        return path, self.chat.pixels(self.chat.upright(path))


def _fill(cache: Cache, pictures: dict[Path, Picture], base: OpenBase, say: Console) -> int:
    """How many features this process computed of its share of the images, once every process has done its own."""
    state = PartialState()
    mine = sorted(pictures.items())[state.process_index :: state.num_processes]
    workers = base.recipe.train.get("dataloader_num_workers", 0)
    loader = DataLoader(_Pixels(cache, base.chat, mine), batch_size=None, num_workers=workers)
    tower, computed = None, 0
    title = share("vision features", state.process_index, state.num_processes)
    with Progress(title, len(mine), say) as progress:
        for path, pixels in loader:
            progress.advance(1)
            if pixels is None:
                continue
            if tower is None:
                tower = load_tower(base.path, base.family, base.recipe).to(state.device)
            with torch.no_grad(), autocast(base.recipe, state.device):  # as within a step
                cache.write(path, base.family.encode(tower, pictures[path], pixels))
            computed += 1
    state.wait_for_everyone()
    return computed
