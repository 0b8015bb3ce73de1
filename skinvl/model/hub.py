"""The files of a base or an adapter: a local folder, the hub's cache, or the hub, asked before anything is fetched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import xxhash
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from skinvl.recipe.files import digest, existing

CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_FILES = ("*.safetensors",)
CONFIGS = ("config.json", "open_clip_config.json")  # one of which says what the weights are
PICKLES = ("pytorch_model*.bin", "open_clip_pytorch_model.bin")  # of two towers alone, which are read as tensors only
# What a folder must hold, one of them at least.
NEEDED = {"base": ("config.json",), "init_adapter": ("adapter_config.json",)}
OF_TOWERS = {
    "base": ("config.json", "open_clip_config.json", "open_clip_*.safetensors", *PICKLES, "*.pt"),
    "init_adapter": ("adapter_config.json", "config.json"),
}


class BaseError(ValueError):
    """A base or an adapter that cannot be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a model: the folder, and the commit they come from (None for a local folder)."""

    path: Path
    commit: str | None

    def fingerprint(self) -> str:
        """What tells a base from any other: its commit, or of a local folder 32 hexadecimal digits, xxh3.

        Those of a folder are of its config and weights, whatever the folder is called; 20 GB take about ten seconds.
        """
        if self.commit is not None:
            return self.commit
        state = xxhash.xxh3_128()
        configs = [file for name in CONFIGS if (file := self.path / name).is_file()]
        weights = [*self.path.glob("*.safetensors")] or [
            file for name in (*PICKLES, "*.pt") for file in self.path.glob(name)
        ]
        for file in sorted({*configs, *weights}):
            state.update(f"{file.name} {digest(file)}\n".encode())
        return state.hexdigest()


def fetch(model: str, revision: str | None, *, weights: bool, what: str = "base", towers: bool = False) -> Snapshot:
    """The files of a model id or local folder; the hub is asked for access and sizes before anything is downloaded.

    Args:
        model: a local folder, or a model id of the hub.
        weights: whether safetensors are wanted beside the configs, tokenizer and template.
        what: "base" or "init_adapter", the key of the recipe that names it.
        towers: whether it is of two towers, whose weights may be pickled where there are no others, and what a run has
            made of them a whole model.

    Raises:
        BaseError: no such folder or id, a gated model, no network and nothing cached, or too little disk.
    """
    path = Path(model)
    if path.is_dir():
        needed = (OF_TOWERS if towers else NEEDED)[what]
        if not any(file.is_file() for name in needed for file in path.glob(name)):
            expected = " nor ".join(needed[:2])
            # The folder of a run is the likely slip: what it has trained lies one folder below.
            folders = (path / "adapter", path / "model")
            trained = [folder for folder in folders if any(any(folder.glob(name)) for name in needed)]
            wanted = f"{trained[0]}, which the run has made" if trained else "that of a model, or of an adapter"
            raise BaseError(f"{what} {model}: the folder has no {expected}; give {wanted}")
        return Snapshot(path, None)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise BaseError(
            f"{what} {model}: no such folder, and not a model id of the form owner/name; "
            "give a model id or a local folder (for a base also a name that skinvl bases lists)"
        )
    patterns: tuple[str, ...] = CONFIG_FILES + WEIGHT_FILES if weights else CONFIG_FILES
    api = HfApi()
    try:
        api.auth_check(model)
        info = api.model_info(model, revision=revision, files_metadata=True)
    except GatedRepoError as error:
        raise BaseError(
            f"{what} {model}: gated, and this account has no access; accept its licence on its hub page, "
            "then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise BaseError(
            f"{what} {model}: the hub has no revision {revision!r}; check it on the model's page"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseError(
            f"{what} {model}: the hub has no such model, or it is private to another account; check the id, "
            "or log in with `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise BaseError(f"{what} {model}: not a model id ({error})") from error
    except (OfflineModeIsEnabled, httpx2.TransportError, HfHubHTTPError) as error:
        return _cached(model, revision, patterns + PICKLES if towers and weights else patterns, error, what)
    if towers and weights and not any(fnmatch(file.rfilename, "*.safetensors") for file in info.siblings or []):
        patterns += PICKLES
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
    }
    missing = sum(
        size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(model, name, revision=info.sha), str)
    )
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(existing(cache)).free
    if missing > free:
        raise BaseError(
            f"{what} {model}: {missing / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free in {cache}; "
            "free some space or set HF_HOME to a larger disk"
        )
    try:
        path = Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except (httpx2.TransportError, HfHubHTTPError) as error:
        raise BaseError(
            f"{what} {model}: the download broke off ({_first_line(error)}); run the command again to go on with it"
        ) from error
    return Snapshot(path, path.name)


def _cached(model: str, revision: str | None, patterns: tuple[str, ...], cause: Exception, what: str) -> Snapshot:
    try:
        path = snapshot_download(model, revision=revision, allow_patterns=list(patterns), local_files_only=True)
    except LocalEntryNotFoundError:
        raise BaseError(
            f"{what} {model}: not in the cache {constants.HF_HUB_CACHE}, and the hub {constants.ENDPOINT} "
            f"did not answer ({_first_line(cause)}); connect to the network once, or give a local folder"
        ) from cause
    return Snapshot(Path(path), Path(path).name)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
