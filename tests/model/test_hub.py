"""A base is asked for before it is fetched: every answer of the hub becomes one clear message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from skinvl.model.hub import BaseError, fetch

COMMIT = "1" * 40
FILES = {"config.json": b'{"model_type": "qwen2_vl"}', "model.safetensors": b"weights", "README.md": b"text"}
FILES["pytorch_model.bin"] = b"the same, pickled"
PICKLED = {name: data for name, data in FILES.items() if name != "model.safetensors"}  # of the owner of this name


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the hub that a download uses; each owner behaves in its own way."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        files = PICKLED if "/pickled/" in self.path else FILES
        if "/gated/" in self.path:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif "/absent/" in self.path:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no repo"})
        elif self.path.endswith("/auth-check"):
            self.answer(200, b"{}")
        elif self.path.startswith("/api/models/"):
            size = 10**16 if "/huge/" in self.path else None
            siblings = [{"rfilename": name, "size": size or len(body)} for name, body in files.items()]
            owner, name = self.path.split("/")[3:5]
            body = {"id": f"{owner}/{name.split('?')[0]}", "sha": COMMIT, "siblings": siblings}
            if "/tree/" in self.path:
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()
                ]
                self.answer(200, json.dumps(entries).encode())
            else:
                self.answer(200, json.dumps(body).encode())
        elif "/resolve/" not in self.path:
            self.answer(404, b"")
        else:
            data = FILES[self.path.split("?")[0].rsplit("/", 1)[-1]]
            self.answer(200, data, {"ETag": f'"{hash(data):x}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    one = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    one.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield one
    one.shutdown()


def ask(model: str, home: Path, endpoint: str, towers: bool = False) -> tuple[int, str]:
    """Exit status and last line of a fetch in a fresh process, since the hub's address is read at import."""
    code = (
        "import sys\nfrom skinvl.model.hub import BaseError, fetch\n"
        f"try:\n    print(fetch({model!r}, None, weights=True, towers={towers}))\n"
        "except BaseError as error:\n    sys.exit(f'refused: {error}')"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "t"}
    environment["HF_HUB_DISABLE_XET"] = "1"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90)
    return done.returncode, (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1]


def test_the_hub_is_asked_first_and_only_what_is_needed_is_fetched(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{server.server_port}"
    status, line = ask("open/model", tmp_path, endpoint)
    assert status == 0, line
    assert COMMIT in line
    fetched = [path for path in server.asked if "/resolve/" in path]  # type: ignore[attr-defined]
    assert {path.rsplit("/", 1)[-1] for path in fetched} == {"config.json", "model.safetensors"}
    for owner, expected in {
        "gated": "gated, and this account has no access",
        "absent": "no such model",
        "huge": "GB to download",
    }.items():
        server.asked.clear()  # type: ignore[attr-defined]
        status, line = ask(f"{owner}/model", tmp_path, endpoint)
        assert status == 1
        assert expected in line
        assert not any("/resolve/" in path for path in server.asked)  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    status, line = ask("open/model", tmp_path, endpoint)  # cached
    assert status == 0, line
    status, line = ask("open/another", tmp_path, endpoint)
    assert status == 1
    assert "not in the cache" in line
    assert "did not answer" in line


def test_pickled_weights_are_fetched_for_two_towers_alone_and_where_there_are_no_others(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for owner, towers, weights in (
        ("pickled", True, {"pytorch_model.bin"}),
        ("pickled", False, set()),
        ("open", True, {"model.safetensors"}),
    ):
        server.asked.clear()  # type: ignore[attr-defined]
        status, line = ask(f"{owner}/model", tmp_path / f"{owner}{towers}", endpoint, towers)
        assert status == 0, line
        fetched = {path.rsplit("/", 1)[-1] for path in server.asked if "/resolve/" in path}  # type: ignore[attr-defined]
        assert fetched == {"config.json", *weights}


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"no config\.json"):
        fetch(str(tmp_path), None, weights=True)
    with pytest.raises(BaseError, match=r"no config\.json nor open_clip_config\.json"):
        fetch(str(tmp_path), None, weights=True, towers=True)
    with pytest.raises(BaseError, match=r"init_adapter .*no adapter_config\.json nor config\.json"):
        fetch(str(tmp_path), None, weights=True, what="init_adapter", towers=True)
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert fetch(str(tmp_path), None, weights=True, towers=True).path == tmp_path
    (tmp_path / "config.json").write_text("{}")
    assert fetch(str(tmp_path), None, weights=True).path == tmp_path
    with pytest.raises(BaseError, match="no such folder, and not a model id"):
        fetch("./nowhere", None, weights=True)
    shutil.rmtree(tmp_path)


def test_the_folder_of_a_run_is_answered_with_the_folder_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(BaseError, match=r"give .*/model, which the run has made"):
        fetch(str(tmp_path), None, weights=False, what="init_adapter", towers=True)
    with pytest.raises(BaseError, match=r"give that of a model, or of an adapter"):  # sft cannot start from towers
        fetch(str(tmp_path), None, weights=False, what="init_adapter")
