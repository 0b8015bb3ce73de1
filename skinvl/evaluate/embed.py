"""The embeddings that two towers make of images and texts: each different one once, in batches, over all ranks.

Evaluation mode, in the precision that the towers were trained in; what stays fp32 is exact, without TF32.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.data import DataLoader

from skinvl.data.pixels import ImageError
from skinvl.data.progress import Progress, share
from skinvl.model.towers_loaded import LoadedTowers, PixelFormat

Vectors = NDArray[np.float32]
Key = TypeVar("Key", bound=Hashable)


class EmbedError(ValueError):
    """Towers that make no embeddings."""


def images(
    loaded: LoadedTowers,
    shown: Sequence[tuple[Path, str]],
    state: PartialState | None = None,
    say: Console | None = None,
) -> Vectors:
    """float32[N, D], of length one, of N images: folder and path in it; NaN where one cannot be read.

    Args:
        state: the ranks that share the work; each gets all of it. None is this process alone.

    Raises:
        EmbedError: an embedding is not finite.
    """
    paths = [root / path for root, path in shown]
    mine, distinct = _own(paths, state)
    size = loaded.recipe.evaluate.batch_size
    blocks = [mine[start : start + size] for start in range(0, len(mine), size)]

    vectors: dict[Path, Vectors | str] = {}
    with Progress(_title("images", state), len(mine), say or Console(quiet=True)) as progress:
        for block in streamed(loaded, blocks, vectors):
            progress.advance(len(block))
    width = _model(loaded).config.projection_dim
    nothing = np.full(width, np.nan, np.float32)
    rows = [nothing if isinstance(vector := vectors[path], str) else vector for path in mine]
    return _whole(np.array(rows, np.float32).reshape(len(rows), width), paths, distinct, state)


def texts(
    loaded: LoadedTowers, written: Sequence[str], state: PartialState | None = None, say: Console | None = None
) -> Vectors:
    """float32[N, D], of length one, of N texts; texts of like length run together.

    Args:
        state: as of `images`.

    Raises:
        EmbedError: as `images`.
    """
    mine, distinct = _own(written, state)
    ids = loaded.tokenizer(mine)
    order = sorted(range(len(mine)), key=lambda row: len(ids[row]))
    size, device = loaded.recipe.evaluate.batch_size, next(loaded.model.parameters()).device
    vectors: dict[int, Vectors] = {}
    with Progress(_title("texts", state), len(mine), say or Console(quiet=True)) as progress:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            input_ids, mask = loaded.tokenizer.pad([ids[row] for row in rows])
            with torch.no_grad(), exact(), loaded.autocast():
                made = _model(loaded).encode_texts(input_ids.to(device), mask.to(device))
            vectors |= dict(zip(rows, _finite(made, repr(mine[rows[0]])), strict=True))
            progress.advance(len(rows))
    own = np.array([vectors[row] for row in range(len(mine))], np.float32)
    return _whole(own, written, distinct, state)


def streamed(
    loaded: LoadedTowers,
    blocks: Sequence[Sequence[Path]],
    known: dict[Path, Vectors | str] | None = None,
    *,
    tower: bool = False,
) -> Iterator[Mapping[Path, Vectors | str]]:
    """Of each block of image files, the embedding float32[D] of every one, or why it cannot be read.

    Workers decode the blocks to come. A file that several blocks have is read and encoded in the first of them.

    Args:
        known: those of earlier blocks, which are not made again; these are added.
        tower: what the image tower pools, float32[W] of any length, instead of the embedding.

    Raises:
        EmbedError: as `images`.
    """
    known = {} if known is None else known
    seen, new = set(known), []
    for block in blocks:
        new.append([path for path in dict.fromkeys(block) if path not in seen])
        seen.update(block)

    workers = int(loaded.recipe.train.get("dataloader_num_workers", 0))
    device = next(loaded.model.parameters()).device
    dataset: Any = new  # anything with a length and items is a dataset
    loader: Any = DataLoader(dataset, batch_size=None, collate_fn=_Reading(loaded.pixels), num_workers=workers)
    for block, (paths, pixels, refused) in zip(blocks, loader, strict=True):
        if paths:
            with torch.no_grad(), exact(), loaded.autocast():
                shown = loaded.pixels.normalised(pixels.to(device))
                model = _model(loaded)
                made = model.image_features(shown) if tower else model.encode_images(shown).embeddings
            known.update(zip(paths, _finite(made, str(paths[0])), strict=True))
        known.update(refused)
        yield {path: known[path] for path in block}


@contextmanager
def exact() -> Iterator[None]:
    """Computes without TF32 in its block: products of fp32 numbers keep their 24 bits on a GPU too."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = False, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@dataclass(frozen=True, slots=True)
class _Reading:
    """Image files → the pixels of those that can be read, uint8[b, 3, H, W]: a collate function, so workers decode."""

    pixels: PixelFormat

    def __call__(self, paths: Sequence[Path]) -> tuple[list[Path], torch.Tensor, dict[Path, str]]:
        read, squares, refused = [], [], {}
        for path in paths:
            try:
                squares.append(np.array(self.pixels.whole(path), np.uint8))
                read.append(path)
            except ImageError as error:
                refused[path] = str(error)
        side = self.pixels.side
        stacked = torch.from_numpy(np.array(squares, np.uint8).reshape(len(squares), side, side, 3))
        return read, stacked.permute(0, 3, 1, 2), refused


def _finite(made: torch.Tensor, first: str) -> Vectors:
    """float32[n, D] of the embeddings float[n, D].

    Args:
        first: what the first of them is of.

    Raises:
        EmbedError: one is not finite.
    """
    vectors: Vectors = made.float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise EmbedError(
            f"the embeddings of {first}, or of what is embedded with it, are no finite numbers: the weights hold "
            "such, or overflow; evaluate an earlier checkpoint of the run, or set train.bf16=false and train again"
        )
    return vectors


def _model(loaded: LoadedTowers) -> Any:
    return loaded.model  # a PeftModel gives what it lacks from the model within


def _title(what: str, state: PartialState | None) -> str:
    return what if state is None else share(what, state.process_index, state.num_processes)


def _own(every: Sequence[Key], state: PartialState | None) -> tuple[list[Key], list[Key]]:
    """What this rank computes of the different ones, and all of these; a rank without any has the first of them."""
    distinct = list(dict.fromkeys(every))
    mine = distinct if state is None else distinct[state.process_index :: state.num_processes]
    return mine or distinct[:1], distinct


def _whole(own: Vectors, every: Sequence[Key], distinct: Sequence[Key], state: PartialState | None) -> Vectors:
    """float32[N, D] of all N, of this rank's rows and those of the others."""
    if not every:
        return own.reshape(0, 0)
    if state is not None and state.num_processes > 1:
        own = _gathered(own, len(distinct), state)
    row_of = {key: row for row, key in enumerate(distinct)}
    return own[[row_of[key] for key in every]]


def _gathered(own: Vectors, count: int, state: PartialState) -> Vectors:
    """float32[count, D] of all ranks' rows, of which rank r has every one whose number is r modulo their count."""
    rows, width = -(-count // state.num_processes), own.shape[1]
    padded = np.full((rows, width), np.nan, np.float32)
    padded[: len(own)] = own
    every: torch.Tensor = gather(torch.from_numpy(padded).to(state.device))
    by_rank: Vectors = every.cpu().numpy().reshape(state.num_processes, rows, width)
    return by_rank.swapaxes(0, 1).reshape(-1, width)[:count]
