"""An upload to a stand-in of the hub: the calls in their order, the bytes, and what happens where it fails."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, set_client_factory

from helpers import hubserver
from helpers.hubserver import TOKEN, Fault, Hub, Repo
from skinvl.release import upload
from skinvl.release.upload import UploadError

REPO = "ada/skin"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "publish"
    path.mkdir()
    (path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (path / "adapter_config.json").write_text("{}")
    (path / WEIGHTS).write_bytes(random.Random(1).randbytes(3 << 20))
    return path


def publish(folder: Path, public: bool = False, repo: str = REPO) -> str:
    return upload.send(upload.look(repo, folder, public), folder, "Upload")


def asked(hub: Hub) -> list[str]:
    """The calls, without the digests in them."""
    return [call if "/storage/" not in call else call.rsplit("/", 1)[0] for call in hub.calls]


def test_the_calls_and_the_bytes(hub: Hub, folder: Path) -> None:
    plan = upload.look(REPO, folder, public=False)
    assert plan.files == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert plan.size == sum(plan.files.values())
    assert (plan.parent, plan.replaced, plan.kept) == (None, (), ())
    assert asked(hub) == ["GET /api/whoami-v2", f"GET /api/models/{REPO}"]  # to look changes nothing
    url = upload.send(plan, folder, "Upload")
    assert asked(hub)[2:] == [
        "POST /api/repos/create",
        f"GET /api/models/{REPO}",
        "POST /api/validate-yaml",
        f"POST /api/models/{REPO}/preupload/main",
        f"POST /{REPO}.git/info/lfs/objects/batch",
        "PUT /storage",
        "POST /verify",
        f"POST /api/models/{REPO}/commit/main",
        f"GET /api/models/{REPO}/revision/{hub.repos[REPO].sha}",
    ]
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert repo.commits == [sorted(repo.files)]
    assert url == f"{hub.endpoint}/{REPO}/commit/{repo.sha}"


def test_a_second_upload_sends_what_changed(hub: Hub, folder: Path) -> None:
    publish(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Another\n")
    plan = upload.look(REPO, folder, public=False)
    assert plan.replaced == tuple(sorted(plan.files))
    assert plan.parent == hub.repos[REPO].sha
    upload.send(plan, folder, "Upload")
    assert hub.repos[REPO].commits[1] == ["README.md"]
    assert hub.sent == [3 << 20]


@pytest.mark.parametrize(("method", "words"), [("PUT", "/storage/"), ("POST", "/preupload/"), ("POST", "/batch")])
@pytest.mark.parametrize("what", [500, "drop"])
def test_what_fails_once_is_tried_again(hub: Hub, folder: Path, method: str, words: str, what: int | str) -> None:
    hub.faults = [Fault(method, words, what)]
    publish(folder)
    assert hub.faults[0].times == 0
    assert hub.repos[REPO].files[WEIGHTS] == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("fault", "said", "resent"),
    [
        (Fault("PUT", "/storage/", "drop", 99), "broke off", 1),
        (Fault("PUT", "/storage/", 500, 99), "the hub failed", 1),
        (Fault("POST", "/commit/", 500), "the hub failed", 0),
        (Fault("POST", "/commit/", "drop"), "broke off", 0),
        (Fault("POST", "/verify", 500, 99), "the hub failed", 0),
        (Fault("POST", "/validate-yaml", 500), "the hub failed", 1),
        (Fault("POST", "/commit/", 401), "does not accept the token", 0),
        (Fault("POST", "/batch", 403), "may not write there", 1),
        (Fault("POST", "/commit/", 412), "changed it meanwhile", 0),
        (Fault("PUT", "/storage/", 422), "the hub answered 422", 1),
    ],
)
def test_a_broken_upload_shows_nothing_and_goes_on(
    hub: Hub, folder: Path, fault: Fault, said: str, resent: int, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [fault]
    with pytest.raises(UploadError, match=said) as error:
        publish(folder)
    assert TOKEN not in str(error.value) + "".join(capfd.readouterr())
    assert "signature" not in str(error.value)
    assert hub.repos[REPO].files == {}
    hub.faults, hub.sent = [], []
    publish(folder)
    assert len(hub.sent) == resent
    assert hub.repos[REPO].files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(hub.repos[REPO].commits) == 1


def test_of_two_files_the_one_that_arrived_is_not_sent_again(hub: Hub, folder: Path) -> None:
    (folder / "loss.png").write_bytes(random.Random(2).randbytes(1 << 16))
    oid = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    hub.faults = [Fault("PUT", oid, 500, 99)]
    with pytest.raises(UploadError, match="the hub failed"):
        publish(folder)
    assert len(hub.stored) == 1
    hub.faults, hub.sent = [], []
    publish(folder)
    assert hub.sent == [3 << 20]


def test_who_may_not_is_told(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="may not write there"):
        publish(folder, repo="somebody/skin")
    monkeypatch.setenv("HF_TOKEN", "hf_expiredexpiredexpired")
    with pytest.raises(UploadError, match=r"401.*hf auth login") as error:
        publish(folder)
    assert "hf_expired" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UploadError, match="not logged in"):
        publish(folder)
    assert hub.repos == {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    set_client_factory(_http.default_client_factory)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE is set"):
        publish(folder)


def test_a_hub_that_is_not_there(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError, match="the connection to the hub broke off"):
        publish(folder)


def test_a_repository_that_others_see_otherwise_is_refused(hub: Hub, folder: Path) -> None:
    hub.repos[REPO] = Repo(private=False)
    with pytest.raises(UploadError, match=r"exists and is public; .*--public"):
        publish(folder)
    publish(folder, public=True)
    hub.repos[REPO].private = True
    with pytest.raises(UploadError, match="exists and is private"):
        publish(folder, public=True)
    publish(folder, public=True, repo="ada/open")
    assert not hub.repos["ada/open"].private


def test_what_lies_there_already_is_compared(hub: Hub, folder: Path) -> None:
    hub.repos[REPO] = Repo(private=True, files={"notes.md": b"mine", "README.md": b"old", ".gitattributes": b""})
    plan = upload.look(REPO, folder, public=False)
    assert (plan.replaced, plan.kept) == (("README.md",), ("notes.md",))
    hub.repos[REPO].sha = "b" * 40  # somebody commits in between
    with pytest.raises(UploadError, match="changed it meanwhile"):
        upload.send(plan, folder, "Upload")
    publish(folder)
    assert hub.repos[REPO].files["notes.md"] == b"mine"
    hub.repos[REPO].files["model.safetensors"] = b"merged"
    with pytest.raises(UploadError, match=r"holds other weights \(model\.safetensors\)"):
        publish(folder)


def test_what_arrived_otherwise_is_noticed(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = upload.look(REPO, folder, public=False)
    monkeypatch.setattr(hubserver, "_blob", lambda name, data: {"size": len(data) - 1, "blobId": "0" * 40})
    with pytest.raises(UploadError, match=r"does not hold README\.md as it was sent"):
        upload.send(plan, folder, "Upload")


@pytest.mark.parametrize("name", ["skin", "ada/skin/x", "ada/-skin", "ada/sk in", "ada/" + "s" * 100])
def test_names_that_the_hub_refuses(name: str) -> None:
    with pytest.raises(UploadError, match=r"expected owner/name|not a name"):
        upload.check_name(name)
    upload.check_name(REPO)
