"""A folder as one commit of a model repository on the hub: looked at before anything is sent, and whole or not at all.

Large files are stored before the commit, each once: what an interrupted upload has stored is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")
_AGAIN = "run the same command again, which sends only what has not arrived yet; until then nothing of it can be seen"


class UploadError(ValueError):
    """A repository that cannot be had or written; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upload would do.

    `parent` is the commit that it would follow, None where the repository does not exist yet.
    """

    repo: str
    address: str
    public: bool
    files: dict[str, int]  # name → bytes
    parent: str | None
    replaced: tuple[str, ...]  # files of these names that are there already
    kept: tuple[str, ...]  # files there that are not in the folder, and stay

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def check_name(repo: str) -> None:
    """Refuses a name that no repository of the hub can have.

    Raises:
        UploadError: it is not of the form owner/name, or has characters that the hub refuses.
    """
    if repo.count("/") != 1:
        raise UploadError(f"{repo}: not a repository; expected owner/name, such as ada/skin-assistant")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UploadError(f"{repo}: not a name that the hub takes ({error})") from error


def look(repo: str, folder: Path, public: bool) -> Plan:
    """What uploading the folder would do; nothing is changed.

    Raises:
        UploadError: there is no login, no access or no answer; or the repository exists and is public where it should
            be private, or the other way round, or holds other weights.
    """
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    api = HfApi()
    address = f"{api.endpoint}/{repo}"
    with _failures_explained(repo):
        api.whoami()
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:
            return Plan(repo, address, public, files, None, (), ())
    if not info.private and not public:
        raise UploadError(
            f"{repo}: exists and is public; give another name, make it private on its settings page, or say --public"
        )
    if info.private and public:
        raise UploadError(
            f"{repo}: exists and is private, and with it all that was committed there would become public; leave out "
            "--public, then make it public on its settings page once you have looked at it"
        )
    present = [file.rfilename for file in info.siblings or [] if file.rfilename != ".gitattributes"]
    if other := [name for name in present if name.endswith(WEIGHTS) and name not in files]:
        raise UploadError(
            f"{repo}: holds other weights ({', '.join(other[:3])}), which would stand beside these; give another name, "
            "or delete them there"
        )
    replaced, kept = [[name for name in present if (name in files) is known] for known in (True, False)]
    return Plan(repo, address, public, files, info.sha, tuple(replaced), tuple(kept))


def send(plan: Plan, folder: Path, message: str) -> str:
    """The address of the commit that holds the folder's files, made in a repository that is created if need be.

    Raises:
        UploadError: it broke off, was not permitted, or the hub does not have what was sent. Nothing of it can be seen
            then but an empty repository.
    """
    api = HfApi()
    with _failures_explained(plan.repo):
        parent = plan.parent
        if parent is None:
            api.create_repo(plan.repo, private=not plan.public)
            parent = api.model_info(plan.repo).sha
        operations = [CommitOperationAdd(name, folder / name) for name in plan.files]
        # Not upload_folder, which may make several commits of a large folder and show the first ones alone.
        commit = api.create_commit(plan.repo, operations, commit_message=message, parent_commit=parent)
        info = api.model_info(plan.repo, revision=commit.oid, files_metadata=True)

    # What the hub then has is what was sent, by size and, of large files, by digest.
    present = {file.rfilename: file for file in info.siblings or []}
    for operation in operations:
        file = present.get(operation.path_in_repo)
        lfs = file.lfs if file else None
        if (
            file is None
            or file.size != operation.upload_info.size
            or (lfs and lfs.sha256 != operation.upload_info.sha256.hex())
        ):
            raise UploadError(
                f"{plan.address}: does not hold {operation.path_in_repo} as it was sent; look at the repository, "
                "delete the file there and run the command again"
            )
    return str(commit.commit_url)


@contextmanager
def _failures_explained(repo: str) -> Iterator[None]:
    """Within, what can go wrong between here and the hub becomes one message."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UploadError(
            f"{repo}: not logged in to the hub; log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        ) from error
    except OfflineModeIsEnabled as error:
        raise UploadError(f"{repo}: HF_HUB_OFFLINE is set; unset it to upload, or use --dry-run") from error
    except HfHubHTTPError as error:
        raise UploadError(_answer(repo, error)) from error
    except httpx2.TransportError as error:
        raise UploadError(f"{repo}: the connection to the hub broke off ({_line(error)}); {_AGAIN}") from error
    except RuntimeError as error:  # what the library makes of a failure within its threads
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise UploadError(_answer(repo, cause)) from error
        raise UploadError(f"{repo}: the upload broke off ({_line(cause or error)}); {_AGAIN}") from error
    except UploadError:
        raise
    except ValueError as error:  # an answer that is not as expected, or a card that the hub does not take
        raise UploadError(
            f"{repo}: the hub does not take it, or answers otherwise than known ({_line(error)})"
        ) from error


def _answer(repo: str, error: HfHubHTTPError) -> str:
    """What the hub's refusal means, and what to do."""
    status = error.response.status_code
    if status == 401:
        return (
            f"{repo}: the hub does not accept the token (401): expired, revoked or mistyped; log in anew with "
            "`hf auth login`, or set HF_TOKEN"
        )
    if status == 403:
        return (
            f"{repo}: the token may not write there (403); use one with write access to {repo.split('/')[0]}, from the "
            "hub's page of tokens"
        )
    if status in (409, 412):
        return f"{repo}: somebody has changed it meanwhile ({status}); run the command again to compare anew"
    if status == 404:
        return f"{repo}: no such owner or repository (404); check the name, and that the token may see it"
    if status == 413:
        return f"{repo}: the hub refuses the size (413); see the limits of the account"
    if status >= 500 or status == 429:
        return f"{repo}: the hub failed ({status}); {_AGAIN}"
    return f"{repo}: the hub answered {status} ({_line(error)})"


def _line(error: BaseException) -> str:
    # Addresses of storage may be signed: what opens them stays out of messages.
    words = (str(error) or type(error).__name__).split("?")[0]
    return " ".join(words.split())[:200]
