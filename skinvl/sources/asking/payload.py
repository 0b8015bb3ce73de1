"""Images as requests carry them: upright, small enough, without metadata, each made once for the requests about it."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from skinvl.data.pixels import data_url

QUALITY = 90  # of JPEG
KEPT = 32  # images that are kept for the next request about them


class Payloads:
    """The images of a source, made in threads; a few of the last ones are kept.

    Args:
        root: folder of the source.
        side: pixels of the longest side.
    """

    def __init__(self, root: Path, side: int = 768) -> None:
        self._root, self._side = root, side
        self._made: OrderedDict[str, asyncio.Future[str]] = OrderedDict()
        self._pool = ThreadPoolExecutor(os.cpu_count(), "payload")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, name: str) -> asyncio.Future[str]:
        """What `data_url` gives for an image of the source, which is being made from now on; requests share it."""
        payload = self._made.get(name)
        if payload is None:
            loop = asyncio.get_running_loop()
            payload = self._made[name] = loop.run_in_executor(
                self._pool, data_url, self._root / name, self._side, QUALITY
            )
            payload.add_done_callback(_seen)
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(name)
        return payload


def _seen(made: asyncio.Future[str]) -> None:
    """Looks at an error that nobody was left to ask for, of which asyncio would complain."""
    if not made.cancelled():
        made.exception()
