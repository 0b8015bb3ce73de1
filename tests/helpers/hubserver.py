"""A stand-in of the hub for uploads: keeps repositories in memory, notes every call, and fails where it is told to."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "standin" * 5
LARGE = (".safetensors", ".png")


@dataclass
class Repo:
    """A repository: what its last commit holds, and who may see it."""

    private: bool
    sha: str = "a" * 40
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)  # the files of each commit


@dataclass
class Fault:
    """What goes wrong with requests of this method and with these words in their address, so many times."""

    method: str
    words: str
    what: int | str  # a status, or "drop": the connection breaks off in the middle of the body
    times: int = 1


class Hub(ThreadingHTTPServer):
    """The state of the stand-in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}  # large files by sha256, as the storage behind the hub keeps them
        self.calls: list[str] = []  # method and address, in order
        self.sent: list[int] = []  # bytes of each body that reached the storage
        self.faults: list[Fault] = []
        self.accounts = {TOKEN: "ada"}
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """The addresses that an upload uses."""

    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        self.serve()

    do_POST = do_PUT = do_GET

    def serve(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/agent-harnesses":  # asked by the library for its user agent, by some programs alone
            self.answer(404, {})
            return
        with self.server.lock:
            self.server.calls.append(f"{self.command} {path}")
            fault = next((one for one in self.server.faults if self.hits(one)), None)
            if fault:
                fault.times -= 1
        size = int(self.headers.get("Content-Length") or 0)
        if fault and fault.what == "drop":
            self.rfile.read(size // 2)
            self.connection.close()
            raise ConnectionAbortedError
        body = self.rfile.read(size) if size else b"".join(self.chunks())
        if fault:
            assert isinstance(fault.what, int)
            headers = {"X-Error-Message": "Invalid credentials in Authorization header"} if fault.what == 401 else {}
            self.answer(fault.what, {"error": "injected"}, headers)
            return
        if path.startswith("/storage/"):
            self.store(path.rsplit("/", 1)[1], body)
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.server.accounts:
            self.answer(401, {"error": "bad token"}, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/whoami-v2":
            self.answer(200, {"name": self.server.accounts[token], "type": "user"})
        elif path == "/api/validate-yaml":
            ok = json.loads(body)["content"].startswith("---\n")
            self.answer(200 if ok else 400, {"errors": [] if ok else [{"message": "no metadata"}], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.startswith("/api/models/"):
            self.model(path, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif path == "/verify":
            asked = json.loads(body)
            self.answer(200 if len(self.server.stored.get(asked["oid"], b"")) == asked["size"] else 404, {})
        else:
            self.answer(404, {"error": path})

    def hits(self, fault: Fault) -> bool:
        return fault.times > 0 and fault.method == self.command and fault.words in self.path

    def chunks(self) -> Iterator[bytes]:
        while (self.headers.get("Transfer-Encoding") or "") == "chunked":
            size = int(self.rfile.readline(), 16)
            yield self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                return

    def store(self, oid: str, body: bytes) -> None:
        self.server.sent.append(len(body))
        whole = hashlib.sha256(body).hexdigest() == oid
        if whole:
            self.server.stored[oid] = body
        self.answer(200 if whole else 400, {})

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.server.accounts.values():
            self.answer(403, {"error": "no rights"})
        elif repo in self.server.repos:
            self.answer(409, {"error": "exists"})
        else:
            self.server.repos[repo] = Repo(asked["visibility"] == "private")
            self.answer(200, {"url": f"{self.server.endpoint}/{repo}"})

    def model(self, path: str, body: bytes) -> None:
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        repo = self.server.repos.get(f"{owner}/{name}")
        if repo is None:
            self.answer(404, {"error": "no repo"}, {"X-Error-Code": "RepoNotFound"})
        elif not rest or rest[0] == "revision":
            siblings = [{"rfilename": file, **_blob(file, data)} for file, data in repo.files.items()]
            found = {"id": f"{owner}/{name}", "sha": repo.sha, "private": repo.private, "siblings": siblings}
            self.answer(200, found)
        elif rest[0] == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(one["path"], repo.files.get(one["path"])),
                }
                for one in asked
            ]
            self.answer(200, {"files": modes})
        else:
            self.commit(f"{owner}/{name}", repo, [json.loads(line) for line in body.splitlines()])

    def commit(self, name: str, repo: Repo, lines: list[dict[str, Any]]) -> None:
        header, *changes = lines
        if header["value"].get("parentCommit") not in (None, repo.sha):
            self.answer(412, {"error": "changed meanwhile"})
            return
        files = dict(repo.files)
        for change in changes:
            value = change["value"]
            data = base64.b64decode(value["content"]) if change["key"] == "file" else self.server.stored[value["oid"]]
            files[value["path"]] = data
        repo.files = files
        repo.commits.append(sorted(change["value"]["path"] for change in changes))
        repo.sha = hashlib.sha1(repr(sorted(files)).encode() + b"".join(files.values())).hexdigest()
        url = f"{self.server.endpoint}/{name}/commit/{repo.sha}"
        self.answer(200, {"commitUrl": url, "commitOid": repo.sha})

    def batch(self, asked: dict[str, Any]) -> None:
        found = []
        for one in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.server.endpoint}/storage/{one['oid']}?signature=secret"},
                "verify": {"href": f"{self.server.endpoint}/verify"},
            }
            found.append({**one, **({} if one["oid"] in self.server.stored else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": found})

    def answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


def _blob(name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"size": len(data), "blobId": "0" * 40}
    if name.endswith(LARGE):
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


def _oid(name: str, data: bytes | None) -> str | None:
    if data is None:
        return None
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """A stand-in that answers until the block ends."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
