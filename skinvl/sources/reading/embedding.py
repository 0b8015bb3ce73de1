"""Vectors of texts from a server's /v1/embeddings, each paid for once: they lie beside the journals."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skinvl.recipe.files import whole_file
from skinvl.sources.asking.endpoint import Endpoint, Settings, key
from skinvl.sources.asking.refusals import Busy, EndpointError, Refused, Trouble

BATCH = 64  # texts of one request
WAITS = (1.0, 4.0, 16.0, 64.0)  # seconds before each further attempt


@dataclass(frozen=True, slots=True)
class Vectors:
    """Gives the vectors of texts; None where the server has none, which `say` is told."""

    folder: Path  # where they are kept
    model: str
    address: str
    variable: str | None  # environment variable of the key
    say: Callable[[str], None]

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64] | None:
        """float[N, D] of N texts.

        Raises:
            EndpointError: the server does not answer, or says what are no vectors.
        """
        names = [hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest() for text in texts]
        known = self._kept()
        missing = {name: text for name, text in zip(names, texts, strict=True) if name not in known}
        try:
            known |= asyncio.run(self._asked(missing))
        except Refused as error:
            self.say(f"{self.model}: {error}; tasks are compared by how they are spelt")
            return None
        if missing:
            self._keep(known)
        return np.array([known[name] for name in names], np.float64)

    @property
    def _path(self) -> Path:
        return self.folder / f"embeddings-{hashlib.blake2b(self.model.encode(), digest_size=8).hexdigest()}.npz"

    def _kept(self) -> dict[bytes, NDArray[np.float32]]:
        if not self._path.is_file():
            return {}
        with np.load(self._path, allow_pickle=False) as file:
            return {bytes(name): vector for name, vector in zip(file["names"], file["vectors"], strict=True)}

    def _keep(self, known: dict[bytes, NDArray[np.float32]]) -> None:
        names = np.array([np.frombuffer(name, np.uint8) for name in known])
        with whole_file(self._path) as partial, partial.open("wb") as file:
            np.savez(file, names=names, vectors=np.array(list(known.values())))

    async def _asked(self, texts: dict[bytes, str]) -> dict[bytes, NDArray[np.float32]]:
        endpoint = Endpoint(self.address, Settings(self.model), key(self.address, self.variable))
        embeddings: dict[bytes, NDArray[np.float32]] = {}
        names = list(texts)
        try:
            for start in range(0, len(names), BATCH):
                batch = names[start : start + BATCH]
                vectors = np.array(await self._patient(endpoint, [texts[name] for name in batch]), np.float32)
                if vectors.ndim != 2 or len(vectors) != len(batch):
                    raise EndpointError(f"{self.address}: {self.model} gave no vector for each of {len(batch)} texts")
                embeddings |= zip(batch, vectors, strict=True)
        finally:
            await endpoint.close()
        return embeddings

    async def _patient(self, endpoint: Endpoint, texts: Sequence[str]) -> list[list[float]]:
        for wait in WAITS:
            try:
                return await endpoint.embed(self.model, texts)
            except (Trouble, Busy) as error:
                self.say(f"{error}; again in {wait:g} s")
                await asyncio.sleep(wait)
        try:
            return await endpoint.embed(self.model, texts)
        except (Trouble, Busy) as error:
            raise EndpointError(f"{error}; the replies are in the journal: add --assemble to go on later") from error
